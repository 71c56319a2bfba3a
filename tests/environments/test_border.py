"""What batches of other people's return: final observations, success, values and shapes, each taken right or told."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from merlin.environments import border
from merlin.environments.batch import Environment, longest_first_episode
from merlin.errors import MerlinError


class Clocks(VectorEnv):
    """Two environments that show how often they were stepped, the second ten more, and are cut after three steps.

    `rewrite` changes what a step returns: observation, reward, terminated, truncated, info.
    """

    num_envs = 2
    single_action_space = spaces.Discrete(2)

    def __init__(self, rewrite=lambda *answer: answer, mode=AutoresetMode.SAME_STEP, tensors=False, space=None):
        self.metadata = {"autoreset_mode": mode, "tensors": tensors}
        self.single_observation_space = space or spaces.Box(-99, 99, (1,))
        self.rewrite, self.clock = rewrite, np.zeros((2, 1), np.float32)

    def reset(self, *, seed=None, options=None):
        self.clock[:, 0] = 0, 10
        first = torch.tensor(self.clock) if self.metadata["tensors"] else self.clock
        return first, {}

    def step(self, actions):
        self.clock += 1
        ends = self.clock[:, 0] % 10 == 3
        info = {"final_obs": self.clock.copy(), "_final_obs": ends} if ends.any() else {}
        if ends.any() and self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            self.clock = self.clock.copy()
            self.reset()
        answer = self.clock, np.ones(2), np.zeros(2, bool), ends, info
        if self.metadata["tensors"]:
            answer = (*map(torch.tensor, answer[:4]), {key: torch.tensor(x) for key, x in info.items()})
        return self.rewrite(*answer)


def informing(info, rows=(True, True)):
    """Change the info of the step that ends episodes, and where it ends them."""

    def rewrite(observation, reward, terminated, truncated, old):
        ended = truncated & (np.array(rows) if isinstance(truncated, np.ndarray) else torch.tensor(rows))
        return observation, reward, terminated, ended, info(old) if truncated.any() else {}

    return rewrite


def steps(environment, count=3):
    environment.reset(0)
    return [environment.step(torch.zeros(2, dtype=torch.int64)) for _ in range(count)]


def objects(*rows):
    array = np.full(len(rows), None, object)
    for index, row in enumerate(rows):
        array[index] = row
    return array


ROWS = [np.array([3], np.float32), np.array([13], np.float32)]


@pytest.mark.parametrize(
    "info",
    [
        lambda old: old,
        lambda old: {"final_obs": old["final_obs"]},
        lambda old: {"final_observation": old["final_obs"]},
        lambda old: {"final_observation": objects(*ROWS), "_final_observation": np.array([True, True])},
        lambda old: {"final_obs": objects(*ROWS)},
        lambda old: {"final_obs": list(ROWS)},
        lambda old: {"final_obs": old["final_obs"].astype(np.float64)},
        lambda old: {"final_obs": None, "final_observation": old["final_obs"]},
    ],
)
def test_final_observations_are_found_in_every_layout(info):
    last = steps(Environment(Clocks(informing(info))))[-1]
    assert last.truncated.all() and last.final_observation["observation"].tolist() == [[3], [13]]
    assert last.observation["observation"].tolist() == [[0], [10]]


def test_a_final_observation_is_ones_own():
    rewrite = informing(lambda old: {"final_obs": objects(None, ROWS[1])}, rows=(False, True))
    last = steps(Environment(Clocks(rewrite)))[-1]
    assert last.truncated.tolist() == [False, True] and last.final_observation["observation"][1].tolist() == [13]


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (lambda old: {}, r"must hand on .* as info\['final_obs'\], but Clocks gave an empty dict"),
        (lambda old: {"last_obs": old["final_obs"]}, "gave a dict with 'last_obs'"),
        (
            lambda old: {"final_obs": old["final_obs"], "_final_obs": old["_final_obs"] * 0 > old["_final_obs"] * 0},
            r"in info\['final_obs'\] of Clocks there is none of environment 0",
        ),
    ],
)
def test_a_final_observation_that_is_lacking_is_told(info, sentence, tensors):
    with pytest.raises(MerlinError, match=sentence):
        steps(Environment(Clocks(informing(info), tensors=tensors)))


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (lambda old: {"final_obs": objects(ROWS[0], None)}, "there is none of environment 1"),
        (lambda old: {"final_obs": objects(ROWS[0], np.zeros(3))}, r"but Clocks returned an array of shape \(3,\)"),
        (lambda old: {"final_obs": old["final_obs"][:1]}, r"for each of 2 environments, .* shape \(1, 1\)"),
        (lambda old: {"final_obs": old["final_obs"] * np.float32(np.nan)}, "environment 0 of Clocks returned nan"),
        (lambda old: {"final_obs": objects(ROWS[0], ROWS[1] * np.nan)}, "environment 1 of Clocks returned nan"),
    ],
)
def test_a_wrong_final_observation_is_told(info, sentence):
    with pytest.raises(MerlinError, match=sentence):
        steps(Environment(Clocks(informing(info))))


def test_what_terminates_needs_no_final_observation():
    rewrite = lambda observation, reward, terminated, truncated, info: (observation, reward, truncated, terminated, {})  # noqa: E731
    last = steps(Environment(Clocks(rewrite)))[-1]
    assert last.terminated.all() and last.final_observation is None


def test_a_masked_reset_must_leave_the_others_alone():
    rewrite = informing(lambda old: {}, rows=(True, False))
    with pytest.raises(MerlinError, match=r"must reset where .* Clocks changed other observations too"):
        steps(Environment(Clocks(rewrite, mode=AutoresetMode.DISABLED)))


def told(*values):
    return lambda old: {**old, "is_success": values[0] if len(values) == 1 else np.array(values)}


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (told(True, False), [1, 0]),
        (told(1, 0), [1, 0]),
        (told(objects(True, None)), [1, 0]),
        (told(np.array([[0.25], [1.0]])), [0.25, 1]),
        (lambda old: {**old, "is_success": np.array([True, True]), "_is_success": np.array([False, True])}, [0, 1]),
        (lambda old: {**old, "final_info": {"is_success": np.array([True, False])}}, [1, 0]),
        (lambda old: {**old, "final_info": objects({"is_success": True}, None)}, [1, 0]),
        (lambda old: {**old, "final_info": objects({"is_success": 0.0}, {"is_success": True})}, [0, 1]),
        (told(objects(None, None)), [None, None]),
        (lambda old: old, [None, None]),
    ],
)
def test_success_is_found_in_every_layout(info, expected):
    success = steps(Environment(Clocks(informing(info))))[-1].success.tolist()
    assert [None if x != x else x for x in success] == expected


@pytest.mark.parametrize("value", ["yes", objects("yes", "no"), np.ones(3), [7, 0], np.array([0.0, -1.0])])
def test_a_success_that_is_none_is_told(value):
    with pytest.raises(MerlinError, match="is_success"):
        steps(Environment(Clocks(informing(told(value)))))


def test_who_does_not_tell_where_others_did_has_not_succeeded():
    infos = iter([{}, {"is_success": np.array([True, False]), "_is_success": np.array([True, False])}, {}, {}])
    environment = Environment(Clocks(informing(lambda old: {**old, **next(infos)})))
    success = torch.stack([step.success for step in steps(environment, 12)])[2::3]
    assert success.isnan().tolist() == [[True, True], [False, False], [False, False], [False, False]]
    assert success[1:].tolist() == [[1, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("rewrite", "sentence"),
    [
        (lambda o, r, t, u, i: (torch.tensor(o), r, t, u, i), "a batch whose arrays are tensors says so|A batch whose"),
        (lambda o, r, t, u, i: (None, r, t, u, i), "but Clocks returned None"),
        (lambda o, r, t, u, i: (o[:, 0], r, t, u, i), r"an array of shape \(2,\)"),
        (lambda o, r, t, u, i: (o, r[:1], t, u, i), r"The reward must be a number for each of 2 .* shape \(1,\)"),
        (lambda o, r, t, u, i: (o, None, t, u, i), "The reward must .* returned None"),
        (lambda o, r, t, u, i: (o, r, "no", u, i), "The terminated must .* 'no'"),
        (lambda o, r, t, u, i: (o, r, t, u), "`step` must return .* a tuple of 4: this is gym's old form"),
        (lambda o, r, t, u, i: (o, r, t, u, None), "info that `step` returns must be a dict, .* None"),
        (lambda o, r, t, u, i: (o * np.nan, r, t, u, i), "environment 0 of Clocks returned nan"),
    ],
)
def test_what_does_not_fit_is_told(rewrite, sentence):
    with pytest.raises(MerlinError, match=sentence):
        steps(Environment(Clocks(rewrite)))


def test_rewards_and_flags_of_other_shapes_and_types_are_taken():
    rewrite = lambda o, r, t, u, i: (o, r[:, None].astype(object), t.astype(int), u[:, None], i)  # noqa: E731
    last = steps(Environment(Clocks(rewrite)))[-1]
    assert last.reward.tolist() == [1, 1] and last.truncated.all() and not last.terminated.any()


@pytest.mark.parametrize(
    ("rewrite", "sentence"),
    [
        (lambda o, r, t, u, i: (o, r.numpy(), t, u, i), r"The reward of a batch of tensors must be a tensor \[2\]"),
        (lambda o, r, t, u, i: (o, r, t, u[:, None], i), r"The truncated of a batch .* a tensor of shape \(2, 1\)"),
    ],
)
def test_a_batch_of_tensors_is_one(rewrite, sentence):
    with pytest.raises(MerlinError, match=sentence):
        steps(Environment(Clocks(rewrite, tensors=True)))


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (spaces.Box(-9, 9, (3,)), r"\[2, 3\] of entry 'observation', but Clocks returned a tensor of shape \(2, 1\)"),
        (spaces.MultiDiscrete([5]), r"environment 1 of Clocks returned 10.0 at \(0,\)"),
        (spaces.Dict({"a": spaces.Box(-9, 9, (1,))}), "of entry 'a', but Clocks returned None"),
    ],
)
def test_tensors_are_looked_at_when_episodes_begin(space, sentence):
    with pytest.raises(MerlinError, match=sentence):
        Environment(Clocks(tensors=True, space=space)).reset(0)


@pytest.mark.parametrize(
    "names",
    [
        {"max_steps": np.array([5, 6])},
        {"max_steps": float("inf")},
        {"time_limit": lambda: 3, "max_steps": "none"},
        {"scores": np.zeros(2)},
        {"scores": {"red": [1, 2]}},
        {"game": "chess", "team": ["red", "blue"]},
        {"game": 0, "team": np.array([0, 1])},
    ],
)
def test_a_batch_may_call_what_it_has_as_it_likes(names):
    batch = Clocks(lambda *answer: (*answer[:4], answer[4] | {"events": np.array(["ran", None], dtype=object)}))
    for name, value in names.items():
        setattr(batch, name, value)
    environment = Environment(batch)
    assert len(steps(environment)) == 3 and environment.events is None
    assert environment.scores == environment.judged_by == {} and not environment.is_self_play
    assert 2 <= longest_first_episode(batch) <= 1000


def test_a_batch_of_games_and_known_scores_says_so():
    batch = Clocks(lambda *answer: (*answer[:4], answer[4] | {"events": np.array([[1, 0, 2], [0, 0, 3]])}))
    batch.game, batch.team, batch.scores, batch.max_steps = [0, 0], [0, 1], {"random": 0.5}, 7
    environment = Environment(batch)
    steps(environment)
    assert environment.is_self_play and environment.scores == {"random": 0.5}
    assert environment.events.tolist() == [[1, 0, 2], [0, 0, 3]] and longest_first_episode(batch) == 7


@pytest.mark.parametrize(
    ("start", "step", "dtype", "told"),
    [
        (
            1.75e9,
            1,
            np.float64,
            "1750000019.0, between which the number at (1,) of entry 'observation' of Clocks was",
        ),
        (1e5, 0.01, np.float64, "hardly tells 100000.0 from 100000.19, "),
        (-1e5, 0.001, np.float64, "hardly tells -100000.0 from -99999.981, "),
        (1e5, 1, np.float64, None),
        (1e5, 0, np.float64, None),  # a constant
        (1e5, 1e-11, np.float64, None),  # a constant, rounded
        (0, 1e-9, np.float64, None),
        (1e5, 0.01, np.float32, None),  # which is as float32 as the environment made it
    ],
)
def test_numbers_that_float32_does_not_tell_apart_are_told(start, step, dtype, told, monkeypatch, capsys):
    """A time in seconds since 1970 is one: float32 moves by 128 there, and by 0.008 at 100,000."""
    monkeypatch.setattr(border, "LOOKS", 10)
    look = border.Border(Clocks(space=spaces.Box(-np.inf, np.inf, (2,), dtype)), "Clocks", False).observation
    said = []
    for t in range(12):
        look(np.array([[t, start + step * t], [-t, start + step * (t + 10)]], dtype))
        said.append(capsys.readouterr().err)
    assert [bool(line) for line in said] == [t == 9 and told is not None for t in range(12)]
    assert (told or "") in said[9]
