"""Training: exact resume, determinism, schedules, and bad input that must not reach the weights."""

import io
import json
from dataclasses import replace

import gymnasium
import pytest
import torch

from merlin.agents import AGENTS
from merlin.agents.learner import Learner
from merlin.agents.merlin import Merlin
from merlin.agents.merlin.predictor import Predictor
from merlin.agents.rl_lstm import RLLSTM
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.objectives.reconstruction import TAKEN
from merlin.runs.metrics import Means
from merlin.runs.monitor import _next
from merlin.runs.presets import RunConfig, preset
from merlin.runs.run import build_agent, build_environment, load_config, train
from merlin.training import checkpoint
from merlin.training.plain import to_plain
from merlin.training.trainer import Trainer
from tests.environments import examples as environments  # noqa: F401 (they register themselves)

pytestmark = pytest.mark.usefixtures("no_pictures")


def tiny(agent: str = "merlin", steps: int = 8 * 4 * 6, **training) -> RunConfig:
    config = preset(agent)
    sizes = {"latent_size": 4, "hidden_size": 8, "policy_hidden_size": 8, "head_size": 8, "prefill_steps": 64}
    if agent == "dreamer":
        sizes |= {"replay_windows": 2, "replay_rows": 96, "imagination_length": 4}
        sizes |= {"deterministic_size": 8, "latent_groups": 3, "latent_classes": 4}
    model = replace(config.model, **{name: size for name, size in sizes.items() if hasattr(config.model, name)})
    training = replace(config.training, unroll_length=4, **training)
    return replace(config, num_envs=8, steps=steps, model=model, training=training, device="cpu")


def weights(agent) -> list[torch.Tensor]:
    return [x.clone() for x in agent.state_dict().values()]


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    "training", [{}, {"passes": 2}, {"passes": 2, "minibatches": 2, "final_learning_rate_fraction": 0.1}]
)
def test_resume_is_bit_for_bit_an_uninterrupted_run(tmp_path, name, training):
    if name == "merlin":
        training = {"policy_passes": 2} | training
    if name == "dreamer" and "passes" in training:
        pytest.skip("learns from a replay")
    config = tiny(name, **training)
    whole = tmp_path / "whole"
    train(config, whole)

    halves = tmp_path / "halves"
    stopped = [0]

    def stop_after_three(self):
        stopped[0] += 1
        return original(self) if stopped[0] <= 3 else pytest.fail("trained on after the stop")

    original = Trainer.update
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=config.seed)
        for _ in range(3):
            stop_after_three(trainer)
        from merlin.runs.run import start

        start(config, halves)
        checkpoint.save(halves, trainer.env_steps, agent, {"trainer": trainer.state_dict(), "wall_seconds": 1.0})
    train(load_config(halves), halves, resume=True)

    finals = []
    for directory in (whole, halves):
        with build_environment(config) as environment:
            agent = build_agent(config, environment)
            _, rest = checkpoint.load_latest(directory, agent)
            finals.append((weights(agent), rest["trainer"]))
    (first, first_rest), (second, second_rest) = finals
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert torch.equal(first_rest["shares"][0]["generator"], second_rest["shares"][0]["generator"])
    assert first_rest["env_steps"] == second_rest["env_steps"] == config.steps


def test_a_seed_gives_one_run_and_another_seed_another(tmp_path):
    rows = []
    for index, seed in enumerate((1, 1, 2)):
        directory = tmp_path / str(index)
        train(replace(tiny(), seed=seed), directory)
        clock = ("wall_seconds", "env_steps_per_second", "rollout_seconds", "learning_seconds")
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        rows.append([{k: v for k, v in line.items() if k not in clock} for line in lines])
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("supported", [True, False])
def test_products_take_the_precision_asked_for_or_say_that_they_cannot(tmp_path, monkeypatch, supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    stream, found = io.StringIO(), []
    note = lambda: found.append(torch.get_float32_matmul_precision())  # noqa: E731
    train(tiny(matmul_precision="medium"), tmp_path / "run", stream=stream, on_start=note)
    note()
    assert found == ["medium", "highest"], "which is the process's own"
    assert ("does not multiply bfloat16" in stream.getvalue()) is not supported


def test_metrics_have_their_names_and_units(tmp_path):
    train(tiny(), tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {
        "env_steps", "wall_seconds", "env_steps_per_second", "episode_return_mean", "episode_return_std", "episodes",
        "kl_nats", "kl_cost", "card_nats", "card_accuracy", "card_recall", "position_nats", "action_accuracy",
        "entropy_nats", "card_explained", "position_explained", "observation_explained", "reward_explained",
        "reward_min", "reward_max",
    } <= row.keys()  # fmt: skip
    assert row["env_steps"] == 8 * 4 * 6


def test_max_seconds_ends_a_run_as_finished_with_a_checkpoint(tmp_path):
    summary = train(tiny(steps=10**9), tmp_path / "run", max_seconds=1.0)
    assert not summary.interrupted and 0 < summary.env_steps < 10**9
    assert checkpoint.steps(tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["env_steps"] == summary.env_steps  # what came after the last whole report is reported too
    assert 1.0 <= last["wall_seconds"] <= checkpoint.read_wall_seconds(tmp_path / "run")


def test_learning_rates_and_entropy_follow_their_schedules():
    config = tiny(final_learning_rate_fraction=0.0, learning_rate=1e-2, policy_learning_rate=1e-3)
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=64, seed=1)
        rates = []
        for _ in range(2):
            trainer.update()
            rates.append([trainer.learner.optimizers[name].param_groups[0]["lr"] for name in ("predictor", "policy")])
    assert rates[0] == [1e-2, 1e-3] and rates[1] == pytest.approx([5e-3, 5e-4])


def test_a_reward_that_is_not_finite_stops_before_it_is_learnt_from():
    config = tiny()
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=64, seed=1)
        before, collect = weights(agent), trainer.rollout.collect

        def poisoned(length, records):
            window, episodes = collect(length, records)
            window.unroll.reward[2, 3] = torch.nan
            return window, episodes

        trainer.rollout.collect = poisoned
        with pytest.raises(MerlinError, match="Rewards must be finite"):
            trainer.update()
    assert all(torch.equal(x, y) for x, y in zip(before, weights(agent), strict=True))


def test_gradients_that_are_not_finite_stop_before_the_step():
    config = tiny()
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=64, seed=1)
        trainer.update()
        with torch.no_grad():
            agent.predictor.value_head[2].bias.fill_(1e30)
        before = [x.detach().clone() for x in agent.parameters()]
        with pytest.raises(MerlinError, match="Gradients must be finite"):
            trainer.update()
    assert all(torch.equal(x, y) for x, y in zip(before, agent.parameters(), strict=True))


def test_an_observation_that_ends_an_episode_must_be_finite_too():
    config = replace(tiny("rl-lstm"), task="test/NotFiniteAtLast-v0")
    with build_environment(config) as environment:
        trainer = Trainer(build_agent(config, environment), environment, config.training, total_steps=64, seed=1)
        with pytest.raises(MerlinError, match=r"environment 0 of test/NotFiniteAtLast-v0 returned nan at \(0,\)"):
            trainer.update()


@pytest.mark.parametrize(("rate", "expected"), [(None, 2e-3), (1e-5, 1e-5)])
def test_a_policy_has_its_own_rate_or_that_of_the_rest(rate, expected):
    config = tiny(learning_rate=2e-3, policy_learning_rate=rate)
    with build_environment(config) as environment:
        trainer = Trainer(build_agent(config, environment), environment, config.training, total_steps=64, seed=1)
    assert trainer.learner.optimizers["policy"].param_groups[0]["lr"] == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("policy_learning_rate", 0.0), ("max_grad_norm", -1.0), ("evaluation_steps", 0), ("evaluation_episodes", 0)],
)
def test_settings_that_have_no_meaning_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, but is {value}: take another"):
        tiny(**{name: value})


def test_a_checkpoint_without_the_sums_of_v_begins_them_anew():
    """As those of version 0.2.0."""
    config = tiny()
    with build_environment(config) as environment:
        trainer = Trainer(build_agent(config, environment), environment, config.training, total_steps=64, seed=1)
        trainer.update()
        saved = to_plain(trainer.state_dict())
        assert saved["shares"][0]["rollout"]["value_sums"].abs().sum() > 0
        del saved["shares"][0]["rollout"]["value_sums"]
        again = Trainer(build_agent(config, environment), environment, config.training, total_steps=64, seed=1)
        again.load_state_dict(saved)
        assert again.rollout.state.value_sums.eq(0).all()
        assert torch.equal(again.rollout.state.episode_length, trainer.rollout.state.episode_length)


def test_what_cannot_be_saved_goes_on_with_other_episodes(tmp_path, monkeypatch):
    """The episodes that a gymnasium environment was in are lost; those that the run began with must not come again."""
    config = replace(tiny("rl-lstm", steps=8 * 4 * 2), task="test/Episodes-v0")
    train(config, tmp_path)
    seeds, reset = [], Environment.reset
    monkeypatch.setattr(Environment, "reset", lambda self, seed, **_: seeds.append(seed) or reset(self, seed))
    for updates in (4, 6):
        train(replace(config, steps=8 * 4 * updates), tmp_path, resume=True)
    assert seeds[0::2] == [config.seed] * 2 and len({config.seed, *seeds[1::2]}) == 3


@pytest.mark.parametrize(("start", "expected"), [(0, 3000), (2048, 3000), (3000, 6000), (14_336, 15_000)])
def test_evaluations_come_at_the_same_steps_however_often_a_run_is_resumed(start, expected):
    assert _next(3000, start) == expected and _next(None, start) == float("inf")


def test_more_minibatches_than_environments_are_refused():
    config = tiny()
    training = replace(config.training, minibatches=9)
    with build_environment(config) as environment, pytest.raises(MerlinError, match="minibatches"):
        Trainer(build_agent(config, environment), environment, training, total_steps=1, seed=1)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_policy_may_learn_more_often_than_the_rest(minibatches):
    learnt = []
    for policy_passes in (1, 3):
        config = tiny(policy_passes=policy_passes, minibatches=minibatches)
        with build_environment(config) as environment:
            agent = build_agent(config, environment)
            trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=1)
            metrics, _ = trainer.update()
            learnt.append(({name: x.clone() for name, x in agent.state_dict().items()}, metrics["policy_kl_nats"]))
    (once, kl_once), (thrice, kl_thrice) = learnt
    assert {name.partition(".")[0] for name in once if not torch.equal(once[name], thrice[name])} == {"policy"}
    assert kl_once != kl_thrice


def test_a_policy_that_is_no_part_of_its_own_cannot_learn_more_often():
    config = tiny("rl-lstm", policy_passes=2)
    with build_environment(config) as environment, pytest.raises(MerlinError, match="has policy_passes of its own"):
        Trainer(build_agent(config, environment), environment, config.training, total_steps=1, seed=1)


class Seldom(RLLSTM):
    """Tells of something in every other window, with its graph."""

    count = 0

    def loss(self, *arguments):
        losses = super().loss(*arguments)
        self.count += 1
        told = {"seldom": 7 + 0 * losses.total} if self.count % 2 else {}
        return losses._replace(metrics=losses.metrics | told)


def test_a_metric_that_some_windows_lack_is_a_mean_over_those_that_tell_it(tmp_path):
    config = replace(tiny("rl-lstm", report_steps=2 * 8 * 4), agent=f"{__name__}:Seldom")
    train(config, tmp_path / "run", stream=io.StringIO())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["seldom"] for row in rows] == [7] * 3


def test_means_go_on_also_from_a_single_number_of_windows():
    means, again, old = Means(), Means(), Means()
    means.add({"loss": torch.tensor(1.0), "nats": torch.tensor(4.0, requires_grad=True)})
    means.add({"loss": torch.tensor(3.0)})
    assert means.means() == {"loss": 2, "nats": 4} and not means.sums["nats"].requires_grad
    again.load_state_dict(means.state_dict(), torch.device("cpu"))
    again.add({"nats": torch.tensor(6.0)})
    assert again.means() == {"loss": 2, "nats": 5} and means.means()["nats"] == 4
    old.load_state_dict({"sums": {"loss": torch.tensor(6.0)}, "windows": 3}, torch.device("cpu"))
    assert old.means() == {"loss": 2}


class OwnPredictor(Predictor):
    pass


class OwnPart(Merlin):
    """MERLIN with a predictor, a part and a write of its own."""

    predictor_class = OwnPredictor

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.part = torch.nn.Linear(2, 3)

    def advance(self, perceived, action):
        return super().advance(perceived, action)


class LeftOut(OwnPart):
    def parameter_groups(self):
        return {"predictor": list(self.predictor.parameters()), "policy": list(self.policy.parameters())}


class Twice(OwnPart):
    def parameter_groups(self):
        return super().parameter_groups() | {"part": list(self.part.parameters())}


class Frozen(LeftOut):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.part.requires_grad_(False)


def owned_by(agent_class: type[Merlin]) -> list[str]:
    """The optimisers that own the part of such an agent."""
    config = tiny()
    with build_environment(config) as environment:
        agent = agent_class(environment.spaces, environment.action_space, config.model)
        assert type(agent.predictor) is OwnPredictor and agent.memory is agent.predictor.memory
        groups = Trainer(agent, environment, config.training, total_steps=1, seed=1).learner.groups
    return [name for name, group in groups.items() if any(x is agent.part.weight for x in group)]


def test_parts_that_a_subclass_adds_are_learnt_and_none_is_left_out_without_a_word():
    assert owned_by(OwnPart) == ["predictor"] and owned_by(Frozen) == []
    with pytest.raises(MerlinError, match=r"parameter_groups of LeftOut, but part\.weight is in none: put it into one"):
        owned_by(LeftOut)
    with pytest.raises(MerlinError, match=r"parameter_groups of Twice, but part\.weight is in 2: put it into one al"):
        owned_by(Twice)


def test_a_policy_that_takes_other_steps_than_merlins_does_not_learn_more_often_from_those():
    config = tiny(policy_passes=2)
    with build_environment(config) as environment:
        agent = OwnPart(environment.spaces, environment.action_space, config.model)
        with pytest.raises(MerlinError, match="OwnPart has its own advance: override policy_losses too"):
            Trainer(agent, environment, config.training, total_steps=1, seed=1)


def test_minibatches_of_one_pass_have_the_gradient_of_the_whole():
    """Their mean is it, since every environment counts the same."""
    config = tiny()
    with build_environment(config) as environment:
        agent = build_agent(config, environment).eval()
        trainer = Trainer(agent, environment, replace(config.training, minibatches=2), total_steps=64, seed=1)
        window, _ = trainer.rollout.collect(4)
        agent.predictor.observation_nats.fill_(1.0)
        agent.losses(window.unroll, window.state)[0].total.backward()
        whole = [p.grad.clone() for p in agent.parameters()]
        agent.zero_grad()
        for part, part_state in trainer.learner._minibatches(window):
            (agent.losses(part, part_state)[0].total / 2).backward()
    for x, p in zip(whole, agent.parameters(), strict=True):
        torch.testing.assert_close(p.grad, x, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("task", "ends"),
    [("merlin/Memory-v0", True), ("merlin/TransientInstruction-v0", True), ("merlin/GoalMaze-v0", False)],
)
def test_time_that_is_part_of_the_task_ends_its_episodes(task, ends):
    """In a goal maze time is up while there is more to earn; in the others who is not done in time has failed."""
    config = preset("merlin", task, {"max_steps": 15})
    with build_environment(config, 8) as environment:
        environment.reset(0)
        steps = [environment.step(torch.zeros(8, dtype=torch.int64)) for _ in range(15)]  # turning on the spot
        rollout = Trainer(
            build_agent(config, environment), environment, config.training, total_steps=64, seed=0
        ).rollout
        unroll = rollout.collect(16)[0].unroll
    assert torch.equal(steps[-1].terminated, torch.full((8,), ends)) and steps[-1].truncated.all() != ends
    assert unroll.is_end.any() and ((unroll.discount[unroll.is_end] == 0).all() if ends else unroll.discount.all())


class Replayed:
    """A source that gives the first window out again, and remembers how often it was asked."""

    def __init__(self, rollout):
        self.rollout, self.first, self.asked = rollout, None, 0

    def collect(self, unroll_length, records=False):
        window, episodes = self.rollout.collect(unroll_length, records)
        self.first, self.asked = self.first or window, self.asked + 1
        return self.first, episodes

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


class Counted(Learner):
    """A learner that changes nothing and keeps what it was given."""

    def __init__(self):
        self.given, self.left = [], []

    def update(self, window, left):
        self.given.append(window)
        self.left.append(left)
        return {"loss": torch.zeros(())}

    def state_dict(self):
        return {"updates": len(self.given)}

    def load_state_dict(self, state):
        self.updates = state["updates"]


def test_an_agent_may_bring_its_learner_and_its_source():
    config = tiny("rl-lstm")
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        agent.source, agent.learner = Replayed, lambda *_: Counted()
        make = lambda: Trainer(agent, environment, config.training, total_steps=8 * 4 * 4, seed=1)  # noqa: E731
        trainer = make()
        before = weights(agent)
        for _ in range(3):
            trainer.update()
        assert all(torch.equal(x, y) for x, y in zip(before, weights(agent), strict=True))
        learner = trainer.learner
        assert learner.left == [1.0, 0.75, 0.5] and all(window is learner.given[0] for window in learner.given)
        other = make()
        other.load_state_dict(trainer.state_dict())
    assert other.source.asked == 3 and other.learner.updates == 3 and other.env_steps == trainer.env_steps


class Named(gymnasium.Env):
    """Entries of these names."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, names="x"):
        self.observation_space = gymnasium.spaces.Dict({name: gymnasium.spaces.Discrete(3) for name in names.split()})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {name: int(self.np_random.integers(3)) for name in self.observation_space}, {}

    def step(self, action):
        return self.reset()[0], float(action), False, False, {}


gymnasium.register("test/Named-v0", entry_point=Named)


@pytest.mark.parametrize("agent", ["merlin", "dreamer"])
def test_metrics_of_an_entry_are_not_taken_for_those_of_something_else(agent):
    """`value_explained` is of V, whatever an entry is called; an entry `value` has metrics of its own."""

    def have_metrics(names):
        config = replace(tiny(agent), task="test/Named-v0", env_kwargs={"names": names})
        with build_environment(config) as environment:
            trainer = Trainer(build_agent(config, environment), environment, config.training, total_steps=999, seed=1)
            keys = {key for _ in range(5) for key in trainer.update()[0]}
        return {key.rpartition("_")[0] for key in keys if key.endswith(("_nats", "_accuracy", "_recall", "_explained"))}

    others = have_metrics("x") - {"x"}
    assert others - {"observation"} <= TAKEN, "each name that something else has is known"
    assert have_metrics("value reward observation y") == others | {"entry_value", "entry_reward", "y"} | {
        "entry_observation"
    }
