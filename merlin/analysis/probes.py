"""What can be read off frozen features by a linear map."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
FITTED, CHOOSING, ASKED = 0, 1, 2


def fit_probe(
    features: Float[Tensor, "R _"],
    target: Int[Tensor, "R"],
    fold: Int[Tensor, "R"],
    num_classes: int,
    decays: Sequence[float] = DECAYS,
    iterations: int = 100,
) -> Float[Tensor, "A C"]:
    """Return what a softmax of a linear map of features makes of the rows that it has not seen: probabilities.

    Fitted by L-BFGS from zero, so that nothing depends on a rate or a seed. Rows of one episode belong in one fold.

    Args:
        fold: 0 to fit to, 1 to choose the weight decay by, after which those rows are fitted to as well, 2 to ask.
    """
    known = features[fold != ASKED].double()
    rows = (features.double() - known.mean(0)) / (known.std(0) + 1e-6)

    def say(fitted: Tensor, asked: Tensor, decay: float) -> Float[Tensor, "_ C"]:
        weight = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype, requires_grad=True)
        bias = torch.zeros(num_classes, dtype=rows.dtype, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(rows[fitted] @ weight.T + bias, target[fitted]) + decay * weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return (rows[asked] @ weight.T + bias).detach()

    def nats(decay: float) -> float:
        return float(F.cross_entropy(say(fold == FITTED, fold == CHOOSING, decay), target[fold == CHOOSING]))

    best = min(decays, key=nats) if len(decays) > 1 else decays[0]
    return say(fold != ASKED, fold == ASKED, best).softmax(-1)


def manhattan(one: Int[Tensor, "*#R"], other: Int[Tensor, "*#R"], width: int) -> Int[Tensor, "*R"]:
    """Return the distance in steps along rows and columns between cells that count y · width + x."""
    return (one % width - other % width).abs() + (one // width - other // width).abs()
