"""The encoder: every entry of an observation to numbers, side by side."""

from dataclasses import dataclass
from typing import Annotated

import gymnasium
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin.networks.categories import CategoryEncoder
from merlin.networks.entries import EntryEncoder
from merlin.networks.grids import GridEncoder
from merlin.networks.images import ImageEncoder
from merlin.networks.spaces import Picture, Symbols, Tokens, kind, settle
from merlin.networks.texts import TextEncoder
from merlin.networks.vectors import VectorEncoder
from merlin.ranges import WIDTH, Settings


@dataclass(frozen=True)
class EncoderConfig(Settings):
    """Sizes. Categories are one-hot and vectors are passed on, so that they have none."""

    image_features: Annotated[int, WIDTH] = 500
    """Width of an image's encoding."""
    image_channels: Annotated[int, WIDTH] = 32
    """Channels of an image's convolutions."""
    grid_features: Annotated[int, WIDTH] = 200
    """Width of a symbolic grid's encoding."""
    grid_channels: Annotated[int, WIDTH] = 32
    """Channels of a symbolic grid's embeddings and convolution."""
    text_features: Annotated[int, WIDTH] = 64
    """Width of a text's encoding."""


class Encoder(nn.Module):
    """Encodes each entry by its kind (merlin.networks.spaces.kind) and concatenates, in the order of the spaces.

    Args:
        running_scales: Standardise vectors by what was seen so far, of which `update_scales` tells.
    """

    def __init__(self, spaces: dict[str, gymnasium.Space], config: EncoderConfig, running_scales: bool = False):
        super().__init__()
        self.names = tuple(spaces)
        entries = [make_entry_encoder(name, space, config, running_scales) for name, space in spaces.items()]
        self.entries = nn.ModuleList(entries)  # a list: the keys of a ModuleDict could not be dotted paths
        self.output_size = sum(entry.output_size for entry in entries)
        # Of each entry's encoding, how wide it is and about how long: a one-hot has length 1 however wide it is.
        self.parts = [(entry.output_size, entry.square_length) for entry in entries]

    def forward(self, observation: dict[str, Tensor]) -> Float[Tensor, "*batch {self.output_size}"]:
        encodings = [entry(observation[name]) for name, entry in zip(self.names, self.entries, strict=True)]
        return encodings[0] if len(encodings) == 1 else torch.cat(encodings, dim=-1)

    def update_scales(self, observation: dict[str, Tensor], counts: Bool[Tensor, "*batch"]) -> None:
        """Let running scales take in the rows that count."""
        for name, entry in zip(self.names, self.entries, strict=True):
            assert isinstance(entry, EntryEncoder)
            entry.update_scale(observation[name], counts)


def make_entry_encoder(
    name: str, space: gymnasium.Space, config: EncoderConfig, running_scales: bool = False
) -> EntryEncoder:
    """Return the encoder of one entry."""
    space = settle(name, space)
    match kind(space), space:
        case "category", _ if isinstance(space, Discrete | MultiDiscrete | MultiBinary):
            return CategoryEncoder(space, name)
        case "vector", Box():
            return VectorEncoder(space, running_scales)
        case "image", Picture():
            return ImageEncoder(space, config.image_features, config.image_channels)
        case "symbols", Symbols():
            return GridEncoder(space, config.grid_features, config.grid_channels, name)
        case "text", Tokens():
            return TextEncoder(space, config.text_features)
    raise AssertionError("a space that is supported has a kind")
