"""Collects windows of experience. The time axis is drawn in `merlin.experience`."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merlin.agents.acting import Acting
from merlin.agents.agent import Agent
from merlin.agents.learner import Window
from merlin.environments.batch import Environment, Timestep
from merlin.experience import Unroll
from merlin.training.value_errors import initial_sums, sum_window


class Episodes(NamedTuple):
    """The episodes that ended in a window, but for those cut to stagger them, or masked: one entry each, on the CPU.

    Success is NaN where the task does not define it.

    `value_sums` are those of `merlin.training.value_errors`, NaN where an episode was truncated.
    """

    returns: Float[Tensor, "E"]
    lengths: Float[Tensor, "E"]
    successes: Float[Tensor, "E"]
    value_sums: Float[Tensor, "E 4"]
    environments: Int[Tensor, "E"]
    """In which environment of this process each was."""
    begins: Int[Tensor, "E"]
    """Row of the window in which each began; below 0 for one that began before it."""


class RolloutState(NamedTuple):
    """Where collection stands: what the agent sees next, what it carries, and how the running episodes go."""

    timestep: Timestep
    agent_state: Any
    episode_return: Float[Tensor, "B"]
    episode_length: Int[Tensor, "B"]
    value_sums: Float[Tensor, "B 8"]


@runtime_checkable
class Source(Protocol):
    """Where a learner's windows come from: a rollout, or what keeps the windows of one, to give them out again."""

    def collect(self, unroll_length: int, records: bool = False) -> tuple[Window, Episodes]:
        """Return a window of `unroll_length` steps to learn from, and the episodes that ended in the newest one.

        Args:
            records: Keep the graph of acting, to learn from it.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that the source goes on from, beside the rollout's own state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""


class Collection:
    """A window being collected, of the rows that one agent acts in: it acts, and takes what came of it, in turn.

    Args:
        state: Where collection stands.
        unroll_length: Steps that may be taken; the window may end before.
        records: Keep the graph of acting, to learn from it.
    """

    def __init__(
        self,
        agent: Agent,
        state: RolloutState,
        discount_factor: float,
        unroll_length: int,
        generator: torch.Generator,
        records: bool,
    ) -> None:
        self.discount_factor, self.timestep, self._initial_state = discount_factor, state.timestep, state.agent_state
        self._acting = Acting(agent, state.agent_state, unroll_length, generator, records)
        self._episode_return, self._episode_length = state.episode_return, state.episode_length
        self._value_sums = state.value_sums
        self._rows: list[dict[str, Any]] = []
        self._ended: list[tuple[Tensor, ...]] = []
        self._truncated: list[Tensor] = []
        self._final_values: list[Tensor | None] = []

    @torch.no_grad()
    def act(self) -> Tensor:
        """Return the actions on the present timestep."""
        self._action = self._acting.step(self.timestep.observation, self.timestep.is_first, self.timestep.reward)
        return self._action

    @torch.no_grad()
    def take(self, following: Timestep) -> None:
        """Take in what the actions led to."""
        timestep = self.timestep
        is_end = following.terminated | following.truncated
        self._rows.append(
            {
                "observation": timestep.observation,
                "is_first": timestep.is_first,
                "previous_reward": timestep.reward.masked_fill(timestep.is_first, 0),
                "action": self._action,
                "reward": following.reward,
                "discount": (~following.terminated).to(following.reward.dtype) * self.discount_factor,
                "is_end": is_end,
                "is_valid": ~timestep.is_last,
            }
        )
        self._final_values.append(self._final_value(following))
        episode_return = self._episode_return + following.reward
        episode_length = self._episode_length + ~timestep.is_last
        counts = ~(timestep.is_last | following.is_cut)
        self._ended.append((is_end & counts, episode_return, episode_length, following.success))
        self._truncated.append(following.truncated & ~following.terminated)
        self._episode_return = episode_return.masked_fill(is_end, 0)
        self._episode_length = episode_length.masked_fill(is_end, 0)
        self.timestep = following

    @torch.no_grad()
    def finish(self) -> tuple[Window, Episodes, RolloutState]:
        """Return the window, the episodes that ended in it, and where collection stands."""
        acting, timestep, rows = self._acting, self.timestep, self._rows
        acting.length = len(rows)
        # One more step, which advances nothing: what it leads to is worth V.
        bootstrap = acting.next_value(timestep.observation, timestep.is_first, timestep.reward)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        observations = columns.pop("observation")
        stacked: dict[str, Any] = {name: torch.stack(column) for name, column in columns.items()}
        stacked |= acting.columns()
        next_value = torch.cat([stacked["value"][1:], bootstrap.unsqueeze(0)])
        for t, final_value in enumerate(self._final_values):
            if final_value is not None:
                # Where an episode was truncated, its final observation takes the next row's place.
                replaced = stacked["is_end"][t] & (stacked["discount"][t] > 0)
                next_value[t] = torch.where(replaced, final_value, next_value[t])
        observation = {name: torch.stack([x[name] for x in observations]) for name in observations[0]}
        unroll = Unroll(observation=observation, next_value=next_value, **stacked)
        truncated = torch.stack(self._truncated)
        ended_sums, value_sums = sum_window(unroll, self._value_sums, truncated, self.discount_factor)
        state = RolloutState(timestep, acting.state, self._episode_return, self._episode_length, value_sums)
        return Window(unroll, self._initial_state, acting), _episodes(self._ended, ended_sums), state

    def _final_value(self, following: Timestep) -> Float[Tensor, "B"] | None:
        """Return the value of the final observations of truncated episodes, on the state that they end with."""
        if following.final_observation is None:
            return None
        if following.truncated.device.type == "cpu" and not following.truncated.any():
            return None
        # Of other rows there is no final observation; whatever stands there, no network sees it.
        observation = {
            name: torch.where(following.truncated.view(-1, *[1] * (x.ndim - 1)), x, following.observation[name])
            for name, x in following.final_observation.items()
        }
        return self._acting.next_value(observation, torch.zeros_like(following.truncated), following.reward)


class Rollout:
    """Steps a batch of environments with an agent, window by window, the state carried over.

    On an accelerator nothing inside a window waits for it.
    """

    def __init__(
        self,
        agent: Agent,
        environment: Environment,
        discount_factor: float,
        generator: torch.Generator,
        seed: int,
        staggers: bool = False,
    ) -> None:
        self.agent = agent
        self.environment = environment
        self.discount_factor = discount_factor
        self.generator = generator
        self.staggers = staggers
        self.window_step = 0  # of the window being collected, for people
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Begin an episode everywhere."""
        count, zeros = self.environment.num_envs, torch.zeros(self.environment.num_envs, device=self.environment.device)
        self.state = RolloutState(
            self.environment.reset(seed, staggers=self.staggers),
            self.agent.initial_state(count),
            zeros,
            zeros.to(torch.int64),
            initial_sums(count, self.environment.device),
        )

    @torch.no_grad()
    def collect(self, unroll_length: int, records: bool = False) -> tuple[Window, Episodes]:
        """Return a window of `unroll_length` steps, and the episodes that ended in it. See `Source`."""
        collection = Collection(self.agent, self.state, self.discount_factor, unroll_length, self.generator, records)
        for self.window_step in range(1, unroll_length + 1):
            collection.take(self.environment.step(collection.act()))
        window, episodes, self.state = collection.finish()
        return window, episodes

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the trainer saves where collection stands."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as before."""


def _episodes(ended: list[tuple[Tensor, ...]], value_sums: Float[Tensor, "T B 4"]) -> Episodes:
    columns = [torch.stack(column).double() for column in zip(*ended, strict=True)]
    # All at once, so that the host waits for an accelerator once.
    table = torch.cat([torch.stack(columns, -1), value_sums.double()], -1).cpu()
    row, environment = table[..., 0].nonzero(as_tuple=True)
    chosen = table[row, environment]
    begins = row - chosen[:, 2].long() + 1  # the row of an action that ended an episode is the last of its rows
    returns, lengths, successes = chosen[:, 1:4].to(ended[0][1].dtype).unbind(-1)
    return Episodes(returns, lengths, successes, chosen[:, 4:].to(value_sums.dtype), environment, begins)
