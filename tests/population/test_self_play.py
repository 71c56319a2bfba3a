"""What is done with an agent that played itself, or in a population: loaded, evaluated, watched, analysed."""

import io
import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest

import merlin
from merlin.cli import main
from merlin.environments.batch import make_environment
from merlin.population import run as populations
from merlin.population.population import PopulationConfig
from merlin.population.tournament import tournament
from merlin.runs.presets import preset
from merlin.training import checkpoint
from tests.population import duel

TASK = "merlin/CaptureTheFlag-v0"
GAME = {"size": 7, "max_steps": 16}
EVENTS = [1.0, 0.4, 0.3, 0.5, 0.1, 0.1, 0.3, 0.1, -0.3, -0.1, -0.5, -0.2, -0.1]


def config(agent="rl-lstm", env_kwargs=None, **training):
    start = preset(agent, TASK, GAME | (env_kwargs or {}))
    sizes = {"hidden_size": 8, "memory_size": 4, "latent_size": 4}
    model = replace(start.model, **{name: x for name, x in sizes.items() if hasattr(start.model, name)})
    training = {"unroll_length": 8, "minibatches": 1, "passes": 1, "evaluation_episodes": 8} | training
    training = replace(start.training, report_steps=256, **training)
    return replace(start, num_envs=16, steps=1024, model=model, training=training, device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the run of an agent that played itself, and that of an agent of a population."""
    directory, told = tmp_path_factory.mktemp("self-play"), io.StringIO()
    merlin.train(config(env_kwargs={"rewards": EVENTS}), directory / "alone", stream=told)
    assert "self-play, in which returns say nothing of the agent: its last weights count as the best" in told.getvalue()
    settings = PopulationConfig(agents=2, burn_in_games=2, evolution_threshold=1.0)
    populations.train(config("ftw"), settings, directory / "population", stream=io.StringIO())
    return directory / "alone", directory / "population" / "agents" / "01"


@pytest.fixture(params=[0, 1], ids=["alone", "population"])
def run_dir(request, runs) -> Path:
    return runs[request.param]


def test_the_last_weights_count_as_the_best(run_dir):
    assert checkpoint.steps(run_dir) and checkpoint.read_best(run_dir) is None


def test_an_agent_is_evaluated_against_bots_unless_told_otherwise(run_dir, capsys):
    against = "plays with opponents=mixed"
    assert main(["evaluate", str(run_dir), "--episodes", "6"]) == 0
    found = capsys.readouterr()
    assert against in found.err and "last checkpoint" in found.out and "success rate" in found.out
    arguments = ["evaluate", str(run_dir), "--episodes", "6", "--json", "--env-kwargs"]
    results = []
    for opponents in ("mixed", "self"):
        assert main([*arguments, json.dumps({"opponents": opponents})]) == 0
        found = capsys.readouterr()
        assert found.err == "", "who asks for other settings need not be told that they are others"
        results.append(json.loads(found.out))
    assert [x["episodes"] for x in results] == [6, 6]
    assert results[0]["success_rate"] <= 0.5  # who hardly learnt scores against nobody


def test_an_agent_is_loaded_and_plays_one_environment(run_dir):
    player, env = merlin.load(run_dir), gymnasium.make(TASK, **GAME)
    observation, _ = env.reset(seed=1)
    player.reset(seed=2)
    action = player.act(observation)
    for _ in range(GAME["max_steps"]):
        assert env.action_space.contains(action)
        observation, reward, terminated, _, _ = env.step(action)
        action = player.act(observation, reward)
    assert terminated
    env.close()


def test_of_a_population_an_agent_is_to_be_named(runs, capsys):
    population = runs[1].parents[1]
    for command in ("evaluate", "watch", "analyse"):
        assert main([command, str(population)]) == 1
        assert f"give that of one of its agents, such as {population}/agents/00, or go on" in capsys.readouterr().err


def test_an_agent_is_watched(run_dir, tmp_path):
    assert main(["watch", str(run_dir), "--out", str(tmp_path / "game.png")]) == 0
    assert (tmp_path / "game.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_agent_is_analysed(run_dir, tmp_path):
    assert main(["analyse", str(run_dir), "--episodes", "8", "--out", str(tmp_path / "report")]) == 0
    assert list((tmp_path / "report").glob("*.png"))


def test_evaluations_choose_the_weights_with_most_points_against_bots(tmp_path):
    told = io.StringIO()
    own = config(evaluation_steps=512, env_kwargs={"rewards": {"I picked up": 0.5}})
    merlin.train(own, tmp_path, stream=told)
    assert "its best weights are chosen by games with opponents=mixed" in told.getvalue()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    points = {row["env_steps"]: row["evaluation_success_rate"] for row in rows if "evaluation_success_rate" in row}
    best = checkpoint.read_best(tmp_path)
    assert len(points) == 2 and best is not None and best.chosen_by == "evaluation"
    assert best.score == max(points.values()) and points[best.step] == best.score
    assert len(tournament([str(tmp_path)], games=4).standings) == 2  # with the rewards it is shown, by their names


def test_which_batches_are_self_play():
    for task, settings, is_self_play, judged_by in (
        (TASK, {}, True, {"opponents": "mixed"}),
        (TASK, {"team_mate": "random"}, True, {"opponents": "mixed"}),
        (TASK, {"opponents": "random"}, False, {}),
        (duel.ID, {}, True, {}),
        ("merlin/TMaze-v0", {}, False, {}),
    ):
        with make_environment(task, 12, env_kwargs=settings) as environment:
            assert (environment.is_self_play, environment.judged_by) == (is_self_play, judged_by)
