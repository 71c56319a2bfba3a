"""Rooms for the three phases of a task about credit: act, be distracted by apples, and then see what it was good for.

As in Hung et al. 2019, "Optimizing agent behavior over long time scales by transporting value", arXiv:1810.06721, but
on a grid: three square rooms in a row that no way joins. At the end of a phase the agent is put into the next room.

    # # # # # # # # # # D # #
    # . k . # o . o # . . . #      k: what matters in the first phase, here a key; o: apples; D: what it was good for
    # . ^ . # . ^ . # . ^ . #      the agent begins a phase in the middle of its room, and looks up
    # . . . # . o . # . . . #
    # # # # # # # # # # # # #
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..grid import cells
from ..grid.board import Board
from ..grid.layouts import FACING_UP, Layout
from ..grid.world import Moves, Verdict
from ..solvers.reactive import NOTHING, Rule
from ..solvers.scores import ScoredWorld

APPLE = cells.code("ball", "red")


class ThreePhases(ScoredWorld):
    """Three rooms, one after the other. Walking onto an apple eats it, which earns `apple_reward`.

    A task furnishes the first and the last room in `_furnish`, and says in `_judge_phases` what the last is worth. The
    info tells as `events`, [B, V], which of `event_names` happened in a step.

    Args:
        settings: The task's own arguments.
        room_size: Cells along each side of a room, odd.
        explore_steps: Steps of the first phase.
        distractor_steps: Steps of the second, at least as many as it can take to eat all apples, one after the other or
            by walking all of the room: the lesser of (2 · room_size + 1) · apples and (room_size + 2)².
        reward_steps: Steps of the third, after which the episode is truncated.
        apples: How many there are, in the second room.
        apple_reward: Of each.
        world: More arguments of `GridWorld`.
    """

    num_actions = 3
    event_names: tuple[str, ...]
    """One of them is "ate an apple"; of the others `_judge_phases` tells in its info."""
    rules = (Rule(NOTHING, cells.FORWARD, (APPLE,)),)

    def __init__(
        self,
        num_envs: int,
        settings: dict[str, Any],
        room_size: int,
        explore_steps: int,
        distractor_steps: int,
        reward_steps: int,
        apples: int,
        apple_reward: float,
        **world: Any,
    ):
        if room_size < 3 or room_size % 2 == 0:
            raise ValueError(f"room_size must be odd and at least 3, but is {room_size}.")
        least = {
            "explore_steps": 2 * room_size,
            "distractor_steps": max(1, min((2 * room_size + 1) * apples, (room_size + 2) ** 2)),
            "reward_steps": 2 * room_size,
        }
        steps = {"explore_steps": explore_steps, "distractor_steps": distractor_steps, "reward_steps": reward_steps}
        for name, value in steps.items():
            if value < least[name]:
                where = f"in rooms of {room_size} with {apples} apples"
                raise ValueError(f"{name} must be at least {least[name]} {where}, but is {value}.")
        if not 0 <= apples < room_size**2:
            raise ValueError(f"apples must be from 0 to {room_size**2 - 1} in rooms of {room_size}, but is {apples}.")
        self.room_size, self.apples, self.apple_reward = room_size, apples, apple_reward
        self.second_phase, self.third_phase = explore_steps, explore_steps + distractor_steps
        arguments = {"room_size": room_size, **steps, "apples": apples, "apple_reward": apple_reward, **settings}
        max_steps = self.third_phase + reward_steps
        super().__init__(num_envs, room_size + 2, 3 * room_size + 4, arguments, max_steps=max_steps, **world)
        del self.settings["max_steps"]  # it follows from the others
        middle, starts = room_size // 2 + 1, (0, room_size + 1, 2 * room_size + 2)
        self.starts = self.place(torch.tensor([x + middle for x in starts]), torch.tensor([middle] * 3)).to(self.device)

    def _outcomes(self) -> cells.Outcomes:
        outcomes = cells.outcomes()
        for table in outcomes:  # walk there and take it
            table[cells.FORWARD, :, [APPLE, *cells.KEYS]] = table[cells.FORWARD, :, cells.EMPTY].unsqueeze(1)
        return outcomes

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board, step = Board(count, self.height, self.width, generator), self.room_size + 1
        board.fill(board.x % step == 0, cells.WALL)
        inside = torch.ones(count, self.room_size**2, device=self.device)
        inside[:, self.room_size**2 // 2] = 0  # where the agent begins
        if self.apples:
            chosen = torch.multinomial(inside, self.apples, generator=generator)
            rows, x = board.rows.unsqueeze(1), 1 + step + chosen % self.room_size
            board.cells[rows, 1 + chosen // self.room_size, x] = APPLE
        extra = self._furnish(board)
        middle = torch.full_like(board.rows, self.room_size // 2 + 1)
        return board.layout(middle, middle, torch.full_like(middle, FACING_UP), **extra)

    @abstractmethod
    def _furnish(self, board: Board) -> dict[str, Tensor]:
        """Put things into the first and the last room, and return what else must be known."""

    @abstractmethod
    def _judge_phases(self, moves: Moves, is_last: Bool[Tensor, "B"]) -> Verdict:
        """Return what moves are worth and which events they were, by name, apples aside.

        Args:
            is_last: Moves of the third phase.
        """

    def _judge(self, moves: Moves) -> Verdict:
        verdict = self._judge_phases(moves, self.num_steps > self.third_phase)
        for room, begin in enumerate((self.second_phase, self.third_phase), 1):
            begins = self.num_steps == begin
            self.position = torch.where(begins, self.starts[room], self.position)
            self.direction = torch.where(begins, FACING_UP, self.direction)
        eats = (moves.action == cells.FORWARD) & (moves.ahead == APPLE)
        happened = verdict.info | {"ate an apple": eats}
        events = torch.stack([happened[name] for name in self.event_names], 1).float()
        return verdict._replace(reward=verdict.reward + self.apple_reward * eats, info={"events": events})

    def other_places(self, board: Board, room: int) -> Bool[Tensor, "L H W"]:
        """Return where things may lie in a room: not where the agent begins."""
        step, middle = self.room_size + 1, self.room_size // 2 + 1
        is_in = (board.x > room * step) & (board.x < (room + 1) * step) & (board.y > 0) & (board.y < self.height - 1)
        return (is_in & ~((board.x == room * step + middle) & (board.y == middle))).expand(board.count, -1, -1)

    def phase(self) -> Int[Tensor, "B"]:
        """Return the phase that the next action belongs to: 0, 1 or 2."""
        return (self.num_steps >= self.second_phase).long() + (self.num_steps >= self.third_phase)
