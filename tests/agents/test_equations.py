"""Whole losses and all of their gradients, of MERLIN, Dreamer and FTW, against the equations written out row by row.

Plain PyTorch in float64, one environment and one step at a time; of the agents only parameters are taken, by name. So
these also tell whether gradients stop where the equations say.
"""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from tests.agents.helpers import act, make_agent

CARDS, PLACES, ACTIONS = 5, 3, 4  # of the helpers' observations and actions
EPSILON = 1e-6  # of the cosine, inside the root


@pytest.fixture(autouse=True)
def _doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def zeros(*sizes):
    return [torch.zeros(size) for size in sizes]


class Parts:
    """An agent's parameters, and layers made of them by their names."""

    def __init__(self, agent):
        self.values = dict(agent.named_parameters())

    def linear(self, name, x):
        bias = self.values.get(f"{name}.bias")
        return self.values[f"{name}.weight"] @ x + (0 if bias is None else bias)

    def mlp(self, name, x, squash):
        layer = 0
        while f"{name}.{layer + 2}.weight" in self.values:
            x, layer = squash(self.linear(f"{name}.{layer}", x)), layer + 2
        return self.linear(f"{name}.{layer}", x)

    def lstm(self, name, x, h, c, share=0):
        weight_x, bias_x, weight_h, bias_h = (
            self.values[f"{name}.{part}"] for part in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        )
        i, f, g, o = (weight_x @ x + bias_x + weight_h @ h + bias_h + share).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def gru(self, name, x, h):
        y = self.linear(f"{name}.linear", torch.cat([x, h]))
        y = (y - y.mean()) / torch.sqrt((y - y.mean()).square().mean() + 1e-3)
        y = y * self.values[f"{name}.norm.weight"] + self.values[f"{name}.norm.bias"]
        r, c, u = y.chunk(3)
        u = torch.sigmoid(u - 1)
        return u * torch.tanh(torch.sigmoid(r) * c) + (1 - u) * h

    def read(self, name, h, memory, num_keys):
        """Return what the keys of a hidden state read, side by side, and the weights on all slots."""
        asked, width = self.linear(f"{name}.project", h), len(memory.slots[0])
        keys = asked[: num_keys * width].view(num_keys, width)
        held = memory.slots[: memory.num_written]
        if not held:
            return torch.zeros(num_keys * width), torch.zeros(num_keys, len(memory.slots))
        words, weights = [], torch.zeros(num_keys, len(memory.slots))
        for k, key in enumerate(keys):
            lengths = [torch.sqrt((x @ x + EPSILON) * (key @ key + EPSILON)) for x in held]
            similar = torch.stack([key @ x / length for x, length in zip(held, lengths, strict=True)])
            weight = torch.softmax(F.softplus(asked[num_keys * width + k]) * similar, 0)
            words.append(sum(w * x for w, x in zip(weight, held, strict=True)))
            weights[k, : len(held)] = weight.detach()
        return torch.cat(words), weights


class Slots:
    """A memory of one environment: least-used writes, with a retroactive half where there is a discount."""

    def __init__(self, number, width, discount=None):
        self.slots, self.discount = zeros(*[width] * number), discount
        self.usage, self.trace, self.last, self.num_written = *zeros(number, number), None, 0

    def write(self, word, weights):
        number = len(self.slots)
        self.usage = self.usage + weights.sum(0)
        if self.discount is not None:
            self.trace = self.discount * self.trace
            if self.last is not None:
                self.trace[self.last] += 1 - self.discount
        slot = self.num_written
        if slot >= number:
            others = [n for n in range(number) if n != self.last]
            slot = min(others, key=lambda n: float(self.usage[n]))
            self.usage[slot] = self.usage.mean() + 1
            self.slots[slot], self.trace[slot] = torch.zeros_like(self.slots[slot]), 0
        if self.discount is None:
            self.slots[slot] = word
        else:
            nothing = torch.zeros_like(word)
            self.slots = [x + torch.cat([nothing, self.trace[n] * word]) for n, x in enumerate(self.slots)]
            self.slots[slot] = self.slots[slot] + torch.cat([word, nothing])
        self.last, self.num_written = slot, self.num_written + 1


def seen(unroll, t, b, action, reward):
    """Return e: what is observed, the previous action and the previous reward."""
    card = F.one_hot(unroll.observation["card"][t, b], CARDS).double()
    return torch.cat([card, unroll.observation["place"][t, b], action, reward.view(1)])


def decoded_nats(parts, name, latent, unroll, t, b):
    cards = torch.log_softmax(parts.linear(f"{name}.entries.0.linear", latent), 0)
    places = parts.linear(f"{name}.entries.1.linear", latent) - unroll.observation["place"][t, b]
    return -cards[unroll.observation["card"][t, b]] + 0.5 * places.square().sum()


def surprise(log_probs, unroll, t, b):
    """Return log π of what was done, and the entropy."""
    return log_probs[unroll.action[t, b]], -(log_probs.exp() * log_probs).sum()


def experience(agent):
    """Return a window in which episodes terminate, are truncated and start, and the state it begins with."""
    generator = torch.Generator().manual_seed(3)
    is_first = torch.rand(11, 3, generator=generator) < 0.15
    is_first[0] = True
    unroll, initial, _, _ = act(agent, is_first)
    t, b = unroll.is_end.nonzero()[0]
    unroll.discount[t, b], unroll.next_value[t, b] = 0.9, 1.7  # truncated
    assert unroll.is_end.sum() > 3 and not unroll.is_first.any(0).logical_not().any()
    return unroll, initial


def assert_same(total, expected, parts, exact=1e-10):
    torch.testing.assert_close(total, expected, rtol=exact, atol=exact)
    values = {name: x for name, x in parts.values.items() if x.requires_grad}
    found, wanted = (
        torch.autograd.grad(x, [*values.values()], allow_unused=True, materialize_grads=True) for x in (total, expected)
    )
    for name, x, y in zip(values, found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=exact, atol=exact, msg=lambda text, name=name: f"{name}: {text}")
    assert sum(bool(x.any()) for x in wanted) > 5


def merlin_loss(parts, unroll, config, num_layers=2, slots=5):
    length, batch = unroll.is_first.shape
    size, keys, policy_keys = config.latent_size, config.num_read_keys, config.policy_num_read_keys
    total = 0
    for b in range(batch):
        rows = []
        for t in range(length):
            if unroll.is_first[t, b]:
                h, c = zeros(*[config.hidden_size] * num_layers), zeros(*[config.hidden_size] * num_layers)
                m, policy_m, a = zeros(2 * size * keys, 2 * size * policy_keys, ACTIONS)
                policy_h, policy_c = zeros(config.policy_hidden_size, config.policy_hidden_size)
                memory, r = Slots(slots, 2 * size, config.retroactive_discount), torch.zeros(())
            prior = parts.mlp("predictor.prior_network", torch.cat([*h, m]), torch.tanh)
            first = parts.linear("predictor.posterior_input", seen(unroll, t, b, a, r))
            first = first + parts.linear("predictor.posterior_context", torch.cat([*h, m, prior]))
            posterior = prior + parts.mlp("predictor.posterior_network.1", torch.tanh(first), torch.tanh)
            (mean, log_variance), (prior_mean, prior_log_variance) = posterior.chunk(2), prior.chunk(2)
            z = mean + torch.exp(log_variance / 2) * unroll.extras.noise[t, b]
            policy_x = torch.cat([z.detach(), policy_m])
            policy_h, policy_c = parts.lstm("policy.lstm.cells.0", policy_x, policy_h, policy_c)
            policy_m, _ = parts.read("policy.reader", policy_h, memory, policy_keys)
            logits = parts.mlp("policy.head", torch.cat([z.detach(), policy_h, policy_m]), torch.tanh)
            log_probs = torch.log_softmax(logits, 0)
            value = parts.mlp("predictor.value_head", torch.cat([z, log_probs.detach()]), torch.tanh)[0]
            divergence = prior_log_variance - log_variance - 1 + torch.exp(log_variance - prior_log_variance)
            divergence = divergence + (mean - prior_mean).square() / torch.exp(prior_log_variance)
            loss = decoded_nats(parts, "predictor.decoder", z, unroll, t, b) + config.kl_cost * 0.5 * divergence.sum()
            action_nats = -a @ torch.log_softmax(parts.linear("predictor.action_decoder", z), 0)  # none at a start
            reward_nats = 0.5 * (parts.linear("predictor.reward_decoder", z)[0] - r).square()
            loss = loss + config.action_cost * action_nats + config.reward_cost * reward_nats

            a, r = F.one_hot(unroll.action[t, b], ACTIONS).double(), unroll.reward[t, b]
            advantage = parts.mlp("predictor.advantage_head", torch.cat([z, a]), torch.tanh)[0]
            rows.append((loss, value, advantage, *surprise(log_probs, unroll, t, b)))
            x = torch.cat([z, a, m])
            for layer in range(num_layers):
                h[layer], c[layer] = parts.lstm(f"predictor.lstm.cells.{layer}", x, h[layer], c[layer])
                x = h[layer]
            m, weights = parts.read("predictor.reader", torch.cat(h), memory, keys)
            memory.write(z.detach(), weights)
        for t in reversed(range(length)):
            loss, value, advantage, log_prob, entropy = rows[t]
            ends = t == length - 1 or unroll.is_end[t, b]
            discount, following = unroll.discount[t, b], unroll.next_value[t, b]
            returns = unroll.reward[t, b] + discount * (following if ends else returns)
            error = unroll.reward[t, b] + discount * following - value.detach()
            gae = error + (0 if ends else discount * config.gae_lambda * gae)
            if unroll.is_valid[t, b]:
                estimates = (returns - value).square() + (returns - value.detach() - advantage).square()
                ratio = torch.exp(log_prob - unroll.log_prob[t, b])
                total = total + loss + config.return_cost * 0.5 * estimates
                total = total - gae * ratio - config.entropy_cost * entropy
    return total / unroll.is_valid.sum()


def test_merlin():
    costs = {"kl_cost": 0.25, "action_cost": 0.7, "reward_cost": 1.3, "return_cost": 0.6, "entropy_cost": 0.3}
    agent = make_agent("merlin", retroactive_discount=0.8, **costs)
    unroll, initial = experience(agent)
    unroll = unroll._replace(is_valid=torch.rand(11, 3, generator=torch.Generator().manual_seed(0)) < 0.8)
    parts = Parts(agent)
    assert_same(agent.losses(unroll, initial)[0].total, merlin_loss(parts, unroll, agent.config), parts)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] * ctx.scale, None


def gaussian_kl(mean, std, other_mean, other_std):
    distance = (std.square() + (mean - other_mean).square()) / (2 * other_std.square())
    return (torch.log(other_std / std) + distance - 0.5).sum()


def ftw_loss(parts, unroll, config, kl_weight, slots=5):
    length, batch = unroll.is_first.shape
    size, keys, width = config.latent_size, config.num_read_keys, config.word_size
    total = 0

    def moments(name, x):
        mean, outputs = parts.linear(name, x).chunk(2)
        return mean, 0.1 * F.softplus(outputs) / math.log(2) + 1e-6

    for b in range(batch):
        rows = []
        for t in range(length):
            if unroll.is_first[t, b]:
                slow_h, slow_c, h, c = zeros(*[config.hidden_size] * 4)
                slow_words, words, z, a = zeros(keys * width, keys * width, size, ACTIONS)
                memory, r, row = Slots(slots, width), torch.zeros(()), 0
            e = seen(unroll, t, b, a, r)
            ticks = row % config.tick_steps == 0
            if ticks:
                slow_h, slow_c = parts.lstm("core.slow.cells.0", torch.cat([h, slow_words]), slow_h, slow_c)
                slow_words, weights = parts.read("core.slow_reader", slow_h, memory, keys)
                memory.write(parts.linear("core.slow_writer", torch.cat([slow_h, slow_words])), weights)
                prior = moments("core.prior", torch.cat([slow_h, slow_words]))
            s = _Scaled.apply(torch.cat([slow_h, slow_words, *prior]), config.slow_gradient_scale)
            share = parts.linear("core.slow_to_fast", s)
            h, c = parts.lstm("core.fast.cells.0", torch.cat([e, z, words]), h, c, share)
            words, weights = parts.read("core.fast_reader", h, memory, keys)
            posterior = moments("core.posterior", torch.cat([h, words]))
            z = posterior[0] + posterior[1] * unroll.extras.noise[t, b]
            memory.write(parts.linear("core.fast_writer", torch.cat([h, words])), weights)
            features = torch.cat([e, h, z])
            log_probs = torch.log_softmax(parts.mlp("policy_head", features, torch.relu), 0)
            value = parts.mlp("value_head", features, torch.relu)[0]
            kl = config.kl_cost * gaussian_kl(*posterior, *prior)
            if ticks:
                kl = kl + config.prior_kl_cost * gaussian_kl(*prior, torch.zeros(size), torch.full((size,), 0.1))
            rows.append((value, kl_weight * kl, *surprise(log_probs, unroll, t, b)))
            a, r, row = F.one_hot(unroll.action[t, b], ACTIONS).double(), unroll.reward[t, b], row + 1
        for t in reversed(range(length)):
            value, kl, log_prob, entropy = rows[t]
            ends = t == length - 1 or unroll.is_end[t, b]
            discount, v = unroll.discount[t, b], value.detach()
            next_value = unroll.next_value[t, b] if ends else rows[t + 1][0].detach()
            following = next_value if ends else target
            rho = torch.exp(log_prob.detach() - unroll.log_prob[t, b]).clamp(max=1)
            advantage = rho * (unroll.reward[t, b] + discount * following - v)
            target = v + rho * (unroll.reward[t, b] + discount * next_value - v)
            target = target + discount * rho * (following - next_value)
            total = total - advantage * log_prob - config.entropy_cost * entropy + kl
            total = total + config.return_cost * 0.5 * (target - value).square()
    return total / (length * batch)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_ftw(scale):
    costs = {"kl_cost": 0.5, "prior_kl_cost": 0.25, "reward_prediction_cost": 0.0, "entropy_cost": 0.3}
    agent = make_agent("ftw", slow_gradient_scale=scale, **costs)
    unroll, initial = experience(agent)
    unroll = unroll._replace(log_prob=unroll.log_prob + 0.5 * torch.randn(11, 3))  # another policy's, of some time ago
    agent.return_moments.variance.fill_(0.64)
    parts = Parts(agent)
    total = agent.losses(unroll, initial)[0].total
    assert agent.kl_weight == pytest.approx(0.64, rel=0.3)
    assert_same(total, ftw_loss(parts, unroll, agent.config, float(agent.kl_weight)), parts)


GROUPS, CLASSES, MIX = 2, 3, 0.01


def probabilities(logits):
    return (1 - MIX) * torch.softmax(logits.view(GROUPS, CLASSES), 1) + MIX / CLASSES


def recur(parts, z, a, h):
    return parts.gru("model.gru", F.elu(parts.linear("model.recurrent_input", torch.cat([z, a]))), h)


def outcome_loss(parts, state, reward, discount, config):
    """Return the loss of what a state that was arrived at says of the reward and the discount."""
    expected = parts.mlp("model.reward_head", state, F.elu)[0]
    logit = parts.mlp("model.discount_head", state, F.elu)[0]
    cross = -discount * F.logsigmoid(logit) - (1 - discount) * F.logsigmoid(-logit)
    return config.reward_cost * 0.5 * (expected - reward).square() + config.discount_cost * cross


def model_loss(parts, unroll, config):
    """Return the model's loss, the mean over what is drawn where a row's outcome is imagined, as at episodes' ends."""
    length, batch = unroll.is_first.shape
    total = 0
    for b in range(batch):
        states = []
        for t in range(length):
            if unroll.is_first[t, b]:
                z, h, a = zeros(GROUPS * CLASSES, config.deterministic_size, ACTIONS)
                r = torch.zeros(())
            h = recur(parts, z, a, h)
            prior = probabilities(parts.mlp("model.prior_network", h, F.elu))
            observed = seen(unroll, t, b, zeros(0)[0], r)
            first = parts.linear("model.posterior_input", observed) + parts.linear("model.posterior_context", h)
            posterior = probabilities(parts.linear("model.posterior_output", F.elu(first)))
            noise = unroll.extras.noise[t, b].view(GROUPS, CLASSES)
            one_hots = F.one_hot((posterior.detach().log() + noise).argmax(1), CLASSES).double()
            z = (one_hots + posterior - posterior.detach()).flatten()
            nats = decoded_nats(parts, "model.decoder", F.elu(parts.linear("model.before_decoder", torch.cat([z, h]))),
                                unroll, t, b)  # fmt: skip
            to_prior = (posterior.detach() * (posterior.detach() / prior).log()).sum()
            to_posterior = (posterior * (posterior / prior.detach()).log()).sum()
            balanced = config.kl_balance * to_prior + (1 - config.kl_balance) * to_posterior
            total = total + nats + config.kl_cost * balanced
            states.append((z, h))
            a, r = F.one_hot(unroll.action[t, b], ACTIONS).double(), unroll.reward[t, b]
        for t in range(length):
            outcome = unroll.reward[t, b], unroll.discount[t, b], config
            if t + 1 < length and not unroll.is_first[t + 1, b]:
                total = total + outcome_loss(parts, torch.cat(states[t + 1]), *outcome)
                continue
            z, h = states[t]
            h = recur(parts, z, F.one_hot(unroll.action[t, b], ACTIONS).double(), h)
            prior = probabilities(parts.mlp("model.prior_network", h, F.elu))
            for classes in itertools.product(range(CLASSES), repeat=GROUPS):
                z = torch.eye(CLASSES)[list(classes)].flatten()
                weight = torch.stack([prior[group, c] for group, c in enumerate(classes)]).prod()
                total = total + weight.detach() * outcome_loss(parts, torch.cat([z, h]), *outcome)
    return total / (length * batch)


SIZES = {"latent_groups": GROUPS, "latent_classes": CLASSES, "deterministic_size": 10, "head_size": 8}
COSTS = {"kl_cost": 0.75, "kl_balance": 0.75, "reward_cost": 2.0, "discount_cost": 0.5, "scale_advantages": False}


def test_the_world_model_of_dreamer():
    """Where every row's outcome is seen exactly, and where some are drawn in the mean of draws."""
    agent = make_agent("dreamer", **SIZES, **COSTS)
    unroll, initial = experience(agent)
    activations, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    arguments = (activations.posterior, activations.latent, unroll, agent.action_codes(unroll, initial)[0])
    parts = Parts(agent)
    with torch.no_grad():
        draws = torch.stack([agent.model.loss(*arguments)[0] for _ in range(150)])
        assert abs(draws.mean() - model_loss(parts, unroll, agent.config)) < 5 * draws.std() / len(draws) ** 0.5
    agent = make_agent("dreamer", **SIZES, **COSTS | {"reward_cost": 0.0, "discount_cost": 0.0})
    activations, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    arguments = (activations.posterior, activations.latent, *arguments[2:])
    parts = Parts(agent)
    assert_same(agent.model.loss(*arguments)[0], model_loss(parts, unroll, agent.config), parts)


def test_the_behaviour_of_dreamer():
    agent = make_agent("dreamer", **SIZES, **COSTS, imagination_length=4, gae_lambda=0.9, entropy_cost=0.3)
    parts, starts = Parts(agent), torch.randn(6, GROUPS * CLASSES + 10)
    dream = agent.dream(starts, torch.Generator().manual_seed(5))
    total = 0
    for i in range(len(starts)):
        states, weight = dream.features[:, i], 1.0
        for k, action in enumerate(dream.actions[:, i]):  # one state follows from another
            z, h = states[k].split([GROUPS * CLASSES, 10])
            torch.testing.assert_close(
                states[k + 1, GROUPS * CLASSES :], recur(parts, z, F.one_hot(action, ACTIONS).double(), h)
            )
        rewards = [parts.mlp("model.reward_head", state, F.elu)[0].detach() for state in states[1:]]
        discounts = [torch.sigmoid(parts.mlp("model.discount_head", state, F.elu)[0]).detach() for state in states[1:]]
        targets = [parts.mlp("value_target", state, F.elu)[0].detach() for state in states]
        returns = [targets[-1]]
        for k in reversed(range(4)):
            returns.insert(0, rewards[k] + discounts[k] * (0.1 * targets[k + 1] + 0.9 * returns[0]))
        for k in range(4):
            log_probs = torch.log_softmax(parts.mlp("policy", states[k], F.elu), 0)
            value = parts.mlp("value_head", states[k], F.elu)[0]
            entropy = -(log_probs.exp() * log_probs).sum()
            loss = 0.5 * (value - returns[k]).square() - 0.3 * entropy
            loss = loss - log_probs[dream.actions[k, i]] * (returns[k] - targets[k])
            total, weight = total + weight * loss, weight * discounts[k]
    assert_same(agent.behaviour_loss(dream).total, total / (4 * len(starts)), parts)
