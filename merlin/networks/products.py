"""Products of float32 matrices by the library that is quicker on this processor.

PyTorch gives them to Intel's MKL, which uses AVX-512 on Intel's processors alone and leaves half of an AMD processor's
vector units idle. oneDNN, which comes with PyTorch too, uses them, and is twice as fast from a few million
multiplications on. Both compute in float32 and differ by rounding. MERLIN_ONEDNN=0 in the environment takes MKL
everywhere, 1 oneDNN wherever it is built in.
"""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from merlin.precision import is_transformed

LEAST_ROWS, LEAST_MULTIPLICATIONS = 16, 2**21
"""Below these oneDNN is no quicker, as each call costs it more."""


@cache
def has_idle_units() -> bool:
    """Return whether oneDNN uses vector units of this processor that MKL does not."""
    chosen = os.environ.get("MERLIN_ONEDNN")
    if chosen == "0" or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if chosen == "1":
        return True
    about = Path("/proc/cpuinfo")
    vendor = about.read_text(errors="replace") if about.exists() else platform.processor()
    is_amd = "AuthenticAMD" in vendor
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkl.is_available()


def goes_to_onednn(x: Float[Tensor, "*batch K"], y: Float[Tensor, "N K"]) -> bool:
    """Return whether oneDNN is to multiply x by yᵀ."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and has_idle_units()
        and type(x) in (Tensor, nn.Parameter)  # none that stands for one while a graph is made, and sizes are symbols
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * len(y) >= LEAST_MULTIPLICATIONS
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
    )


def product(x: Float[Tensor, "M K"], y: Float[Tensor, "N K"], bias: Float[Tensor, "N"] | None = None) -> Tensor:
    """Return x yᵀ + bias, without gradients."""
    if goes_to_onednn(x, y):
        return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(y), bias, "none", [], "")
    return x @ y.T if bias is None else torch.addmm(bias, x, y.T)


def _dense(x: Float[Tensor, "M K"]) -> Float[Tensor, "M K"]:
    """Return the matrix by rows or by columns without gaps: oneDNN takes others ten times as slowly."""
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()


def flop_formulas() -> dict[Any, Any]:
    """Return what `torch.utils.flop_counter.FlopCounterMode` does not know of itself, as its `custom_mapping`."""

    def flops(x: tuple[int, ...], y: tuple[int, ...], *_: Any, **__: Any) -> int:
        return 2 * x[0] * x[1] * y[0]

    return {torch.ops.mkldnn._linear_pointwise: flops} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}


def affine(
    x: Float[Tensor, "*batch K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, "N"] | None = None
) -> Float[Tensor, "*batch N"]:
    """Return x weightᵀ + bias, as `torch.nn.functional.linear` does."""
    if not goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    if x.ndim == 2:
        return _Affine.apply(x, weight, bias)
    return _Affine.apply(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`torch.nn.Linear`, whose products are of this file."""

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        return affine(input, self.weight, self.bias)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient):
        x, weight = ctx.saved_tensors
        multiply = (lambda a, b: a @ b.T) if torch.is_grad_enabled() else product  # for a gradient of the gradient
        needs = ctx.needs_input_grad
        return (
            multiply(gradient, weight.T) if needs[0] else None,
            multiply(gradient.T, x.T) if needs[1] else None,
            gradient.sum(0) if needs[2] else None,
        )
