"""A curriculum: a run goes through its stages, only the task itself chooses its best weights, and it can be resumed."""

import io
import math
from dataclasses import replace

import pytest

from merlin.errors import MerlinError
from merlin.runs import choice
from merlin.runs.curriculum import Curriculum, CurriculumConfig
from merlin.runs.monitor import Monitor
from merlin.runs.run import train
from merlin.runs.settings import override
from merlin.training import checkpoint
from tests.runs.test_resume import WINDOW, equal, rows, tiny, train_until, weights_of

STAGES = CurriculumConfig(argument="size", values=(5, 7), until_steps=5 * WINDOW)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Which take longer than these runs."""
    monkeypatch.setattr(Monitor, "draw", lambda self: None)


def sizes(monkeypatch) -> list[int]:
    """Return a list to which the size of the maze is added at each report."""
    seen, told = [], Monitor._tell

    def telling(self, metrics):
        seen.append(self.trainer.environment.vector_env.unwrapped.width)
        told(self, metrics)

    monkeypatch.setattr(Monitor, "_tell", telling)
    return seen


def in_mazes(windows=24, **curriculum):
    config = tiny("rl-lstm", "merlin/GoalMaze-v0", windows=windows)
    return replace(config, env_kwargs={"size": 9, "max_steps": 6}, curriculum=replace(STAGES, **curriculum))


def test_a_run_goes_through_the_stages_and_resumes_in_any_of_them_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "EPISODES", 16)
    config, whole, killed, seen = in_mazes(), tmp_path / "whole", tmp_path / "killed", sizes(monkeypatch)
    stream = io.StringIO()
    train(config, whole, stream=stream)
    assert seen == [5, 7, 9, 9, 9] and [row["curriculum_stage"] for row in rows(whole)] == [0, 1, 2, 2, 2]
    assert "stage 1: size 7\n" in stream.getvalue() and "stage 2: the task as it is\n" in stream.getvalue()
    assert "  stage 0  " in stream.getvalue()
    for number, window in enumerate((3, 6, 8, 13)):
        train_until(monkeypatch, window, config, killed, resume=number > 0)
    train(config, killed, resume=True, stream=io.StringIO())
    assert rows(killed) == rows(whole) and sum(row["episodes"] for row in rows(whole)) > 20
    assert equal(weights_of(killed), weights_of(whole))
    best = checkpoint.read_best(whole, compared=False)
    assert best is not None and best == checkpoint.read_best(killed, compared=False) and best.step >= 10 * WINDOW


def test_easier_tasks_choose_no_best_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "EPISODES", 8)
    train(in_mazes(until_steps=None, until_return=1e9), tmp_path, stream=io.StringIO())
    assert checkpoint.read_best(tmp_path) is None and {row["curriculum_stage"] for row in rows(tmp_path)} == {0}


def test_a_stage_is_done_when_any_of_what_is_asked_of_it_is_reached():
    config = CurriculumConfig(argument="size", values=(5,), until_success=0.9, until_return=3.0, until_steps=100)
    report = {"env_steps": 150, "success_rate": math.nan, "episode_return_mean": math.nan}
    curriculum = Curriculum(config)
    curriculum.began_at = 51
    assert not curriculum.is_done(report)
    for reached in ({"env_steps": 151}, {"success_rate": 0.9}, {"episode_return_mean": 3.0}):
        assert curriculum.is_done(report | reached)
    assert not curriculum.is_done(report | {"success_rate": 0.89, "episode_return_mean": 2.9})
    curriculum.move_on(151)
    assert curriculum.is_over and curriculum.env_kwargs == {} and not curriculum.is_done(report | {"env_steps": 999})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["argument=size", "until_steps=5"], "curriculum.argument must name what the stages differ in, and values"),
        (["values=5,7", "until_steps=5"], "curriculum.argument must name"),
        (["argument=size", "values=5"], "until_success, until_return or until_steps must say"),
        (["until_success=2"], "curriculum.until_success must be from 0 to 1"),
    ],
)
def test_a_curriculum_that_says_too_little_is_refused(settings, sentence):
    with pytest.raises(MerlinError, match=sentence):
        override(tiny(), [f"curriculum.{setting}" for setting in settings])


def test_a_stage_that_cannot_be_built_or_has_other_spaces_is_refused_before_training(tmp_path):
    with pytest.raises(MerlinError, match="size must be odd and at least 5, but is 4"):
        train(in_mazes(values=(5, 4)), tmp_path / "even", stream=io.StringIO())
    with pytest.raises(MerlinError, match=r"must have the spaces of the task.*are others with agent_view_size 7: take"):
        train(in_mazes(argument="agent_view_size", values=(5, 7)), tmp_path / "view", stream=io.StringIO())


def test_stages_differ_in_numbers_or_words_and_self_play_may_come_after_bots(tmp_path, monkeypatch):
    """What is read of the environment is that of the present stage: returns against oneself choose no weights."""
    monkeypatch.setattr(choice, "EPISODES", 4)
    config = tiny("rl-lstm", "merlin/CaptureTheFlag-v0", windows=24)
    settings = [
        "curriculum.argument=opponents",
        "curriculum.values=random,mixed",
        f"curriculum.until_steps={5 * WINDOW}",
    ]
    config = override(replace(config, env_kwargs={"size": 9, "max_steps": 6}), settings)
    assert config.curriculum.values == ("random", "mixed")
    stream = io.StringIO()
    train(config, tmp_path, stream=stream)
    assert "stage 1: opponents mixed\n" in stream.getvalue() and "stage 2: the task as it is\n" in stream.getvalue()
    assert {row["success_rate"] for row in rows(tmp_path)[2:]} == {0.5} and checkpoint.read_best(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7,9", (7, 9)),
        ("0.1,2", (0.1, 2)),
        ('["random", 3]', ("random", 3)),
        ("(random, 1e2)", ("random", 100)),
        ("false,true", (False, True)),
    ],
)
def test_values_of_stages_are_read_as_what_they_look_like(text, values):
    found = override(tiny(), ["curriculum.argument=x", f"curriculum.values={text}", "curriculum.until_steps=1"])
    assert [(value, type(value)) for value in found.curriculum.values] == [(value, type(value)) for value in values]
