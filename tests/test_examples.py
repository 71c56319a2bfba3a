"""The examples run, and are short."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

import merlin
from merlin.cli import main
from tests.experiments.in_process import call_runs_in_process

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def needs(package: str):
    """Return what leaves a test out where a package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


def has_rllib() -> bool:
    """Return whether RLlib is installed: Ray has its modules without what these need."""
    return all(map(importlib.util.find_spec, ("ray", "tree", "lz4", "ormsgpack")))


def load(name: str):
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINES = {"estimators": 320, "pbt_with_ray": 80, "codebook": 120, "discrete_sac": 151, "ppo_with_memory": 100}
LINES |= dict.fromkeys(("predictor_for_stable_baselines3", "memory_in_torchrl", "memory_in_rllib"), 100)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path):
    most = LINES.get(path.stem, 80 if path.stem.endswith("of_your_own") else 65)
    assert len(path.read_text(encoding="utf-8").splitlines()) < most


def test_train_from_python(tmp_path, capsys):
    load("train_from_python").main(2_000, str(tmp_path / "run"), seed=3, slots=1)
    assert "of 2.00 with perfect memory" in capsys.readouterr().out
    config = merlin.load_config(tmp_path / "run")
    assert (config.seed, config.model.memory_size) == (3, 1)


def test_write_your_own_task(tmp_path):
    assert 0 <= load("write_your_own_task").main(2_000, str(tmp_path / "run")) <= 1


def test_memory_alone_learns_what_a_guess_cannot():
    assert load("memory_alone").main(150) > 0.9


def test_memory_alone_does_not_learn_with_one_slot():
    # At best it names the last symbol: the answer to the last but one, which is a quarter of the questions.
    assert load("memory_alone").main(150, slots=1) < 0.25 + 0.1


@pytest.mark.parametrize("slots", [16, 1])
def test_predictor_in_your_agent(slots):
    assert 0 <= load("predictor_in_your_agent").main(4, slots=slots) <= 1


@pytest.mark.parametrize("core", ["memory", "lstm"])
def test_ppo_with_memory(core, capsys):
    assert 0 <= load("ppo_with_memory").main(core, 0.5) <= 1
    assert capsys.readouterr().out.startswith(f"{core}: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ppo_with_memory_keeps_what_it_learns():
    assert load("ppo_with_memory").main("memory", 60, 1) > 0.9, "half succeed without memory"


SCRIPTS = [path for path in sorted((ROOT / "examples").glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_tells_what_it_does(path, monkeypatch, capsys):
    """Before it does anything; one that needs another package says so at its top."""
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.delitem(gymnasium.registry, "examples/TwoDoors-v0", raising=False)  # which registers itself again
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as missing:
        pytest.skip(f"needs {missing.name}")
    about, _, _ = path.read_text().removeprefix('"""').partition("\n")
    assert ended.value.code == 0 and about in capsys.readouterr().out


def run_in_process(*arguments: str) -> str:
    """Return what an example prints in a process of its own: its library starts workers, and warns of much."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@needs("torchrl")
def test_memory_in_torchrl():
    printed = run_in_process("examples/memory_in_torchrl.py", "2048", "3", "1", "1")
    assert 0 <= float(re.search(r"success ([\d.]+) of the last \d+ episodes", printed)[1]) <= 1


@pytest.mark.skipif(not has_rllib(), reason="needs ray[rllib]")
def test_memory_in_rllib():
    printed = run_in_process("examples/memory_in_rllib.py", "2", "3", "256", "1", "1")
    assert re.search(r"^512 steps  return -?[\d.]+$", printed, re.MULTILINE)


@needs("stable_baselines3")
def test_predictor_for_stable_baselines3(tmp_path):
    example = load("predictor_for_stable_baselines3")
    assert 0 <= example.main(256, 1_024, 3, slots=1, run_dir=str(tmp_path / "run")) <= 1


@needs("stable_baselines3")
def test_what_stable_baselines3_sees_is_what_the_predictor_perceives(tmp_path):
    example = load("predictor_for_stable_baselines3")
    length = {"length": 3}
    run = merlin.train("merlin/TMaze-v0", tmp_path / "run", steps=256, env_kwargs=length, device="cpu")
    agent = run.agent.agent
    features = example.PredictorFeatures(example.make_vec_env("merlin/TMaze-v0", 3, seed=1, env_kwargs=length), agent)
    plain = example.make_vec_env("merlin/TMaze-v0", 3, seed=1, env_kwargs=length)
    state, is_first, reward = agent.initial_state(3), torch.ones(3, dtype=torch.bool), torch.zeros(3)
    seen, observation = features.reset(), plain.reset()
    for _ in range(12):
        output, state = agent.step(observation, state, is_first, reward, greedy=True)
        np.testing.assert_allclose(seen[:, : agent.config.latent_size], output.latent, rtol=1e-5, atol=1e-6)
        seen = features.step(output.action.numpy())[0]
        observation, reward, done, _ = plain.step(output.action.numpy())
        is_first, reward = torch.from_numpy(done), torch.from_numpy(reward)
    features.close()


@needs("optuna")
@pytest.mark.filterwarnings("ignore")
def test_search_with_optuna(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 0 <= load("search_with_optuna").main(2, 1_000) <= 2


def test_estimators(tmp_path, monkeypatch, capsys):
    example = load("estimators")
    exact, reinmax, start = (
        example.train(example.VAE, name, 1, 1e-2, 1, steps)["curve"][-1][1]
        for name, steps in (("exact", 200), ("reinmax", 200), ("exact", 0))
    )
    assert abs(exact - reinmax) < 1.0 and exact < 0.7 * start
    predicted = example.train(example.Prediction, "st_gumbel", 1, 1e-2, 1, 200)["curve"]
    assert predicted[-1][1] < 0.8 * predicted[0][1]
    monkeypatch.setattr(example, "ESTIMATORS", {"ReinMax": ("reinmax", 1), "REINFORCE": ("score", 2)})
    argv = ["estimators.py", "--only", "vae", "prediction", "--steps", "0", "--seeds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    example.main()
    assert "| exact gradient |" in capsys.readouterr().out
    assert {x.name for x in tmp_path.iterdir()} == {f"{x}.{y}" for x in ("vae", "prediction") for y in ("json", "png")}


def test_codebook(tmp_path, monkeypatch, capsys):
    example = load("codebook")
    views = example.collect(1_000, num_envs=16, steps=4)
    for form in ("loss", "EMA, re-seeded"):
        (before, *_), (after, perplexity, used) = (
            example.measure(example.train(form, 1, steps, views), views) for steps in (1, 40)
        )
        assert after < 0.3 * before and 2 < perplexity <= used <= example.SIZE
    monkeypatch.setattr(example, "collect", lambda *_, **__: views)
    found = example.main([1, 2], 1, tmp_path / "views.png")
    assert list(found) == list(example.FORMS) and all(len(rows) == 2 for rows in found.values())
    assert capsys.readouterr().out.count("| mean |") == 4
    picture = torch.tensor(np.array(Image.open(tmp_path / "views.png")))
    assert picture.shape == (2 * (64 + 8), 12 * (64 + 8), 3)
    tiles = picture.view(2, 72, 12, 72, 3)[:, 4:68:2, :, 4:68:2].permute(0, 2, 4, 1, 3)
    assert all((tile == views.mul(255).round()).flatten(1).all(1).any() for tile in tiles[0]), "views above"


def test_discrete_sac(capsys, monkeypatch):
    example = load("discrete_sac")
    assert max(example.train("exact", 1, 2_400)) > 60, "without learning, greedy play falls in about 10 steps"
    example.main(list(example.SAMPLERS), [1], 320)
    printed = capsys.readouterr().out
    assert all(f"| {name} | 1 | " in printed for name in example.SAMPLERS)

    monkeypatch.setattr(example, "HIDDEN", ())  # where critics are linear and alike, straight-through is exact
    observation, gradients = torch.randn(8, 4), {}
    for name in ("exact", "straight_through", "gumbel_softmax"):
        torch.manual_seed(0)
        agent = example.SAC(name)
        for x in agent.critics.parameters():
            x.data[1] = x.data[0]
        agent.expected_q(agent.policy(observation), observation).sum().backward()
        gradients[name] = torch.cat([x.grad.flatten() for x in agent.actor.parameters()])
        assert all(x.grad is None for x in agent.critics.parameters()), "the actor's gradient teaches no critic"
    torch.testing.assert_close(gradients["straight_through"], gradients["exact"])
    assert not torch.allclose(gradients["gumbel_softmax"], gradients["exact"])


def test_watch_an_episode(tmp_path, capsys):
    out = load("watch_an_episode").main(out=tmp_path / "episode.gif", steps=2_000)
    printed = capsys.readouterr().out
    assert out.stat().st_size > 1_000 and "step 9" in printed
    found = re.findall(
        r"step (\d+): .*; key [123] of the policy reads most from slot (\d+), written at step (\d+)", printed
    )
    assert len(found) == 8, "every step but the first reads one of the 9 slots, which an earlier step wrote"
    assert all(int(slot) < 9 and int(writer) < int(step) for step, slot, writer in found)


OWN = {
    "agent": ["merlin/TMaze-v0", "--agent", "agent_of_your_own:GRUAgent"],
    "memory": ["merlin/MemoryGame-v0", "--set", "model.memory=memory_of_your_own:RingMemory", "model.latent_size=8"],
}


@pytest.mark.parametrize("what", OWN)
def test_agent_and_memory_of_your_own_are_trained_resumed_evaluated_watched_and_analysed(
    what, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT / "examples")
    call_runs_in_process(monkeypatch)
    run_dir, few, here = str(tmp_path / "run"), ["--episodes", "8"], ["--import-from", "."]
    size = ["--num-envs", "8"]
    assert main(["train", *OWN[what], *size, "--steps", "2000", "--run-dir", run_dir]) == 0
    assert "--import-from ." in capsys.readouterr().out
    assert main(["train", "--resume", run_dir, *here, "--steps", "3000"]) == 0
    assert main(["evaluate", run_dir, *here, *few]) == 0
    if what == "memory":
        for ablation in ("zeroed", "frozen", "shuffled"):
            assert main(["evaluate", run_dir, *here, *few, "--memory", ablation]) == 0
    for name in ("episode.html", "episode.png"):
        assert main(["watch", run_dir, *here, "--out", str(tmp_path / name)]) == 0
    assert main(["analyse", run_dir, *here, *few]) == 0
    assert main(["compare", *OWN[what][:1], *compared(what), "--steps", "500", "--seeds", "1", *few,
                 "--out", str(tmp_path / "compare")]) == 0  # fmt: skip
    assert "| 1 |" in capsys.readouterr().out


@pytest.mark.parametrize("remembers", [True, False])
def test_an_agent_of_your_own_sees_the_past_unless_told(remembers):
    example = load("agent_of_your_own")
    config = example.GRUConfig(hidden_size=8, remembers=remembers)
    spaces = {"observation": gymnasium.spaces.Discrete(5)}
    agent = example.GRUAgent(spaces, gymnasium.spaces.Discrete(3), config)
    empty = agent.initial_state(2)
    code = agent.encode({"observation": torch.tensor([1, 4])}, empty.previous_action, torch.zeros(2))
    states = (empty, empty._replace(hidden=torch.ones(2, 8)))
    now, later = (agent.perceive(code, state).activations.features for state in states)
    assert torch.equal(now, later) != remembers


def compared(what: str) -> list[str]:
    """Return the arguments that compare one's own with one of the package's."""
    if what == "agent":
        return ["--agents", "agent_of_your_own:GRUAgent", "rl-lstm"]
    return [*OWN["memory"][1:], "--agents", "merlin", "rl-mem"]


@needs("ray")
def test_pbt_with_ray(tmp_path):
    printed = run_in_process("examples/pbt_with_ray.py", "2", "3", "1024", str(tmp_path / "pbt"))
    best = Path(printed.rpartition("merlin evaluate ")[2].strip())
    rows = [json.loads(line) for line in (best / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["env_steps"] == 3 * 1024 and (best / "config.json").exists()
