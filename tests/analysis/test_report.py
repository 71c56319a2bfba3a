"""`merlin analyse` on small runs, and what its parts must be equal to."""

import json
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from merlin.analysis import metrics, sections
from merlin.analysis.figures import draw_observations
from merlin.analysis.predictions import expectations
from merlin.analysis.probes import DECAYS, guess_class
from merlin.analysis.recording import gather
from merlin.analysis.report import analyse
from merlin.analysis.saliency import saliency
from merlin.errors import MerlinError
from merlin.networks.spaces import Picture
from merlin.runs.run import build_agent, build_environment
from merlin.runs.settings import override
from merlin.states import map_state
from merlin.training.evaluation import evaluate
from merlin.viewer.canvas import FAINT
from tests.viewer.test_watch import make_run, tiny

MAZE = ("merlin/GoalMaze-v0", {"size": 5, "max_steps": 30})
PROBES = partial(guess_class, decays=DECAYS[:2], iterations=20)


@pytest.fixture(autouse=True)
def in_short(monkeypatch):
    """Probes that choose between few weight decays, and few steps at which saliency is asked for."""
    monkeypatch.setattr(metrics, "guess_class", PROBES)
    monkeypatch.setattr(sections, "saliency", partial(saliency, steps=6))


PICTURES = {"steps_to_goal.png", "goal_decoding.png", "returns.png", "return_error.png", "reads.png", "saliency.png"}


@pytest.mark.parametrize("agent", ["merlin", "ftw", "rl-mem", "rl-lstm"])
def test_a_report_of_a_maze_has_all_that_the_agent_can_tell(agent, tmp_path):
    run_dir = make_run(tmp_path / "run", tiny(agent, *MAZE))
    path = analyse(run_dir, episodes=24)
    text, numbers = path.read_text(), json.loads((path.parent / "analysis.json").read_text())
    assert path == run_dir / "analysis" / "analysis.md" and text.startswith(f"# {agent} on merlin/GoalMaze-v0\n")
    pictures = PICTURES | {"expected.png", "remembered.png", "imagined.png"} if agent == "merlin" else PICTURES
    if agent == "rl-lstm":
        pictures = pictures - {"reads.png"}
        assert "the agent has no memory" in text and "memory" not in numbers
    else:
        ablations = {"zeroed", "frozen"} | ({"shuffled"} if agent != "ftw" else set())  # FTW writes two words a step
        assert set(numbers["memory"]) == {"own"} | ablations
    assert {x.name for x in path.parent.glob("*.png")} == pictures
    assert all(f"({name})" in text for name in pictures)
    assert ("does not predict" in text) == (agent != "merlin")
    assert len(numbers["steps_to_goal"]["count"]) == 8
    assert "latent" in numbers["goal_decoding"]["error"] or agent != "merlin"


def test_a_task_without_a_map_is_told_what_is_left_out(tmp_path):
    out = tmp_path / "elsewhere"
    text = analyse(make_run(tmp_path / "run", tiny()), out, episodes=8).read_text()
    for why in ("the task has no sub-episodes", "the task tells of no goal on a map"):
        assert f"Left out: {why}." in text
    assert (
        "| key | steps ago | largest weight |" in text and "| policy 1 |" in text and not (out / "reads.png").exists()
    )
    assert (out / "analysis.json").exists() and not (tmp_path / "run" / "analysis").exists()


def test_the_same_seed_gives_the_same_report_and_another_another(tmp_path):
    run_dir = make_run(tmp_path / "run", tiny(task="merlin/TMaze-v0"))
    texts = [analyse(run_dir, tmp_path / str(i), episodes=8, seed=seed).read_text() for i, seed in enumerate((0, 0, 1))]
    assert texts[0] == texts[1] != texts[2]


def test_where_nothing_can_be_written_is_said_before_anything_is_played(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MerlinError, match="must be a directory to write into"):
        analyse(make_run(tmp_path / "run", tiny()), tmp_path / "file", episodes=8)


def test_what_the_task_tells_is_where_things_are():
    config = tiny("rl-lstm", *MAZE)
    with build_environment(config, 6) as environment:
        played = gather(build_agent(config, environment), environment, episodes=12, seed=4)
    height, width = played.grid_size
    assert (height, width) == (5, 5) and played.is_end.sum(0).min() >= 2
    arrives = played.reward > 0
    assert arrives.any() and played.is_truncated.any() and (played.is_end & played.is_valid).sum() == 12
    for t, b in arrives.nonzero().tolist():
        there, goal = int(played.agent_cell[t, b]), int(played.goal_cell[t, b])
        assert abs(there % 5 - goal % 5) + abs(there // 5 - goal // 5) == 1  # one step before it arrives
    same = ~played.is_first[1:]
    torch.testing.assert_close(played.goal_cell[1:][same], played.goal_cell[:-1][same])


def test_an_end_that_is_both_is_no_truncation():
    """Of tasks that end episodes by success in the very last step some do both; learning counts it as an end."""
    config = override(
        tiny("rl-lstm", "merlin/Memory-v0", {"size": 7, "max_steps": 8}), ["training.truncation_ends=false"]
    )
    with build_environment(config, 64) as environment:
        agent, step, both = build_agent(config, environment), environment.step, []

        def watched(action):
            timestep = step(action)
            both.append(timestep.terminated & timestep.truncated)
            return timestep

        environment.step = watched
        played = gather(agent, environment, episodes=640, seed=1)
    both = torch.stack(both)
    assert both.any() and not (played.is_truncated & both).any() and played.is_end[both].all()


def test_the_goal_of_a_water_maze_is_the_platform_of_the_pool():
    config = tiny("rl-lstm", "merlin/WaterMaze-v0", {"max_steps": 200})
    with build_environment(config, 8) as environment:
        played = gather(build_agent(config, environment), environment, episodes=8, seed=4)
        span = environment.vector_env.unwrapped.room_size + 1
    width = played.grid_size[1]
    assert torch.equal(played.goal_cell % width // span, played.agent_cell % width // span)
    found = (played.reward > 0)[:-1] & ~played.is_end[:-1]
    assert found.any()
    torch.testing.assert_close(played.agent_cell[1:][found], played.goal_cell[:-1][found])


@pytest.mark.parametrize("retroactive_discount", [0.96, None])
def test_what_is_inferred_and_remembered_is_what_the_agent_thought(retroactive_discount):
    config = tiny(task="merlin/MemoryGame-v0", retroactive_discount=retroactive_discount)
    with build_environment(config, 1) as environment:
        agent = build_agent(config, environment)
        with torch.no_grad():  # a posterior without noise
            agent.predictor.posterior_network[-1][-1].bias[agent.config.latent_size :] = -60.0
        found = expectations(agent, environment, seed=5)
    assert len(found.seen) == len(found.expected) == len(found.inferred) == 9
    assert found.written == list(range(9)) and found.imagined_from == 3 and len(found.imagined) == 8
    for row, inferred in zip(found.remembered, found.inferred, strict=True):
        assert all((row[name] == inferred[name]).all() for name in row)


def test_imagining_is_acting_on_a_posterior_that_learns_nothing_from_looking():
    config = tiny()
    with build_environment(config, 3) as environment:
        agent, timestep = build_agent(config, environment), environment.reset(0)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        agent.predictor.posterior_network[-1][-1].weight.zero_()
        agent.predictor.posterior_network[-1][-1].bias.zero_()
    no, generator = torch.zeros(3, dtype=torch.bool), torch.Generator().manual_seed(2)
    _, state = agent.step(timestep.observation, agent.initial_state(3), ~no, generator=generator)
    start, noise = map_state(torch.clone, state), generator.get_state()
    latents = []
    for _ in range(5):
        output, state = agent.step(timestep.observation, state, no, generator=generator)
        latents.append(output.latent)
    generator.set_state(noise)
    torch.testing.assert_close(agent.imagine(start, 5, generator), torch.stack(latents))


def test_what_cannot_be_seen_does_not_change_the_value():
    config = tiny("rl-lstm", *MAZE)
    with build_environment(config, 4) as environment:
        agent = build_agent(config, environment)
        found = saliency(agent, environment, seed=0, steps=2)
        assert found["image"].shape == (5, 5) and found["image"].nansum() > 0 and found["direction"] > 0
        with torch.no_grad():
            agent.encoder.entries[list(environment.spaces).index("image")].embedding.weight.zero_()
        found = saliency(agent, environment, seed=0, steps=2)
        assert found["image"].nansum() == 0 and found["direction"] > 0


class Clock(gymnasium.Env):
    """Episodes of four steps whose observations are the same in each: what the clock shows, a cue, and a constant."""

    observation_space = spaces.Dict(
        {
            "clock": spaces.Discrete(4),
            "cue": spaces.Box(0, 255, (16, 16, 1), np.uint8),
            "constant": spaces.Discrete(3),
            "blank": spaces.Box(0, 255, (16, 16, 1), np.uint8),
        }
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self._observe(), {}

    def _observe(self):
        cue, blank = np.zeros((16, 16, 1), np.uint8), np.zeros((16, 16, 1), np.uint8)
        cue[:8] = 255 * (self.clock == 0)  # whose lower half is always the same
        return {"clock": self.clock, "cue": cue, "constant": 1, "blank": blank}

    def step(self, action):
        self.clock += 1
        return self._observe() | {"clock": self.clock % 4}, 0.0, self.clock == 4, False, {}


gymnasium.register("test/SameClock-v0", Clock)


def test_what_all_environments_show_at_the_same_step_is_measured_and_what_never_differs_is_not(tmp_path):
    with build_environment(tiny("rl-lstm", "test/SameClock-v0"), 3) as environment:
        agent = build_agent(tiny("rl-lstm", "test/SameClock-v0"), environment)
        section = sections.saliency_section(agent, environment, 0, tmp_path)
    found, told = section.numbers["saliency"], dict(section.rows)
    assert found["clock"] > 0 and (found["cue"][:8] > 0).all() and found["cue"][8:].isnan().all()
    assert told["clock"] == float(found["clock"]) and told["cue"] == pytest.approx(found["cue"][:8].mean().item())
    assert told["constant"] == told["blank"] == "not measured: it never differs"
    with Image.open(tmp_path / "saliency.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == 0xD9).all(1).sum() > 1_000  # the half that never differs is grey


def test_saliency_is_asked_of_every_phase_of_an_episode(monkeypatch):
    """An episode of 12 steps, a multiple of the interval between questions."""
    config = tiny("rl-lstm", "merlin/MemoryGame-v0", {"pairs": 4})
    with build_environment(config, 4) as environment:
        agent, asked = build_agent(config, environment), []
        step, act = environment.step, agent.step
        monkeypatch.setattr(environment, "step", lambda action: asked.append(0) or step(action))
        calls = [[] for _ in range(12)]

        def counting(*arguments, **more):
            calls[len(asked) % 12].append(1)
            return act(*arguments, **more)

        monkeypatch.setattr(agent, "step", counting)
        saliency(agent, environment, seed=0, steps=32, every=4)
    often = [len(times) > len(asked) // 12 + 1 for times in calls]
    assert 100 < len(asked) <= 128 and sum(often) > 8  # of 12 phases, and not of the same three


def test_an_analysis_that_is_broken_off_leaves_the_one_before(tmp_path, monkeypatch):
    run_dir = make_run(tmp_path / "run", tiny(task="merlin/TMaze-v0"))
    before = analyse(run_dir, episodes=8).with_name("analysis.json").read_text()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("merlin.analysis.report.gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyse(run_dir, episodes=8)
    assert (run_dir / "analysis" / "analysis.json").read_text() == before != ""


def test_a_white_picture_has_a_frame(tmp_path):
    """Of the picture's 92 points two pixels each, and none of them over it."""
    seen = [("seen", [{"view": np.full((4, 4, 3), 255, np.uint8)}])]
    space = Picture(spaces.Box(0, 255, (4, 4, 3), np.uint8), 0)
    draw_observations(seen, ["step 1"], {"view": space}, tmp_path / "x.png", "")
    grey = tuple(int(FAINT[i : i + 2], 16) for i in (1, 3, 5))
    with Image.open(tmp_path / "x.png") as image:
        y, x = (np.asarray(image.convert("RGB")) == grey).all(2).nonzero()
    assert np.ptp(x) == np.ptp(y) == 2 * 92 + 1 and len(x) == 4 * (2 * 92 + 1)


def test_the_return_is_drawn_from_the_first_step_on(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(sections, "plot_lines", lambda lines, path, **_: drawn.update({path.name: lines}))
    config = tiny("rl-lstm", "merlin/MemoryGame-v0", {"pairs": 2})
    with build_environment(config, 4) as environment:
        played = gather(build_agent(config, environment), environment, episodes=4, seed=1)
    sections.returns_section(played, 0.9, tmp_path)
    for steps, values in drawn["returns.png"].values():
        assert steps.tolist() == list(range(1, len(values) + 1))  # as in the viewers and the other pictures


def test_the_title_of_a_narrow_picture_is_not_cut_off(tmp_path):
    seen = [("seen", [{"card": np.array(1)}])]
    title = "Decoded from the prior, before it looked, and from the posterior"
    draw_observations(seen, ["step 1"], {"card": gymnasium.spaces.Discrete(3)}, tmp_path / "x.png", title)
    with Image.open(tmp_path / "x.png") as image:
        assert (np.asarray(image)[:, -10:] == 255).all()


def test_episodes_that_were_given_up_are_told_of(monkeypatch):
    """Of four none ends within two steps."""
    monkeypatch.setattr(sections, "evaluate", partial(evaluate, max_steps=2))
    config = tiny("rl-mem", "merlin/MemoryGame-v0", {"pairs": 2})
    with build_environment(config, 2) as environment:
        section = sections.memory_section(build_agent(config, environment).eval(), environment, 4, 0)
    assert "With own memory 4 had not ended after 2 steps. With zeroed memory 4 had" in section.text
    assert section.text.endswith("These count nowhere.")
    assert section.numbers["memory"]["own"]["unfinished_episodes"] == 4
