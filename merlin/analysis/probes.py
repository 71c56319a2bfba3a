"""Linear probes of frozen features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

DECAYS = (10.0, 1.0, 1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
TRAIN, VALIDATION, TEST = 0, 1, 2


def guess_class(
    features: Float[Tensor, "R _"],
    target: Int[Tensor, "R"],
    fold: Int[Tensor, "R"],
    cost: Float[Tensor, "C C"],
    decays: Sequence[float] = DECAYS,
    iterations: int = 100,
) -> Int[Tensor, "A"]:
    """Return the guesses of a linear probe, a softmax of a linear map of features, in the rows of the test fold.

    A guess is the class whose mean cost, by the softmax's probabilities, is lowest. Without features the softmax says
    how frequent each class is. Fitted by L-BFGS from there, so that nothing depends on a rate or a seed. Rows of one
    episode belong in one fold.

    Args:
        fold: `TRAIN`, `VALIDATION`, which chooses the weight decay and is then trained on as well, or `TEST`.
        cost: Of each guess (second) where each class (first) is true: 1 - eye for mistakes, or distances.
        decays: Of which the one with the lowest cost is taken, the first of equals.
    """
    known = features[fold != TEST].double()
    rows = (features.double() - known.mean(0)) / (known.std(0) + 1e-6)
    num_classes, cost = len(cost), cost.double()

    def guess(train: Tensor, test: Tensor, decay: float) -> Int[Tensor, "_"]:
        usual = (torch.bincount(target[train], minlength=num_classes) + 1.0 / num_classes).double().log()
        weight = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype, requires_grad=True)
        bias = torch.zeros(num_classes, dtype=rows.dtype, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(rows[train] @ weight.T + bias + usual, target[train])
            value = value + decay * (weight.square().sum() + bias.square().sum())
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return ((rows[test] @ weight.T + bias + usual).detach().softmax(-1) @ cost).argmin(-1)

    def mean_cost(decay: float) -> float:
        chosen = guess(fold == TRAIN, fold == VALIDATION, decay)
        return float(cost[target[fold == VALIDATION], chosen].mean())

    best = min(decays, key=mean_cost) if len(decays) > 1 else decays[0]
    return guess(fold != TEST, fold == TEST, best)


def manhattan(one: Int[Tensor, "*#R"], other: Int[Tensor, "*#R"], width: int) -> Int[Tensor, "*R"]:
    """Return the distance in steps along rows and columns between cells that count y · width + x."""
    return (one % width - other % width).abs() + (one // width - other // width).abs()
