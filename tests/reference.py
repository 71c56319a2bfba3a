"""Slow second opinions, written from the equations with NumPy loops in float64; nothing here comes from the package."""

import math

import numpy as np

EPSILON = 1e-6  # of the cosine, inside the root, as the package documents it


def read(memory, keys, strengths, readable=None):
    """Read one memory [N, W] with keys [K, W]: weights [K, N] and words [K, W]."""
    slots, width = memory.shape
    weights = np.zeros((len(keys), slots))
    for k, key in enumerate(keys):
        scores = []
        for n in range(slots):
            dot = sum(key[w] * memory[n, w] for w in range(width))
            lengths = math.sqrt(sum(x * x for x in key) + EPSILON) * math.sqrt(sum(x * x for x in memory[n]) + EPSILON)
            scores.append(strengths[k] * dot / lengths)
        allowed = [n for n in range(slots) if readable is None or readable[n]]
        total = sum(math.exp(scores[n]) for n in allowed)
        for n in allowed:
            weights[k, n] = math.exp(scores[n]) / total
    return weights @ memory, weights


class Memory:
    """The memory of one environment, written to word by word."""

    def __init__(self, slots, width, discount):
        self.memory = np.zeros((slots, 2 * width))
        self.usage = np.zeros(slots)
        self.retroactive = np.zeros(slots)
        self.last_written = None
        self.count, self.width, self.discount = 0, width, discount

    def write(self, word, read_weights):
        slots = len(self.usage)
        self.usage = self.usage + read_weights.sum(0)
        self.retroactive = self.discount * self.retroactive
        if self.last_written is not None:
            self.retroactive[self.last_written] += 1 - self.discount
        if self.count < slots:
            slot = self.count
        else:
            others = [n for n in range(slots) if n != self.last_written]
            slot = min(others, key=lambda n: self.usage[n])
            self.memory[slot] = 0
            self.retroactive[slot] = 0
            self.usage[slot] = self.usage.mean() + 1
        for n in range(slots):
            self.memory[n, self.width :] += self.retroactive[n] * word
        self.memory[slot, : self.width] += word
        self.last_written = slot
        self.count += 1

    @property
    def readable(self):
        return np.arange(len(self.usage)) < self.count


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def linear(weights, name, x):
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0)


def mlp(weights, name, x):
    """Tanh layers and a linear one, as an nn.Sequential numbers them."""
    index = 0
    while f"{name}.{index + 2}.weight" in weights:
        x = np.tanh(linear(weights, f"{name}.{index}", x))
        index += 2
    return linear(weights, f"{name}.{index}", x)


def lstm(weights, name, x, hidden, cell):
    """One step of stacked layers; `hidden` and `cell` are lists, one entry a layer."""
    hidden, cell = list(hidden), list(cell)
    for layer in range(len(hidden)):
        part = f"{name}.cells.{layer}"
        gates = weights[f"{part}.weight_ih"] @ x + weights[f"{part}.bias_ih"]
        gates = gates + weights[f"{part}.weight_hh"] @ hidden[layer] + weights[f"{part}.bias_hh"]
        i, f, g, o = np.split(gates, 4)
        cell[layer] = sigmoid(f) * cell[layer] + sigmoid(i) * np.tanh(g)
        x = hidden[layer] = sigmoid(o) * np.tanh(cell[layer])
    return hidden, cell


class Merlin:
    """One environment's MERLIN, step by step as section by section of the paper's Algorithm 1."""

    def __init__(self, weights, *, latent, hidden, layers, policy_hidden, slots, keys, policy_keys, discount, actions):
        self.weights, self.keys_count, self.policy_keys, self.actions = weights, keys, policy_keys, actions
        self.latent, self.word = latent, 2 * latent
        self.h, self.c = [np.zeros(hidden)] * layers, [np.zeros(hidden)] * layers
        self.m = np.zeros(keys * self.word)
        self.policy_h, self.policy_c = [np.zeros(policy_hidden)], [np.zeros(policy_hidden)]
        self.policy_m = np.zeros(policy_keys * self.word)
        self.memory = Memory(slots, latent, discount)
        self.last_action = np.zeros(actions)

    def step(self, encoding, reward, noise, action):
        """Advance by one step in which `action` is taken; `encoding` is that of the observation."""
        weights, z_size = self.weights, self.latent
        context = np.concatenate([*self.h, self.m])
        prior = mlp(weights, "prior_network", context)
        e = np.concatenate([encoding, self.last_action, [reward]])
        first = linear(weights, "posterior_input", e)
        first = first + linear(weights, "posterior_context", np.concatenate([context, prior]))
        posterior = prior + mlp(weights, "posterior_network.1", np.tanh(first))
        z = posterior[:z_size] + np.exp(posterior[z_size:] / 2) * noise

        x = np.concatenate([z, self.policy_m])
        self.policy_h, self.policy_c = lstm(weights, "policy.lstm", x, self.policy_h, self.policy_c)
        self.policy_m, policy_weights = self._read("policy.reader", self.policy_h[0], self.policy_keys)
        logits = mlp(weights, "policy.head", np.concatenate([z, self.policy_h[0], self.policy_m]))
        log_probs = logits - np.log(np.exp(logits).sum())
        value = mlp(weights, "value_head", np.concatenate([z, log_probs]))[0]

        onehot = np.eye(self.actions)[action]
        self.h, self.c = lstm(weights, "lstm", np.concatenate([z, onehot, self.m]), self.h, self.c)
        self.m, read_weights = self._read("reader", np.concatenate(self.h), self.keys_count)
        self.memory.write(z, read_weights)
        self.last_action = onehot
        return {"latent": z, "log_prob": log_probs[action], "value": value, "prior": prior, "posterior": posterior,
                "policy_hidden": self.policy_h[0], "policy_words": self.policy_m,
                "read_weights": read_weights, "policy_read_weights": policy_weights}  # fmt: skip

    def _read(self, name, hidden, count):
        projected = linear(self.weights, f"{name}.project", hidden)
        keys = projected[: count * self.word].reshape(count, self.word)
        strengths = softplus(projected[count * self.word :])
        words, weights = read(self.memory.memory, keys, strengths, self.memory.readable)
        return words.reshape(-1), weights
