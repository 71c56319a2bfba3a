"""Tasks that are made by a function: what the agent sees of them is drawn, whether they draw themselves or not."""

import gymnasium
import pytest

from merlin.environments.batch import make_environment
from merlin.viewer.game import Game


def plain():
    return gymnasium.make("CartPole-v1")


def passing(**kwargs):
    return gymnasium.make("CartPole-v1", **kwargs)


def drawing(render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)


for make in (plain, passing, drawing):
    gymnasium.register(f"test/{make.__name__.title()}-v0", entry_point=make)


@pytest.mark.parametrize(("task", "draws"), [("Plain", False), ("Passing", True), ("Drawing", True)])
def test_a_task_made_by_a_function_is_built_and_drawn_if_it_can_be(task, draws):
    with make_environment(f"test/{task}-v0", 1, render_mode="rgb_array") as environment:
        environment.reset(1)
        assert (environment.render(0) is not None) == draws
    game = Game(f"test/{task}-v0", {}, 1)
    with game.env:
        assert game.can_draw == draws
        game.act(0)
        assert game.steps == 1
