"""A policy that begins by reading what is like the present."""

import torch
from torch import nn

from merlin.memory import Reader
from merlin.networks.lstm import LSTM


@torch.no_grad()
def start_associative(lstm: LSTM, reader: Reader, latent_size: int) -> None:
    """Let up to half of the policy's units pass the latent on, turned, and let every key be it, turned back.

    A policy that first learns to leave what its reads show, cards just turned for one, learns next to keep what it
    needs out of them: random keys end by reading everything else. One that is shown what is like the present, and some
    of which pays, learns to read it.
    """
    size = lstm.hidden_size
    count = min(latent_size, size // 2)
    turn = nn.init.orthogonal_(torch.empty(count, latent_size))
    (cell,) = lstm.cells
    assert isinstance(cell, nn.LSTMCell)
    for gate, bias in enumerate((2.0, -2.0, 0.0, 2.0)):  # input open, forget closed, candidate, output open
        units = slice(gate * size, gate * size + count)
        for parameter in (cell.weight_ih, cell.weight_hh, cell.bias_hh):
            parameter[units] = 0
        cell.bias_ih[units] = bias
    cell.weight_ih[2 * size : 2 * size + count, :latent_size] = turn
    keys = reader.num_read_keys * reader.word_size
    reader.project.weight[:keys] = 0
    reader.project.bias[:keys] = 0
    for first in range(0, keys, reader.word_size):
        reader.project.weight[first : first + latent_size, :count] = turn.T
