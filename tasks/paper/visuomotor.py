"""Arbitrary visuomotor mapping: learn within an episode, from reward alone, which response each picture asks for.

    trial      0    1    2    3    4    5    6   ...
    picture    A    A    A    B    A    B    A          right: A -> 2, B -> 0
    response   0    1    2    0    2    ...
    reward          0    0    1    1    1
    in play    1    1    1    2    3    3    ...        B joins once A is mastered, C once both are

Every episode draws the right response of each picture anew, uniformly and independently. A trial shows one of the
pictures in play, each equally likely; the right response earns 1, any other 0. A picture joins, until all are in play,
whenever the latest response to each picture in play was right. Wise & Murray 2000 (Trends in Neurosciences 23);
as a task for memory agents: Wayne et al. 2018 (MERLIN), arXiv:1803.10760.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..base.vector import TensorVectorEnv
from .glyphs import GLYPH_SIZE, make_glyphs

_GREEN, _ORANGE, _GREY = (40, 170, 80), (230, 150, 30), (190, 190, 190)


class VisuomotorMapping(TensorVectorEnv):
    """Visuomotor mapping, batched. What an action earned is told by the reward only.

    Observation: the number of the picture, or the picture itself. Action: a response. All environments are at the same
    trial of their episodes. An episode is a success if all pictures are in play at its end and the latest response to
    each was right. `info["num_in_play"]` counts the pictures in play at the trial that was answered.

    Args:
        pictures: How many there are.
        responses: How many there are to choose from.
        trials: Steps of an episode.
        view: "symbolic" shows the picture as a number, "picture" as a 28x28 glyph.
        glyph_seed: Chooses the glyphs; the same for all environments and episodes.
    """

    state_names = ("right_responses", "chances", "num_in_play", "is_mastered", "picture", "response", "num_trials")

    def __init__(
        self,
        num_envs: int = 1,
        pictures: int = 4,
        responses: int = 4,
        trials: int = 50,
        view: str = "symbolic",
        glyph_seed: int = 0,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        for name, value, least in (("pictures", pictures, 1), ("responses", responses, 2), ("trials", trials, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}.")
        if view not in ("symbolic", "picture"):
            raise ValueError(f"view must be 'symbolic' or 'picture', but is {view!r}.")
        self.pictures, self.responses, self.trials, self.view = pictures, responses, trials, view
        glyph_space = spaces.Box(0, 255, (GLYPH_SIZE, GLYPH_SIZE, 1), np.uint8)
        observation_space = spaces.Discrete(pictures) if view == "symbolic" else glyph_space
        super().__init__(num_envs, observation_space, spaces.Discrete(responses), device, render_mode)
        self.glyphs = torch.from_numpy(make_glyphs(pictures, glyph_seed)[1:]).to(self.device)
        self.numbers = torch.arange(responses, device=self.device)
        self.scores = scores(pictures, responses, trials)
        self.action_names = tuple(f"response {number}" for number in range(1, responses + 1))
        self._start()

    def _start(self) -> None:
        envs, device = self.num_envs, self.device
        self.right_responses = torch.randint(
            self.responses, (envs, self.pictures), device=device, generator=self.generator
        )
        # double: in single precision a chance times a number of pictures may round up to that number
        self.chances = torch.rand(envs, self.trials + 1, dtype=torch.float64, device=device, generator=self.generator)
        self.num_in_play = torch.ones(envs, dtype=torch.int64, device=device)
        self.is_mastered = torch.zeros(envs, self.pictures, dtype=torch.bool, device=device)
        self.picture = torch.zeros_like(self.num_in_play)
        self.response = torch.full_like(self.picture, -1)  # the one just given
        self.num_trials = torch.zeros((), dtype=torch.int64, device="cpu")  # where asking for the end costs no sync

    def _observe(self) -> Tensor:
        return self.picture if self.view == "symbolic" else self.glyphs.index_select(0, self.picture)

    def _step(
        self, actions: Int[Tensor, " B"]
    ) -> tuple[Tensor, Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        self.response = self.numbers.index_select(0, actions)
        picture, num_answered = self.picture.unsqueeze(1), self.num_in_play
        is_right = self.right_responses.gather(1, picture) == self.response.unsqueeze(1)
        self.is_mastered = self.is_mastered.scatter(1, picture, is_right)
        joins = self.is_mastered.sum(1) == self.num_in_play
        self.num_in_play = (self.num_in_play + joins).clamp(max=self.pictures)
        self.num_trials = self.num_trials + 1
        trial = int(self.num_trials)
        self.picture = (self.chances[:, trial] * self.num_in_play).to(torch.int64)

        reward = is_right.squeeze(1).to(torch.float32)
        *outcome, info = self._end_together(reward, trial == self.trials, lambda: self.is_mastered.all(1))
        return *outcome, info | {"num_in_play": num_answered}

    def draw(self, index: int) -> np.ndarray:
        """Return the pictures in play, the present one framed, a bar under those mastered; below, the last response."""
        cell = GLYPH_SIZE + 8
        canvas = np.full((2 * cell, max(self.pictures, self.responses) * cell, 3), 255, np.uint8)
        for picture in range(int(self.num_in_play[index])):
            left = picture * cell
            if picture == self.picture[index]:
                canvas[:cell, left : left + cell] = _ORANGE
            if self.is_mastered[index, picture]:
                canvas[cell : cell + 4, left : left + cell] = _GREEN
            canvas[4 : cell - 4, left + 4 : left + cell - 4] = self.glyphs[picture].cpu().numpy()
        for response in range(self.responses):
            left = response * cell + 4
            colour = _ORANGE if response == self.response[index] else _GREY
            canvas[cell + 8 : -8, left + 4 : left + GLYPH_SIZE - 4] = colour
        return canvas


class SingleVisuomotorMapping(SingleEnv):
    batched = VisuomotorMapping


class Oracle:
    """A best policy: the response known to be right, else one that was not tried yet. It needs no more than rewards."""

    def __init__(self, env: VisuomotorMapping):
        self.env = env
        self.rows = torch.arange(env.num_envs, device=env.device)
        self.is_ruled_out = torch.zeros(env.num_envs, env.pictures, env.responses, dtype=torch.bool, device=env.device)
        self.picture = self.response = torch.zeros_like(env.picture)

    def __call__(self, observation: Tensor) -> Int[Tensor, " B"]:
        if int(self.env.num_trials) == 0:
            self.is_ruled_out = torch.zeros_like(self.is_ruled_out)
        else:
            was_right = self.env.is_mastered[self.rows, self.picture]  # tells what the reward did
            is_answer = self.env.numbers == self.response.unsqueeze(1)
            self.is_ruled_out[self.rows, self.picture] |= is_answer != was_right.unsqueeze(1)
        self.picture = self._picture(observation)
        self.response = (~self.is_ruled_out[self.rows, self.picture]).int().argmax(1)
        return self.response

    def _picture(self, observation: Tensor) -> Int[Tensor, " B"]:
        if observation.ndim == 1:
            return observation
        is_glyph = (observation.unsqueeze(1) == self.env.glyphs).flatten(2).all(2)
        return is_glyph.int().argmax(1)


class Memoryless:
    """Uniformly random responses."""

    def __init__(self, env: VisuomotorMapping):
        self.env = env
        self.generator = torch.Generator(env.device).manual_seed(20000913)  # a seed that no episode is drawn from

    def __call__(self, observation: Tensor) -> Int[Tensor, " B"]:
        env = self.env
        return torch.randint(env.responses, (env.num_envs,), device=env.device, generator=self.generator)


def scores(pictures: int = 4, responses: int = 4, trials: int = 50, **_) -> dict[str, float]:
    """Return the exact expected returns of uniformly random responses and of the best policy.

    The best policy answers right what it knows and tries what it has not tried: to err on purpose, so as to keep a
    picture from joining, never pays (shown by induction over all policies for small settings in the tests).

    "memoryless" is that of random responses too, trials / responses. A fixed response to each picture earns less, for
    pictures with a wrong one keep others from joining and are shown the more; no function of the picture earns more
    where all were tried (2 or 3 pictures, 2 responses, on a grid of probabilities). A clock would add a little: a
    picture that is still shown late was probably answered wrong.
    """
    chance = trials / responses
    return {"random": chance, "memoryless": chance, "oracle": oracle_score(pictures, responses, trials)}


def oracle_score(pictures: int, responses: int, trials: int) -> float:
    """Return the expected return of the best policy, by backward induction over trials.

    At any time all pictures in play but the newest are known. State: how many of them are known, and how many
    responses to the newest were found wrong. The newest is shown once in known + 1 trials.
    """
    known = np.arange(pictures)[:, None]
    left = responses - np.arange(responses)  # that may be right
    to_come = np.zeros((pictures + 1, responses))  # [known, found wrong]; nothing comes after the last trial
    for _ in range(trials):
        right = 1 + to_come[1:, :1]
        wrong = np.append(to_come[:-1, 1:], np.zeros((pictures, 1)), axis=1)
        newest = (right + (left - 1) * wrong) / left
        to_come = np.append((known * (1 + to_come[:-1]) + newest) / (known + 1), 1 + to_come[-1:], axis=0)
    return float(to_come[0, 0])
