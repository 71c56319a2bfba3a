"""A task of one's own: see a red or green ball, walk down a corridor, walk into the door of its colour.

python examples/write_your_own_task.py                                      trains an agent on it
PYTHONPATH=examples merlin play write_your_own_task:examples/TwoDoors-v0    play it yourself
"""

from dataclasses import replace
from pathlib import Path

import gymnasium
import torch

from merlin.presets import preset
from merlin.run import build_environment, load_agent, train
from merlin.training.evaluation import HELD_OUT_SEED, evaluate
from tasks import cells
from tasks.board import Board, coloured
from tasks.grid import GridWorld, Moves, Verdict
from tasks.layouts import Layout
from tasks.single import SingleEnv

BALLS, DOORS = coloured("ball"), coloured("door", cells.LOCKED)  # red, green, ...


class TwoDoors(GridWorld):
    num_actions = 3  # turn left, turn right, forward
    extra_names = ("colour",)  # what else the state of an episode holds: tensors [B], drawn in _generate

    def __init__(self, num_envs=1, length=3, max_steps=30, agent_view_size=3, **more):
        super().__init__(num_envs, 5, length + 4, max_steps=max_steps, agent_view_size=agent_view_size, **more)

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board, end = Board(count, self.height, self.width, generator), self.width - 2
        board.fill(board.y != 2, cells.WALL)
        colour = board.integers(0, 2)
        board.put(1, 1, torch.where(colour == 0, BALLS[0], BALLS[1]))
        board.put(end, 1, DOORS[0]), board.put(end, 3, DOORS[1])
        return board.layout(0 * colour + 1, 0 * colour + 2, 0 * colour, colour=colour)  # x, y, looking right

    def _judge(self, moves: Moves) -> Verdict:
        red, green = ((moves.action == cells.FORWARD) & (moves.ahead == door) for door in DOORS[:2])
        right = torch.where(self.colour == 0, red, green)
        return self.solved_or_failed(right, (red | green) & ~right)


SingleTwoDoors = type("SingleTwoDoors", (SingleEnv,), {"batched": TwoDoors})
gymnasium.register("examples/TwoDoors-v0", entry_point=SingleTwoDoors, vector_entry_point=TwoDoors)


def main(steps: int = 100_000, run_dir: str = "runs/two-doors") -> float:
    config = replace(preset("rl-lstm", "examples/TwoDoors-v0"), steps=steps)
    train(config, Path(run_dir))
    with build_environment(config, num_envs=100) as environment:
        agent = load_agent(Path(run_dir), environment, config)
        return evaluate(agent, environment, episodes=200, seed=HELD_OUT_SEED)["success_rate"]


if __name__ == "__main__":
    print(f"the right door in {main():.0%} of episodes; without memory, in 50% at most")
