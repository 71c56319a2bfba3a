"""The kernels of `kernels.c`: compiled at the first use where there is a C compiler, and kept in the user's cache.

Without one, or with MERLIN_KERNELS=0 in the environment, grid worlds take the operations of PyTorch, which compute the
same, and are slower where environments are few. The logger "merlin.tasks" says at the level INFO which it is.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-shared", "-fPIC")
log = logging.getLogger("merlin.tasks")


@lru_cache
def load() -> ctypes.CDLL | None:
    """Return the kernels, or None where they cannot be compiled or are not wanted."""
    if os.environ.get("MERLIN_KERNELS") == "0":
        log.info("grid worlds take PyTorch's operations, as MERLIN_KERNELS=0 says")
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("grid worlds take PyTorch's operations, as their kernels cannot be compiled: %s", error)
        return None
    log.info("grid worlds take compiled kernels")
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.grid_move.argtypes, library.grid_move.restype = [number] * 5 + [pointer] * 14, number
    library.grid_look.argtypes, library.grid_look.restype = [number] * 5 + [pointer] * 7, None
    return library


def _compiled() -> Path:
    """Return the library, compiled unless it was for this source, by this compiler, on such a machine."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        raise FileNotFoundError("there is no C compiler")
    about = " ".join((SOURCE.read_text(), compiler, *FLAGS, platform.platform(), platform.machine()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merlin-agents"
    path = cache / f"kernels-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            made = Path(directory) / path.name
            command = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            made.replace(path)  # whoever else compiles it meanwhile makes the same
    return path


def can_read(*tensors: Tensor) -> bool:
    """Return whether kernels can read these numbers, which they take for int64, as they are."""
    for x in tensors:
        if x.dtype is not torch.int64 or not x.is_contiguous():
            return False
    return True
