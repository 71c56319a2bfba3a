"""Whatever is trained, nothing lies on the wrong device, and the host waits for the device a few times a window alone.

No GPU is needed: see `tests.second_device`.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from merlin.agents import AGENTS
from merlin.runs import build
from merlin.runs.agent_spaces import AgentSpaces
from merlin.runs.presets import preset
from merlin.tasks import TASKS
from merlin.training.trainer import Trainer
from tests.second_device import DEVICE, SecondDevice, move

GAME = "merlin/MemoryGame-v0"
SMALL = {
    "hidden_size": 8,
    "latent_size": 8,
    "policy_hidden_size": 8,
    "memory_size": 12,
    "deterministic_size": 8,
    "head_size": 8,
    "prefill_steps": 0,
    "replay_windows": 4,  # as many as a window brings, for one update
    "replay_ratio": 1.0,
    "replay_rows": 1000,
}
A_WINDOW = Counter({"rollout.py": 1, "inspection.py": 1, "learner.py": 1})
"""What is read in every window: the episodes that ended, whether its numbers are sound, and whether gradients are."""
OF_AGENTS = {
    "merlin": Counter({"window.py": 1}),  # how many slots are written
    "rl-mem": Counter({"window.py": 1}),
    # the types that integers fit into; where episodes end; where imagination starts
    "dreamer": Counter({"replay.py": 1, "world_model.py": 1, "agent.py": 1}),
    "ftw": Counter({"window.py": 1, "auxiliary.py": 3}),  # which rows follow one another; where rewards are, and none
}

DISTINCT = {f"merlin/{name}-v0" for name in ("CaptureTheFlag", "GoalMaze", "LatentLearning", "TMaze", "Playback")} | {
    f"merlin/{name}-v0" for name in ("Maze", "Memory", "RepeatPrevious", "RewardValuation", "VisuomotorMapping")
}
"""Tasks that share little but the grid."""


def reads(monkeypatch, agent: str, task: str, length: int) -> Counter[str]:
    """Train for three windows on the second device, and return the host reads of the third by file."""
    adam, adamw = torch.optim.Adam, torch.optim.AdamW  # whose fused form is for devices that PyTorch knows
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, fused, **options: adam(*args, foreach=False, **options))
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **options: adamw(*args, foreach=False, **options))
    monkeypatch.setattr(build, "resolve_device", lambda name: DEVICE)
    config = preset(agent, task)
    model = replace(config.model, **{name: x for name, x in SMALL.items() if hasattr(config.model, name)})
    training = replace(config.training, unroll_length=length, minibatches=1, passes=1)
    config = replace(config, num_envs=4, model=model, training=training)
    with SecondDevice() as device:
        environment = build.build_environment(config)
        built = build.build_agent_of(config, AgentSpaces(environment.spaces, environment.action_space))
        trainer = Trainer(move(built), environment, training, total_steps=1000, seed=0)
        for _ in range(3):
            device.reads.clear()
            metrics, _ = trainer.update()
    assert metrics["loss"].device == DEVICE and metrics["loss"].held.isfinite()
    environment.close()
    found: Counter[str] = Counter()
    for line, count in device.reads.items():
        found[line.partition(":")[0].rpartition("/")[2]] += count
    return found


@pytest.mark.parametrize("agent", AGENTS)
def test_host_reads_of_a_window(agent, monkeypatch):
    assert reads(monkeypatch, agent, GAME, 8) == A_WINDOW + OF_AGENTS.get(agent, Counter())


@pytest.mark.parametrize("task", [pytest.param(x, marks=[] if x in DISTINCT else pytest.mark.slow) for x in TASKS])
def test_every_task_lies_on_its_device(task, monkeypatch):
    found = reads(monkeypatch, "rl-lstm", task, 3)
    found.pop("layouts.py", None)  # how many layouts were used up, once a window or less
    assert found == A_WINDOW


def test_what_it_finds():
    with SecondDevice() as device:
        x = torch.arange(3.0, device=DEVICE)
        assert x.device == DEVICE and (x + 1).held.tolist() == [1, 2, 3]
        assert (x * torch.tensor(2.0)).device == DEVICE  # a number of no dimension may come from the host
        with pytest.raises(AssertionError, match="mixes meta and CPU"):
            x + torch.ones(3)
        x.masked_fill_(x > 1, 0)
        assert not device.reads
        for read in (lambda: bool((x > 0).any()), x.tolist, x.cpu, lambda: x[x > 0], (x > 0).nonzero, x.unique):
            before = device.reads.total()
            read()
            assert device.reads.total() == before + 1
