"""Modules inside a window of steps: weight gradients deferred to one product, LSTM cells fused.

Automatic differentiation would add one weight gradient to another at every step of a window. Here the way back carries
gradients of states alone, and the gradient of each weight is one product over all steps:

    ∂loss/∂weight = Σₜ ∂loss/∂output[t]ᵀ · input[t] = [outputs' gradients of all steps]ᵀ · [inputs of all steps]

`in_window(module)` is the module to step with: a shallow copy with the same parameters, whose linear layers and LSTM
cells are those of this file. It serves one window, forward and backward, until a parameter changes.
"""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def in_window(module: Module) -> Module:
    """Return a copy of the module that shares its parameters, to be stepped through one window of experience."""
    if isinstance(module, nn.Linear):
        return WindowLinear(module.weight, module.bias)  # type: ignore[return-value]
    if isinstance(module, nn.LSTMCell):
        return WindowLSTMCell(module)  # type: ignore[return-value]
    if not module._modules:
        return module
    clone = object.__new__(type(module))
    clone.__dict__ = module.__dict__ | {
        "_modules": {name: None if child is None else in_window(child) for name, child in module._modules.items()}
    }
    return clone


class WindowLinear(nn.Module):
    """A linear layer whose weight gets its gradient once, when all steps of the window have been gone back through.

    The bias enters every step through one node of the graph. That node's gradient is complete only after every step's,
    and then the weight's is computed too.
    """

    def __init__(self, weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None) -> None:
        super().__init__()
        self.weight, self.uses = weight.detach(), []
        self._transposed = self.weight.T
        self._learning = weight, weight.new_zeros(len(weight)) if bias is None else bias
        self._bias: Tensor | None = None

    @property
    def bias(self) -> Float[Tensor, "O"]:
        """The bias, from its first use on with the node that collects gradients."""
        if self._bias is None:
            if not torch.is_grad_enabled():
                return self._learning[1]
            self._bias = _Collect.apply(self.uses, *self._learning)
        return self._bias

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        output = torch.addmm(self.bias, flat, self._transposed)
        if output.requires_grad:
            uses, seen = self.uses, flat.detach()
            output.register_hook(lambda gradient: uses.append((gradient, seen)))
        return output if x.ndim == 2 else output.view(*x.shape[:-1], -1)


class _Collect(torch.autograd.Function):
    """The bias, with the weight behind it."""

    @staticmethod
    def forward(ctx, uses, weight, bias):
        ctx.uses = uses
        return bias.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_bias):
        if not ctx.uses:
            return None, None, grad_bias
        gradients, inputs = zip(*ctx.uses, strict=True)
        ctx.uses.clear()
        grad_weight = torch.cat(gradients).T @ torch.cat(inputs)
        return None, grad_weight, grad_bias


class WindowLSTMCell(nn.Module):
    """An LSTM cell as one product of [input, hidden] and one fused step of the gates."""

    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        with torch.enable_grad():  # whoever acts has gradients switched off as a window begins
            weight, bias = torch.cat([cell.weight_ih, cell.weight_hh], -1), cell.bias_ih + cell.bias_hh
        self.gates = WindowLinear(weight, bias)

    def forward(
        self, x: Float[Tensor, "B I"], state: tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        hidden, cell = state
        return _LSTMGates.apply(self.gates(torch.cat([x, hidden], -1)), cell)


class _LSTMGates(torch.autograd.Function):
    """What an LSTM cell does with its gates, in the order input, forget, candidate, output.

    c' = σ(f) · c + σ(i) · tanh(g);   h' = σ(o) · tanh(c')
    """

    @staticmethod
    def forward(ctx, gates, cell):
        size = cell.shape[-1]
        active = torch.sigmoid(gates)
        torch.tanh(gates[:, 2 * size : 3 * size], out=active[:, 2 * size : 3 * size])
        i, f, g, o = active.split(size, -1)
        new_cell = torch.addcmul(f * cell, i, g)
        squashed = new_cell.tanh()
        ctx.save_for_backward(active, cell, squashed)
        return o * squashed, new_cell

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hidden, grad_cell):
        active, cell, squashed = ctx.saved_tensors
        size = cell.shape[-1]
        i, f, g, o = active.split(size, -1)
        through = grad_hidden * o
        grad_cell = grad_cell + torch.addcmul(through, through * squashed, squashed, value=-1)
        slopes = torch.addcmul(active, active, active, value=-1)  # σ' = σ (1 − σ)
        torch.addcmul(torch.ones_like(g), g, g, value=-1, out=slopes[:, 2 * size : 3 * size])  # tanh' = 1 − tanh²
        factors = torch.cat([grad_cell * g, grad_cell * cell, grad_cell * i, grad_hidden * squashed], -1)
        return factors.mul_(slopes), grad_cell * f
