"""Key to door and active visual match by hand, against a slow second opinion, and their scores."""

import pytest
import torch

from merlin.tasks.grid import cells
from merlin.tasks.grid.cells import FORWARD, LEFT, RIGHT
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.paper.active_visual_match import ActiveVisualMatch
from merlin.tasks.paper.key_to_door import DOOR, KEY, OPEN_DOOR, KeyToDoor
from merlin.tasks.paper.three_phases import APPLE
from merlin.tasks.solvers.planning import Planner
from merlin.tasks.solvers.reactive import Reactive
from tests.tasks.play import assert_mean, play, random_policy

SMALL = {"room_size": 3, "explore_steps": 6, "distractor_steps": 25, "reward_steps": 6}
LONGER = SMALL | {"explore_steps": 9}  # to look behind a wall
RED, BLUE = cells.code("box", "red"), cells.code("box", "blue")
THINGS = {"k": KEY, "o": APPLE, "D": DOOR, "#": cells.WALL, ".": cells.EMPTY, "R": RED, "B": BLUE}


def rigged(task, rows, extra, y=2, **settings):
    """Return an environment of rooms of 3 that look like these rows."""
    env = task(apples=2, **SMALL | settings)
    env.autoreset, env.happened = False, []
    env.reset(seed=0)
    grid = torch.tensor([[[THINGS[letter] for letter in row] for row in rows]], dtype=torch.uint8)
    x, y, up = (torch.tensor([number]) for number in (2, y, 3))
    env.set_layout(Layout(grid, x, y, up, {name: torch.tensor([value]) for name, value in extra.items()}))
    return env


def walk(env, actions):
    """Return the rewards of these actions, and whether the episode was a success if they end it.

    `env.happened` has the events of each step so far, by name.
    """
    rewards = []
    for action in actions:
        _, reward, terminated, truncated, info = env.step(torch.tensor([action]))
        rewards.append(float(reward))
        env.happened.append([name for name, count in zip(env.event_names, info["events"][0], strict=True) if count])
        assert not terminated and bool(truncated) == (int(env.num_steps) == env.max_steps)
    return rewards, float(info["is_success"])


WAIT = [LEFT] * 4
KEY_ROWS = ["##########D##", "#.k.#.o.#...#", "#...#o..#...#", "#...#...#...#", "#############"]


def test_an_episode_of_key_to_door_by_hand():
    env = rigged(KeyToDoor, KEY_ROWS, {"has_key": False, "is_open": False}, door_reward=7.0)
    rewards, _ = walk(env, [FORWARD, *WAIT, LEFT])
    assert rewards == [0] * 6 and env.has_key and int(env.carried) == cells.EMPTY, "it is not seen in the hand"
    assert [int(x) for x in env.coordinates(env.position)] == [6, 2] and env.direction == 3, "in the second room"
    rewards, _ = walk(env, [FORWARD, LEFT, FORWARD, LEFT, FORWARD, *WAIT * 5])
    assert rewards == [1, 0, 0, 0, 1, *[0] * 20]
    assert [int(x) for x in env.coordinates(env.position)] == [10, 2] and env.direction == 3, "in the third"
    rewards, success = walk(env, [FORWARD, FORWARD, FORWARD, LEFT, LEFT, LEFT])
    assert rewards == [0, 7, 0, 0, 0, 0] and success == 1, "it opens once"
    assert cells.code_of(env.grid())[0, 0, 10] == OPEN_DOOR
    happened = {t: names for t, names in enumerate(env.happened) if names}
    assert happened == {0: ["took the key"], 6: ["ate an apple"], 10: ["ate an apple"], 32: ["opened the door"]}


def test_without_the_key_the_door_stays_shut():
    env = rigged(KeyToDoor, KEY_ROWS, {"has_key": False, "is_open": False})
    rewards, success = walk(env, [LEFT, *WAIT, LEFT, *WAIT * 6, LEFT, FORWARD, FORWARD, FORWARD, *WAIT[:3]])
    assert rewards == [0] * 37 and success == 0
    assert cells.code_of(env.grid())[0, 0, 10] == DOOR
    assert not any(env.happened)


MATCH_ROWS = ["#############", "#...#.o.#B.R#", "#.###o..#...#", "#.R.#...#...#", "#############"]


@pytest.mark.parametrize("turn, reward, success", [(RIGHT, 9, 1), (LEFT, 2, 0)])
def test_an_episode_of_active_visual_match_by_hand(turn, reward, success):
    rewards = {"right_reward": 9.0, "wrong_reward": 2.0}
    extra = {"target": RED, "is_right": False, "has_seen": False}
    env = rigged(ActiveVisualMatch, MATCH_ROWS, extra, y=1, explore_steps=9, **rewards)
    shown = []
    for action in [LEFT, FORWARD, LEFT, FORWARD, FORWARD, LEFT, FORWARD, FORWARD, LEFT]:  # into the box: nothing yet
        shown.append(bool(env.shows_cue()))
        assert walk(env, [action])[0] == [0]
    assert shown == [False, False, False, True, True, True, True, True, True]
    assert not any(walk(env, WAIT * 6 + [LEFT])[0]) and not env.shows_cue()
    rewards, ended_well = walk(env, [FORWARD, turn, FORWARD, turn, turn, FORWARD])
    assert rewards == [0, 0, reward, 0, 0, 0] and ended_well == success, "one choice: all boxes are gone then"
    happened = {t: names for t, names in enumerate(env.happened) if names}
    chose = ["chose a box", "chose the right box"][: 1 + success]
    assert happened == {2: ["saw the box"], 36: chose}, "what is in view after the third step is seen first then"


class Slow:
    """One episode in plain Python."""

    def __init__(self, env, index):
        self.env, self.codes = env, cells.code_of(env.grid())[index].tolist()
        self.target = int(env.target[index]) if hasattr(env, "target") else None
        self.x, self.y, self.direction = env.room_size // 2 + 1, 1 if self.target else env.room_size // 2 + 1, 3
        self.steps, self.has_key, self.success = 0, False, False

    def step(self, action):
        """Return the reward, and which events happened, but for what was seen."""
        env, reward, happened = self.env, 0.0, set()
        begin = 2 * env.room_size + 2
        room = (self.steps >= env.second_phase) + (self.steps >= env.third_phase)
        if action == LEFT:
            self.direction = (self.direction - 1) % 4
        elif action == RIGHT:
            self.direction = (self.direction + 1) % 4
        else:
            x = self.x + (1, 0, -1, 0)[self.direction]
            y = self.y + (0, 1, 0, -1)[self.direction]
            thing = self.codes[y][x]
            if thing in (cells.EMPTY, KEY, APPLE, OPEN_DOOR):
                self.x, self.y = x, y
            if thing in (KEY, APPLE):
                self.codes[y][x] = cells.EMPTY
                self.has_key |= thing == KEY
                reward += env.apple_reward * (thing == APPLE)
                happened.add("took the key" if thing == KEY else "ate an apple")
            if thing == DOOR and self.has_key:
                self.codes[y][x], self.success = OPEN_DOOR, True
                reward += env.door_reward
                happened.add("opened the door")
            if thing in cells.BOXES and room == 2:
                self.success = thing == self.target
                reward += env.right_reward if self.success else env.wrong_reward
                happened |= {"chose a box", "chose the right box"} if self.success else {"chose a box"}
                self.codes = [[cells.EMPTY if code in cells.BOXES and i > begin else code for i, code in enumerate(row)]
                              for row in self.codes]  # fmt: skip
        self.steps += 1
        if self.steps in (env.second_phase, env.third_phase):
            room += 1
            self.x, self.y = room * (env.room_size + 1) + env.room_size // 2 + 1, env.room_size // 2 + 1
            self.direction = 3
        return reward, happened


@pytest.mark.parametrize("task", [KeyToDoor, ActiveVisualMatch])
@pytest.mark.parametrize("settings", [LONGER | {"apples": 5}, {"room_size": 5, "apple_reward": 0.5}])
def test_against_a_slow_second_opinion(task, settings):
    env = task(40, **settings)
    env.autoreset = False
    env.reset(seed=3)
    slow, successes = [Slow(env, index) for index in range(40)], 0
    policies = [random_policy(env), Planner(env)]
    for t in range(env.max_steps):
        ours = [policy({}) for policy in policies]
        actions = torch.where(torch.arange(40) < 20, *ours)  # half of them know what is to be done
        _, reward, _, truncated, info = env.step(actions)
        expected = [one.step(int(action)) for one, action in zip(slow, actions, strict=True)]
        assert reward.tolist() == [reward for reward, _ in expected], t
        told = [{env.event_names[i] for i in row.nonzero().flatten()} for row in info["events"]]
        assert [names - {"saw the box"} for names in told] == [happened for _, happened in expected], t
        x, y = env.coordinates(env.position)
        assert list(zip(x.tolist(), y.tolist(), env.direction.tolist(), strict=True)) == [
            (one.x, one.y, one.direction) for one in slow
        ]
        assert cells.code_of(env.grid()).tolist() == [one.codes for one in slow]
    assert truncated.all()
    assert info["is_success"].tolist() == [float(one.success) for one in slow]
    successes = int(info["is_success"].sum())
    assert 20 <= successes < 40


@pytest.mark.parametrize("task", [KeyToDoor, ActiveVisualMatch])
@pytest.mark.parametrize(
    "settings", [LONGER | {"apples": 8}, {"apples": 24}, {"apples": 0}, {"apples": 3, "distractor_steps": 33}]
)
def test_oracle_scores_exactly_the_maximum(task, settings):
    env = task(60, **settings)
    returns, success = play(env, Planner(env), seed=5)
    assert (returns == env.scores["oracle"]).all() and (success == 1).all()


@pytest.mark.parametrize("task", [KeyToDoor, ActiveVisualMatch])
def test_scores_are_what_the_players_earn(task):
    env = task(600, **LONGER, apples=3)
    for policy, name in ((random_policy(env), "random"), (Reactive(env, seed=3), "memoryless")):
        returns, _ = play(env, policy, seed=7)
        spread = returns.std() * (1 / 600 + 1 / env.score_episodes[name]) ** 0.5
        assert abs(returns.mean() - env.scores[name]) < 4 * spread


def test_without_memory_a_match_is_a_guess():
    env = ActiveVisualMatch(1000, **LONGER | {"reward_steps": 40}, apples=0, choices=3)
    returns, success = play(env, Reactive(env))
    chosen = returns > 0
    assert chosen.double().mean() > 0.9
    assert_mean(success[chosen], 1 / 3)


def test_what_is_drawn_is_fair():
    env = ActiveVisualMatch(6000, choices=2)
    env.reset(seed=0)
    codes = cells.code_of(env.grid())
    first, last = codes[:, :, :6], codes[:, :, 12:]
    is_box = [torch.isin(part, torch.tensor(cells.BOXES)) for part in (first, last)]
    assert (is_box[0][:, 5, 3]).all() and int(is_box[0].sum()) == 6000
    gaps = codes[:, 4, 1:6] == cells.EMPTY
    assert (gaps.sum(1) == 1).all() and (gaps[:, 0] | gaps[:, 4]).all() and abs(int(gaps[:, 0].sum()) - 3000) < 4 * 39
    assert (is_box[1].flatten(1).sum(1) == 2).all()
    assert (first[is_box[0]] == env.target).all() and ((last == env.target.view(-1, 1, 1)).flatten(1).sum(1) == 1).all()
    for corner in ((1, 1), (1, 5), (5, 1), (5, 5)):
        assert abs(int((last[:, corner[0], corner[1]] == env.target).sum()) - 1500) < 4 * 34
    for code, count in zip(*env.target.unique(return_counts=True), strict=True):
        assert int(code) in cells.BOXES and abs(int(count) - 1000) < 4 * 29
    keys = KeyToDoor(6000, room_size=3)
    keys.reset(seed=0)
    places = (cells.code_of(keys.grid()) == KEY).sum(0)[1:4, 1:4]
    assert places[1, 1] == 0 and places.sum() == 6000
    assert ((places.flatten()[[0, 1, 2, 3, 5, 6, 7, 8]] - 750).abs() < 4 * 26).all()


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"room_size": 4}, "room_size must be odd and at least 3, but is 4"),
        ({"explore_steps": 14}, "explore_steps must be at least 3 · room_size = 15, but is 14"),
        ({"distractor_steps": 48}, "distractor_steps must be at least 49 in rooms of 5 with 8 apples, but is 48"),
        ({"distractor_steps": 32, "apples": 3}, "distractor_steps must be at least 33"),
        ({"reward_steps": 9}, "reward_steps must be at least 10"),
        ({"apples": 25}, "apples must be from 0 to 24 in rooms of 5, but is 25"),
        ({"choices": 5}, "choices must be from 2 to 4, one in each corner, but is 5"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ActiveVisualMatch(**settings)
