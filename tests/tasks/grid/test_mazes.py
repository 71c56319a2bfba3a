"""Mazes: connected, perfect, drawn as often as they should be; rooms with doors; the maze that is left once."""

from itertools import permutations

import pytest
import torch

from merlin.tasks.classic.maze import Maze
from merlin.tasks.grid import cells
from merlin.tasks.grid.mazes import (
    BALLS,
    FLOORS,
    draw_places,
    maze_cells,
    neighbours,
    perfect_mazes,
    room_mazes,
    spanning_trees,
)
from merlin.tasks.solvers.planning import Planner
from tests.tasks.play import assert_mean, at_pose, distances, play, random_policy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kruskal(weights, ends):
    """Return the edges of the minimum spanning tree of one graph, one edge after another."""
    group, chosen = {}, []
    find = lambda vertex: find(group[vertex]) if vertex in group else vertex  # noqa: E731
    for edge in sorted(range(len(weights)), key=lambda edge: weights[edge]):
        one, other = (find(int(vertex)) for vertex in ends[:, edge])
        if one != other:
            group[one] = other
            chosen.append(edge)
    return chosen


def is_connected(is_open):
    """Return whether every open cell of each grid can be reached from its first one."""
    first = is_open.flatten(1).int().argmax(1)
    target = torch.zeros_like(is_open).flatten(1).scatter(1, first.unsqueeze(1), True).view_as(is_open)
    return (distances(is_open, target)[:, 0].isfinite() == is_open).all((1, 2))


def test_spanning_trees_are_kruskals():
    ends, _, _ = neighbours(3, 4)
    weights = torch.rand(20, ends.shape[1], generator=generator())
    for row, edges in zip(weights.tolist(), spanning_trees(weights, ends), strict=True):
        assert edges.nonzero().flatten().tolist() == sorted(kruskal(row, ends))


@pytest.mark.parametrize("height, width", [(3, 3), (3, 7), (9, 9), (11, 15)])
def test_mazes_are_perfect(height, width):
    is_open = perfect_mazes(200, height, width, generator())
    crossings = (height // 2) * (width // 2)
    assert is_open[:, 1::2, 1::2].all() and not is_open[:, ::2, ::2].any()
    assert not is_open[:, [0, -1]].any() and not is_open[:, :, [0, -1]].any()
    assert (is_open.sum((1, 2)) == crossings + crossings - 1).all()  # as few passages as can join them
    assert is_connected(is_open).all()


def test_mazes_are_drawn_as_often_as_random_weights_make_them():
    """All 15 trees of 2 x 3 crossings, as often as among the 7! orders of the weights."""
    ends, y, x = neighbours(2, 3)
    expected = {}
    for order in permutations(range(7)):
        tree = tuple(sorted(kruskal(order, ends)))
        expected[tree] = expected.get(tree, 0) + 1 / 5040
    count = 20_000
    drawn = {}
    for passages in perfect_mazes(count, 5, 7, generator())[:, y, x].tolist():
        tree = tuple(edge for edge in range(7) if passages[edge])
        drawn[tree] = drawn.get(tree, 0) + 1
    assert len(expected) == 15 and drawn.keys() == expected.keys()
    for tree, share in expected.items():
        assert abs(drawn[tree] - count * share) < 4.5 * (count * share * (1 - share)) ** 0.5


def test_a_third_of_the_crossings_is_coloured():
    grid = maze_cells(2000, 7, 7, generator())
    assert torch.equal(grid != cells.WALL, perfect_mazes(2000, 7, 7, generator()))
    for code in FLOORS:
        assert abs(int((grid == code).sum()) - 1000) < 4 * 1000**0.5
    assert not torch.isin(grid[:, ::2], torch.tensor(FLOORS)).any()


@pytest.mark.parametrize("per_side, size", [(2, 9), (3, 16), (6, 25)])
def test_rooms_are_joined_by_their_doors(per_side, size):
    drawn = room_mazes(50, per_side, size, generator())
    span, rows = (size - 1) // per_side, torch.arange(50).unsqueeze(1)
    assert torch.equal((drawn.cells == cells.WALL)[0], (drawn.cells == cells.WALL)[1])
    assert (drawn.cells[rows, drawn.door_y, drawn.door_x] == cells.WALL).all()
    assert ((drawn.door_x % span == 0) != (drawn.door_y % span == 0)).all()  # no corners
    assert drawn.door_x.shape == (50, 2 * per_side * (per_side - 1))
    is_open = drawn.cells != cells.WALL
    is_open &= ~torch.isin(drawn.cells, torch.tensor(BALLS, dtype=torch.uint8))  # they stand in no one's way
    assert not is_connected(is_open).any()
    is_open[rows, drawn.door_y, drawn.door_x] = drawn.joins
    assert (drawn.joins.sum(1) == per_side**2 - 1).all() and is_connected(is_open).all()
    offsets = torch.where(drawn.door_x % span == 0, drawn.door_y, drawn.door_x) % span
    assert offsets.unique().tolist() == list(range(1, span))


def test_rooms_are_told_apart():
    per_side, span = 4, 5
    for grid in room_mazes(20, per_side, per_side * span + 1, generator()).cells:
        inside = [grid[y + 1 : y + span, x + 1 : x + span] for y in range(0, 20, 5) for x in range(0, 20, 5)]
        pairs = [tuple(room.unique().tolist()) for room in inside]
        assert all(len(pair) == 2 and pair[0] in FLOORS and pair[1] in BALLS for pair in pairs)
        assert len(set(pairs)) == 16
        assert all(int(torch.isin(room, torch.tensor(BALLS)).sum()) == 1 for room in inside)
        assert not any(torch.isin(room[[0, -1]], torch.tensor(BALLS)).any() for room in inside)


def test_places_are_uniform_over_the_allowed_cells():
    is_allowed = torch.tensor([[[1, 0, 1], [0, 1, 1]]]).bool().repeat(2, 1, 1)
    is_allowed[1, 0, 0] = False
    x, y = draw_places(is_allowed, 20_000, generator())
    for row, chance in ((0, 1 / 4), (1, 1 / 3)):
        counts = torch.zeros(2, 3).index_put((y[row], x[row]), torch.ones(20_000), accumulate=True)
        expected = 20_000 * chance * is_allowed[row]
        assert ((counts - expected).abs() <= 4 * (expected * (1 - chance)).sqrt()).all()


def test_start_and_goal_are_anywhere_but_apart():
    env = Maze(500, size=5)
    env.reset(seed=0)
    goal = (cells.code_of(env.grid()) == cells.GOAL).flatten(1)
    x, y = env.coordinates(env.position)
    assert (goal.sum(1) == 1).all() and not goal.gather(1, (y * 5 + x).unsqueeze(1)).any()
    can_be = (cells.code_of(env.grid()) != cells.WALL).flatten(1).any(0)
    assert torch.equal(goal.any(0), can_be) and torch.equal((y * 5 + x).unique(), can_be.nonzero().flatten())
    assert env.direction.unique().tolist() == [0, 1, 2, 3]


def test_oracle_takes_the_shortest_way():
    env = Maze(300, size=7)
    env.reset(seed=3)
    codes = cells.code_of(env.grid())
    steps = distances(codes != cells.WALL, codes == cells.GOAL)
    steps = at_pose(steps, env.direction, *env.coordinates(env.position))
    returns, success = play(env, Planner(env), seed=3)
    torch.testing.assert_close(returns.float(), 1 - 0.9 * steps / 98)
    assert (success == 1).all()


@pytest.mark.parametrize("name", ["random", "memoryless", "oracle"])
def test_policies_earn_their_scores(name):
    settings = {"size": 7, "max_steps": 60}
    env = Maze(300, **settings)
    policy = (env.players | {"random": random_policy})[name](env)
    returns, _ = play(env, policy, seed=5)
    expected = Maze(**settings).scores
    assert_mean(returns / 2**0.5, expected[name] / 2**0.5)  # the score is itself a mean of about as many
    assert expected["random"] < expected["memoryless"] < expected["oracle"]


@pytest.mark.parametrize("settings, sentence", [({"size": 8}, "size must be odd and at least 5, but is 8"),
                                                ({"size": 3}, "size must be odd")])  # fmt: skip
def test_sizes_that_cannot_be(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Maze(**settings)
