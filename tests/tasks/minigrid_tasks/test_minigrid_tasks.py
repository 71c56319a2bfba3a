"""MiniGrid's own tasks: step by step equal, drawn with the same frequencies, and played by planners and reflexes."""

from collections import Counter, deque
from typing import Any, NamedTuple

import minigrid.envs as theirs
import numpy as np
import pytest
import torch
from minigrid.core.world_object import Lava, Wall

from merlin.tasks.grid import cells
from merlin.tasks.minigrid_tasks.door_key import DoorKey
from merlin.tasks.minigrid_tasks.empty import Empty
from merlin.tasks.minigrid_tasks.four_rooms import FourRooms
from merlin.tasks.minigrid_tasks.key_corridor import KeyCorridor
from merlin.tasks.minigrid_tasks.lava_gap import LavaGap
from merlin.tasks.minigrid_tasks.memory import Hallway
from merlin.tasks.minigrid_tasks.memory import Memoryless as HallwayMemoryless
from merlin.tasks.minigrid_tasks.multi_room import MultiRoom
from merlin.tasks.minigrid_tasks.obstructed_maze import ObstructedMaze
from merlin.tasks.minigrid_tasks.red_blue_doors import RedBlueDoors
from merlin.tasks.solvers.planning import Planner
from merlin.tasks.solvers.scores import first_returns
from tests.tasks.grid.test_world import cell_code, layout_of, places
from tests.tasks.play import play


class Pair(NamedTuple):
    """A setting of a task, here and in MiniGrid."""

    ours: type
    kwargs: dict[str, Any]
    theirs: type
    their_kwargs: dict[str, Any]


def rooms(least, most, size, **kwargs):
    ours = {"num_rooms": least, "max_num_rooms": most, "max_room_size": size} | kwargs
    names = {"minNumRooms": least, "maxNumRooms": most, "maxRoomSize": size} | kwargs
    return Pair(MultiRoom, ours, theirs.MultiRoomEnv, names)


def same(ours, other, **kwargs):
    return Pair(ours, kwargs, other, kwargs)


FAMILIES = {
    "Memory": [same(Hallway, theirs.MemoryEnv, size=7), same(Hallway, theirs.MemoryEnv, size=11, random_length=True)],
    "Empty": [
        same(Empty, theirs.EmptyEnv, size=8),
        Pair(Empty, {"size": 5, "random_start": True}, theirs.EmptyEnv, {"size": 5, "agent_start_pos": None}),
    ],
    "FourRooms": [
        same(FourRooms, theirs.FourRoomsEnv),
        same(FourRooms, theirs.FourRoomsEnv, agent_pos=(9, 3), goal_pos=(15, 16)),
    ],
    "DoorKey": [same(DoorKey, theirs.DoorKeyEnv, size=5), same(DoorKey, theirs.DoorKeyEnv, size=8)],
    "MultiRoom": [rooms(2, 2, 4), rooms(2, 4, 6), rooms(6, 6, 10), rooms(3, 3, 5, width=16, height=20)],
    "RedBlueDoors": [
        same(RedBlueDoors, theirs.RedBlueDoorEnv, size=5),
        same(RedBlueDoors, theirs.RedBlueDoorEnv, size=8),
    ],
    "KeyCorridor": [
        same(KeyCorridor, theirs.KeyCorridorEnv, num_rows=1, room_size=3),
        same(KeyCorridor, theirs.KeyCorridorEnv, num_rows=2, room_size=4, obj_type="box"),
        same(KeyCorridor, theirs.KeyCorridorEnv, num_rows=2, room_size=3, obj_type="key"),
        same(KeyCorridor, theirs.KeyCorridorEnv),
    ],
    "ObstructedMaze": [
        same(ObstructedMaze, theirs.ObstructedMaze_1Dlhb, key_in_box=in_box, blocked=blocked)
        for in_box, blocked in ((False, False), (True, False), (True, True))
    ],
    "LavaGap": [
        Pair(LavaGap, {"size": 7}, theirs.LavaGapEnv, {"size": 7, "obstacle_type": Lava}),
        Pair(LavaGap, {"size": 5, "obstacle": "wall"}, theirs.LavaGapEnv, {"size": 5, "obstacle_type": Wall}),
    ],
}
ALL = [pytest.param(pair, id=f"{name}-{i}") for name, pairs in FAMILIES.items() for i, pair in enumerate(pairs)]
PAIRS = [param for param in ALL if not param.id.startswith("Memory")]
PAIRS.append(pytest.param(rooms(1, 1, 4, width=6, height=6), id="MultiRoom-tight"))


def extra_of(pair, task, envs):
    """Return what a layout of ours holds beside the grid."""
    if pair.ours is Hallway:
        return {"target": places(task, [env.success_pos for env in envs]),
                "decoy": places(task, [env.failure_pos for env in envs])}  # fmt: skip
    extra = {}
    if "target" in task.extra_names:
        extra["target"] = places(task, [env.obj.cur_pos for env in envs])
    if "mission" in task.extra_names:
        extra["mission"] = torch.tensor([cells.COLOURS.index(env.obj.color) for env in envs])
    return extra


def act(rng, env):
    """Return a random action, often one that changes something."""
    if rng.random() < 0.5:
        thing = env.grid.get(*env.front_pos)
        if thing is not None and thing.type in ("door", "box", "key", "ball"):
            return int(rng.choice([3, 5] if thing.type != "door" else [5, 2]))
        if env.carrying is not None and rng.random() < 0.3:
            return 4
    return int(rng.choice(7, p=[0.18, 0.18, 0.44, 0.05, 0.05, 0.05, 0.05]))


def compare(pair, view_size, see_through, num_steps, seed=0, num_envs=8, most_steps=250):
    """Play random actions in both until so many steps were compared; return their number, mismatches and events."""
    shared = {"agent_view_size": view_size}
    envs = [pair.theirs(**pair.their_kwargs, **shared, max_steps=most_steps) for _ in range(num_envs)]
    kwargs = {} if pair.ours is Hallway else {"see_through_walls": see_through}
    task = pair.ours(num_envs, **pair.kwargs, **shared, **kwargs, max_steps=most_steps)
    task.autoreset = False
    rng, compared, mismatches, events = np.random.default_rng(seed), 0, 0, Counter()
    while compared < num_steps:
        task.reset()
        for env in envs:
            env.reset(seed=int(rng.integers(2**31)))
            env.see_through_walls = see_through and pair.ours is not Hallway
        task.set_layout(layout_of(envs, **extra_of(pair, task, envs)))
        expected, observation = [env.gen_obs() for env in envs], task._observe()
        alive, outcomes = np.ones(num_envs, bool), [(0.0, False, False)] * num_envs
        got = [torch.zeros(num_envs)] * 3
        while True:
            images, directions = observation["image"].numpy(), observation["direction"].tolist()
            carried, facts = task.carried.tolist(), [x.tolist() for x in got]
            for i in np.flatnonzero(alive):
                env, outcome = envs[i], outcomes[i]
                is_same = np.array_equal(images[i], expected[i]["image"])
                is_same &= directions[i] == expected[i]["direction"]
                is_same &= carried[i] == cell_code(env.carrying)
                is_same &= [np.float32(outcome[0]), *outcome[1:]] == [fact[i] for fact in facts]
                if "mission" in observation:
                    is_same &= cells.COLOURS[observation["mission"][i]] in expected[i]["mission"]
                mismatches += not is_same
                alive[i] = not (outcome[1] or outcome[2])
                events["reward"] += outcome[0] > 0
                events["carrying"] += env.carrying is not None
            if not alive.any():
                break
            actions = [act(rng, env) for env in envs]
            observation, *got, _ = task.step(torch.tensor(actions))
            for i in np.flatnonzero(alive):
                expected[i], *outcomes[i] = envs[i].step(actions[i])[:4]
                compared += 1
    return compared, mismatches, events


@pytest.mark.parametrize("pair", ALL)
@pytest.mark.parametrize("view_size, see_through", [(3, True), (7, False)])
def test_steps_are_minigrids(pair, view_size, see_through):
    """More of the same: benchmarks/parity.py."""
    compared, mismatches, _ = compare(pair, view_size, see_through, 60, view_size, num_envs=2, most_steps=50)
    assert compared >= 60 and mismatches == 0


def counts_of(layouts):
    """Return how often each fact of single layouts and each pair of facts of interest occurs."""
    counts = Counter()
    for grid, x, y, direction in zip(*(part.tolist() for part in layouts[:4]), strict=True):
        things = [(cells.CELLS[code], i, j) for j, row in enumerate(grid) for i, code in enumerate(row) if code > 7]
        kinds = sorted((thing.kind, thing.state, thing.content is not None) for thing, *_ in things)
        counts.update([("agent", x, y), ("x", x), ("y", y), ("direction", direction), ("kinds", tuple(kinds))])
        counts.update([("at", thing.kind, thing.state, i, j) for thing, i, j in things])
        counts.update([("colour", thing) for thing, *_ in things])
        counts.update([("walls", sum(code == cells.WALL for row in grid for code in row))])
        blocks = [[code in (cells.WALL, cells.LAVA) for code in row] for row in grid]
        for j in range(1, len(grid) - 1):
            for i in range(1, len(grid[0]) - 1):
                if grid[j][i] == cells.EMPTY and (blocks[j - 1][i] and blocks[j + 1][i]):
                    counts.update([("gap between above and below, x", i), ("gap between above and below, y", j)])
                if grid[j][i] == cells.EMPTY and (blocks[j][i - 1] and blocks[j][i + 1]):
                    counts.update([("gap between left and right, x", i), ("gap between left and right, y", j)])
        doors = [thing.colour for thing, *_ in things if thing.kind == "door"]
        counts.update([("equal doors", len(doors) - len(set(doors)))])
        counts.update([("faced", grid[y + (0, 1, 0, -1)[direction]][x + (1, 0, -1, 0)[direction]])])
        counts.update([("distance", thing.kind, abs(i - x) + abs(j - y)) for thing, i, j in things])
    return counts


@pytest.mark.parametrize("pair", PAIRS)
def test_layouts_are_drawn_as_minigrid_draws_them(pair):
    """Places, colours, numbers of rooms and doors, and distances are as frequent, to within sampling error."""
    env, count = pair.theirs(**pair.their_kwargs), 300
    drawn = []
    for seed in range(count):
        env.reset(seed=seed)
        drawn.append(layout_of([env]))
    their_counts = sum((counts_of(layout) for layout in drawn), Counter())
    factor = 4
    our_counts = counts_of(pair.ours(1, **pair.kwargs)._generate(factor * count, torch.Generator().manual_seed(0)))
    for fact in their_counts | our_counts:
        one, other = their_counts[fact], our_counts[fact] / factor
        error = (their_counts[fact] + our_counts[fact] / factor**2) ** 0.5
        assert abs(one - other) < 5 * error + 4, (fact, one, other)


def shortest(task):
    """Return the least number of actions to a reward in the first environment, over all actions, by rules of cells."""
    grid = cells.code_of(task.grid()[0]).tolist()
    x, y = (int(i) for i in task.coordinates(task.position[0]))
    start = (x, y, int(task.direction[0]), cells.EMPTY, ())
    goal = task.extra_names and tuple(int(i) for i in task.coordinates(task.target[0]))
    queue, steps = deque([start]), {start: 0}
    while queue:
        state = x, y, direction, carried, changed = queue.popleft()
        front = x + (1, 0, -1, 0)[direction], y + (0, 1, 0, -1)[direction]
        ahead = dict(changed).get(front, grid[front[1]][front[0]])
        for action in range(6):
            result = cells.act(action, ahead, carried)
            place = front if result.moves else (x, y)
            opens = isinstance(task, RedBlueDoors) and action == cells.TOGGLE and cells.CELLS[ahead].colour == "blue"
            if opens:
                is_open = any(cells.CELLS[c] == cells.Cell("door", "red") for _, c in changed)
                result = result._replace(reaches_goal=is_open, dies=not is_open)
            if result.reaches_goal or (goal and action == cells.PICKUP and front == goal and result.carried != carried):
                return steps[state] + 1
            if result.dies:
                continue
            now = {**dict(changed), front: result.ahead}
            now = tuple(sorted((where, c) for where, c in now.items() if c != grid[where[1]][where[0]]))
            turned = (direction + {cells.LEFT: 3, cells.RIGHT: 1}.get(action, 0)) % 4
            following = (*place, turned, result.carried, now)
            if following not in steps:
                steps[following] = steps[state] + 1
                queue.append(following)


def alone(task, index, kwargs):
    """Return one environment of a batch as a batch of its own."""
    one = type(task)(1, **kwargs)
    for name in task.state_names:
        setattr(one, name, getattr(task, name)[index : index + 1].clone())
    return one


EXACT = [
    (Empty, {"size": 5, "random_start": True}, 8), (FourRooms, {"size": 9}, 5), (LavaGap, {"size": 6}, 5),
    (DoorKey, {"size": 5}, 5), (RedBlueDoors, {"size": 5}, 5), (MultiRoom, {}, 5),
    (MultiRoom, {"num_rooms": 3}, 2),
]  # fmt: skip


@pytest.mark.parametrize("ours, kwargs, count", EXACT)
def test_plans_are_shortest(ours, kwargs, count):
    task = ours(count, **kwargs)
    returns = first_returns(task, Planner(task), seed=5)
    task.reset(seed=5)
    for i in range(count):
        one = alone(task, i, kwargs)
        assert returns[i] == pytest.approx(1 - 0.9 * shortest(one) / task.max_steps)


@pytest.mark.parametrize(
    "ours, kwargs",
    [
        (KeyCorridor, {"num_rows": 1, "room_size": 3}),
        (KeyCorridor, {"num_rows": 2, "room_size": 3}),
        (ObstructedMaze, {"blocked": False, "room_size": 5}),
    ],
)
def test_plans_by_sub_goals_are_short(ours, kwargs):
    """Within three actions of the shortest."""
    task = ours(3, **kwargs)
    returns = first_returns(task, Planner(task), seed=5)
    task.reset(seed=5)
    for i in range(3):
        best, steps = shortest(alone(task, i, kwargs)), round(float((1 - returns[i]) * task.max_steps / 0.9))
        assert best <= steps <= best + 3


SMALL = [
    (Empty, {"size": 5}), (FourRooms, {"size": 7, "max_steps": 40}), (LavaGap, {"size": 5}), (DoorKey, {"size": 5}),
    (RedBlueDoors, {"size": 4, "max_steps": 60}), (MultiRoom, {}),
    (KeyCorridor, {"num_rows": 2, "room_size": 3, "max_steps": 90}),
    (ObstructedMaze, {"room_size": 5, "max_steps": 90}),
]  # fmt: skip


@pytest.mark.parametrize("ours, kwargs", SMALL)
def test_scores_are_of_play_from_seed_0(ours, kwargs):
    scores = ours(**kwargs).scores
    assert 0 <= scores["random"] <= scores["memoryless"] + 0.02 and scores["memoryless"] < scores["oracle"] <= 1
    task = ours(ours.score_episodes["oracle"], **kwargs)
    returns, success = play(task, Planner(task))
    assert returns.mean() == pytest.approx(scores["oracle"]) and success.mean() > 0.97


@pytest.mark.parametrize(
    "kwargs, needs_memory",
    [
        ({"agent_view_size": 3}, True),
        ({"size": 9, "agent_view_size": 5}, True),
        ({}, False),
        ({"size": 9, "random_length": True, "agent_view_size": 5}, False),
    ],
)
def test_memory_is_scored(kwargs, needs_memory):
    """Without memory, half of what is possible, unless the cue can be seen from the junction."""
    scores, task = Hallway(**kwargs).scores, Hallway(1000, **kwargs)
    for name, player in (("oracle", Planner(task)), ("memoryless", HallwayMemoryless(task, seed=1))):
        returns = first_returns(task, player, seed=1)
        assert abs(returns.mean() - scores[name]) < 5 * returns.std() / 500**0.5
    assert (scores["memoryless"] == scores["oracle"] / 2) == needs_memory
    assert (scores["memoryless"] > 0.6) != needs_memory


def test_what_is_dropped_is_never_in_the_way():
    task = ObstructedMaze(300, max_steps=100)
    assert (first_returns(task, Planner(task)) > 0).all()


def test_the_hallways_cue_is_shown_from_beside_it():
    task = Hallway(1, 7, agent_view_size=3)
    shown = set()
    for x in range(1, 6):
        for direction in range(4):
            task.reset(seed=0)
            task.position, task.direction = task.place(torch.tensor([x]), torch.tensor([3])), torch.tensor([direction])
            shown |= {(x, direction)} if task.shows_cue() else set()
    assert shown == {(1, 0), (1, 2), (1, 3), (2, 2), (2, 3), (3, 2)}


def door_row(task, column):
    codes = cells.code_of(task.grid()[0, :, column]).tolist()
    return next(row for row, code in enumerate(codes) if cells.CELLS[code].kind == "door")


def test_red_must_be_open_before_blue():
    task = RedBlueDoors(1, size=4)
    task.autoreset = False
    for opens_red, reward in ((True, 1 - 0.9 * 2 / 320), (False, 0.0)):
        task.reset(seed=0)
        if opens_red:
            red = next(
                i for i, c in enumerate(cells.code_of(task.grid()[0, :, 2]).tolist()) if cells.CELLS[c].kind == "door"
            )
            task.position, task.direction = task.place(torch.tensor([3]), torch.tensor([red])), torch.tensor([2])
            assert task.shows_cue() and task.step([cells.TOGGLE])[1:3] == (0, False)
        blue = door_row(task, 5)
        task.position, task.direction = task.place(torch.tensor([4]), torch.tensor([blue])), torch.tensor([0])
        _, got, terminated, _, info = task.step([cells.TOGGLE])
        assert got == pytest.approx(reward) and terminated and info["is_success"] == opens_red


@pytest.mark.parametrize(
    "ours, kwargs, sentence",
    [
        (Empty, {"size": 3}, "size must be at least 4, but is 3"),
        (FourRooms, {"size": 8}, "size must be odd and at least 5, but is 8"),
        (FourRooms, {"goal_pos": (0, 3)}, "goal_pos must be"),
        (LavaGap, {"size": 4}, "size must be at least 5, but is 4"),
        (LavaGap, {"obstacle": "water"}, "obstacle must be 'lava' or 'wall', but is 'water'"),
        (DoorKey, {"size": 4}, "size must be at least 5, but is 4"),
        (RedBlueDoors, {"size": 2}, "size must be at least 3, but is 2"),
        (MultiRoom, {"num_rooms": 0}, "num_rooms must be at least 1"),
        (MultiRoom, {"num_rooms": 3, "max_num_rooms": 2}, "at most max_num_rooms, but is 3 of 2"),
        (MultiRoom, {"max_room_size": 3}, "max_room_size must be at least 4, but is 3"),
        (MultiRoom, {"height": 4}, "height must be at least 5"),
        (KeyCorridor, {"num_rows": 0}, "num_rows must be at least 1, but is 0"),
        (KeyCorridor, {"obj_type": "door"}, "obj_type must be 'ball', 'box' or 'key', but is 'door'"),
        (KeyCorridor, {"room_size": 2}, "room_size must be at least 3, but is 2"),
        (ObstructedMaze, {"room_size": 4}, "room_size must be at least 5, but is 4"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(ours, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        ours(1, **kwargs)


def test_rooms_that_do_not_fit_are_one_sentence(monkeypatch):
    monkeypatch.setattr("merlin.tasks.minigrid_tasks.multi_room.ROUNDS", 2)
    with pytest.raises(ValueError, match="9 rooms of up to 4 cells must fit into 8 x 8 cells, but 2048 attempts"):
        MultiRoom(1, num_rooms=9, height=8, width=8)


def test_a_mission_is_the_colour_of_the_object():
    task = KeyCorridor(32, num_rows=1, room_size=3)
    observation, _ = task.reset(seed=0)
    colours = [
        cells.CELLS[code].colour for code in cells.code_of(task.cells.gather(1, task.target.view(-1, 1))).flatten()
    ]
    assert [cells.COLOURS[i] for i in observation["mission"]] == colours and len(set(colours)) > 3


def test_a_missed_box_cannot_be_picked_up_any_more():
    task = KeyCorridor(1, num_rows=1, room_size=3, obj_type="box")
    task.autoreset = False
    for actions, reward in (([cells.PICKUP], True), ([cells.TOGGLE, cells.DROP, cells.PICKUP], False)):
        task.reset(seed=0)
        task.position, task.direction = task.target - 1, torch.tensor([0])
        if not reward:  # a key that takes its place is not it
            task.carried = torch.tensor([cells.code("key", "red")])
        assert any(task.step([action])[1] > 0 for action in actions) == reward
