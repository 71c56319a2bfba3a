"""`merlin play`: keys, pictures in half blocks, the terminal left as it was found."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from contextlib import nullcontext
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, MultiDiscrete

from merlin import tasks
from merlin.errors import MerlinError
from merlin.tasks.classic.tmaze import TMaze
from merlin.viewer import play as playing
from merlin.viewer.game import OTHER_KEYS, Game, choose_keys, simple_actions
from merlin.viewer.play import play
from merlin.viewer.terminal import Block, beside, picture_block, pressed_keys

ROOT = Path(__file__).parents[2]
RED, BLUE = (255, 0, 0), (0, 0, 255)


def unstyled(line):
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def test_grid_worlds_are_played_with_arrows_and_letters():
    names = ("left", "right", "forward", "pick up", "drop", "toggle", "done")
    moving = {"left": 0, "a": 0, "right": 1, "up": 2, "w": 2}
    assert choose_keys(names) == moving | {"p": 3, "d": 4, "space": 5, "enter": 6}
    assert choose_keys(names[:3]) == moving | {"d": 1}  # which drops nothing here
    assert choose_keys([name.replace(" ", "") for name in names]) == choose_keys(names)


def test_other_actions_have_digits_then_letters():
    keys = choose_keys([f"flip {number}" for number in range(12)])
    assert list(keys) == [*"123456789abc"] and list(keys.values()) == list(range(12))
    assert choose_keys(["left", "wait", "jump"]) == {"left": 0, "a": 0, "1": 1, "2": 2}
    assert len(choose_keys(["?"] * len(OTHER_KEYS))) == len(OTHER_KEYS) and not {"q", "?"} & {*OTHER_KEYS}
    with pytest.raises(MerlinError, match=f"At most {len(OTHER_KEYS)} actions have a key each, but this task has 61"):
        choose_keys(["?"] * 61)


def test_keys_are_named_however_they_arrive():
    reader, writer = os.pipe()
    keys = pressed_keys(reader)
    os.write(writer, b"a\x1b[A\x1bOD \r\n\t\x1b[3~\x1b[1;5Cq")
    assert [next(keys) for _ in range(8)] == ["a", "up", "left", "space", "enter", "enter", "tab", "q"]
    os.write(writer, b"x\x1b[")
    assert next(keys) == "x"
    os.write(writer, b"B\xc3")
    assert next(keys) == "down"
    os.close(writer)
    assert list(keys) == []
    os.close(reader)


def test_two_pixels_make_a_character():
    picture = np.array([[RED, BLUE], [BLUE, BLUE], [RED, RED]], np.uint8)
    red_on_blue, blue_on_blue = "\x1b[38;2;255;0;0;48;2;0;0;255m", "\x1b[38;2;0;0;255;48;2;0;0;255m"
    lines = [f"{red_on_blue}▀{blue_on_blue}▀\x1b[0m", "\x1b[38;2;255;0;0;49m▀▀\x1b[0m"]
    assert picture_block(picture, 3, 2) == Block(lines, 2)


@pytest.mark.parametrize(
    "shape, columns, rows, expected",
    [
        ((2, 4), 9, 9, (2, 8)),  # twice as large: 4 pixels are 2 rows
        ((2, 4), 100, 3, (3, 12)),
        ((100, 50), 40, 20, (20, 20)),  # smaller
        ((10, 1000), 50, 50, (1, 50)),
    ],
)
def test_pictures_are_as_large_as_fits(shape, columns, rows, expected):
    block = picture_block(np.zeros((*shape, 3), np.uint8), columns, rows)
    assert (len(block.lines), block.width) == expected
    assert {len(unstyled(line)) for line in block.lines} == {block.width}


def test_blocks_beside_each_other_are_filled_up():
    assert beside(Block(["ab"], 2), Block(["c", "d"], 1)) == Block(["ab  c", "    d"], 5)
    assert beside(Block(["a", "b"], 1), Block(["c"], 1), 1).lines == ["a c", "b  "]


class Writing(gymnasium.Env):
    """Writes over its actions, and calls its own what it likes."""

    observation_space, action_space = Box(-1, 1, (2,)), MultiDiscrete([3, 2])
    scores = (0, 0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.heard = action.tolist()
        action[:] = 0
        return np.zeros(2, np.float32), 0.0, True, False, {}


def test_an_environment_of_others_may_write_over_its_actions_and_have_scores_of_its_own():
    game = Game(f"{__name__}:Writing", {}, seed=0)
    for _ in range(2):
        game.start()
        game.act(2)
        assert game.unwrapped.heard == [2, 0] and game.scores() == {}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_fits_on_a_screen(task):
    game = Game(task, {}, seed=0)
    assert game.default_view == "agent" and sorted({*game.keys.values()}) == list(range(len(game.names)))
    random = np.random.default_rng(0)
    for view in ("agent", "above"):
        screen = playing._Screen(game, view, tasks.TASKS[task].summary, sys.stdout)
        for columns, rows in ((80, 23), (200, 60)):
            game.act(int(random.integers(len(game.names))))
            lines = [unstyled(line) for line in screen.lines(columns, rows)]
            assert len(lines) <= rows and max(map(len, lines)) <= columns
            assert f"episode 1, step {game.steps}" in "\n".join(lines) and "q quit" in "\n".join(lines)
        screen.has_help = True
        assert "q   quit" in "\n".join(screen.lines(80, 23))
    game.env.close()


def transcript(capsys, keys, task, **settings):
    reader, writer = os.pipe()
    os.write(writer, keys)
    os.close(writer)
    play(task, keys=reader, **settings)
    os.close(reader)
    return capsys.readouterr().out.splitlines()


def test_keys_through_a_pipe_play_episode_after_episode(capsys):
    env = TMaze(1, length=1)
    env.autoreset = False
    cues, turns = [], ["left", "right"]
    for seed in (5, None):  # as play resets it
        cues.append(int(env.reset(seed=seed)[0][0, 1]))
    first, second = (("1 0 0 0", "0 1 0 0")[cue] for cue in cues)
    right, wrong = turns[cues[0]], turns[1 - cues[1]]
    arrows = {"left": b"\x1b[D", "right": b"\x1b[C"}
    keys = b"w" + arrows[right] + b"x" + b"w" + arrows[wrong] + b"qw"
    scores = "(random 0.24, memoryless 0.50, oracle 1.00)"
    assert transcript(capsys, keys, "merlin/TMaze-v0", env_kwargs={"length": 1}, seed=5) == [
        f"episode 1 of merlin/TMaze-v0: shown {first}",
        "step 1: forward, reward 0; shown 0 0 0 1",
        f"step 2: {right}, reward 1; shown 0 0 0 1",
        f"success, return 1 {scores}",
        f"episode 2 of merlin/TMaze-v0: shown {second}",
        "step 1: forward, reward 0; shown 0 0 0 1",
        f"step 2: {wrong}, reward 0; shown 0 0 0 1",
        f"no success, return 0 {scores}",
    ]


def test_help_tells_the_task_and_the_keys_and_other_keys_do_nothing(capsys):
    lines = transcript(capsys, b"?z\t1", "merlin/Playback-v0", summary="name what was shown")
    assert lines[1:3] == ["merlin/Playback-v0: name what was shown", "1 name 1  2 name 2  3 name 3  4 name 4"]
    assert lines[3].startswith("step 1: name 1, ") and len(lines) == 4


def test_words_are_shown_as_words(capsys):
    lines = transcript(capsys, b"aa", "merlin/TransientInstruction-v0", seed=0)
    assert re.search("; instruction go to the [a-z]+ (ball|box|key)$", lines[0])
    assert lines[1].endswith("instruction")


def test_of_an_action_of_several_parts_one_is_chosen_at_a_time(capsys):
    lines = transcript(capsys, b"?wa \x1b[C\n", "merlin/CaptureTheFlag-v0", env_kwargs={"size": 9}, seed=0)
    keys = "enter stay  ↑/w forward  ↓/s back  a step left  d step right  ← left  → right  space tag"
    assert lines[2] == keys
    assert [line.split(",")[0] for line in lines[3:]] == [
        f"step {number}: {name}" for number, name in enumerate(("forward", "step left", "tag", "right", "stay"), 1)
    ]
    actions, names = simple_actions(MultiDiscrete([2, 3], start=[5, 0]), None)
    assert [action.tolist() for action in actions] == [[5, 0], [6, 0], [5, 1], [5, 2]]
    assert names == ["action 0", "action 0: 6", "action 1: 1", "action 1: 2"]


def test_any_gymnasium_task_with_few_actions_can_be_played(capsys):
    assert transcript(capsys, b"?1", "MiniGrid-MemoryS7-v0", seed=0)[1:] == [
        "MiniGrid-MemoryS7-v0: go to the matching object at the end of the hallway",
        "←/a left  → right  ↑/w forward  p pickup  d drop  space toggle  enter done",
    ]
    lines = transcript(capsys, b"1" * 30, "CartPole-v1", seed=0)
    assert lines[1].startswith("step 1: action 0, reward 1; ")
    assert any(re.fullmatch("the end, return [0-9]+", line) for line in lines)
    game = Game("CartPole-v1", {}, seed=0)
    assert game.default_view == "above" and game.block("above", 40, 20).width > 20
    game.env.close()


@pytest.mark.parametrize(
    "task, kwargs, message",
    [
        ("Pendulum-v1", {}, "action space is Discrete or MultiDiscrete, but Pendulum-v1 has a Box: choose another"),
        ("merlin/TMaze-v0", {"lenght": 3}, "TMaze has no argument lenght: did you mean 'length'?"),
        ("merlin/TMaise-v0", {}, "There is no task 'merlin/TMaise-v0'.*TMaze"),
    ],
)
def test_what_cannot_be_played_is_told_in_a_sentence(task, kwargs, message):
    with pytest.raises(MerlinError, match=message):
        play(task, kwargs)


class Person:
    """Sits at the other end of a terminal: presses keys once there is something to see, and sees all that is shown."""

    def __init__(self, keys):
        self.end, program = pty.openpty()
        self.terminal, self.keys, self.shown = os.fdopen(program, "w"), keys, b""
        self.thread = threading.Thread(target=self.sit, daemon=True)
        self.thread.start()

    def sit(self):
        while self.keys or b"\x1b[?1049l" not in self.shown:
            self.shown += os.read(self.end, 10_000)
            if b"q quit" in self.shown:
                os.write(self.end, self.keys)
                self.keys = b""

    def leave(self):
        """Return what was shown, once the program is through with the terminal."""
        self.thread.join(10)
        self.terminal.close(), os.close(self.end)
        return self.shown.decode()


def fail(error):
    def act(*_):
        if isinstance(error, int):
            os.kill(os.getpid(), error)
            signal.pause()
        raise error

    return act


@pytest.mark.parametrize(
    "keys, error, expected",
    [
        (b"\x1b[Aa?\t?q", None, None),
        (b"a", KeyboardInterrupt(), KeyboardInterrupt),
        (b"a", RuntimeError(), RuntimeError),
        (b"a", signal.SIGTERM, SystemExit),
        (b"a", signal.SIGHUP, SystemExit),
    ],
)
def test_the_terminal_is_left_as_it_was_found(keys, error, expected, monkeypatch):
    person = Person(keys)
    before, handler = termios.tcgetattr(person.terminal), signal.getsignal(signal.SIGTERM)
    if error:
        monkeypatch.setattr(Game, "act", fail(error))
    with pytest.raises(expected) if error else nullcontext():
        play("merlin/TMaze-v0", keys=person.terminal.fileno(), screen=person.terminal)
    assert termios.tcgetattr(person.terminal) == before and signal.getsignal(signal.SIGTERM) is handler
    shown = person.leave()
    assert shown.count("\x1b[?1049h\x1b[?25l") == 1 and shown.endswith("\x1b[?25h\x1b[?1049l")
    assert error or ("change the view" in shown and "step 2" in shown)


def test_ctrl_c_ends_it_in_a_terminal():
    person = Person(b"\x03")
    before = termios.tcgetattr(person.terminal)
    # The program must own the terminal, for Ctrl-C to reach it.
    own = "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    own += "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", own, sys.executable, "-m", "merlin", "play", "merlin/TMaze-v0"], cwd=ROOT,
        start_new_session=True, stdin=person.terminal, stdout=person.terminal, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.communicate(timeout=200)[1].decode() == "merlin: interrupted.\n"
    finally:
        process.kill()
    assert process.returncode == 130 and termios.tcgetattr(person.terminal) == before
    assert person.leave().endswith("\x1b[?25h\x1b[?1049l")
