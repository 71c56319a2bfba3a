"""What a run says of itself: at its start, and of what does not learn. Each warning is provoked by a run, once."""

import io
import json
import math
import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from merlin import override, preset
from merlin.networks.action_spaces import describe_actions
from merlin.runs.advice import Advice, describe_run
from merlin.runs.run import build_agent, build_environment, train
from merlin.training.plain import to_plain
from tests.environments import unlearnable

SIZES = {
    "merlin": {"latent_size": 16, "hidden_size": 16, "policy_hidden_size": 16, "memory_size": 10},
    "rl-lstm": {"hidden_size": 16, "head_size": 16},
    "rl-mem": {"hidden_size": 16, "head_size": 16, "latent_size": 16, "memory_size": 10},
}


pytestmark = pytest.mark.usefixtures("no_pictures", "on_a_command_line")


def tiny(agent="rl-lstm", steps=8_000, settings=(), **env_kwargs):
    config = preset(agent, "test/Tiny-v0", env_kwargs, name="grid-world")
    config = replace(config, steps=steps, num_envs=32, device="cpu", model=replace(config.model, **SIZES[agent]))
    return override(config, ["training.unroll_length=16", *settings])


def lines(config, run_dir):
    """Return what a run told, but for its reports and what it said of its best weights."""
    stream = io.StringIO()
    train(config, run_dir, stream=stream)
    others = ("env_steps", "comparing", "the best weights")
    return [line for line in stream.getvalue().splitlines() if not line.startswith(others)]


def warnings(config, run_dir):
    return [line.removeprefix("warning: ") for line in lines(config, run_dir) if line.startswith("warning: ")]


SCALES = "model.running_scales=true"
FAST = ["model.discount_factor=0.5", "training.learning_rate=1e-2", "training.policy_learning_rate=none", SCALES]
PROVOKED = {
    "no reward": (
        tiny(rewards="never"),
        r"no reward was seen in [\d,]+ steps, .* correct test/Tiny-v0 .*--wrap module:Wrapper.* --set "
        r"model.entropy_cost=0.09",
    ),
    "all alike": (
        tiny(rewards="always"),
        r"each of [\d,]+ steps was rewarded with -1, and each of [\d,]+ episodes took 10 steps, .*--env-kwargs",
    ),
    "V": (
        tiny(rewards="chance"),
        r"V explains [0-4]% of the variance of returns, and the return, [-.\d]+, is no better than the [-.\d]+ ± "
        r"[.\d]+ of the start, .*--set model.running_scales=true.*training.learning_rate",
    ),
    "V, scales on": (
        tiny(rewards="chance", settings=[SCALES]),
        r"V explains [0-4]% .* try another training.learning_rate \(it is 0.001\) or model.discount_factor \(it is "
        r"0.99\)",
    ),
    "all nearly alike": (
        tiny(rewards="offset"),
        r"each of [\d,]+ steps was rewarded with 9.8[\d]* to 10.1, and the return, 99.[\d]+, is still near the "
        r"\d+ ± [.\d]+ of the start: what all rewards have in common .*--wrap module:Wrapper",
    ),
    "entropy gone": (
        tiny(
            rewards="tempting",
            settings=["model.discount_factor=0", "model.entropy_cost=0", "training.learning_rate=0.02"],
        ),
        r"the policy has [-.\de]+ nats of entropy left of 0.69, .* is no better than .* --set "
        r"model.entropy_cost=0.01 or training.learning_rate=0.007",
    ),
    "entropy grows": (
        tiny(rewards="near 0", box=True, settings=["model.entropy_cost=1", "training.learning_rate=0.01"]),
        r"the policy's entropy grew from [.\d]+ to [.\d]+ nats, .* mostly noise: begin anew with --set "
        r"model.entropy_cost=0.1",
    ),
    "no end": (
        replace(tiny(length=None), num_envs=4),
        r"no episode ended so far, in \d+ reports, and the longest that runs has [\d,]+ steps, .*TimeLimit.*--wrap|"
        r"no episode ended so far, in \d+ reports, and the longest that runs has [\d,]+ steps, .*--wrap.*TimeLimit.*"
        r"training.report_steps",
    ),
    "nothing transported": (
        tiny("rl-mem", settings=["model.value_transport=0.9", *FAST]),
        r"model.value_transport=0.9 transports nothing, as no read stronger than 2 .*--set model.read_strength=5"
        r".*model.transport_min_steps",
    ),
    "an entry": (
        tiny("merlin", number=unlearnable.NOISE),
        r"entry 'number' is not decoded \(0% explained, at a KL of [.\d]+ nats; a constant guess has 0%\), .*"
        r"--set model.running_scales=true.*model.vector_cost=10; if it is noise, .*--wrap",
    ),
}


@pytest.mark.parametrize("name", PROVOKED)
def test_what_does_not_learn_is_told_once_with_the_setting_to_change(name, tmp_path):
    config, pattern = PROVOKED[name]
    (sentence,) = warnings(config, tmp_path / "run")
    assert re.fullmatch(rf"(?:{pattern}).*", sentence), sentence


def test_rewards_that_are_too_small_are_told_and_their_units_mend_it(tmp_path):
    (sentence,) = [x for x in warnings(tiny("merlin", rewards="little"), tmp_path / "a") if x.startswith("rewards")]
    assert sentence.startswith("rewards are not decoded (0% of their variance explained), and the return, ")
    assert "--set model.running_scales=true" in sentence and sentence.endswith("--set model.reward_cost=10")
    told = warnings(tiny("merlin", rewards="little", settings=[SCALES]), tmp_path / "b")
    assert not [x for x in told if x.startswith("rewards")]


def test_sharper_reads_transport_value_and_nothing_is_told(tmp_path):
    settings = ["model.value_transport=0.9", "model.read_strength=5", *FAST]
    assert not warnings(tiny("rl-mem", settings=settings), tmp_path / "run")


@pytest.mark.parametrize("agent", ["rl-lstm", "merlin"])
def test_runs_that_learn_are_told_nothing(agent, tmp_path):
    told = lines(tiny(agent, 20_000, FAST, number=0.3), tmp_path / "run")
    assert told == [
        "cue: category of 4; number: vector of 1 number, float32, -1 to 1",
        "2 actions; preset grid-world (as told); running scales: vectors, rewards, returns",
    ]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["episode_return_mean"] > 8 > 6 > rows[0]["episode_return_mean"]
    assert rows[1]["reward_min"] == 0 and rows[1]["reward_max"] == 1
    if agent == "merlin":
        assert rows[-1]["cue_explained"] > 0.9 and rows[-1]["number_explained"] > 0.8 > rows[1]["number_explained"]


def test_the_start_says_what_was_taken_for_what():
    config = tiny("merlin", box=True)
    with build_environment(config, 1) as environment:
        assert describe_run(config, environment) == [
            "cue: category of 4",
            "box of 1 number, -1 to 1; preset grid-world (as told); units as they come",
        ]


@pytest.mark.parametrize(
    ("low", "high", "is_told"),
    [
        (-1, 1, False),
        (0, math.inf, True),
        (-math.inf, math.inf, True),
        (0, 2e6, True),
        ([0, -1], [math.inf, 1], True),
        ([0, -1], [0, 1], False),
    ],
)
def test_the_start_says_of_what_size_numbers_without_bounds_are(low, high, is_told):
    """A price of 40 is 66 spreads away from where its policy begins, which no run of a minute goes."""
    config = tiny(box=True)
    with build_environment(config, 1) as environment:
        box = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        environment.action_space = spaces.Dict({"turn": spaces.Discrete(2), "price": box})
        told = describe_run(config, environment)[2:]
    assert len(told) == is_told
    assert not told or re.match(r".* begin about 0, of a spread of 0.6: .*--wrap module:Wrapper", told[0])


class Masked(gymnasium.Env):
    """Episodes of one step, whose mask is an entry of the observation or of the info, under some key."""

    action_space = spaces.Discrete(3)

    def __init__(self, key="action_mask", in_info=True):
        self.mask, self.in_info = {key: np.array([1, 0, 1], np.int8)}, in_info
        entries = {"place": spaces.Discrete(2)} | ({} if in_info else {key: spaces.MultiBinary(3)})
        self.observation_space = spaces.Dict(entries)

    def _observe(self):
        return {"place": 0} | ({} if self.in_info else self.mask)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), self.mask if self.in_info else {}

    def step(self, action):
        return self._observe(), 0.0, True, False, self.mask if self.in_info else {}


gymnasium.register("test/MaskedStart-v0", Masked)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({}, "3 actions, masked by the info's action_mask; preset "),
        ({"in_info": False}, "3 actions, masked by the entry action_mask; preset "),
        ({"key": "actions_mask"}, "3 actions; preset "),
        ({"key": "actions_mask", "in_info": False}, "3 actions; preset "),
    ],
)
def test_the_start_says_where_actions_are_masked(settings, told, tmp_path):
    config = preset("rl-lstm", "test/MaskedStart-v0", settings, name="grid-world")
    config = replace(config, steps=32, num_envs=2, device="cpu", model=replace(config.model, **SIZES["rl-lstm"]))
    assert lines(override(config, ["training.unroll_length=16"]), tmp_path / "run")[1].startswith(told)


@pytest.mark.parametrize(
    "space, words",
    [
        (spaces.Discrete(5), "5 actions"),
        (spaces.Discrete(1), "1 action"),
        (spaces.Box(-2, 2, (3,)), "box of 3 numbers, -2 to 2"),
        (spaces.Box(-math.inf, math.inf, ()), "box of 1 number, no bounds"),
        (spaces.MultiDiscrete([3, 3]), "2 choices of 3 actions each"),
        (spaces.MultiDiscrete([[2, 4, 3]]), "3 choices of 2 to 4 actions each"),
        (spaces.MultiBinary(4), "4 choices of 2 actions each"),
        (
            spaces.Dict({"grip": spaces.Discrete(2), "move": spaces.Tuple([spaces.Box(0, 1, (2,))])}),
            "grip: 2 actions, move.0: box of 2 numbers, 0 to 1",
        ),
    ],
)
def test_actions_in_words(space, words):
    assert describe_actions(space) == words


def report(step, **changed):
    metrics = {"env_steps": 1000 * step, "episodes": 50, "episode_return_mean": 0.0, "episode_return_std": 1.0}
    metrics |= {"value_explained": 0.5, "entropy_nats": 0.6, "reward_min": 0.0, "reward_max": 1.0}
    return metrics | changed


@pytest.fixture(scope="module")
def parts():
    """A run of 100 reports of 1,000 steps; its environment and its agent."""
    config = replace(tiny(), steps=100_000)
    with build_environment(config, 2) as environment:
        yield config, environment, build_agent(config, environment)


def told_of(parts, rows, advice=None, longest=0):
    """Return the reports at which something was told, by key."""
    advice = advice or Advice(*parts[:2])
    return {key: i for i, row in enumerate(rows, 1) for key in advice.take(row, parts[2], longest)}


def rows_of(count=100, **series):
    return [report(i, **{name: x(i) for name, x in series.items()}) for i in range(1, count + 1)]


def test_advice_is_late_and_sure(parts):
    assert told_of(parts, rows_of()) == {}
    assert told_of(parts, rows_of(value_explained=lambda i: 0.0)) == {"value_explained": 25}
    assert told_of(parts, rows_of(value_explained=lambda i: 0.06 * (i % 5 == 0))) == {}, "not in five reports on end"
    assert told_of(parts, rows_of(value_explained=lambda i: 0.03 * i - 4)) == {}, "it rises"
    assert told_of(parts, rows_of(value_explained=lambda i: 0.0, episode_return_mean=lambda i: i / 50)) == {}
    assert told_of(parts, rows_of(value_explained=lambda i: 0.0, episodes=lambda i: 2)) == {"value_explained": 99}
    rises = {"value_explained": lambda i: -0.3, "episode_return_mean": lambda i: i / 50}
    assert told_of(parts, rows_of(**rises)) == {"value_explained": 55}, "V is worse than a constant, at half of the run"
    assert told_of(parts, rows_of(**rises | {"episode_return_mean": lambda i: i / 20})) == {}, "of much better play"
    solved = {"episode_return_mean": lambda i: min(0.95, 0.25 + i / 40), "episode_return_std": lambda i: 0.43}
    assert told_of(parts, rows_of(**rises | solved)) == {}, "nearly all succeed, 1.6 standard deviations from the start"
    unknown = {"value_explained": lambda i: math.nan if i % 2 else 0.0}
    assert told_of(parts, rows_of(**unknown)) == {"value_explained": 26}


def test_the_start_is_the_first_reports_together_and_not_one_of_a_few_episodes(parts):
    """Of random play of 0.35 a first report of 4 episodes has 0.5; what comes later is a little better than it was."""
    lucky = {
        "value_explained": lambda i: 0.0,
        "episodes": lambda i: 4,
        "episode_return_mean": lambda i: 0.5 if i == 1 else 0.35 if i <= 10 else 0.42 if i <= 60 else 0.97,
        "episode_return_std": lambda i: 0.48,
    }
    assert told_of(parts, rows_of(**lucky)) == {}
    advice = Advice(*parts[:2])
    flat = lucky | {"episode_return_mean": lambda i: 0.5 if i == 1 else 0.35}
    (told,) = [x for row in rows_of(**flat) for x in advice.take(row, parts[2], 0).values()]
    # of 40 episodes 4 have 0.5: their mean is 0.365, with an error of 0.48 / √39
    assert ", is no better than the 0.365 ± 0.077 of the start" in told


def test_a_mean_that_fell_by_an_outlier_is_not_worse_play(parts):
    """From report 21 on one episode in 100 loses 1,000, so that returns have a standard deviation of 100."""
    outliers = {
        "value_explained": lambda i: 0.0,
        "episode_return_mean": lambda i: 5.0 if i <= 20 else -2.0,
        "episode_return_std": lambda i: 1.7 if i <= 20 else 100.0,
    }
    assert told_of(parts, rows_of(**outliers)) == {}
    worse = outliers | {"episode_return_mean": lambda i: 5.0 if i <= 20 else -50.0}
    assert told_of(parts, rows_of(**worse)) == {"value_explained": 25}, "by more than chance"


def test_of_a_start_of_too_few_episodes_nothing_is_said(parts):
    few = {"value_explained": lambda i: 0.0, "episodes": lambda i: 19 if i == 1 else 0 if i < 81 else 500}
    falls = few | {"episode_return_mean": lambda i: -float(i)}
    advice = Advice(*parts[:2])
    told_of(parts, rows_of(count=80, **falls), advice)
    assert advice.start[1] == 19 and not advice._is_no_better()
    told_of(parts, [report(81, episodes=500, episode_return_mean=-1.0)], advice)
    assert advice.start[1] == 519, "it is late, but without them there is nothing to compare with"
    assert not advice._is_no_better(), "the recent ones are nearly the same"


def test_a_run_that_is_shorter_than_its_own_preset_asks_for_is_not_blamed(parts):
    """100,000 steps of a task that has its table, and of one that has none; the table asks for a million."""
    config, environment, agent = parts
    nothing = rows_of(value_explained=lambda i: 0.0)
    ours = preset("rl-lstm", "merlin/MemoryGame-v0")
    short = replace(config, task=ours.task, preset=ours.preset, env_kwargs={})
    assert told_of((short, environment, agent), nothing) == {}
    assert told_of((replace(short, preset="general"), environment, agent), nothing) == {"value_explained": 25}
    assert told_of((replace(short, steps=10**6), environment, agent), rows_of(300, value_explained=lambda i: 0.0))


def test_entropy_is_judged_by_what_there_was(parts):
    gone = {"entropy_nats": lambda i: 0.6 if i == 1 else 0.001}
    assert told_of(parts, rows_of(**gone)) == {"entropy": 15}
    assert told_of(parts, rows_of(**gone, episode_return_mean=lambda i: 0.1 * (i > 1))) == {}, "it found something"
    assert told_of(parts, rows_of(entropy_nats=lambda i: 0.001)) == {}, "masks may leave one choice from the beginning"


def test_rewards_that_are_not_all_alike_are_something_to_learn_from(parts):
    zero = {"reward_max": lambda i: 0.0, "episode_return_std": lambda i: 0.0}
    assert told_of(parts, rows_of(**zero)) == {"rewards": 15}
    assert told_of(parts, rows_of(**zero | {"reward_max": lambda i: 0.001 * (i == 7)})) == {}
    none = {
        f"reward_{name}": lambda i, x=x: x if i == 7 else 0.0 for name, x in (("min", math.inf), ("max", -math.inf))
    }
    assert told_of(parts, rows_of(**zero | none)) == {}, "of a window of which no row counts, nothing is known"
    one = {"reward_min": lambda i: 1.0, "episode_return_mean": lambda i: 20.0, "episode_return_std": lambda i: 0.0}
    assert told_of(parts, rows_of(**one)) == {"rewards": 15}
    assert told_of(parts, rows_of(**one | {"episode_return_std": lambda i: 3.0 * (i == 2)})) == {}, "lengths differ"


def test_an_end_in_sight_is_waited_for(parts):
    endless = {
        "episodes": lambda i: 0,
        "episode_return_mean": lambda i: math.nan,
        "episode_return_std": lambda i: math.nan,
    }
    assert told_of(parts, rows_of(**endless), longest=5_000) == {"episodes": 15}
    assert told_of(parts, rows_of(**endless), longest=999) == {}
    assert told_of(parts, rows_of(**endless | {"episodes": lambda i: int(i % 6 == 0)}), longest=5_000) == {}


def test_advice_goes_on_where_a_checkpoint_was_saved(parts):
    rows = rows_of(value_explained=lambda i: 0.0, entropy_nats=lambda i: 0.6 if i == 1 else 0.001)
    whole = told_of(parts, rows)
    assert whole == {"entropy": 15, "value_explained": 25}
    for at in (3, 14, 15, 22, 30):
        first, second = Advice(*parts[:2]), Advice(*parts[:2])
        before = told_of(parts, rows[:at], first)
        second.load_state_dict(to_plain(first.state_dict()))
        after = told_of(parts, rows[at:], second)
        assert before | {key: at + i for key, i in after.items()} == whole and not before.keys() & after.keys()


def test_of_a_start_that_is_unknown_nothing_is_said(parts):
    rows = rows_of(value_explained=lambda i: 0.0, entropy_nats=lambda i: 0.001 * (i > 1))
    advice = Advice(*parts[:2])
    advice.load_state_dict(None)  # a checkpoint of a version that gave none
    assert told_of(parts, rows, advice) == {}
    assert told_of((replace(parts[0], started_from="runs/other"), *parts[1:]), rows) == {}
