"""A population's directory: resumed, evaluated, and its agents in a tournament."""

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import merlin
from merlin.cli import main
from merlin.errors import MerlinError
from merlin.population import chronicle, run
from merlin.population.figures import _num_agents, _numbers, plot_points, plot_population
from merlin.population.population import PopulationConfig
from merlin.population.tournament import Match, Tournament, check_free, standings, tournament, write
from merlin.runs.presets import preset
from merlin.training import checkpoint
from merlin.training.weights import read_metadata
from tests.population import duel
from tests.population.test_population import SIZES

TASK = f"tests.population.duel:{duel.ID}"
STEPS = 400


def config(**changes):
    start = preset("rl-lstm", TASK)
    training = replace(
        start.training, unroll_length=4, minibatches=1, passes=1, report_steps=150, staggered_episodes=True
    )
    model = replace(start.model, **{key: x for key, x in SIZES.items() if hasattr(start.model, key)})
    return replace(start, num_envs=16, steps=STEPS, model=model, training=training, device="cpu", **changes)


SETTINGS = PopulationConfig(agents=3, burn_in_games=4, evolution_threshold=1.0)


def train(run_dir, stream=None, **more):
    return run.train(config(), SETTINGS, run_dir, stream=stream or io.StringIO(), **more)


def rows(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: x for name, x in row.items() if "second" not in name} for row in found]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("population") / "whole"
    summary = train(run_dir)
    assert summary.env_steps >= STEPS and not summary.interrupted
    return run_dir


def test_a_population_that_was_stopped_goes_on_bit_for_bit(trained, tmp_path):
    run_dir = tmp_path / "stopped"
    assert train(run_dir, max_seconds=1e-9).env_steps == 64  # one window
    stream = io.StringIO()
    assert train(run_dir, stream, resume=True, max_seconds=0.2).env_steps <= STEPS
    assert "going on after 64 steps" in stream.getvalue()
    assert not [*run_dir.rglob("metrics.lost.jsonl")], "what is seen again is not lost"
    assert train(run_dir, resume=True).env_steps >= STEPS
    for name in ("population.jsonl", "metrics.jsonl", "agents/00/metrics.jsonl", "agents/02/metrics.jsonl"):
        assert rows(run_dir / name) == rows(trained / name), name
    kinds = [row["kind"] for row in rows(trained / "population.jsonl")]
    assert {"start", "deal", "ratings", "evolution"} == set(kinds)
    assert kinds.count("start") == 1
    last = [checkpoint.steps(directory)[-1] for directory in (run_dir, trained)]
    one, other = (torch.load(path / "trainer.pt", weights_only=True)["population"] for path in last)
    assert one["ratings"].tolist() == other["ratings"].tolist()
    assert torch.equal(one["generator"], other["generator"])
    for path in ("", "agents/01"):
        weights = []
        for directory in (run_dir, trained):
            weights.append(load_file(checkpoint.steps(directory / path)[-1] / "agent.safetensors"))
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


class Mine(merlin.RLLSTM):
    pass


@pytest.mark.parametrize("agent, modules", [("rl-lstm", ""), (f"{__name__}:Mine", " --import-from .")])
def test_what_can_be_done_next_is_told_with_where_modules_lie(agent, modules, tmp_path, capsys, monkeypatch):
    ended = SimpleNamespace(env_steps=64, wall_seconds=1.0, interrupted=False)
    monkeypatch.setattr(run, "train", lambda *_, **__: ended)
    assert main(["population", "--agent", agent, "--steps", "128", "--run-dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    for command in ("population --resume RUN", "tournament RUN", "watch RUN/agents/00"):
        assert f"merlin {command.replace('RUN', str(tmp_path / 'run'))}{modules}\n" in out


def test_trackers_get_what_the_population_and_its_agents_report(tmp_path, monkeypatch):
    told = []

    class Fake:
        is_on = True

        def __init__(self, mode, run_dir, values, name, group, note):
            told.append(("begin", mode, values["population"]["agents"], values["run"]["task"], name, group))

        def log(self, metrics, step):
            told.append(("log", dict(metrics), step))

        def log_media(self, path, key):
            told.append(("media", path.name, key))

        def close(self, code=0):
            told.append(("close", code))

    monkeypatch.setattr(chronicle, "Tracker", Fake)
    train(tmp_path / "whole", wandb="online")
    assert told[0] == ("begin", "online", 3, TASK, "whole", TASK)
    logs = [x for x in told if x[0] == "log"]
    assert [step for *_, step in logs] == [row["env_steps"] for row in rows(tmp_path / "whole/metrics.jsonl")]
    (own,) = [row["rating"] for row in rows(tmp_path / "whole/agents/02/metrics.jsonl")[-1:]]
    assert logs[-1][1]["agents/02/rating"] == own and "rating_best" in logs[-1][1]
    assert told[-3:-1] == [("media", "population.png", "population"), ("close", 0)]
    told.clear()
    monkeypatch.setattr(run.Population, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "failed", wandb="online")
    assert told[-1] == ("close", 1)


def test_evolutions_tell_who_copied_whom_and_what_changed(trained):
    evolution = next(row for row in rows(trained / "population.jsonl") if row["kind"] == "evolution")
    assert evolution["agent"] != evolution["copied"] and 0 < evolution["win_probability"] < 1
    assert evolution["before"].keys() == evolution["after"].keys()
    rewards = {f"reward_{who}_scored" for who in ("i", "mate", "they")}
    assert evolution["after"].keys() == {"learning_rate", "entropy_cost", "rating"} | rewards


def test_rewards_of_events_without_names_have_numbers(tmp_path, monkeypatch):
    monkeypatch.delattr(duel.Duel, "event_names")
    train(tmp_path / "nameless", max_seconds=1e-9)
    (begin, *_) = rows(tmp_path / "nameless" / "population.jsonl")[0]["hyperparameters"]
    assert begin.keys() == {"learning_rate", "entropy_cost", "reward_00", "reward_01", "reward_02"}


def test_an_agent_of_a_population_is_a_run_directory(trained, capsys):
    agent = trained / "agents" / "01"
    saved = json.loads((agent / "config.json").read_text())
    about = json.loads(read_metadata(checkpoint.steps(agent)[-1] / "agent.safetensors")["config"])
    assert saved.pop("version") == merlin.__version__
    assert saved == about
    rewards = saved["env_kwargs"]["rewards"]
    assert [x > 0 for x in rewards] == [True, True, False]
    assert main(["evaluate", str(agent), "--episodes", "8", "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["episodes"] == 8
    assert found.err == ""  # nothing of settings that it was not trained with


def test_a_tournament_rates_agents(trained, capsys):
    found, points = tournament([str(trained)], games=8)
    for row, x in zip(points, found, strict=True):
        assert abs(row[~np.isnan(row)].mean() - x.wins - x.draws / 2) < 1e-9  # each pair plays as many games
    assert np.isnan(points.diagonal()).all()
    np.testing.assert_allclose(np.nan_to_num(points) + np.nan_to_num(points.T), 1 - np.eye(4))
    assert [x.games for x in found] == [24] * 4  # three agents and the random bot
    assert next(x for x in found if x.name == "random").rating == 500
    assert all(abs(x.wins + x.draws + x.losses - 1) < 1e-9 for x in found)
    rated = [x for x in found if not np.isnan(x.rating_low)]
    assert rated and all(x.rating_low <= x.rating <= x.rating_high for x in rated)
    assert sum(x.wins for x in found) == sum(x.losses for x in found)
    twice = tournament([str(trained), str(trained / "agents" / "01"), str(trained)], games=4)
    assert len(twice.standings) == 4 and len({x.name for x in twice.standings}) == 4
    assert main(["tournament", str(trained), "--games", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["standings"]) == 4 and all(x["rating_low"] is None for x in printed["standings"])  # of 12 games
    out = trained / "tournament"
    table = list(csv.DictReader((out / "standings.csv").read_text().splitlines()))
    assert [row["name"] for row in table] == [x["name"] for x in printed["standings"]]
    head, *lines = csv.reader((out / "points.csv").read_text().splitlines())
    assert head[1:] == [line[0] for line in lines] == [row["name"] for row in table]
    told = [[float(x) if x else None for x in line[1:]] for line in lines]
    assert told == printed["points"]
    assert is_drawn(out / "points.png")
    before = (out / "standings.csv").read_bytes()
    one = str(trained / "agents" / "01")
    for words, held in (
        ([one, "--games", "4"], "other entrants"),
        ([str(trained), "--games", "2"], "4 games of each pair"),
    ):
        assert main(["tournament", *words, "--out", str(out)]) == 1
        assert capsys.readouterr().err.endswith(
            f"{out} holds results of {held}, which are not written over: choose another --out.\n"
        )
    assert (out / "standings.csv").read_bytes() == before
    check_free(out, [x["name"] for x in printed["standings"]], 4)


def is_drawn(path):
    """Return whether a picture has more to see than a few colours."""
    picture = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return len(picture) > 100_000 and len(np.unique(picture, axis=0)) > 50


def test_a_population_ends_with_a_picture_of_its_time(trained, tmp_path):
    assert is_drawn(trained / "population.png")
    journal = rows(trained / "population.jsonl")
    count, numbers = _num_agents(journal), _numbers(journal, 3)
    assert count == 3
    assert {"learning_rate", "entropy_cost", "reward_i_scored"} <= numbers.keys()
    for index in range(3):  # what is drawn last is what the agents have
        saved = json.loads((trained / "agents" / f"{index:02d}" / "config.json").read_text())
        assert numbers["learning_rate"][index][1][-1] == saved["training"]["learning_rate"]
        assert numbers["reward_they_scored"][index][1][-1] == -saved["env_kwargs"]["rewards"][2]
        assert numbers["learning_rate"][index][0][0] == 0
    begun = tmp_path / "begun.jsonl"
    begun.write_text((trained / "population.jsonl").read_text().splitlines(keepends=True)[0])
    plot_population(begun, tmp_path / "begun.png", env_steps=64)  # a warning would fail
    assert is_drawn(tmp_path / "begun.png")
    with pytest.raises(MerlinError, match="must hold the journal of a population"):
        plot_population(tmp_path / "none.jsonl", tmp_path / "none.png")


def test_standings_are_the_best_first():
    scores = torch.tensor([1.0, 1, 0.5, 1]).double()
    found = standings(["a", "b", "c"], [Match(0, 1, scores), Match(0, 2, 1 - scores), Match(1, 2, scores / 2)], 0, 1)
    assert [x.name for x in found] == ["c", "a", "b"]
    a = next(x for x in found if x.name == "a")
    assert (a.rating, a.wins, a.draws, a.losses) == (500.0, 0.375, 0.25, 0.375)


@pytest.mark.parametrize(
    "scores, has_interval",
    [
        ([0.5] * 2, False),  # the games of two that cannot be told apart, drawn again, are the same games
        ([1.0, 0.0] * 9, False),
        ([1.0, 0.0] * 10, True),
        ([1.0] * 200, False),
        ([1.0] * 199 + [0.5], True),
    ],
)
def test_there_is_an_interval_where_games_drawn_again_would_tell_one(scores, has_interval, tmp_path):
    found = standings(["agent", "random"], [Match(0, 1, torch.tensor(scores).double())], 1, 1)
    agent, anchor = (next(x for x in found if x.name == name) for name in ("agent", "random"))
    assert np.isnan([anchor.rating_low, anchor.rating_high]).all() and anchor.rating == 500
    assert (agent.rating_low <= agent.rating <= agent.rating_high) == has_interval
    assert np.isnan([agent.rating_low, agent.rating_high]).all() == (not has_interval)
    write(Tournament(found, np.full((2, 2), np.nan)), tmp_path, "")
    table = list(csv.DictReader((tmp_path / "standings.csv").read_text().splitlines()))
    assert [bool(row["rating_low"]) for row in table if row["name"] == "agent"] == [has_interval]


def test_the_table_says_why_there_is_no_interval(trained, tmp_path, capsys):
    for games, is_told in ((2, True), (16, False)):
        assert main(["tournament", str(trained), "--games", str(games), "--out", str(tmp_path / str(games))]) == 0
        out = capsys.readouterr().out
        assert ("There is no interval of who played fewer than 20 games" in out) == is_told
        assert ("  -  " in out.split("agents/00 ")[1].split("\n")[0]) == is_told


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--agents", "1"], "agents must be at least 2, but are 1: take more, or set population.evolves=false"),
        (["merlin/TMaze-v0"], "says the game and the team of each row, but merlin/TMaze-v0 does not"),
        (["--set", "population.burn_in=3"], "no setting 'population.burn_in': did you mean 'population.burn_in_games'"),
        (["--env-kwargs", '{"opponents": "random"}'], "games of two teams with as many players each"),
        (["--agent", "dreamer"], "Dreamer learns otherwise"),
        (["--num-envs", "6"], "num_envs must be a multiple of 4, the players of a game that learn, but is 6"),
        (["--past-selves", "-1"], "--past-selves: must be a whole number from 0 to 1000, got '-1'"),
        (
            ["--past-selves", "2", "--set", "population.bots=mixed", "population.bot_games=0.9"],
            "bot_games + past_games must be at most 1, but is 1.15: lower one of them",
        ),
        (["--resume", "nowhere", "--past-every", "3"], "but --past-every, --num-envs, --run-dir came"),
        (["--set", "population.bots=nobody"], "population.bots must be bots of merlin/CaptureTheFlag-v0 (mixed"),
        (["--set", "training.evaluation_steps=99"], "training.evaluation_steps must be none, but is 99: leave it out"),
        (
            ["--agent", "rl-mem", "--set", "model.value_transport=0.9"],
            "unroll_length must be at least 52, better the length of an episode, but is 16",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, capsys, tmp_path):
    arguments = ["population", "--num-envs", "8", "--run-dir", str(tmp_path / "new"), *arguments]
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    found = capsys.readouterr().err
    assert message in found and "Traceback" not in found


def test_bad_directories_are_one_sentence(trained, tmp_path):
    with pytest.raises(MerlinError, match="holds a run already"):
        train(trained)
    with pytest.raises(MerlinError, match="Only a population can be resumed"):
        train(tmp_path, resume=True)
    with pytest.raises(MerlinError, match="'nobody' must be a directory or a bot"):
        tournament([str(trained), "nobody"])
    with pytest.raises(MerlinError, match="A tournament needs an agent"):
        tournament(["random"])
    with pytest.raises(MerlinError, match="the games of a pair must be even, but are 7: take 8"):
        tournament([str(trained)], games=7)


def test_agents_of_other_spaces_or_games_do_not_play_one_another(trained, tmp_path):
    """As those of a window of steps, or of pictures, which the networks of the others cannot read."""
    settings = [{}, {"symbols": 4}]
    for index, env_kwargs in enumerate(settings):
        own = replace(config(), env_kwargs=env_kwargs, steps=64)
        run.train(own, replace(SETTINGS, agents=2), tmp_path / f"{index}", stream=io.StringIO())
    with pytest.raises(MerlinError, match="Agents of a tournament play the same game, but"):
        tournament([str(tmp_path / "0"), str(tmp_path / "1")], games=4)
    with pytest.raises(MerlinError, match="symbol") as caught:
        tournament([str(tmp_path / "0")], games=4, env_kwargs={"symbols": 4})
    assert str(caught.value).count(". ") == 0


def test_long_names_of_entrants_are_not_cut_off(tmp_path):
    population = "/home/somebody/with a long name/runs/CaptureTheFlag-v0-ftw-population-seed1-20260101-120000/agents/"
    names = ["random", *(f"{population}{i}" for i in range(2))]
    plot_points(names, np.full((3, 3), 0.5), tmp_path / "points.png", "Points")
    with Image.open(tmp_path / "points.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert all((edge == 255).all() for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]))
