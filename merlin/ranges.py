"""Ranges of settings: declared once, beside the setting's type, and applied by the dataclass itself.

@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    discount_factor: Annotated[float, Range(0, 1)] = 0.96
    layers: Annotated[tuple[int, ...], Range(1, 512)] = (64, 64)      each entry
    top_k: Annotated[int | None, Range(1, 1_000_000)] = None          or none
"""

import dataclasses
import functools
import numbers
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from merlin.errors import MerlinError, quote


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included unless `is_above` leaves out `low`."""

    low: int | float
    high: int | float
    is_above: bool = False

    def holds(self, number: int | float) -> bool:
        """Return whether the number is one of them. NaN is none."""
        return self.low <= number <= self.high and not (self.is_above and number == self.low)

    def __str__(self) -> str:
        return (
            f"above {self.low:,} and at most {self.high:,}" if self.is_above else f"from {self.low:,} to {self.high:,}"
        )


def above(low: int | float, high: int | float = 1_000_000_000) -> Range:
    """Return the numbers above `low`, up to `high`."""
    return Range(low, high, is_above=True)


COST = Range(0, 1_000_000)
"""Of weights of losses."""
WIDTH = Range(1, 65_536)
"""Of layers and of what they read."""
COUNT = Range(1, 2**62)
"""Of steps and episodes."""
SEED = Range(0, 2**31 - 1)
"""Of seeds: what every generator and task takes."""


class SettingError(MerlinError, ValueError):
    """A setting that is out of its range; the sentence begins with its name."""


class Settings:
    """A dataclass of settings that refuses numbers out of their ranges, and words that are none of their choices.

    A class that adds rules of its own calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            check(name, getattr(self, name), annotation)


def ranges(owner: type) -> dict[str, Range]:
    """Return the range of each field of a dataclass that has one, by its name."""
    found = ((name, _range(annotation)) for name, annotation in _annotations(owner).items())
    return {name: limits for name, limits in found if limits is not None}


@functools.cache
def _annotations(owner: type) -> dict[str, Any]:
    hints = get_type_hints(owner, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}  # pyright: ignore[reportArgumentType]


def _range(annotation: Any) -> Range | None:
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Range)), None)


def check(name: str, value: Any, annotation: Any) -> None:
    """Raise a SettingError unless a value is what its annotation says, such as `Annotated[int, Range(1, 9)]`."""
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        raise SettingError(f"{name} must be one of {', '.join(get_args(annotation))}, but is {quote(value)}: take one.")
    limits = _range(annotation)
    if limits is None:
        return
    kinds = get_args(get_args(annotation)[0]) or get_args(annotation)[:1]  # of a union its members, of a tuple entries
    if value is None and type(None) in kinds:
        return
    whole = int in kinds
    for number in value if isinstance(value, tuple) else (value,):
        is_number = isinstance(number, numbers.Integral if whole else numbers.Real) and not isinstance(number, bool)
        if not (is_number and limits.holds(number)):  # pyright: ignore[reportArgumentType]  # Real is not float
            what = "a whole number " if whole else ""
            none = ", or none" if type(None) in kinds else ""
            raise SettingError(f"{name} must be {what}{limits}{none}, but is {quote(number)}: take another.")
