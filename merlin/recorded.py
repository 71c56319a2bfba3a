"""A function of tensors as the operations that it calls, to be called again without the Python around them.

At batch 1 an operation takes one or two microseconds, and what a module does to call it several times as long.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from merlin.precision import is_transformed

Replay = Callable[..., tuple[Tensor, ...]]


class NotRecordable(Exception):
    """A function does other operations for other numbers, or draws its own."""


@torch.inference_mode(False)
@torch.no_grad()
def record(function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> Replay:
    """Return a function that does what `function` does with inputs of these shapes and types, operation by operation.

    Results are equal bit for bit, and without gradients. Tensors that are no inputs, such as parameters, are those that
    were read: what changes in them is seen. All else that `function` reads, such as settings, is as it was. What
    depends on no tensor is computed once, and what `function` computes twice is computed once a call.

    Raises:
        NotRecordable: An operation gives Python a number that it may branch on, or draws random numbers.
    """
    inputs = tuple(x.clone() for x in inputs)  # each a tensor of its own: one that came in twice would be one input
    recorder, luck = _Recorder(), torch.get_rng_state()
    with recorder:
        outputs = function(*inputs)
    if not torch.equal(torch.get_rng_state(), luck):
        raise NotRecordable("it draws random numbers")
    return _without_python(recorder.compile(inputs, outputs), inputs)


def can_look(x: Tensor) -> bool:
    """Return whether Python may look at a tensor's numbers, as to check them.

    A GPU's host would have to wait, and what is compiled, exported, recorded or mapped has no branches.
    """
    mode = torch.overrides._get_current_function_mode()
    is_program = torch.compiler.is_compiling() or isinstance(mode, _Recorder) or is_transformed()
    return x.device.type == "cpu" and not is_program


def _without_python(replay: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> Replay:
    """Return the same operations called without Python; as they are, by a PyTorch that has no `torch.jit.trace`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and has no successor that is as fast for small tensors
            program: Any = torch.jit.trace(replay, tuple(x.clone() for x in inputs), check_trace=False)
        for _ in range(3):  # the first calls look at types, and settle on what is fastest
            program(*inputs)
    except Exception:
        return replay
    return program


_METADATA = {"__get__", "__len__", "__hash__", "dim", "size", "stride", "numel", "is_contiguous", "is_floating_point"}
_METADATA |= {"promote_types"}


class _Call(NamedTuple):
    function: Any
    args: Any
    kwargs: dict[str, Any]
    result: Any


class _Recorder(TorchFunctionMode):
    """Keeps each operation, and which storages operations write to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.written: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = [(x, x._version) for x in _tensors((args, kwargs)) if not x.is_inference()]
        result = func(*args, **kwargs)
        self.written |= {_storage(x) for x, version in before if x._version != version}
        if _tensors(result):
            self.calls.append(_Call(func, args, kwargs, result))
        elif func.__name__ not in _METADATA:
            raise NotRecordable(f"{func.__name__} of a tensor is a number")
        return result

    def compile(self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Replay:
        """Return the operations as a function: lines of Python, in which inputs and results are v0, v1, and so on."""
        names = {id(x): f"v{i}" for i, x in enumerate(inputs)}
        parameters, constants, lines, known = list(names.values()), {}, [], {}

        def write(x: Any) -> str:
            if id(x) in names:
                return names[id(x)]
            if isinstance(x, tuple | list):
                written = "".join(f"{write(child)}, " for child in x)
                return f"[{written}]" if isinstance(x, list) else f"({written})"
            if x is None or type(x) in (bool, int):
                return repr(x)
            names[id(x)] = name = f"k{len(names)}"
            constants[name] = x.detach() if isinstance(x, Tensor) else x
            return name

        for function, args, kwargs, result in self.calls:
            results, read = _tensors(result), _tensors((args, kwargs))
            is_pure = not any(_storage(x) in self.written for x in (*results, *read))
            if function is Tensor.detach:
                names[id(result)] = write(args[0])
                continue
            values = ", ".join([*map(write, args), *(f"{key}={write(x)}" for key, x in kwargs.items())])
            call = f"{write(function)}({values})"
            if is_pure and call in known:
                names |= {id(x): name for x, name in zip(results, known[call], strict=True)}
            elif is_pure and not read:
                known[call] = [write(x) for x in results]  # a constant
            else:
                named = [names.setdefault(id(x), f"v{len(names)}") for x in results]
                lines.append(f"{', '.join(named)}{'' if isinstance(result, Tensor) else ','} = {call}")
                if is_pure:
                    known[call] = named
        lines.append(f"return {write(tuple(outputs))}")
        parameters += [f"{name}={name}" for name in constants]  # local, and so faster
        constants["__name__"] = __name__  # torch.jit.trace asks for it
        exec("\n    ".join([f"def replay({', '.join(parameters)}):", *lines]), constants)
        return constants["replay"]


def _tensors(x: Any) -> list[Tensor]:
    """Return the tensors in a tree of tuples, lists and dicts."""
    if isinstance(x, Tensor):
        return [x]
    children = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else ()
    return [tensor for child in children for tensor in _tensors(child)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
