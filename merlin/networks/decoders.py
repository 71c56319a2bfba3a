"""The decoder: from the latent, the distribution of every entry of the observation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import gymnasium
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin.networks.categories import CategoryDecoder
from merlin.networks.entries import EntryDecoder
from merlin.networks.grids import GridDecoder
from merlin.networks.images import ImageDecoder
from merlin.networks.spaces import Picture, Symbols, Tokens, kind, settle
from merlin.networks.texts import TextDecoder
from merlin.networks.vectors import VectorDecoder
from merlin.ranges import WIDTH, Range, Settings


@dataclass(frozen=True)
class DecoderConfig(Settings):
    """Sizes, and how pixels are distributed. Categories, vectors and texts are decoded linearly and have no size."""

    image_features: Annotated[int, WIDTH] = 500
    """Width of the layer that an image is decoded from."""
    image_channels: Annotated[int, WIDTH] = 32
    """Channels of an image's transposed convolutions."""
    image_likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """How pixels, scaled to [0, 1], are distributed: bernoulli, or gaussian with variance 1."""
    grid_features: Annotated[int, WIDTH] = 200
    """Width of the layer that a symbolic grid is decoded from."""
    grid_rarity: Annotated[float, Range(0, 1)] = 0.0
    """Cells weigh by how frequent what they hold is, to minus this power: 0 by likelihood, 1 every category alike. What
    is to be remembered is often the one object among walls and floor, which likelihood decodes last, or never."""


class Decoder(nn.Module):
    """One EntryDecoder for each entry; parameters, nats and the rest are dicts under the entries' names.

    Args:
        running_scales: Decode vectors in standardised units, by what was seen so far, of which `update_scales` tells.
    """

    def __init__(
        self, spaces: dict[str, gymnasium.Space], input_size: int, config: DecoderConfig, running_scales: bool = False
    ):
        super().__init__()
        self.names = tuple(spaces)
        self.kinds = {name: kind(space) for name, space in spaces.items()}
        self.entries = nn.ModuleList(
            make_entry_decoder(name, space, input_size, config, running_scales) for name, space in spaces.items()
        )

    def forward(self, latent: Float[Tensor, "*batch Z"]) -> dict[str, Float[Tensor, "*batch _"]]:
        """Return the parameters of each entry's distribution."""
        return {name: entry(latent) for name, entry in self._items()}

    def nats(self, parameters: dict[str, Tensor], observation: dict[str, Tensor]) -> dict[str, Float[Tensor, "*batch"]]:
        """Return the negative log-likelihood of each entry, summed over its dimensions."""
        return {name: entry.nats(parameters[name], observation[name]) for name, entry in self._items()}

    def losses(
        self,
        parameters: dict[str, Tensor],
        observation: dict[str, Tensor],
        nats: dict[str, Float[Tensor, "*batch"]],
        counts: Bool[Tensor, "*batch"] | None = None,
    ) -> dict[str, Float[Tensor, "*batch"]]:
        """Return what learning minimises of each entry, given its nats and the rows that count."""
        return {
            name: entry.loss(parameters[name], observation[name], nats[name], counts) for name, entry in self._items()
        }

    def accuracy(
        self, parameters: dict[str, Tensor], observation: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, "*batch"]]:
        """Return the fraction of each entry that is decoded right, in [0, 1].

        Categories, cells and tokens are right or wrong; a number or pixel is right within 0.1 of its range.
        """
        return {name: entry.accuracy(parameters[name], observation[name]) for name, entry in self._items()}

    def recall(
        self,
        parameters: dict[str, Tensor],
        observation: dict[str, Tensor],
        counts: Bool[Tensor, "*batch"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the accuracy by category, of the entries that are categories or grids of them: see EntryDecoder."""
        recalls = {name: entry.recall(parameters[name], observation[name], counts) for name, entry in self._items()}
        return {name: recall for name, recall in recalls.items() if recall is not None}

    def mode(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the reconstruction, in the units of the observation."""
        return {name: entry.mode(parameters[name]) for name, entry in self._items()}

    def chance_nats(
        self, observation: dict[str, Tensor], counts: Bool[Tensor, "*batch"] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the nats per step that knowing each entry is worth in this batch: see EntryDecoder."""
        return {name: entry.chance_nats(observation[name], counts) for name, entry in self._items()}

    @torch.no_grad()
    def update_marginals(
        self, observation: dict[str, Tensor], counts: Bool[Tensor, "*batch"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Let running marginals take in the rows that count, and return `chance_nats` of these alone."""
        nats = {}
        for name, entry in self._items():
            means = entry.means(observation[name], counts)
            entry.marginal.update(means, counts)
            nats[name] = entry.worth_nats(means)
        return nats

    def marginal_nats(self) -> dict[str, Float[Tensor, ""]]:
        """Return the nats per step that knowing each entry is worth, by its running marginal.

        Where an entry changes slowly, or in all environments at a time, a window holds little of its variety.
        """
        return {name: entry.worth_nats(entry.marginal.means) for name, entry in self._items()}

    def floor_nats(self, observation: dict[str, Tensor]) -> dict[str, Float[Tensor, "*batch"]]:
        """Return the nats that remain however good the parameters are: a grey pixel is uncertain under a Bernoulli."""
        return {name: entry.floor_nats(observation[name]) for name, entry in self._items()}

    def update_scales(self, observation: dict[str, Tensor], counts: Bool[Tensor, "*batch"]) -> None:
        """Let running scales take in the rows that count."""
        for name, entry in self._items():
            entry.update_scale(observation[name], counts)

    def _items(self) -> Iterator[tuple[str, EntryDecoder]]:
        for name, entry in zip(self.names, self.entries, strict=True):
            assert isinstance(entry, EntryDecoder)
            yield name, entry


def make_entry_decoder(
    name: str, space: gymnasium.Space, input_size: int, config: DecoderConfig, running_scales: bool = False
) -> EntryDecoder:
    """Return the decoder of one entry."""
    space = settle(name, space)
    match kind(space), space:
        case "category", _ if isinstance(space, Discrete | MultiDiscrete | MultiBinary):
            return CategoryDecoder(space, input_size)
        case "vector", Box():
            return VectorDecoder(space, input_size, running_scales)
        case "image", Picture():
            return ImageDecoder(
                space, input_size, config.image_features, config.image_channels, config.image_likelihood
            )
        case "symbols", Symbols():
            return GridDecoder(space, input_size, config.grid_features, config.grid_rarity)
        case "text", Tokens():
            return TextDecoder(space, input_size)
    raise AssertionError("a space that is supported has a kind")
