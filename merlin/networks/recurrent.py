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
        self, x: Float[Tensor, "T B I"], state: LSTMState, is_first: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B LH"], LSTMState]:
        """Return the outputs of T steps, and the state after them, cut from the graph. Equal to T steps.

        The state is zeroed before each row that starts an episode.

        Layer by layer: each layer's inputs are known for the whole window, so that they, and the gradients of all
        weights, take one matrix product a window.
        """
        keep = (~is_first).unsqueeze(-1).to(x.dtype)
        outputs, cells = [], []
        for index, layer in enumerate(self.cells):
            part = slice(index * self.hidden_size, (index + 1) * self.hidden_size)
            gates = x @ layer.weight_ih.T + (layer.bias_ih + layer.bias_hh)
            x, cell = _Unroll.apply(gates, layer.weight_hh, state.hidden[:, part], state.cell[:, part], keep)
            outputs.append(x)
            cells.append(cell)
        output = torch.cat(outputs, -1) if len(outputs) > 1 else x
        return output, LSTMState(output[-1].detach(), torch.cat(cells, -1))


class CellTape:
    """What the backward pass of an LSTM layer must know of each step of a window, and that pass, step by step.

    Every gate of every step is a pre-activation in the order input, forget, candidate, output.
    """

    def __init__(self, like: Tensor, length: int, batch_size: int, hidden_size: int) -> None:
        self.size = hidden_size
        self.active = like.new_empty(length, batch_size, 4 * hidden_size)  # the gates after their non-linearities
        self.entering = like.new_empty(length, batch_size, hidden_size)  # the cell that enters a step, already reset
        self.squashed = torch.empty_like(self.entering)  # tanh of the new cell

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

    def turn(self) -> None:
        """Before the first step back: everything but the two running gradients is known, one pass over the window."""
        i, self.forget, g, o = self.active.split(self.size, -1)
        f = self.forget
        self.output_to_cell = o * (1 - self.squashed.square())
        self.factors = torch.cat([g * i * (1 - i), self.entering * f * (1 - f), i * (1 - g.square())], -1)
        self.factors = self.factors.unflatten(-1, (3, self.size))
        self.output_factor = self.squashed * o * (1 - o)

    def backward(
        self,
        t: int,
        grad_hidden: Float[Tensor, "B H"],
        grad_cell: Float[Tensor, "B H"],
        out: Float[Tensor, "B G"],
    ) -> Float[Tensor, "B H"]:
        """Write the gradient of the gates to `out` and return that of the cell that entered."""
        grad_cell = torch.addcmul(grad_cell, grad_hidden, self.output_to_cell[t])
        first = out[:, : 3 * self.size].unflatten(-1, (3, self.size))
        torch.mul(self.factors[t], grad_cell.unsqueeze(1), out=first)
        torch.mul(grad_hidden, self.output_factor[t], out=out[:, 3 * self.size :])
        return grad_cell * self.forget[t]


class _Unroll(torch.autograd.Function):
    """One LSTM layer over a window, differentiated by hand.

    Automatic differentiation would add a [4H, H] weight gradient to another at every step; here the recurrence only
    carries [B, H] and the weight gradient is one product over the window.
    """

    @staticmethod
    def forward(ctx, gates, weight, hidden, cell, keep):
        length, batch_size, size = gates.shape[0], gates.shape[1], hidden.shape[1]
        tape = CellTape(gates, length, batch_size, size)
        hiddens = torch.empty_like(tape.entering)  # those that enter each step
        output = torch.empty_like(hiddens)
        transposed = weight.T.contiguous()
        for t in range(length):
            torch.mul(hidden, keep[t], out=hiddens[t])
            cell = tape.forward(t, torch.addmm(gates[t], hiddens[t], transposed), cell * keep[t], output[t])
            hidden = output[t]
        ctx.tape = tape
        ctx.save_for_backward(weight, keep, hiddens)
        ctx.mark_non_differentiable(cell)
        return output, cell

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, _):
        weight, keep, hiddens = ctx.saved_tensors
        ctx.tape.turn()
        grad_gates = torch.empty_like(ctx.tape.active)
        grad_hidden = grad_cell = torch.zeros_like(hiddens[0])
        for t in range(hiddens.shape[0] - 1, -1, -1):
            grad_cell = ctx.tape.backward(t, grad_hidden + grad_output[t], grad_cell, grad_gates[t]) * keep[t]
            grad_hidden = (grad_gates[t] @ weight) * keep[t]
        grad_weight = grad_gates.flatten(0, 1).T @ hiddens.flatten(0, 1)
        return grad_gates, grad_weight, grad_hidden, grad_cell, None
