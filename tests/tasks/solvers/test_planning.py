"""Shortest ways against a search pose by pose; what a walker does who only sees."""

from collections import deque

import pytest
import torch
from merlin.tasks.classic.maze import Maze
from merlin.tasks.grid import cells
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.minigrid_tasks.memory import Hallway
from merlin.tasks.solvers.shortest_paths import (
    Planner,
    Reactive,
    average_return,
    best_actions,
    distances,
    random_policy,
)

STEPS = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # x and y of one cell forward
SIGNS = {"#": cells.WALL, ".": cells.EMPTY, "G": cells.GOAL}


def search(is_free, is_target):
    """Return the steps from each pose, [direction, y, x], by breadth-first search from each of them."""
    height, width = is_free.shape
    table = torch.full((4, height, width), torch.inf)
    for start in ((d, y, x) for d in range(4) for y in range(height) for x in range(width) if is_free[y, x]):
        queue, seen = deque([(start, 0)]), {start}
        while queue:
            (d, y, x), steps = queue.popleft()
            if is_target[y, x]:
                table[start] = steps
                break
            options = [((d + 3) % 4, y, x), ((d + 1) % 4, y, x)]
            ahead_x, ahead_y = x + STEPS[d][0], y + STEPS[d][1]
            if 0 <= ahead_x < width and 0 <= ahead_y < height and is_free[ahead_y, ahead_x]:
                options.append((d, ahead_y, ahead_x))
            queue.extend((option, steps + 1) for option in options if option not in seen)
            seen.update(options)
    return table


@pytest.fixture(scope="module")
def grids():
    torch.manual_seed(0)
    is_free = torch.rand(12, 5, 6) < 0.65
    is_target = torch.rand(12, 5, 6) < 0.08
    is_target[0] = False
    return is_free, is_target


def test_distances_are_those_of_a_search(grids):
    expected = torch.stack([search(*grid) for grid in zip(*grids, strict=True)])
    assert torch.equal(distances(*grids), expected)
    assert expected.isinf()[0].all() and 2 < expected[expected.isfinite()].max() < 40


def test_best_actions_come_one_step_nearer(grids):
    steps = distances(*grids)
    for d in range(4):
        for y in range(5):
            for x in range(6):
                here = steps[:, d, y, x]
                actions = best_actions(steps, *(torch.full((12,), value) for value in (d, x, y)))
                for i in ((here > 0) & here.isfinite()).nonzero().flatten().tolist():
                    turned = (d + (3, 1, 0)[actions[i]]) % 4
                    there = (y + STEPS[d][1], x + STEPS[d][0]) if actions[i] == 2 else (y, x)
                    assert steps[i, turned, *there] == here[i] - 1


def drawn_maze(picture, x, y, direction):
    """Return a maze that looks like this, its agent there."""
    grid = torch.tensor([[[SIGNS[sign] for sign in row] for row in picture]], dtype=torch.uint8)
    env = Maze(1, size=len(picture))
    env.autoreset = False
    env.reset()
    env.set_layout(Layout(grid, *(torch.tensor([value]) for value in (x, y, direction)), {}))
    return env


def walk(env, policy, number):
    """Return the actions of that many steps."""
    actions = []
    for _ in range(number):
        actions.append(policy(env._observe()))
        env.step(actions[-1])
    return [int(action) for action in actions]


LEFT, RIGHT, FORWARD = range(3)


def test_reactive_walks_to_the_goal_that_it_sees():
    picture = ["#####", "#..G#", "#.###", "#...#", "#####"]
    env = drawn_maze(picture, 1, 3, 3)
    assert walk(env, Reactive(env), 5) == [FORWARD, FORWARD, RIGHT, FORWARD, FORWARD]


def test_reactive_keeps_a_wall_to_its_right():
    picture = ["#####", "#.#.#", "#.#.#", "#...#", "#####"]
    env = drawn_maze(picture, 1, 1, 1)
    down, turn, up = [FORWARD, FORWARD], [LEFT, LEFT], [FORWARD, FORWARD]
    assert walk(env, Reactive(env), 8) == [*down, LEFT, FORWARD, FORWARD, LEFT, *up]
    assert walk(env, Reactive(env), 6) == [*turn, *down, RIGHT, FORWARD]


def test_reactive_wanders_at_times():
    env = Maze(200, size=9)
    observation, _ = env.reset(seed=0)
    follows, wanders = Reactive(env)(observation), Reactive(env, wander=1.0)(observation)
    assert 0 < int((follows != wanders).sum()) < 200


def test_planner_notices_what_changes():
    env = drawn_maze(["#####", "#..G#", "#.#.#", "#...#", "#####"], 1, 1, 0)
    planner = Planner(env, lambda: cells.code_of(env.grid()) == cells.GOAL)
    assert int(planner(env._observe())) == FORWARD
    assert float(planner.distances()[0, 0, 1, 1]) == 2
    env.grid()[0, 1, 2] = env.packed[cells.LAVA]
    assert int(planner(env._observe())) == RIGHT
    assert float(planner.distances()[0, 0, 1, 1]) == 1 + 2 + 1 + 2 + 1 + 2


def test_returns_are_those_of_first_episodes():
    env = Hallway(200, 7, max_steps=30)
    generator = torch.Generator().manual_seed(4)
    expected, alive = torch.zeros(200), torch.ones(200)
    env.reset(seed=2)
    for _ in range(30):
        _, reward, terminated, *_ = env.step(torch.randint(7, (200,), generator=generator))
        expected += reward * alive
        alive *= ~terminated
    assert average_return(env, random_policy(env, seed=4), seed=2) == pytest.approx(float(expected.mean()))
