"""Identities that hold exactly: fair games, conserved events, and a referee of another making."""

import numpy as np
import pytest
import torch

from merlin.tasks.capture_the_flag.bots import PAIRS, draw
from merlin.tasks.capture_the_flag.environment import CaptureTheFlag
from merlin.tasks.capture_the_flag.rules import EVENTS, FLAG_STEPS, OUT_STEPS, State, flag_places, flag_states
from tests.tasks.capture_the_flag.referee import Referee

OTHER_TEAM = [2, 3, 0, 1]
SIZES = (7, 9, 13)


def random_actions(env, generator, stays=0.0):
    nvec = torch.as_tensor(env.single_action_space.nvec)
    actions = (torch.rand(env.num_envs, 3, generator=generator) * nvec).long()
    return actions * (torch.rand(env.num_envs, 1, generator=generator) >= stays)


def by_player(of_rows):
    return of_rows.view(-1, 4, *of_rows.shape[1:])


def exchanged(of_rows):
    return by_player(of_rows)[:, OTHER_TEAM].flatten(0, 1)


def seated(names, num_games=8, **settings):
    env = CaptureTheFlag(4 * num_games, **settings)
    env.seat_bots(names)
    return env


def place_of(env, x, y):
    return int(env.place(torch.tensor(x), torch.tensor(y)))


def referee_of(env, game):
    def cells(positions):
        return [tuple(map(int, env.coordinates(position))) for position in positions]

    is_open = (env.cells[game][env.grid_positions] >= 0).numpy()
    return Referee(is_open, cells(env.stand[game]), [cells(spawn) for spawn in env.spawn[game]])


def assert_agrees(env, observation, game, referee):
    for number, player in enumerate(referee.players):
        row = 4 * game + number
        assert np.array_equal(observation["image"][row], referee.seen(number))
        assert observation["direction"][row] == (player.heading - player.start_heading) % 4
        assert observation["status"][row].tolist() == referee.status(number)
        lead = referee.captures[player.team] - referee.captures[1 - player.team]
        expected = [max(-1, min(1, lead / 3)), 1 - referee.steps / env.max_steps]
        assert np.allclose(observation["score"][row], expected, atol=1e-6)


def play_beside_the_referee(env, policy, seed, views_every=1):
    """Play a game of each environment, and the referee the same."""
    env.autoreset = False
    observation, _ = env.reset(seed=seed)
    referees = [referee_of(env, game) for game in range(env.num_games)]
    totals = np.zeros(13)
    for step in range(env.max_steps):
        actions = policy(env)
        observation, reward, terminated, truncated, info = env.step(actions)
        events = by_player(info["events"]).numpy()
        for game, referee in enumerate(referees):
            expected = referee.step(by_player(actions)[game].tolist())
            assert np.array_equal(events[game], expected), (step, game, events[game] - expected)
            if step % views_every == 0:
                assert_agrees(env, observation, game, referee)
            totals += expected.sum(0)
    for game, referee in enumerate(referees):
        red, blue = referee.captures
        assert by_player(reward)[game].tolist() == [np.sign(red - blue)] * 2 + [np.sign(blue - red)] * 2
        assert by_player(info["captures"])[game].tolist() == [[red, blue]] * 2 + [[blue, red]] * 2
    assert terminated.all() and not truncated.any()
    return totals


def random_policy(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda env: random_actions(env, generator)


def bot_policy(env):
    return env.bot_actions(env.state).flatten(0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_the_referee_agrees_on_random_steps(size):
    env = CaptureTheFlag(4 * 3, size=size, max_steps=150)
    play_beside_the_referee(env, random_policy(size), seed=size, views_every=5)


@pytest.mark.parametrize("names", [("attacker", "defender", "attacker", "attacker"), ("random", "attacker") * 2])
def test_the_referee_agrees_on_bots_steps_and_everything_happens(names):
    env = seated(names, 4, size=7, max_steps=200)
    totals = play_beside_the_referee(env, bot_policy, seed=1, views_every=10)
    assert (totals > 0).all() or names[0] == "random", dict(zip(EVENTS, totals, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bots", ["random", "mixed"])
def test_the_referee_agrees_on_ten_thousand_steps(size, bots):
    play_beside_the_referee(seated(PAIRS[bots] * 2, 20, size=size, max_steps=500), bot_policy, 2, views_every=5)


def test_a_game_is_its_mirror_image_when_the_teams_exchange_their_actions():
    env, mirror = (CaptureTheFlag(4 * 8, size=9, max_steps=120) for _ in range(2))
    observation, reflected = env.reset(seed=3)[0], mirror.reset(seed=3)[0]
    generator = torch.Generator().manual_seed(4)
    num_events = 0
    for _ in range(250):
        for name, x in observation.items():
            assert torch.equal(exchanged(x), reflected[name]), name
        actions = random_actions(env, generator)
        observation, reward, *_, info = env.step(actions)
        reflected, reward_there, *_, info_there = mirror.step(exchanged(actions))
        assert torch.equal(exchanged(reward), reward_there)
        assert torch.equal(exchanged(info["events"]), info_there["events"])
        num_events += info["events"].sum()
    assert num_events > 100


@pytest.mark.parametrize("names", [("attacker", "attacker", "attacker", "defender"), ("random", "defender") * 2])
def test_bots_play_the_mirror_image_under_exchanged_luck(names):
    env = seated(names, size=9)
    mirror = seated(tuple(names[seat] for seat in OTHER_TEAM), size=9)
    env.reset(seed=5), mirror.reset(seed=5)
    for _ in range(200):
        luck = draw(env.luck, env.num_steps)
        actions = env.bots.act(env.state, env.distances, luck)
        actions_there = mirror.bots.act(mirror.state, mirror.distances, luck[:, OTHER_TEAM])
        assert torch.equal(actions[:, OTHER_TEAM], actions_there)
        outcome, outcome_there = env.step(actions.flatten(0, 1)), mirror.step(actions_there.flatten(0, 1))
        assert torch.equal(exchanged(outcome[4]["events"]), outcome_there[4]["events"])


@pytest.mark.parametrize("names", [("random",) * 4, ("attacker", "defender", "attacker", "attacker")])
def test_what_happens_to_one_happens_to_all_it_concerns(names):
    env = seated(names, 16, size=9)
    env.reset(seed=6, options={"merlin.stagger": True})
    index = {name: number for number, name in enumerate(EVENTS)}
    for _ in range(300):
        before = env.captures
        *_, info = env.step(bot_policy(env))
        events = by_player(info["events"])
        of = {name: events[..., number] for name, number in index.items()}
        mate, team = [1, 0, 3, 2], torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
        for did in ("captured", "picked up", "returned"):
            mine, of_mate, of_them = of[f"I {did}"], of[f"mate {did}"], of[f"they {did}"]
            assert torch.equal(mine, of_mate[:, mate])
            assert torch.equal(of_them, (mine @ team.T).flip(1).repeat_interleave(2, 1))
        for given, taken in (("I tagged a carrier", "I was tagged carrying"), ("I tagged another", "I was tagged")):
            assert torch.equal(of[given] @ team.T, (of[taken] @ team.T).flip(1))
        if not (env.num_steps == 0).any():
            assert torch.equal(env.captures - before, (of["I captured"] @ team.T).long())
        check_state(env)


def check_state(env):
    state = env.state
    is_in = state.out == 0
    assert (env.cells.gather(1, state.position)[is_in] >= 0).all() and (state.position[~is_in] == env.nowhere).all()
    for position, present in zip(state.position, is_in, strict=True):
        there = position[present].tolist()
        assert len({*there}) == len(there)
    carriers = state.carries.view(-1, 2, 2).sum(2).flip(1)  # of each team's flag
    assert torch.equal(flag_states(state) == 2, carriers == 1) and (carriers <= 1).all()
    assert not (state.carries & ~is_in).any()
    assert ((state.flag_timer > 0) == (flag_states(state) == 1)).all() and (state.flag_timer <= FLAG_STEPS).all()
    assert (state.out <= OUT_STEPS).all()
    assert (flag_places(state)[flag_states(state) == 0] == state.stand[flag_states(state) == 0]).all()


def test_games_are_independent():
    env, other = CaptureTheFlag(4 * 5, size=9, max_steps=60), CaptureTheFlag(4 * 5, size=9, max_steps=60)
    env.reset(seed=7), other.reset(seed=7)
    generator = torch.Generator().manual_seed(8)
    keep = torch.arange(20) // 4 != 2
    num_different = 0
    for _ in range(150):
        actions = random_actions(env, generator)
        changed = torch.where(keep.unsqueeze(1), actions, random_actions(env, generator))
        mine, theirs = env.step(actions), other.step(changed)
        for one, two in zip([*mine[0].values(), mine[1]], [*theirs[0].values(), theirs[1]], strict=True):
            assert torch.equal(one[keep], two[keep])
        assert torch.equal(mine[4]["events"][keep], theirs[4]["events"][keep])
        num_different += not torch.equal(env.position, other.position)
    assert num_different > 100


def test_cohorts_end_apart_and_each_together():
    env = CaptureTheFlag(4 * 12, size=7, max_steps=40)
    env.reset(seed=0, options={"merlin.stagger": True})
    generator, ends = torch.Generator().manual_seed(0), []
    for step in range(1, 101):
        *_, terminated, _, _ = env.step(random_actions(env, generator))
        assert torch.equal(by_player(terminated).any(1), by_player(terminated).all(1))
        ends += [(step, game % 8) for game in range(12) if terminated[4 * game]]
    first, second = (range(5, 41, 5), range(45, 81, 5))
    expected = [(step, 8 - number) for steps in (first, second) for number, step in enumerate(steps, 1)]
    expected = {(step, cohort % 8) for step, cohort in expected} | {
        (step, 8 - n) for n, step in enumerate((85, 90, 95, 100), 1)
    }
    assert {*ends} == expected


# Cases drawn by hand: 1 and 2 red's, 3 and 4 blue's players, R and B stands; walls are #.


def drawn(picture, headings=(0, 0, 2, 2), spawn=None, **changed):
    """Return an environment of one game as drawn, and the cells by their letters. Cells without a letter are open."""
    rows = [line.split() for line in picture.strip().splitlines()]
    size = len(rows)
    env = CaptureTheFlag(4, size=size)
    env.reset(seed=0)
    cell = {letter: (x, y) for y, row in enumerate(rows) for x, letter in enumerate(row)}
    is_open = torch.tensor([[letter != "#" for letter in row] for row in rows]).unsqueeze(0)
    place = {letter: place_of(env, x, y) for letter, (x, y) in cell.items()}
    stand = torch.tensor([[place["R"], place["B"]]])
    spawns = torch.tensor(spawn(env) if spawn else [[[place_of(env, x, y) for x in (2, 3, 4, 5)] for y in (2, 4)]])
    start = env.starts(is_open, stand, spawns, torch.zeros(1, dtype=torch.int64))
    position = torch.tensor([[place.get(letter, env.nowhere) for letter in "1234"]])
    state = State(**start)._replace(position=position, heading=torch.tensor([headings]))
    env.state = state._replace(out=(position == env.nowhere) * 99)
    env.state = env.state._replace(**{name: torch.tensor([x]) for name, x in changed.items()})
    return env, place


def step(env, *actions):
    """Return the events of each player, by name, for actions in letters: f b l r, < >, t."""
    moves, turns = ".fblr", ".<>"
    table = [
        [
            next((moves.index(c) for c in action if c in "fblr"), 0),
            next((turns.index(c) for c in action if c in "<>"), 0),
            "t" in action,
        ]
        for action in actions
    ]
    *_, info = env.step(torch.tensor(table).long())
    return [{name: int(n) for name, n in zip(EVENTS, row, strict=True) if n} for row in info["events"]]


OPEN = """
# # # # # # # # #
# R . . . . . . #
# . . . . . . . #
# . {} #
# . . . . . . . #
# . . # . . . . #
# . . . . . . . #
# . . . . . . B #
# # # # # # # # #
"""


def test_two_can_tag_each_other_and_are_away_for_ten_steps():
    spawn = lambda env: [[[place_of(env, x, 1) for x in (2, 3, 4, 5)], [place_of(env, x, 7) for x in (6, 5, 4, 3)]]]  # noqa: E731
    env, _ = drawn(OPEN.format("1 . . . . 3"), spawn=spawn)
    happened = step(env, "t", "", "t", "")
    assert happened[0] == happened[2] == {"I tagged another": 1, "I was tagged": 1}
    observation = env._observe()
    assert not observation["image"][0].any() and observation["status"][0].tolist() == [0, 0, 0, 0, 1]
    for _ in range(9):
        step(env, "f", "f", "f", "f")
        assert (env.position[0, [0, 2]] == env.nowhere).all()
    step(env, "f", "f", "f", "f")
    assert env.position[0, 0] == place_of(env, 2, 1) and env.position[0, 2] == place_of(env, 6, 7)
    assert env.heading[0, [0, 2]].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("row", "turn", "is_hit"),
    [
        ("1 2 . 3 . .", "", False),  # a mate shields
        ("1 . . . . 3", "", True),  # five cells
        ("1 . # . 3 .", "", False),
        ("3 . . 1 . .", "", False),  # behind
        ("1 3 . . . .", "<", False),  # the ray goes where the player looks then
    ],
)
def test_a_ray_ends_at_the_first_player_or_a_wall(row, turn, is_hit):
    env, _ = drawn(OPEN.format(row))
    happened = step(env, f"t{turn}", "", "", "")
    assert (happened[0] == {"I tagged another": 1}) == is_hit == (happened[2] == {"I was tagged": 1})
    assert env.cooldown[0].tolist() == [3, 0, 0, 0]  # hit or miss
    for cooldown in (2, 1, 0, 3):
        step(env, "t", "", "", "")
        assert env.cooldown[0, 0] == cooldown


def test_a_ray_has_five_cells():
    env, _ = drawn(OPEN.replace("# . {} #", "# 1 . . . . . 3 #"))
    assert step(env, "t", "", "", "") == [{}] * 4
    assert step(drawn(OPEN.replace("# . {} #", "# 1 . . . . 3 . #"))[0], "t", "", "", "")[0] == {"I tagged another": 1}


def test_two_tag_one():
    env, _ = drawn(OPEN.format("1 . 3 . 2 ."), headings=(0, 2, 2, 2), carries=[False, False, True, False])
    happened = step(env, "t", "t", "", "")
    assert happened[0] == happened[1] == {"I tagged a carrier": 1}
    assert happened[2] == {"I was tagged carrying": 2}


def test_a_tagged_carrier_drops_where_it_stands_and_time_sends_the_flag_home():
    env, place = drawn(OPEN.format("1 . . 3 . ."), carries=[False, False, True, False])
    assert step(env, "t", "", "r", "")[2] == {}  # it has stepped aside
    env, place = drawn(OPEN.format("1 . . 3 . ."), carries=[False, False, True, False])
    assert step(env, "t", "", "f", "")[2] == {"I was tagged carrying": 1}
    assert flag_states(env.state).tolist() == [[1, 0]] and env.flag_position[0, 0] == place["3"] - 1
    for _ in range(29):
        step(env, "", "", "", "")
        assert flag_states(env.state).tolist() == [[1, 0]]
    assert step(env, "", "", "", "") == [{}] * 4
    assert flag_states(env.state).tolist() == [[0, 0]] and flag_places(env.state)[0, 0] == place["R"]


def test_who_moves_where():
    env, place = drawn(OPEN.format("1 . 3 2 . ."), headings=(0, 0, 2, 2))
    step(env, "f", "", "f", "")  # two into one cell: both stay
    assert env.position[0, :3].tolist() == [place["1"], place["2"], place["3"]]
    step(env, "", "b", "f", "")  # a cell that is being left is not free yet
    assert env.position[0, :3].tolist() == [place["1"], place["2"], place["3"] - 1]
    step(env, "r", "l", "b", "")  # relative to the heading
    assert env.position[0, :3].tolist() == [place["1"] + env.stride, place["2"] - env.stride, place["3"]]
    step(env, "f>", "f<", "r>", "")  # turn first
    assert (
        env.position[0, 0] == place["1"] + 2 * env.stride and env.position[0, 1] == place["2"] - env.stride - env.stride
    )
    assert env.position[0, 2] == place["3"] + 1 and env.heading[0, :3].tolist() == [1, 3, 3]
    for _ in range(9):
        step(env, "f", "f", "f", "")  # into walls
    assert env.position[0, 0] == place_of(env, int(env.coordinates(env.position[0, 0])[0]), 7)


def test_no_capture_while_the_own_flag_is_away():
    row = OPEN.replace("# R . ", "# R 1 ").format(". . . 3 . .")
    env, place = drawn(row, headings=(2, 0, 2, 2), carries=[True, False, True, False])
    assert step(env, "f", "", "", "") == [{}] * 4 and env.position[0, 0] == place["R"]
    assert env.captures.tolist() == [[0, 0]]


def test_return_and_capture_in_one_step():
    row = OPEN.replace("# R . ", "# R 1 ").format(". 2 . . . .")
    env, place = drawn(row, headings=(2, 0, 2, 2), carries=[True, False, False, False], flag_timer=[9, 0])
    env.flag_position[0, 0] = place["2"] + 1
    happened = step(env, "f", "f", "", "")
    assert happened[0] == {"I captured": 1, "mate returned": 1} and happened[1] == {"I returned": 1, "mate captured": 1}
    assert happened[2] == happened[3] == {"they captured": 1, "they returned": 1}
    assert env.captures.tolist() == [[1, 0]] and flag_states(env.state).tolist() == [[0, 0]]


def test_a_player_comes_before_time():
    env, place = drawn(OPEN.format(". 2 . . . ."), flag_timer=[1, 0])
    env.flag_position[0, 0] = place["2"] + 1
    assert step(env, "", "f", "", "")[1] == {"I returned": 1}


def test_pick_up_at_home_lying_and_by_a_mate_on_the_stand():
    row = OPEN.replace("# . . . . . . B #", "# . . . . . 2 B #").format("1 . . . . .")
    env, place = drawn(row)
    assert step(env, "", "f", "", "")[1] == {"I picked up": 1} and env.carries[0].tolist() == [
        False,
        True,
        False,
        False,
    ]
    env, place = drawn(OPEN.format("1 . . . . ."), flag_timer=[0, 5])
    env.flag_position[0, 1] = place["1"] + 1
    assert step(env, "f", "", "", "")[0] == {"I picked up": 1}
    row = OPEN.replace("# R . ", "# R 1 ").replace("# . . . . . . B #", "# . . . . . . . #").format(". . . . . B")
    env, place = drawn(row, headings=(2, 0, 2, 2), carries=[True, False, False, False])
    env.position[0, 1], env.out[0, 1] = place["B"], 0
    happened = step(env, "f", "", "", "")
    assert happened[0] == {"I captured": 1, "mate picked up": 1} and env.carries[0].tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_of_two_flags_in_one_cell_that_which_was_dropped_last_is_seen_by_all():
    env, place = drawn(OPEN.format("1 . . . 3 ."), headings=(3, 0, 2, 2), flag_timer=[0, 7])
    env.flag_position[0, 1] = place["R"]
    image = env._observe()["image"]
    assert image[0, 2, 4].tolist() == [5, 2, 0]  # theirs lies over the own one, which is at home
    for timers, expected in (([9, 7], [5, 1, 0]), ([7, 9], [5, 2, 0])):
        env.flag_timer = torch.tensor([timers])
        env.flag_position = torch.tensor([[place["R"]] * 2])
        assert env._observe()["image"][0, 2, 4].tolist() == expected
    env, mirror = CaptureTheFlag(4, size=7), CaptureTheFlag(4, size=7)
    env.reset(seed=0), mirror.reset(seed=0)
    for timers in ([0, 7], [3, 7], [7, 3]):
        env.flag_timer, mirror.flag_timer = torch.tensor([timers]), torch.tensor([timers[::-1]])
        env.flag_position = env.stand[:, [0, 0]]
        mirror.flag_position = mirror.stand[:, [1, 1]]
        assert torch.equal(exchanged(env._observe()["image"]), mirror._observe()["image"])


def test_nobody_is_locked_out():
    """Three of four spawn cells are taken, and two come back at once."""
    cells = lambda env: [[[place_of(env, x, 3) for x in (2, 3, 4, 5)]] * 2]  # noqa: E731
    env, _ = drawn(OPEN.format("3 . 4 . . ."), spawn=cells, out=[1, 1, 0, 0])
    step(env, "", "", "", "")
    assert env.position[0, :2].tolist() == [place_of(env, 3, 3), place_of(env, 5, 3)]
    env, _ = drawn(OPEN.format("3 2 4 . . ."), spawn=cells, out=[1, 0, 0, 0])
    step(env, "", "", "", "")
    assert env.position[0, 0] == place_of(env, 5, 3)
