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

from merlin.networks.lstm import SharedLSTMCell
from merlin.networks.products import Linear, affine, product
from merlin.precision import as_type, full_precision


def in_window(module: nn.Module) -> Any:
    """Return a copy of the module that shares its parameters, to be stepped through one window of experience."""
    # What else is derived from a linear layer may be anything, and so may what has hooks, as of weight normalisation.
    hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    if isinstance(module, nn.Linear) and type(module) in (nn.Linear, Linear) and not any(hooks):
        return WindowLinear(module.weight, module.bias)
    if isinstance(module, nn.LSTMCell) and type(module) in (nn.LSTMCell, SharedLSTMCell) and not any(hooks):
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


class WindowLinear(nn.Module):
    """A linear layer whose weight gets its gradient once, when all steps of the window have been gone back through.

    The bias enters every step through one node of the graph. That node's gradient is complete only after every step's,
    and then the weight's is computed too.
    """

    def __init__(self, weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None) -> None:
        super().__init__()
        self.weight, self.bias, self.uses = weight, bias, _Uses(weight.dtype, sums_bias=False)
        self._weight = weight.detach()
        self._learning = weight, weight.new_zeros(len(weight)) if bias is None else bias
        self._bias: Tensor | None = None

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        bias = self._bias
        if bias is None:
            bias = self._learning[1]
            if torch.is_grad_enabled():
                bias = self._bias = _Collect.apply(self.uses, *self._learning)
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        output = affine(flat, self._weight, bias)
        if output.requires_grad and bias.requires_grad:
            uses, seen = self.uses, flat.detach()
            # torch's stubs do not know that what was computed and has a gradient has a grad_fn
            output.grad_fn.register_prehook(lambda gradients: uses.add(gradients[0], seen))  # pyright: ignore[reportOptionalMemberAccess]
        return output if x.ndim == 2 else output.view(*x.shape[:-1], len(self.weight))


class _Uses:
    """Outputs' gradients and inputs of a layer's uses, multiplied as soon as there are rows enough for it to pay.

    Args:
        dtype: Of the weight.
        sums_bias: Sum up the bias's gradient too, where no use gives it by itself.
    """

    ENOUGH_ROWS = 512

    def __init__(self, dtype: torch.dtype, sums_bias: bool) -> None:
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.rows, self.dtype, self.sums_bias = 0, dtype, sums_bias
        self.grad_weight: Tensor | None = None
        self.grad_bias: Tensor | None = None

    def add(self, gradient: Float[Tensor, "B O"] | None, x: Float[Tensor, "B I"]) -> None:
        """Take in one use, unless it has no gradient: what it led to was left unused."""
        if gradient is None:
            return
        self.waiting.append((gradient, x))
        self.rows += len(x)
        if self.rows >= self.ENOUGH_ROWS:
            self._multiply()

    def total(self) -> tuple[Float[Tensor, "O I"] | None, Float[Tensor, "O"] | None]:
        """Return the gradients of weight and bias, of all uses."""
        if self.waiting:
            self._multiply()
        total, self.grad_weight, self.grad_bias = (self.grad_weight, self.grad_bias), None, None
        return total

    def _multiply(self) -> None:
        columns = zip(*self.waiting, strict=True)
        gradients, inputs = (as_type(x[0] if len(x) == 1 else torch.cat(x), self.dtype) for x in columns)
        self.waiting, self.rows = [], 0
        with full_precision(gradients):
            if self.grad_weight is None:
                self.grad_weight = product(gradients.T, inputs.T)
                self.grad_bias = gradients.sum(0) if self.sums_bias else None
                return
            self.grad_weight += product(gradients.T, inputs.T)
            if self.grad_bias is not None:
                self.grad_bias += gradients.sum(0)


class _Collect(torch.autograd.Function):
    """The bias, with the weight behind it: what every use hangs on."""

    @staticmethod
    def forward(ctx, uses, weight, bias):
        ctx.uses = uses
        ctx.set_materialize_grads(False)
        return bias.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_bias):
        grad_weight, summed = ctx.uses.total()
        return None, grad_weight, grad_bias if summed is None else summed


class WindowLSTMCell(nn.Module):
    """An LSTM cell as one operation: a product of [input, hidden], and the gates.

    i, f, g, o = [x, h] · weightᵀ + bias (+ share);   c' = σ(f) · c + σ(i) · tanh(g);   h' = σ(o) · tanh(c')
    """

    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        self._parameters = cell._parameters
        with torch.enable_grad():  # whoever acts has gradients switched off as a window begins
            weight = torch.cat([cell.weight_ih, cell.weight_hh], -1)
            bias = cell.bias_ih + cell.bias_hh if cell.bias else weight.new_zeros(len(weight))
        self.uses = _Uses(weight.dtype, sums_bias=True)
        self._weight, self._learning = weight.detach(), (weight, bias)
        self._recurrent = cell.weight_hh.detach()
        self._bias: Tensor | None = None

    def forward(
        self,
        x: Float[Tensor, "B I"],
        state: tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]],
        share: Float[Tensor, "B G"] | None = None,
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        bias = self._bias
        if bias is None:
            bias = self._learning[1]
            if torch.is_grad_enabled():
                bias = self._bias = _Collect.apply(self.uses, *self._learning)
        with full_precision(x):
            dtype = self._weight.dtype
            share = None if share is None else as_type(share, dtype)
            return _LSTMStep.apply(bias, (self._weight, self._recurrent), self.uses, as_type(x, dtype), *state, share)


class _LSTMStep(torch.autograd.Function):
    """A step of an LSTM cell, whose gates come in the order input, forget, candidate, output.

    Its weights are those of [x, h], and those of h alone.
    """

    @staticmethod
    def forward(ctx, bias, weights, uses, x, hidden, cell, share):
        size, weight = cell.shape[-1], weights[0]
        entry = torch.cat([x, hidden], -1)
        gates = product(entry, weight, bias)
        if share is not None:
            gates += share
        active = torch.sigmoid(gates)
        torch.tanh(gates[:, 2 * size : 3 * size], out=active[:, 2 * size : 3 * size])
        i, f, g, o = parts = active.chunk(4, -1)
        new_cell = torch.addcmul(f * cell, i, g)
        squashed = new_cell.tanh()
        # Neither of these is an output, so that keeping them here makes no cycle, and is quicker than saving them.
        ctx.kept = weights, uses, entry, active, parts, cell, squashed
        return o * squashed, new_cell

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hidden, grad_cell):
        assert ctx.kept is not None, "a window is gone back through once"
        (weight, recurrent), uses, entry, active, (i, f, g, o), cell, squashed = ctx.kept
        ctx.kept = None
        output_to_cell = torch.addcmul(o, o * squashed, squashed, value=-1)  # o · tanh'(c')
        grad_cell = torch.addcmul(grad_cell, grad_hidden, output_to_cell)
        grad_gates = torch.addcmul(active, active, active, value=-1)  # σ' = σ (1 − σ)
        of_i, of_f, of_g, of_o = grad_gates.chunk(4, -1)
        of_i.mul_(grad_cell).mul_(g)
        of_f.mul_(grad_cell).mul_(cell)
        torch.mul(grad_cell, i, out=of_g).addcmul_(of_g * g, g, value=-1)  # tanh' = 1 − tanh²
        of_o.mul_(grad_hidden).mul_(squashed)
        if ctx.needs_input_grad[0]:
            uses.add(grad_gates, entry)
        sizes = [entry.shape[1] - cell.shape[1], cell.shape[1]]
        with full_precision(grad_gates):
            if ctx.needs_input_grad[3]:
                grad_x, grad_before = product(grad_gates, weight.T).split_with_sizes(sizes, -1)
            else:
                grad_x, grad_before = None, product(grad_gates, recurrent.T)
        grad_share = grad_gates if ctx.needs_input_grad[6] else None
        return None, None, None, grad_x, grad_before, grad_cell * f, grad_share
