"""The interface of an agent to those who train, evaluate and watch it, and the one step that all of them take."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from gymnasium import Space
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin.agents import border
from merlin.agents.learner import ActorCriticLearner, Learner, LearnerConfig
from merlin.experience import Losses, StepOutput, Unroll
from merlin.memory import Memory
from merlin.networks.actions import make_action_distribution
from merlin.networks.window_linear import in_window
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.precision import as_type
from merlin.states import is_known_false, map_state, reset_state, stack_states

Config = TypeVar("Config", bound=ActorCriticConfig)
Same = TypeVar("Same")


@runtime_checkable
class AgentState(Protocol):
    """A NamedTuple of tensors, batch first, with the previous action among them."""

    @property
    def previous_action(self) -> Float[Tensor, "B E"]:
        """a_{t-1}, encoded."""
        ...

    def _asdict(self) -> dict[str, Any]: ...

    def _replace(self: Same, **entries: Any) -> Same: ...


State = TypeVar("State", bound=AgentState)


class Perceived(NamedTuple):
    """The first half of a step: all up to the action.

    Attributes:
        activations: A NamedTuple of tensors, what heads and losses read of the step.
        extras: What acting must keep for learning to compute the same numbers; a NamedTuple, or None.
        read_weights: Those of reads that the action depends on, if there are any.
        read_strengths: Those of their keys.
    """

    activations: Any
    state: Any
    extras: Any = None
    read_weights: Tensor | None = None
    read_strengths: Tensor | None = None


class Advanced(NamedTuple):
    """The second half of a step: what follows from the action.

    `read_weights` and `read_strengths` are those of reads after it, if any.
    """

    state: Any
    extras: Any = None
    read_weights: Tensor | None = None
    read_strengths: Tensor | None = None


@runtime_checkable
class Predicts(Protocol):
    """An agent that predicts what it will see, and can imagine what follows."""

    memory: Memory | None

    def initial_state(self, batch_size: int) -> Any: ...

    def step(self, *args: Any, **kwargs: Any) -> tuple[StepOutput, Any]: ...

    def expect(self, state: Any, is_first: Bool[Tensor, "B"]) -> dict[str, Tensor]: ...

    def infer(self, activations: Any) -> Float[Tensor, "*batch Z"]: ...

    def imagine(
        self,
        state: Any,
        length: int,
        generator: torch.Generator | None = None,
        actions: Float[Tensor, "A B E"] | None = None,
    ) -> Float[Tensor, "T B Z"]: ...

    def reconstruct(self, latent: Float[Tensor, "*batch Z"]) -> dict[str, Tensor]: ...

    def memory_state(self, state: Any) -> Any: ...

    def perceive_new(
        self,
        observation: dict[str, Tensor],
        state: Any,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"],
        generator: torch.Generator | None,
    ) -> Perceived: ...


class Agent(nn.Module, ABC, Generic[Config, State]):
    """An agent that remembers: its state is a value, and acting and learning compute the same numbers.

    A step is written once, in two halves, `perceive` and `advance`, between which the action is chosen:

        code              = encode(observation, previous action, previous reward)    the state of rows that start an
        perceived         = perceive(code, state)                                    episode being zeroed before
        action            ~ policy(activations);   value(activations)              perceived.activations
        state             = advance(perceived, action)

    `step` takes it to act; `Acting` takes it over a window, with the graph recorded where learning follows; `scan`
    takes it over a window that was experienced. What does not depend on the step before, `encode` and the heads, is
    computed for all steps of a window at once.

    The state is a NamedTuple of tensors, batch first, all zeros at an episode's start, with an entry `previous_action`.

    Where an observation has an entry `action_mask` [B, C], true for what is allowed, `heads` and `actor_loss` restrict
    the policy to that. No network reads it, and no parameter depends on it.

    Args:
        spaces: The entries of an observation, flat (`merlin.networks.spaces.flatten_space`).
        action_space: Discrete, MultiDiscrete, MultiBinary, Box, or a Dict or Tuple of these.
    """

    config_class: ClassVar[type]
    """Dataclass of the agent's configuration."""
    memory: Memory | None = None
    """The memory, of an agent that has one; `memory_state` and `with_memory` say where in the state it is."""
    gives_masks: bool | None = None
    """Whether its task gives masks of actions, which then every step needs; None where that is not known."""
    writes_once: ClassVar[bool] = True
    """Whether a step writes one word to it, after its reads."""

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: Config) -> None:
        super().__init__()
        self.spaces = spaces
        self.action_space = action_space
        self.config = config
        self.actions = make_action_distribution(action_space, config.box_actions)

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state before anything was seen."""

    @abstractmethod
    def encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch C"]:
        """Return what a step makes of its observation alone; any leading dimensions.

        Args:
            previous_action: As `ActionDistribution.encode` gives it; zeros where an episode starts.
            previous_reward: 0 where an episode starts.
        """

    @abstractmethod
    def perceive(
        self,
        code: Float[Tensor, "B C"],
        state: State,
        extras: Any = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return the step up to the action.

        Args:
            extras: Those of the same step where it is taken again; None where it is new.
            generator: Of what is drawn in a new step.
        """

    @abstractmethod
    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Return the step from the action on.

        Args:
            action: The one taken, encoded.
        """

    @abstractmethod
    def policy_parameters(self, activations: Any) -> Float[Tensor, "*batch A"]:
        """Return the parameters of the action's distribution, whatever is allowed."""

    @abstractmethod
    def value(self, activations: Any, policy_parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        """Return V."""

    @abstractmethod
    def loss(
        self,
        activations: Any,
        unroll: Unroll,
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
        entropy_scale: float,
    ) -> Losses:
        """Return the loss of a window, given the activations of all of its steps.

        Args:
            actions: Those taken, encoded.
            previous_actions: Those of the rows before, encoded; zeros where an episode starts.
            entropy_scale: Multiplies `entropy_cost`; training schedules it.
        """

    def features(self, observation: Any, output: StepOutput, state: State) -> dict[str, Float[Tensor, "B _"]]:
        """Return the agent's knowledge after a step, by where it is held; unless overridden, vectors of its state.

        Args:
            observation: That of the step.
            output: The step's output.
            state: The state after it.
        """
        held = {name: x for name, x in state._asdict().items() if isinstance(x, Tensor) and x.ndim == 2}
        return {name.replace("_", " "): x for name, x in held.items() if name != "previous_action"}

    def slots_before_reads(self, output: StepOutput, state: State) -> Int[Tensor, "B"] | None:
        """Return the slots that a step wrote before it read, −1 where none; None, unless overridden: none is.

        Args:
            state: After the step.
        """
        return None

    @torch.no_grad()
    def step(
        self,
        observation: Any,
        state: State,
        is_first: Any,
        reward: Any = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, State]:
        """Return the action and the next state, without gradients.

        Arrays, lists and numbers do as well as tensors, on any device, of any type of floats. An observation without
        the batch's axis, of one environment, gives an output without it; the state has it always.

        Args:
            observation: A batch of observations, nested as the environment gives them or flat, or one observation.
            is_first: Rows that start an episode; their state is zeroed before anything else. One flag does for all.
            reward: What the previous action earned; None stands for zeros.
            greedy: Take the most probable choice, the mean of numbers and of the latent, rather than samples.

        Raises:
            MerlinError: An argument has another shape than the spaces, or than the state's batch.
        """
        seen = border.convert(
            self.spaces, observation, is_first, reward, state.previous_action, self.actions, self.gives_masks
        )
        extras = self.likeliest_extras(state) if greedy else None
        perceived = self.perceive_new(seen.observation, state, seen.is_first, seen.reward, generator, extras)
        activations = perceived.activations
        parameters, value = self.heads(activations, seen.observation)
        action = self.actions.greedy(parameters) if greedy else self.actions.sample(parameters, generator)
        advanced = self.advance(perceived, self.actions.encode(action))
        has_one_reader = advanced.read_weights is None
        output = StepOutput(
            action=action,
            log_prob=self.actions.log_prob(parameters, action),
            value=value,
            policy_parameters=parameters,
            extras=advanced.extras,
            slots=getattr(advanced.extras, "slots", None),
            latent=getattr(activations, "latent", None),
            read_weights=perceived.read_weights if has_one_reader else advanced.read_weights,
            policy_read_weights=None if has_one_reader else perceived.read_weights,
        )
        return map_state(lambda x: x[0], output) if seen.is_single else output, advanced.state

    def draw_extras(self, state: State, generator: torch.Generator | None = None) -> Any:
        """Return the extras of a new step, with what `perceive` would draw; None, unless overridden: nothing is."""
        return None

    def likeliest_extras(self, state: State) -> Any:
        """Return the extras that let a new step draw nothing; None, unless overridden, where nothing is drawn."""
        return None

    def heads(
        self, activations: Any, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch"]]:
        """Return the parameters of the action's distribution, restricted to what the observation allows, and V."""
        parameters = self.actions.restrict(self.policy_parameters(activations), observation)
        return parameters, self.value(activations, parameters)

    def perceive_new(
        self,
        observation: dict[str, Tensor],
        state: State,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"],
        generator: torch.Generator | None,
        extras: Any = None,
    ) -> Perceived:
        """Return the first half of a step on what was just observed, the state being reset where an episode starts.

        Nothing is checked or converted here.
        """
        state, reward = self.begin_step(state, is_first, reward)
        return self.perceive(self.encode(observation, state.previous_action, reward), state, extras, generator)

    def begin_step(
        self, state: State, is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]
    ) -> tuple[State, Float[Tensor, "B"]]:
        """Return the state and the previous reward as a step sees them: zeroed where an episode starts."""
        reward = as_type(reward, state.previous_action.dtype)
        if is_known_false(is_first):
            return state, reward
        return reset_state(state, is_first), reward.masked_fill(is_first, 0)

    def losses(
        self, unroll: Unroll, state: State, entropy_scale: float = 1.0, acting: Any = None, **besides: Any
    ) -> tuple[Losses, State]:
        """Return the loss of a window that starts from `state`, and the state after it, cut from the graph.

        Args:
            entropy_scale: Multiplies `entropy_cost`; training schedules it.
            acting: The `Acting` that the whole window was acted by, with its graph, if no parameter has changed since:
                spares taking the steps again.
            besides: What the agent's `loss` takes besides, of an agent whose loss does.
        """
        actions, previous_actions = self.action_codes(unroll, state)
        if acting is None:
            activations, state = self.scan(unroll, state, actions, previous_actions)
        else:
            activations, state = acting.activations(), acting.state
        return self.loss(activations, unroll, actions, previous_actions, entropy_scale, **besides), state

    def scan(
        self,
        unroll: Unroll,
        state: State,
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
    ) -> tuple[Any, State]:
        """Return the activations of a window's steps, taken again from `state`, and the state after them."""
        stepping = in_window(self) if torch.is_grad_enabled() else self
        state = self.begin_window(state, len(unroll.is_first))
        previous_reward = as_type(unroll.previous_reward, previous_actions.dtype)
        codes = self.encode(unroll.observation, previous_actions, previous_reward).unbind()
        rows = []
        for t, (code, action, is_first) in enumerate(zip(codes, actions, unroll.is_first, strict=True)):
            extras = map_state(lambda x, t=t: x[t], unroll.extras)
            perceived = stepping.perceive(code, reset_state(state, is_first), extras)
            rows.append(perceived.activations)
            state = stepping.advance(perceived, action).state
        return stack_states(rows), self.end_window(state)

    def action_codes(self, unroll: Unroll, state: State) -> tuple[Float[Tensor, "T B E"], Float[Tensor, "T B E"]]:
        """Return the encodings of the window's actions, and of each row's previous one (0 where an episode starts)."""
        actions = self.actions.encode(unroll.action)
        previous = torch.cat([state.previous_action.unsqueeze(0), actions[:-1]])
        return actions, previous.masked_fill(unroll.is_first.unsqueeze(-1), 0)

    def memory_state(self, state: State) -> Any:
        """Return the contents of the memory. An agent that has one says where they are."""
        return state.memory  # pyright: ignore[reportAttributeAccessIssue]  # not all states have this entry

    def with_memory(self, state: State, memory: Any) -> State:
        """Return the state with other contents of the memory."""
        return state._replace(memory=memory)

    def begin_window(self, state: State, length: int) -> State:
        """Return the state in the form that `length` steps are taken in, the memory as its window."""
        if self.memory is None:
            return state
        return self.with_memory(state, self.memory.begin_window(self.memory_state(state), length))

    def end_window(self, state: State) -> State:
        """Return the state after a window, cut from the graph and in its usual form."""
        if self.memory is not None:
            state = self.with_memory(state, self.memory.end_window(self.memory_state(state)))
        return map_state(Tensor.detach, state)

    def learner(self, config: LearnerConfig, generator: torch.Generator) -> Learner:
        """Return what learns from windows of experience: optimisers, rates, phases."""
        return ActorCriticLearner(self, config, generator)

    def source(self, rollout: Any) -> Any:
        """Return the source of the learner's windows (`merlin.training.rollout.Source`): unless overridden, acting."""
        return rollout

    @property
    def scales_are_new(self) -> bool:
        """Whether it has running scales that have seen nothing yet: a first window is for them alone."""
        return False

    def update_scales(self, unroll: Unroll) -> None:
        """Let running scales take in a window that was learnt from; until the next they stay as they are."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by the optimiser that owns them."""
        return {"agent": list(self.parameters())}

    def reconstruct(self, latent: Float[Tensor, "*batch Z"]) -> dict[str, Tensor] | None:
        """Return the observation that the latent stands for, or None if the agent has no decoder."""
        return None

    def expect(self, state: State, is_first: Bool[Tensor, "B"]) -> dict[str, Tensor] | None:
        """Return the observation that the agent expects to see next, or None if it predicts none.

        Args:
            is_first: Rows that start an episode, of which it knows nothing.
        """
        return None

    def infer(self, activations: Any) -> Float[Tensor, "*batch Z"] | None:
        """Return the latent inferred of a step where nothing is drawn, as `reconstruct` takes it, if there is any."""
        return None

    def warnings(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Return what a report's metrics say is wrong: a plain sentence with its remedy, by a key.

        A run tells each once, and only what is said of every report for a while. Of a key that is a metric's name it
        tells nothing while that metric rises.
        """
        return {}
