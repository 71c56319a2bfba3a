"""Agents found by name, and a plain sentence for each way not to find one."""

import sys

import pytest

from merlin.agents import AGENTS, find_agent
from merlin.errors import MerlinError
from merlin.plugins import importable_from

SOURCE = '''
from dataclasses import dataclass
from merlin.agents.merlin import Merlin, MerlinConfig
from merlin.agents.agent import Agent

class Mine(Merlin):
    """Mine, in a line.

    And more."""
    config_class = MerlinConfig

class Bare(Merlin):
    config_class = dict

class Abstract(Agent):
    config_class = MerlinConfig

class Unconfigured(Merlin):
    config_class = None

class NoAgent:
    config_class = MerlinConfig

CONFIG = MerlinConfig()
'''


@pytest.fixture
def directory(tmp_path):
    """A directory with an agent in a module, importable for as long as the test lasts."""
    (tmp_path / "agent_of_mine.py").write_text(SOURCE)
    (tmp_path / "agent_that_fails.py").write_text("raise RuntimeError('the sky fell.\\nand more')")
    (tmp_path / "agent_that_needs.py").write_text("import no_such_module")
    with importable_from(tmp_path):
        yield tmp_path
    sys.modules.pop("agent_of_mine", None)
    assert str(tmp_path) not in sys.path


def test_agents_of_this_package_and_of_a_module_are_found(directory):
    assert all(find_agent(name) is entry for name, entry in AGENTS.items())
    found = find_agent("agent_of_mine:Mine")
    assert found.agent_class is sys.modules["agent_of_mine"].Mine
    assert found.config_class is AGENTS["merlin"].config_class and found.summary == "Mine, in a line."


@pytest.mark.usefixtures("on_a_command_line")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rl-lst", "rl-lstm, rl-mem or module:Name, but is 'rl-lst': did you mean 'rl-lstm'?"),
        ("zzz", "but is 'zzz': choose one of them."),
        ("", "but is '': choose one of them."),
        ("no_such_module:Mine", "'no_such_module': install it, or say where it lies with `--import-from DIR`."),
        ("no_such.module:Mine", "'no_such': install it, or say where it lies with `--import-from DIR`."),
        ("mine.py:Mine", "is named as in `import`, but 'mine.py' is a file: write mine:Mine."),
        ("a b/mine.py:Mine", "is a file: write mine:Mine, and say where it lies with `--import-from 'a b'`."),
        ("agent_that_needs:Mine", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module' at "),
        ("agent_that_fails:Mine", "cannot be imported: RuntimeError: the sky fell at "),
        ("agent_of_mine:Mien", "agent_of_mine.py has nothing of that name: did you mean 'Mine'?"),
        ("agent_of_mine:zzz", "has nothing of that name: correct it."),
        ("agent_of_mine:", "has nothing of that name: correct it."),
        (":Mine", "cannot be imported: ValueError: Empty module name"),
        ("agent_of_mine:NoAgent", "must name a class derived from Agent, but what it has of that name is none"),
        ("agent_of_mine:CONFIG", "must name a class derived from Agent, but what it has of that name is none"),
        ("agent_of_mine:Abstract", "'agent_of_mine:Abstract' must have all methods of Agent, but lacks advance, "),
        ("agent_of_mine:Bare", "ActorCriticConfig, but has <class 'dict'>: add it to the class."),
        ("agent_of_mine:Unconfigured", "ActorCriticConfig, but has None: add it to the class."),
    ],
)
def test_what_is_no_agent_is_told_in_a_sentence(directory, name, sentence):
    with pytest.raises(MerlinError) as error:
        find_agent(name)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_directory_comes_after_what_is_installed(tmp_path):
    """A file of the user's that is called as a module of somebody else's takes nobody's place."""
    with importable_from(tmp_path):
        assert sys.path[-1] == str(tmp_path)
        with importable_from(tmp_path):
            pass
        assert sys.path[-1] == str(tmp_path)
    with importable_from(None):
        assert str(tmp_path) not in sys.path
