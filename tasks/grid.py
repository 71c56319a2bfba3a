"""Grid worlds by MiniGrid's rules, as batches of tensors: what tasks on grids share.

A task draws layouts (`_generate`) and says what ends an episode and what it earns (`_judge`); moving, carrying, doors,
sight and the restart of episodes are here.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tasks import cells
from tasks.sight import Sight, view_offsets
from tasks.vector import TensorVectorEnv

ACTION_NAMES = ("left", "right", "forward", "pick up", "drop", "toggle", "done")


class Layout(NamedTuple):
    """How episodes start. `extra` holds what else the task must know of each, by name."""

    cells: UInt8[Tensor, "L H W"]
    x: Int[Tensor, "L"]
    y: Int[Tensor, "L"]
    direction: Int[Tensor, "L"]
    extra: dict[str, Tensor]


class Moves(NamedTuple):
    """What the actions just taken did, before the episodes that end start anew."""

    position: Int[Tensor, "B"]
    ahead: UInt8[Tensor, "B"]  # what was in the cell ahead
    carried: Int[Tensor, "B"]  # what is in hand now
    reaches_goal: Bool[Tensor, "B"]
    dies: Bool[Tensor, "B"]


class GridWorld(TensorVectorEnv):
    """A batch of grid worlds.

    Observation: `image`, what lies ahead as MiniGrid shows it, (object, colour, state) by column and row of the view,
    and `direction`, 0 right, 1 down, 2 left, 3 up. Actions are MiniGrid's: 0 turn left, 1 turn right, 2 forward,
    3 pick up, 4 drop, 5 toggle, 6 done.

    A subclass sets `extra_names` to the names of its layouts' `extra`; they become attributes [B].

    Args:
        max_steps: After which an episode is truncated.
        agent_view_size: Cells of the view along each side, odd.
        see_through_walls: Let nothing hide what lies behind it.
    """

    can_truncate = True
    action_names = ACTION_NAMES
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
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if agent_view_size < 3 or agent_view_size % 2 == 0:
            raise ValueError(f"agent_view_size must be odd and at least 3, but is {agent_view_size}.")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, but is {max_steps}.")
        self.height, self.width, self.max_steps, self.view_size = height, width, max_steps, agent_view_size
        self.state_names = ("cells", "position", "direction", "carried", "num_steps", *self.extra_names)
        image = spaces.MultiDiscrete(np.tile([11, 6, 4], (agent_view_size, agent_view_size, 1)))
        space = spaces.Dict({"direction": spaces.Discrete(4), "image": image})
        super().__init__(num_envs, space, spaces.Discrete(cells.NUM_ACTIONS), device, render_mode)

        # The grid lies inside a frame of walls as wide as the view, so that no view leaves it.
        self.frame = agent_view_size - 1
        self.stride = width + 2 * self.frame
        self.area = self.stride * (height + 2 * self.frame)
        self.offsets = view_offsets(agent_view_size, self.stride).to(self.device)
        self.forward = torch.tensor([1, self.stride, -1, -self.stride], device=self.device)
        self.turns = torch.tensor([3, 1, 0, 0, 0, 0, 0], device=self.device)
        self.appearances = cells.packed_appearances().to(self.device)
        self.outcomes = self._outcomes().flatten().to(self.device)
        self.bases = torch.arange(num_envs, device=self.device) * self.area
        see_behind = torch.tensor([float(cells.can_see_behind(cell)) for cell in cells.CELLS], device=self.device)
        self.sight = None if see_through_walls else Sight(agent_view_size, see_behind)
        self.agent_cell = (agent_view_size // 2) * agent_view_size + agent_view_size - 1
        steps = np.arange(max_steps + 1)
        self.rewards = torch.tensor(1 - 0.9 * (steps / max_steps), dtype=torch.float32, device=self.device)
        self._start()

    def _outcomes(self) -> Int[Tensor, "actions carried ahead"]:
        """Return what actions lead to; a task may exchange some."""
        return cells.outcomes()

    def _generate(self, count: int) -> Layout:
        """Draw `count` layouts with `self.generator`."""
        raise NotImplementedError

    def _judge(self, moves: Moves) -> tuple[Bool[Tensor, "B"], Bool[Tensor, "B"]]:
        """Return where the task is solved, which earns 1 − 0.9 · steps / max_steps, and where it has failed."""
        return moves.reaches_goal, moves.dies

    def place(self, x: Int[Tensor, "*L"], y: Int[Tensor, "*L"]) -> Int[Tensor, "*L"]:
        """Return the position, as states hold it, of a cell of the grid."""
        return (y + self.frame) * self.stride + x + self.frame

    def set_layout(self, layout: Layout, rows: Int[Tensor, "L"] | None = None) -> None:
        """Start episodes in these environments, or everywhere, from these layouts."""
        if rows is None:
            rows = torch.arange(self.num_envs, device=self.device)
        inside = slice(self.frame, self.frame + self.height), slice(self.frame, self.frame + self.width)
        grid = self.cells.view(self.num_envs, -1, self.stride)
        grid[rows, inside[0], inside[1]] = layout.cells
        starts = {"position": self.place(layout.x, layout.y), "direction": layout.direction, **layout.extra}
        for name, values in starts.items():
            getattr(self, name)[rows] = values
        self.carried[rows] = cells.EMPTY
        self.num_steps[rows] = 0

    def _start(self) -> None:
        batch, device = self.num_envs, self.device
        self.cells = torch.full((batch * self.area,), cells.WALL, dtype=torch.uint8, device=device)
        for name in self.state_names[1:]:
            setattr(self, name, torch.zeros(batch, dtype=torch.int64, device=device))
        self.carried += cells.EMPTY
        self.set_layout(self._generate(batch))

    def _observe(self, rows: Int[Tensor, "L"] | None = None) -> dict[str, Tensor]:
        state = self.bases, self.position, self.direction, self.carried
        bases, position, direction, carried = state if rows is None else (x[rows] for x in state)
        view = self.offsets.index_select(0, direction)
        view += (bases + position).unsqueeze(1)
        codes = self.cells.take(view).to(torch.int32)
        visible = None if self.sight is None else self.sight(codes)
        codes[:, self.agent_cell] = carried.to(torch.int32)
        if visible is not None:
            codes *= visible.flatten(1)
        image = self.appearances.index_select(0, codes.flatten())
        image = image.view(torch.uint8).view(-1, self.view_size, self.view_size, 4)[..., :3]
        return {"direction": direction.clone(), "image": image}

    def step(
        self, actions: Any
    ) -> tuple[dict[str, Tensor], Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        actions = self._actions(actions)
        front = self.position + self.forward.index_select(0, self.direction)
        places = self.bases + front
        ahead = self.cells.index_select(0, places)
        count = len(cells.CELLS)
        try:
            outcome = self.outcomes.index_select(0, (actions * count + self.carried) * count + ahead)
        except IndexError as error:
            raise ValueError(
                f"an action must be from 0 to {cells.NUM_ACTIONS - 1}, but {actions.min()} to {actions.max()} came: "
                f"take those of the action space."
            ) from error
        self.cells.index_copy_(0, places, (outcome & 255).to(torch.uint8))
        self.carried = outcome >> 8 & 255
        self.position = torch.where((outcome & 1 << 16) > 0, front, self.position)
        self.direction = self.direction + self.turns.index_select(0, actions) & 3
        self.num_steps = self.num_steps + 1
        moves = Moves(self.position, ahead, self.carried, (outcome & 2 << 16) > 0, (outcome & 4 << 16) > 0)
        solved, failed = self._judge(moves)
        terminated = solved | failed
        truncated = self.num_steps >= self.max_steps
        reward = torch.where(solved, self.rewards[self.num_steps], 0.0)
        is_end = terminated | truncated
        success = torch.where(is_end, solved.to(torch.float32), torch.nan)
        rows = is_end.nonzero().squeeze(1)
        if rows.shape[0] == 0 or not self.autoreset:
            observation = final_observation = self._observe()
        else:
            ending = self._observe(rows)
            self.set_layout(self._generate(rows.shape[0]), rows)
            observation = self._observe()
            final_observation = {name: x.index_copy(0, rows, ending[name]) for name, x in observation.items()}
        info = {"is_success": success, "final_obs": final_observation, "_final_obs": is_end}
        return observation, reward, terminated, truncated, info

    def draw(self, index: int) -> np.ndarray:
        """Return the grid from above with MiniGrid's own pictures, what the agent faces in a lighter shade."""
        from minigrid.core.grid import Grid

        inside = slice(self.frame, -self.frame)
        codes = self.cells.view(self.num_envs, -1, self.stride)[index, inside, inside].cpu().numpy()
        grid, _ = Grid.decode(cells.appearances()[codes].transpose(1, 0, 2))
        y, x = divmod(int(self.position[index]), self.stride)
        return grid.render(16, (x - self.frame, y - self.frame), int(self.direction[index]))
