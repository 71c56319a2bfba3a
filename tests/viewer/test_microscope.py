"""The page of `merlin watch`: what it holds, and how it behaves in a browser (where Chromium and its driver are)."""

import base64
import gzip
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from merlin.networks.spaces import Picture, Tokens
from merlin.viewer.episodes import Episode, Step
from merlin.viewer.formats import save_episodes
from tests.viewer.test_watch import AGENTS, play, tiny

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync window-size=1280,980"
)


def page_of(episodes, path, heading="somebody on something"):
    save_episodes(episodes, path, heading)
    text = path.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def unpacked(text, dtype):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_page_holds_the_episode_and_needs_no_network(tmp_path, agent):
    played = play(tiny(agent, env_kwargs={"pairs": 2}))
    text, data = page_of([played], tmp_path / "x.html", "a <b> & c")
    assert not re.search(r"https?:|<link|src=", text.replace("src:", "")), "it needs no network"
    assert "<title>a &lt;b&gt; &amp; c</title>" in text and data["heading"] == "a <b> & c"
    (episode,) = data["episodes"]
    assert episode["length"] == len(played.steps) == len(episode["value"]) == 6 and episode["complete"]
    np.testing.assert_allclose(episode["value"], [step.value for step in played.steps], atol=1e-4)
    assert episode["reward"] == [round(step.reward, 4) for step in played.steps]
    assert episode["action"] == [played.action_name(t) for t in range(6)]
    taken = [int(step.action) for step in played.steps]
    assert episode["policy"]["taken"] == [[action] for action in taken]
    views = {"name", "picture", "seen", "off"} | ({"expected", "inferred"} if agent == "merlin" else set())
    assert set(episode["entries"][0]) == views, "nothing is imagined unless asked for"
    assert episode["entries"][0]["seen"] == [str(step.observation["card"]) for step in played.steps]
    for uri in data["pictures"]:
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert image.size == played.steps[0].picture.shape[1::-1]
    assert len(data["pictures"]) == len({step.picture.tobytes() for step in played.steps})
    assert ("memory" in episode) == (agent != "rl-lstm")
    if agent != "rl-lstm":
        memory = episode["memory"]
        assert memory["written"] == [step.slot for step in played.steps]
        weights = unpacked(memory["weights"], np.uint8).reshape(6, len(memory["keys"]), memory["slots"])
        for t, step in enumerate(played.steps):
            rows = [x for x in (step.policy_read_weights, step.read_weights) if x is not None]
            np.testing.assert_allclose((weights[t] / 255) ** 2, np.concatenate(rows), atol=0.004)
        words = unpacked(memory["words"], np.int8).reshape(6, memory["width"]).astype(float)
        true = np.stack([step.word for step in played.steps])
        np.testing.assert_allclose(words / 127, true / np.abs(true).max(), atol=0.005)


def test_what_names_say_cannot_break_the_page(browser, tmp_path):
    played = play(tiny("rl-lstm", env_kwargs={"pairs": 2}))
    broken = played.steps[0]._replace(value=float("nan"))
    page_of([played._replace(steps=[broken, *played.steps[1:]])], tmp_path / "x.html", "<!--<script> & </script>")
    opened(browser, tmp_path / "x.html")
    assert text(browser, "where") == "1 / 6" and browser.title == "<!--<script> & </script>"


def test_texts_end_at_the_first_empty_word_and_marks_are_of_what_differs(tmp_path):
    space = {"said": Tokens(("", "a", "b", "c"), 4), "far": spaces.Box(-1, 1, (2,), np.float32)}
    seen = {"said": np.array([1, 0, 0, 0]), "far": np.array([0.1, 0.2])}
    guess = {"said": np.array([1, 0, 2, 3]), "far": np.array([0.1, 0.3])}
    step = made_up(2, 3, 4, 2).steps[0]._replace(observation=seen, expected=guess, reconstruction=seen, slot=None)
    step = step._replace(read_weights=None, policy_read_weights=None, word=None)
    episode = Episode("x", space, spaces.Discrete(2), None, [step, step], True, 0.0)
    said, far = page_of([episode], tmp_path / "x.html")[1]["episodes"][0]["entries"]
    assert said["seen"] == said["expected"] == ["a", "a"] and far["expected"] == ["0.10 0.30"] * 2
    assert said["off"] == {"expected": [True, True], "inferred": [False, False]} and far["off"] == {}


@pytest.mark.parametrize("agent", ["merlin", "dreamer"])
def test_a_page_shows_what_was_imagined_beside_what_came(tmp_path, agent):
    played = play(tiny(agent, env_kwargs={"pairs": 2}), imagine=3)
    assert [len(step.imagined) for step in played.steps] == [3, 3, 3, 2, 1, 0], "to the episode's end and no further"
    again = play(tiny(agent, env_kwargs={"pairs": 2}))
    assert [step.action for step in again.steps] == [step.action for step in played.steps], "imagining changes nothing"
    _, data = page_of([played], tmp_path / "x.html")
    entry = data["episodes"][0]["entries"][0]
    assert entry["imagined"] == [[str(row["card"]) for row in step.imagined] for step in played.steps]


def test_a_picture_of_an_episode_is_the_one_that_was_seen(tmp_path):
    played = play(tiny(task="merlin/Empty-v0", env_kwargs={"size": 5}), max_steps=4)
    _, data = page_of([played], tmp_path / "x.html")
    for t, number in enumerate(data["episodes"][0]["task"]):
        image = Image.open(io.BytesIO(base64.b64decode(data["pictures"][number].split(",")[1]))).convert("RGB")
        np.testing.assert_array_equal(np.asarray(image), played.steps[t].picture)
    style = re.search(r"\.view img \{([^}]*)\}", (tmp_path / "x.html").read_text())
    assert style is not None and "outline: 1px solid" in style[1], "which shows where a white picture is"


def test_decoded_pictures_of_many_shades_are_small_and_near(tmp_path):
    """What was seen is exact; what was decoded may be off by some shades of 255, and takes a fraction of the room."""
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([2 * x + y, 3 * y + 20, 128 + 100 * np.sin(x / 9 + y / 17)], -1)
    picture = (smooth + np.random.default_rng(0).normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
    rows = {
        name: {"view": np.roll(picture, i, 0)} for i, name in enumerate(("observation", "expected", "reconstruction"))
    }
    step = made_up(1, 3, 4, 2).steps[0]._replace(**rows, imagined=[{"view": picture[::-1]}])
    space = {"view": Picture(spaces.Box(0, 255, (64, 64, 3), np.uint8), 0)}
    _, data = page_of([Episode("x", space, spaces.Discrete(2), None, [step], True, 0.0)], tmp_path / "x.html")
    entry = data["episodes"][0]["entries"][0]
    (seen,), decoded = entry["seen"], [*entry["expected"], *entry["inferred"], *entry["imagined"][0]]
    true = [*(row["view"] for row in rows.values()), picture[::-1]]
    stored = [base64.b64decode(data["pictures"][number].split(",")[1]) for number in (seen, *decoded)]
    differences = [
        abs(np.asarray(Image.open(io.BytesIO(x)).convert("RGB")) * 1.0 - y) for x, y in zip(stored, true, strict=True)
    ]
    assert differences[0].max() == 0 and max(x.mean() for x in differences) < 5
    assert all(4 * len(x) < len(stored[0]) for x in stored[1:])


def made_up(length: int, slots: int, keys: int, width: int) -> Episode:
    """Return an episode as long and a memory as large as wanted; each step reads one slot much and others little."""
    rng = np.random.default_rng(0)
    steps = []
    for t in range(length):
        weights = rng.random((keys, slots)) ** 40
        weights[:, rng.integers(slots)] += 3
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[:, : 1 + t % 64] = (200, t % 251, 90)
        steps.append(
            Step({"card": np.array(t % 5)}, {"card": np.array(1)}, {"card": np.array(t % 5)}, float(np.sin(t / 20)),
                 np.array([0.25, 0.75]), np.array(t % 2), float(t % 50 == 49), weights[:3], weights[3:], t % slots,
                 rng.normal(size=width).astype(np.float32), picture)
        )  # fmt: skip
    return Episode("made up", {"card": spaces.Discrete(5)}, spaces.Discrete(2), None, steps, True, 1.0)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and its driver are not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


def opened(browser, path):
    """Open a page and return the milliseconds until it could be used."""
    browser.get(path.resolve().as_uri())
    end = time.monotonic() + 30
    while time.monotonic() < end:
        taken = browser.execute_script("return document.body.dataset.opened")
        if taken:
            return int(taken)
        time.sleep(0.02)
    raise AssertionError(f"the page did not open: {browser.get_log('browser')}")


def press(browser, *keys):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.find_element(By.TAG_NAME, "body").send_keys(*(getattr(Keys, key.upper(), key) for key in keys))


def text(browser, name):
    return browser.execute_script(f"return document.getElementById('{name}').textContent")


def chosen(browser):
    """Return the row that is looked at and the step that wrote it, both from 0."""
    row, step = browser.execute_script("const d = document.getElementById('chosen').dataset; return [d.row, d.step]")
    return int(row), int(step)


def test_an_episode_is_stepped_through_by_keyboard(browser, tmp_path):
    played = play(tiny(env_kwargs={"pairs": 4}))
    page_of([played, play(tiny(env_kwargs={"pairs": 4}), seed=4)], tmp_path / "x.html")
    opened(browser, tmp_path / "x.html")
    assert text(browser, "now").startswith("Step 1 of 12") and text(browser, "chosen") == "Nothing is read yet."
    press(browser, "arrow_right", "arrow_right")
    assert text(browser, "now").startswith(f"Step 3 of 12{played.action_name(2)}reward")
    press(browser, "end")
    assert text(browser, "where") == "12 / 12" and "success" in text(browser, "total")
    press(browser, "arrow_right", "home", "arrow_left")
    assert text(browser, "where") == "1 / 12"
    press(browser, " ")
    time.sleep(2.5)
    assert text(browser, "play") == "Pause" and int(text(browser, "where").split()[0]) >= 2
    press(browser, " ")
    assert text(browser, "play") == "Play"
    browser.execute_script("const s = document.getElementById('episode'); s.value = 1; s.onchange()")
    time.sleep(0.2)
    assert text(browser, "where") == "1 / 12"
    press(browser, "arrow_right")
    assert text(browser, "where") == "2 / 12", "the keyboard steps on after an episode was chosen"
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_a_row_of_the_memory_tells_what_was_seen_when_it_was_written(browser, tmp_path):
    played = play(tiny(env_kwargs={"pairs": 4}))
    page_of([played], tmp_path / "x.html")
    opened(browser, tmp_path / "x.html")
    press(browser, *["arrow_right"] * 7)
    held, most = played.held(7), int(played.steps[7].policy_read_weights[0].argmax())
    assert chosen(browser) == (most, held[most])
    press(browser, *["arrow_up"] * 12)
    assert chosen(browser) == (0, held[0])
    press(browser, "arrow_down", "arrow_down")
    assert chosen(browser) == (2, held[2])
    said = text(browser, "chosen")
    assert f"Written in step {held[2] + 1}, {7 - held[2]} ago: {played.action_name(held[2])}" in said
    assert f"card{played.steps[held[2]].observation['card']}" in said
    assert f"{played.steps[7].policy_read_weights[0, 2]:.2f}"[:3] in said
    press(browser, "enter")
    assert text(browser, "where") == f"{held[2] + 1} / 12"
    press(browser, "end", "escape")
    last = played.steps[-1].policy_read_weights[0]
    assert chosen(browser)[0] == int(last.argmax())
    # a click where the row is
    browser.execute_script(
        "document.getElementById('matrix').dispatchEvent(new MouseEvent('click', {clientX: 40, bubbles: true,"
        "clientY: document.getElementById('matrix').getBoundingClientRect().top + 3.5 * rowHeight}))"
    )
    assert chosen(browser)[0] == 3


def test_what_is_imagined_is_above_what_came(browser, tmp_path):
    played = play(tiny("dreamer", env_kwargs={"pairs": 2}), imagine=4)
    page_of([played], tmp_path / "x.html")
    opened(browser, tmp_path / "x.html")
    press(browser, "arrow_right")
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#ahead tr')].map(r => [...r.querySelectorAll('td')].map(c => "
        "c.querySelector('.word').textContent))"
    )
    imagined = [str(row["card"]) for row in played.steps[1].imagined]
    assert rows == [[], imagined, [str(step.observation["card"]) for step in played.steps[2:]]]
    press(browser, "end")
    assert "ends here" in text(browser, "ahead")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.parametrize("agent", ["rl-mem", "rl-lstm"])
def test_the_page_of_an_agent_that_lacks_something_shows_the_rest(browser, tmp_path, agent):
    page_of([play(tiny(agent, env_kwargs={"pairs": 2}))], tmp_path / "x.html")
    opened(browser, tmp_path / "x.html")
    press(browser, "arrow_right", "arrow_down")
    assert text(browser, "where") == "2 / 6"
    height = browser.execute_script("return document.getElementById('memory').offsetHeight")
    assert (height > 0) == (agent == "rl-mem")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_a_page_of_1000_steps_and_1350_slots_stays_quick(browser, tmp_path):
    path = tmp_path / "x.html"
    page_of([made_up(1000, 1350, 6, 200)], path)
    assert path.stat().st_size < 20e6
    assert opened(browser, path) < 10_000
    each = browser.execute_script("""
        const begin = performance.now();
        for (let i = 0; i < 30; i++) document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        return (performance.now() - begin) / 30;
    """)
    assert text(browser, "where") == "31 / 1000" and each < 200
    press(browser, "end")
    assert text(browser, "where") == "1000 / 1000"
