"""Shortest ways against a search pose by pose; what a walker does who only sees."""

from collections import deque

import pytest
import torch

from merlin.tasks.classic.maze import Maze
from merlin.tasks.grid import cells
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.minigrid_tasks.memory import Hallway
from merlin.tasks.solvers.planning import ACT, Planner, Stage, plan
from merlin.tasks.solvers.reactive import WallFollower
from merlin.tasks.solvers.scores import first_returns, random_policy
from tests.tasks.play import distances

LEFT, RIGHT, FORWARD = range(3)
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
    """Return codes of walled grids, and their targets."""
    torch.manual_seed(0)
    codes = torch.full((12, 7, 8), cells.WALL, dtype=torch.int32)
    codes[:, 1:-1, 1:-1] = torch.where(torch.rand(12, 5, 6) < 0.65, cells.EMPTY, cells.WALL)
    is_target = (torch.rand(12, 7, 8) < 0.08) & (codes == cells.EMPTY)
    is_target[0] = False
    return codes, is_target


def test_steps_of_plans_are_those_of_a_search(grids):
    codes, is_target = grids
    expected = torch.stack([search(*grid) for grid in zip(codes == cells.EMPTY, is_target, strict=True)])
    steps = plan(codes, [Stage(FORWARD, is_target)]).steps[:, 0]
    counts = ((codes == cells.EMPTY) & ~is_target).unsqueeze(1).expand_as(steps)
    assert torch.equal(steps[counts], expected[counts])
    assert torch.equal(distances(codes == cells.EMPTY, is_target), expected)  # the reference of other tests
    assert expected.isinf()[0].all() and 2 < expected[expected.isfinite()].max() < 40


def test_choices_come_one_step_nearer(grids):
    codes, is_target = grids
    made = plan(codes, [Stage(FORWARD, is_target)])
    steps, choices = made.steps[:, 0], made.choices[:, 0].long()
    for i, d, y, x in ((codes == cells.EMPTY).unsqueeze(1) & steps.isfinite()).nonzero().tolist():
        choice = int(choices[i, d, y, x])
        if choice == ACT:
            assert steps[i, d, y, x] == 1 and is_target[i, y + STEPS[d][1], x + STEPS[d][0]]
            continue
        there = (y + STEPS[d][1], x + STEPS[d][0]) if choice == FORWARD else (y, x)
        assert steps[i, (d + (3, 1, 0)[choice]) % 4, *there] == steps[i, d, y, x] - 1


def test_a_closed_door_takes_a_step_more_or_stops_who_cannot_open_it():
    codes = torch.full((1, 3, 5), cells.WALL)
    codes[0, 1, 1:4] = torch.tensor([cells.EMPTY, cells.code("door", "red", cells.CLOSED), cells.EMPTY])
    is_target = torch.zeros(1, 3, 5, dtype=torch.bool)
    is_target[0, 1, 3] = True
    steps = [float(plan(codes, [Stage(FORWARD, is_target)], can_open=x).steps[0, 0, 0, 1, 1]) for x in (True, False)]
    assert steps == [3, torch.inf]


def drawn_maze(picture, x, y, direction):
    """Return a maze that looks like this, its agent there."""
    env = Maze(1, size=len(picture))
    env.autoreset = False
    env.reset()
    env.set_layout(layout(picture, x, y, direction))
    return env


def layout(picture, x, y, direction):
    grid = torch.tensor([[[SIGNS[sign] for sign in row] for row in picture]], dtype=torch.uint8)
    return Layout(grid, *(torch.tensor([value]) for value in (x, y, direction)), {})


def walk(env, policy, number):
    """Return the actions of that many steps."""
    actions = []
    for _ in range(number):
        actions.append(policy(env._observe()))
        env.step(actions[-1])
    return [int(action) for action in actions]


def test_wall_follower_walks_to_the_goal_that_it_sees():
    picture = ["#####", "#..G#", "#.###", "#...#", "#####"]
    env = drawn_maze(picture, 1, 3, 3)
    assert walk(env, WallFollower(env), 5) == [FORWARD, FORWARD, RIGHT, FORWARD, FORWARD]


def test_wall_follower_keeps_a_wall_to_its_right():
    picture = ["#####", "#.#.#", "#.#.#", "#...#", "#####"]
    env = drawn_maze(picture, 1, 1, 1)
    down, turn, up = [FORWARD, FORWARD], [LEFT, LEFT], [FORWARD, FORWARD]
    assert walk(env, WallFollower(env), 8) == [*down, LEFT, FORWARD, FORWARD, LEFT, *up]
    assert walk(env, WallFollower(env), 6) == [*turn, *down, RIGHT, FORWARD]


def test_wall_follower_wanders_at_times():
    env = Maze(200, size=9)
    observation, _ = env.reset(seed=0)
    follows, wanders = WallFollower(env)(observation), WallFollower(env, wander=1.0)(observation)
    assert 0 < int((follows != wanders).sum()) < 200


def test_planner_plans_anew_once_a_plan_is_done():
    env = drawn_maze(["#####", "#..G#", "#.#.#", "#...#", "#####"], 1, 1, 0)
    planner = Planner(env)
    assert walk(env, planner, 2) == [FORWARD, FORWARD]
    env.set_layout(layout(["#####", "#..G#", "#.#.#", "#...#", "#####"], 1, 3, 3))
    env.grid()[0, 1, 2] = env.packed[cells.LAVA]
    env.num_steps += 1  # not the start of an episode
    assert walk(env, planner, 6) == [RIGHT, FORWARD, FORWARD, LEFT, FORWARD, FORWARD]


def test_returns_are_those_of_first_episodes():
    env = Hallway(200, 7, max_steps=30)
    generator = torch.Generator().manual_seed(4)
    expected, alive = torch.zeros(200), torch.ones(200)
    env.reset(seed=2)
    for _ in range(30):
        _, reward, terminated, *_ = env.step(torch.randint(7, (200,), generator=generator))
        expected += reward * alive
        alive *= ~terminated
    assert first_returns(env, random_policy(env, seed=4), seed=2).tolist() == pytest.approx(expected.tolist())
    assert env.autoreset
