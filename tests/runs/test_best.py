"""Which weights a run leaves as its best: those that did best in training, or at its end in held-out episodes."""

import io
import itertools
import math
import os
import signal
from dataclasses import replace

import gymnasium
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from merlin.errors import EnvironmentFailure
from merlin.runs import choice, run
from merlin.runs.choice import compare
from merlin.runs.monitor import Monitor
from merlin.runs.run import build_agent, build_environment, train
from merlin.training import checkpoint
from merlin.training.checkpoint import Best
from merlin.training.evaluation import CHOOSING_SEED, evaluate
from merlin.training.trainer import Trainer
from tests.runs.test_resume import WINDOW, Killed, equal, rows, tiny, weights_of


class Lever(gymnasium.Env):
    """Three steps, or as many as its seed says; each earns the action, 0 or 1."""

    observation_space, action_space = spaces.Discrete(1), spaces.Discrete(2)

    def __init__(self, longest=3):
        self.longest = longest

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, self.longest + 1))
        return 0, {}

    def step(self, action):
        self.left -= 1
        return 0, float(action), self.left == 0, False, {}


gymnasium.register("test/Lever-v0", entry_point=Lever)
ALWAYS, NEVER = 20.0, -20.0


@pytest.fixture(autouse=True)
def soon_and_whole(monkeypatch, no_pictures):
    """Scores of few episodes, comparisons to their end, and no pictures."""
    monkeypatch.setattr(choice, "EPISODES", 16)
    monkeypatch.setattr(choice, "COMPARISON_FRACTION", math.inf)


def pull(agent, logit):
    """Let the agent pull the lever with this log-odds."""
    with torch.no_grad():
        agent.policy_head[2].weight.zero_()
        agent.policy_head[2].bias.copy_(torch.tensor([0.0, logit]))


def levers(**more):
    return replace(tiny(task="test/Lever-v0", report_steps=2 * WINDOW), **more)


def learn(monkeypatch, logits):
    """Let training end each window with one log-odds."""
    update = Trainer.update

    def learning(self):
        found = update(self)
        pull(self.agent, logits[self.env_steps // WINDOW - 1])
        return found

    monkeypatch.setattr(Trainer, "update", learning)


def interrupt(monkeypatch, update):
    """Ask for an end in an update, as a scheduler would."""
    before, learning = itertools.count(1), Trainer.update

    def interrupting(self):
        if next(before) == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return learning(self)

    monkeypatch.setattr(Trainer, "update", interrupting)


def best_logit(run_dir):
    return load_file(run_dir / "checkpoints" / "best.safetensors")["policy_head.2.bias"][1].item()


def contenders(config, environment, logits):
    agent = build_agent(config, environment).eval()
    found = []
    for logit in logits:
        pull(agent, logit)
        found.append({name: x.clone() for name, x in agent.state_dict().items()})
    return agent, found


def test_weights_play_the_same_episodes():
    config = levers(env_kwargs={"longest": 9})
    with build_environment(config, 5) as environment:
        agent, weights = contenders(config, environment, [ALWAYS, 0.0, 0.0, NEVER])
        returns = compare(agent, environment, weights, episodes=12, seed=3)
        assert returns.shape == (4, 12) and not returns.isnan().any()
        lengths = []
        for first in (0, 5, 10):  # the oracle's return is the length, which the seed decides
            environment.reset(3 + first)
            lengths += [env.unwrapped.left for env in environment.vector_env.unwrapped.envs]
        assert returns[0].tolist() == lengths[:12] and len(set(lengths)) > 1
        assert torch.equal(returns[1], returns[2]), "the same noise"
        assert (0 < returns[1].sum() < returns[0].sum()) and returns[3].eq(0).all()


def test_a_comparison_is_an_evaluation_of_each():
    config = tiny("merlin", "merlin/TMaze-v0")
    with build_environment(config, 6) as environment:
        agents = [build_agent(replace(config, seed=seed), environment).eval() for seed in (1, 2)]
        expected = [evaluate(agent, environment, episodes=6, seed=7) for agent in agents]
        weights = [{name: x.clone() for name, x in agent.state_dict().items()} for agent in agents]
        returns = compare(agents[0], environment, weights, episodes=6, seed=7)
    assert returns.mean(1).tolist() == pytest.approx([x["episode_return_mean"] for x in expected], rel=1e-6)


def test_where_time_is_short_each_has_a_share_of_it():
    """A clock that counts how often it is asked: about once a step."""
    config = levers(env_kwargs={"longest": 12})
    with build_environment(config, 4) as environment:
        agent, weights = contenders(config, environment, [ALWAYS] * 3)

        def played(seconds=math.inf, **more):
            clock = itertools.count().__next__
            return compare(agent, environment, weights, episodes=100, seed=3, seconds=seconds, clock=clock, **more)

        whole = played()
        assert whole.shape == (3, 100) and not whole.isnan().any()
        for seconds in (3, 20, 30, 200):
            cut = played(seconds)
            number = cut.shape[1]
            assert number < 100 and torch.where(cut.isnan(), whole[:, :number], cut).equal(whole[:, :number])
        in_first_round = played(27)
        assert in_first_round.shape == (3, 4) and in_first_round.isnan().any(1).all()
        assert (~in_first_round.isnan()).any(1).all(), "all of them end some"
        assert played(0).isnan().all() and played(should_stop=lambda: True).isnan().all()


@pytest.mark.parametrize(
    ("logits", "step"),
    [
        ([NEVER] * 12 + [0.0] * 11 + [ALWAYS], 24),  # the last are the best, and training never saw them play
        ([0.0] * 8 + [ALWAYS] * 8 + [NEVER] * 8, None),  # the end collapses
        ([0.0] * 23 + [NEVER], None),
        ([ALWAYS] * 24, 24),  # of equals, the last
    ],
    ids=["rises", "collapses", "collapses at once", "stays"],
)
def test_held_out_episodes_choose_between_the_last_weights_and_those_of_training(tmp_path, monkeypatch, logits, step):
    learn(monkeypatch, logits)
    stream, config = io.StringIO(), levers()
    train(config, tmp_path, stream=stream)
    best, trained = checkpoint.read_best(tmp_path), checkpoint.read_best(tmp_path, compared=False)
    assert (best.chosen_by, best.episodes, best.chosen_at) == ("comparison", 100, config.steps)
    assert (trained.chosen_by, trained.episodes) == ("training", 16) and trained.step < trained.chosen_at
    assert best_logit(tmp_path) == max(logits)
    assert best.step == step * WINDOW if step else best.step < config.steps
    assert best.score == 3.0 if max(logits) == ALWAYS else 1 < best.score < 2
    assert "sets of weights on 100 held-out episodes" in stream.getvalue()
    assert f"the best weights are those of {best.step:,} steps: mean returns of 100 episodes" in stream.getvalue()


def test_a_run_that_goes_on_does_so_as_if_nothing_had_been_compared(tmp_path, monkeypatch):
    constant = {"final_learning_rate_fraction": 1.0, "final_entropy_fraction": 1.0}
    config = tiny(windows=45, evaluation_episodes=8, **constant)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole, stream=io.StringIO())
    resume = False
    for windows in (25, 35, 45):
        train(replace(config, steps=windows * WINDOW), parts, resume=resume, stream=io.StringIO())
        best = checkpoint.read_best(parts)
        assert (best.chosen_by, best.chosen_at) == ("comparison", windows * WINDOW)
        resume = True
    assert rows(parts) == rows(whole) and equal(weights_of(parts), weights_of(whole))
    for compared in (True, False):
        best = checkpoint.read_best(whole, compared=compared)
        assert checkpoint.read_best(parts, compared=compared) == best is not None
    assert equal(weights_of(parts, "best.safetensors"), weights_of(whole, "best.safetensors"))
    monkeypatch.setattr(run, "compare", None)
    train(config, parts, resume=True, stream=io.StringIO())  # which has been compared, and is not again
    assert checkpoint.read_best(parts) == checkpoint.read_best(whole)


def test_a_signal_or_a_kill_during_the_comparison_leaves_a_run_that_is_sound(tmp_path, monkeypatch):
    config, whole, cut = tiny(evaluation_episodes=8), tmp_path / "whole", tmp_path / "cut"
    train(config, whole, stream=io.StringIO())

    def is_sound():
        best = checkpoint.read_best(cut)
        return best.chosen_by == "training" and best == checkpoint.read_best(whole, compared=False)

    def dying(*_, **__):
        raise Killed

    def signalled(*arguments, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return compare(*arguments, **more)

    monkeypatch.setattr(run, "compare", dying)
    with pytest.raises(Killed):
        train(config, cut, stream=io.StringIO())
    assert is_sound() and equal(weights_of(cut), weights_of(whole)) and rows(cut) == rows(whole)
    monkeypatch.setattr(run, "compare", signalled)
    stream = io.StringIO()
    assert train(config, cut, resume=True, stream=stream).interrupted and is_sound()
    assert "the comparison was interrupted: the best weights are still those of" in stream.getvalue()
    monkeypatch.setattr(run, "compare", compare)
    assert not train(config, cut, resume=True, stream=io.StringIO()).interrupted
    assert checkpoint.read_best(cut) == checkpoint.read_best(whole) and rows(cut) == rows(whole)
    assert equal(weights_of(cut, "best.safetensors"), weights_of(whole, "best.safetensors"))


def fails(*_, **__):
    raise EnvironmentFailure("The second simulator must have a licence, but there is one licence.")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("compare", fails, "failed (EnvironmentFailure: The second simulator must have a licence, "),
        ("COMPARISON_FRACTION", 0.0, "had no time for an episode of each"),
    ],
)
def test_a_comparison_that_comes_to_nothing_costs_a_sentence(tmp_path, monkeypatch, name, value, why):
    monkeypatch.setattr(run if name == "compare" else choice, name, value)
    stream = io.StringIO()
    assert not train(levers(), tmp_path, stream=stream).interrupted
    best = checkpoint.read_best(tmp_path)
    sentence = f"the best weights are still those of {best.step:,} steps, by their episodes in training"
    assert f"the comparison {why}" in stream.getvalue() and sentence in stream.getvalue()
    assert best.chosen_by == "training"


def test_without_a_comparison_the_last_weights_are_the_best_if_training_says_so(tmp_path, monkeypatch):
    """They have learnt it since the best were scored. A run that goes on, goes on from the best in training."""
    learn(monkeypatch, [0.0] * 16 + [ALWAYS] * 8)
    scored = Monitor._scored_candidate
    early = lambda self, ended: scored(self, ended) if self.trainer.env_steps <= 12 * WINDOW else None  # noqa: E731
    monkeypatch.setattr(Monitor, "_scored_candidate", early)
    monkeypatch.setattr(choice, "COMPARISON_FRACTION", 0.0)
    stream, config = io.StringIO(), levers()
    train(config, tmp_path, stream=stream)
    best, trained = checkpoint.read_best(tmp_path), checkpoint.read_best(tmp_path, compared=False)
    assert (best.chosen_by, best.step) == ("recent", config.steps) and trained.step < best.step
    assert best.score > trained.score and best_logit(tmp_path) == ALWAYS
    sentence = "the best weights are the last: the last episodes of training returned 3.000 in the mean, those of the "
    assert sentence in stream.getvalue()
    monkeypatch.setattr(choice, "COMPARISON_FRACTION", math.inf)
    train(config, tmp_path, resume=True, stream=io.StringIO())  # what was too slow then is compared now
    assert checkpoint.read_best(tmp_path).chosen_by == "comparison"
    assert checkpoint.read_best(tmp_path, compared=False) == trained


def test_the_best_weights_are_written_with_checkpoints_alone(tmp_path, monkeypatch):
    learn(monkeypatch, [0.0] * 8 + [ALWAYS] * 16)
    config, written = levers(), []
    save_best = checkpoint.save_best
    monkeypatch.setattr(checkpoint, "save_best", lambda *a: written.append(a[1].chosen_by) or save_best(*a))
    config = replace(config, training=replace(config.training, checkpoint_seconds=1e9))
    train(config, tmp_path, stream=io.StringIO(), on_report=lambda _: written.append("a report"))
    assert written[-2:] == ["training", "comparison"] and set(written[:-2]) == {"a report"}
    trained = checkpoint.read_best(tmp_path, compared=False)
    assert trained.score == 3.0 and trained.chosen_at < config.steps - 2 * WINDOW, "better ones were found earlier"


def test_a_run_that_dies_leaves_the_best_weights_that_it_found(tmp_path, monkeypatch):
    learn(monkeypatch, [0.0] * 8 + [ALWAYS] * 8)  # and the 17th window has none
    config = levers()
    config = replace(config, training=replace(config.training, checkpoint_seconds=1e9))
    with pytest.raises(IndexError):
        train(config, tmp_path, stream=io.StringIO())
    assert best_logit(tmp_path) == ALWAYS


def test_weights_that_are_not_finite_are_not_compared(tmp_path, monkeypatch):
    learn(monkeypatch, [0.0] * 23 + [math.nan])
    monkeypatch.setattr(run, "compare", None)  # there is nothing to compare with
    train(levers(), tmp_path, stream=io.StringIO())
    assert checkpoint.read_best(tmp_path).chosen_by == "training" and best_logit(tmp_path) == 0.0


def test_runs_that_stop_before_their_steps_or_have_no_score_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "compare", None)
    monkeypatch.setattr(choice, "EPISODES", 10**6)
    train(levers(), tmp_path / "short", stream=io.StringIO())
    assert checkpoint.read_best(tmp_path / "short") is None
    monkeypatch.setattr(choice, "EPISODES", 16)
    learn(monkeypatch, [0.0] * 8)
    interrupt(monkeypatch, update=8)
    assert train(levers(), tmp_path / "cut", stream=io.StringIO()).interrupted
    assert checkpoint.read_best(tmp_path / "cut").step < 8 * WINDOW


def test_what_was_learnt_since_the_last_report_counts(tmp_path, monkeypatch):
    """Reports may be far apart, and what is the best now was nothing yet at the last of them."""
    learn(monkeypatch, [0.0] * 16 + [ALWAYS] * 8)
    interrupt(monkeypatch, update=20)
    config = levers()
    config = replace(config, training=replace(config.training, report_steps=8 * WINDOW))
    stream = io.StringIO()
    summary = train(config, tmp_path, stream=stream)
    assert (summary.interrupted, summary.episodes, summary.episode_return_mean) == (True, 16, 3.0)
    assert stream.getvalue().count("stopping, with a checkpoint") == 1
    assert checkpoint.read_best(tmp_path).chosen_by == "recent" and best_logit(tmp_path) == ALWAYS


@pytest.mark.parametrize(("last", "chosen_by"), [(ALWAYS, "recent"), (NEVER, "training")])
def test_a_run_that_is_cut_keeps_the_better_of_the_scored_weights_and_the_last(tmp_path, monkeypatch, last, chosen_by):
    """It may have learnt since its best were scored. One that goes on does so from the best in training."""
    learn(monkeypatch, [0.0] * 8 + [last] * 16)
    scored = Monitor._scored_candidate
    early = lambda self, ended: scored(self, ended) if self.trainer.env_steps <= 8 * WINDOW else None  # noqa: E731
    monkeypatch.setattr(Monitor, "_scored_candidate", early)
    interrupt(monkeypatch, update=20)
    stream = io.StringIO()
    assert train(levers(), tmp_path, stream=stream).interrupted
    best, trained = checkpoint.read_best(tmp_path), checkpoint.read_best(tmp_path, compared=False)
    assert best.chosen_by == chosen_by and best_logit(tmp_path) == (last if chosen_by == "recent" else 0.0)
    sentence = "the last: " if chosen_by == "recent" else f"still those of {best.step:,} steps"
    assert f"\nthe best weights are {sentence}" in stream.getvalue() and trained.chosen_by == "training"
    train(levers(), tmp_path, resume=True, stream=io.StringIO())
    assert checkpoint.read_best(tmp_path).chosen_by == "comparison"
    assert checkpoint.read_best(tmp_path, compared=False) == trained


def test_where_evaluations_choose_the_last_weights_are_evaluated_too(tmp_path, monkeypatch):
    learn(monkeypatch, [0.0] * 23 + [ALWAYS])
    config = levers()
    training = replace(config.training, evaluation_steps=10 * WINDOW, evaluation_episodes=7)
    monkeypatch.setattr(run, "compare", None)
    train(replace(config, training=training), tmp_path, stream=io.StringIO())
    evaluated = [row["env_steps"] // WINDOW for row in rows(tmp_path) if "evaluation_episodes" in row]
    assert evaluated == [10, 20, 24]
    assert checkpoint.read_best(tmp_path) == Best(config.steps, 3.0, "evaluation", 7, config.steps)


def test_the_scores_are_those_of_the_held_out_episodes(tmp_path):
    config = tiny("merlin", "merlin/TMaze-v0", evaluation_episodes=8)
    train(config, tmp_path, stream=io.StringIO())
    best = checkpoint.read_best(tmp_path)
    with build_environment(config) as environment:
        agent = build_agent(config, environment).eval()
        checkpoint.load_best(tmp_path, agent)
        again = evaluate(agent, environment, episodes=8, seed=config.seed + CHOOSING_SEED)
    assert best.episodes == 8 and best.score == pytest.approx(again["episode_return_mean"], rel=1e-6)
