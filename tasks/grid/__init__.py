"""Grid worlds by MiniGrid's rules: cells, layouts, views, mazes."""

from .world import GridWorld, Moves, Verdict

__all__ = ["GridWorld", "Moves", "Verdict"]
