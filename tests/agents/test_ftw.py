"""FTW: its step against loops in NumPy, the identities of its parts, and what its learner keeps."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from merlin.agents.acting import Acting
from merlin.agents.ftw import FTWConfig, internal_reward
from merlin.agents.ftw.auxiliary import PixelControl, SequenceReplay, sequences_of
from merlin.agents.ftw.two_timescales import gaussian, moments, scale_gradient
from merlin.agents.learner import LearnerConfig, Window
from merlin.agents.memory_ablation import MemoryAblation
from merlin.errors import MerlinError
from merlin.experience import Unroll
from merlin.networks.actions import make_action_distribution
from merlin.networks.kinds import Picture, Symbols
from merlin.states import map_state
from tests.agents.helpers import EVERY_KIND, act, leaves, make_agent, random_observation, row, tensors

T, B = 14, 3
TAU = 3


def firsts(seed: int = 0, rate: float = 0.2) -> torch.Tensor:
    return torch.rand(T, B, generator=torch.Generator().manual_seed(seed)) < rate


def ftw(**settings):
    return make_agent("ftw", **{"tick_steps": TAU, **settings}).double()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Reference:
    """One environment's agent, written from the equations on vectors and lists."""

    def __init__(self, agent):
        self.p = {name: x.detach().numpy() for name, x in agent.named_parameters()}
        self.config, self.agent = agent.config, agent
        self.reset()

    def reset(self):
        config = self.config
        h, z, words = config.hidden_size, config.latent_size, config.num_read_keys * config.word_size
        self.slow, self.fast = (np.zeros(h), np.zeros(h)), (np.zeros(h), np.zeros(h))
        self.slow_words, self.fast_words = np.zeros(words), np.zeros(words)
        self.prior, self.latent = (np.zeros(z), np.zeros(z)), np.zeros(z)
        self.memory, self.usage = np.zeros((config.memory_size, config.word_size)), np.zeros(config.memory_size)
        self.written, self.last, self.steps = 0, None, 0

    def linear(self, name, x):
        return self.p[f"{name}.weight"] @ x + self.p[f"{name}.bias"]

    def lstm(self, name, x, state, share=0.0):
        p = {key: self.p[f"core.{name}.cells.0.{key}"] for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        gates = p["weight_ih"] @ x + p["bias_ih"] + p["weight_hh"] @ state[0] + p["bias_hh"] + share
        i, f, g, o = np.split(gates, 4)
        cell = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(cell), cell

    def read(self, name, hidden):
        """Return the words of all keys, and how much of each slot they took."""
        keys, width = self.config.num_read_keys, self.config.word_size
        asked = self.linear(f"core.{name}_reader.project", hidden)
        words, total = [], np.zeros(len(self.memory))
        for k in range(keys):
            key, strength = asked[k * width : (k + 1) * width], np.log1p(np.exp(asked[keys * width + k]))
            scores = {}
            for n in range(min(self.written, len(self.memory))):
                norms = math.sqrt(key @ key + 1e-6) * math.sqrt(self.memory[n] @ self.memory[n] + 1e-6)
                scores[n] = math.exp(strength * (key @ self.memory[n]) / norms)
            weights = np.zeros(len(self.memory))
            for n, score in scores.items():
                weights[n] = score / sum(scores.values())
            words.append(weights @ self.memory)
            total += weights
        return np.concatenate(words), total

    def write(self, word, taken):
        self.usage = self.usage + taken
        is_full = self.written >= len(self.memory)
        others = [n for n in range(len(self.memory)) if n != self.last]
        slot = min(others, key=lambda n: self.usage[n]) if is_full else self.written
        if is_full:
            self.usage[slot] = self.usage.mean() + 1
        self.memory[slot], self.last, self.written = word, slot, self.written + 1

    def moments(self, name, x):
        mean, raw = np.split(self.linear(f"core.{name}", x), 2)
        return mean, 0.1 * np.log1p(np.exp(raw)) / math.log(2) + 1e-6

    def step(self, encoding, noise):
        ticks = self.steps % TAU == 0
        if ticks:
            self.slow = self.lstm("slow", np.concatenate([self.fast[0], self.slow_words]), self.slow)
            self.slow_words, taken = self.read("slow", self.slow[0])
            context = np.concatenate([self.slow[0], self.slow_words])
            self.write(self.linear("core.slow_writer", context), taken)
            self.prior = self.moments("prior", context)
        slow = self.p["core.slow_to_fast.weight"] @ np.concatenate([self.slow[0], self.slow_words, *self.prior])
        self.fast = self.lstm("fast", np.concatenate([encoding, self.latent, self.fast_words]), self.fast, slow)
        self.fast_words, taken = self.read("fast", self.fast[0])
        context = np.concatenate([self.fast[0], self.fast_words])
        posterior = self.moments("posterior", context)
        self.latent = posterior[0] + posterior[1] * noise
        self.write(self.linear("core.fast_writer", context), taken)
        self.steps += 1
        return ticks, posterior


@pytest.mark.parametrize("memory_size", [5, 60])
def test_a_step_is_that_of_the_equations(memory_size):
    """Word for word, where slots are used again and where they are not, through the starts of episodes."""
    agent = ftw(memory_size=memory_size)
    unroll, initial, final, _ = act(agent, firsts())
    actions, previous = agent.action_codes(unroll, initial)
    codes = agent.encode(unroll.observation, previous, unroll.previous_reward).detach().numpy()
    activations, after = agent.scan(unroll, initial, actions, previous)
    for b in range(B):
        reference = Reference(agent)
        for t in range(T):
            if unroll.is_first[t, b]:
                reference.reset()
            ticks, (mean, std) = reference.step(codes[t, b], unroll.extras.noise[t, b].numpy())
            assert bool(activations.ticks[t, b]) == ticks
            for x, expected in (
                (activations.hidden[t, b], reference.fast[0]),
                (activations.latent[t, b], reference.latent),
                (activations.prior[t, b], np.concatenate(reference.prior)),
                (activations.posterior[t, b], np.concatenate([mean, std])),
            ):
                np.testing.assert_allclose(x.detach().numpy(), expected, rtol=1e-8, atol=1e-10)
            assert int(unroll.extras.slots[t, b]) == reference.last
        for state in (after, final):
            memory = state.core.memory
            np.testing.assert_allclose(memory.memory[b].numpy(), reference.memory, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(memory.usage[b].numpy(), reference.usage, rtol=1e-8, atol=1e-10)
            assert int(memory.num_written[b]) == reference.written and int(state.core.num_steps[b]) == reference.steps


def test_between_ticks_slow_state_prior_and_words_are_bit_identical():
    agent = make_agent("ftw", tick_steps=TAU)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[4, 1] = True  # whose ticks are others from then on
    state = agent.initial_state(B)
    steps = torch.zeros(B, dtype=torch.int64)
    for t in range(T):
        steps = torch.where(is_first[t], 0, steps)
        observation = random_observation(B)
        _, after = agent.step(observation, state, is_first[t], torch.randn(B))
        holds = steps % TAU != 0
        for name in ("slow", "prior"):
            before, now = getattr(state.core, name), getattr(after.core, name)
            assert torch.equal(before[holds], now[holds])
            assert not (before == now)[~holds].all(-1).any()
        written = after.core.memory.num_written - torch.where(is_first[t], 0, state.core.memory.num_written)
        assert torch.equal(written, 2 - holds.long()), "both cores write at a tick, the fast one alone between"
        state, steps = after, steps + 1


def test_beyond_an_episodes_length_the_slow_core_ticks_once():
    agent = ftw(tick_steps=1000)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[5] = True
    unroll, initial, _, _ = act(agent, is_first)
    activations, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    assert activations.ticks.nonzero()[:, 0].tolist() == [0] * B + [5] * B


@pytest.mark.parametrize("cut", [6, 7, 8])
def test_two_windows_are_one_with_ticks_on_both_sides_of_the_edge(cut):
    agent = ftw()
    unroll, initial, _, _ = act(agent, torch.zeros(T, B, dtype=torch.bool))
    codes = agent.action_codes(unroll, initial)
    whole, end = agent.scan(unroll, initial, *codes)
    parts, state = [], initial
    for rows in (slice(0, cut), slice(cut, T)):
        observation = {name: x[rows] for name, x in unroll.observation.items()}
        part = map_state(lambda x, rows=rows: x[rows], unroll._replace(observation=None))
        activations, state = agent.scan(part._replace(observation=observation), state, *(x[rows] for x in codes))
        parts.append(activations)
    for name, x in leaves(whole).items():
        torch.testing.assert_close(torch.cat([leaves(part)[name] for part in parts]), x)
    for x, y in zip(tensors(state), tensors(end), strict=True):
        torch.testing.assert_close(x, y)


def test_the_fast_core_reads_what_the_slow_one_has_just_written():
    """At an episode's first row memory holds slow's word alone, so that each of fast's keys finds it whole."""
    agent = ftw()
    _, state = agent.step(random_observation(B), agent.initial_state(B), torch.ones(B, dtype=torch.bool))
    word = state.core.memory.memory[:, 0]
    torch.testing.assert_close(
        state.core.fast_words.view(B, -1, agent.config.word_size), word.unsqueeze(1).expand(-1, 2, -1)
    )
    assert word.abs().min() > 0 and (state.core.memory.num_written == 2).all()


def test_slots_may_be_in_any_order():
    agent = ftw()
    _, _, state, _ = act(agent, torch.zeros(T, B, dtype=torch.bool))
    order = torch.randperm(agent.config.memory_size)
    moved = agent.with_memory(state, map_state(lambda x: x[:, order] if x.ndim > 1 else x, agent.memory_state(state)))
    seen = random_observation(B), torch.zeros(B, dtype=torch.bool), torch.ones(B)
    found = [agent.step(seen[0], x, *seen[1:], generator=torch.Generator().manual_seed(3)) for x in (state, moved)]
    torch.testing.assert_close(found[0][0].policy_parameters, found[1][0].policy_parameters)
    torch.testing.assert_close(found[0][1].core.fast_words, found[1][1].core.fast_words)


def slow_gradient(scale: float, kl: float = 0.0) -> torch.Tensor:
    """The gradient of the slow core's input weights."""
    agent = ftw(slow_gradient_scale=scale, kl_cost=kl, prior_kl_cost=0.0, memory_size=0)
    agent.return_moments.update(torch.randn(50, 1), torch.ones(50, dtype=torch.bool))
    unroll, initial, _, _ = act(agent, torch.zeros(5, B, dtype=torch.bool))  # ticks at rows 0 and 3
    agent.losses(unroll, initial)[0].total.backward()
    gradient = agent.core.slow.cells[0].weight_ih.grad
    return torch.zeros_like(agent.core.slow.cells[0].weight_ih) if gradient is None else gradient


def test_the_gradient_that_the_slow_core_gets_through_the_fast_one_is_scaled():
    """Inside a window of two ticks nothing that the second gets has passed the edge before."""
    whole = slow_gradient(1.0)
    assert whole.abs().max() > 0
    torch.testing.assert_close(slow_gradient(0.5), 0.5 * whole)
    assert not slow_gradient(0.0).any()
    assert slow_gradient(0.0, kl=1.0).any(), "the prior's own gradient is not scaled"


def test_scaling_a_gradient_leaves_what_it_is_of_exactly():
    x = torch.randn(100, requires_grad=True)
    for scale in (1.0, 0.3, 0.0):
        y = scale_gradient(x, scale)
        assert torch.equal(y, x)
        expected = torch.full_like(x, scale)
        gradient = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)
        torch.testing.assert_close(gradient, expected)


def test_moments_by_hand():
    mean, std = moments(torch.tensor([2.0, -3.0, 0.0, 50.0])).chunk(2)
    assert mean.tolist() == [2.0, -3.0]
    torch.testing.assert_close(std, torch.tensor([0.1, 0.1 * 50 / math.log(2)]), atol=2e-6, rtol=1e-6)
    assert moments(torch.tensor([0.0, -200.0]))[1] >= 1e-6
    torch.testing.assert_close(gaussian(torch.tensor([1.0, 0.5])).log_variance.exp(), torch.tensor([0.25]))


def latent_loss(agent, activations, unroll):
    with torch.no_grad():
        return agent._latent_loss(activations, unroll)


def test_the_latent_costs_what_its_equations_say():
    """KL by its own formula, 0 where both are one; the prior's cost on ticks alone; both by the returns' variance."""
    agent = ftw(kl_cost=0.7, prior_kl_cost=0.3)
    unroll, initial, _, _ = act(agent, firsts())
    valid = torch.rand(T, B, generator=torch.Generator().manual_seed(5)) < 0.8
    unroll = unroll._replace(is_valid=valid)
    activations, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    returns = torch.randn(50, 1, dtype=torch.float64) * 3
    agent.return_moments.update(returns, torch.ones(50, dtype=torch.bool))
    variance = float(returns.var(correction=0))
    loss, metrics = latent_loss(agent, activations, unroll)
    kl = prior_kl = 0.0
    for t, b in valid.nonzero().tolist():
        (mean, std), (m, s) = (x[t, b].detach().chunk(2) for x in (activations.posterior, activations.prior))
        kl += float((torch.log(s / std) + (std**2 + (mean - m) ** 2) / (2 * s**2) - 0.5).sum())
        if activations.ticks[t, b]:
            prior_kl += float((torch.log(0.1 / s) + (s**2 + m**2) / (2 * 0.1**2) - 0.5).sum())
    count, ticks = int(valid.sum()), int((valid & activations.ticks).sum())
    assert 0 < ticks < count
    assert float(loss) == pytest.approx(variance * (0.7 * kl + 0.3 * prior_kl) / count, rel=1e-6)
    assert float(metrics["kl_nats"]) == pytest.approx(kl / count, rel=1e-6)
    assert float(metrics["prior_kl_nats"]) == pytest.approx(prior_kl / ticks, rel=1e-6)
    same = activations._replace(posterior=activations.prior)
    assert float(latent_loss(agent, same, unroll)[1]["kl_nats"]) == 0
    origin = torch.cat([torch.zeros(T, B, 6), torch.full((T, B, 6), 0.1)], -1).double()
    nothing = latent_loss(agent, activations._replace(posterior=origin, prior=origin), unroll)[0]
    assert float(nothing) == pytest.approx(0, abs=1e-12)


def test_a_prior_that_is_held_learns_from_all_steps_that_it_is_held_for():
    agent = ftw(kl_cost=1.0, prior_kl_cost=0.0, slow_gradient_scale=0.0, memory_size=0)
    agent.return_moments.update(torch.randn(50, 1), torch.ones(50, dtype=torch.bool))
    unroll, initial, _, _ = act(agent, torch.zeros(TAU, B, dtype=torch.bool))  # a single tick
    activations, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    gradients = []
    for t in range(TAU):
        valid = torch.zeros(TAU, B, dtype=torch.bool)
        valid[t] = True
        loss, _ = agent._latent_loss(activations, unroll._replace(is_valid=valid))
        gradients.append(torch.autograd.grad(loss, agent.core.prior.weight, retain_graph=True)[0])
        assert gradients[-1].any()
    whole, _ = agent._latent_loss(activations, unroll)
    expected = sum(gradients) / TAU
    torch.testing.assert_close(torch.autograd.grad(whole, agent.core.prior.weight)[0], expected)


@pytest.mark.parametrize("objective", ["vtrace", "ppo"])
def test_in_the_first_pass_both_objectives_are_the_policy_gradient(objective):
    """With λ 1 and ratios of 1 V-trace's advantages are those of GAE, and its targets n-step returns."""
    found = []
    for name in (objective, "ppo"):
        agent = ftw(objective=name, gae_lambda=1.0, reward_prediction_cost=0.0)
        unroll, initial, _, _ = act(agent, firsts())
        agent.losses(unroll, initial)[0].total.backward()
        found.append(torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


def test_a_state_that_is_looked_at_leaves_the_window_as_it_was():
    agent = ftw()
    unroll, initial, final, _ = act(agent, firsts())
    acting = Acting(agent, initial, T, torch.Generator().manual_seed(0), records=True)
    for t in range(T):
        for _ in range(3):
            before = acting.generator.get_state()
            acting.next_value(row(unroll, t), ~unroll.is_first[t], torch.ones(B, dtype=torch.float64))
            acting.generator.set_state(before)
        acting.step(row(unroll, t), unroll.is_first[t], unroll.previous_reward[t])
    acting.next_value(row(unroll, 0), unroll.is_first[0], unroll.previous_reward[0])  # past the last step
    for x, y in zip(tensors(acting.state), tensors(final), strict=True):
        torch.testing.assert_close(x, y)


def test_a_zeroed_memory_holds_what_the_slow_core_has_just_written_and_a_shuffled_one_is_refused():
    agent = make_agent("ftw", tick_steps=TAU)
    ablation = MemoryAblation(agent, "zeroed")
    state = ablation.initial_state(B)
    for t in range(2 * TAU):
        output, state = ablation.step(random_observation(B), state, torch.full((B,), t == 0))
        weights = output.read_weights
        assert not weights[..., 1:].any() and torch.allclose(weights[..., 0], torch.tensor(float(t % TAU == 0)))
    with pytest.raises(MerlinError, match="FTW writes others too: take zeroed or frozen"):
        MemoryAblation(agent, "shuffled")


@pytest.mark.parametrize(
    ("settings", "without"),
    [
        ({"memory_size": 0}, ("slow_reader", "fast_reader", "slow_writer", "fast_writer")),
        ({"core": "lstm"}, ("slow", "prior", "posterior", "fast_reader")),
    ],
)
def test_ablations_have_no_parameter_of_what_is_left_out(settings, without):
    agent = make_agent("ftw", **settings)
    assert agent.memory is None and not any(hasattr(agent.core, name) for name in without)
    unroll, initial, _, _ = act(agent, firsts())
    losses, _ = agent.losses(unroll, initial)
    losses.total.backward()
    assert all(p.grad is not None for p in agent.parameters())
    assert ("kl_nats" in losses.metrics) == ("core" not in settings)


def test_heads_read_the_latent_alone_where_told():
    """Then the policy is a function of z: with z the same it is the same, whatever was seen."""
    sizes = {inputs: make_agent("ftw", head_inputs=inputs).policy_head[0].in_features for inputs in ("all", "latent")}
    assert sizes["latent"] == 6 and sizes["all"] > 6 + 7
    agent = make_agent("ftw", head_inputs="latent")
    unroll, initial, _, _ = act(agent, firsts())
    activations, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    other = activations._replace(encoding=activations.encoding + 1, hidden=activations.hidden - 1)
    assert torch.equal(agent.policy_parameters(activations), agent.policy_parameters(other))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"retroactive_discount": 0.9}, "retroactive_discount must be none"),
        ({"core": "lstm", "head_inputs": "latent"}, "head_inputs must be all where core is lstm"),
        ({"tick_steps": 0}, "tick_steps must be a whole number from 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(MerlinError, match=sentence):
        FTWConfig(**settings)


def test_hyperparameters_are_values_that_losses_follow():
    """No rebuilt configuration: what is set on the agent is what its next step and loss take."""
    agent = ftw()
    unroll, initial, _, _ = act(agent, firsts())
    loss = lambda: float(agent.losses(unroll, initial)[0].total.detach())  # noqa: E731
    before = loss()
    agent.hyperparameters = agent.hyperparameters._replace(entropy_cost=agent.config.entropy_cost + 1)
    entropy = float(agent.losses(unroll, initial)[0].metrics["entropy_nats"])
    assert loss() == pytest.approx(before - entropy)
    agent.hyperparameters = agent.config.hyperparameters()._replace(tick_steps=1)
    codes = agent.action_codes(unroll, initial)
    assert agent.scan(unroll._replace(extras=unroll.extras._replace(slow_slots=None, slots=None)), initial, *codes)[
        0
    ].ticks.all()


def test_the_internal_reward_is_linear_and_a_unit_weight_counts_its_event():
    events = torch.randint(3, (4, 5, 13)).float()
    weights, others = torch.randn(13, requires_grad=True), torch.randn(13)
    both = internal_reward(events, weights + 2 * others)
    torch.testing.assert_close(both, internal_reward(events, weights) + 2 * internal_reward(events, others))
    assert not both.requires_grad
    for v in range(13):
        assert torch.equal(internal_reward(events, torch.eye(13)[v]), events[..., v])


def control_window(kind: str, seed: int = 0):
    """A window of a picture's or a grid's observations, with ends of episodes, and rows that do not count."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "picture":
        space = Picture(EVERY_KIND["picture"], 0)  # 6 x 9 pixels: cells at two edges are cut
        value = torch.randint(256, (T, B, 6, 9, 3), generator=generator).to(torch.uint8)
    else:
        space = Symbols(EVERY_KIND["grid"])
        value = torch.randint(2, (T, B, 3, 5, 2), generator=generator)
    is_end = torch.rand(T, B, generator=generator) < 0.2
    is_first = torch.cat([torch.zeros(1, B, dtype=torch.bool), is_end[:-1]])
    valid = torch.rand(T, B, generator=generator) < 0.9
    zeros = torch.zeros(T, B)
    unroll = Unroll({}, is_first, zeros, zeros, zeros, zeros, zeros, zeros, zeros, is_end, valid)
    return space, value, unroll


def cell_changes(kind, before, after):
    """Change of every cell by hand, row by row."""
    if kind == "grid":
        return [float((before[y, x] != after[y, x]).any()) for y in range(3) for x in range(5)]
    difference = np.abs(after.numpy().astype(float) - before.numpy().astype(float)) / 255
    return [difference[y : y + 4, x : x + 4].mean() for y in range(0, 6, 4) for x in range(0, 9, 4)]


@pytest.mark.parametrize("kind", ["picture", "grid"])
@pytest.mark.parametrize("action_space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3])])
def test_pixel_control_is_n_step_q_learning_by_brute_force(kind, action_space):
    torch.manual_seed(0)
    space, value, unroll = control_window(kind)
    actions = make_action_distribution(action_space)
    control = PixelControl(space, 7, actions, discount=0.8).double()
    features = torch.randn(T, B, 7, dtype=torch.float64)
    sizes = [4] if isinstance(action_space, spaces.Discrete) else [2, 3]
    taken = torch.stack([torch.randint(n, (T, B)) for n in sizes], -1)
    action = taken.squeeze(-1) if len(sizes) == 1 else taken
    loss = control.loss(features, value, actions.encode(action).double(), unroll)

    maps = control.network(features.flatten(0, 1))[..., : control.cells[0], : control.cells[1]]
    maps = maps.detach().flatten(-2).unflatten(0, (T, B)).numpy()

    def q(t, b, m, choices):
        total, offset = maps[t, b, 0, m], 1
        for n, choice in zip(sizes, choices, strict=True):
            advantages = maps[t, b, offset : offset + n, m]
            total, offset = total + advantages[choice] - advantages.mean(), offset + n
        return total

    every = [(i,) for i in range(4)] if len(sizes) == 1 else [(i, j) for i in range(2) for j in range(3)]
    valid, errors = unroll.is_valid, []
    sees = lambda t, b: t + 1 < T and valid[t, b] and valid[t + 1, b] and not unroll.is_end[t, b]  # noqa: E731
    for b in range(B):
        for t in range(T):
            if not sees(t, b):
                continue
            for m in range(maps.shape[-1]):
                total, weight, s = 0.0, 1.0, t
                while sees(s, b):
                    total += weight * cell_changes(kind, value[s, b], value[s + 1, b])[m]
                    weight, s = weight * 0.8, s + 1
                total += weight * max(q(s, b, m, choices) for choices in every)
                errors.append(0.5 * (total - q(t, b, m, taken[t, b].tolist())) ** 2)
    assert len(errors) > T
    assert float(loss.detach()) == pytest.approx(np.mean(errors), rel=1e-9)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in control.parameters())


def test_pixel_control_is_part_of_the_loss_of_what_has_pictures_or_grids():
    agent = make_agent(
        "ftw", spaces={name: EVERY_KIND[name] for name in ("card", "grid", "picture")}, pixel_control_cost=0.1
    )
    assert agent.controlled == ("grid", "picture")
    with pytest.raises(MerlinError, match="values of choices"):
        make_agent("ftw", "box", spaces=EVERY_KIND, pixel_control_cost=0.1)


def reward_window(rewards: torch.Tensor, is_first=None, valid=None) -> Unroll:
    """A window whose observation tells its row and column."""
    length, count = rewards.shape
    card = torch.arange(length * count).view(length, count)
    none = torch.zeros(length, count, dtype=torch.bool)
    first = none if is_first is None else is_first
    zeros = torch.zeros_like(rewards)
    return Unroll(
        {"card": card},
        first,
        zeros,
        zeros,
        zeros,
        rewards,
        zeros,
        zeros,
        zeros,
        none,
        ~none if valid is None else valid,
    )


def test_sequences_are_three_rows_of_one_episode_and_the_sign_of_what_followed():
    generator = torch.Generator().manual_seed(2)
    rewards = torch.randint(-1, 2, (T, B), generator=generator) * 0.3
    is_first, valid = (torch.rand(T, B, generator=generator) < p for p in (0.2, 0.9))
    found = sequences_of(reward_window(rewards, is_first, valid))
    expected = []
    for t in range(2, T):
        for b in range(B):
            if valid[t - 2 : t + 1, b].all() and not is_first[t - 1 : t + 1, b].any():
                rows = [int(s * B + b) for s in (t - 2, t - 1, t)]
                expected.append((*rows, int(np.sign(float(rewards[t, b]))) + 1))
    assert [(*x, s) for x, s in zip(found.observation["card"].T.tolist(), found.sign.tolist(), strict=True)] == expected
    assert len(set(found.sign.tolist())) == 3
    assert len(sequences_of(reward_window(rewards[:2])).sign) == 0


def test_a_replay_of_sequences_draws_half_of_them_before_a_reward_and_keeps_the_newest():
    replay, generator = SequenceReplay(20), torch.Generator().manual_seed(0)
    for k in range(30):
        rewards = torch.zeros(8, 4)
        if k % 3 == 2:
            rewards[5, 1] = -1.0 if k % 2 else 1.0
        window = reward_window(rewards)
        replay.add(sequences_of(window._replace(observation={"card": window.observation["card"] + 1000 * k})))
    assert len(replay) == 20
    drawn = replay.sample(64, generator)
    assert int((drawn.sign != 1).sum()) == 32
    rewarded = drawn.observation["card"][-1][drawn.sign != 1]
    assert {int(x) // 1000 for x in rewarded} <= {2 + 3 * i for i in range(10)}
    assert {int(x) // 1000 for x in drawn.observation["card"][-1][drawn.sign == 1]} == {29}
    nothing = SequenceReplay(20)
    nothing.add(sequences_of(reward_window(torch.zeros(8, 4))))
    assert (nothing.sample(10, generator).sign == 1).all() and len(nothing.sample(10, generator).sign) == 10


def test_the_learner_goes_on_with_the_sequences_that_it_kept():
    agent = make_agent("ftw")
    learners = [agent.learner(LearnerConfig(), torch.Generator().manual_seed(4)) for _ in range(2)]
    unroll, state, _, _ = act(agent, firsts())
    learners[0].replay.add(sequences_of(unroll))
    learners[1].load_share_dict(learners[0].share_dict())
    draws = [learner.replay.sample(10, torch.Generator().manual_seed(1)) for learner in learners]
    assert torch.equal(draws[0].sign, draws[1].sign)
    assert all(torch.equal(draws[0].observation[name], draws[1].observation[name]) for name in unroll.observation)
    assert len(learners[1].replay) > 0
    metrics = learners[0].update(Window(unroll, state), 1.0)
    assert {"reward_prediction_nats", "kl_nats", "prior_kl_nats", "agent_grad_norm"} <= metrics.keys()


def test_kl_weights_follow_the_variance_of_returns_in_the_units_of_the_losses():
    plain, running = (make_agent("ftw", running_scales=running) for running in (False, True))
    unroll, _, _, _ = act(plain, firsts())
    for agent in (plain, running):
        assert float(agent.kl_weight) == 0  # nothing is known yet
        agent.update_scales(unroll)
    assert float(plain.kl_weight) == pytest.approx(float(plain.return_moments.variance))
    assert float(running.kl_weight) == pytest.approx(1, rel=0.01)


@pytest.mark.usefixtures("on_a_command_line")
def test_a_collapse_is_told_where_v_explains_nothing_either():
    agent = make_agent("ftw", kl_cost=0.02)
    told = agent.warnings({"kl_nats": 0.01, "value_explained": 0.0, "kl_cost": 0.001})
    assert "model.kl_cost=0.002" in told["collapse"]
    assert not agent.warnings({"kl_nats": 0.01, "value_explained": 0.9, "kl_cost": 0.001})
    assert not agent.warnings({"kl_nats": 5.0, "value_explained": 0.0, "kl_cost": 0.001})
    assert not agent.warnings({"kl_nats": 0.01, "value_explained": 0.0, "kl_cost": 0.0})
    assert not agent.warnings({"kl_nats": math.nan, "value_explained": math.nan})
