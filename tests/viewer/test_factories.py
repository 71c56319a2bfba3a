"""Tasks that may draw themselves or not: what the agent sees of them is drawn in either case."""

import gymnasium
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from merlin.environments.batch import make_environment
from merlin.viewer.game import Game


def plain():
    return gymnasium.make("CartPole-v1")


def passing(**kwargs):
    return gymnasium.make("CartPole-v1", **kwargs)


def drawing(render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)


class Boasting(CartPoleEnv):
    """It says that it draws, and cannot be asked to."""

    def __init__(self):
        super().__init__()


class PassingOn(Boasting):
    """Neither can this one, though it passes on whatever it is asked."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Silent(gymnasium.Env):
    """Its class has no constructor at all."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own form)
    observation_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, 0.0, False, False, {}


for make in (plain, passing, drawing, Boasting, PassingOn, Silent):
    gymnasium.register(f"test/{make.__name__[0].upper()}{make.__name__[1:]}-v0", entry_point=make)


@pytest.mark.parametrize(
    ("task", "draws"),
    [
        ("Plain", False),
        ("Passing", True),
        ("Drawing", True),
        ("Boasting", False),
        ("PassingOn", False),
        ("Silent", False),
    ],
)
def test_a_task_is_built_and_drawn_if_it_can_be(task, draws):
    with make_environment(f"test/{task}-v0", 1, render_mode="rgb_array") as environment:
        environment.reset(1)
        assert (environment.render(0) is not None) == draws
    game = Game(f"test/{task}-v0", {}, 1)
    with game.env:
        assert game.can_draw == draws
        game.act(0)
        assert game.steps == 1
