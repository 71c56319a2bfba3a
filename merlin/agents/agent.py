"""What every agent is to those who train, evaluate and watch it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from gymnasium import Space
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin.experience import Losses, StepOutput, Unroll
from merlin.networks.actions import make_action_distribution
from merlin.objectives.policy_gradient import ActorCriticConfig, masked_mean

Config = TypeVar("Config", bound=ActorCriticConfig)
State = TypeVar("State")


class Agent(nn.Module, ABC, Generic[Config, State]):
    """An agent that remembers: its state is a value, and acting and learning compute the same numbers.

    Args:
        spaces: The entries of an observation, flat (`merlin.networks.spaces.flatten_space`).
        action_space: Discrete, MultiDiscrete or Box.
    """

    groups: ClassVar[tuple[str, ...]]
    """Names of the parameter groups; each has an optimiser of its own."""

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: Config) -> None:
        super().__init__()
        self.spaces = spaces
        self.action_space = action_space
        self.config = config
        self.actions = make_action_distribution(action_space)

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state before anything was seen."""

    @abstractmethod
    def step(
        self,
        observation: Any,
        state: State,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, State]:
        """Return the action and the next state, without gradients.

        Args:
            observation: A batch of observations, nested as the environment gives them or flat.
            is_first: Rows that start an episode; their state is zeroed before anything else.
            reward: What the previous action earned; None stands for zeros.
            greedy: Take the most probable action rather than a sample.
        """

    @abstractmethod
    def losses(
        self, unroll: Unroll, state: State, entropy_scale: float = 1.0, acting: "Acting | None" = None
    ) -> tuple[Losses, State]:
        """Return the loss of a window that starts from `state`, and the state after it, cut from the graph.

        Args:
            entropy_scale: Multiplies `entropy_cost`; training schedules it.
            acting: What the whole window was acted by, if no parameter has changed since: spares computing it again.
        """

    def begin(self, state: State, length: int, generator: torch.Generator | None = None) -> "Acting":
        """Return what acts for a window of `length` steps from `state`, and remembers what learning needs of it."""
        return Acting(self, state, generator)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by the optimiser that owns them."""
        return {self.groups[0]: list(self.parameters())}

    def reconstruct(self, latent: Float[Tensor, "*batch Z"]) -> dict[str, Tensor] | None:
        """Return the observation that the latent stands for, or None if the agent has no decoder."""
        return None

    def expect(self, state: State, is_first: Bool[Tensor, "B"]) -> dict[str, Tensor] | None:
        """Return the observation that the agent thinks it will see next, or None if it predicts none.

        Args:
            is_first: Rows that start an episode, of which it knows nothing.
        """
        return None

    @abstractmethod
    def features(self, observation: Any, output: StepOutput, state: State) -> dict[str, Float[Tensor, "B _"]]:
        """Return what the agent knows after a step, by where it knows it. For analyses.

        Args:
            observation: What the step saw.
            output: What the step gave.
            state: The state after it.
        """

    def warnings(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Return what a user should be told about a report's metrics: a plain sentence with its remedy, by a key."""
        return {}

    def _action_codes(
        self, unroll: Unroll, previous_action: Float[Tensor, "B E"]
    ) -> tuple[Float[Tensor, "T B E"], Float[Tensor, "T B E"]]:
        """Return the encodings of the window's actions, and of each row's previous one (0 where an episode starts)."""
        actions = self.actions.encode(unroll.action)
        previous = torch.cat([previous_action.unsqueeze(0), actions[:-1]])
        return actions, previous.masked_fill(unroll.is_first.unsqueeze(-1), 0)

    def _actor_critic_metrics(
        self,
        unroll: Unroll,
        log_prob: Float[Tensor, "T B"],
        entropy: Float[Tensor, "T B"],
        value: Float[Tensor, "T B"],
        returns: Float[Tensor, "T B"],
    ) -> dict[str, Tensor]:
        def mean(x: Tensor) -> Tensor:
            return masked_mean(x, unroll.is_valid)

        spread = (mean(returns.square()) - mean(returns).square()).clamp(min=1e-8)
        return {
            "entropy_nats": mean(entropy),
            "value_explained": 1 - mean((returns - value).square()) / spread,
            "policy_kl_nats": mean(unroll.log_prob - log_prob),
        }


class Acting:
    """An agent acting for a window, step by step: here, by `Agent.step`. Without gradients.

    Attributes:
        state: The agent's state after the steps taken so far.
    """

    def __init__(self, agent: Agent, state: Any, generator: torch.Generator | None) -> None:
        self.agent, self.state, self.generator = agent, state, generator
        self.outputs: list[StepOutput] = []

    def step(self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]) -> Tensor:
        """Return the action, and go on."""
        output, self.state = self.agent.step(observation, self.state, is_first, reward, generator=self.generator)
        self.outputs.append(output)
        return output.action

    def value(
        self,
        observation: dict[str, Tensor],
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"],
    ) -> Float[Tensor, "B"]:
        """Return what would be the next step's value, and go nowhere."""
        return self.agent.step(observation, self.state, is_first, reward, generator=self.generator)[0].value

    def columns(self) -> dict[str, Tensor | None]:
        """Return what `Unroll` holds of the agent, for all steps taken."""
        names = ("log_prob", "value", "noise", "slots", "latent")
        columns = {name: [getattr(output, name) for output in self.outputs] for name in names}
        return {name: None if column[0] is None else torch.stack(column) for name, column in columns.items()}


class TapeActing(Acting, ABC):
    """An agent acting on a tape, which it may then learn from, so that nothing is computed twice."""

    tape: Any

    def __init__(self, agent: Agent, previous_action: Float[Tensor, "B E"], generator: torch.Generator | None) -> None:
        self.agent, self.generator = agent, generator
        self._previous_action = previous_action
        self._parameters: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._state: Any = None
        self._versions = [x._version for x in agent.parameters()]

    @property
    def state(self) -> Any:
        """The agent's state after the steps taken so far."""
        if self._state is None:
            self._state = self._make_state()
        return self._state

    @torch.no_grad()
    def step(self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]) -> Tensor:
        """Return the action, and go on."""
        _, parameters = self._decide(observation, is_first, reward)
        action = self.agent.actions.sample(parameters, self.generator)
        self._previous_action = self.agent.actions.encode(action)
        self._advance()
        self._parameters.append(parameters)
        self._actions.append(action)
        self._state = None
        return action

    @torch.no_grad()
    def value(
        self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        """Return what would be the next step's value, and go nowhere."""
        return self._value(*self._decide(observation, is_first, reward))

    @torch.no_grad()
    def columns(self) -> dict[str, Tensor | None]:
        """Return what `Unroll` holds of the agent, for all steps taken."""
        parameters = torch.stack(self._parameters)
        return {
            "log_prob": self.agent.actions.log_prob(parameters, torch.stack(self._actions)),
            "value": self._value(self._all_seen(), parameters),
        }

    def unchanged(self) -> "TapeActing":
        """Return this, if no parameter has changed since it began: what was acted by can be learnt from until then."""
        unchanged = self._versions == [x._version for x in self.agent.parameters()]
        assert unchanged, "what was acted by is learnt from before a parameter changes"
        return self

    @abstractmethod
    def _decide(
        self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B A"]]:
        """Return what V is a function of at the next step, and the policy's parameters. It may be asked again."""

    @abstractmethod
    def _advance(self) -> None:
        """Go on from the step decided, `_previous_action` being what was done."""

    @abstractmethod
    def _value(self, seen: Float[Tensor, "*batch F"], parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        """Return V."""

    @abstractmethod
    def _all_seen(self) -> Float[Tensor, "T B F"]:
        """Return what V is a function of, at all steps taken."""

    @abstractmethod
    def _make_state(self) -> Any:
        """Return the agent's state after the steps taken so far, sharing nothing with the tape."""
