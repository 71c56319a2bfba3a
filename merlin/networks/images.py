"""Pictures: residual convolutions, sized to the picture, and their mirror image."""

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin.networks.entries import CLOSE, EntryDecoder, EntryEncoder, moments, row_mean, variance
from merlin.networks.initialization import start_at_scale
from merlin.networks.kinds import Picture
from merlin.networks.products import Linear

Module = TypeVar("Module", bound=nn.Module)

SMALL = 8  # rows and columns that need no further halving


class Stage(NamedTuple):
    """What one block of an encoder does to the rows and columns; the decoder's block undoes it."""

    stride: int
    size: tuple[int, int]
    reduced_size: tuple[int, int]


def stages(size: tuple[int, int]) -> list[Stage]:
    """Return two stages, strides 2 and 1, for each halving from a size to at most 8: 64, 32, 16, 8.

    A 64x64 picture has the paper's strides 2, 1, 2, 1, 2, 1 (Wayne et al. 2018, Methods); smaller ones have fewer, and
    one of at most 8x8 has two stages of stride 1.
    """
    plan = []
    while max(size) > SMALL:
        half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        plan += [Stage(2, size, half), Stage(1, half, half)]
        size = half
    return plan or [Stage(1, size, size)] * 2


def channels_last(module: Module) -> Module:
    """Let the weights of convolutions lie in memory as pictures do."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack it


class Bottleneck(nn.Module):
    """A residual block without normalisation, which halves the picture (stride 2) or keeps its size (stride 1).

    A picture of few channels is not narrowed first, which would make the largest tensors of the whole network.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        middle = channels // 2
        self.narrow = nn.Sequential(nn.Conv2d(in_channels, middle, 1), nn.ReLU()) if in_channels > middle else None
        self.across = nn.Conv2d(min(in_channels, middle), middle, 3, stride, padding=1)
        self.widen = nn.Conv2d(middle, channels, 1)
        # pooled: a 1x1 convolution of stride 2 skips three pixels in four, and its gradient crashes torch 2.13 on a CPU
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.skip = nn.Conv2d(in_channels, channels, 1)

    def forward(self, picture: Float[Tensor, "M C Y X"]) -> Float[Tensor, "M D Y2 X2"]:
        narrow = picture if self.narrow is None else self.narrow(F.relu(picture))
        return self.widen(F.relu(self.across(narrow))) + self.skip(self.pool(picture))


class UpBottleneck(nn.Module):
    """The mirror of Bottleneck: brings a picture from the reduced size of a stage back to the size before."""

    def __init__(self, in_channels: int, channels: int, stage: Stage):
        super().__init__()
        middle = in_channels // 2
        stride = stage.stride
        (rows, columns), (reduced_rows, reduced_columns) = stage.size, stage.reduced_size
        # to the size before, from the smallest one that would shrink to the reduced one
        padding = rows - stride * (reduced_rows - 1) - 1, columns - stride * (reduced_columns - 1) - 1
        self.narrow = nn.Conv2d(in_channels, middle, 1)
        self.across = nn.ConvTranspose2d(middle, min(channels, middle), 3, stride, padding=1, output_padding=padding)
        self.widen = nn.Sequential(nn.ReLU(), nn.Conv2d(middle, channels, 1)) if channels > middle else None
        self.skip = nn.Conv2d(in_channels, channels, 1)
        self.grow = nn.Upsample(stage.size) if stride > 1 else nn.Identity()

    def forward(self, picture: Float[Tensor, "M C Y X"]) -> Float[Tensor, "M D Y2 X2"]:
        across = self.across(F.relu(self.narrow(F.relu(picture))))
        return (across if self.widen is None else self.widen(across)) + self.grow(self.skip(picture))


class ImageEncoder(EntryEncoder):
    """A residual block for each stage, then a linear layer and tanh."""

    def __init__(self, space: Picture, features: int, channels: int):
        super().__init__()
        self.pixels = Pixels(space)
        plan = stages(self.pixels.size)
        widths = [self.pixels.channels] + [channels] * len(plan)
        blocks = nn.Sequential(*map(Bottleneck, widths[:-1], widths[1:], (stage.stride for stage in plan)))
        self.blocks = channels_last(blocks)  # as pictures come; a third faster on a CPU
        self.linear = Linear(channels * math.prod(plan[-1].reduced_size), features)
        self.output_size = features
        start_at_scale(self.blocks, self.linear)

    def forward(self, value: Tensor) -> Float[Tensor, "*batch E"]:
        pixels = self.pixels(value)
        features = F.relu(self.blocks(pixels.reshape(-1, *pixels.shape[-3:]).movedim(-1, 1)))
        return torch.tanh(self.linear(features.movedim(1, -1).flatten(1))).reshape(*pixels.shape[:-3], self.output_size)


class ImageDecoder(EntryDecoder):
    """The mirror of ImageEncoder; the parameters are a number for each pixel and channel.

    bernoulli: nats = -Σ x · log p + (1 - x) · log(1 - p)    p = sigmoid(parameter), x in [0, 1]
    gaussian:  nats = 0.5 · Σ (x - parameter)²               variance 1, its constant left out
    """

    def __init__(self, space: Picture, input_size: int, features: int, channels: int, likelihood: str):
        is_bernoulli, size = likelihood == "bernoulli", math.prod(space.shape)
        super().__init__(space, size + 1 if is_bernoulli else 2 * size)
        self.pixels, self.is_bernoulli = Pixels(space), is_bernoulli
        plan = stages(self.pixels.size)[::-1]
        widths = [channels] * len(plan) + [self.pixels.channels]
        self.first_shape = (*plan[0].reduced_size, channels)
        self.linear = nn.Sequential(
            Linear(input_size, features), nn.Tanh(), Linear(features, math.prod(self.first_shape))
        )
        blocks = map(UpBottleneck, widths[:-1], widths[1:], plan)
        self.blocks = channels_last(nn.Sequential(*blocks))

    def forward(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch P"]:
        first = self.linear(latent.reshape(-1, latent.shape[-1])).unflatten(-1, self.first_shape)
        pixels = self.blocks(first.movedim(-1, 1)).movedim(1, -1).flatten(1)
        return pixels.reshape(*latent.shape[:-1], pixels.shape[1])

    def nats(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        pixels = self.pixels(value).flatten(-3)
        if self.is_bernoulli:
            return F.binary_cross_entropy_with_logits(parameters, pixels, reduction="none").sum(-1)
        return 0.5 * (pixels - parameters).square().sum(-1)

    def accuracy(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        return ((self._means(parameters) - self.pixels(value).flatten(-3)).abs() < CLOSE).float().mean(-1)

    def mode(self, parameters: Float[Tensor, "*batch P"]) -> Tensor:
        return self.pixels.restore(self._means(parameters))

    def means(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " M"]:
        pixels = self.pixels(value).reshape(-1, math.prod(self.shape))
        if self.is_bernoulli:
            return torch.cat([row_mean(x, counts) for x in (pixels, self.floor_nats(value).reshape(-1, 1))])
        return moments(pixels, counts)

    def worth_nats(self, means: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        if not self.is_bernoulli:
            return 0.5 * variance(means, rounding=1e-6).sum().float()  # of float32, which pixels in [0, 1] allow
        probabilities, floor = means[:-1], means[-1]
        worth = binary_entropy(probabilities).sum() - floor
        return torch.where(worth > 1e-5 * floor, worth, 0.0)  # a picture that never changes, but for rounding

    def floor_nats(self, value: Tensor) -> Float[Tensor, "*batch"]:
        if self.is_bernoulli:
            return self.pixels.entropies(value).sum(-1)
        return super().floor_nats(value)

    def _means(self, parameters: Tensor) -> Tensor:
        return parameters.sigmoid() if self.is_bernoulli else parameters


class Pixels(nn.Module):
    """Pixels of a Picture as floats in [0, 1], by the bounds of the space; all channels are in one axis, the last."""

    _shade_entropies: Float[Tensor, " 256"]

    def __init__(self, space: Picture):
        super().__init__()
        self.shape, self.size, self.channel_shape = space.shape, space.size, space.channel_shape
        self.channels = math.prod(self.channel_shape)
        # where rows and columns lie among the last axes of a value, and where a network wants them
        self._axes = tuple(space.row_axis + i - len(self.shape) for i in (0, 1))
        self._first_axes = tuple(i - len(self.shape) for i in (0, 1))
        self.low, high = float(space.low.min()), float(space.high.max())
        self.range = high - self.low
        self.dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        self._is_bounded = self.dtype == torch.uint8 and (self.low, high) == (0.0, 255.0)  # by its type
        shades = (torch.arange(256.0) - self.low) / self.range
        self.register_buffer("_shade_entropies", binary_entropy(shades.clamp(0.0, 1.0)), persistent=False)

    def forward(self, value: Tensor) -> Float[Tensor, "*batch Y X C"]:
        pixels = value if self._axes == self._first_axes else value.movedim(self._axes, self._first_axes)
        if len(self.channel_shape) != 1:
            pixels = pixels.flatten(-2) if self.channel_shape else pixels.unsqueeze(-1)
        pixels = pixels.to(self._shade_entropies.dtype)
        if (self.low, self.range) != (0.0, 1.0):
            pixels = (pixels - self.low) / self.range
        # a number beyond its bounds would make the Bernoulli's loss unbounded below
        return pixels if self._is_bounded else pixels.clamp(0.0, 1.0)

    def entropies(self, value: Tensor) -> Float[Tensor, "*batch P"]:
        """Return the entropy of each pixel and channel as the probability of a Bernoulli, in any order."""
        if value.dtype == torch.uint8:  # looked up: fifteen times faster than logarithms of every pixel
            flat = value.flatten(value.dim() - len(self.shape))
            return self._shade_entropies.index_select(0, flat.flatten().int()).view(flat.shape)
        return binary_entropy(self(value)).flatten(-3)

    def restore(self, pixels: Float[Tensor, "*batch P"]) -> Tensor:
        """Return pixels in [0, 1], rows first, in the units, type and shape of the space."""
        pixels = pixels.unflatten(-1, (*self.size, *self.channel_shape)).movedim(self._first_axes, self._axes)
        restored = pixels.clamp(0.0, 1.0) * self.range + self.low
        return restored if self.dtype.is_floating_point else restored.round().to(self.dtype)


def binary_entropy(probability: Tensor) -> Tensor:
    return torch.special.entr(probability) + torch.special.entr(1 - probability)
