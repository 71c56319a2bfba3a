"""A multi-layer LSTM whose state is a value. Over a window, `merlin.networks.window_linear` makes its steps cheap."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from merlin.precision import as_type


class LSTMState(NamedTuple):
    """Outputs and cells of all L layers, side by side."""

    hidden: Float[Tensor, "B LH"]
    cell: Float[Tensor, "B LH"]


class LSTM(nn.Module):
    """L stacked LSTM layers of equal size. Hochreiter and Schmidhuber 1997, with forget biases started at 1."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        cells = [nn.LSTMCell(input_size if layer == 0 else hidden_size, hidden_size) for layer in range(num_layers)]
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

    def step(self, x: Float[Tensor, "B I"], state: LSTMState) -> LSTMState:
        """Return the state after one step, of the type of the one before; its `hidden` is the output."""
        dtype = state.hidden.dtype
        if len(self.cells) == 1:
            hidden, cell = self.cells[0](x, state)
            return LSTMState(as_type(hidden, dtype), as_type(cell, dtype))
        hiddens, cells = [], []
        chunks = zip(*(x.chunk(len(self.cells), -1) for x in state), strict=True)
        for layer, before in zip(self.cells, chunks, strict=True):
            x, cell = layer(x, before)
            hiddens.append(x)
            cells.append(cell)
        return LSTMState(as_type(torch.cat(hiddens, -1), dtype), as_type(torch.cat(cells, -1), dtype))
