"""Maps, seats, rewards and bots of capture the flag."""

import numpy as np
import pytest
import torch

from merlin.tasks.capture_the_flag import cells
from merlin.tasks.capture_the_flag.bots import PAIRS, draw
from merlin.tasks.capture_the_flag.drawing import HEIGHT, WIDTH
from merlin.tasks.capture_the_flag.environment import CaptureTheFlag, SingleCaptureTheFlag, match
from merlin.tasks.capture_the_flag.maps import FAR, distances, draw_maps
from merlin.tasks.capture_the_flag.rules import EVENTS, flag_states
from merlin.tasks.grid.first_person.renderer import FirstPerson
from tests.tasks.capture_the_flag.test_rules import drawn, exchanged, place_of, random_actions


@pytest.mark.parametrize("size, openness", [(7, 0.3), (9, 0.0), (11, 0.1), (13, 0.3), (15, 1.0)])
def test_a_map_is_its_own_half_turn_and_connected(size, openness):
    maps = draw_maps(40, size, openness, torch.Generator().manual_seed(0))
    assert torch.equal(maps.is_open, maps.is_open.flip(1, 2))
    frame = torch.ones(size, size, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert not maps.is_open[:, frame].any()
    for of_x, of_y in ((maps.stand_x, maps.stand_y), (maps.spawn_x, maps.spawn_y)):
        for of_cells in (of_x, of_y):
            assert torch.equal(of_cells[:, 1], size - 1 - of_cells[:, 0])
        assert maps.is_open[torch.arange(40).view(-1, *[1] * (of_x.ndim - 1)), of_y, of_x].all()
    assert {*maps.stand_x[:, 0].tolist()} == ({1} if size <= 9 else {1, 3})
    assert {*maps.stand_y[:, 0].tolist()} == {*range(1, size, 2)}
    off = torch.stack([maps.spawn_x - maps.stand_x.unsqueeze(2), maps.spawn_y - maps.stand_y.unsqueeze(2)], -1)
    assert (off.abs() <= 1).all()
    spawn = maps.spawn_y * size + maps.spawn_x
    assert all(len({*places}) == 8 for places in spawn.flatten(1).tolist())  # nor does a base reach into the other
    steps = distances(maps.is_open).long()
    walkable = maps.is_open.flatten(1)
    both = walkable.unsqueeze(2) & walkable.unsqueeze(1)
    assert (steps[both] < FAR).all() and (steps[~both] == FAR).all()
    assert bool(maps.is_open[:, 1:-1, 1:-1].all()) == (openness == 1)


def test_openness_opens_walls():
    shares = [
        draw_maps(200, 13, share, torch.Generator().manual_seed(0)).is_open.float().mean() for share in (0.0, 0.1, 0.3)
    ]
    assert shares == sorted(shares) and shares[2] - shares[0] > 0.05


def test_distances_are_those_of_a_search_from_each_cell():
    maps = draw_maps(3, 9, 0.2, torch.Generator().manual_seed(1))
    found = distances(maps.is_open).view(3, 9, 9, 9, 9)
    for number, is_open in enumerate(maps.is_open.numpy()):
        for y, x in np.argwhere(is_open):
            steps, front = np.full((9, 9), FAR), {(y, x)}
            for step in range(81):
                for cell in front:
                    steps[cell] = step
                beside = {(j + b, i + a) for j, i in front for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1))}
                front = {cell for cell in beside if is_open[cell] and steps[cell] == FAR}
            assert np.array_equal(found[number, y, x].numpy(), steps)


POCKETS = """
# # # # # # # # # # #
# . . . . . # 2 # 3 #
# R . . . . . # # # #
# # # # # # . # # # #
# . . . . # . # # # #
# . . . . # . . . . #
# . . . . # # # # . #
# # # # # # # # # . #
# # # # # . . . . B #
# 4 # # # . . . . . #
# # # # # # # # # # #
"""


def test_an_attacker_against_three_who_stay_scores_with_every_round_trip():
    env, place = drawn(POCKETS.replace("# R . ", "# R 1 "), spawn=lambda env: [[[place_of(env, 5, 9)] * 4] * 2])
    env.seat_bots(PAIRS["attacker"] * 2)
    none, stays, scored = torch.zeros(4), torch.tensor([1, 0, 0, 0]), []
    x, y = env.coordinates(torch.tensor([place["R"], place["B"]]))
    red, blue = (y * env.size + x).tolist()
    distance = int(env.distances[0, red, blue])
    for step in range(1, 6 * distance):
        actions = env.bots.act(env.state, env.distances, draw(env.luck, env.num_steps), none)
        *_, info = env.step(actions.flatten(0, 1) * stays.unsqueeze(1))
        scored += [step] if info["events"][0, EVENTS.index("I captured")] else []
    assert scored == [2 * distance * trip - 1 for trip in (1, 2, 3)]  # it begins a step beside its stand


def test_bots_take_seats_and_the_others_are_rows():
    for settings, seats in (
        ({"opponents": "mixed"}, [0, 1]),
        ({"opponents": "attacker", "team_mate": "defender"}, [0]),
        ({"team_mate": "random"}, [0, 2, 3]),
    ):
        env = CaptureTheFlag(3 * len(seats), size=9, max_steps=30, **settings)
        whole = CaptureTheFlag(4 * 3, size=9, max_steps=30)
        pair = PAIRS[settings.get("opponents", "random")]
        whole.seat_bots((settings.get("team_mate", "random"),) * 2 + pair)
        seen, all_seen = env.reset(seed=2)[0], whole.reset(seed=2)[0]
        rows = torch.tensor([4 * game + seat for game in range(3) for seat in seats])
        generator = torch.Generator().manual_seed(3)
        for _ in range(70):
            for name, x in seen.items():
                assert torch.equal(x, all_seen[name][rows])
            actions = random_actions(env, generator)
            everyones = whole.bot_actions(whole.state).flatten(0, 1).index_copy(0, rows, actions)
            (seen, reward, *_, info), (all_seen, all_reward, *_, all_info) = env.step(actions), whole.step(everyones)
            assert torch.equal(reward, all_reward[rows])
            assert torch.equal(info["events"], all_info["events"][rows])
            assert torch.equal(info["captures"], all_info["captures"][rows])


def test_where_games_alone_begin_anew_bots_know_their_maps():
    env = CaptureTheFlag(6, size=9, opponents="mixed", team_mate="attacker")
    env.reset(seed=2)
    for _ in range(12):
        env.step(torch.tensor([[1, 2, 1]]).expand(6, -1))
    before, mask = env.state_dict(), torch.arange(6) % 3 == 0
    env.reset(options={"reset_mask": mask})
    for name in env.state_names:
        assert torch.equal(getattr(env, name)[~mask], before[name][~mask])
    assert not env.num_steps[mask].any() and not torch.equal(env.cells, before["cells"])
    maps = env.cells[:, env.grid_positions.flatten()] >= 0
    assert torch.equal(env.distances, distances(maps.view(-1, 9, 9)))


def test_events_are_worth_what_rewards_say():
    worth = torch.arange(13.0) - 6
    env, plain = (
        CaptureTheFlag(40, size=7, max_steps=100, rewards=worth.tolist()),
        CaptureTheFlag(40, size=7, max_steps=100),
    )
    env.reset(seed=4), plain.reset(seed=4)
    generator, outcomes = torch.Generator().manual_seed(5), set()
    for _ in range(200):
        actions = random_actions(env, generator)
        (_, reward, *_), (_, outcome, terminated, _, info) = env.step(actions), plain.step(actions)
        assert torch.equal(reward, info["events"] @ worth + outcome)
        assert not outcome[~terminated].any()
        difference = info["captures"][:, 0] - info["captures"][:, 1]
        assert torch.equal(outcome[terminated], difference[terminated].sign().float())
        assert torch.equal(info["is_success"][terminated], (outcome[terminated] + 1) / 2)
        outcomes |= {*outcome[terminated].tolist()}
    assert outcomes == {-1.0, 0.0, 1.0}


def test_rewards_may_be_told_by_the_names_of_events():
    env = CaptureTheFlag(rewards={"they captured": -2, "I captured": 1})
    assert env.weights is not None and env.weights.tolist() == [1, *[0] * 9, -2, 0, 0]
    torch.set_default_dtype(torch.float64)
    try:
        env = CaptureTheFlag(rewards={"I captured": 1})
    finally:
        torch.set_default_dtype(torch.float32)
    assert env.weights is not None and env.weights.dtype is torch.float32  # as events are


def test_pictures_from_inside_are_mirror_images_too():
    env, mirror = (CaptureTheFlag(8, size=7, view="first_person", picture_size=32) for _ in range(2))
    observation, reflected = env.reset(seed=0)[0], mirror.reset(seed=0)[0]
    generator, seen = torch.Generator().manual_seed(1), set()
    for _ in range(60):
        assert torch.equal(exchanged(observation["image"]), reflected["image"])
        is_out = observation["status"][:, 4] > 0
        assert not observation["image"][is_out].any() and observation["image"][~is_out].flatten(1).any(1).all()
        seen |= {*flag_states(env.state).flatten().tolist()}
        actions = random_actions(env, generator)
        observation, reflected = env.step(actions)[0], mirror.step(exchanged(actions))[0]
    assert seen >= {0, 2}


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_what_is_seen_from_inside_is_told_apart(distance):
    draw = FirstPerson(9, cells=cells.CELLS)
    codes = [1, *range(cells.STAND, len(cells.CELLS))]
    grids = torch.full((len(codes), 9, 9), 1)
    grids[:, [0, -1]] = grids[:, :, [0, -1]] = cells.WALL
    grids[:, 4, 2 + distance] = torch.tensor(codes)
    zeros = torch.zeros(len(codes), dtype=torch.int64)
    pictures = draw(cells.packed()[grids].flatten(1), zeros + 4 * 9 + 2, zeros).int()
    difference = (pictures.unsqueeze(0) - pictures.unsqueeze(1)).abs().amax(-1) > 40
    count = difference.sum((2, 3)) + 99 * torch.eye(len(codes), dtype=torch.int64)
    assert count.min() >= (4 if distance < 3 else 1), [codes[i] for i in divmod(int(count.argmin()), len(codes))]


def test_bots_are_as_good_as_is_said():
    settings = {"size": 9, "max_steps": 100}
    assert match("attacker", "random", 24, **settings).wins >= 0.9
    assert match("random", "random", 24, **settings).draws >= 0.75
    defended = match("attacker", "defender", 24, **settings)
    assert defended.captures_against < 0.2 < defended.captures
    env = CaptureTheFlag(2, opponents="random", **settings)
    assert env.scores["random"] == env.scores["memoryless"] < env.scores["oracle"] <= 1
    assert CaptureTheFlag().scores == {} == CaptureTheFlag(2, opponents="random", rewards=[0.0] * 13).scores


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size": 8}, "size must be odd and at least 7, but is 8"),
        ({"size": 5}, "size must be odd and at least 7, but is 5"),
        ({"openness": 1.5}, "openness must be from 0 to 1, but is 1.5"),
        ({"max_steps": 0}, "max_steps must be at least 1, but is 0"),
        (
            {"opponents": "atacker"},
            "opponents must be one of self, mixed, random, attacker, defender, but is 'atacker'",
        ),
        ({"team_mate": "mixed"}, "team_mate must be one of self, random, attacker, defender, but is 'mixed'"),
        ({"rewards": [1.0]}, "rewards must be 13 numbers, one for each event, but are 1"),
        ({"rewards": {"captured": 1.0}}, "rewards must be of these events: I captured, .*; but 'captured' is none"),
        ({"view": "picture"}, "view must be 'grid' or 'first_person', but is 'picture'"),
        ({"num_envs": 6}, "num_envs must be a multiple of 4, the players of a game that learn, but is 6"),
        ({"num_envs": 3, "opponents": "random"}, "num_envs must be a multiple of 2, .*, but is 3"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptureTheFlag(**settings)


def test_a_single_environment_has_bots():
    with pytest.raises(ValueError, match="bots take the three other seats of a single environment"):
        SingleCaptureTheFlag(opponents="self")
    env = SingleCaptureTheFlag(render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (HEIGHT, WIDTH, 3)
    assert env.draw_above().shape == (13 * 20 + 24, 13 * 20, 3)
