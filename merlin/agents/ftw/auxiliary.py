"""Auxiliary tasks: what reward comes next, and how to change what is seen. Jaderberg et al. 2016, arXiv:1611.05397."""

import math
from typing import Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from merlin.errors import MerlinError
from merlin.experience import Unroll
from merlin.networks.actions import ActionDistribution, CategoricalActions
from merlin.networks.grids import grid_cells
from merlin.networks.images import Pixels
from merlin.networks.kinds import Picture, Symbols
from merlin.networks.products import Linear
from merlin.networks.spaces import settle
from merlin.objectives.returns import n_step_returns

SEQUENCE_LENGTH = 3
"""Rows that a next reward is predicted of."""
CELL = 4
"""Pixels of a cell's side."""
CHANNELS = 32
"""Of what an image's cells are made of."""


class Sequences(NamedTuple):
    """Three successive observations each, and the sign of the reward that followed: 0 below zero, 1 none, 2 above."""

    observation: dict[str, Tensor]
    sign: Int[Tensor, "S"]


def sequences_of(unroll: Unroll) -> Sequences:
    """Return all sequences of a window, in the order of time: three rows of one episode that count, and what came."""
    valid, rows = unroll.is_valid, len(unroll.is_first) - SEQUENCE_LENGTH + 1
    is_whole = valid.new_ones(max(rows, 0), valid.shape[1])
    for k in range(SEQUENCE_LENGTH if rows > 0 else 0):
        is_whole &= valid[k : k + rows]
        if k > 0:
            is_whole &= ~unroll.is_first[k : k + rows]
    begin, column = is_whole.nonzero(as_tuple=True)
    steps = begin + torch.arange(SEQUENCE_LENGTH, device=begin.device).unsqueeze(-1)
    observation = {name: x[steps, column] for name, x in unroll.observation.items()}
    return Sequences(observation, unroll.reward[begin + SEQUENCE_LENGTH - 1, column].sign().long() + 1)


class SequenceReplay:
    """The newest sequences before a reward and the newest before none, half of the room for each.

    Args:
        capacity: Sequences that it holds.
    """

    def __init__(self, capacity: int) -> None:
        self.room = max(1, capacity // 2)
        self.rings = (_Ring(self.room), _Ring(self.room))

    def __len__(self) -> int:
        return sum(len(ring) for ring in self.rings)

    def add(self, found: Sequences) -> None:
        """Keep the newest of both kinds."""
        is_rewarded = found.sign != 1
        for ring, chosen in zip(self.rings, (~is_rewarded, is_rewarded), strict=True):
            ring.add(_choose(found, chosen.nonzero().squeeze(-1)[-self.room :]))

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Return sequences drawn uniformly of each kind, half of each; where one kind was never seen, of the other."""
        filled = [ring for ring in self.rings if len(ring)]
        parts = [ring.sample(count // len(filled), generator) for ring in filled]
        names = parts[0].observation
        observation = {name: torch.cat([part.observation[name] for part in parts], 1) for name in names}
        return Sequences(observation, torch.cat([part.sign for part in parts]))

    def state_dict(self) -> dict[str, Any]:
        """Return all that it holds."""
        return {"rings": [ring.state_dict() for ring in self.rings]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a `state_dict`."""
        for ring, held in zip(self.rings, state["rings"], strict=True):
            ring.load_state_dict(held, device)


class _Ring:
    """The newest sequences of one kind, oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: Sequences | None = None

    def __len__(self) -> int:
        return 0 if self.held is None else len(self.held.sign)

    def add(self, found: Sequences) -> None:
        if self.held is not None:
            kept = {name: torch.cat([x, found.observation[name]], 1) for name, x in self.held.observation.items()}
            found = Sequences(kept, torch.cat([self.held.sign, found.sign]))
        observation = {name: x[:, -self.capacity :] for name, x in found.observation.items()}
        self.held = Sequences(observation, found.sign[-self.capacity :])

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        assert self.held is not None
        return _choose(self.held, torch.randint(len(self), (count,), generator=generator, device=generator.device))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.held is None else {"observation": dict(self.held.observation), "sign": self.held.sign}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        if state:
            observation = {name: x.to(device)[:, -self.capacity :] for name, x in state["observation"].items()}
            self.held = Sequences(observation, state["sign"].to(device)[-self.capacity :])


def _choose(found: Sequences, at: Int[Tensor, "S"]) -> Sequences:
    return Sequences({name: x[:, at] for name, x in found.observation.items()}, found.sign[at])


class RewardPrediction(nn.Module):
    """The sign of the next reward, from the encodings of three successive observations.

    Args:
        encoding_size: Width of one.
    """

    def __init__(self, encoding_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(SEQUENCE_LENGTH * encoding_size, 128), nn.ReLU(), Linear(128, 3))

    def forward(self, encodings: Float[Tensor, "3 S E"]) -> Float[Tensor, "S 3"]:
        """Return the logits of below zero, none and above."""
        return self.layers(encodings.movedim(0, -2).flatten(-2))

    def loss(
        self, encodings: Float[Tensor, "3 S E"], sign: Int[Tensor, "S"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return cross-entropy in nats and accuracy, means over sequences; 0 of none."""
        logits, count = self(encodings), max(1, len(sign))
        nats = F.cross_entropy(logits, sign, reduction="sum") / count
        return nats, (logits.argmax(-1) == sign).sum() / count


class PixelControl(nn.Module):
    """Values of changing what is seen, cell by cell: n-step Q-learning of a policy that nobody follows.

        Q(a)   = V + Σ_f (A_f(a_f) − mean A_f)                          f the factors of an action
        R[t]   = change[t] + γ · R[t+1],  or max_a Q[t] where what follows was not seen
        loss   = ½ (R − Q(a))², the mean over cells

    The change in a cell of 4 x 4 pixels is the mean of |x' − x|, in [0, 1]; of a symbolic grid it is 1 where a cell
    holds something else.

    Args:
        space: A picture, or a symbolic grid.
        feature_size: F, of what Q is a function of.
        discount: γ.

    Raises:
        MerlinError: Actions are not choices.
    """

    averages: Float[Tensor, "C C"]
    """Each choice by the mean of its factor."""

    def __init__(self, space: Picture | Symbols, feature_size: int, actions: ActionDistribution, discount: float):
        super().__init__()
        if not isinstance(actions, CategoricalActions):
            raise MerlinError(
                "Pixel control learns the values of choices, but some of these actions are numbers: set "
                "model.pixel_control_cost=0."
            )
        self.actions, self.discount = actions, discount
        factors = [torch.full((n, n), 1 / n) for n in actions.categories.sizes]
        self.register_buffer("averages", torch.block_diag(*factors), persistent=False)
        outputs = 1 + actions.num_choices
        if isinstance(space, Picture):
            self.pixels = Pixels(space)
            self.cells = tuple(-(-n // CELL) for n in space.size)
            half = tuple(-(-n // 2) for n in self.cells)
            self.network = nn.Sequential(
                Linear(feature_size, CHANNELS * math.prod(half)),
                nn.ReLU(),
                nn.Unflatten(-1, (CHANNELS, *half)),
                nn.ConvTranspose2d(CHANNELS, outputs, 4, stride=2, padding=1),
            )
        else:
            self.pixels, self.shape = None, tuple(space.shape)
            self.cells = self.shape[:2]
            self.network = nn.Sequential(
                Linear(feature_size, outputs * math.prod(self.cells)), nn.Unflatten(-1, (outputs, *self.cells))
            )

    def forward(
        self, features: Float[Tensor, "*batch F"]
    ) -> tuple[Float[Tensor, "*batch M"], Float[Tensor, "*batch M C"]]:
        """Return, in each cell, V and each choice's A less the mean of its factor."""
        batch = features.shape[:-1]
        maps = self.network(features.reshape(-1, features.shape[-1]))
        maps = maps[..., : self.cells[0], : self.cells[1]].flatten(-2)
        advantages = maps[:, 1:].movedim(1, -1)
        return maps[:, 0].unflatten(0, batch), (advantages - advantages @ self.averages).unflatten(0, batch)

    @torch.no_grad()
    def changes(self, value: Tensor) -> Float[Tensor, "R B M"]:
        """Return how much each cell changes from each row to the next, of observations of T = R + 1 rows."""
        if self.pixels is None:
            cells = grid_cells(value, self.shape)
            return (cells[1:] != cells[:-1]).any(-1).to(self.averages.dtype)
        pixels = self.pixels(value)
        change = (pixels[1:] - pixels[:-1]).abs().mean(-1)
        pooled = F.avg_pool2d(change.flatten(0, 1).unsqueeze(1), CELL, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(1).unflatten(0, change.shape[:2])

    def loss(
        self, features: Float[Tensor, "T B F"], value: Tensor, actions: Float[Tensor, "T B E"], unroll: Unroll
    ) -> Float[Tensor, ""]:
        """Return the loss of a window, the mean over rows whose next one was seen; 0 if there is none.

        Args:
            features: What Q is a function of.
            value: The space's entry of the observations.
            actions: Those taken, one-hot.
        """
        if len(features) < 2:
            return features.new_zeros(())
        state_values, advantages = self(features)
        with torch.no_grad():
            best = self.actions.encode(self.actions.greedy(advantages))
            highest = state_values + (best * advantages).sum(-1)
            valid = unroll.is_valid
            is_seen = valid[:-1] & valid[1:] & ~unroll.is_end[:-1] & ~unroll.is_first[1:]  # what follows a row
            is_cut = torch.cat([~is_seen[1:], torch.ones_like(is_seen[:1])])
            change = self.changes(value)
            flat = change.flatten(1)
            ends = is_cut.repeat_interleave(change.shape[-1], 1)
            returns = n_step_returns(flat, torch.full_like(flat, self.discount), highest[1:].flatten(1), ends)
        taken = state_values + (actions.unsqueeze(-2) * advantages).sum(-1)
        errors = (returns.view_as(change) - taken[:-1]).square().mean(-1)
        return 0.5 * torch.where(is_seen, errors, 0.0).sum() / is_seen.sum().clamp(min=1)


def make_pixel_controls(
    spaces: dict[str, Space], feature_size: int, actions: ActionDistribution, discount: float
) -> dict[str, PixelControl]:
    """Return one for each entry that is a picture or a symbolic grid, by its name."""
    settled = {name: settle(name, space) for name, space in spaces.items()}
    return {
        name: PixelControl(space, feature_size, actions, discount)
        for name, space in settled.items()
        if isinstance(space, Picture | Symbols)
    }
