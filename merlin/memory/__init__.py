"""Content-addressed memory with least-used writes and a retroactive half, usable on its own.

`content` has the equations, one step at a time; `window` the same memory over a window of steps, where nothing of its
size is ever copied; `interface` what an agent asks of a memory, so that another one can take its place; `recurrent` the
memory behind an LSTM, called as `torch.nn.LSTM` is.
"""

from merlin.memory.content import (
    EPSILON,
    MemoryState,
    Read,
    Reader,
    allocate,
    attend,
    initial_state,
    read,
    reset,
    unit,
    write,
    written,
)
from merlin.memory.interface import ContentMemory, Memory, MemoryConfig, make_memory
from merlin.memory.recurrent import MemoryLSTM

__all__ = [
    "EPSILON",
    "ContentMemory",
    "Memory",
    "MemoryConfig",
    "MemoryLSTM",
    "MemoryState",
    "Read",
    "Reader",
    "allocate",
    "attend",
    "initial_state",
    "make_memory",
    "read",
    "reset",
    "unit",
    "write",
    "written",
]
