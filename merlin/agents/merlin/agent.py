"""MERLIN: a memory-based predictor and a read-only policy. Wayne et al. 2018, arXiv:1803.10760."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin.agents.agent import Agent, TapeActing
from merlin.agents.merlin.associative import start_associative
from merlin.agents.merlin.predictor import Predictor, PredictorConfig, PredictorState, Thought
from merlin.agents.merlin.recurrence import Carried, Keys, Recurred, Tape, Weights, recur
from merlin.experience import Losses, StepOutput, Unroll
from merlin.latents import DiagonalGaussian
from merlin.memory import Reader
from merlin.memory.window import DifferentiableWindow, MemoryWindow
from merlin.networks.heads import mlp
from merlin.networks.lstm import LSTM, LSTMState, reset_state
from merlin.networks.spaces import flatten_observation
from merlin.objectives.policy_gradient import ActorCriticConfig, advantages_and_returns, masked_mean, policy_loss


@dataclass(frozen=True, kw_only=True)
class MerlinConfig(PredictorConfig, ActorCriticConfig):
    """The predictor's configuration, that of learning from advantages, and the policy's own. Sizes are the paper's."""

    policy_hidden_size: int = 256
    """Units of the policy's LSTM, which has one layer."""
    policy_num_read_keys: int = 1
    """Read keys of the policy."""
    policy_read_strength: float | None = None
    """Sharpness that the policy's reads start near; none takes ln N, a perfect match as heavy as all else together."""
    policy_associative_start: bool = False
    """Let the policy's reads start with what is like the present, in place of PyTorch's random keys."""
    policy_gradient_to_latent: bool = False
    """Let the policy gradient shape the latent, as the paper does not."""


class MerlinState(NamedTuple):
    """What MERLIN carries from step to step: the predictor's state; h~, c~, m~; a_{t-1}, encoded."""

    predictor: PredictorState
    policy: LSTMState
    policy_read_words: Float[Tensor, "B KW"]
    previous_action: Float[Tensor, "B E"]


class Merlin(Agent[MerlinConfig, MerlinState]):
    """MERLIN, by the equations of Wayne et al. 2018 (arXiv:1803.10760), Algorithm 1, one time step in order:

        prior      = prior_network(h, m)
        posterior  = prior + posterior_network(e, h, m, prior)          e encodes o_t, a_{t−1}, r_{t−1}
        z          ~ posterior
        h~, c~     = policy_lstm([sg(z), m~]);   m~ = read(M, key~(h~))
        log π      = log softmax(policy_head([sg(z), h~, m~]));   a ~ π
        V          = value_head([z, sg(log π)]);   A = advantage_head([z, a]);   R^ = sg(V) + A
        h, c       = lstm([z, a, m]);   m, w = read(M, keys(h))
        M          = write(M, sg(z), w)                                 least used slot, retroactive half

    and the loss, with KL in nats and R the bootstrapped n-step return of the window:

        Σ cost · reconstruction nats of z + kl_cost · KL[posterior ‖ prior]
        + expectation_cost · Σ cost · reconstruction nats of the prior's mean
        + return_cost · ½ ((R − V)² + (R − R^)²)  −  advantage · log π(a)  −  entropy_cost · entropy

    Differences from the paper:

    1. The KL weight defaults to observation nats, at least 4.25, / `kl_reference_nats`, and is at most 1; the nats are
       measured: how much better than the best constant guess a perfect reconstruction would be. The paper's weight
       of 1 stands against thousands of nats of pixels; against a few nats of symbols it collapses the posterior, and
       a weight well short of that still makes latents so noisy that the policy cannot tell slots apart.
    2. Slots that were never written cannot be read (`mask_unwritten`), a re-used slot is erased first, and the
       retroactive discount is separate from the return's. The paper is silent or cannot mean otherwise.
    3. Losses are averaged over the steps of a window rather than summed; Adam does not notice.
    4. The posterior's means start larger (`posterior_scale`) and the policy's reads sharper (`policy_read_strength`)
       than PyTorch's initial weights would have them; `policy_associative_start` lets these reads begin with what is
       like the present.
    5. Encoders and decoders follow the observation space. Categories, vectors and rewards are decoded linearly, and so
       is what a symbolic grid shows anywhere; what is rare in grids may count more (`DecoderConfig.grid_rarity`).
    6. What the prior expects may be decoded as well (`expectation_cost`, 0 unless set).
    """

    groups = ("predictor", "policy")

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: MerlinConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.predictor = Predictor(spaces, self.actions, config)
        word_size, hidden_size = self.predictor.word_size, config.policy_hidden_size
        num_keys, strength = config.policy_num_read_keys, config.policy_read_strength
        if strength is None:
            strength = math.log(max(config.memory_size, 2))
        words_size = num_keys * word_size
        head_input_size = config.latent_size + hidden_size + words_size
        self.policy = nn.ModuleDict(
            {
                "lstm": LSTM(config.latent_size + words_size, hidden_size, 1),
                "reader": Reader(hidden_size, word_size, num_keys, strength),
                "head": mlp(head_input_size, (200,), self.actions.num_parameters, 0.1, config.policy_hidden_gain),
            }
        )
        if config.policy_associative_start:
            start_associative(self.policy["lstm"], self.policy["reader"], config.latent_size)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the policy's parameters, and all others, which the policy gradient never reaches."""
        return {"predictor": list(self.predictor.parameters()), "policy": list(self.policy.parameters())}

    def initial_state(self, batch_size: int) -> MerlinState:
        """Return zeros: nothing seen, nothing remembered."""
        predictor, policy = self.predictor.initial_state(batch_size), self.policy["lstm"].initial_state(batch_size)
        zeros = policy.hidden.new_zeros
        return MerlinState(
            predictor,
            policy,
            zeros(batch_size, self.config.policy_num_read_keys * self.predictor.word_size),
            zeros(batch_size, self.actions.encoding_size),
        )

    @torch.no_grad()
    def step(
        self,
        observation: Any,
        state: MerlinState,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, MerlinState]:
        """Return the action and the next state. See `Agent.step`."""
        state = reset_state(state, is_first)
        if reward is None:
            reward = torch.zeros_like(is_first, dtype=state.previous_action.dtype)
        previous_reward = reward.masked_fill(is_first, 0)
        code = self.predictor.encode(flatten_observation(observation), state.previous_action, previous_reward)
        noise = torch.randn(
            (is_first.shape[0], self.config.latent_size), generator=generator, device=code.device, dtype=code.dtype
        )
        thought = self.predictor.perceive(code, noise, state.predictor)
        state, policy_weights = self._recall(thought.latent, state)
        parameters = self._policy_parameters(thought.latent, state.policy.hidden, state.policy_read_words)
        action = self.actions.mode(parameters) if greedy else self.actions.sample(parameters, generator)
        state, weights = self._advance(thought.latent, self.actions.encode(action), state)
        output = StepOutput(
            action=action,
            log_prob=self.actions.log_prob(parameters, action),
            value=self.predictor.value(thought.latent, parameters),
            policy_parameters=parameters,
            noise=noise,
            slots=state.predictor.memory.write_weights.argmax(-1),
            latent=thought.latent,
            read_weights=weights,
            policy_read_weights=policy_weights,
        )
        return output, state

    def begin(self, state: MerlinState, length: int, generator: torch.Generator | None = None) -> "MerlinActing":
        """Return what acts for a window of `length` steps from `state`, and remembers what learning needs of it."""
        return MerlinActing(self, state, length, generator)

    def losses(
        self, unroll: Unroll, state: MerlinState, entropy_scale: float = 1.0, acting: "MerlinActing | None" = None
    ) -> tuple[Losses, MerlinState]:
        """Return the loss of a window that starts from `state`, and the state after it. See `Agent.losses`."""
        config = self.config
        actions, previous_actions = self._action_codes(unroll, state.previous_action)
        codes = self.predictor.encode(unroll.observation, previous_actions, unroll.previous_reward)
        recurred, state = self._recur(codes, actions, unroll, state, acting)
        thoughts = Thought(
            DiagonalGaussian(*recurred.prior.chunk(2, -1)),
            DiagonalGaussian(*recurred.posterior.chunk(2, -1)),
            recurred.latent,
        )
        parameters = self._policy_parameters(recurred.latent, recurred.policy_hidden, recurred.policy_words)

        advantages, returns = advantages_and_returns(unroll, config)
        actor, log_prob, entropy = self._actor_loss(unroll, parameters, advantages, entropy_scale)
        predictor, value, metrics = self.predictor.loss(
            thoughts, unroll, parameters, actions, previous_actions, returns
        )
        metrics |= self._actor_critic_metrics(unroll, log_prob, entropy, value, returns)
        total = masked_mean(actor, unroll.is_valid) + masked_mean(predictor, unroll.is_valid)
        return Losses(total, {name: x.detach() for name, x in metrics.items()}), state

    def policy_losses(self, unroll: Unroll, state: MerlinState, entropy_scale: float = 1.0) -> Losses:
        """Return the loss of the policy alone, of a window that starts from `state`, on what it acted with.

        It reaches no other parameter, so that the policy may learn from a window more often (`policy_passes`).
        """
        config, latent, slots = self.config, unroll.latent, unroll.slots
        assert latent is not None and slots is not None, "the policy learns from what was acted with"
        memory = DifferentiableWindow(
            state.predictor.memory, latent, config.retroactive_discount, config.mask_unwritten
        )
        lstm, words = state.policy, state.policy_read_words
        recalled = []
        for t, is_first in enumerate(unroll.is_first):
            lstm, words = reset_state(lstm, is_first), reset_state(words, is_first)
            lstm = self.policy["lstm"].step(torch.cat([latent[t], words], -1), lstm)
            memory.enter(t, is_first)
            found, weights = memory.read(*self.policy["reader"](lstm.hidden), t, config.top_k)
            words = found.flatten(1)
            recalled.append((lstm.hidden, words))
            memory.append(t, latent[t], weights.detach(), slots[t])
        parameters = self._policy_parameters(latent, *map(torch.stack, zip(*recalled, strict=True)))
        advantages, _ = advantages_and_returns(unroll, config)
        actor, log_prob, _ = self._actor_loss(unroll, parameters, advantages, entropy_scale)
        policy_kl = masked_mean(unroll.log_prob - log_prob.detach(), unroll.is_valid)
        return Losses(masked_mean(actor, unroll.is_valid), {"policy_kl_nats": policy_kl})

    @torch.no_grad()
    def expect(self, state: MerlinState, is_first: Bool[Tensor, "B"]) -> dict[str, Tensor]:
        """Return the observation that is decoded from the prior's mean, before anything is seen. See `Agent.expect`."""
        return self.reconstruct(self.predictor.prior(reset_state(state, is_first).predictor).mean)

    @torch.no_grad()
    def imagine(
        self, state: MerlinState, length: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "T B Z"]:
        """Return the latents of `length` steps after `state` in which nothing is seen.

        Each is a sample of the prior; the policy acts on it, and it is remembered as if it had been inferred.
        """
        latents = []
        for _ in range(length):
            prior = self.predictor.prior(state.predictor)
            noise = torch.randn(prior.mean.shape, generator=generator, device=prior.mean.device, dtype=prior.mean.dtype)
            latent = prior.sample(noise)
            state, _ = self._recall(latent, state)
            parameters = self._policy_parameters(latent, state.policy.hidden, state.policy_read_words)
            state, _ = self._advance(latent, self.actions.encode(self.actions.sample(parameters, generator)), state)
            latents.append(latent)
        return torch.stack(latents)

    def reconstruct(self, latent: Float[Tensor, "*batch Z"]) -> dict[str, Tensor]:
        """Return the observation that the latent stands for, entry by entry in the observation's units."""
        return self.predictor.decoder.mode(self.predictor.decoder(latent))

    @torch.no_grad()
    def features(self, observation: Any, output: StepOutput, state: MerlinState) -> dict[str, Float[Tensor, "B _"]]:
        """Return what the agent knows after a step, by where it knows it. See `Agent.features`."""
        assert output.latent is not None
        return {
            "encoding": self.predictor.encoder(flatten_observation(observation)),
            "latent": output.latent,
            "recurrent state": state.predictor.lstm.hidden,
            "reads": state.predictor.read_words,
            "policy's recurrent state": state.policy.hidden,
            "policy's reads": state.policy_read_words,
        }

    def warnings(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell of a collapsed posterior: next to no nats beyond the prior, and observations decoded as if by chance."""
        kl, chance, explained = (metrics[name] for name in ("kl_nats", "observation_nats", "observation_explained"))
        if kl > 0.05 * chance or explained > 0.5:
            return {}
        return {
            "collapse": f"The posterior has collapsed onto the prior (KL {kl:.3f} nats, {explained:.0%} of "
            f"{chance:.2f} nats of observation explained), so the memory holds nothing: lower the KL weight "
            f"with --set model.kl_cost={0.1 * metrics['kl_cost']:.2g}"
        }

    def _actor_loss(
        self,
        unroll: Unroll,
        parameters: Float[Tensor, "T B A"],
        advantages: Float[Tensor, "T B"],
        entropy_scale: float,
    ) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"], Float[Tensor, "T B"]]:
        """Return the policy's loss, the log probability of what was done, and the policy's entropy in nats."""
        log_prob = self.actions.log_prob(parameters, unroll.action)
        entropy = self.actions.entropy(parameters)
        actor = policy_loss(log_prob, unroll.log_prob, advantages, self.config.clip_ratio)
        return actor - self.config.entropy_cost * entropy_scale * entropy, log_prob, entropy

    def _weights(self) -> tuple[Weights, list[tuple[Tensor, Tensor]]]:
        """Return what the recurrence multiplies by."""
        recurrent, layers = self.predictor.recurrent_weights()
        cell, reader = self.policy["lstm"].cells[0], self.policy["reader"].project
        weights = Weights(
            **recurrent,
            policy=torch.cat([cell.weight_ih, cell.weight_hh], -1),
            policy_bias=cell.bias_ih + cell.bias_hh,
            policy_reader=reader.weight,
            policy_reader_bias=reader.bias,
        )
        return weights, layers

    def _tape(self, state: MerlinState, length: int) -> Tape:
        """Return an empty tape for the steps that follow `state`."""
        config, past = self.config, state.predictor
        with torch.no_grad():
            weights, layers = self._weights()
        memory = MemoryWindow(past.memory, length, config.retroactive_discount, config.mask_unwritten)
        keys = Keys(config.num_read_keys, config.policy_num_read_keys, config.top_k)
        return Tape(weights, layers, _carried(state), memory, keys, length)

    def _recur(
        self,
        codes: Float[Tensor, "T B C"],
        actions: Float[Tensor, "T B E"],
        unroll: Unroll,
        state: MerlinState,
        acting: "MerlinActing | None" = None,
    ) -> tuple[Recurred, MerlinState]:
        """Return what `step` computes, for a whole window, and the state after it."""
        gates = self.predictor.action_gates(actions)
        if acting is None:
            tape = self._tape(state, codes.shape[0])
            with torch.no_grad():
                for t in range(codes.shape[0]):
                    tape.perceive(t, codes[t], unroll.noise[t], unroll.is_first[t])
                    tape.decide(t)
                    tape.advance(t, gates[t], None if unroll.slots is None else unroll.slots[t])
            after = _state(tape, actions[-1])
        else:
            tape, after = acting.unchanged().tape, acting.state
        to_latent = self.config.policy_gradient_to_latent
        return recur(tape, codes, gates, _carried(state), *self._weights(), to_latent), after

    def _recall(self, latent: Float[Tensor, "B Z"], state: MerlinState) -> tuple[MerlinState, Float[Tensor, "B K N"]]:
        """Return the state after the policy's LSTM and read, which sees the memory before this step's write."""
        seen = self._for_policy(latent)
        lstm = self.policy["lstm"].step(torch.cat([seen, state.policy_read_words], -1), state.policy)
        words, weights = self.predictor.read(self.policy["reader"], lstm.hidden, state.predictor.memory)
        return state._replace(policy=lstm, policy_read_words=words), weights

    def _advance(
        self, latent: Float[Tensor, "B Z"], action: Float[Tensor, "B E"], state: MerlinState
    ) -> tuple[MerlinState, Float[Tensor, "B K N"]]:
        predictor, weights = self.predictor.advance(latent, action, state.predictor)
        return state._replace(predictor=predictor, previous_action=action), weights

    def _for_policy(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        return latent if self.config.policy_gradient_to_latent else latent.detach()

    def _policy_parameters(
        self,
        latent: Float[Tensor, "*batch Z"],
        hidden: Float[Tensor, "*batch H"],
        read_words: Float[Tensor, "*batch KW"],
    ) -> Float[Tensor, "*batch A"]:
        return self.policy["head"](torch.cat([self._for_policy(latent), hidden, read_words], -1))


class MerlinActing(TapeActing):
    """MERLIN acting on a tape that it then learns from. The same numbers as `Merlin.step`'s."""

    agent: Merlin

    @torch.no_grad()
    def __init__(self, agent: Merlin, state: MerlinState, length: int, generator: torch.Generator | None) -> None:
        super().__init__(agent, state.previous_action, generator)
        self.tape = agent._tape(state, length)

    @torch.no_grad()
    def columns(self) -> dict[str, Tensor | None]:
        """Return what `Unroll` holds of the agent, for all steps taken."""
        length = len(self._actions)
        noise, latent = self.tape.noise[:length].clone(), self.tape.latent[:length].clone()
        return super().columns() | {"noise": noise, "slots": torch.stack(self.tape.memory.slots), "latent": latent}

    def _decide(
        self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B A"]]:
        agent, t = self.agent, len(self._actions)
        previous_action = self._previous_action.masked_fill(is_first.unsqueeze(-1), 0)
        code = agent.predictor.encode(observation, previous_action, reward.masked_fill(is_first, 0))
        size = (is_first.shape[0], agent.config.latent_size)
        noise = torch.randn(size, generator=self.generator, device=code.device, dtype=code.dtype)
        latent = self.tape.perceive(t, code, noise, is_first)
        return latent, agent._policy_parameters(latent, *self.tape.decide(t))

    def _advance(self) -> None:
        self.tape.advance(len(self._actions), self.agent.predictor.action_gates(self._previous_action))

    def _value(self, seen: Float[Tensor, "*batch Z"], parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        return self.agent.predictor.value(seen, parameters)

    def _all_seen(self) -> Float[Tensor, "T B Z"]:
        return self.tape.latent[: len(self._actions)]

    def _make_state(self) -> MerlinState:
        return _state(self.tape, self._previous_action)


def _carried(state: MerlinState) -> Carried:
    past = state.predictor
    return Carried(*past.lstm, past.read_words, *state.policy, state.policy_read_words)


def _state(tape: Tape, previous_action: Float[Tensor, "B E"]) -> MerlinState:
    """Return the state after the steps on a tape, free of it and of the graph."""
    end = Carried(*(x.detach().clone() for x in tape.carried))  # rows of the tape, which they would keep
    return MerlinState(
        PredictorState(LSTMState(end.hidden, end.cell), end.words, tape.memory.state()),
        LSTMState(end.policy_hidden, end.policy_cell),
        end.policy_words,
        previous_action.detach().clone(),
    )
