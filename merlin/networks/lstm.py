"""A multi-layer LSTM whose state is a value, stepped while acting and unrolled over a window while learning."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def map_state(function: Callable[..., Tensor], *states: Any) -> Any:
    """Return the state with `function` applied to each of its tensors (to corresponding ones, if several are given)."""
    if isinstance(states[0], Tensor):
        return function(*states)
    return type(states[0])(*(map_state(function, *children) for children in zip(*states, strict=True)))


def reset_state(state: Any, is_first: Bool[Tensor, "B"]) -> Any:
    """Return the state with the batch rows that start an episode zeroed, and no other touched.

    Filling rather than multiplying stops gradients and NaNs at the episode's edge exactly.
    """
    if is_first.device.type == "cpu" and not is_first.any():
        return state  # spares a copy of the memory; on a GPU the question would cost more than the copy
    return map_state(lambda x: x.masked_fill(is_first.view(-1, *[1] * (x.ndim - 1)), 0), state)


CACHED = 2**17  # numbers of each kind that are worked on at a time where they are looked at again


class LSTMState(NamedTuple):
    """Outputs and cells of all L layers, side by side."""

    hidden: Float[Tensor, "B LH"]
    cell: Float[Tensor, "B LH"]


class LSTM(nn.Module):
    """L stacked LSTM layers of equal size. Hochreiter and Schmidhuber 1997, with forget biases started at 1."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cells = nn.ModuleList(
            nn.LSTMCell(input_size if layer == 0 else hidden_size, hidden_size) for layer in range(num_layers)
        )
        for cell in self.cells:
            nn.init.constant_(cell.bias_ih[hidden_size : 2 * hidden_size], 1.0)

    @property
    def output_size(self) -> int:
        """Width of the outputs of all layers."""
        return self.hidden_size * len(self.cells)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Return zeros."""
        zeros = self.cells[0].weight_hh.new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros)

    def step(self, x: Float[Tensor, "B I"], state: LSTMState) -> LSTMState:
        """Return the state after one step; its `hidden` is the output."""
        hiddens, cells = [], []
        chunks = zip(state.hidden.split(self.hidden_size, -1), state.cell.split(self.hidden_size, -1), strict=True)
        for layer, (hidden, cell) in zip(self.cells, chunks, strict=True):
            x, cell = layer(x, (hidden, cell))
            hiddens.append(x)
            cells.append(cell)
        if len(hiddens) == 1:
            return LSTMState(x, cell)
        return LSTMState(torch.cat(hiddens, -1), torch.cat(cells, -1))

    def unroll(
        self,
        x: Float[Tensor, "T B I"],
        state: LSTMState,
        is_first: Bool[Tensor, "T B"],
        tape: "LSTMTape | None" = None,
    ) -> tuple[Float[Tensor, "T B LH"], LSTMState]:
        """Return the outputs of T steps, and the state after them, cut from the graph. Equal to T steps.

        The state is zeroed before each row that starts an episode.

        Args:
            tape: On which these steps were taken, with the weights as they are.
        """
        length = x.shape[0]
        if tape is None:
            tape = self.tape(state, length)
            with torch.no_grad():
                for t in range(length):
                    tape.step(t, x[t], is_first[t])
        flat = [parameter for layer in self._joined() for parameter in layer]
        output = _Unroll.apply(tape, length, x, *state, *flat)
        return output, map_state(lambda y: y.detach().clone(), tape.state(length))

    def tape(self, state: LSTMState, length: int) -> "LSTMTape":
        """Return an empty tape for the steps that follow `state`."""
        with torch.no_grad():
            return LSTMTape(self._joined(), map_state(Tensor.detach, state), length)

    def _joined(self) -> list[tuple[Float[Tensor, "G C"], Float[Tensor, "G"]]]:
        """Return, for each layer, the weights of [what it reads, its output before], and the bias."""
        return [(torch.cat([x.weight_ih, x.weight_hh], -1), x.bias_ih + x.bias_hh) for x in self.cells]


class LSTMTape:
    """The steps of an LSTM over a window, and what their backward pass must know of each.

    An agent acts on a tape and then learns from it, so that nothing is computed twice. The last step may be taken
    again, and one more than `length` may be taken.
    """

    def __init__(self, weights: list[tuple[Tensor, Tensor]], state: LSTMState, length: int) -> None:
        self.weights, self.initial = weights, state
        like, batch_size = state.hidden, state.hidden.shape[0]
        self.size = weights[0][0].shape[0] // 4
        self.inputs = [like.new_empty(length + 1, batch_size, weight.shape[1]) for weight, _ in weights]
        self.cells = [CellTape(like, length + 1, batch_size, self.size) for _ in weights]
        self.outputs = like.new_empty(length + 1, *like.shape)
        self.after = like.new_empty(length + 1, *like.shape)  # the cells
        self.is_first: list[Tensor | None] = [None] * (length + 1)

    def state(self, t: int) -> LSTMState:
        """Return the state after t steps: rows of the tape."""
        return LSTMState(self.outputs[t - 1], self.after[t - 1]) if t else self.initial

    def step(self, t: int, x: Float[Tensor, "B I"], is_first: Bool[Tensor, "B"]) -> Float[Tensor, "B LH"]:
        """Take step t and return its output. The state of rows that start an episode is zeroed before."""
        hidden, cell = self.state(t)
        self.is_first[t] = None
        if is_first.device.type != "cpu" or is_first.any():
            first = self.is_first[t] = is_first.unsqueeze(-1)
            hidden, cell = hidden.masked_fill(first, 0), cell.masked_fill(first, 0)
        for index, (tape, (weight, bias)) in enumerate(zip(self.cells, self.weights, strict=True)):
            part = slice(index * self.size, (index + 1) * self.size)
            entry = torch.cat([x, hidden[:, part]], -1, out=self.inputs[index][t])
            x = self.outputs[t, :, part]
            self.after[t, :, part] = tape.forward(t, torch.addmm(bias, entry, weight.T), cell[:, part], x)
        return self.outputs[t]


class CellTape:
    """What the backward pass of an LSTM layer must know of each step of a window, and that pass, step by step.

    Every gate of every step is a pre-activation in the order input, forget, candidate, output.
    """

    def __init__(self, like: Tensor, length: int, batch_size: int, hidden_size: int) -> None:
        self.size = hidden_size
        self.active = like.new_empty(length, batch_size, 4 * hidden_size)  # the gates after their non-linearities
        self.entering = like.new_empty(length, batch_size, hidden_size)  # the cell that enters a step, already reset
        self.squashed = torch.empty_like(self.entering)  # tanh of the new cell
        self._turned = range(0)  # steps whose slopes are known

    def forward(
        self, t: int, gates: Float[Tensor, "B G"], cell: Float[Tensor, "B H"], out: Float[Tensor, "B H"]
    ) -> Float[Tensor, "B H"]:
        """Write the layer's output to `out` and return the new cell."""
        candidate = slice(2 * self.size, 3 * self.size)
        self.entering[t] = cell
        torch.sigmoid(gates, out=self.active[t])
        torch.tanh(gates[:, candidate], out=self.active[t, :, candidate])
        i, f, g, o = self.active[t].split(self.size, -1)
        cell = torch.addcmul(f * cell, i, g)
        torch.tanh(cell, out=self.squashed[t])
        torch.mul(o, self.squashed[t], out=out)
        return cell

    def _turn(self, t: int) -> None:
        """Compute the slopes of some steps up to t, of as many as stay in a processor's cache until they are used."""
        self._turned = range(max(0, t + 1 - max(1, CACHED // self.entering[0].numel())), t + 1)
        steps = slice(self._turned.start, t + 1)
        i, self._forget, g, o = self.active[steps].split(self.size, -1)
        f, squashed = self._forget, self.squashed[steps]
        self._output_to_cell = o * (1 - squashed.square())
        self._factors = torch.cat([g * i * (1 - i), self.entering[steps] * f * (1 - f), i * (1 - g.square())], -1)
        self._factors = self._factors.unflatten(-1, (3, self.size))
        self._output_factor = squashed * o * (1 - o)

    def backward(
        self,
        t: int,
        grad_hidden: Float[Tensor, "B H"],
        grad_cell: Float[Tensor, "B H"],
        out: Float[Tensor, "B G"],
    ) -> Float[Tensor, "B H"]:
        """Write the gradient of the gates to `out` and return that of the cell that entered. Steps come last first."""
        if t not in self._turned:
            self._turn(t)
        step = t - self._turned.start
        grad_cell = torch.addcmul(grad_cell, grad_hidden, self._output_to_cell[step])
        first = out[:, : 3 * self.size].unflatten(-1, (3, self.size))
        torch.mul(self._factors[step], grad_cell.unsqueeze(1), out=first)
        torch.mul(grad_hidden, self._output_factor[step], out=out[:, 3 * self.size :])
        return grad_cell * self._forget[step]


class _Unroll(torch.autograd.Function):
    """An LSTM over a window, differentiated by hand.

    Automatic differentiation would add one [4H, C] weight gradient to another at every step; here the loop back carries
    gradients of states alone, and each weight's gradient is one product over the window.
    """

    @staticmethod
    def forward(ctx, tape, length, x, hidden, cell, *weights):
        ctx.tape, ctx.length, ctx.input_size = tape, length, x.shape[-1]
        ctx.save_for_backward(*weights[::2])
        return tape.outputs[:length].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        tape, length, size, weights = ctx.tape, ctx.length, ctx.tape.size, ctx.saved_tensors
        batch_size = grad_output.shape[1]
        of_gates = [grad_output.new_empty(length, batch_size, 4 * size) for _ in weights]
        grad_x = grad_output.new_empty(length, batch_size, ctx.input_size)
        hidden = cell = torch.zeros_like(grad_output[0])
        for t in range(length - 1, -1, -1):
            hidden = hidden + grad_output[t]
            hiddens, cells = [], []
            below: Tensor | float = 0.0
            for index in range(len(weights) - 1, -1, -1):
                part = slice(index * size, (index + 1) * size)
                out = of_gates[index][t]
                cells.append(tape.cells[index].backward(t, hidden[:, part] + below, cell[:, part], out))
                below, before = (out @ weights[index]).tensor_split([-size], -1)
                hiddens.append(before)
            grad_x[t] = below
            hidden, cell = (torch.cat(x[::-1], -1) if len(x) > 1 else x[0] for x in (hiddens, cells))
            if (first := tape.is_first[t]) is not None:
                hidden, cell = hidden.masked_fill(first, 0), cell.masked_fill(first, 0)
        gradients = []
        for outputs, inputs in zip(of_gates, tape.inputs, strict=True):
            gradients += [outputs.flatten(0, 1).T @ inputs[:length].flatten(0, 1), outputs.sum((0, 1))]
        return None, None, grad_x, hidden, cell, *gradients
