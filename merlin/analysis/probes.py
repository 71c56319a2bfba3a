"""What can be read off frozen features by a linear map."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class Probe(NamedTuple):
    """What a probe says on rows that it was not fitted to, and what says as much without any features."""

    guess: Int[Tensor, "R"]
    constant: int


def fit_probe(
    features: Float[Tensor, "R _"],
    target: Int[Tensor, "R"],
    is_fitted_to: Bool[Tensor, "R"],
    num_classes: int,
    *,
    weight_decay: float = 1e-4,
    iterations: int = 100,
) -> Probe:
    """Fit a softmax over classes to some rows of features, standardised, and return its guesses on the others.

    `constant` is the class that most rows are of. Fitted by L-BFGS, so that nothing depends on a rate or a seed.
    """
    fitted, others = features[is_fitted_to].double(), features[~is_fitted_to].double()
    mean, std = fitted.mean(0), fitted.std(0) + 1e-6
    fitted, others, wanted = (fitted - mean) / std, (others - mean) / std, target[is_fitted_to]
    weight = torch.zeros(num_classes, fitted.shape[1], dtype=fitted.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=fitted.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(fitted @ weight.T + bias, wanted) + weight_decay * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    guess = (others @ weight.T + bias).argmax(-1)
    return Probe(guess, int(torch.bincount(wanted, minlength=num_classes).argmax()))


def manhattan(one: Int[Tensor, "*R"], other: Int[Tensor, "*R"], width: int) -> Int[Tensor, "*R"]:
    """Return the distance in steps along rows and columns between cells that count y · width + x."""
    return (one % width - other % width).abs() + (one // width - other // width).abs()
