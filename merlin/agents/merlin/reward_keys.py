"""Read keys that need not be learnt, since all ask first for the same: where was reward?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from merlin import distributed
from merlin.memory.content import unit


class RewardKeys(nn.Module):
    """Two read keys: what latents have more of where reward came, and the same mixed with the present latent.

        gap       = r − mean r of the window                    r came with the observation that z was inferred from
        rewarded  = Σ gap · z / ½ Σ |gap|                       where rewards are 0 or 1: mean z at 1 less mean z at 0
        keys      = [û, û + LIKENESS · ẑ],   û, ẑ of length 1   along rewarded, and along z − mean z
        strengths = STRENGTH · min(1, |rewarded| / spread of z)

    The sums are over about the last 50 windows, decayed, so that they follow a code that changes. Where rewards never
    differ nothing is asked for. Ours, not the paper's.

    Args:
        latent_size: Z.
    """

    KEPT = 0.98
    LIKENESS = 0.5
    STRENGTH = 20.0
    COUNT = 2
    """Keys."""

    sums: Float[Tensor, "S"]
    """Of gap · z and of z, Z each; of ½ |gap|, |z|² and rows."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.sizes = [latent_size, latent_size, 1, 1, 1]
        self.register_buffer("sums", torch.zeros(sum(self.sizes)))

    def forward(
        self, latent: Float[Tensor, "B Z"], slot_size: int
    ) -> tuple[Float[Tensor, "B 2 W"], Float[Tensor, "B 2"]]:
        """Return the keys, 0 beyond the first Z numbers of a slot, and their strengths."""
        moved, total, gaps, squares, rows = self.sums.split(self.sizes)
        mean = total / rows.clamp(min=1)
        spread = (squares / rows.clamp(min=1) - mean.square().sum()).clamp(min=1e-12).sqrt()
        rewarded = moved / gaps.clamp(min=1e-12)
        strength = self.STRENGTH * (torch.linalg.vector_norm(rewarded) / spread).clamp(max=1)
        direction = unit(rewarded).expand_as(latent)
        keys = torch.stack([direction, direction + self.LIKENESS * unit(latent.detach() - mean)], 1)
        return F.pad(keys, (0, slot_size - keys.shape[2])), strength.expand(len(latent), self.COUNT)

    @torch.no_grad()
    def update(
        self, latent: Float[Tensor, "T B Z"], reward: Float[Tensor, "T B"], counts: Bool[Tensor, "T B"]
    ) -> None:
        """Take in a window.

        Args:
            reward: That which came with each row's observation.
            counts: Rows that do.
        """
        rows = counts.sum()
        latent = torch.where(counts.unsqueeze(-1), latent, 0.0)  # a row that does not count may hold anything
        reward = torch.where(counts, reward, 0.0)
        gap = torch.where(counts, reward - reward.sum() / rows.clamp(min=1), 0.0)
        moved, total = torch.einsum("tb,tbz->z", gap, latent), latent.sum((0, 1))
        sums = torch.cat([moved, total, torch.stack([0.5 * gap.abs().sum(), latent.square().sum(), rows])])
        self.sums.mul_(self.KEPT).add_(distributed.total(sums))
