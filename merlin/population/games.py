"""Games of two teams in a batch of environments, whose rows are players."""

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from merlin.environments.batch import Environment
from merlin.errors import MerlinError


class Players(NamedTuple):
    """Who the rows of a batch are. Axes: G games, M members of a team."""

    rows: Int64[Tensor, "G 2 M"]
    """Of the members of both teams of each game."""
    event_signs: tuple[int, ...] | None
    """1 of events that are welcome and −1 of others; None of a task that tells of none."""
    rewards: tuple[float, ...] | None = None
    """Of each event, where the task is given them."""

    @property
    def num_games(self) -> int:
        return len(self.rows)

    @property
    def num_seats(self) -> int:
        return self.rows.shape[1] * self.rows.shape[2]


def players_of(environment: Environment) -> Players:
    """Return who the rows of a batch are, as it says itself by two attributes: `game` and `team` (0 or 1) of each row.

    A task that tells as `info["events"]` what happened says by `event_signs` which events are welcome, takes their
    rewards as its keyword argument `rewards`, and has these as `weights`, or None.

    Raises:
        MerlinError: It says nothing, or its games are not of two teams with the same number of players.
    """
    batch, task = environment.vector_env.unwrapped, environment.task
    game, team = (getattr(batch, name, None) for name in ("game", "team"))
    if game is None or team is None:
        raise MerlinError(
            f"Populations and tournaments play games, whose batch says the game and the team of each row, but {task} "
            "does not: take merlin/CaptureTheFlag-v0, or give the batch the attributes game and team."
        )
    game, team = (torch.as_tensor(x).cpu().long() for x in (game, team))
    sizes = torch.stack([torch.bincount(game[team == side], minlength=int(game.max()) + 1) for side in (0, 1)])
    if not ((team == 0) | (team == 1)).all() or sizes.min() < 1 or sizes.min() != sizes.max():
        raise MerlinError(
            f"A population plays games of two teams with as many players each, but {task} has teams of "
            f"{sizes[0, 0]} and {sizes[1, 0]}: leave no team to bots, or take another task."
        )
    rows = torch.argsort(2 * game + team, stable=True).view(-1, 2, int(sizes[0, 0])).to(environment.device)
    signs, weights = getattr(batch, "event_signs", None), getattr(batch, "weights", None)
    rewards = None if weights is None else tuple(torch.as_tensor(weights).tolist())
    return Players(rows, None if signs is None else tuple(signs), rewards)
