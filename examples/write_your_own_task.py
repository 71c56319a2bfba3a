"""A task of one's own: see a red or green ball, walk down a corridor, walk into the door of its colour.

python examples/write_your_own_task.py [STEPS]                              trains an agent on it for a minute
PYTHONPATH=examples merlin play write_your_own_task:examples/TwoDoors-v0    play it yourself
"""

import argparse

import gymnasium

import merlin
from merlin.tasks.base.single import SingleEnv
from merlin.tasks.grid import cells
from merlin.tasks.grid.board import Board, coloured, in_colour
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.grid.world import GridWorld, Moves, Verdict

RED, GREEN = coloured("door", cells.LOCKED)[:2]


class TwoDoors(GridWorld):
    num_actions = 3  # turn left, turn right, forward
    extra_names = ("right_door", "wrong_door")  # of each episode: tensors [B], drawn in _generate

    def __init__(self, num_envs=1, length=3, max_steps=30, agent_view_size=3, **more):
        super().__init__(num_envs, 5, length + 4, max_steps=max_steps, agent_view_size=agent_view_size, **more)

    def _generate(self, count, generator) -> Layout:
        board = Board(count, self.height, self.width, generator)
        board.fill(board.y != 2, cells.WALL)
        colour = board.integers(0, 2)  # of each of the `count` layouts: 0 is red, 1 is green
        right, wrong = (in_colour("door", index, cells.LOCKED) for index in (colour, 1 - colour))
        board.put(1, 1, in_colour("ball", colour))
        board.put(-2, 1, RED), board.put(-2, 3, GREEN)
        return board.layout(0 * colour + 1, 0 * colour + 2, 0 * colour, right_door=right, wrong_door=wrong)

    def _judge(self, moves: Moves) -> Verdict:
        walks = moves.action == cells.FORWARD
        return self.solved_or_failed(walks & (moves.ahead == self.right_door), walks & (moves.ahead == self.wrong_door))


SingleTwoDoors = type("SingleTwoDoors", (SingleEnv,), {"batched": TwoDoors})
gymnasium.register("examples/TwoDoors-v0", entry_point=SingleTwoDoors, vector_entry_point=TwoDoors)


def main(steps: int = 150_000, run_dir: str | None = None) -> float:
    # with the preset's larger steps it loses again what it has learnt
    steady = {"training.learning_rate": 1e-3, "training.max_grad_norm": 1, "model.normalize_advantages": False}
    settings = {"model.entropy_cost": 0.01, **steady}
    run = merlin.train("examples/TwoDoors-v0", run_dir, agent="rl-lstm", steps=steps, set=settings)
    return run.evaluate(episodes=200)["success_rate"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=150_000)
    success = main(**vars(parser.parse_args()))
    print(f"the right door in {success:.0%} of episodes; without memory, in 50% at most")
