"""A multi-layer LSTM whose state is a value. Over a window, `merlin.networks.window_linear` makes its steps cheap."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from merlin.precision import as_type


class LSTMState(NamedTuple):
    """Outputs and cells of all L layers, side by side."""

    hidden: Float[Tensor, "B LH"]
    cell: Float[Tensor, "B LH"]


class SharedLSTMCell(nn.LSTMCell):
    """An LSTM cell to whose gates something else adds its share, before they are squashed."""

    def forward(
        self,
        x: Float[Tensor, "B I"],
        state: tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]],
        share: Float[Tensor, "B 4*H"],
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        hidden, cell = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(hidden, self.weight_hh, self.bias_hh) + share
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class LSTM(nn.Module):
    """L stacked LSTM layers of equal size. Hochreiter and Schmidhuber 1997, with forget biases started at 1.

    Args:
        has_share: Whether steps are given a share of the gates, of an LSTM of one layer.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, has_share: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        kind = SharedLSTMCell if has_share else nn.LSTMCell
        cells = [kind(input_size if layer == 0 else hidden_size, hidden_size) for layer in range(num_layers)]
        for cell in cells:
            nn.init.constant_(cell.bias_ih[hidden_size : 2 * hidden_size], 1.0)
        self.cells = nn.ModuleList(cells)

    @property
    def output_size(self) -> int:
        """Width of the outputs of all layers."""
        return self.hidden_size * len(self.cells)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Return zeros."""
        parameter = next(self.parameters())
        zeros = parameter.new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros)

    def step(self, x: Float[Tensor, "B I"], state: LSTMState, *share: Float[Tensor, "B G"]) -> LSTMState:
        """Return the state after one step, of the type of the one before; its `hidden` is the output.

        Args:
            share: What is added to the gates, of an LSTM that has it.
        """
        dtype = state.hidden.dtype
        if len(self.cells) == 1:
            hidden, cell = self.cells[0](x, state, *share)
            return LSTMState(as_type(hidden, dtype), as_type(cell, dtype))
        hiddens, cells = [], []
        chunks = zip(*(x.chunk(len(self.cells), -1) for x in state), strict=True)
        for layer, before in zip(self.cells, chunks, strict=True):
            x, cell = layer(x, before)
            hiddens.append(x)
            cells.append(cell)
        return LSTMState(as_type(torch.cat(hiddens, -1), dtype), as_type(torch.cat(cells, -1), dtype))
