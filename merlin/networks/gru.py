"""A gated recurrent unit with a norm, whose state is a value."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from merlin.networks.products import Linear
from merlin.precision import as_type


class LayerNormGRU(nn.Module):
    """A GRU whose three gates go through one norm, as DreamerV2's.

        r, c, u = LayerNorm(W [x, h])                 no bias, one norm over all three
        c = tanh(σ(r) · c);   u = σ(u − 1);   h' = u · c + (1 − u) · h

    The update gate starts almost closed, so that at first states are kept.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.linear = Linear(input_size + hidden_size, 3 * hidden_size, bias=False)
        self.norm = nn.LayerNorm(3 * hidden_size, eps=1e-3)

    def forward(self, x: Float[Tensor, "*batch I"], hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Return h'."""
        gates = as_type(
            self.norm(self.linear(torch.cat([x, hidden], -1))), hidden.dtype
        )  # where autocast chose another
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(hidden, candidate, torch.sigmoid(update - 1))
