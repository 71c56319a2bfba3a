"""Vectors: every Box that is not a picture, flattened."""

import numpy as np
import torch
from gymnasium.spaces import Box
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin.networks.entries import CLOSE, EntryDecoder, EntryEncoder, flatten_entry, moments, unflatten_entry, variance
from merlin.networks.products import Linear
from merlin.networks.scales import RunningMoments

LARGEST_BOUND = 1e6  # bounds beyond this say "anything" (often the largest float) and are no scale


class VectorScale(nn.Module):
    """Brings numbers to order one.

    Unless running, by the bounds of the space, which says little of what they are: speeds of ±8 become ±1; bounds below
    1 and absent bounds change nothing, so that a vector in [0, 1] or [-1, 1] is left exactly as it is.

    Args:
        running: By their running mean and standard deviation instead.
    """

    scale: Float[Tensor, " n"]

    def __init__(self, space: Box, running: bool = False):
        super().__init__()
        self.shape: tuple[int, ...] = tuple(space.shape)
        bound = np.maximum(np.abs(space.low.astype(np.float64)), np.abs(space.high.astype(np.float64))).reshape(-1)
        scale = np.where(bound <= LARGEST_BOUND, np.maximum(bound, 1.0), 1.0)
        self.size = scale.size
        self._is_one = bool((scale == 1).all())
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.get_default_dtype()), persistent=False)
        self.moments = RunningMoments(self.size) if running else None

    def forward(self, value: Tensor) -> Float[Tensor, "*batch n"]:
        flat = flatten_entry(value, self.shape)
        if self.moments is not None:  # before rounding: 1000 and 1001 are one number of bfloat16
            return self.moments.standardize(flat).to(self.scale.dtype)
        flat = flat.to(self.scale.dtype)
        return flat if self._is_one else flat / self.scale

    def restore(self, scaled: Float[Tensor, "*batch n"]) -> Tensor:
        """Return the numbers in the units of the space."""
        flat = scaled * self.scale if self.moments is None else self.moments.restore(scaled)
        return unflatten_entry(flat, self.shape)

    def update(self, value: Tensor, counts: Bool[Tensor, "*batch"]) -> None:
        """Take in the rows that count, if the scale is running."""
        if self.moments is not None:
            self.moments.update(flatten_entry(value, self.shape), counts)


class VectorEncoder(EntryEncoder):
    """The scaled numbers as they are: whatever reads the encoding begins with a linear layer."""

    def __init__(self, space: Box, running_scale: bool = False):
        super().__init__()
        self.scale = VectorScale(space, running_scale)
        self.output_size = self.scale.size

    def forward(self, value: Tensor) -> Float[Tensor, "*batch E"]:
        return self.scale(value)

    def update_scale(self, value: Tensor, counts: Bool[Tensor, "*batch"]) -> None:
        self.scale.update(value, counts)


class VectorDecoder(EntryDecoder):
    """Means linear in the latent (why: see CategoryDecoder) of a Gaussian of variance 1, its constant left out.

    nats = 0.5 · Σᵢ (xᵢ - meanᵢ)²        x in the units of VectorScale
    """

    _bounds: Tensor

    def __init__(self, space: Box, input_size: int, running_scale: bool = False):
        scale = VectorScale(space, running_scale)
        super().__init__(space, 2 * scale.size)
        self.scale = scale
        self.dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        # of integers, and integers, which stay where a model is cast; as floats some would be just beyond those
        bounds = np.stack([space.low, space.high]).astype(np.float64).clip(-(2.0**63), 2.0**63 - 1024)
        self.register_buffer("_bounds", torch.tensor(bounds).long(), persistent=False)
        self.linear = Linear(input_size, scale.size)

    def forward(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch P"]:
        return self.linear(latent)

    def nats(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        return 0.5 * (self.scale(value) - parameters).square().sum(-1)

    def accuracy(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        return ((self.scale(value) - parameters).abs() < CLOSE).float().mean(-1)

    def mode(self, parameters: Float[Tensor, "*batch P"]) -> Tensor:
        mean = self.scale.restore(parameters)
        return (
            mean if self.dtype.is_floating_point else mean.double().round().clamp(*self._bounds.double()).to(self.dtype)
        )

    def means(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " M"]:
        return moments(self.scale(value).reshape(-1, self.scale.size).double(), counts)

    def worth_nats(self, means: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        return 0.5 * variance(means).sum().to(self.linear.weight.dtype)

    def update_scale(self, value: Tensor, counts: Bool[Tensor, "*batch"]) -> None:
        self.scale.update(value, counts)
