"""A codebook: encodings made discrete by the code nearest to each. Van den Oord et al. 2017, arXiv:1711.00937.

Axes: K codes of W numbers each; M encodings, the rows of a batch.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from merlin import distributed
from merlin.errors import MerlinError
from merlin.latents import pass_gradient
from merlin.precision import KeepsSums, full_precision

SMOOTHING = 1e-5
"""ε of the counts that sums are divided by."""


class Quantized(NamedTuple):
    """Encodings as codes.

    Attributes:
        vectors: The nearest codes; their gradient goes to the encodings as it is.
        loss: Squared distances that encoder and codebook are to lessen, to be added to what decoding costs.
        perplexity: Of this batch, from 1 to K: how many codes, used alike, would carry as much.
        codes_used: By this batch.
    """

    vectors: Float[Tensor, "*batch W"]
    indices: Int64[Tensor, "*batch"]
    loss: Float[Tensor, "*batch"]
    perplexity: Float[Tensor, ""]
    codes_used: Int64[Tensor, ""]


class Codebook(KeepsSums):
    """K codes, the nearest of which takes the place of an encoding, with a straight-through gradient.

        i       = argminₖ ‖u − codes[k]‖²
        vectors = codes[i],  ∂vectors/∂u = 1
        loss    = ‖sg(u) − codes[i]‖² + β ‖u − sg(codes[i])‖²         update="loss"
        loss    = β ‖u − sg(codes[i])‖²                               update="ema", and in training

            usage[k] ← γ usage[k] + (1 − γ) · number of u whose code is k
            sums[k]  ← γ sums[k]  + (1 − γ) · sum of u whose code is k
            codes[k] = sums[k] / (usage[k] smoothed by Laplace's rule, the total preserved)

    Equations 1 to 3 and Appendix A.1 of the paper. The first batch in training seeds the codes, as k-means++ does
    (Arthur and Vassilvitskii 2007): each seed is an encoding, drawn by its squared distance to the seeds before. Codes
    that are hardly used any more are dead, and seeded again in the same way. Without this most codes may stay unused.

    In eval mode nothing changes, which is what `torch.func` allows. With several processes, counts and sums are over
    all of them, and the first one's encodings are the seeds.

    Args:
        size: K, at least 2.
        width: W, at least 1.
        commitment_cost: β, at least 0.
        update: Whether codes learn by the gradient of the loss, or are moving averages that no gradient changes.
        decay: γ of usage and of moving averages, at least 0 and less than 1.
        reseed_below: Codes used by less than this part of the mean are dead; at least 0, where none ever is, and
            less than 1.

    Raises:
        MerlinError: A number is out of its range, or the update has another name.
    """

    summed = ("usage", "sums")
    codes: Float[Tensor, "K W"]
    usage: Float[Tensor, " K"]
    sums: Float[Tensor, "K W"]

    def __init__(
        self,
        size: int,
        width: int,
        commitment_cost: float = 0.25,
        update: Literal["loss", "ema"] = "ema",
        decay: float = 0.99,
        reseed_below: float = 0.01,
    ) -> None:
        super().__init__()
        for name, value, holds, what in (
            ("size", size, isinstance(size, int) and size >= 2, "a whole number of at least 2"),
            ("width", width, isinstance(width, int) and width >= 1, "a whole number of at least 1"),
            ("commitment_cost", commitment_cost, 0 <= commitment_cost < float("inf"), "at least 0 and finite"),
            ("update", update, update in ("loss", "ema"), "loss or ema"),
            ("decay", decay, 0 <= decay < 1, "at least 0 and less than 1"),
            ("reseed_below", reseed_below, 0 <= reseed_below < 1, "at least 0 and less than 1"),
        ):
            if not holds:
                raise MerlinError(f"The {name} of a codebook must be {what}, but {value!r} came: take another.")
        self.size, self.width, self.commitment_cost = size, width, commitment_cost
        self.update, self.decay, self.reseed_below = update, decay, reseed_below
        codes = torch.randn(size, width) / size
        if update == "loss":
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)
            self.register_buffer("sums", torch.zeros(size, width))
        self.register_buffer("usage", torch.zeros(size))

    def forward(self, encodings: Float[Tensor, "*batch _"], generator: torch.Generator | None = None) -> Quantized:
        """Return the encodings as codes; in training also learn what is no gradient's: usage, seeds, moving averages.

        Args:
            generator: Of seeds.

        Raises:
            MerlinError: The last dimension is not W, or there is no encoding.
        """
        if encodings.shape[-1:] != (self.width,) or encodings.numel() == 0:
            raise MerlinError(
                f"Encodings must be one or more rows of {self.width} numbers, the codebook's width, but their shape is "
                f"{tuple(encodings.shape)}: move the numbers of an encoding to the last dimension."
            )
        rows = encodings.detach().reshape(-1, self.width).to(self.usage.dtype)
        if self.training:
            self._seed(rows, generator)
        indices = distances(rows, self.codes.detach().to(rows.dtype)).argmin(-1)
        codes = F.embedding(indices, self.codes).view(encodings.shape)
        loss = self.commitment_cost * (encodings - codes.detach()).square().sum(-1)
        if self.update == "loss":
            loss = loss + (encodings.detach() - codes).square().sum(-1)
        counts = self._learn(rows, indices) if self.training else indices.bincount(minlength=self.size).to(rows.dtype)
        return Quantized(
            pass_gradient(codes.detach(), encodings),
            indices.view(encodings.shape[:-1]),
            loss,
            perplexity(counts),
            (counts > 0).sum(),
        )

    @torch.no_grad()
    def _seed(self, rows: Float[Tensor, "M W"], generator: torch.Generator | None) -> None:
        """Let encodings be the codes that are dead, or all of them before any batch, used by a fair share of these."""
        is_dead = (self.usage < self.reseed_below * self.usage.mean()) | (self.usage.sum() == 0)
        if not is_dead.any():
            return
        seeds = draw_apart(rows, self.codes[~is_dead].to(rows.dtype), int(is_dead.sum()), generator)
        seeds = distributed.total(seeds if distributed.rank() == 0 else torch.zeros_like(seeds))
        share = distributed.total(self.usage.new_tensor(len(rows))) / self.size
        self.codes[is_dead] = seeds.to(self.codes.dtype)
        self.usage[is_dead] = share
        if self.update == "ema":
            self.sums[is_dead] = share * seeds

    @torch.no_grad()
    def _learn(self, rows: Float[Tensor, "M W"], indices: Int64[Tensor, " M"]) -> Float[Tensor, " K"]:
        """Count which codes were used, move the averages on, and return the counts."""
        # A product of one-hots: sums by index have no fixed order on a GPU.
        one_hots = F.one_hot(indices, self.size).to(rows.dtype)
        with full_precision(rows):
            sums = one_hots.T @ rows
        counts, sums = distributed.total(torch.cat([one_hots.sum(0).unsqueeze(1), sums], 1)).tensor_split([1], 1)
        self.usage.lerp_(counts.squeeze(1), 1 - self.decay)
        if self.update == "ema":
            self.sums.lerp_(sums, 1 - self.decay)
            total = self.usage.sum()
            smoothed = (self.usage + SMOOTHING) * (total / (total + self.size * SMOOTHING))
            # A code of which nothing is counted has no mean, and stays.
            self.codes.copy_(torch.where((self.usage > 0).unsqueeze(1), self.sums / smoothed.unsqueeze(1), self.codes))
        return counts.squeeze(1)


def distances(rows: Float[Tensor, "M W"], centres: Float[Tensor, "C W"]) -> Float[Tensor, "M C"]:
    """Return how far each row is from each centre, wherever the origin is.

    `cdist` makes them of squares and products, of which far from the origin nothing is left but rounding.
    """
    origin = centres.mean(0)
    return torch.cdist(rows - origin, centres - origin)


def perplexity(counts: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Return exp(−Σ p log p), p = counts / Σ counts: K where all are alike, 1 where one has everything."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


def draw_apart(
    rows: Float[Tensor, "M W"], centres: Float[Tensor, "C W"], number: int, generator: torch.Generator | None = None
) -> Float[Tensor, "number W"]:
    """Return rows far from each other: each drawn by its squared distance to the nearest centre and row drawn before.

    The first is drawn uniformly if there is no centre. Arthur and Vassilvitskii 2007, k-means++.
    """
    drawn = rows.new_empty(number, rows.shape[1])
    gaps = distances(rows, centres).square().amin(1) if len(centres) else torch.ones_like(rows[:, 0])
    for i in range(number):
        # Not exactly 0: where there are fewer different rows than draws, some must be drawn again.
        chosen = torch.multinomial(gaps.clamp(min=torch.finfo(gaps.dtype).tiny), 1, generator=generator)
        drawn[i] = rows[chosen[0]]
        gap = (rows - drawn[i]).square().sum(1)
        gaps = gap if i == 0 and not len(centres) else torch.minimum(gaps, gap)
    return drawn
