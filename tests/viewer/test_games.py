"""Watching and analysing runs of games with several players: one game is built, and its first player is looked at."""

import dataclasses

import pytest
import torch

from merlin.analysis.predictions import expectations
from merlin.environments.config import EnvironmentConfig
from merlin.environments.make import find_spec, rows_per_game
from merlin.errors import MerlinError
from merlin.runs.run import build_agent, build_environment
from merlin.training.play import Observer, play
from merlin.viewer.episodes import EpisodeRecorder, record_episode
from merlin.viewer.frames import draw_step
from merlin.viewer.game import Game
from merlin.viewer.microscope import write_page
from merlin.viewer.watch import watch
from tests.viewer.test_watch import make_run, tiny

TASK = "merlin/CaptureTheFlag-v0"
SHORT = {"size": 7, "max_steps": 5}


@pytest.mark.parametrize(
    ("task", "settings", "wrappers", "rows"),
    [
        (TASK, {}, (), 4),
        (TASK, {"opponents": "mixed"}, (), 2),
        (TASK, {"team_mate": "attacker"}, (), 3),
        (TASK, {"opponents": "mixed", "team_mate": "attacker"}, (), 1),
        (TASK, {"opponents": "mixed"}, ("gymnasium.wrappers:TimeAwareObservation",), 1),
        ("merlin/TMaze-v0", {"length": 3}, (), 1),
        ("CartPole-v1", {}, (), 1),
    ],
)
def test_rows_of_a_game(task, settings, wrappers, rows):
    assert rows_per_game(find_spec(task), settings, EnvironmentConfig(wrappers=wrappers)) == rows


def test_settings_that_no_game_has_are_told():
    with pytest.raises(MerlinError, match=r"opponents must be one of self, .*, but is 'me'"):
        rows_per_game(find_spec(TASK), {"opponents": "me"}, EnvironmentConfig())


@pytest.mark.parametrize(("asked", "built"), [(1, 4), (4, 4), (5, 8), (None, 12)])
def test_whole_games_are_built(asked, built):
    config = dataclasses.replace(tiny("rl-lstm", TASK, SHORT), num_envs=12)
    with build_environment(config, asked) as environment:
        assert environment.num_envs == built


@pytest.mark.parametrize("settings", [{}, {"opponents": "mixed"}, {"view": "first_person", "picture_size": 16}])
@pytest.mark.parametrize("ending", ["gif", "html", "png"])
def test_watch_shows_a_game(tmp_path, settings, ending):
    run_dir = make_run(tmp_path / "run", tiny("rl-lstm", TASK, SHORT | settings))
    assert watch(run_dir, tmp_path / f"game.{ending}").stat().st_size > 3000


def test_an_episode_is_the_first_player_of_the_game(tmp_path):
    class Rows(Observer):
        def __init__(self):
            self.moments = []

        def observe(self, moment):
            self.moments.append(moment)
            self.is_done = bool(moment.next_timestep.is_end.all())

    config = tiny("merlin", TASK, SHORT | {"rewards": [1.0] * 13}, memory_size=4)
    with build_environment(config, 1, "rgb_array") as environment:
        agent, rows = build_agent(config, environment).eval(), Rows()
        recorder = EpisodeRecorder(agent, environment, imagine=2)
        play(agent, environment, recorder, rows, seed=1)
        episode = recorder.episode()
        found = expectations(agent, environment, seed=1, imagine=2)
    assert len(episode.steps) == len(rows.moments) == len(found.seen) == 5
    for step, moment, seen in zip(episode.steps, rows.moments, found.seen, strict=True):
        assert step.reward == moment.next_timestep.reward[0] and step.value == moment.output.value[0]
        assert (step.action == moment.output.action[0].numpy()).all()
        assert (step.observation["image"] == moment.timestep.observation["image"][0].numpy()).all()
        assert (seen["image"] == step.observation["image"]).all()
    assert episode.outcome in ("success", "no success", "success 0.5")
    assert [len(step.imagined) for step in episode.steps] == [2, 2, 2, 1, 0]
    write_page([episode], tmp_path / "x.html", "")


def test_a_rich_picture_has_a_row_of_its_own():
    config = tiny("rl-lstm", TASK, SHORT)
    with build_environment(config, 1, "rgb_array") as environment:
        episode = record_episode(build_agent(config, environment), environment, 1, torch.Generator().manual_seed(1))
    bare = episode._replace(steps=[step._replace(picture=None) for step in episode.steps])
    rich, plain = (draw_step(x, 2) for x in (episode, bare))
    assert rich.height - plain.height == pytest.approx(912 * 380 / 912 + 16)


def test_a_person_plays_from_above_alone():
    game = Game(TASK, {"size": 9}, seed=1)
    assert game.block("above", 60, 30) is not None
    above, whole = game.unwrapped.draw_above(), game.env.render()
    assert above.shape[1] < whole.shape[1]
