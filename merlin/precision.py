"""Where autocast must not choose the type of numbers, PyTorch's own settings, and transforms that are under way."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_AS_IT_IS = nullcontext()


@contextmanager
def restoring_torch() -> Iterator[None]:
    """Give PyTorch back, at the end, the threads and the precision of products that it had: others compute with it."""
    threads, precision = torch.get_num_threads(), None
    with suppress(RuntimeError):  # who has set it by backend cannot ask for it so
        precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if precision is not None:
            torch.set_float32_matmul_precision(precision)


class KeepsSums(nn.Module):
    """A module some of whose buffers lose no digits where a model is cast: sums that would soon count no further.

    Attributes:
        summed: Their names.
    """

    summed: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeepsSums":
        before = {name: self._buffers[name] for name in self.summed if name in self._buffers}
        super()._apply(fn, recurse)
        for name, x in before.items():
            after = self._buffers[name]
            if x is not None and after is not None and torch.promote_types(x.dtype, after.dtype) != after.dtype:
                self._buffers[name] = x.to(after.device)
        return self


def full_precision(x: Tensor) -> AbstractContextManager:
    """Return a context in which autocast is off on the tensor's device."""
    kind = x.device.type
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else _AS_IT_IS


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a type: `x.to(dtype)`, of which a call that changes nothing is ten times as dear."""
    return x if x.dtype == dtype else x.to(dtype)


def is_transformed() -> bool:
    """Return whether `torch.func` maps or differentiates what is computed now, or derivatives are taken forward.

    It knows PyTorch's own operations alone, and tensors whose numbers Python cannot see.
    """
    transform = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return transform is not None or forward_ad._current_level >= 0


def may_differentiate() -> bool:
    """Return whether derivatives may be taken of what is computed now; forward they are, gradients switched off too."""
    return torch.is_grad_enabled() or is_transformed()
