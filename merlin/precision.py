"""Where autocast must not choose the type of numbers: in what is carried from step to step."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AS_IT_IS = nullcontext()


def full_precision(x: Tensor) -> AbstractContextManager:
    """Return a context in which autocast is off on the tensor's device."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _AS_IT_IS


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a type: `x.to(dtype)`, of which a call that changes nothing is ten times as dear."""
    return x if x.dtype == dtype else x.to(dtype)
