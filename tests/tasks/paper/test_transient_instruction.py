"""Transient instructions by hand, and their scores: oracle exactly 1, to any object exactly 1/objects."""

import pytest
import torch

from merlin.tasks.grid import cells
from merlin.tasks.grid.cells import FORWARD, LEFT, RIGHT
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.paper.transient_instruction import (
    THINGS,
    WORDS,
    Memoryless,
    Oracle,
    TransientInstruction,
    random_score,
    scores,
)
from tests.tasks.play import assert_mean, play, random_policy

RED_BALL, BLUE_KEY = cells.code("ball", "red"), cells.code("key", "blue")


def rigged(named, **settings):
    """Return a room of 6: a red ball at (2, 2), a blue key at (4, 2), the agent at (3, 3) looking up."""
    env = TransientInstruction(size=6, objects=2, **settings)
    env.reset(seed=0)
    grid = torch.full((1, 6, 6), cells.WALL, dtype=torch.uint8)
    grid[:, 1:-1, 1:-1] = cells.EMPTY
    grid[0, 2, 2], grid[0, 2, 4] = RED_BALL, BLUE_KEY
    extra = {"target": torch.tensor([named]), "instruction": env.sentences[[THINGS.index(named)]]}
    env.set_layout(Layout(grid, torch.tensor([3]), torch.tensor([3]), torch.tensor([3]), extra))
    return env


def walk(env, actions):
    """Return (instruction, whether it is a cue, reward, terminated, success) of each step."""
    steps = []
    for action in actions:
        said, is_cue = env.sentence(env._observe()["instruction"][0]), bool(env.shows_cue())
        _, reward, terminated, truncated, info = env.step(torch.tensor([action]))
        steps.append((said, is_cue, float(reward), bool(terminated), float(info["is_success"].nan_to_num(-1))))
        assert not truncated
    return steps


def test_the_named_object_earns_one():
    said = "go to the red ball"
    assert walk(rigged(RED_BALL), [FORWARD, LEFT, FORWARD]) == [
        (said, True, 0, False, -1), ("", False, 0, False, -1), ("", False, 1, True, 1),
    ]  # fmt: skip


def test_another_object_ends_the_episode():
    said = "go to the blue key"
    assert walk(rigged(BLUE_KEY, instruction_steps=2), [FORWARD, LEFT, FORWARD]) == [
        (said, True, 0, False, -1), (said, True, 0, False, -1), ("", False, 0, True, 0),
    ]  # fmt: skip
    assert walk(rigged(BLUE_KEY), [FORWARD, RIGHT, FORWARD])[-1] == ("", False, 1, True, 1)


def test_walls_and_looking_do_nothing():
    steps = walk(rigged(RED_BALL), [RIGHT, FORWARD, FORWARD, LEFT, LEFT, RIGHT])
    assert all(step[2:] == (0, False, -1) for step in steps)


def test_the_time_limit_truncates():
    env = rigged(RED_BALL, max_steps=11)
    steps = [env.step(torch.tensor([LEFT])) for _ in range(11)]
    assert [bool(truncated) for _, _, _, truncated, _ in steps] == [False] * 10 + [True]
    assert float(steps[-1][4]["is_success"]) == 0


def test_layouts_hold_different_things_within_reach():
    env = TransientInstruction(num_envs=1, size=9, objects=5)
    layout = env._generate(3000, torch.Generator().manual_seed(0))
    is_thing = env.is_thing[layout.cells.int()]
    assert (is_thing.flatten(1).sum(1) == 5).all()
    things = layout.cells[is_thing].view(-1, 5).sort(1).values
    assert (things[:, 1:] != things[:, :-1]).all()
    assert (things == layout.extra["target"].unsqueeze(1)).any(1).all()
    assert not is_thing[:, 1::2].any() and not is_thing[:, :, 1::2].any()
    rows = torch.arange(3000)
    for x, y in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        assert not is_thing[rows, layout.y + y, layout.x + x].any()
    for named, count in zip(*layout.extra["target"].unique(return_counts=True), strict=True):
        words = env.sentence(layout.extra["instruction"][layout.extra["target"] == named][0]).split()
        assert words[:3] == ["go", "to", "the"] and cells.code(words[4], words[3]) == named
        assert abs(int(count) - 3000 / 18) < 4 * (3000 / 18) ** 0.5
    assert env.words is WORDS and env.sentence(torch.zeros(5, dtype=torch.int64)) == ""
    # the object named is any of those that lie there, for example the first by rows
    first = layout.cells.flatten(1)[rows, is_thing.flatten(1).int().argmax(1)].int()
    assert abs(int((first == layout.extra["target"]).sum()) - 600) < 4 * (3000 * 0.16) ** 0.5


@pytest.mark.parametrize("settings", [{}, {"size": 6, "objects": 2, "max_steps": 11}, {"size": 10, "objects": 13}])
def test_scores_are_what_the_policies_earn(settings):
    env = TransientInstruction(num_envs=600, agent_view_size=3, **settings)
    expected, oracle = scores(**settings), Oracle(env)
    assert expected == env.scores
    for seed in range(2):
        returns, success = play(env, oracle, seed)
        assert (returns == 1).all() and (success == 1).all() and expected["oracle"] == 1
    env.reset(seed=0)
    assert_mean(play(env, Memoryless(env))[0], expected["memoryless"])
    assert_mean(play(env, random_policy(env))[0], expected["random"])


def test_time_enough_for_every_object():
    """The farthest of 3000 layouts, and the bound."""
    env = TransientInstruction(num_envs=3000, size=8, objects=9, max_steps=15, agent_view_size=3)
    assert (play(env, Oracle(env))[0] == 1).all()


def test_random_score_by_hand():
    # in a room of 6 each of 4 starts is two actions from nothing, so that three actions reach an object or nothing does
    assert random_score(6, 2, max_steps=2) == 0
    assert random_score(6, 4, max_steps=3) == pytest.approx(1 / 4 * (1 / 3) ** 3 * ways_of_three() / 16)


def ways_of_three():
    """Return how many sequences of three actions reach an object, over the 16 starts in a room full of objects."""
    env = TransientInstruction(16 * 27, size=6, objects=4)
    env.reset(seed=0)
    env.autoreset = False
    pose, *actions = torch.cartesian_prod(torch.arange(16), *[torch.arange(3)] * 3).T
    layout = env._generate(16 * 27, torch.Generator().manual_seed(0))
    x, y = env.start_places[pose // 4].T
    env.set_layout(layout._replace(x=x, y=y, direction=pose % 4))
    for action in actions:
        terminated = env.step(action)[2]
    return int(terminated.sum())


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"size": 5}, "size must be at least 6, but is 5"),
        ({"objects": 1}, "objects must be from 2 to 9 in a room of size 8, but is 1"),
        ({"objects": 10}, "objects must be from 2 to 9 in a room of size 8, but is 10"),
        ({"size": 14, "objects": 19}, "objects must be from 2 to 18"),
        ({"instruction_steps": 0}, "instruction_steps must be at least 1, but is 0"),
        ({"max_steps": 14}, "max_steps must be at least 2 · size − 1 = 15, .* but is 14"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TransientInstruction(**settings)
