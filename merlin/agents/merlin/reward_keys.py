"""Read keys that need not be learnt, since whoever remembers asks for the same first: where was reward?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from merlin import distributed
from merlin.memory.content import unit
from merlin.precision import KeepsSums


class RewardKeys(KeepsSums):
    """Up to four read keys: what was rewarded, the same where it looked like now, what led to it, the same again.

        gap       = r − mean r of the window
        after     = Σ gap · z / ½ Σ |gap|      r came with what z was inferred from
        before    = Σ gap · z / ½ Σ |gap|      r was earned by the action that followed z
        keys      = [â, 0],  [â + LIKENESS · ẑ, 0],  [b̂, â],  [b̂ + LIKENESS · ẑ, â]
        strengths = STRENGTH · min(1, the longer of after and before / spread of z)

    Where rewards are 0 or 1, `after` and `before` are the mean z at 1 less the mean z at 0. â, b̂ and ẑ point along
    after, before and z − mean z, and are of length 1. The second half of a key asks for a slot's trace, which holds
    what was written soon after it: a latent that led to reward is one that a rewarded latent followed.

    The sums are over about the last 50 windows, decayed, so that they follow a code that changes. Where rewards never
    differ nothing is asked for. Ours, not the paper's.

    Args:
        latent_size: Z.
        count: J, how many of them, the first ones.
    """

    KEPT = 0.98
    LIKENESS = 0.5
    STRENGTH = 20.0

    summed = ("sums",)
    sums: Float[Tensor, "S"]
    """Of gap · z, after and before, and of z, Z each; of ½ |gap|, after and before; of |z|²; rows."""

    def __init__(self, latent_size: int, count: int = 4) -> None:
        super().__init__()
        self.count = count
        self.sizes = [2 * latent_size, latent_size, 2, 1, 1]
        self.register_buffer("sums", torch.zeros(sum(self.sizes)))

    def forward(
        self, latent: Float[Tensor, "B Z"], slot_size: int
    ) -> tuple[Float[Tensor, "B J W"], Float[Tensor, "B J"]]:
        """Return the keys and their strengths.

        Args:
            slot_size: W; Z where the memory has no retroactive half, which then is not asked for.
        """
        moved, total, gaps, squares, rows = self.sums.split(self.sizes)
        mean = total / rows.clamp(min=1)
        spread = (squares / rows.clamp(min=1) - mean.square().sum()).clamp(min=1e-12).sqrt()
        rewarded = moved.view(2, -1) / (gaps.clamp(min=1e-12) * spread).unsqueeze(1)
        after, before = unit(rewarded).unsqueeze(1).expand(2, *latent.shape)
        here, nothing = self.LIKENESS * unit(latent.detach() - mean), torch.zeros_like(after)
        asked = [(after, nothing), (after + here, nothing), (before, after), (before + here, after)]
        keys = torch.stack([torch.cat(halves, 1) for halves in asked[: self.count]], 1)
        strength = self.STRENGTH * torch.linalg.vector_norm(rewarded, dim=1).max().clamp(max=1)
        return F.pad(keys, (0, slot_size - keys.shape[2])), strength.expand(*latent.shape[:1], self.count)

    @torch.no_grad()
    def update(
        self,
        latent: Float[Tensor, "T B Z"],
        previous_reward: Float[Tensor, "T B"],
        reward: Float[Tensor, "T B"],
        counts: Bool[Tensor, "T B"],
    ) -> None:
        """Take in a window.

        Args:
            previous_reward: That which came with each row's observation.
            reward: That which the row's action earned.
            counts: Rows that do.
        """
        rows = counts.sum()
        latent, previous_reward, reward = (x.to(self.sums.dtype) for x in (latent, previous_reward, reward))
        latent = torch.where(counts.unsqueeze(-1), latent, 0.0)  # a row that does not count may hold anything
        rewards = torch.where(counts, torch.stack([previous_reward, reward]), 0.0)
        mean = rewards.sum((1, 2), keepdim=True) / rows.clamp(min=1)
        gap = torch.where(counts, rewards - mean, 0.0)
        moved = torch.einsum("rtb,tbz->rz", gap, latent)
        numbers = torch.stack([*(0.5 * gap.abs().sum((1, 2))), latent.square().sum(), rows])
        sums = torch.cat([moved.flatten(), latent.sum((0, 1)), numbers])
        sums = distributed.total(sums)
        self.sums.mul_(torch.where(sums[-1] > 0, self.KEPT, 1.0)).add_(sums)
