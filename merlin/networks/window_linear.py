"""Modules inside a window of steps: weight gradients deferred to one product, LSTM cells fused.

Automatic differentiation would add one weight gradient to another at every step of a window. Here the way back carries
gradients of states alone, and the gradient of each weight is one product over all steps:

    ∂loss/∂weight = Σₜ ∂loss/∂output[t]ᵀ · input[t] = [outputs' gradients of all steps]ᵀ · [inputs of all steps]

`in_window(module)` is the module to step with: a shallow copy with the same parameters, whose linear layers and LSTM
cells are those of this file. It serves one window, forward and backward, until a parameter changes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def in_window(module: nn.Module) -> Any:
    """Return a copy of the module that shares its parameters, to be stepped through one window of experience."""
    if type(module) is nn.Linear:  # what is derived from it may be anything
        return WindowLinear(module.weight, module.bias)
    if type(module) is nn.LSTMCell:
        return WindowLSTMCell(module)
    if not module._modules:
        return module
    clone = object.__new__(type(module))
    clone.__dict__ = module.__dict__ | {"_modules": _Children(module._modules)}
    return clone


class _Children(dict):
    """The children of a module, each taken into the window when it is first asked for: most agents step few of them."""

    def __init__(self, children: dict[str, nn.Module | None]) -> None:
        super().__init__(children)
        self.waiting = set(children)

    def __getitem__(self, name: str) -> Any:
        child = super().__getitem__(name)
        if name in self.waiting:
            self.waiting.remove(name)
            child = self[name] = None if child is None else in_window(child)
        return child

    def values(self) -> list[Any]:
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self[name]) for name in self]


class WindowLinear:
    """A linear layer whose weight gets its gradient once, when all steps of the window have been gone back through.

    The bias enters every step through one node of the graph. That node's gradient is complete only after every step's,
    and then the weight's is computed too.
    """

    def __init__(self, weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None) -> None:
        self.weight, self.bias, self.uses = weight, bias, _Uses()
        self._transposed = weight.detach().T
        self._learning = weight, weight.new_zeros(len(weight)) if bias is None else bias
        self._bias: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        bias = self._bias
        if bias is None:
            bias = self._learning[1]
            if torch.is_grad_enabled():
                bias = self._bias = _Collect.apply(self.uses, *self._learning)
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        output = torch.addmm(bias, flat, self._transposed)
        if output.requires_grad and bias.requires_grad:
            uses, seen = self.uses, flat.detach()
            # torch's stubs do not know that what was computed and has a gradient has a grad_fn
            output.grad_fn.register_prehook(lambda gradients: uses.add(gradients[0], seen))  # pyright: ignore[reportOptionalMemberAccess]
        return output if x.ndim == 2 else output.view(*x.shape[:-1], len(self.weight))


class _Uses:
    """Outputs' gradients and inputs of a layer's uses, multiplied as soon as there are rows enough for it to pay."""

    ENOUGH_ROWS = 512

    def __init__(self) -> None:
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.rows = 0
        self.grad_weight: Tensor | None = None

    def add(self, gradient: Float[Tensor, "B O"] | None, x: Float[Tensor, "B I"]) -> None:
        """Take in one use, unless it has no gradient: what it led to was left unused."""
        if gradient is None:
            return
        self.waiting.append((gradient, x))
        self.rows += len(x)
        if self.rows >= self.ENOUGH_ROWS:
            self._multiply()

    def _multiply(self) -> None:
        gradients, inputs = (x[0] if len(x) == 1 else torch.cat(x) for x in zip(*self.waiting, strict=True))
        if self.grad_weight is None:
            self.grad_weight = gradients.T @ inputs
        else:
            self.grad_weight.addmm_(gradients.T, inputs)
        self.waiting, self.rows = [], 0

    def total(self) -> Float[Tensor, "O I"] | None:
        """Return the weight's gradient, of all uses."""
        if self.waiting:
            self._multiply()
        total, self.grad_weight = self.grad_weight, None
        return total


class _Collect(torch.autograd.Function):
    """The bias, with the weight behind it."""

    @staticmethod
    def forward(ctx, uses, weight, bias):
        ctx.uses = uses
        return bias.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_bias):
        return None, ctx.uses.total(), grad_bias


class WindowLSTMCell:
    """An LSTM cell as one product of [input, hidden] and one fused step of the gates."""

    def __init__(self, cell: nn.LSTMCell) -> None:
        with torch.enable_grad():  # whoever acts has gradients switched off as a window begins
            weight = torch.cat([cell.weight_ih, cell.weight_hh], -1)
            bias = cell.bias_ih + cell.bias_hh if cell.bias else None
        self.gates = WindowLinear(weight, bias)

    def __call__(
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
        i, f, g, o = active.chunk(4, -1)
        new_cell = torch.addcmul(f * cell, i, g)
        squashed = new_cell.tanh()
        ctx.save_for_backward(active, cell, squashed)
        return o * squashed, new_cell

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hidden, grad_cell):
        active, cell, squashed = ctx.saved_tensors
        i, f, g, o = active.chunk(4, -1)
        through = grad_hidden * o
        grad_cell = torch.addcmul(grad_cell + through, through * squashed, squashed, value=-1)
        grad_gates = torch.addcmul(active, active, active, value=-1)  # σ' = σ (1 − σ)
        of_i, of_f, of_g, of_o = grad_gates.chunk(4, -1)
        of_i.mul_(grad_cell).mul_(g)
        of_f.mul_(grad_cell).mul_(cell)
        torch.mul(grad_cell, i, out=of_g).addcmul_(of_g * g, g, value=-1)  # tanh' = 1 − tanh²
        of_o.mul_(grad_hidden).mul_(squashed)
        return grad_gates, grad_cell * f
