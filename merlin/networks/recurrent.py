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


class _Unroll(torch.autograd.Function):
    """One LSTM layer over a window, differentiated by hand.

    Automatic differentiation would add a [4H, H] weight gradient to another at every step; here the recurrence only
    carries [B, H] and the weight gradient is one product over the window.
    """

    @staticmethod
    def forward(ctx, gates, weight, hidden, cell, keep):
        length, batch_size, size = gates.shape[0], gates.shape[1], hidden.shape[1]
        active = torch.empty_like(gates)  # the gates after their non-linearities: input, forget, candidate, output
        cells = gates.new_empty(length, batch_size, size)  # cells[t] enters step t, already reset
        hiddens = torch.empty_like(cells)
        squashed = gates.new_empty(length, batch_size, size)  # tanh of the new cell
        output = torch.empty_like(squashed)
        transposed = weight.T.contiguous()
        for t in range(length):
            torch.mul(hidden, keep[t], out=hiddens[t])
            torch.mul(cell, keep[t], out=cells[t])
            total = torch.addmm(gates[t], hiddens[t], transposed)
            torch.sigmoid(total, out=active[t])
            torch.tanh(total[:, 2 * size : 3 * size], out=active[t, :, 2 * size : 3 * size])
            i, f, g, o = active[t].split(size, -1)
            cell = torch.addcmul(f * cells[t], i, g)
            torch.tanh(cell, out=squashed[t])
            hidden = torch.mul(o, squashed[t], out=output[t])
        ctx.save_for_backward(weight, keep, active, cells, hiddens, squashed)
        ctx.mark_non_differentiable(cell)
        return output, cell

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, _):
        weight, keep, active, cells, hiddens, squashed = ctx.saved_tensors
        length, size = squashed.shape[0], squashed.shape[2]
        i, f, g, o = active.split(size, -1)
        # Everything but the two running gradients is known before the loop: one pass over the window each.
        output_to_cell = o * (1 - squashed.square())
        factors = torch.cat([g * i * (1 - i), cells * f * (1 - f), i * (1 - g.square())], -1)
        output_factor = squashed * o * (1 - o)
        grad_gates = torch.empty_like(active)
        grad_hidden = torch.zeros_like(squashed[0])
        grad_cell = torch.zeros_like(squashed[0])
        for t in range(length - 1, -1, -1):
            grad_hidden = grad_hidden + grad_output[t]
            grad_cell = torch.addcmul(grad_cell, grad_hidden, output_to_cell[t])
            torch.mul(
                factors[t].unflatten(-1, (3, size)),
                grad_cell.unsqueeze(1),
                out=grad_gates[t, :, : 3 * size].unflatten(-1, (3, size)),
            )
            torch.mul(grad_hidden, output_factor[t], out=grad_gates[t, :, 3 * size :])
            grad_cell = grad_cell * f[t] * keep[t]
            grad_hidden = (grad_gates[t] @ weight) * keep[t]
        grad_weight = grad_gates.flatten(0, 1).T @ hiddens.flatten(0, 1)
        return grad_gates, grad_weight, grad_hidden, grad_cell, None
