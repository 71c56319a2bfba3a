"""Columns of a window belong together row by row."""

from typing import Any

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
