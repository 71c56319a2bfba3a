"""Who plays in the games of a population: an agent as it acts, and the rows that it has."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.environments.batch import Timestep
from merlin.population.evolution import Hyperparameters
from merlin.ranges import ranges
from merlin.states import map_state
from merlin.training.plain import from_plain, is_state_of, to_plain
from merlin.training.rollout import RolloutState
from merlin.training.value_errors import initial_sums

TICK_STEPS = "tick_steps"


class Participant:
    """An agent that acts, its random choices, and the rows of the games that it plays.

    Args:
        seed: Of its random choices.

    Attributes:
        records: Whether the graph of its acting is kept, to learn from it.
        is_here: Whether it acts in this process, of several.
        rows: Of the environment, ascending.
        state: Where collection in these rows stands; of no use where there are none.
    """

    records = False
    is_here = True
    rows: Int64[Tensor, "R"]
    state: RolloutState

    def __init__(self, agent: Agent, device: torch.device, seed: int) -> None:
        self.agent, self.device = agent, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.reward_weights: Float[Tensor, "V"] | None = None
        self.hyperparameters = Hyperparameters({}, {}, None, None)
        self.rows = torch.zeros(0, dtype=torch.int64, device=device)

    def adopt(self, hyperparameters: Hyperparameters) -> None:
        """Go on with these hyperparameters, as far as the settings' ranges allow."""
        costs = within(type(self.agent.config), hyperparameters.costs)
        self.hyperparameters = hyperparameters._replace(costs=costs)
        ticks = {} if hyperparameters.tick_steps is None else {TICK_STEPS: hyperparameters.tick_steps}
        self.agent.config = replace(self.agent.config, **costs, **ticks)
        if hasattr(self.agent, "hyperparameters"):  # which the agent reads
            self.agent.hyperparameters = self.agent.config.hyperparameters()
        rewards = hyperparameters.rewards
        self.reward_weights = None if rewards is None else torch.tensor(rewards, device=self.device)

    def forget(self) -> None:
        """Empty the state of the agent, as where an episode starts."""
        if len(self.rows):
            self.state = self.state._replace(agent_state=map_state(torch.zeros_like, self.state.agent_state))

    def take_rows(self, rows: Int64[Tensor, "R"], dealt: Tensor, timestep: Timestep) -> None:
        """Go on in other rows: where it stood in those that it keeps, from an episode's start in the others.

        Args:
            dealt: Which rows of the environment begin a game.
            timestep: That of `rows`.
        """
        place = torch.full((len(dealt),), -1, device=self.device).index_copy(0, self.rows, _count(self.rows))
        place = place.index_select(0, rows)
        is_new = (place < 0) | dealt.index_select(0, rows)
        before = self.state if len(self.rows) else self._fresh(1)
        place = place.clamp(min=0)

        def kept(x: Tensor) -> Tensor:
            return x.index_select(0, place).masked_fill(is_new.view(-1, *[1] * (x.ndim - 1)), 0)

        self.state = RolloutState(timestep, *map_state(kept, _Carried(*before[1:])))
        self.rows = rows

    def look(self, timestep: Timestep) -> None:
        """See what there is in its rows."""
        self.state = self.state._replace(timestep=timestep)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the agent's weights, as plain containers."""
        return {
            "generator": self.generator.get_state(),
            "hyperparameters": self.hyperparameters._asdict(),
            "rows": self.rows,
            "carried": to_plain(_Carried(*self.state[1:])) if len(self.rows) else None,
        }

    def load_state_dict(self, state: dict[str, Any], goes_on: bool) -> None:
        """Go on from a `state_dict`; the timestep of its rows is to be given to `look`.

        Args:
            goes_on: The games go on too; else it waits for rows.
        """
        if is_state_of(self.generator, drawn := state["generator"].cpu()):
            self.generator.set_state(drawn)
        else:  # of a GPU there and a CPU here, or the other way round
            self.generator.manual_seed(self.generator.initial_seed() + state["env_steps"])
        saved = state["hyperparameters"]
        self.adopt(Hyperparameters(**saved | {"rewards": saved["rewards"] and tuple(saved["rewards"])}))
        self.rows = state["rows"].to(self.device) if goes_on else self.rows[:0]
        if len(self.rows):
            carried = from_plain(state["carried"], _Carried(*self._fresh(len(self.rows))[1:]))
            self.state = RolloutState(self._fresh(1).timestep, *carried)

    def _fresh(self, count: int) -> RolloutState:
        """Return where collection stands at the start; the timestep is none."""
        zeros = torch.zeros(count, device=self.device)
        sums = initial_sums(count, self.device)
        none: Any = None
        return RolloutState(none, self.agent.initial_state(count), zeros, zeros.to(torch.int64), sums)


class PastSelf(Participant):
    """A place for an agent as it was: it plays and is rated, and never learns or evolves.

    Attributes:
        of: The agent's index; None while the place is empty.
        env_steps: Of the population, when it was frozen.
    """

    of: int | None = None
    env_steps: int = 0

    def freeze(self, member: Participant, index: int, env_steps: int) -> None:
        """Become an agent as it is now. Nothing is shared with it."""
        self.agent.load_state_dict(member.agent.state_dict())
        self.adopt(member.hyperparameters)
        self.of, self.env_steps = index, env_steps

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"of": self.of, "env_steps": self.env_steps}

    def load_state_dict(self, state: dict[str, Any], goes_on: bool) -> None:
        super().load_state_dict(state, goes_on)
        self.of, self.env_steps = state["of"], state["env_steps"]


class _Carried(NamedTuple):
    """`RolloutState` without its timestep."""

    agent_state: Any
    episode_return: Tensor
    episode_length: Tensor
    value_sums: Tensor


def within(owner: type, numbers: dict[str, float]) -> dict[str, float]:
    """Return numbers held to the ranges of settings."""
    limits = ranges(owner)
    return {
        name: float(min(max(x, limits[name].low), limits[name].high)) if name in limits else x
        for name, x in numbers.items()
    }


def _count(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)
