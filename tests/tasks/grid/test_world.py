"""Grid worlds against MiniGrid's own: the same layouts and actions give the same views, rewards and ends."""

import gymnasium
import minigrid  # noqa: F401 (registers MiniGrid's tasks)
import numpy as np
import pytest
import torch

from merlin.tasks.grid import cells
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.grid.visibility import Sight, spread
from merlin.tasks.minigrid_tasks.memory import Hallway


def cell_code(thing):
    """Return the code of a MiniGrid object."""
    if thing is None:
        return cells.EMPTY
    content = thing.contains and cells.Cell(thing.contains.type, thing.contains.color)
    return cells.code(thing.type, thing.color, thing.encode()[2], content)


def layout_of(envs, **extra) -> Layout:
    """Return the layouts that MiniGrid environments stand in."""
    grids = [[[cell_code(env.grid.get(x, y)) for x in range(env.width)] for y in range(env.height)] for env in envs]
    x, y = torch.tensor([[int(place) for place in env.agent_pos] for env in envs]).T
    directions = torch.tensor([int(env.agent_dir) for env in envs])
    return Layout(torch.tensor(grids, dtype=torch.uint8), x, y, directions, extra)


def places(task, positions):
    return task.place(*torch.tensor([[int(place) for place in position] for position in positions]).T)


def play_beside(envs, task, seed, weights):
    """Play random actions in both until all episodes ended; return the number of steps compared."""
    rng = np.random.default_rng(seed)
    expected = [env.gen_obs() for env in envs]
    observation, alive, compared = task._observe(), np.ones(len(envs), bool), 0
    while alive.any():
        for i in np.flatnonzero(alive):
            np.testing.assert_array_equal(observation["image"][i], expected[i]["image"])
            assert observation["direction"][i] == expected[i]["direction"]
        actions = rng.choice(7, len(envs), p=np.array(weights) / sum(weights))
        observation, reward, terminated, truncated, _ = task.step(actions)
        for i in np.flatnonzero(alive):
            expected[i], *rest = envs[i].step(actions[i])[:4]
            assert [np.float32(rest[0]), *rest[1:]] == [reward[i].item(), terminated[i].item(), truncated[i].item()]
            alive[i] = not (rest[1] or rest[2])
            compared += 1
    return compared


@pytest.mark.parametrize("view_size", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("task_id, size, random_length", [("S7", 7, False), ("S13Random", 13, True)])
def test_hallways_are_minigrids(task_id, size, random_length, view_size):
    envs = [gymnasium.make(f"MiniGrid-Memory{task_id}-v0", agent_view_size=view_size).unwrapped for _ in range(8)]
    task = Hallway(8, size, random_length, agent_view_size=view_size)
    task.autoreset = False
    task.reset()
    for i, env in enumerate(envs):
        env.reset(seed=i)
    targets = {name: places(task, [getattr(env, f"{of}_pos") for env in envs])
               for name, of in (("target", "success"), ("decoy", "failure"))}  # fmt: skip
    task.set_layout(layout_of(envs, **targets))
    assert play_beside(envs, task, seed=0, weights=[4, 4, 8, 1, 1, 1, 1]) > 300


@pytest.mark.parametrize("size, random_length", [(7, False), (13, True)])
def test_hallways_are_drawn_as_minigrid_draws_them(size, random_length):
    """The same set of layouts and starts, and the same frequencies to within sampling error."""
    from minigrid.envs import MemoryEnv

    def counted(layout):
        keys = zip(layout.cells.flatten(1).tolist(), layout.x.tolist(), layout.y.tolist(), strict=True)
        counts = {}
        for grid, x, y in keys:
            counts[(tuple(grid), x, y)] = counts.get((tuple(grid), x, y), 0) + 1
        return counts

    env, count = MemoryEnv(size=size, random_length=random_length), 1000
    theirs = []
    for seed in range(count):
        env.reset(seed=seed)
        theirs.append(layout_of([env]))
    theirs = counted(Layout(*(torch.cat(column) for column in zip(*(x[:4] for x in theirs), strict=True)), {}))
    task = Hallway(1, size, random_length)
    ours = counted(task._generate(count, torch.Generator().manual_seed(0)))
    assert {grid for grid, *_ in ours} == {grid for grid, *_ in theirs}
    for key in ours | theirs:
        one, other = ours.get(key, 0), theirs.get(key, 0)
        assert abs(one - other) < 5 * (one + other) ** 0.5


def visible_cell_by_cell(see_behind):
    """Return what is visible of views [B, V, V], found as MiniGrid does: one cell after the other."""
    size = see_behind.shape[1]
    visible = torch.zeros_like(see_behind)
    visible[:, -1, size // 2] = True
    for row in range(size - 1, -1, -1):
        for order in (1, -1):
            for column in range(size)[::order][:-1]:
                passes = visible[:, row, column] & see_behind[:, row, column]
                visible[:, row, column + order] |= passes
                if row > 0:
                    visible[:, row - 1, column + order] |= passes
                    visible[:, row - 1, column] |= passes
    return visible


@pytest.mark.parametrize("view_size", [3, 5, 7, 9, 11, 13, 27, 53])
def test_sight_by_row_is_sight_by_cell(view_size):
    torch.manual_seed(0)
    see_behind = torch.rand(200, view_size, view_size) < torch.rand(200, 1, 1)
    visible = Sight(view_size)(torch.where(see_behind, 1, -1).int().flatten(1))
    assert visible.dtype == torch.int32
    assert torch.equal(visible.view_as(see_behind), -visible_cell_by_cell(see_behind).int())


def test_a_view_too_large_for_sight_is_one_sentence():
    with pytest.raises(ValueError, match="agent_view_size must be at most 53"):
        Sight(55)


def test_sight_spreads_along_a_row_and_ahead_of_it():
    seen, ahead = spread(torch.tensor(0b0010010), torch.tensor(0b0001000), 7)
    assert (int(seen), int(ahead)) == (0b0011110, 0b0011110)


def test_an_episode_that_ends_starts_anew_and_shows_how_it_ended():
    task = Hallway(64, 7, agent_view_size=3, max_steps=20)
    observation, _ = task.reset(seed=1)
    ends = 0
    for _ in range(60):
        observation, reward, terminated, truncated, info = task.step(torch.randint(7, (64,)))
        is_end = terminated | truncated
        assert torch.equal(info["_final_obs"], is_end) and (info["is_success"].isnan() == ~is_end).all()
        assert (info["is_success"][is_end] == (reward[is_end] > 0)).all() and (reward[~is_end] == 0).all()
        for name, x in observation.items():
            assert torch.equal(x[~is_end], info["final_obs"][name][~is_end])
        assert (observation["direction"][is_end] == 0).all() and (task.num_steps[is_end] == 0).all()
        ends += int(is_end.sum())
    assert ends > 100


def test_an_action_that_does_not_exist_is_one_sentence():
    task = Hallway(2)
    task.reset()
    for action in (7, -1):
        with pytest.raises(ValueError, match=f"an action must be from 0 to 6, but .*{action}"):
            task.step(torch.tensor([0, action]))


@pytest.mark.parametrize("settings, sentence", [({"size": 8}, "size must be odd"), ({"size": 5}, "at least 7"),
                                                ({"agent_view_size": 4}, "agent_view_size must be odd")])  # fmt: skip
def test_sizes_that_cannot_be_are_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Hallway(2, **settings)
