import dataclasses
import importlib.util
import json
import re
import time
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.memory import ContentMemory
from merlin.networks.spaces import Picture, Symbols, Tokens
from merlin.runs.presets import preset
from merlin.runs.run import build_agent, build_environment
from merlin.runs.settings import to_dict
from merlin.states import choose_rows
from merlin.training import checkpoint
from merlin.viewer import frames
from merlin.viewer import watch as watching
from merlin.viewer.canvas import SCALE, Canvas
from merlin.viewer.episodes import record_episode
from merlin.viewer.formats import _draw, find_writer, save_episodes, telling_step
from merlin.viewer.frames import choices, draw_step
from merlin.viewer.memory_maps import in_a_sentence, memory_picture, num_shown_slots
from merlin.viewer.microscope import write_page
from merlin.viewer.observations import as_picture, in_words

SMALL = {"latent_size": 8, "hidden_size": 8, "policy_hidden_size": 8}
AGENTS = ("merlin", "ftw", "rl-mem", "rl-lstm")


def tiny(agent="merlin", task="merlin/MemoryGame-v0", env_kwargs=None, **sizes):
    config = preset(agent, task, env_kwargs)
    known = {field.name for field in dataclasses.fields(config.model)}
    sizes = {name: value for name, value in (SMALL | sizes).items() if name in known}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes), device="cpu")


def play(config, seed=3, **kwargs):
    with build_environment(config, 1, "rgb_array") as environment:
        agent = build_agent(config, environment).eval()
        return record_episode(agent, environment, seed, torch.Generator().manual_seed(seed), **kwargs)


def make_run(run_dir, config):
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(to_dict(config)))
    with build_environment(config, 1) as environment:
        checkpoint.save_best(run_dir, checkpoint.Best(1, 0.0), build_agent(config, environment).state_dict())
    return run_dir


@pytest.fixture(scope="module")
def episode():
    return play(tiny())


def test_an_episode_is_what_was_played(episode):
    assert episode.is_complete and len(episode.steps) == 9 and episode.success in (0.0, 1.0)
    found = set()
    for step, after in zip(episode.steps, episode.steps[1:], strict=False):
        assert after.observation["position"] == step.action + 1, "the next observation is of the card flipped"
        is_match = (
            after.observation["card"] == step.observation["card"]
            and after.observation["position"] != step.observation["position"]
            and int(after.observation["card"]) not in {0, *found}
        )
        assert step.reward == is_match, "the reward is that of this step's action"
        if is_match:
            found.add(int(after.observation["card"]))


def test_an_episode_says_what_was_read_and_written(episode):
    for index, step in enumerate(episode.steps):
        assert step.slot == index, "an empty slot after another"
        assert episode.held(index) == {slot: slot for slot in range(index)}
        assert step.read_weights.shape == (3, 9) and step.policy_read_weights.shape == (3, 9)
        for weights in (*step.read_weights, *step.policy_read_weights):
            np.testing.assert_allclose(weights.sum(), float(index > 0), atol=1e-5)
            assert (weights[index:] == 0).all(), "the memory is read before it is written"
        np.testing.assert_allclose(step.policy.sum(), 1, atol=1e-5)
        assert step.reconstruction.keys() == step.observation.keys()
        assert step.picture.dtype == np.uint8 and step.picture.shape[2] == 3


def test_a_slot_that_is_used_again_holds_what_was_written_last():
    episode = play(tiny(memory_size=4))
    held = episode.held(8)
    assert set(held) == {0, 1, 2, 3} and max(held.values()) == 7 and len(set(held.values())) == 4
    draw_step(episode, 8)


class FirstWords(ContentMemory):
    """Keeps the first N words of an episode, and takes no more."""

    def write(self, state, word, read_weights, slot=None):
        after, slot = super().write(state, word, read_weights, slot)
        has_room = state.num_written < self.config.memory_size
        return choose_rows(has_room, after, state), slot.where(has_room, -1)


def test_what_was_not_written_is_in_no_slot(tmp_path):
    played = play(tiny(memory=f"{__name__}:FirstWords", memory_size=3, retroactive_discount=None))
    count = len(played.steps)
    written = [0, 1, 2] + [-1] * (count - 3)
    assert count > 4 and [step.slot for step in played.steps] == written
    assert played.held(count) == {0: 0, 1: 1, 2: 2}
    draw_step(played, 4)
    memory_picture(played, tmp_path / "memory.png")
    write_page([played], tmp_path / "x.html", "")
    assert json.loads(re.search(r'"written":(\[.*?\])', (tmp_path / "x.html").read_text())[1]) == written


@pytest.mark.parametrize("memory_size", [24, 5])
def test_what_a_slow_core_wrote_is_read_and_is_no_observation(memory_size, tmp_path):
    """It writes in steps 1, 4, 7, ... before the fast one reads; where there is room, nothing is written over."""
    played = play(tiny("ftw", env_kwargs={"pairs": 4}, memory_size=memory_size, tick_steps=3))
    assert len(played.steps) == 12
    for t, step in enumerate(played.steps):
        held, before = played.held(t), played.held_before_reads(t)
        if memory_size == 24:
            assert sorted(held.values()) == list(range(t)) and sorted(before.values()) == list(range(0, t + 1, 3))
        if t % 3 == 0:
            assert before[step.slot_before_reads] == t and step.slot_before_reads not in held
        assert set(np.flatnonzero(step.read_weights.max(0) > 1e-6)) <= {*held, *before}
        sharpest = step.read_weights[step.read_weights.max(1).argmax()].argmax()
        words = in_a_sentence(played, t, held, before)
        assert "empty" not in words and ("before it looked" in words) == (sharpest in before)
    draw_step(played, 6)
    memory_picture(played, tmp_path / "memory.png")
    write_page([played], tmp_path / "x.html", "")
    assert json.loads(re.search(r'"before":(\[.*?\])', (tmp_path / "x.html").read_text())[1]) == [
        step.slot_before_reads if t % 3 == 0 else -1 for t, step in enumerate(played.steps)
    ]


@pytest.mark.parametrize("agent", AGENTS)
def test_agents_without_a_decoder_or_memory_leave_these_out(agent):
    first = play(tiny(agent)).steps[0]
    assert (first.reconstruction is None) == (agent != "merlin")
    assert (first.policy_read_weights is None) == (agent != "merlin")
    assert (first.read_weights is None) == (first.slot is None) == (agent == "rl-lstm")


def test_the_same_seed_is_the_same_episode_and_another_is_another():
    config = tiny()
    one, again, other = (play(config, seed) for seed in (3, 3, 4))
    actions = [[int(step.action) for step in played.steps] for played in (one, again, other)]
    assert actions[0] == actions[1] != actions[2]
    np.testing.assert_array_equal(one.steps[-1].read_weights, again.steps[-1].read_weights)


@pytest.mark.parametrize(
    ("agent", "ending"),  # formats show the same pictures; of all agents test_microscope writes pages
    [*((agent, "gif") for agent in AGENTS), *(("merlin", ending) for ending in ("mp4", "html", "png"))],
)
def test_watch_writes_every_format_and_every_agent(tmp_path, agent, ending):
    if ending == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    run_dir = make_run(tmp_path / "run", tiny(agent, env_kwargs={"pairs": 2}))
    out = watching.watch(run_dir, tmp_path / "new" / f"episode.{ending}")
    assert out.stat().st_size > 3000
    if ending == "gif":
        with Image.open(out) as image:
            assert image.n_frames == 6 and image.size[0] == 960
            assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
            image.seek(5)
            assert image.info["duration"] > 1000, "the last picture stays longer"
    if ending == "mp4":
        import imageio

        with imageio.get_reader(out) as video:
            assert video.count_frames() >= 60 and video.get_data(0).shape[1] == 960


def test_watch_shows_several_episodes_beside_the_run_unless_told(tmp_path):
    run_dir = make_run(tmp_path / "run", tiny(env_kwargs={"pairs": 2}))
    assert watching.watch(run_dir, episodes=2, greedy=True) == run_dir / "episode.gif"
    with Image.open(run_dir / "episode.gif") as image:
        assert image.n_frames == 12


def test_pictures_of_a_film_are_all_of_one_size(episode, tmp_path):
    """Though the second episode writes more slots than there is room for what they hold."""

    def wide(weights):
        return np.pad(weights, ((0, 0), (0, 120 - weights.shape[1])))

    steps = [
        step._replace(
            slot=100, read_weights=wide(step.read_weights), policy_read_weights=wide(step.policy_read_weights)
        )
        for step in episode.steps[:2]
    ]
    short, long = episode._replace(steps=episode.steps[:2]), episode._replace(steps=steps)
    heights = {draw_step(one, 0).height for one in (short, long)}
    assert len(heights) == 2
    assert {canvas.height for canvas in _draw([short, long], "")} == {max(heights)}
    if importlib.util.find_spec("imageio_ffmpeg"):
        save_episodes([short, long], tmp_path / "x.mp4")


def test_watch_says_that_a_long_episode_is_cut(tmp_path, monkeypatch):
    run_dir, notes = make_run(tmp_path / "run", tiny()), []
    monkeypatch.setattr(watching, "MAX_FRAMES", 4)
    watching.watch(run_dir, tmp_path / "x.gif", note=notes.append)
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 4
    assert notes[1:] == ["Only the first 4 steps are shown."]


def test_user_mistakes_are_one_sentence(tmp_path, monkeypatch):
    run_dir = make_run(tmp_path / "run", tiny())
    with pytest.raises(MerlinError, match=r"\.gif, \.mp4, \.html, \.png, but the file is episode\.avi"):
        watching.watch(run_dir, tmp_path / "episode.avi")
    with pytest.raises(MerlinError, match=r"episodes must be a whole number from 1 to .*, but is 0"):
        watching.watch(run_dir, episodes=0)
    with pytest.raises(MerlinError, match="There is no directory"):
        watching.watch(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(MerlinError, match=r"x\.png must be writable, but .*file is a file: choose"):
        watching.watch(run_dir, tmp_path / "file" / "x.png")
    with pytest.raises(MerlinError, match="rl-mem"):
        memory_picture(play(tiny("rl-lstm")), tmp_path / "x.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MerlinError, match=re.escape("pip install 'merlin-agents[video]'")):
        find_writer(tmp_path / "x.mp4")


def colour_share(image, colour, box):
    pixels = np.asarray(image.crop([SCALE * side for side in box])).astype(int)
    target = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels - target).sum(-1) < 12).mean()


def test_the_picture_marks_the_slot_written_now_and_the_slot_read_most(episode):
    step = episode.steps[5]
    sharp = np.zeros((1, 9), np.float32)
    sharp[0, 2] = 1
    looked = episode._replace(steps=[*episode.steps[:5], step._replace(policy_read_weights=sharp), *episode.steps[6:]])
    canvas = draw_step(looked, 5)
    columns = [(132 + 89 * slot, 132 + 89 * (slot + 1)) for slot in range(9)]
    memory = canvas.height - 180, canvas.height
    purple = [colour_share(canvas.image, "#6a3d9a", (a, memory[0], b, memory[1])) for a, b in columns]
    orange = [colour_share(canvas.image, "#d9682b", (a, memory[0], b, memory[1])) for a, b in columns]
    assert int(np.argmax(purple)) == 2 and int(np.argmax(orange)) == 5


def test_the_sentence_is_of_the_policys_sharpest_key(episode):
    step = len(episode.steps) - 1
    slots = len(episode.steps[step].read_weights[0])
    policy, predictor = np.full((3, slots), 0.1), np.eye(slots)[:3]
    policy[2, 1] = 0.6
    read = episode.steps[step]._replace(policy_read_weights=policy, read_weights=predictor)
    shown = episode._replace(steps=[*episode.steps[:step], read])
    assert in_a_sentence(shown, step, {0: 0, 1: 1}).startswith("policy 3 reads most from step 2")
    assert (
        in_a_sentence(shown, step, {0: 0}) == "policy 3 reads empty slots"
        and in_a_sentence(shown, step, {}) == "is empty"
    )
    alone = shown._replace(steps=[*episode.steps[:step], read._replace(policy_read_weights=None)])
    assert in_a_sentence(alone, step, {0: 0, 1: 1}).startswith("key 1 reads most from step 1")


def test_the_telling_step_is_the_last_of_the_most_rewarded(episode):
    rewards = [0.0, 1.0, 0.0, 0.0, 1.0, 0.5, 0.0, -1.0, 0.0]
    steps = [step._replace(reward=reward) for step, reward in zip(episode.steps, rewards, strict=True)]
    assert telling_step(episode._replace(steps=steps)) == 4


def test_words_name_single_categories():
    entries = {"card": spaces.Discrete(4), "velocity": spaces.Box(-1, 1, (2,)), "position": spaces.Discrete(7)}
    observation = {"card": np.array(2), "velocity": np.zeros(2), "position": np.array(5)}
    assert in_words(entries, observation) == "card 2, position 5"
    assert in_words({"observation": spaces.Box(-1, 1, (2,))}, {"observation": np.zeros(2)}) == ""


def test_pictures_of_images_and_grids():
    grey = Picture(spaces.Box(0.0, 2.0, (5, 6), np.float32), row_axis=0)
    np.testing.assert_array_equal(as_picture(grey, np.full((5, 6), 1.0, np.float32)), np.full((5, 6, 3), 128))
    coloured = Picture(spaces.Box(0, 255, (5, 6, 3), np.uint8), row_axis=0)
    value = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
    np.testing.assert_array_equal(as_picture(coloured, value), value)
    grid = Symbols(spaces.MultiDiscrete(np.full((5, 6, 1), 4)))
    drawn = as_picture(grid, np.arange(30).reshape(5, 6, 1) % 4)
    assert drawn.shape == (5, 6, 3) and len(np.unique(drawn.reshape(-1, 3), axis=0)) == 4


@pytest.mark.parametrize(
    ("task", "env_kwargs"),
    [
        ("merlin/MemoryGame-v0", {"view": "picture", "pairs": 2}),
        ("merlin/TMaze-v0", {"view": "egocentric", "length": 3}),
        ("merlin/TMaze-v0", {"length": 3}),
        ("MiniGrid-MemoryS7-v0", {}),
    ],
)
def test_other_observations_are_drawn(tmp_path, task, env_kwargs):
    episode = play(tiny(task=task, env_kwargs=env_kwargs), max_steps=5)
    save_episodes([episode], tmp_path / "step.png")
    memory_picture(episode, tmp_path / "memory.png", "title")
    for name in ("step.png", "memory.png"):
        with Image.open(tmp_path / name) as image:
            assert len(image.getcolors(1 << 22)) > 20
    if task.startswith("MiniGrid"):
        assert episode.action_names[:3] == ["left", "right", "forward"]


class Everything(gymnasium.Env):
    """An entry of every kind, several-part actions or a Box's, negative rewards, and no picture."""

    def __init__(self, action_space):
        self.action_space = action_space
        self.observation_space = spaces.Dict(
            {
                "text": Tokens(("", "go", "left"), 3),
                "buttons": spaces.MultiBinary(5),
                "many": spaces.MultiDiscrete([3] * 40),
                "numbers": spaces.Box(-np.inf, np.inf, (2,), np.float32),
                "long": spaces.Box(0, 1, (50,), np.float32),
                "start": spaces.Discrete(3, start=-1),
                "frames": spaces.Box(0, 255, (8, 8, 4), np.uint8),
            }
        )

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), -1.5, False, False, {}


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(-2, 2, (2,)),
        spaces.Box(-1, 1, (12,)),
        spaces.Discrete(30),
        spaces.MultiBinary((2, 2)),
        spaces.Tuple([spaces.Discrete(3, start=2), spaces.MultiBinary(2)]),
        spaces.Tuple([spaces.Box(-2, 2, (2,)), spaces.Box(0, 1, ())]),
        spaces.Dict({"arm": spaces.Box(-2, 2, (2,)), "hand": spaces.Dict({"grip": spaces.Discrete(2, start=-1)})}),
    ],
)
def test_any_space_is_drawn_also_without_a_picture_of_the_task(action_space, tmp_path):
    config = tiny(task="anything", memory_size=100)
    make = [lambda: Everything(action_space)]
    vector_env = gymnasium.vector.SyncVectorEnv(make, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
    with Environment(vector_env) as environment:
        agent = build_agent(config, environment).eval()
        episode = record_episode(agent, environment, 0, torch.Generator().manual_seed(0), max_steps=95)
    assert not episode.is_complete and episode.steps[0].picture is None
    for steps, shown in ((episode.steps[:4], 8), (episode.steps, 95)):  # slots as cells, and as strips
        part = episode._replace(steps=steps)
        assert num_shown_slots(part) == shown and draw_step(part, 3).image.width == 960 * SCALE
    write_page([episode._replace(steps=episode.steps[:4])], tmp_path / "x.html", "")


def test_what_is_written_does_not_overlap(monkeypatch):
    """Of a long action the title has no more than fits, and what is left out of a panel is told of below the rest."""
    config, space = tiny(task="anything"), spaces.MultiDiscrete([3] * 40)
    make = [lambda: Everything(space)]
    vector_env = gymnasium.vector.SyncVectorEnv(make, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
    with Environment(vector_env) as environment:
        agent = build_agent(config, environment).eval()
        episode = record_episode(agent, environment, 0, torch.Generator().manual_seed(0), max_steps=2)
    written, ends, write, draw = [], [], Canvas.text, frames.draw_entry

    def text(self, x, y, words, size=11, colour="", anchor="lm", **more):
        width = write(self, x, y, words, size, colour or "#000000", anchor, **more)
        written.append((x - width if anchor == "rm" else x, x if anchor == "rm" else x + width, y, words))
        return width

    def draw_entry(canvas, x, y, width, height, *more):
        ends.append(y + height)
        draw(canvas, x, y, width, height, *more)

    monkeypatch.setattr(Canvas, "text", text)
    monkeypatch.setattr(frames, "draw_entry", draw_entry)
    draw_step(episode, 1)
    title = sorted(row for row in written if row[2] == 47)
    assert all(one[1] <= other[0] for one, other in pairwise(title)) and title[-1][1] <= 960
    (more,) = (row for row in written if re.fullmatch(r"and \d+ more", row[3]))
    assert more[2] - 5 >= max(ends)


def test_betas_are_shown_by_their_moments_in_half_ranges():
    config = tiny(task="anything", box_actions="beta")
    make = [lambda: Everything(spaces.Box(10, 20, (2,)))]
    vector_env = gymnasium.vector.SyncVectorEnv(make, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
    with Environment(vector_env) as environment:
        agent = build_agent(config, environment).eval()
        steps = record_episode(agent, environment, 0, torch.Generator().manual_seed(0), max_steps=5).steps
    for step in steps:
        mean, std, action = step.policy
        assert (np.abs(mean) < 0.5).all() and (0.2 < std).all() and (std < 0.58).all()
        np.testing.assert_allclose(action, (step.action - 15) / 5, rtol=1e-5, atol=1e-6)


def test_choices_of_a_nested_space_are_named_by_their_paths(episode):
    space = spaces.Dict(
        {"arm": spaces.Box(-2, 2, (2,)), "hand": spaces.Tuple([spaces.Discrete(2, start=-1), spaces.MultiBinary(2)])}
    )
    step = episode.steps[0]._replace(action=np.array([0.5, -1.25, 0.0, 1.0, 0.0]))
    nested = episode._replace(action_space=space, action_names=None, steps=[step])
    names, taken = choices(nested, 0)
    assert names == ["hand.0: -1", "hand.0: 0", "hand.1.0: 0", "hand.1.0: 1", "hand.1.1: 0", "hand.1.1: 1"]
    assert taken == {1, 3, 4}
    assert nested.action_name(0) == "action 0.50 −1.25 0 1 0"


def test_drawing_a_step_is_fast(episode):
    draw_step(episode, 0)

    begin = time.process_time()
    for step in range(9):
        draw_step(episode, step).small()
    assert time.process_time() - begin < 3


def test_long_words_are_shortened():
    canvas = Canvas(200, 20)
    assert canvas.text(0, 10, "word " * 50, width=100) <= 100
