"""Grid worlds by MiniGrid's rules, as batches of tensors: what tasks on grids share.

A task draws layouts (`_generate`) and says what ends an episode and what it earns (`_judge`); moving, carrying, doors,
sight and the restart of episodes are here.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from . import cells, native
from .first_person.renderer import FirstPerson
from .framed import FramedWorld
from .layouts import Layout
from .visibility import Sight

ACTION_NAMES = ("left", "right", "forward", "pick up", "drop", "toggle", "done")


class Moves(NamedTuple):
    """Effects of the actions just taken, before the episodes that end start anew."""

    action: Int[Tensor, "B"]
    position: Int[Tensor, "B"]
    front: Int[Tensor, "B"]
    """The position that the agent faced when it acted."""
    ahead: Int[Tensor, "B"]
    """The code of what was there."""
    carried: Int[Tensor, "B"]
    """The code of what is in hand now."""
    outcomes: cells.Outcomes
    """Tables of what actions lead to, flat; what these did is at `outcome`."""
    outcome: Int[Tensor, "B"]

    @property
    def reaches_goal(self) -> Bool[Tensor, "B"]:
        """Whether the agent walked onto a goal."""
        return self.outcomes.reaches_goal.index_select(0, self.outcome)

    @property
    def dies(self) -> Bool[Tensor, "B"]:
        """Whether the agent walked into lava."""
        return self.outcomes.dies.index_select(0, self.outcome)


class Verdict(NamedTuple):
    """Reward, end and success of a step."""

    reward: Float[Tensor, "B"]
    terminated: Bool[Tensor, "B"]
    is_success: Bool[Tensor, "B"]
    """Of the episode, read where it ends."""
    info: dict[str, Tensor] = {}  # noqa: RUF012
    """More entries of `info`, [B, ...] each."""


class GridWorld(FramedWorld):
    """A batch of grid worlds.

    Observation: `image`, what lies ahead as MiniGrid shows it, (object, colour, state) by column and row of the view,
    and `direction`, 0 right, 1 down, 2 left, 3 up. Actions are MiniGrid's: 0 turn left, 1 turn right, 2 forward,
    3 pick up, 4 drop, 5 toggle, 6 done. With view="first_person", `image` is what the agent sees from where it stands,
    as a picture: see `FirstPerson`.

    A task draws layouts in `_generate` and may override `_judge`, `_outcomes` and `_look`. It sets `extra_names` to
    the names of its layouts' `extra`; they become attributes [B, ...]. Where there is nothing to handle, it sets
    `num_actions` to 3: left, right, forward. Those of
    the arguments below that it has no use for itself it takes and passes on as `**world`.

    Args:
        max_steps: After which an episode is truncated.
        agent_view_size: Cells of the view along each side, odd; at most 53 unless see_through_walls.
        see_through_walls: Let nothing hide what lies behind it; in the view "grid" only.
        view: "grid" or "first_person".
        picture_size: Pixels along each side of a picture.
        sight_distance: Cells to where the fog of a picture hides everything.
    """

    can_truncate = True
    can_be_cut = True
    num_actions = cells.NUM_ACTIONS
    extra_names: tuple[str, ...] = ()

    def __init__(
        self,
        num_envs: int,
        height: int,
        width: int,
        *,
        max_steps: int,
        agent_view_size: int = 7,
        see_through_walls: bool = False,
        view: str = "grid",
        picture_size: int = 64,
        sight_distance: int = 16,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if agent_view_size < 3 or agent_view_size % 2 == 0:
            raise ValueError(f"agent_view_size must be odd and at least 3, but is {agent_view_size}.")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, but is {max_steps}.")
        if view not in ("grid", "first_person"):
            raise ValueError(f"view must be 'grid' or 'first_person', but is {view!r}.")
        self.view, self.picture_size = view, picture_size
        self.max_steps, self.view_size = max_steps, agent_view_size
        self.state_names = ("cells", "position", "direction", "carried", "num_steps", *self.extra_names)
        self.action_names = ACTION_NAMES[: self.num_actions]
        action_space = spaces.Discrete(self.num_actions)
        super().__init__(num_envs, height, width, agent_view_size, self._space(), action_space, device, render_mode)
        turns = torch.tensor([3, 1, 0, 0, 0, 0, 0], device=self.device)
        self.turned = (torch.arange(4, device=self.device) + turns.unsqueeze(1)).flatten() & 3  # by action, direction
        self.packed = cells.packed().to(self.device)
        outcomes = self._outcomes()
        self.outcomes = cells.Outcomes(*(table[: self.num_actions].flatten().to(self.device) for table in outcomes))
        self.agent_cell = agent_view_size * (agent_view_size - 1) + agent_view_size // 2
        self.sight = None if see_through_walls else Sight(agent_view_size, self.device)
        if view == "first_person":
            self.first_person = FirstPerson(self.stride, picture_size, sight_distance, self.device)
        steps = np.arange(max_steps + 1)
        self.rewards = torch.tensor(1 - 0.9 * (steps / max_steps), dtype=torch.float32, device=self.device)
        self.syncs = self.device.type == "cpu"  # asking the device how many episodes ended costs nothing
        self.no_success = torch.full((num_envs,), torch.nan, device=self.device)
        self.move_numbers = num_envs, self.area, self.num_actions, len(cells.CELLS), max_steps
        self._load_kernels()
        self._start()

    def _load_kernels(self) -> None:
        """Set the kernels, None where there are none, and where the tables lie that they read."""
        self.kernels = native.load() if self.device.type == "cpu" else None
        tables = self.forward, self.turned, self.outcomes.ahead, self.outcomes.carried, self.outcomes.moves
        self.move_tables = [table.data_ptr() for table in tables]
        self.look_tables = self.offsets.data_ptr(), self.packed.data_ptr()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: not the kernels, nor where tables lie, which is elsewhere in a copy."""
        return {k: x for k, x in vars(self).items() if k not in ("kernels", "move_tables", "look_tables")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._load_kernels()

    def _space(self) -> Space:
        """Return the space of one observation."""
        if self.view == "first_person":
            picture = spaces.Box(0, 255, (self.picture_size, self.picture_size, 3), np.uint8)
            return spaces.Dict({"direction": spaces.Discrete(4), "image": picture})
        image = spaces.MultiDiscrete(np.tile([11, 6, 4], (self.view_size, self.view_size, 1)), dtype=np.uint8)
        return spaces.Dict({"direction": spaces.Discrete(4), "image": image})

    def _outcomes(self) -> cells.Outcomes:
        """Return what actions lead to; a task may exchange some."""
        return cells.outcomes()

    @abstractmethod
    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        """Draw `count` layouts."""

    def _judge(self, moves: Moves) -> Verdict:
        """Return what the moves are worth; it may also move things.

        Unless overridden, reaching a goal earns 1 − 0.9 · steps / max_steps and ends the episode, as lava does.
        """
        return self.solved_or_failed(moves.reaches_goal, moves.dies)

    def solved_or_failed(self, solved: Bool[Tensor, "B"], failed: Bool[Tensor, "B"]) -> Verdict:
        """Return MiniGrid's verdict: both end the episode, and a solution earns 1 − 0.9 · steps / max_steps."""
        return Verdict(solved * self.rewards.index_select(0, self.num_steps), solved | failed, solved)

    def cell_of_agent(self) -> Int[Tensor, "B"]:
        """Return the cell that the agent is in, counted along the rows of the grid: y · width + x."""
        x, y = self.coordinates(self.position)
        return y * self.width + x

    def cell_of_goal(self) -> Int[Tensor, "B"]:
        """Return the cell of the goal, counted as the agent's; −1 where there is none."""
        is_goal = (cells.code_of(self.grid()) == cells.GOAL).flatten(1)
        return torch.where(is_goal.any(1), is_goal.int().argmax(1), -1)

    def grid(self) -> Int32[Tensor, "B H W"]:
        """Return the packed cells without their frame, as a view of the state."""
        start = self.frame * (self.stride + 1)
        inside = self.cells[:, start : start + self.height * self.stride]
        return inside.view(self.num_envs, self.height, self.stride)[..., : self.width]

    def set_layout(self, layout: Layout) -> None:
        """Start an episode in every environment from these layouts."""
        for name, values in self._starts(layout).items():
            setattr(self, name, values)

    def _starts(self, layout: Layout) -> dict[str, Tensor]:
        """Return the state that layouts begin with."""
        count = len(layout.x)
        framed = self.packed[cells.WALL].repeat(count, self.area)
        codes = self.packed.index_select(0, layout.cells.flatten().int()).view(count, -1)
        framed[:, self.grid_positions.flatten()] = codes
        zeros = torch.zeros_like(layout.direction)
        return {
            "cells": framed,
            "position": self.place(layout.x, layout.y),
            "direction": layout.direction,
            "carried": zeros + cells.EMPTY,
            "num_steps": zeros,
            **layout.extra,
        }

    def _draw_starts(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the state that `count` new episodes begin with, and what is seen there."""
        state = self._starts(self._generate(count, generator))
        return state | {f"seen {name}": x for name, x in self._look(state).items()}

    def _state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.state_names}

    def _look(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is seen in these states, [L, ...] by name, with the image of a grid still packed, [L, V · V].

        A task that shows more adds it here and to `_space`.
        """
        grids, direction = state["cells"], state["direction"]
        if self.view == "first_person":
            picture = self.first_person(grids, state["position"], direction, state["carried"])
            return {"direction": direction, "image": picture}
        return {"direction": direction, "image": self._views(grids, state["position"], direction, state["carried"])}

    def _views(
        self,
        grids: Int32[Tensor, "L area"],
        position: Int[Tensor, "L"],
        direction: Int[Tensor, "L"],
        carried: Int[Tensor, "L"],
    ) -> Int32[Tensor, "L VV"]:
        """Return the cells ahead of each agent, packed, 0 where they are hidden; what it carries is in its own."""
        count = len(grids)
        if self.kernels is not None and grids.is_contiguous() and native.can_read(position, direction, carried):
            image = torch.empty(count, self.view_size**2, dtype=torch.int32, device=self.device)
            numbers = count, self.area, self.view_size, self.agent_cell, self.sight is None
            pointers = [x.data_ptr() for x in (grids, position, direction, carried, image)]
            self.kernels.grid_look(*numbers, *self.look_tables, *pointers)
            return image
        bases = self.bases if count == self.num_envs else torch.arange(count, device=self.device) * self.area
        places = self.offsets.index_select(0, direction)
        places += (bases + position).int().unsqueeze(1)
        image = grids.view(-1).index_select(0, places.view(-1)).view(count, -1)
        del places  # its memory is used again at once
        if self.sight is not None:
            image &= self.sight(image)
        image[:, self.agent_cell] = self.packed.index_select(0, carried)
        return image

    def _show(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the observation as its space describes it."""
        if self.view == "first_person":
            return seen
        size, image = self.view_size, seen["image"]  # the lower three bytes of each cell, column by column
        bytes_of = image.view(torch.uint8)
        return seen | {"image": bytes_of.as_strided((len(image), size, size, 3), (4 * size * size, 4, 4 * size, 1))}

    def in_view(self) -> tuple[Int[Tensor, "B N"], Int32[Tensor, "B N"]]:
        """Return the positions of the cells in view, and what is seen in them, packed; 0 where it is hidden."""
        if self.view == "first_person":
            return self.first_person.in_view(self.cells, self.position, self.direction)
        return self.offsets[self.direction] + self.position.unsqueeze(1), self._look(self._state())["image"]

    def _observe(self) -> dict[str, Tensor]:
        return self._show(self._look(self._state()))

    def _step(
        self, actions: Int[Tensor, " B"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        moves, truncated = self._move(actions)
        verdict = self._judge(moves)
        if self.cut is not None:
            truncated = truncated | self.cut
        is_end = verdict.terminated | truncated
        none_ends = self.syncs and not is_end.any()
        seen, final = self._restart(is_end, none_ends)
        shown = self._show(seen)
        info = {
            "is_success": self.no_success.clone()
            if none_ends
            else torch.where(is_end, verdict.is_success.float(), torch.nan),
            "final_obs": shown if final is seen else self._show(final),
            "_final_obs": is_end,
        }
        return shown, verdict.reward, verdict.terminated, truncated, info | verdict.info

    def _move(self, actions: Int[Tensor, "B"]) -> tuple[Moves, Bool[Tensor, "B"]]:
        """Take the actions, and return what they did, and where an episode has had all of its steps.

        What is in the grids and in hand, places, directions and steps are those after them.
        """
        state = self.position, self.direction, self.carried, self.num_steps
        if self.kernels is not None and native.can_read(actions, *state):
            after = torch.empty(6, self.num_envs, dtype=torch.int64, device=self.device)
            ahead = torch.empty(self.num_envs, dtype=torch.int32, device=self.device)
            is_late = torch.empty(self.num_envs, dtype=torch.bool, device=self.device)
            pointers = [x.data_ptr() for x in (self.cells, *state, after, ahead, is_late)]
            if self.kernels.grid_move(*self.move_numbers, actions.data_ptr(), *self.move_tables, *pointers) >= 0:
                raise IndexError("an action leads nowhere")
            self.position, self.direction, self.carried, self.num_steps, front, outcome = after.unbind()
            return Moves(actions, self.position, front, ahead, self.carried, self.outcomes, outcome), is_late
        front = self.position + self.forward.index_select(0, self.direction)
        places = self.bases + front
        flat = self.cells.view(-1)
        ahead, count = cells.code_of(flat.index_select(0, places)), len(cells.CELLS)
        outcome = ahead.add(self.carried.add(actions, alpha=count), alpha=count)
        flat.index_copy_(0, places, self.outcomes.ahead.index_select(0, outcome))
        self.carried = self.outcomes.carried.index_select(0, outcome)
        self.position = torch.where(self.outcomes.moves.index_select(0, outcome), front, self.position)
        self.direction = self.turned.index_select(0, self.direction.add(actions, alpha=4))
        self.num_steps = self.num_steps + 1
        moves = Moves(actions, self.position, front, ahead, self.carried, self.outcomes, outcome)
        return moves, self.num_steps >= self.max_steps

    def _restart(self, is_end: Bool[Tensor, "B"], none_ends: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Start the episodes that end anew; return what is seen then, and what was seen before.

        Args:
            none_ends: It is known that none does.
        """
        final = self._look(self._state())
        if not self.autoreset or none_ends:
            return final, final
        if self.syncs:
            rows = is_end.nonzero()
            starts, rows = self.pool.take(len(rows)), rows.squeeze(1)
            self.cells.index_copy_(0, rows, starts["cells"])
            replace = lambda old, new: old.index_copy(0, rows, new)  # noqa: E731
        else:
            starts = self.pool.take_where(is_end)
            replace = lambda old, new: torch.where(is_end.view(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
            self.cells = replace(self.cells, starts["cells"])
        for name in self.state_names[1:]:  # a new tensor: what was returned is never written again
            setattr(self, name, replace(getattr(self, name), starts[name]))
        return {name: replace(x, starts[f"seen {name}"]) for name, x in final.items()}, final

    def draw(self, index: int) -> np.ndarray:
        """Return the grid from above with MiniGrid's own pictures, what the agent faces in a lighter shade."""
        from minigrid.core.grid import Grid

        codes = cells.code_of(self.grid()[index]).cpu().numpy()
        grid, _ = Grid.decode(cells.appearances()[codes].transpose(1, 0, 2))
        x, y = self.coordinates(self.position[index])
        return grid.render(16, (int(x), int(y)), int(self.direction[index]))
