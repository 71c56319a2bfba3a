"""render_mode="human": environment 0 in a window, after every reset and step."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

from merlin.tasks.base.vector import TensorVectorEnv
from merlin.tasks.base.window import SMALLEST_SIDE, Window
from tests.tasks.test_tasks import every_case, make_batch

pygame = pytest.importorskip("pygame")


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    monkeypatch.setitem(TensorVectorEnv.metadata, "render_fps", 1000)
    yield
    pygame.display.quit()


def shown():
    return pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)


def assert_shows(picture):
    scale = len(shown()) // len(picture)
    assert np.array_equal(shown(), picture.repeat(scale, 0).repeat(scale, 1))


@every_case
def test_one_environment_is_shown_from_reset_to_close(task_id, kwargs):
    env = gymnasium.make(task_id, render_mode="human", disable_env_checker=True, **kwargs)
    assert not pygame.display.get_init()
    env.reset(seed=0)
    assert_shows(env.unwrapped.batch.draw(0))
    env.step(env.action_space.sample())
    assert_shows(env.unwrapped.batch.draw(0))
    assert env.render() is None
    env.close()
    assert not pygame.display.get_init()


@pytest.mark.parametrize("task_id, kwargs", [("merlin/Memory-v0", {}), ("merlin/MemoryGame-v0", {})])
def test_a_batch_shows_its_first_environment(task_id, kwargs):
    env = make_batch(task_id, kwargs | {"render_mode": "human"}, num_envs=3)
    env.reset(seed=0)
    for step in range(12):  # the memory game starts anew after 9
        assert_shows(env.draw(0))
        env.step(torch.full((3,), step % 2))
    assert env.render() is None
    env.close()
    assert not pygame.display.get_init()


def test_small_pictures_are_shown_larger_and_large_ones_as_they_are():
    window = Window("test", 1000)
    for side, expected in ((1, SMALLEST_SIDE), (200, 2 * 200), (700, 700)):
        window.show(np.full((side, side // 2 + 1, 3), 7, np.uint8))
        assert shown().shape == (expected, (side // 2 + 1) * (expected // side), 3)
        assert (shown() == 7).all()


def test_a_window_comes_back_after_another_environment_closed_it():
    first, second = Window("first", 1000), Window("second", 1000)
    picture = np.zeros((5, 5, 3), np.uint8)
    first.show(picture), second.show(picture)
    second.close()
    first.show(picture)
    assert pygame.display.get_caption()[0] == "first"


def test_pictures_take_their_time():
    window, picture = Window("test", 20), np.zeros((5, 5, 3), np.uint8)
    window.show(picture)
    begin = pygame.time.get_ticks()
    window.show(picture), window.show(picture)
    assert pygame.time.get_ticks() - begin >= 80


def test_without_pygame_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(gymnasium.error.DependencyNotInstalled, match=r"^render_mode='human' needs pygame, which is no"):
        make_batch("merlin/TMaze-v0", {"render_mode": "human"})


def test_no_warning_and_no_greeting():
    program = """
import gymnasium, merlin
env = gymnasium.make("merlin/TMaze-v0", render_mode="human")
env.reset(seed=0), env.step(0), env.close()
batch = gymnasium.make_vec("merlin/TMaze-v0", 2, vectorization_mode="vector_entry_point", render_mode="human")
batch.reset(seed=0)
"""
    process = subprocess.run([sys.executable, "-W", "error", "-c", program], text=True, capture_output=True, timeout=60)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
