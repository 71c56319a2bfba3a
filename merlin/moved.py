"""Old names of modules: `import merlin.returns` gives `merlin.objectives.returns` itself, not a copy of it."""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "merlin.analysis.episodes": "merlin.viewer.episodes",
    "merlin.analysis.formats": "merlin.viewer.formats",
    "merlin.config": "merlin.runs.settings",
    "merlin.networks.recurrent": "merlin.states",
    "merlin.predictor": "merlin.agents.merlin.predictor",
    "merlin.presets": "merlin.runs.presets",
    "merlin.returns": "merlin.objectives.returns",
    "merlin.run": "merlin.runs.run",
    "merlin.training.environment": "merlin.environments.batch",
    "merlin.unroll": "merlin.experience",
}


class MovedFinder(MetaPathFinder, Loader):
    """Finds a module under the name that it had before."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])  # which the importer then takes
