"""Pictures of a game: what they tell in words, and that they show what players see."""

import numpy as np
import pytest
import torch

from merlin.tasks.capture_the_flag.drawing import HEIGHT, WIDTH, Report, events_in_words
from merlin.tasks.capture_the_flag.environment import CaptureTheFlag
from merlin.tasks.capture_the_flag.rules import EVENTS
from tests.tasks.capture_the_flag.test_rules import OPEN, drawn, step


@pytest.mark.parametrize(
    ("by_player", "words"),
    [
        ({}, []),
        ({0: ["I picked up"], 1: ["mate picked up"], 2: ["they picked up"]}, ["red 0 picked up the flag"]),
        ({3: ["I captured"], 2: ["mate captured"], 0: ["they captured"]}, ["blue 1 captured"]),
        ({1: ["I returned"], 0: ["mate returned"]}, ["red 1 returned the flag"]),
        (
            {3: ["I tagged a carrier"], 0: ["I was tagged carrying"]},
            ["blue 1 tagged red 0", "red 0 dropped the flag"],
        ),
        ({0: ["I tagged another"], 1: ["I tagged another"], 2: ["I was tagged"]}, ["red 0 and 1 tagged blue 0"]),
        (
            {
                0: ["I tagged another", "I was tagged"],
                1: ["I tagged a carrier", "I was tagged"],
                2: ["I tagged another", "I was tagged carrying"],
                3: ["I tagged another", "I was tagged"],
            },
            [
                "red 1 tagged blue 0",
                "red 0 tagged blue 1",
                "blue 0 and 1 tagged red 0 and 1",
                "blue 0 dropped the flag",
            ],
        ),
    ],
)
def test_events_in_words(by_player, words):
    happened = torch.zeros(4, len(EVENTS), dtype=torch.int64)
    for player, names in by_player.items():
        happened[player, [EVENTS.index(name) for name in names]] = 1
    assert events_in_words(happened) == words


def test_the_newest_events_come_first_and_a_new_game_has_none():
    env, _ = drawn(OPEN.format("1 . . 3 . ."), carries=[False, False, True, False])
    step(env, "t", "", "", "")
    assert not env.reports[0].lines, "who draws nothing has no need of words"
    env, _ = drawn(OPEN.format("1 . . 3 . ."), carries=[False, False, True, False])
    env.render_mode = "rgb_array"
    step(env, "", "", "", "")
    step(env, "t", "", "", "")
    assert list(env.reports[0].lines) == [(2, "blue 0 dropped the flag"), (2, "red 0 tagged blue 0")]
    before = env.draw(0)
    env.reports[0] = Report()
    assert (env.draw(0) != before).any(), "the picture has the words"
    env.reports[0].add(1, torch.ones(4, len(EVENTS), dtype=torch.int64))
    env.reset(seed=1)
    assert not env.reports[0].lines


def test_a_game_that_begins_anew_forgets_its_own_events_alone():
    env = CaptureTheFlag(8, size=9, max_steps=8, render_mode="rgb_array")
    env.reset(seed=0, options={"merlin.stagger": True})  # the second game is a step ahead
    for _ in range(7):
        for report in env.reports:
            report.add(1, torch.ones(4, len(EVENTS), dtype=torch.int64))
        env.step(torch.zeros(8, 3))
    assert [len(report.lines) > 0 for report in env.reports] == [True, False]


@pytest.mark.parametrize("opponents", ["self", "mixed"])
def test_the_views_are_what_players_see(opponents):
    """Of all four players, those whose seats are bots' too."""
    env = CaptureTheFlag(8, size=9, opponents=opponents)
    env.seat_bots(("attacker",) * 4)
    observation, _ = env.reset(seed=0)
    per_game = len(env.seats)
    for _ in range(40):
        observation, *_ = env.step(env.of_rows(env.bot_actions(env.state)))
        for row in (0, per_game):
            views = env._scene(row).views
            for i, seat in enumerate(env.seats):
                heading = int(env.state.heading[row // per_game, seat])
                seen = env.seen_as[seat // 2, heading][torch.from_numpy(views[seat])].view(torch.uint8)
                seen = seen.view(7, 7, 4)[..., :3].transpose(0, 1)
                is_seen = torch.from_numpy(views[seat] != 0).T
                assert torch.equal(seen[is_seen], observation["image"][row + i][is_seen])
                assert (observation["image"][row + i][~is_seen] == 0).all()
    assert (env.state.out > 0).any(), "some are out, and see nothing"


def test_pictures_from_inside_are_blue_players_own():
    env = CaptureTheFlag(4, size=9, view="first_person", picture_size=32)
    env.seat_bots(("attacker",) * 4)
    env.reset(seed=0)
    differ = 0
    for _ in range(60):
        observation, *_ = env.step(env.bot_actions(env.state).flatten(0, 1))
        pictures = env._scene(0).pictures
        np.testing.assert_array_equal(pictures[2:], observation["image"][2:].numpy())
        differ += int((pictures[:2] != observation["image"][:2].numpy()).any())
    assert 0 < differ < 60, "a red player's own side is red here, to itself it is blue"


@pytest.mark.parametrize("settings", [{"size": 7}, {"size": 25}, {"opponents": "mixed", "view": "first_person"}])
def test_a_picture_has_the_same_size_always_and_marks_the_row(settings):
    env = CaptureTheFlag(4, render_mode="rgb_array", **settings)
    env.reset(seed=0)
    pictures = env.render()
    assert [picture.shape for picture in pictures] == [(HEIGHT, WIDTH, 3)] * 4
    assert (pictures[0] != pictures[1]).any()
