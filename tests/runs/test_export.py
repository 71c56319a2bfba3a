"""A step exported by torch.export or ONNX computes the agent's numbers, and the command says by how much it differs."""

import importlib.util
import io
import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import merlin
from merlin import cli, errors
from merlin.errors import MerlinError
from merlin.runs import export as exports
from merlin.runs.export import StepProgram, export, largest_difference, named_state, play
from tests.agents.helpers import ACTION_SPACES, EVERY_KIND, VARIANTS, make_agent, random_observation, tensors
from tests.agents.test_border import observations
from tests.environments import examples as examples  # (registers test/Masked-v0)

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxruntime and onnxscript are an extra")


def of_nowhere(name: str):
    return replace(merlin.preset("merlin" if name in VARIANTS else name), task="nowhere/Nothing-v0", device="cpu")


@pytest.mark.parametrize("name", ["merlin", "merlin-policy-encoder", "ftw", "rl-lstm", "rl-mem"])
@pytest.mark.parametrize(
    "action_space, box_actions",
    [("discrete", "beta"), ("multi", "beta"), ("box", "gaussian"), ("box", "beta"), ("mixed", "gaussian")],
)
def test_the_program_is_a_greedy_step(name, action_space, box_actions):
    agent = make_agent(name, action_space, spaces=EVERY_KIND, box_actions=box_actions)
    if box_actions == "gaussian":  # whose means leave the bounds
        for part in getattr(agent.actions, "parts", [agent.actions]):
            getattr(part, "half_range", torch.zeros(0)).mul_(50.0)
    program, state = StepProgram(agent), agent.initial_state(3)
    for t in range(7):  # more than the 5 slots
        seen = {key: torch.from_numpy(x) for key, x in observations(t).items()}
        is_first, reward = torch.tensor([t == 0, t == 3, t == 0]), torch.tensor([0.5, 1.0, -1.0])
        found = program(program.inputs(seen, named_state(state), is_first, reward))
        output, state = agent.step(seen, state, is_first, reward, greedy=True)
        if box_actions == "gaussian":
            box, low, high = (slice(1, 3), -1, 2) if action_space == "mixed" else (slice(None), -1, 1)
            assert ((output.action[:, box] < low) | (output.action[:, box] > high)).any()
            output.action[:, box] = output.action[:, box].clamp(low, high)
        for key in ("action", "policy_parameters", "value"):
            torch.testing.assert_close(found[key], getattr(output, key))
        for x, y in zip(named_state(state).values(), tensors(state), strict=True):
            assert x is y
        torch.testing.assert_close({key: found[key] for key in named_state(state)}, named_state(state))


@pytest.mark.parametrize("parameter, row", [(0.2, [4, 0.8, 0.8, 5, 0]), (9.0, [4, 2, 2, 9, 0])])
def test_actions_of_a_tuple_lie_in_it(parameter, row, monkeypatch):
    """Means of 0.5 + 1.5 x and 4.5 + 4.5 x, and choices that are all alike likely."""
    boxes = spaces.Box(-1, 2, (2,)), spaces.Box(0, 9, (), np.int8)
    monkeypatch.setitem(ACTION_SPACES, "tuple", spaces.Tuple([spaces.Discrete(3, start=4), *boxes, spaces.Discrete(2)]))
    agent = make_agent("rl-lstm", "tuple", box_actions="gaussian")
    parameters = torch.full((3, agent.actions.num_parameters), parameter)
    monkeypatch.setattr(agent, "heads", lambda *_: (parameters, torch.zeros(3)))
    program, is_first = StepProgram(agent), torch.ones(3, dtype=torch.bool)
    inputs = program.inputs(random_observation(3), named_state(agent.initial_state(3)), is_first, torch.zeros(3))
    expected = torch.tensor([row] * 3, dtype=torch.float64)
    torch.testing.assert_close(program(inputs)["action"], expected, rtol=1e-6, atol=0)


KINDS = {
    "merlin": ("card", "picture"),
    "merlin-policy-encoder": ("card", "grid"),
    "ftw": ("card", "place"),
    "rl-mem": ("grid", "place", "switches"),
    "rl-lstm": ("words", "grey"),
}
FORMS = [
    ("torch", "merlin", "discrete", None),
    ("torch", "merlin-policy-encoder", "multi", None),
    ("torch", "ftw", "multi", None),
    ("torch", "rl-mem", "multi", 2),
    ("torch", "rl-lstm", "box", 1),
    ("torch", "rl-lstm", "box_of_betas", None),
    ("torch", "rl-lstm", "mixed", None),
    pytest.param("onnx", "merlin", "box", None, marks=needs_onnx),
    pytest.param("onnx", "rl-lstm", "box_of_betas", 2, marks=needs_onnx),
    pytest.param("onnx", "rl-mem", "discrete", 2, marks=needs_onnx),
    pytest.param("onnx", "rl-lstm", "multi", 1, marks=needs_onnx),
]


@pytest.mark.parametrize("form, name, action_space, batch_size", FORMS)
def test_what_is_exported_computes_the_agents_numbers(form, name, action_space, batch_size, tmp_path):
    """Of vectors, pictures, grids, categories, switches and texts, which an agent reads no further than they reach."""
    spaces = {key: EVERY_KIND[key] for key in KINDS[name]}
    space, box_actions = ("box", "beta") if action_space == "box_of_betas" else (action_space, "gaussian")
    agent = make_agent(name, space, spaces=spaces, box_actions=box_actions)
    exported = export(agent, of_nowhere(name), tmp_path / "agent", form, batch_size, steps=12)
    assert exported.path.stat().st_size > 1000 and exported.steps == 12 and not exported.is_of_environment
    assert exported.difference <= (1e-6 if form == "torch" else 1e-5)


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_a_task_that_gives_masks_has_them_among_the_inputs(form, tmp_path):
    """Its environment ends the run of whoever does what is not allowed."""
    config = replace(of_nowhere("rl-lstm"), task="test/Masked-v0")
    with merlin.build_environment(config, 1) as environment:
        agent = merlin.build_agent(config, environment)
    exported = export(agent, config, tmp_path / "agent", form, steps=12)
    assert exported.is_of_environment and exported.difference < 1e-5
    inputs = play(StepProgram(agent), config, 3, 1)[0][0]
    for choice in range(3):
        inputs["observation.action_mask"] = torch.eye(3, dtype=torch.bool)[[choice] * 3]
        if form == "torch":
            action = torch.export.load(exported.path).module()(inputs)["action"]
        else:
            session = importlib.import_module("onnxruntime").InferenceSession(exported.path)
            action = session.run(["action"], {x.name: inputs[x.name].numpy() for x in session.get_inputs()})[0]
        assert action.tolist() == [choice - 1] * 3


def test_a_torch_program_is_loaded_without_merlin_and_says_what_its_spaces_are(tmp_path):
    agent = make_agent("rl-mem", "discrete", spaces={name: EVERY_KIND[name] for name in ("card", "place")})
    path = export(agent, of_nowhere("rl-mem"), tmp_path / "agent.pt2", "torch", None, steps=4).path
    extra = {"merlin.json": ""}
    program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    about = json.loads(extra["merlin.json"])
    assert about["agent"] == "rl-mem" and list(about["spaces"]["spaces"]["observation"]) == ["card", "place"]
    for batch_size in (1, 5):
        state = named_state(agent.initial_state(batch_size))
        inputs = {"observation.card": torch.zeros(batch_size, dtype=torch.int64)}
        inputs |= {"observation.place": torch.zeros(batch_size, 3)} | state
        inputs |= {"is_first": torch.ones(batch_size, dtype=torch.bool), "reward": torch.zeros(batch_size)}
        assert program(inputs)["action"].shape == (batch_size,)


def test_a_program_that_differs_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "TOLERANCE", -1.0)
    agent = make_agent("rl-lstm", "discrete", spaces={"card": EVERY_KIND["card"]})
    with pytest.raises(MerlinError, match=r"differs by 0: nothing was written"):
        export(agent, of_nowhere("rl-lstm"), tmp_path / "agent.pt2", steps=3)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_of_any_output_is_found():
    agent = make_agent("rl-lstm", "discrete", spaces={"card": EVERY_KIND["card"]})
    program = StepProgram(agent)
    rows, _ = exports.play(program, of_nowhere("rl-lstm"), 2, 4)
    assert largest_difference(program, program, rows) == 0
    assert any(row["is_first"].any() for row in rows) and not all(row["is_first"].all() for row in rows)
    for name in program(rows[0]):
        changed = lambda inputs, name=name: program(inputs) | {name: program(inputs)[name] + 1}  # noqa: E731
        assert largest_difference(changed, program, rows) > 0.1
        spoilt = lambda inputs, name=name: program(inputs) | {name: program(inputs)[name] * np.nan}  # noqa: E731
        assert not largest_difference(spoilt, program, rows) <= 1


def test_a_step_that_branches_on_data_is_told(tmp_path):
    agent = make_agent("rl-lstm", "discrete", spaces={"card": EVERY_KIND["card"]})
    encode = agent.encode
    agent.encode = lambda *seen: encode(*seen) * (2 if seen[2].sum() > 0 else 1)
    with pytest.raises(MerlinError, match="without branches on data to be exported, but"):
        export(agent, of_nowhere("rl-lstm"), tmp_path / "agent.pt2", steps=3)


def test_onnx_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    agent = make_agent("rl-lstm", "discrete", spaces={"card": EVERY_KIND["card"]})
    with pytest.raises(MerlinError, match=r"pip install 'merlin-agents.export.'"):
        export(agent, of_nowhere("rl-lstm"), tmp_path / "agent.onnx", "onnx", steps=3)


def test_the_command_exports_a_run(tmp_path, capsys):
    config = replace(merlin.preset("rl-lstm", "merlin/TMaze-v0"), task="merlin/TMaze-v0", num_envs=2, steps=8)
    config = merlin.override(config, ["model.hidden_size=7", "training.unroll_length=4", "device=cpu"])
    merlin.train(config, tmp_path / "run", stream=io.StringIO())
    assert (
        cli.main(["export", str(tmp_path / "run"), "--format", "torch", "--out", str(tmp_path / "deeper" / "a.pt2")])
        == 0
    )
    path, difference = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "deeper" / "a.pt2") and (tmp_path / "deeper" / "a.pt2").exists()
    assert (
        difference
        == "largest difference from the agent 0.0e+00, over 64 steps with resets, observations of merlin/TMaze-v0"
    )
    with pytest.raises(SystemExit):
        cli.main(["export", str(tmp_path / "run"), "--batch", "0"])
    assert "must be a whole number of at least 1" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    for out in ("file", "deeper/a.onnx"):
        with pytest.raises(SystemExit):
            cli.main(["export", str(tmp_path / "run"), "--format", "torch", "--out", str(tmp_path / out)])
        assert "--out must end in .pt2 with --format torch, but is" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert (
        cli.main(["export", str(tmp_path / "run"), "--format", "torch", "--out", str(tmp_path / "file" / "x.pt2")]) == 1
    )
    assert "must be writable" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["info", "observation"])
def test_a_run_keeps_that_its_task_gives_masks(where, tmp_path, capsys, monkeypatch):
    """So that a program takes them where the task is not installed; of a run that does not tell, a sentence does."""
    errors.tell.cache_clear()
    config = replace(of_nowhere("rl-lstm"), task="test/Masked-v0", env_kwargs={"where": where}, num_envs=2, steps=8)
    config = merlin.override(config, ["training.minibatches=1", "training.unroll_length=4", "model.hidden_size=7"])
    run_dir = merlin.train(config, tmp_path / "run", stream=io.StringIO()).run_dir
    folder = merlin.load(run_dir).save(tmp_path / "folder", episodes=0)
    monkeypatch.delitem(gymnasium.registry, "test/Masked-v0")
    values = json.loads((run_dir / "config.json").read_text())
    assert values["spaces"].pop("action_masks") is True

    def inputs(directory):
        path = tmp_path / f"{directory.name}.pt2"
        assert cli.main(["export", str(directory), "--format", "torch", "--out", str(path)]) == 0
        program = torch.export.load(path)
        return str(program.call_spec.in_spec), capsys.readouterr().err

    for directory in (run_dir, folder):
        found, told = inputs(directory)
        assert "observation.action_mask" in found and not told
    (folder / "config.json").write_text(json.dumps(values))
    found, told = inputs(folder)
    assert "observation.action_mask" not in found and "does not tell whether it gives action masks" in told
