"""A curriculum: one argument of the environment, such as its size, takes easier values first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from merlin.ranges import COUNT, Range, SettingError, Settings


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(Settings):
    """The stages that training goes through before the task as it is, and when it moves on. Bengio et al. 2009."""

    argument: str | None = None
    """Keyword argument of the environment that the stages differ in, such as size; none trains on the task alone."""
    values: tuple[int | float | bool | str, ...] = ()
    """Its value in each stage, easiest first. After them comes the task as `env_kwargs` has it."""
    until_success: Annotated[float | None, Range(0, 1)] = None
    """A stage is done when the success rate of a report is at least this."""
    until_return: Annotated[float | None, Range(-1_000_000_000, 1_000_000_000)] = None
    """A stage is done when the mean return of a report is at least this."""
    until_steps: Annotated[int | None, COUNT] = None
    """A stage is done after so many environment steps in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        until = (self.until_success, self.until_return, self.until_steps)
        if self.argument is None and not self.values and until == (None, None, None):
            return
        if self.argument is None or not self.values:
            raise SettingError(
                "argument must name what the stages differ in, and values say how, but one of them is not given: "
                "give both, such as curriculum.argument=size curriculum.values=5,7."
            )
        if until == (None, None, None):
            raise SettingError(
                "until_success, until_return or until_steps must say when a stage is done, but none is given: give one."
            )


class Curriculum:
    """Where a run stands in its curriculum. Whether a stage is done is asked at each report.

    Attributes:
        stage: The present one, from 0; that of the task as it is has the number of `values`.
        began_at: Environment steps of the run as it began.
    """

    def __init__(self, config: CurriculumConfig) -> None:
        self.config = config
        self.stage = self.began_at = 0

    @property
    def is_over(self) -> bool:
        """Whether the task is as it is."""
        return self.stage == len(self.config.values)

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment that are the stage's."""
        return {} if self.is_over else {str(self.config.argument): self.config.values[self.stage]}

    def is_done(self, metrics: Mapping[str, int | float]) -> bool:
        """Return whether a report ends the stage. NaN ends none."""
        config = self.config
        reached = [
            (metrics.get("success_rate"), config.until_success),
            (metrics.get("episode_return_mean"), config.until_return),
            (metrics["env_steps"] - self.began_at, config.until_steps),
        ]
        return not self.is_over and any(
            found is not None and least is not None and found >= least for found, least in reached
        )

    def move_on(self, env_steps: int) -> None:
        """Begin the next stage."""
        self.stage, self.began_at = self.stage + 1, env_steps

    def state_dict(self) -> dict[str, int]:
        """Return where it stands."""
        return {"stage": self.stage, "began_at": self.began_at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a `state_dict`."""
        self.stage, self.began_at = state["stage"], state["began_at"]
