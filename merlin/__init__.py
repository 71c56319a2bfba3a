"""Agents that remember, centred on MERLIN (Wayne et al. 2018, arXiv:1803.10760).

    import merlin

    config = merlin.preset("merlin", "merlin/MemoryGame-v0")
    merlin.train(config, "runs/mine")

Names are imported when they are first used, so that `import merlin` is quick; its one effect beside old names
(`merlin.moved`) is that gymnasium knows the ids of `merlin.tasks`.
"""

import sys
from importlib import import_module
from typing import Any

from merlin.moved import OldNames

sys.meta_path.insert(0, OldNames)
import_module("merlin.tasks")

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
    "merlin.runs.presets": ("RunConfig", "preset"),
    "merlin.runs.run": ("Summary", "build_agent", "build_environment", "load_agent", "load_config", "train"),
    "merlin.environments.batch": ("Environment", "Timestep", "make_environment"),
    "merlin.training.evaluation": ("evaluate",),
    "merlin.training.trainer": ("Trainer", "TrainingConfig"),
    "merlin.experience": ("Losses", "StepOutput", "Unroll"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
