"""Agents that remember, centred on MERLIN (Wayne et al. 2018, arXiv:1803.10760).

    import merlin

    run = merlin.train("merlin/MemoryGame-v0", agent="merlin", steps=300_000)
    run.evaluate(episodes=500)
    agent = merlin.load(run.run_dir)

Names are imported when they are first used, so that `import merlin` is quick; its one effect beside old names
(`merlin.moved`) is that gymnasium knows the ids of `merlin.tasks`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from merlin.moved import OldNames

sys.meta_path.insert(0, OldNames)
import_module("merlin.tasks")

if TYPE_CHECKING:  # the names of _PUBLIC, for type checkers, to whom any other is an error
    from merlin.agents import AGENTS as AGENTS
    from merlin.agents import Agent as Agent
    from merlin.agents.merlin import Merlin as Merlin
    from merlin.agents.merlin import MerlinConfig as MerlinConfig
    from merlin.agents.rl_lstm import RLLSTM as RLLSTM
    from merlin.agents.rl_lstm import RLLSTMConfig as RLLSTMConfig
    from merlin.agents.rl_mem import RLMem as RLMem
    from merlin.agents.rl_mem import RLMemConfig as RLMemConfig
    from merlin.environments.batch import Environment as Environment
    from merlin.environments.batch import Timestep as Timestep
    from merlin.environments.batch import make_environment as make_environment
    from merlin.errors import MerlinError as MerlinError
    from merlin.experience import Losses as Losses
    from merlin.experience import StepOutput as StepOutput
    from merlin.experience import Unroll as Unroll
    from merlin.memory import MemoryState as MemoryState
    from merlin.memory import Reader as Reader
    from merlin.runs.learning_curve import plot_learning_curve as plot_learning_curve
    from merlin.runs.player import LoadedAgent as LoadedAgent
    from merlin.runs.player import load as load
    from merlin.runs.presets import RunConfig as RunConfig
    from merlin.runs.presets import preset as preset
    from merlin.runs.run import Summary as Summary
    from merlin.runs.run import build_agent as build_agent
    from merlin.runs.run import build_environment as build_environment
    from merlin.runs.run import load_agent as load_agent
    from merlin.runs.run import load_config as load_config
    from merlin.runs.run import train as train
    from merlin.runs.settings import override as override
    from merlin.training.evaluation import evaluate as evaluate
    from merlin.training.trainer import Trainer as Trainer
    from merlin.training.trainer import TrainingConfig as TrainingConfig
    from merlin.version import __version__ as __version__
    from merlin.viewer.watch import watch as watch

_PUBLIC = {
    "merlin.agents": ("AGENTS", "Agent"),
    "merlin.agents.merlin": ("Merlin", "MerlinConfig"),
    "merlin.agents.rl_lstm": ("RLLSTM", "RLLSTMConfig"),
    "merlin.agents.rl_mem": ("RLMem", "RLMemConfig"),
    "merlin.runs.learning_curve": ("plot_learning_curve",),
    "merlin.viewer.watch": ("watch",),
    "merlin.runs.settings": ("override",),
    "merlin.errors": ("MerlinError",),
    "merlin.memory": ("MemoryState", "Reader"),
    "merlin.runs.player": ("LoadedAgent", "load"),
    "merlin.runs.presets": ("RunConfig", "preset"),
    "merlin.runs.run": ("Summary", "build_agent", "build_environment", "load_agent", "load_config", "train"),
    "merlin.environments.batch": ("Environment", "Timestep", "make_environment"),
    "merlin.training.evaluation": ("evaluate",),
    "merlin.training.trainer": ("Trainer", "TrainingConfig"),
    "merlin.experience": ("Losses", "StepOutput", "Unroll"),
    "merlin.version": ("__version__",),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

if not TYPE_CHECKING:
    __all__ = sorted(_MODULE_OF)

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
