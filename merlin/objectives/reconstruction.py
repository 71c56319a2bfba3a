"""The loss of observations that a latent decodes, and what it tells: shared by agents that predict what they see."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from merlin.experience import Unroll
from merlin.networks.decoders import Decoder
from merlin.networks.spaces import ROOT
from merlin.objectives.policy_gradient import masked_mean
from merlin.ranges import COST, Settings


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(Settings):
    """Weights of what is decoded, by kind of entry."""

    image_cost: Annotated[float, COST] = 1.0
    """Weight of the reconstruction of images."""
    symbols_cost: Annotated[float, COST] = 1.0
    """Weight of the reconstruction of symbolic grids."""
    vector_cost: Annotated[float, COST] = 1.0
    """Weight of the reconstruction of vectors."""
    category_cost: Annotated[float, COST] = 1.0
    """Weight of the reconstruction of categories."""
    text_cost: Annotated[float, COST] = 1.0
    """Weight of the reconstruction of texts."""


TAKEN = frozenset(
    "action discount entropy expected kl policy_kl posterior_entropy prior prior_entropy prior_kl reconstruction "
    "reward reward_prediction value".split()
)
"""Of what else there are metrics `..._nats`, `..._accuracy`, `..._recall` or `..._explained`."""


def observation_loss(
    decoder: Decoder, config: ReconstructionConfig, decoded: dict[str, Tensor], unroll: Unroll
) -> tuple[Float[Tensor, "T B"], dict[str, Float[Tensor, "T B"]]]:
    """Return the weighted loss of what was decoded against what was observed, and each entry's nats."""
    nats = decoder.nats(decoded, unroll.observation)
    losses = decoder.losses(decoded, unroll.observation, nats, unroll.is_valid)
    costs = {name: getattr(config, f"{decoder.kinds[name]}_cost") for name in losses}
    return sum_entries((costs[name] * x for name, x in losses.items()), unroll.reward), nats


@torch.no_grad()
def reconstruction_metrics(
    decoder: Decoder, decoded: dict[str, Tensor], nats: dict[str, Float[Tensor, "T B"]], unroll: Unroll
) -> dict[str, Tensor]:
    """Return each entry's nats, accuracy, recall and explained part, and the explained part of all."""

    def mean(x: Tensor) -> Tensor:
        return masked_mean(x, unroll.is_valid)

    floor = decoder.floor_nats(unroll.observation)
    excess = {name: mean(x - floor[name]) for name, x in nats.items()}
    worth = decoder.marginal_nats()
    called = {name: metric_name(name, nats) for name in nats}
    metrics = {f"{called[name]}_nats": mean(x) for name, x in nats.items()}
    accuracy = decoder.accuracy(decoded, unroll.observation)
    metrics |= {f"{called[name]}_accuracy": mean(x) for name, x in accuracy.items()}
    recall = decoder.recall(decoded, unroll.observation, unroll.is_valid)
    metrics |= {f"{called[name]}_recall": x for name, x in recall.items()}
    metrics |= {f"{called[name]}_explained": explained(x, worth[name]) for name, x in excess.items()}
    sums = (sum_entries(x.values(), unroll.reward.new_zeros(())) for x in (excess, worth))
    return metrics | {"observation_explained": explained(*sums)}


def metric_name(entry: str, entries: Collection[str]) -> str:
    """Return what metrics call an entry: by its name, unless there are metrics of something else by that name.

    Args:
        entries: All of the observation.
    """
    is_taken = entry in TAKEN or (entry == ROOT and len(entries) > 1)
    return f"entry_{entry}" if is_taken else entry


def explained(excess: Float[Tensor, ""], worth: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the part of an entry that is decoded: 0 is no better than the best constant guess, 1 perfect.

    It is NaN of an entry that never changes.

    Args:
        excess: Nats beyond those that no decoder can do without.
        worth: Those of the best constant guess.
    """
    return torch.where(worth > 0, 1 - excess / worth, torch.nan).to(excess.dtype)


def sum_entries(entries: Iterable[Tensor], like: Tensor) -> Tensor:
    """Return the sum of entries; zeros where there are none, as an observation may have none."""
    return sum(entries, like.new_zeros(()))
