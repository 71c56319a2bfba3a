"""Collects windows of experience. The time axis is drawn in `merlin.experience`."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from merlin.agents.acting import Acting
from merlin.agents.agent import Agent
from merlin.agents.learner import Window
from merlin.environments.batch import Environment, Timestep
from merlin.experience import Unroll
from merlin.objectives.policy_gradient import transported_of
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
        self.config, self.discount_factor, self._before = agent.config, discount_factor, state
        self._acting = Acting(agent, state.agent_state, unroll_length, generator, records)
        self._timesteps, self._actions = [state.timestep], []
        self._final_values: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def act(self) -> Tensor:
        """Return the actions on the present timestep."""
        seen = self._timesteps[-1]
        self._actions.append(self._acting.step(seen.observation, seen.is_first, seen.reward))
        return self._actions[-1]

    @torch.no_grad()
    def take(self, following: Timestep) -> None:
        """Take in what the actions led to."""
        value = self._final_value(following)
        if value is not None:
            self._final_values.append((len(self._actions) - 1, value))
        self._timesteps.append(following._replace(final_observation=None))  # as large as an observation

    @torch.no_grad()
    def finish(self) -> tuple[Window, Episodes, RolloutState]:
        """Return the window, the episodes that ended in it, and where collection stands."""
        acting, before, (*seen, last) = self._acting, self._before, self._timesteps
        acting.length = len(seen)
        # One more step, which advances nothing: what it leads to is worth V.
        bootstrap = acting.next_value(last.observation, last.is_first, last.reward)
        is_first, is_last = (torch.stack([getattr(x, name) for x in seen]) for name in ("is_first", "is_last"))
        reward, terminated, truncated, success, is_cut = (
            torch.stack([getattr(x, name) for x in self._timesteps[1:]])
            for name in ("reward", "terminated", "truncated", "success", "is_cut")
        )
        is_end, is_valid = terminated | truncated, ~is_last
        earlier = torch.cat([seen[0].reward.unsqueeze(0), reward[:-1]])
        columns = acting.columns()
        next_value = torch.cat([columns["value"][1:], bootstrap.unsqueeze(0)])
        truncated &= ~terminated
        for t, final_value in self._final_values:  # takes the next row's place where an episode was truncated
            next_value[t] = torch.where(truncated[t], final_value, next_value[t])
        unroll = Unroll(
            observation={name: torch.stack([x.observation[name] for x in seen]) for name in last.observation},
            is_first=is_first,
            previous_reward=earlier.masked_fill(is_first, 0),
            action=torch.stack(self._actions),
            reward=reward,
            discount=(~terminated).to(reward.dtype) * self.discount_factor,
            next_value=next_value,
            is_end=is_end,
            is_valid=is_valid,
            **columns,
        )
        # V is judged by what it learns, to which value transport adds.
        added = 0 if unroll.reads is None else transported_of(unroll, self.config)
        learnt = unroll._replace(reward=reward + added)
        ended_sums, value_sums = sum_window(learnt, before.value_sums, truncated, self.discount_factor)
        returns, episode_return = _running(reward, is_end, before.episode_return)
        lengths, episode_length = _running(is_valid, is_end, before.episode_length)
        state = RolloutState(last, acting.state, episode_return, episode_length, value_sums)
        ended = is_end & ~(is_last | is_cut)
        return (
            Window(unroll, before.agent_state, acting),
            _episodes(ended, returns, lengths, success, ended_sums),
            state,
        )

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


def _running(
    x: Shaped[Tensor, "T B"], is_end: Bool[Tensor, "T B"], before: Shaped[Tensor, "B"]
) -> tuple[Float[Tensor, "T B"], Shaped[Tensor, "B"]]:
    """Return the sum of each row's episode so far, and what the window ends with.

    Args:
        before: What the window begins with.
    """
    first, *rows = x.double().unbind()
    *goes_on, goes_beyond = (~is_end).double().unbind()
    sums = [before + first]
    for row, goes in zip(rows, goes_on, strict=True):
        sums.append(torch.addcmul(row, sums[-1], goes))
    return torch.stack(sums), (sums[-1] * goes_beyond).to(before.dtype)


def _episodes(
    ended: Bool[Tensor, "T B"],
    returns: Float[Tensor, "T B"],
    lengths: Float[Tensor, "T B"],
    successes: Float[Tensor, "T B"],
    value_sums: Float[Tensor, "T B 4"],
) -> Episodes:
    # All at once, so that the host waits for an accelerator once.
    columns = [x.double() for x in (ended, returns, lengths, successes)]
    table = torch.cat([torch.stack(columns, -1), value_sums.double()], -1).cpu()
    row, environment = table[..., 0].nonzero(as_tuple=True)
    chosen = table[row, environment]
    begins = row - chosen[:, 2].long() + 1  # the row of an action that ended an episode is the last of its rows
    returns, lengths, successes = chosen[:, 1:4].to(successes.dtype).unbind(-1)
    return Episodes(returns, lengths, successes, chosen[:, 4:].to(value_sums.dtype), environment, begins)
