"""MERLIN's recurrence over a window, differentiated by hand.

Inside the loop stands only what depends on the step before; encodings, decoders, heads and losses are for the whole
window at once. Automatic differentiation would add up each weight's gradient step by step and keep the memory of every
step; here the loop back carries gradients of states alone, each weight's gradient is one product over the window, and
the memory is read as `merlin.memory_window` describes, never copied.

What it computes is what `Predictor.perceive`, the policy's LSTM and reads, and `Predictor.advance` compute step by step.

Axes: T time, B batch, Z latent, H units of a layer, L layers, P units of the policy's LSTM, K read keys, W word.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from merlin.memory import EPSILON, attend
from merlin.memory_window import MemoryWindow
from merlin.networks.recurrent import CellTape


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


class Given(NamedTuple):
    """What a window is told and has no gradient to."""

    memory: MemoryWindow
    is_first: Bool[Tensor, "T B"]
    noise: Float[Tensor, "T B Z"]
    num_read_keys: int
    num_policy_keys: int
    top_k: int | None
    policy_gradient_to_latent: bool


class Recurred(NamedTuple):
    """What the recurrence finds at each step, with gradients, and what it ends with, without."""

    prior: Float[Tensor, "T B Y"]
    posterior: Float[Tensor, "T B Y"]
    latent: Float[Tensor, "T B Z"]
    policy_hidden: Float[Tensor, "T B P"]
    policy_words: Float[Tensor, "T B QW"]
    carried: Carried
    read_weights: list[Tensor]


def recur(
    given: Given,
    codes: Float[Tensor, "T B Y"],
    action_gates: Float[Tensor, "T B H4"],
    carried: Carried,
    weights: Weights,
    layers: list[tuple[Tensor, Tensor]],
) -> Recurred:
    """Return a window of MERLIN's recurrence.

    Args:
        codes: What of the observations enters the posterior's network.
        action_gates: What of the actions enters the first layer of the LSTM, with its bias.
        layers: Of each further LSTM layer, the weights of [output of the layer below, own output before], and bias.
    """
    flat = [x for layer in layers for x in layer]
    ends: dict[str, Any] = {}
    outputs = _Recurrence.apply(given, ends, codes, action_gates, *carried, *weights, *flat)
    return Recurred(*outputs, ends["carried"], ends["read_weights"])


class _Reads:
    """Reads with all keys of a step at once, the policy's first, and the way back through them."""

    def __init__(self, given: Given, word_size: int) -> None:
        self.memory, self.top_k, self.word_size = given.memory, given.top_k, word_size
        self.counts = (given.num_policy_keys, given.num_read_keys)
        self.steps: list[tuple[Tensor, ...]] = []

    def forward(self, t: int, *raws: Tensor) -> tuple[Tensor, ...]:
        """Return the words that each reader's raw keys and strengths find, flat."""
        sizes = [count * self.word_size for count in self.counts]
        keys = torch.cat([x[:, :size] for x, size in zip(raws, sizes, strict=True)], -1)
        keys = keys.unflatten(-1, (-1, self.word_size))
        strengths = F.softplus(torch.cat([x[:, size:] for x, size in zip(raws, sizes, strict=True)], -1)).unsqueeze(-1)
        scale = torch.rsqrt(keys.square().sum(-1, keepdim=True) + EPSILON)
        keys = keys * scale
        self.memory.prepare(t)
        similarity = self.memory.dots(keys, t).mul_(self.memory.inverse_norms[t].unsqueeze(1))
        weights = attend(strengths * similarity, self.memory.readable[t], self.top_k)
        self.steps.append((keys, scale, strengths, similarity, weights))
        return self._parts(self.memory.mix(weights, t))

    def backward(self, t: int, *grad_words: Tensor) -> list[Tensor]:
        """Return the gradients of the raw keys and strengths."""
        keys, scale, strengths, similarity, weights = self.steps.pop()
        grad_words = torch.cat(grad_words, -1).unflatten(-1, (-1, self.word_size))
        grad_weights = self.memory.dots(grad_words, t).mul_(weights)
        grad_logits = torch.addcmul(grad_weights, weights, grad_weights.sum(-1, keepdim=True), value=-1)
        grad_strengths = (grad_logits * similarity).sum(-1) * -torch.expm1(-strengths.squeeze(-1))
        grad_scores = grad_logits.mul_(strengths).mul_(self.memory.inverse_norms[t].unsqueeze(1))
        grad_keys = self.memory.mix(grad_scores, t)
        along = (keys * grad_keys).sum(-1, keepdim=True)
        grad_keys = scale * torch.addcmul(grad_keys, keys, along, value=-1)
        parts = zip(self._parts(grad_keys), grad_strengths.split(self.counts, -1), strict=True)
        return [torch.cat(part, -1) for part in parts]

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.flatten(1) for part in x.split(self.counts, 1))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, given, ends, codes, action_gates, *tensors):
        carried, w, layers = _unpack(tensors)
        length, batch_size, double = codes.shape
        z, size = double // 2, w.latent.shape[0] // 4
        word_size = given.memory.state.memory.shape[2]

        def rows(*widths: int) -> list[Tensor]:
            return [codes.new_empty(length, batch_size, width) for width in widths]

        context, policy_input = rows(w.context.shape[1], w.policy.shape[1])
        prior_first, prior_second, post_first, post_second = rows(*[double] * 4)
        prior, posterior, latents, deviation = rows(double, double, z, z)
        outputs, policy_outputs, policy_found = rows(*(carried[i].shape[1] for i in (0, 3, 5)))
        layer_inputs = rows(*[2 * size] * len(layers))
        tapes = [CellTape(codes, length, batch_size, size) for _ in range(1 + len(layers))]
        policy_tape = CellTape(codes, length, batch_size, policy_outputs.shape[2])
        reads = _Reads(given, word_size)
        first = given.is_first.unsqueeze(-1)
        resets = given.is_first.any(1).tolist() if first.device.type == "cpu" else [True] * length

        hidden, cell, words, policy_hidden, policy_cell, policy_words = carried
        for t in range(length):
            torch.cat([hidden, words], -1, out=context[t])
            policy_input[t, :, z:] = torch.cat([policy_words, policy_hidden], -1)
            if resets[t]:
                context[t].masked_fill_(first[t], 0)
                policy_input[t, :, z:].masked_fill_(first[t], 0)
                cell, policy_cell = cell.masked_fill(first[t], 0), policy_cell.masked_fill(first[t], 0)

            gates = torch.addmm(w.context_bias, context[t], w.context.T)
            torch.tanh(gates[:, :double], out=prior_first[t])
            torch.tanh(torch.addmm(w.prior_second_bias, prior_first[t], w.prior_second.T), out=prior_second[t])
            torch.addmm(w.prior_last_bias, prior_second[t], w.prior_last.T, out=prior[t])
            code = gates[:, double : 2 * double] + codes[t]
            torch.tanh(torch.addmm(code, prior[t], w.posterior_prior.T), out=post_first[t])
            torch.tanh(torch.addmm(w.posterior_second_bias, post_first[t], w.posterior_second.T), out=post_second[t])
            torch.addmm(prior[t] + w.posterior_last_bias, post_second[t], w.posterior_last.T, out=posterior[t])
            torch.exp(0.5 * posterior[t, :, z:], out=deviation[t])
            latent = torch.addcmul(posterior[t, :, :z], deviation[t], given.noise[t], out=latents[t])

            policy_input[t, :, :z] = latent
            policy_gates = torch.addmm(w.policy_bias, policy_input[t], w.policy.T)
            policy_cell = policy_tape.forward(t, policy_gates, policy_cell, policy_outputs[t])
            policy_hidden = policy_outputs[t]

            total = torch.addmm(gates[:, 2 * double :] + action_gates[t], latent, w.latent.T)
            cells = []
            for index, tape in enumerate(tapes):
                part = slice(index * size, (index + 1) * size)
                if index:
                    below = outputs[t, :, part.start - size : part.start]
                    torch.cat([below, context[t, :, part]], -1, out=layer_inputs[index - 1][t])
                    weight, bias = layers[index - 1]
                    total = torch.addmm(bias, layer_inputs[index - 1][t], weight.T)
                cells.append(tape.forward(t, total, cell[:, part], outputs[t, :, part]))
            hidden, cell = outputs[t], torch.cat(cells, -1)

            policy_raw = torch.addmm(w.policy_reader_bias, policy_hidden, w.policy_reader.T)
            raw = torch.addmm(w.reader_bias, hidden, w.reader.T)
            policy_words, words = reads.forward(t, policy_raw, raw)
            policy_found[t] = policy_words
            given.memory.append(t, latent)

        ends["carried"] = Carried(hidden, cell, words, policy_hidden, policy_cell, policy_words)
        ends["read_weights"] = [step[-1][:, given.num_policy_keys :] for step in reads.steps]
        ctx.given, ctx.reads, ctx.tapes, ctx.policy_tape, ctx.resets = given, reads, tapes, policy_tape, resets
        ctx.layer_inputs, ctx.outputs, ctx.deviation = layer_inputs, outputs, deviation
        ctx.inputs = (context, prior_first, prior_second, post_first, post_second, policy_input)
        ctx.save_for_backward(prior, latents, policy_outputs, *tensors)
        return prior, posterior, latents, policy_outputs, policy_found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_prior, grad_posterior, grad_latent, grad_policy_hidden, grad_policy_words):
        prior, latents, policy_outputs, *tensors = ctx.saved_tensors
        carried, w, layers = _unpack(tensors)
        given, tapes, resets = ctx.given, ctx.tapes, ctx.resets
        context, prior_first, prior_second, post_first, post_second, policy_input = ctx.inputs
        length, batch_size, double = prior.shape
        z, size = double // 2, w.latent.shape[0] // 4
        queries = carried.policy_words.shape[1]
        for tape in [*tapes, ctx.policy_tape]:
            tape.turn()
        slopes = [1 - x.square() for x in (prior_first, prior_second, post_first, post_second)]
        half_spread = 0.5 * ctx.deviation * given.noise
        recurrent = w.policy if given.policy_gradient_to_latent else w.policy[:, z:]
        skip = 0 if given.policy_gradient_to_latent else z

        # Gradients of what each matrix puts out, at every step.
        def rows(*matrices: Tensor) -> list[Tensor]:
            return [prior.new_empty(length, batch_size, x.shape[0]) for x in matrices]

        of_context, of_policy = rows(w.context, w.policy)
        of_prior_second, of_prior, of_post_second, of_posterior = rows(*[w.prior_last] * 4)
        of_raw, of_policy_raw = rows(w.reader, w.policy_reader)
        of_layers = rows(*(weight for weight, _ in layers))
        of_prior_first, of_code = of_context[..., :double], of_context[..., double : 2 * double]
        of_gates = [of_context[..., 2 * double :], *of_layers]
        first = given.is_first.unsqueeze(-1)
        hidden, cell, words, policy_hidden, policy_cell, policy_words = map(torch.zeros_like, carried)
        for t in range(length - 1, -1, -1):
            given.memory.undo(t)
            of_policy_raw[t], of_raw[t] = ctx.reads.backward(t, grad_policy_words[t] + policy_words, words)

            policy_hidden = torch.addmm(policy_hidden + grad_policy_hidden[t], of_policy_raw[t], w.policy_reader)
            policy_cell = ctx.policy_tape.backward(t, policy_hidden, policy_cell, of_policy[t])
            policy_back = of_policy[t] @ recurrent

            hidden = torch.addmm(hidden, of_raw[t], w.reader)
            cells: list[Tensor] = []
            remembered: list[Tensor] = []
            below: Tensor | float = 0.0
            for index in range(len(layers), -1, -1):
                part = slice(index * size, (index + 1) * size)
                cells.append(tapes[index].backward(t, hidden[:, part] + below, cell[:, part], of_gates[index][t]))
                if index:
                    below, before = (of_layers[index - 1][t] @ layers[index - 1][0]).split(size, -1)
                    remembered.append(before)
            cell = torch.cat(cells[::-1], -1)

            latent = torch.addmm(grad_latent[t], of_gates[0][t], w.latent)
            if not skip:
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
            if resets[t]:
                back.masked_fill_(first[t], 0)
                policy_back = policy_back.masked_fill(first[t], 0)
                cell, policy_cell = cell.masked_fill(first[t], 0), policy_cell.masked_fill(first[t], 0)
            hidden, words = back.split([hidden.shape[1], words.shape[1]], -1)
            policy_words, policy_hidden = policy_back.split([queries, policy_hidden.shape[1]], -1)

        def weight(outputs: Tensor, inputs: Tensor) -> Tensor:
            return outputs.flatten(0, 1).T @ inputs.flatten(0, 1)

        def both(outputs: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return weight(outputs, inputs), outputs.sum((0, 1))

        gradients = Weights(
            *both(of_context, context),
            *both(of_prior_second, prior_first),
            *both(of_prior, prior_second),
            weight(of_code, prior),
            *both(of_post_second, post_first),
            *both(of_posterior, post_second),
            weight(of_gates[0], latents),
            *both(of_raw, ctx.outputs),
            *both(of_policy, policy_input),
            *both(of_policy_raw, policy_outputs),
        )
        of_all_layers = [x for pair in zip(of_layers, ctx.layer_inputs, strict=True) for x in both(*pair)]
        carry = Carried(hidden, cell, words, policy_hidden, policy_cell, policy_words)
        return None, None, of_code, of_gates[0], *carry, *gradients, *of_all_layers


def _unpack(tensors: Sequence[Tensor]) -> tuple[Carried, Weights, list[tuple[Tensor, Tensor]]]:
    carried, rest = tensors[: len(Carried._fields)], tensors[len(Carried._fields) :]
    weights, flat = rest[: len(Weights._fields)], rest[len(Weights._fields) :]
    return Carried(*carried), Weights(*weights), list(zip(flat[::2], flat[1::2], strict=True))
