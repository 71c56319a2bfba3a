"""How an environment is taken: settings of a run besides the task's own."""

from dataclasses import dataclass, field
from typing import Annotated

from merlin.ranges import Settings, above


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig(Settings):
    """How environments are wrapped, read and waited for."""

    wrappers: tuple[str, ...] = ()
    """Wrappers of your own, `module:Wrapper`, the first innermost; each is called with one environment."""
    kinds: dict[str, str] = field(default_factory=dict)
    """What entries of the observation are read as where the rules would say otherwise, each by its name:
    vector, image, symbols or category."""
    pictures_by_bounds: bool = False
    """Read every bounded Box of two or three axes as a picture, as runs of version 0.2.0 and before did."""
    step_seconds: Annotated[float | None, above(0)] = 600.0
    """How long one step or reset of a worker process may take before training ends; none waits for ever."""
