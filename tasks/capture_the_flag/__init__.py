"""Capture the flag, two against two, in mazes that are new in each game."""

from typing import Any

__all__ = ["parallel_env"]


def parallel_env(**settings: Any) -> Any:
    """Return one game as a PettingZoo ParallelEnv: see `parallel.ParallelCaptureTheFlag`.

    Raises:
        gymnasium.error.DependencyNotInstalled: There is no PettingZoo.
    """
    from gymnasium.error import DependencyNotInstalled

    try:
        from .parallel import ParallelCaptureTheFlag
    except ModuleNotFoundError as error:
        if error.name != "pettingzoo":
            raise
        raise DependencyNotInstalled(
            "parallel_env needs PettingZoo, which is not installed: pip install 'merlin-agents[multi]'."
        ) from error
    return ParallelCaptureTheFlag(**settings)
