"""Old names of modules: importing one gives the module that took its place, the same object.

`import merlin` puts `OldNames` first among Python's finders. `tasks` is `merlin.tasks` where nothing else has that
name: a user's own `tasks.py` or `tasks/` wins.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

MOVED = {
    "tasks": "merlin.tasks",
    "merlin.analysis.episodes": "merlin.viewer.episodes",
    "merlin.analysis.formats": "merlin.viewer.formats",
    "merlin.config": "merlin.runs.settings",
    "merlin.networks.recurrent": "merlin.states",
    "merlin.predictor": "merlin.agents.merlin.predictor",
    "merlin.presets": "merlin.runs.presets",
    "merlin.profiling": "merlin.runs.profiling",
    "merlin.returns": "merlin.objectives.returns",
    "merlin.run": "merlin.runs.run",
    "merlin.training.environment": "merlin.environments.batch",
    "merlin.unroll": "merlin.experience",
    "merlin.tasks.board": "merlin.tasks.grid.board",
    "merlin.tasks.cells": "merlin.tasks.grid.cells",
    "merlin.tasks.door_key": "merlin.tasks.minigrid_tasks.door_key",
    "merlin.tasks.empty": "merlin.tasks.minigrid_tasks.empty",
    "merlin.tasks.first_person": "merlin.tasks.grid.first_person.renderer",
    "merlin.tasks.four_rooms": "merlin.tasks.minigrid_tasks.four_rooms",
    "merlin.tasks.glyphs": "merlin.tasks.paper.glyphs",
    "merlin.tasks.goal_maze": "merlin.tasks.paper.goal_maze",
    "merlin.tasks.hallway": "merlin.tasks.minigrid_tasks.memory",
    "merlin.tasks.instruction": "merlin.tasks.paper.transient_instruction",
    "merlin.tasks.key_corridor": "merlin.tasks.minigrid_tasks.key_corridor",
    "merlin.tasks.latent_learning": "merlin.tasks.paper.latent_learning",
    "merlin.tasks.lava_gap": "merlin.tasks.minigrid_tasks.lava_gap",
    "merlin.tasks.layouts": "merlin.tasks.grid.layouts",
    "merlin.tasks.maze": "merlin.tasks.classic.maze",
    "merlin.tasks.mazes": "merlin.tasks.grid.mazes",
    "merlin.tasks.memory_game": "merlin.tasks.paper.memory_game",
    "merlin.tasks.multi_room": "merlin.tasks.minigrid_tasks.multi_room",
    "merlin.tasks.obstructed_maze": "merlin.tasks.minigrid_tasks.obstructed_maze",
    "merlin.tasks.perspective": "merlin.tasks.grid.first_person.geometry",
    "merlin.tasks.planned": "merlin.tasks.solvers.scores",
    "merlin.tasks.planning": "merlin.tasks.solvers.planning",
    "merlin.tasks.playback": "merlin.tasks.classic.playback",
    "merlin.tasks.recall": "merlin.tasks.classic.recall",
    "merlin.tasks.red_blue_doors": "merlin.tasks.minigrid_tasks.red_blue_doors",
    "merlin.tasks.reflexes": "merlin.tasks.solvers.reactive",
    "merlin.tasks.repeat": "merlin.tasks.classic.repeat",
    "merlin.tasks.returning": "merlin.tasks.grid.returning",
    "merlin.tasks.reward_valuation": "merlin.tasks.paper.reward_valuation",
    "merlin.tasks.room_board": "merlin.tasks.grid.room_board",
    "merlin.tasks.sight": "merlin.tasks.grid.visibility",
    "merlin.tasks.single": "merlin.tasks.base.single",
    "merlin.tasks.staged_plans": "merlin.tasks.solvers.planning",
    "merlin.tasks.textures": "merlin.tasks.grid.first_person.textures",
    "merlin.tasks.tmaze": "merlin.tasks.classic.tmaze",
    "merlin.tasks.vector": "merlin.tasks.base.vector",
    "merlin.tasks.visuomotor": "merlin.tasks.paper.visuomotor",
    "merlin.tasks.water_maze": "merlin.tasks.paper.water_maze",
    "merlin.tasks.window": "merlin.tasks.base.window",
}
"""New name of each module by its old one; what lies in it moved with it."""


class OldNames:
    """Finder and loader of the old names, and of `merlin.tasks` in a checkout, whose folder is `tasks/`."""

    @classmethod
    def find_spec(cls, name: str, path=None, target=None) -> ModuleSpec | None:
        if name == "merlin.tasks":
            here = Path(__file__).parent
            is_installed = (here / "tasks" / "__init__.py").is_file()
            return None if is_installed else spec_from_file_location(name, here.parent / "tasks" / "__init__.py")
        old = name
        while old and old not in MOVED:
            old = old.rpartition(".")[0]
        if not old or (old == "tasks" and cls._is_taken(name)):
            return None
        # typeshed asks for an instance of Loader, Python for any object with its methods
        return ModuleSpec(name, cls, loader_state=MOVED[old] + name.removeprefix(old))  # pyright: ignore[reportArgumentType]

    @classmethod
    def _is_taken(cls, name: str) -> bool:
        """Whether `tasks`, or what lies in it, is somebody else's."""
        if name != "tasks":
            return sys.modules["tasks"] is not sys.modules.get("merlin.tasks")
        return any(finder.find_spec(name, None) for finder in sys.meta_path if finder is not cls)

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Leave it to Python: what it makes is replaced."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None and spec.loader_state is not None, "made by `find_spec`"
        sys.modules[module.__name__] = import_module(spec.loader_state)
