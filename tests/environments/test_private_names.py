"""The private names of gymnasium that `merlin.environments` uses are there, and do what it uses them for."""

import ast
import importlib
import inspect
from pathlib import Path

import gymnasium
import pytest
from gymnasium.vector import AsyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

ROOT = Path(__file__).parents[2]
IMPORTED = {"gymnasium.vector.async_vector_env": {"_async_worker"}}
HINT = (
    f"gymnasium {gymnasium.__version__} has changed what merlin.environments uses of it: adapt merlin/environments, "
    "or lower the upper bound of gymnasium in setup.cfg"
)


@pytest.mark.parametrize("module, name", [(module, name) for module, names in IMPORTED.items() for name in names])
def test_a_private_name_is_there(module, name):
    assert hasattr(importlib.import_module(module), name), f"{module} has no {name}. {HINT}"


def test_no_other_private_name_is_imported():
    found = {}
    for folder in ("merlin", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gymnasium":
                    private = {alias.name for alias in node.names if alias.name.startswith("_")}
                    if private:
                        found.setdefault(node.module, set()).update(private)
    assert found == IMPORTED


def test_a_worker_takes_what_ours_hands_on():
    from gymnasium.vector.async_vector_env import _async_worker

    names = list(inspect.signature(_async_worker).parameters)
    expected = ["index", "env_fn", "pipe", "parent_pipe", "shared_memory", "error_queue"]
    assert names[:6] == expected, f"_async_worker takes {', '.join(names)}. {HINT}"


def test_asynchronous_environments_have_a_state_that_can_be_set_back():
    """So that `Environment.close` ends workers that were interrupted in a step, for whose answers gymnasium waits."""
    envs = AsyncVectorEnv([lambda: gymnasium.make("CartPole-v1")])
    state = getattr(envs, "_state", None)
    assert state is AsyncState.DEFAULT, f"AsyncVectorEnv._state is {state!r} before a step. {HINT}"
    envs.reset(seed=0)
    envs.step_async(envs.action_space.sample())
    assert envs._state is AsyncState.WAITING_STEP, f"AsyncVectorEnv._state is {envs._state!r} within a step. {HINT}"
    envs._state = AsyncState.DEFAULT
    envs.close(terminate=True)
    assert not any(process.is_alive() for process in envs.processes)


@pytest.mark.parametrize("name", ["_check_spaces", "_poll_pipe_envs", "_assert_is_running"])
def test_workers_are_waited_for_in_gymnasiums_own_places(name):
    """`Workers` overrides or calls these; each answer is awaited through `_poll_pipe_envs`."""
    assert callable(getattr(AsyncVectorEnv, name, None)), f"AsyncVectorEnv has no {name}. {HINT}"
    for wait in (AsyncVectorEnv.reset_wait, AsyncVectorEnv.step_wait, AsyncVectorEnv.call_wait):
        assert "_poll_pipe_envs" in wait.__code__.co_names, f"{wait.__name__} waits in another place. {HINT}"
