"""Tasks whose goal is reached again and again: the agent is put elsewhere each time, and the goal stays."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .mazes import draw_places
from .world import GridWorld, Verdict


class Returning(GridWorld):
    """A batch of grid worlds in which every arrival at the goal earns 1 and begins a sub-episode at another place.

    An episode lasts max_steps. Its success is to have come back: at least two arrivals. `info` also has, at each step,
    `reached_goal`, `steps_to_goal` (since the sub-episode began, NaN unless the goal was reached just now) and
    `sub_episode` (that the step belongs to, from 0).

    Where each sub-episode begins is drawn with the layout: see `draw_itinerary`. Actions: 0 turn left, 1 turn right,
    2 forward.
    """

    num_actions = 3
    extra_names = ("itinerary", "sub_episode", "sub_episode_steps")

    def draw_itinerary(
        self, is_allowed: Bool[Tensor, "L H W"], generator: torch.Generator
    ) -> tuple[Int64[Tensor, "L"], Int64[Tensor, "L"], Int64[Tensor, "L"], dict[str, Tensor]]:
        """Return x, y and direction of the first start, and the state that holds those of all sub-episodes."""
        count, number = len(is_allowed), self.max_steps + 1  # a goal a step, at most
        x, y = draw_places(is_allowed, number, generator)
        direction = torch.randint(4, (count, number), generator=generator, device=self.device)
        zeros = torch.zeros_like(x[:, 0])
        poses = (4 * self.place(x, y) + direction).to(torch.int32)
        extra = {"itinerary": poses, "sub_episode": zeros, "sub_episode_steps": zeros}
        return x[:, 0], y[:, 0], direction[:, 0], extra

    def move_on(self, arrives: Bool[Tensor, "B"], leaves: Bool[Tensor, "B"]) -> Verdict:
        """Begin the next sub-episode where the agent leaves the goal; return what the step was worth."""
        steps = self.sub_episode_steps + 1
        info = {
            "reached_goal": arrives,
            "steps_to_goal": torch.where(arrives, steps.float(), torch.nan),
            "sub_episode": self.sub_episode,
        }
        self.sub_episode = self.sub_episode + leaves
        self.sub_episode_steps = steps.masked_fill(leaves, 0)
        pose = self.itinerary.gather(1, self.sub_episode.unsqueeze(1)).squeeze(1).long()
        self.position = torch.where(leaves, pose >> 2, self.position)
        self.direction = torch.where(leaves, pose & 3, self.direction)
        num_arrivals = self.sub_episode + (arrives & ~leaves)
        return Verdict(arrives.float(), torch.zeros_like(arrives), num_arrivals >= 2, info)
