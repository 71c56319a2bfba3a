"""A second device that every machine has: its tensors say that they lie on `DEVICE`, and are computed on the CPU.

    with SecondDevice() as device:
        trainer = Trainer(move(agent), ...)
        trainer.update()
    device.reads          what brought numbers to the host, by the line of ours that asked for it

As on a GPU, a tensor of `DEVICE` and one of the CPU do not mix, unless one is a number of no dimension, and what brings
numbers to the host is where the host would wait. Random numbers are the CPU's.
"""

import importlib
import pkgutil
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from merlin import tasks

for module in pkgutil.walk_packages(tasks.__path__, f"{tasks.__name__}."):
    with suppress(ImportError):  # of an extra; what is first imported under the device would keep its Generator's name
        importlib.import_module(module.name)

DEVICE = torch.device("meta")
"""A device that PyTorch knows everywhere, and on which it computes nothing itself."""
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
"""What the host waits for: numbers, and tensors whose shape depends on numbers."""
OURS = ("/merlin/", "/tasks/")


class Elsewhere(Tensor):
    """A tensor of `DEVICE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        return Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return SecondDevice.running.run(func, args, kwargs or {})

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Return a tensor of numbers of the host, of this one's device and, unless given, type."""
        return Elsewhere(self.held.new_tensor(data, **options))

    def tolist(self) -> Any:
        """Return the numbers, which is one read."""
        SecondDevice.running.count()
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"Elsewhere({self.held!r})"


class Generator(torch.Generator):
    """A generator that says it is of `DEVICE`."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self._device


class SecondDevice(TorchDispatchMode):
    """Within it there is `DEVICE`."""

    running: "SecondDevice"

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self._patches = [
            patch.object(torch, "Generator", Generator),
            *(patch.object(torch, make.__name__, _making(make)) for make in (torch.tensor, torch.as_tensor)),
            patch.object(torch, "is_autocast_enabled", lambda *device_type: False),  # which asks of known ones alone
        ]

    def __enter__(self) -> "SecondDevice":
        SecondDevice.running = self
        for x in self._patches:
            x.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for x in self._patches:
            x.stop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run an operation where its tensors lie, or where it says that it makes one."""
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, Elsewhere)]
        target = kwargs.get("device")
        moves = func in (aten.copy_.default, aten._to_copy.default)
        if there and not moves and (strange := [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]):
            raise AssertionError(f"{func} mixes {DEVICE} and CPU, of shape {tuple(strange[0].shape)}, at {_where()}")
        if (func in READS and there) or self._indexes_by_flags(func, args):
            self.count()
        is_there = bool(there) if target is None else torch.device(target) == DEVICE
        if func is aten.copy_.default:
            is_there = isinstance(args[0], Elsewhere)
        if moves and there and not is_there:
            self.count()

        held_args, held_kwargs = tree_map(_held, (args, kwargs))
        if target is not None:
            held_kwargs["device"] = torch.device("cpu")
        result = func(*held_args, **held_kwargs)
        if func is aten._local_scalar_dense.default or not is_there:
            return result
        written = [x.alias_info is not None and x.alias_info.is_write for x in func._schema.arguments]
        if any(written) and func._schema.name.endswith("_"):
            return args[written.index(True)]
        own = {id(x.held): x for x in there}  # what is written to, and given back
        return tree_map(lambda x: own.get(id(x), Elsewhere(x)) if isinstance(x, Tensor) else x, result)

    def count(self) -> None:
        """Count a read of the host's."""
        self.reads[_where()] += 1

    @staticmethod
    def _indexes_by_flags(func: Any, args: tuple) -> bool:
        if func not in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            return False
        flags = [x for x in args[1] if isinstance(x, Elsewhere) and x.dtype == torch.bool]
        # Where all that is flagged gets one number, the flags are a mask.
        return bool(flags) and not (len(args) > 2 and args[2].ndim == 0)


def move(module: nn.Module) -> nn.Module:
    """Return the module with its parameters and buffers on `DEVICE`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer)
    return module


def _making(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what makes a tensor of numbers of the host, which PyTorch brings to a device out of any mode's sight."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(device=device or data.device, **options)
        for _ in (x for x in tree_flatten(data)[0] if isinstance(x, Elsewhere)):
            SecondDevice.running.count()
        x = make(tree_map(_held, data), **options)
        return x if device is None or torch.device(device) != DEVICE else Elsewhere(x)

    return made


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Elsewhere) else x


def _where() -> str:
    """Return the innermost line of ours."""
    for frame in reversed(traceback.extract_stack()):
        if any(part in frame.filename for part in OURS) and "/tests/" not in frame.filename:
            return f"{frame.filename.rpartition('/main/')[2]}:{frame.lineno} {frame.line}"
    return "elsewhere"
