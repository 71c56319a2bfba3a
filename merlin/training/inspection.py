"""A look at each window before it is learnt from: what is in it must be finite, and of the declared spaces."""

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from merlin.environments.batch import Environment
from merlin.environments.validation import categories_of, outside
from merlin.errors import EnvironmentFailure, MerlinError, option
from merlin.experience import Unroll
from merlin.networks.actions import make_action_distribution
from merlin.networks.kinds import Picture, settle
from merlin.networks.spaces import ACTION_MASK

TOLERANCE = 1e-3  # of a Box's width, by which many environments leave it, and no one minds
DIM = 1 / 16  # of a picture's declared range: a picture that stays within less is next to nothing to a network
SURE = 5_000  # rows after which it is told to be so
ABSURD = 1e4  # of an observation or a reward: beyond, gradients explode whatever the learning rate


class Inspection:
    """Looks at windows of an environment, with one pass over each entry and one wait for the device.

    Arrays of numpy were looked at when they came, so that of their categories nothing is left to ask.

    Attributes:
        warnings: Sentences about what can be learnt from but will not be what is meant, by entry.
    """

    def __init__(self, environment: Environment) -> None:
        self.task, self.spaces = environment.task, environment.spaces
        self.warnings: dict[str, str] = {}
        self._actions = make_action_distribution(environment.action_space)
        self._bounds: dict[str, tuple[Tensor, Tensor]] = {}
        self._shades = {name: (math.inf, -math.inf) for name, x in self.spaces.items() if isinstance(x, Picture)}
        self._rows = 0
        for name, space in self.spaces.items():
            if isinstance(space, spaces.Box):
                bounds = _loosened(space)
            else:
                bounds = categories_of(space) if environment.is_native else None
            if bounds is not None:
                low, high = (torch.as_tensor(np.ascontiguousarray(x), device=environment.device) for x in bounds)
                self._bounds[name] = low, high

    def check(self, unroll: Unroll) -> int:
        """Take in a window, and return how many of its rows count.

        Raises:
            EnvironmentFailure: It holds a number that is not finite, or a category that its space does not have.
        """
        # Those observations that truncated episodes end with are in no row; only their value is.
        wrong_value = ~unroll.next_value.isfinite().all() & unroll.value.isfinite().all()
        flags = {
            "rows": unroll.is_valid.sum(),
            "reward": ~unroll.reward.isfinite().all(),
            "next_value": wrong_value,
        }
        mask = unroll.observation.get(ACTION_MASK)
        if mask is not None:
            flags["mask"] = ~(self._actions.is_possible(mask) | ~unroll.is_valid).all()
        for name, (low, high) in self._bounds.items():
            x = unroll.observation[name]
            least, most = x.flatten(0, 1).aminmax(dim=0)  # NaN wherever there is one
            flags[f"{name} leaves"] = ((least < low) | (most > high)).any()
            if x.is_floating_point():
                flags[f"{name} is not finite"] = ~(least.isfinite() & most.isfinite()).all()
        self._look_at_pictures(unroll)
        found = dict(zip(flags, torch.stack([*flags.values()]).tolist(), strict=True))
        if found["reward"]:
            index = _environment(~unroll.reward.isfinite())
            raise EnvironmentFailure(
                f"Rewards must be finite, but {self.task} returned one that is not in environment {index}: correct the "
                "task."
            )
        if found.get("mask"):
            raise EnvironmentFailure(
                f"An action mask must allow an action, but {self.task} allowed an environment nothing to choose: "
                "correct the task."
            )
        for name, (low, high) in self._bounds.items():
            x, space = unroll.observation[name], self.spaces[name]
            if found.get(f"{name} is not finite"):
                raise self._outside(name, ~x.isfinite(), x)
            if found[f"{name} leaves"]:
                if not isinstance(space, spaces.Box):
                    raise self._outside(name, (x < low) | (x > high), x)
                self.warnings[name] = self._strays(name, x, low, high)
        if found["next_value"]:
            raise EnvironmentFailure(
                f"Observations must be finite, but one with which {self.task} truncated an episode in environment "
                f"{_environment(~unroll.next_value.isfinite())} held a number that is not: correct the environment."
            )
        return found["rows"]

    def _strays(self, name: str, x: Tensor, low: Tensor, high: Tensor) -> str:
        """Return a sentence about the first number of a Box that leaves its bounds; a picture's pixels are as one."""
        space = self.spaces[name]
        assert isinstance(space, spaces.Box), "nothing else has such bounds"
        declared, entry, but = (space.low.min(), space.high.max()), f"entry {name!r}", ""
        if not isinstance(space, Picture):
            least, most = x.flatten(0, 1).aminmax(dim=0)
            place = tuple(((least < low) | (most > high)).nonzero()[0].tolist())
            x, declared = x[:, :, *place], (space.low[place], space.high[place])
            entry = f"number {', '.join(map(str, place))} of {entry}" if place else entry
            but = " unless model.running_scales is on"
        return (
            f"{entry} of {self.task} reached {x.min():.4g} to {x.max():.4g}, outside of the bounds that it declares, "
            f"{declared[0]:.4g} to {declared[1]:.4g}: numbers are scaled by their bounds{but}"
        )

    def _look_at_pictures(self, unroll: Unroll) -> None:
        """Warn of pictures that use next to nothing of their declared range; once one uses more, it is let be."""
        self._rows += unroll.reward.numel()
        for name, (low, high) in [*self._shades.items()]:
            space = self.spaces[name]
            assert isinstance(space, Picture), "nothing else has shades"
            least, most = torch.stack(unroll.observation[name].aminmax()).tolist()
            low, high = min(low, least), max(high, most)
            self._shades[name] = low, high
            declared = float(space.low.min()), float(space.high.max())
            if high - low > DIM * (declared[1] - declared[0]):
                del self._shades[name]
            elif self._rows >= SURE:
                del self._shades[name]
                symbols = f", or read categories with {option('set', f'environment.kinds.{name}=symbols')}"
                self.warnings[name] = (
                    f"entry {name!r} of {self.task} stayed within {low:.4g} to {high:.4g} for {self._rows:,} steps, "
                    f"where it declares {declared[0]:.4g} to {declared[1]:.4g}, so that as a picture next to nothing "
                    f"of it is seen: declare the bounds that it has{symbols * _may_be_symbols(space)}"
                )

    def blame(self, unroll: Unroll) -> str:
        """Return a clause about the largest number of a window whose gradients are not finite, and what to do."""
        sizes = {f"entry {name!r}": unroll.observation[name].abs().max().item() for name in self.spaces}
        sizes["the reward"] = unroll.reward.abs().max().item()
        name = max(sizes, key=lambda name: sizes[name])
        advice = "resume from the last checkpoint with a lower training.learning_rate"
        if sizes[name] > ABSURD:
            advice = "scale it down with a wrapper"
        return f"the largest number of the window is {sizes[name]:.3g}, in {name}: {advice}"

    def _outside(self, name: str, where: Tensor, x: Tensor) -> EnvironmentFailure:
        step, index, *position = where.nonzero()[0].tolist()
        value = x[(step, index, *position)].item()
        return outside(name, self.spaces[name], value, index, self.task, tuple(position))


def _may_be_symbols(space: Picture) -> bool:
    """Return whether a picture is a grid of integers that can be read as categories."""
    try:
        settle("", spaces.Box(space.low, space.high, space.shape, space.dtype.type), "symbols")
    except MerlinError:
        return False
    return space.row_axis == 0


def _loosened(space: spaces.Box) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a Box's bounds, a little wider; None where its type has no numbers beyond them."""
    if np.issubdtype(space.dtype, np.floating):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            slack = np.nan_to_num(TOLERANCE * (high - low), posinf=0.0)
            return (low - slack).astype(np.float32), (high + slack).astype(np.float32)
    if space.dtype == bool:
        return None
    limits = np.iinfo(str(space.dtype))
    if (space.low <= limits.min).all() and (space.high >= limits.max).all():
        return None
    return space.low.astype(np.int64), space.high.astype(np.int64)


def _environment(where: Tensor) -> int:
    """Return the environment of the first of these steps [T, B]."""
    return int(where.nonzero()[0, 1])
