"""MERLIN's recurrence over a window, differentiated by hand.

Inside the loop stands only what depends on the step before; encodings, decoders, heads and losses are for the whole
window at once. Automatic differentiation would add up each weight's gradient step by step and keep the memory of every
step. Here the loop back carries gradients of states alone, each weight's gradient is one product over the window, and
the memory is read as `merlin.memory.window` describes, never copied.

What it computes is what `Predictor.perceive`, the policy's LSTM and reads, and `Predictor.advance` compute, in turn.

Axes: T time, B batch, Z latent, Y = 2Z, H units of a layer, L layers, P units of the policy's LSTM, K read keys of the
predictor, Q of the policy, W word, G what a matrix puts out, C and I what it takes, R and S a reader's output.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from merlin.memory import EPSILON, attend
from merlin.memory.window import MemoryWindow
from merlin.networks.lstm import CellTape


class Weights(NamedTuple):
    """All that the recurrence multiplies by. What reads the same input is one matrix.

    `context` maps [h, m] to what of it enters the first layer of the prior's network, that of the posterior's and the
    first layer of the LSTM, one above another.
    """

    context: Float[Tensor, "G C"]
    context_bias: Float[Tensor, "G"]
    prior_second: Float[Tensor, "Y Y"]
    prior_second_bias: Float[Tensor, "Y"]
    prior_last: Float[Tensor, "Y Y"]
    prior_last_bias: Float[Tensor, "Y"]
    posterior_prior: Float[Tensor, "Y Y"]
    posterior_second: Float[Tensor, "Y Y"]
    posterior_second_bias: Float[Tensor, "Y"]
    posterior_last: Float[Tensor, "Y Y"]
    posterior_last_bias: Float[Tensor, "Y"]
    latent: Float[Tensor, "H4 Z"]
    reader: Float[Tensor, "R LH"]
    reader_bias: Float[Tensor, "R"]
    policy: Float[Tensor, "P4 I"]
    policy_bias: Float[Tensor, "P4"]
    policy_reader: Float[Tensor, "S P"]
    policy_reader_bias: Float[Tensor, "S"]


class Carried(NamedTuple):
    """What goes from step to step, besides the memory: the predictor's h, c, m and the policy's."""

    hidden: Float[Tensor, "B LH"]
    cell: Float[Tensor, "B LH"]
    words: Float[Tensor, "B KW"]
    policy_hidden: Float[Tensor, "B P"]
    policy_cell: Float[Tensor, "B P"]
    policy_words: Float[Tensor, "B QW"]


class Keys(NamedTuple):
    """How many keys read, and how many slots each of them reads at most."""

    predictor: int
    policy: int
    top_k: int | None


class Recurred(NamedTuple):
    """What the recurrence finds at each step."""

    prior: Float[Tensor, "T B Y"]
    posterior: Float[Tensor, "T B Y"]
    latent: Float[Tensor, "T B Z"]
    policy_hidden: Float[Tensor, "T B P"]
    policy_words: Float[Tensor, "T B QW"]


class _Found(NamedTuple):
    """What K keys found: in all E entries, or in C that each chose for itself."""

    keys: Float[Tensor, "B K W"]  # of unit length
    scale: Float[Tensor, "B K 1"]  # one over the lengths that they had
    strengths: Float[Tensor, "B K 1"]
    similarity: Float[Tensor, "B K #E"]
    weights: Float[Tensor, "B K #E"]
    chosen: Int[Tensor, "B K C"] | None = None
    inverse_norms: Float[Tensor, "B K C"] | None = None  # of those chosen


class Tape:
    """The recurrence, step by step, and what its backward pass must know of each step.

        for t in range(T):
            latent = tape.perceive(t, code, noise, is_first)
            policy_hidden, policy_words = tape.decide(t)
            slot = tape.advance(t, action_gates)

    The agent acts on a tape and then learns from it, so that nothing is computed twice; `recur` replays experience on
    a new one. Until `advance`, a step may be perceived again, and one more than T may be.

    Args:
        weights: Without gradients, and good until a parameter changes.
        layers: Of each further LSTM layer, the weights of [output of the layer below, own output before], and the bias.
        carried: What the first step follows.
    """

    def __init__(
        self,
        weights: Weights,
        layers: list[tuple[Tensor, Tensor]],
        carried: Carried,
        memory: MemoryWindow,
        keys: Keys,
        length: int,
    ) -> None:
        self.weights, self.layers, self.carried, self.memory, self.keys = weights, layers, carried, memory, keys
        self.length, batch_size = length, carried.hidden.shape[0]
        self.double = weights.prior_last.shape[0]
        self.latent_size, self.size = self.double // 2, weights.latent.shape[0] // 4
        self.word_size = memory.entries.shape[2]
        like = carried.hidden

        def rows(*widths: int) -> list[Tensor]:
            return [like.new_empty(length + 1, batch_size, width) for width in widths]

        z, double = self.latent_size, self.double
        self.context, self.policy_input = rows(weights.context.shape[1], weights.policy.shape[1])
        self.prior_first, self.prior_second, self.post_first, self.post_second = rows(*[double] * 4)
        self.prior, self.posterior, self.latent, self.deviation, self.noise = rows(double, double, z, z, z)
        self.outputs, self.policy_hidden, self.policy_words = rows(
            *(x.shape[1] for x in (carried.hidden, carried.policy_hidden, carried.policy_words))
        )
        self.layer_inputs = rows(*[2 * self.size] * len(layers))
        self.cells = [CellTape(like, length + 1, batch_size, self.size) for _ in range(1 + len(layers))]
        self.policy_cells = CellTape(like, length + 1, batch_size, self.policy_hidden.shape[2])
        self.reads: list[_Found | None] = [None] * (length + 1)
        self.is_first: list[Tensor | None] = [None] * (length + 1)

    def perceive(
        self, t: int, code: Float[Tensor, "B Y"], noise: Float[Tensor, "B Z"], is_first: Bool[Tensor, "B"]
    ) -> Float[Tensor, "B Z"]:
        """Return the latent of a step, before which the state of rows that start an episode is zeroed.

        prior     = prior_network(h, m)
        posterior = prior + posterior_network(e, h, m, prior);   z ~ posterior
        """
        w, double, carried, z = self.weights, self.double, self.carried, self.latent_size
        context, policy_input = self.context[t], self.policy_input[t]
        torch.cat([carried.hidden, carried.words], -1, out=context)
        policy_input[:, z:] = torch.cat([carried.policy_words, carried.policy_hidden], -1)
        cell, policy_cell = carried.cell, carried.policy_cell
        if is_first.device.type != "cpu" or is_first.any():
            first = is_first.unsqueeze(-1)
            context.masked_fill_(first, 0)
            policy_input[:, z:].masked_fill_(first, 0)
            cell, policy_cell = cell.masked_fill(first, 0), policy_cell.masked_fill(first, 0)
            self.is_first[t] = first
        else:
            self.is_first[t] = None
        self.memory.enter(t, is_first)
        self.noise[t] = noise

        gates = torch.addmm(w.context_bias, context, w.context.T)
        torch.tanh(gates[:, :double], out=self.prior_first[t])
        prior_second = torch.addmm(w.prior_second_bias, self.prior_first[t], w.prior_second.T)
        torch.tanh(prior_second, out=self.prior_second[t])
        prior = torch.addmm(w.prior_last_bias, self.prior_second[t], w.prior_last.T, out=self.prior[t])
        post_first = torch.addmm(gates[:, double : 2 * double] + code, prior, w.posterior_prior.T)
        torch.tanh(post_first, out=self.post_first[t])
        post_second = torch.addmm(w.posterior_second_bias, self.post_first[t], w.posterior_second.T)
        torch.tanh(post_second, out=self.post_second[t])
        posterior = self.posterior[t]
        torch.addmm(prior + w.posterior_last_bias, self.post_second[t], w.posterior_last.T, out=posterior)
        torch.exp(0.5 * posterior[:, z:], out=self.deviation[t])
        torch.addcmul(posterior[:, :z], self.deviation[t], noise, out=self.latent[t])
        policy_input[:, :z] = self.latent[t]
        self._entered = cell, policy_cell, gates[:, 2 * double :]
        return self.latent[t]

    def decide(self, t: int) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B QW"]]:
        """Return the policy's output and what it reads, from the memory before this step's write.

        h~, c~ = policy_lstm([z, m~]);   m~ = read(M, key~(h~))
        """
        w = self.weights
        gates = torch.addmm(w.policy_bias, self.policy_input[t], w.policy.T)
        self._policy_cell = self.policy_cells.forward(t, gates, self._entered[1], self.policy_hidden[t])
        raw = torch.addmm(w.policy_reader_bias, self.policy_hidden[t], w.policy_reader.T)
        self._policy_read = self._read(t, raw, self.keys.policy)
        self.policy_words[t] = self.memory.mix(self._policy_read.weights, t, self._policy_read.chosen).flatten(1)
        return self.policy_hidden[t], self.policy_words[t]

    def advance(self, t: int, action_gates: Float[Tensor, "B G"], slot: Tensor | None = None) -> Int[Tensor, "B"]:
        """Go on, the action being known, and return the slot written.

        h, c = lstm([z, a, m]);   m, w = read(M, keys(h));   M = write(M, z, w)

        Args:
            action_gates: What of the action enters the first layer of the LSTM, with its bias.
            slot: Where to write, as when experience is replayed; usage says unless given.
        """
        w, size = self.weights, self.size
        cell, _, gates = self._entered
        total = torch.addmm(gates + action_gates, self.latent[t], w.latent.T)
        cells = []
        for index, tape in enumerate(self.cells):
            part = slice(index * size, (index + 1) * size)
            if index:
                layer_input = self.layer_inputs[index - 1][t]
                below = self.outputs[t, :, part.start - size : part.start]
                torch.cat([below, self.context[t, :, part]], -1, out=layer_input)
                weight, bias = self.layers[index - 1]
                total = torch.addmm(bias, layer_input, weight.T)
            cells.append(tape.forward(t, total, cell[:, part], self.outputs[t, :, part]))
        hidden = self.outputs[t]
        read = self._read(t, torch.addmm(w.reader_bias, hidden, w.reader.T), self.keys.predictor)
        words = self.memory.mix(read.weights, t, read.chosen).flatten(1)
        both = zip(self._policy_read, read, strict=True)
        self.reads[t] = _Found(*(None if x is None else torch.cat([x, y], 1) for x, y in both))
        slot = self.memory.append(t, self.latent[t], read.weights, slot, read.chosen)
        cell = torch.cat(cells, -1) if len(cells) > 1 else cells[0]
        self.carried = Carried(hidden, cell, words, self.policy_hidden[t], self._policy_cell, self.policy_words[t])
        return slot

    def _read(self, t: int, raw: Float[Tensor, "B R"], count: int) -> _Found:
        """Return what the keys of a reader's raw output find."""
        view, top_k = self.memory.views[t], self.keys.top_k
        readable, inverse_norms = view.readable.unsqueeze(1), view.inverse_norms.unsqueeze(1)
        keys, strengths = raw.split([count * self.word_size, count], -1)
        keys, strengths = keys.unflatten(-1, (count, self.word_size)), F.softplus(strengths).unsqueeze(-1)
        scale = torch.rsqrt(keys.square().sum(-1, keepdim=True) + EPSILON)
        keys = keys * scale
        similarity = self.memory.dots(keys, t).mul_(inverse_norms)
        if top_k is not None and top_k < similarity.shape[2]:
            chosen = similarity.masked_fill(~readable, -torch.inf).topk(top_k, sorted=False).indices
            similarity = similarity.gather(2, chosen)
            readable, inverse_norms = (x.expand(-1, count, -1).gather(2, chosen) for x in (readable, inverse_norms))
            weights = attend(strengths * similarity, readable)
            return _Found(keys, scale, strengths, similarity, weights, chosen, inverse_norms)
        return _Found(keys, scale, strengths, similarity, attend(strengths * similarity, readable))

    def read_backward(self, t: int, *grad_words: Tensor) -> list[Tensor]:
        """Return the gradients of the readers' raw outputs, the policy's first."""
        found, self.reads[t] = self.reads[t], None
        assert found is not None
        keys, scale, strengths, similarity, weights, chosen, inverse_norms = found
        if inverse_norms is None:
            inverse_norms = self.memory.views[t].inverse_norms.unsqueeze(1)
        counts = (self.keys.policy, self.keys.predictor)
        grad_words = torch.cat(grad_words, -1).unflatten(-1, (-1, self.word_size))
        grad_weights = self.memory.dots(grad_words, t, chosen).mul_(weights)
        grad_logits = torch.addcmul(grad_weights, weights, grad_weights.sum(-1, keepdim=True), value=-1)
        grad_strengths = (grad_logits * similarity).sum(-1) * -torch.expm1(-strengths.squeeze(-1))
        grad_scores = grad_logits.mul_(strengths).mul_(inverse_norms)
        grad_keys = self.memory.mix(grad_scores, t, chosen)
        along = (keys * grad_keys).sum(-1, keepdim=True)
        grad_keys = scale * torch.addcmul(grad_keys, keys, along, value=-1)
        parts = zip(grad_keys.split(counts, 1), grad_strengths.split(counts, -1), strict=True)
        return [torch.cat([key.flatten(1), strength], -1) for key, strength in parts]


def recur(
    tape: Tape,
    codes: Float[Tensor, "T B Y"],
    action_gates: Float[Tensor, "T B G"],
    carried: Carried,
    weights: Weights,
    layers: list[tuple[Tensor, Tensor]],
    policy_gradient_to_latent: bool = False,
) -> Recurred:
    """Return what a full tape holds, with gradients to what it was made from. A tape can be learnt from once."""
    assert len(tape.memory.slots) == tape.length, "a tape is learnt from when all of its steps were taken"
    flat = [x for layer in layers for x in layer]
    return Recurred(*_Recurrence.apply(tape, policy_gradient_to_latent, codes, action_gates, *carried, *weights, *flat))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tape, policy_gradient_to_latent, codes, action_gates, *tensors):
        ctx.tape, ctx.policy_gradient_to_latent = tape, policy_gradient_to_latent
        ctx.save_for_backward(*tensors)
        found = (tape.prior, tape.posterior, tape.latent, tape.policy_hidden, tape.policy_words)
        return tuple(x[: tape.length].clone() for x in found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_prior, grad_posterior, grad_latent, grad_policy_hidden, grad_policy_words):
        tape: Tape = ctx.tape
        length, double, z, size = tape.length, tape.double, tape.latent_size, tape.size
        assert tape.reads[0] is not None, "a tape can be learnt from once"
        carried, w, layers = _unpack(ctx.saved_tensors)
        batch_size, policy_width = carried.hidden.shape[0], carried.policy_words.shape[1]
        inner = (tape.prior_first, tape.prior_second, tape.post_first, tape.post_second)
        slopes = [1 - x.square() for x in inner]
        half_spread = 0.5 * tape.deviation * tape.noise
        skip = 0 if ctx.policy_gradient_to_latent else z
        recurrent = w.policy[:, skip:]

        # Gradients of what each matrix puts out, at every step.
        def rows(*matrices: Tensor) -> list[Tensor]:
            return [grad_prior.new_empty(length, batch_size, x.shape[0]) for x in matrices]

        of_context, of_policy = rows(w.context, w.policy)
        of_prior_second, of_prior, of_post_second, of_posterior = rows(*[w.prior_last] * 4)
        of_raw, of_policy_raw = rows(w.reader, w.policy_reader)
        of_layers = rows(*(weight for weight, _ in layers))
        of_prior_first, of_code = of_context[..., :double], of_context[..., double : 2 * double]
        of_gates = [of_context[..., 2 * double :], *of_layers]
        hidden, cell, words, policy_hidden, policy_cell, policy_words = map(torch.zeros_like, carried)
        for t in range(length - 1, -1, -1):
            tape.memory.undo(t)
            of_policy_raw[t], of_raw[t] = tape.read_backward(t, grad_policy_words[t] + policy_words, words)

            policy_hidden = torch.addmm(policy_hidden + grad_policy_hidden[t], of_policy_raw[t], w.policy_reader)
            policy_cell = tape.policy_cells.backward(t, policy_hidden, policy_cell, of_policy[t])
            policy_back = of_policy[t] @ recurrent

            hidden = torch.addmm(hidden, of_raw[t], w.reader)
            cells: list[Tensor] = []
            remembered: list[Tensor] = []
            below: Tensor | float = 0.0
            for index in range(len(layers), -1, -1):
                part = slice(index * size, (index + 1) * size)
                cells.append(tape.cells[index].backward(t, hidden[:, part] + below, cell[:, part], of_gates[index][t]))
                if index:
                    below, before = (of_layers[index - 1][t] @ layers[index - 1][0]).split(size, -1)
                    remembered.append(before)
            cell = torch.cat(cells[::-1], -1)

            latent = torch.addmm(grad_latent[t], of_gates[0][t], w.latent)
            if skip == 0:
                latent = latent + policy_back[:, :z]
            of_posterior[t] = grad_posterior[t]
            of_posterior[t, :, :z] += latent
            of_posterior[t, :, z:].addcmul_(latent, half_spread[t])
            torch.mul(of_posterior[t] @ w.posterior_last, slopes[3][t], out=of_post_second[t])
            torch.mul(of_post_second[t] @ w.posterior_second, slopes[2][t], out=of_code[t])
            torch.addmm(grad_prior[t] + of_posterior[t], of_code[t], w.posterior_prior, out=of_prior[t])
            torch.mul(of_prior[t] @ w.prior_last, slopes[1][t], out=of_prior_second[t])
            torch.mul(of_prior_second[t] @ w.prior_second, slopes[0][t], out=of_prior_first[t])

            back = of_context[t] @ w.context
            if remembered:
                back[:, size : hidden.shape[1]] += torch.cat(remembered[::-1], -1)
            policy_back = policy_back[:, z - skip :]
            if (first := tape.is_first[t]) is not None:
                back.masked_fill_(first, 0)
                policy_back = policy_back.masked_fill(first, 0)
                cell, policy_cell = cell.masked_fill(first, 0), policy_cell.masked_fill(first, 0)
            hidden, words = back.split([hidden.shape[1], words.shape[1]], -1)
            policy_words, policy_hidden = policy_back.split([policy_width, policy_hidden.shape[1]], -1)

        def weight(outputs: Tensor, inputs: Tensor) -> Tensor:
            return outputs.flatten(0, 1).T @ inputs[:length].flatten(0, 1)

        def both(outputs: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return weight(outputs, inputs), outputs.sum((0, 1))

        gradients = Weights(
            *both(of_context, tape.context),
            *both(of_prior_second, tape.prior_first),
            *both(of_prior, tape.prior_second),
            weight(of_code, tape.prior),
            *both(of_post_second, tape.post_first),
            *both(of_posterior, tape.post_second),
            weight(of_gates[0], tape.latent),
            *both(of_raw, tape.outputs),
            *both(of_policy, tape.policy_input),
            *both(of_policy_raw, tape.policy_hidden),
        )
        of_all_layers = [x for pair in zip(of_layers, tape.layer_inputs, strict=True) for x in both(*pair)]
        carry = Carried(hidden, cell, words, policy_hidden, policy_cell, policy_words)
        return None, None, of_code, of_gates[0], *carry, *gradients, *of_all_layers


def _unpack(tensors: Sequence[Tensor]) -> tuple[Carried, Weights, list[tuple[Tensor, Tensor]]]:
    carried, rest = tensors[: len(Carried._fields)], tensors[len(Carried._fields) :]
    weights, flat = rest[: len(Weights._fields)], rest[len(Weights._fields) :]
    return Carried(*carried), Weights(*weights), list(zip(flat[::2], flat[1::2], strict=True))
