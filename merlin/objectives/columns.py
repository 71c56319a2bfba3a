"""Columns of a window belong together row by row, and means over them: 0 over no rows, in losses and metrics alike."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.errors import MerlinError


def check_shapes(**columns: Any) -> None:
    """Raise a MerlinError unless the tensors have one shape; a single number does for all rows.

    Broadcast, they would give losses and returns of something else.
    """
    shapes = [(name, list(x.shape)) for name, x in columns.items() if isinstance(x, Tensor) and x.ndim]
    for name, shape in shapes:
        first, wanted = shapes[0]
        if shape != wanted:
            raise MerlinError(
                f"{name} must have the shape of {first}, {wanted}, but it has {shape}: reshape one of them."
            )


def mean(x: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Return the mean of all numbers; 0 if there is none."""
    return x.mean() if x.numel() else x.sum()


def masked_mean(x: Float[Tensor, "T B"], is_valid: Bool[Tensor, "T B"]) -> Float[Tensor, ""]:
    """Return the mean over valid rows; 0 if there is none."""
    check_shapes(x=x, is_valid=is_valid)
    return torch.where(is_valid, x, 0.0).sum() / is_valid.sum().clamp(min=1)


def spread(x: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Return the standard deviation of all numbers; 0 if there is none."""
    return x.std(correction=0) if x.numel() else x.sum()
