"""Pictures from inside a grid: against a slow ray caster, and scenes whose picture is known."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from merlin.tasks.grid import cells
from merlin.tasks.grid.cells import CLOSED, LOCKED, OPEN, code
from merlin.tasks.grid.first_person.geometry import trace
from merlin.tasks.grid.first_person.renderer import FirstPerson
from merlin.tasks.grid.first_person.textures import FOG
from merlin.tasks.minigrid_tasks.memory import Hallway

LEGEND = {
    "#": cells.WALL,
    ".": cells.EMPTY,
    "~": cells.LAVA,
    "R": code("wall", "red"),
    "B": code("wall", "blue"),
    "k": code("key", "yellow"),
    "o": code("ball", "red"),
    "x": code("box", "green"),
    "g": code("goal", "green"),
    "f": code("floor", "purple"),
    "O": code("door", "blue", OPEN),
    "C": code("door", "blue", CLOSED),
    "L": code("door", "blue", LOCKED),
}
RIGHT, DOWN, LEFT, UP = range(4)
ROOM = ["#########", "#.......#", "#.......#", "#@......#", "#.......#", "#.......#", "#########"]


def grid_of(rows) -> torch.Tensor:
    """Return the codes of a drawing."""
    return torch.tensor([[LEGEND.get(letter, cells.EMPTY) for letter in row] for row in rows])


def look(rows, direction=RIGHT, carried=cells.EMPTY, at=None, **settings) -> np.ndarray:
    """Return what the agent sees at the @ of a drawing, or at (column, row)."""
    x, y = at or next((row.index("@"), y) for y, row in enumerate(rows) if "@" in row)
    stride = len(rows[0])
    draw = FirstPerson(stride, **settings)
    packed = cells.packed()[grid_of(rows)].flatten().unsqueeze(0)
    arguments = (torch.tensor([value]) for value in (y * stride + x, direction, carried))
    return draw(packed, *arguments)[0].numpy().astype(int)


def put(rows, things) -> list[str]:
    """Return a drawing with letters put at (column, row)."""
    drawn = [list(row) for row in rows]
    for (x, y), letter in things.items():
        drawn[y][x] = letter
    return ["".join(row) for row in drawn]


def hit(grid, x, y, direction, slope):
    """Return the depth at which a ray meets something that hides, the cell, and if it enters from the side."""
    forward = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][direction])
    right = np.array([-forward[1], forward[0]])
    ray = forward + slope * right
    cell, step = np.array([x, y]), np.sign(ray).astype(int)
    with np.errstate(divide="ignore"):
        delta = np.abs(1 / ray)
    to_next = 0.5 * delta
    while True:
        axis = int(np.argmin(to_next))
        depth, cell = to_next[axis], cell + step * (np.arange(2) == axis)
        to_next[axis] += delta[axis]
        entered = np.array([x, y]) + depth * ray - cell + 0.5  # within the cell, from 0 to 1
        thing = cells.CELLS[grid[cell[1], cell[0]]]
        is_post = thing.kind == "door" and thing.state == OPEN and abs(entered[1 - axis] - 0.5) > 0.35
        if not cells.can_see_behind(thing) or is_post:
            return depth, tuple(cell), bool(forward[axis] == 0)


def random_scene(rng, height, width):
    kinds = rng.choice([cells.EMPTY, cells.WALL, *LEGEND.values()], (height, width), p=[0.62, 0.1, *[0.28 / 13] * 13])
    kinds[[0, -1]] = kinds[:, [0, -1]] = cells.WALL
    return kinds


@pytest.mark.parametrize("size, sight", [(64, 16), (16, 24)])
def test_every_column_ends_where_a_slow_ray_ends(size, sight):
    rng = np.random.default_rng(size)
    rays, num_hits = trace(size, sight), 0
    for _ in range(12):
        height, width, direction = 11, 14, rng.integers(4)
        grid = random_scene(rng, height, width)
        x, y = rng.integers(1, width - 1), rng.integers(1, height - 1)
        draw = FirstPerson(width, size, sight)
        packed = cells.packed()[torch.from_numpy(grid)].flatten().unsqueeze(0)
        _, stop = draw._cast(packed, torch.tensor([y * width + x]), torch.tensor([direction]))
        for place, crossing in enumerate(stop[0].tolist()):
            column = place % (size // 4) * 4 + place // (size // 4)
            depth, cell, is_side = hit(grid, x, y, direction, (2 * column + 1 - size) / size)
            assert rays.column[crossing] == column
            if depth >= sight:
                assert rays.is_end[crossing]
                continue
            ahead, aside = rays.ahead[crossing], rays.aside[crossing]
            dx, dy = [(1, 0), (0, 1), (-1, 0), (0, -1)][direction]
            assert (x + ahead * dx - aside * dy, y + ahead * dy + aside * dx) == cell
            np.testing.assert_allclose(rays.depth[crossing], depth, rtol=1e-12)
            assert rays.is_side[crossing] == is_side
            num_hits += 1
    assert num_hits > 150


def test_every_pixel_below_shows_the_floor_that_a_slow_ray_meets():
    rng, size, height, width = np.random.default_rng(0), 32, 9, 12
    slopes, num_pixels = (2 * np.arange(size) + 1 - size) / size, 0
    for _ in range(8):
        grid = random_scene(rng, height, width)
        x, y, direction = rng.integers(1, width - 1), rng.integers(1, height - 1), rng.integers(4)
        (dx, dy), floors = [(1, 0), (0, 1), (-1, 0), (0, -1)][direction], {}
        for column, aside in enumerate(slopes):
            depth = hit(grid, x, y, direction, aside)[0]
            for row in range(size // 2, size):
                far = 0.5 / slopes[row]
                if far < min(depth, 16) - 1e-9 and abs(abs(far * aside) % 1 - 0.5) > 1e-9:  # not between two cells
                    ahead, right = round(far), round(far * aside)
                    cell = x + ahead * dx - right * dy, y + ahead * dy + right * dx
                    floors.setdefault(cell, set()).add((row, column))
        packed, draw = cells.packed(), FirstPerson(width, size)
        pose = torch.tensor([y * width + x]), torch.tensor([direction])
        for (column, row), pixels in floors.items():
            pictures = []
            for thing in (cells.EMPTY, cells.LAVA):
                changed = np.where(np.isin(grid, [LEGEND[letter] for letter in "koxg"]), cells.EMPTY, grid)
                if cells.CELLS[changed[row, column]].kind == "door":
                    continue  # its posts would vanish
                changed[row, column] = thing
                pictures.append(draw(packed[torch.from_numpy(changed)].flatten().unsqueeze(0), *pose)[0])
            if pictures:
                different = {tuple(place) for place in (pictures[0] != pictures[1]).any(-1).nonzero().tolist()}
                between = {
                    (i, j) for i, j in different - pixels if abs(abs(0.5 / slopes[i] * slopes[j]) % 1 - 0.5) < 1e-9
                }
                assert different - between == pixels
                num_pixels += len(pixels)
    assert num_pixels > 500


def test_a_thing_shows_in_the_columns_whose_slow_rays_pass_its_middle():
    rng, size, height, width = np.random.default_rng(1), 64, 9, 12
    slopes, num_columns = (2 * np.arange(size) + 1 - size) / size, 0
    draw, packed = FirstPerson(width, size), cells.packed()
    for _ in range(40):
        grid = random_scene(rng, height, width)
        grid[np.isin(grid, [LEGEND[letter] for letter in "koxg"])] = cells.EMPTY
        x, y, direction = rng.integers(1, width - 1), rng.integers(1, height - 1), rng.integers(4)
        (dx, dy), ahead = [(1, 0), (0, 1), (-1, 0), (0, -1)][direction], rng.integers(1, 5)
        aside = rng.integers(-ahead, ahead + 1)
        column, row = x + ahead * dx - aside * dy, y + ahead * dy + aside * dx
        if not (0 < column < width - 1 and 0 < row < height - 1 and grid[row, column] == cells.EMPTY):
            continue
        depths = np.array([hit(grid, x, y, direction, slope)[0] for slope in slopes])
        is_clear, off = depths > ahead, abs(ahead * slopes - aside)
        empty, thing = grid.copy(), grid.copy()
        thing[row, column] = code("box", "red")
        scenes = packed[torch.from_numpy(np.stack([empty, thing]))].flatten(1)
        pictures = draw(scenes, torch.tensor([y * width + x] * 2), torch.tensor([direction] * 2))
        changed = (pictures[0] != pictures[1]).any(-1).any(0).numpy()
        half, margin = 0.43 * 0.8, ahead / size  # half a pixel
        assert changed[is_clear & (off < half - margin)].all()
        assert not changed[~is_clear | (off > half + margin)].any()
        num_columns += changed.sum()
    assert num_columns > 60


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8])
def test_a_wall_is_as_high_as_its_distance_says(distance):
    """At distance n its face is n − ½ cells away and, seen by 90 degrees, 1 / (2n − 1) of the picture high."""
    room = ["#" * 12, *["#" + "." * 10 + "#"] * 9, "#" * 12]
    picture = look(put(room, {(1 + distance, 5): "R"}), at=(1, 5))
    for column in (31, 32):
        reds = np.flatnonzero(picture[:, column, 0] - picture[:, column, 2] > 30)
        assert abs(len(reds) - 64 / (2 * distance - 1)) <= 1 and reds[0] + reds[-1] == 63
        assert (np.diff(reds) == 1).all()
    reds = np.flatnonzero(picture[31, :, 0] - picture[31, :, 2] > 30)
    assert abs(len(reds) - 64 / (2 * distance - 1)) <= 1  # as wide as high


def test_what_is_near_hides_what_is_far():
    box, ball = (3, 3), (4, 3)
    assert np.array_equal(look(put(ROOM, {box: "x", ball: "o"})), look(put(ROOM, {box: "x"})))
    before, both = look(put(ROOM, {box: "o"})), look(put(ROOM, {box: "o", ball: "x"}))
    behind = look(put(ROOM, {ball: "x"}))
    changed = (before != both).any(-1)
    assert changed.any() and np.array_equal(both[changed], behind[changed])  # beside the ball the box is seen
    assert (both[both[..., 0] - both[..., 1] > 100] == before[before[..., 0] - before[..., 1] > 100]).all()


def test_a_thing_shrinks_with_its_distance():
    heights = []
    for distance in (1, 2, 3, 4):
        picture = look(put(ROOM, {(1 + distance, 3): "o"}))
        heights.append((picture[..., 0] - picture[..., 1] > 60).any(1).sum())
    np.testing.assert_allclose(heights, 0.74 * 0.8 * 32 / np.arange(1, 5), atol=1.01)


@pytest.mark.parametrize("barrier", "#RCL")
def test_what_is_hidden_does_not_show(barrier):
    rows = put(ROOM, {(4, y): "#" for y in range(1, 6)} | {(4, 3): barrier})
    behind = {(5, 3): "o", (6, 3): "B", (5, 2): "~", (6, 4): "x", (5, 5): "g"}
    assert np.array_equal(look(rows), look(put(rows, behind)))
    open_rows = put(rows, {(4, 3): "O"})
    assert (look(open_rows) != look(put(open_rows, behind))).any()


def test_a_turned_world_looks_the_same():
    rows = put(ROOM, {(3, 2): "k", (4, 4): "o", (6, 3): "C", (5, 1): "R", (3, 5): "~", (2, 4): "f", (7, 5): "g"})
    expected, turned = look(rows), rows
    for direction in (DOWN, LEFT, UP, RIGHT):
        turned = ["".join(column) for column in zip(*turned[::-1], strict=True)]  # clockwise
        assert np.array_equal(look(turned, direction), expected)


def test_a_mirrored_world_gives_a_mirrored_picture():
    things = {(3, 2): "x", (4, 4): "o", (6, 3): "C", (5, 1): "R", (3, 5): "~", (2, 4): "f", (7, 5): "g", (7, 2): "L"}
    rows = put(ROOM, things | {(4, 2): "O"})
    assert np.array_equal(look(rows[::-1]), look(rows)[:, ::-1])


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_things_and_colours_are_told_apart(distance):
    """Any two differ clearly in at least a quarter of the pixels that the smaller one covers."""
    rows = put(ROOM, {(1 + distance, 3): "?"})
    empty, seen = look(rows), {}
    for kind in ("key", "ball", "box"):
        for colour in cells.COLOURS:
            LEGEND["?"] = code(kind, colour)
            seen[kind, colour] = look(rows)
    del LEGEND["?"]
    for one, first in seen.items():
        for other, second in seen.items():
            if one < other:
                covered = min((abs(picture - empty).max(-1) > 40).sum() for picture in (first, second))
                assert (abs(first - second).max(-1) > 40).sum() > covered / 4 > 3, (one, other)


def test_states_of_doors_are_told_apart():
    for distance in (1, 2, 3, 5):
        doors = [look(put(ROOM, {(1 + distance, 3): letter})) for letter in "OCL"]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (abs(doors[one] - doors[other]).max(-1) > 30).sum() >= 8


def test_what_is_carried_lies_in_the_corner():
    empty, key, ball = (look(ROOM, carried=thing) for thing in (cells.EMPTY, LEGEND["k"], LEGEND["o"]))
    for carrying in (key, ball):
        changed = (carrying != empty).any(-1)
        assert changed[48:, 48:].all() and changed.sum() == 16**2
    assert (key != ball).any()


def test_fog_hides_everything_at_the_sight_distance():
    far, near, settings = {(6, 3): "R"}, {(4, 3): "R"}, {"picture_size": 16, "sight_distance": 4}
    assert np.array_equal(look(put(ROOM, far), **settings), look(ROOM, **settings))
    assert (look(put(ROOM, near), **settings) != look(ROOM, **settings)).any()
    pixels = np.array([look(put(ROOM, {(x, 3): "R"}), **settings)[8, 8] for x in (2, 3, 4, 5)])
    off = abs(pixels - FOG).max(1)
    assert (np.diff(off) < -20).all() and off[-1] < 40 and off[0] > 130


def test_a_batch_is_drawn_as_each_alone():
    rng, count = np.random.default_rng(0), 200  # more than are drawn at a time
    grids = torch.stack([torch.from_numpy(random_scene(rng, 7, 9)) for _ in range(count)])
    packed = cells.packed()[grids].flatten(1)
    position = torch.from_numpy(rng.integers(1, 6, count) * 9 + rng.integers(1, 8, count))
    direction = torch.from_numpy(rng.integers(0, 4, count))
    draw = FirstPerson(9, 32)
    pictures = draw(packed, position, direction)
    assert pictures.is_contiguous() and pictures.dtype == torch.uint8
    for i in range(0, count, 7):
        alone = draw(*(x[i : i + 1] for x in (packed, position, direction)))
        assert torch.equal(alone[0], pictures[i])


def test_cells_in_view():
    rows = put(ROOM, {(4, y): "#" for y in range(1, 6)} | {(4, 3): "O", (6, 3): "o", (6, 1): "k", (3, 2): "x"})
    packed = cells.packed()[grid_of(rows)].flatten().unsqueeze(0)
    places, seen = FirstPerson(9).in_view(packed, torch.tensor([3 * 9 + 1]), torch.tensor([RIGHT]))
    found = {divmod(place, 9)[::-1]: cells.CELLS[cell >> 24 & 127].kind
             for place, cell in zip(places[0].tolist(), seen[0].tolist(), strict=True) if cell}  # fmt: skip
    assert found[3, 2] == "box" and found[6, 3] == "ball" and found[4, 2] == "wall"
    assert (6, 1) not in found and (5, 1) not in found and all(x >= 1 for x, _ in found)


def test_turning_all_around_shows_the_same_picture():
    task = Hallway(8, 9, view="first_person")
    first = task.reset(seed=0)[0]["image"]
    pictures = [task.step(torch.zeros(8, dtype=torch.int64))[0]["image"] for _ in range(4)]
    assert torch.equal(pictures[-1], first) and all((picture != first).any() for picture in pictures[:3])


@pytest.mark.parametrize("agent_view_size", [3, 9])
def test_what_is_seen_does_not_depend_on_the_frame(agent_view_size):
    one, other = (
        Hallway(16, 9, agent_view_size=size, view="first_person", picture_size=32) for size in (7, agent_view_size)
    )
    assert torch.equal(one.reset(seed=0)[0]["image"], other.reset(seed=0)[0]["image"])
    for actions in torch.randint(3, (30, 16), generator=torch.Generator().manual_seed(0)):
        assert torch.equal(one.step(actions)[0]["image"], other.step(actions)[0]["image"])


def test_the_cue_is_shown_where_it_is_in_the_picture():
    """Hiding the cue changes the picture exactly where `shows_cue` says so."""
    task = Hallway(256, 7, view="first_person", max_steps=50)
    task.reset(seed=0)
    num_shown = 0
    for actions in torch.tensor([0, 0, 2, 1, 1, 1, 2, 2, 0, 0]):
        shown = task.shows_cue()
        hidden = task.cells.clone()
        hidden[:, task.place(torch.tensor(1), torch.tensor(2))] = task.packed[cells.EMPTY]
        pose = task.position, task.direction
        differs = (task.first_person(task.cells, *pose) != task.first_person(hidden, *pose)).flatten(1).any(1)
        assert (shown | ~differs).all() and (
            shown & ~differs
        ).sum() <= shown.sum() / 4  # a sliver may be all that shows
        num_shown += int(shown.sum())
        task.step(actions.expand(256))
    assert num_shown > 100


def test_the_environment_passes_the_checker():
    env = gymnasium.make("merlin/Memory-v0", view="first_person", render_mode="rgb_array").unwrapped
    check_env(env)
    assert env.observation_space["image"] == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("settings, sentence", [
    ({"view": "above"}, "view must be 'grid' or 'first_person', but is 'above'"),
    ({"picture_size": 30}, "picture_size must be a multiple of 4 from 16 to 256, but is 30"),
    ({"sight_distance": 25}, "sight_distance must be from 1 to 24, but is 25"),
])  # fmt: skip
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Hallway(1, **{"view": "first_person", **settings})
