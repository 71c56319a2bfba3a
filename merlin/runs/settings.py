"""Frozen dataclasses of settings: changed by name, written to JSON and read back, each value held to its annotation."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from merlin.errors import MerlinError, quote
from merlin.ranges import Range, ranges

Config = TypeVar("Config")

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class WrongSetting(MerlinError):
    """A setting that is not there, or is set to what it cannot be."""


class Setting(NamedTuple):
    """One setting of a configuration, for people to read."""

    path: str
    """Its name, dotted."""
    annotation: str
    value: Any
    """Its value, or default; `dataclasses.MISSING` where there is none."""
    text: str
    """The docstring below the field."""
    owner: type
    """The dataclass that it is a field of."""
    range: Range | None
    """The numbers that it may be."""


def override(config: Config, assignments: Sequence[str] | Mapping[str, Any]) -> Config:
    """Return a copy of `config` with fields set from texts such as "model.kl_cost=0.02", or {"model.kl_cost": 0.02}.

    Values are read as their field's annotation says: `1e6` and `1_000_000` are integers, `none` is None, `64,32` is a
    tuple, `{"size": 9}` a dict; one entry of a dict is set by its key (`env_kwargs.size=9`). All are set together, so
    that settings which depend on one another may come in any order.

    Raises:
        MerlinError: The path names no field, or the value is not of the field's type, or out of its range.
    """
    changes: dict[str, Any] = {}
    if isinstance(assignments, Mapping):
        pairs: Iterable[tuple[str, Any]] = assignments.items()
    else:
        pairs = map(_pair, [assignments] if isinstance(assignments, str) else assignments)
    for path, value in pairs:
        _read(changes, config, path.split("."), value, config, path)
    return _changed(config, changes, "")


def _pair(assignment: str) -> tuple[str, str]:
    path, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals:
        raise WrongSetting(f"a setting must be written path=value, got {quote(assignment)}")
    return path, text


def to_dict(config: Any) -> dict[str, Any]:
    """Return the settings as nested dicts and lists, ready for JSON; `from_dict` is the inverse."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(config_class: type[Config], values: Mapping, classes: Mapping[str, type] | None = None) -> Config:
    """Return the config that `to_dict` turned into `values`.

    A setting that did not exist yet when they were written takes its default, which is what was done then.

    Args:
        classes: Dataclass of each field, by its dotted path, whose annotation does not name one.

    Raises:
        MerlinError: A field without a default is missing, or one is unknown or not of its type.
    """
    return _convert(values, config_class, "", classes or {})


def list_settings(config: Any, prefix: str = "") -> list[Setting]:
    """Return every setting of a config, or of its class, that holds no others."""
    owner = config if isinstance(config, type) else type(config)
    hints, limits, texts, found = get_type_hints(owner), ranges(owner), _docstrings(owner), []
    for field in dataclasses.fields(owner):
        if config is not owner:
            value = getattr(config, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = field.default
        nested = value if dataclasses.is_dataclass(value) else hints[field.name]
        path = prefix + field.name
        if dataclasses.is_dataclass(nested):
            found += list_settings(nested, f"{path}.")
        else:
            text, numbers = texts.get(field.name, ""), limits.get(field.name)
            found.append(Setting(path, _name(hints[field.name]), value, text, owner, numbers))
    return found


@functools.cache
def _docstrings(owner: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and of those that it extends, each in one line."""
    texts: dict[str, str] = {}
    for defined_in in reversed(owner.__mro__):
        try:
            definition = ast.parse(textwrap.dedent(inspect.getsource(defined_in))).body[0]
        except (OSError, TypeError, SyntaxError):  # built in, or typed at a prompt
            continue
        assert isinstance(definition, ast.ClassDef)
        for pair in itertools.pairwise(definition.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def _read(changes: dict[str, Any], config: Any, parts: list[str], text: Any, root: Any, path: str) -> None:
    """Add the field of `config` at `parts`, of a text or a value, to its changes; the rest is for messages."""
    name, *rest = parts
    if name not in {field.name for field in dataclasses.fields(config)}:
        raise WrongSetting(_unknown(path, root))
    value, annotation = getattr(config, name), get_type_hints(type(config))[name]
    if dataclasses.is_dataclass(value):
        if not rest:
            first = list_settings(value)[0].path
            raise WrongSetting(f"{path} is a group of settings: set one of them, such as {path}.{first}=...")
        _read(changes.setdefault(name, {}), value, rest, text, root, path)
    elif rest and isinstance(value, Mapping):
        of_values = (*get_args(annotation), Any, Any)[1]
        changes[name] = {**changes.get(name, value), ".".join(rest): _parse(text, of_values, path)}
    elif rest:
        raise WrongSetting(_unknown(path, root))
    else:
        changes[name] = _parse(text, annotation, path)


def _changed(config: Any, changes: Mapping[str, Any], group: str) -> Any:
    """Return `config` with its changes, those of groups of settings being changes themselves."""
    values = {}
    for name, change in changes.items():
        value = getattr(config, name)
        values[name] = _changed(value, change, f"{group}{name}.") if dataclasses.is_dataclass(value) else change
    return _made(functools.partial(dataclasses.replace, config), values, group)


def _made(make: Callable[..., Config], values: Mapping[str, Any], group: str) -> Config:
    """Return what `make` makes of the values; a ValueError, which begins with a field's name, tells its path."""
    try:
        return make(**values)
    except ValueError as error:
        raise WrongSetting(f"{group}{error}") from error


def _unknown(path: str, root: Any) -> str:
    paths = [setting.path for setting in list_settings(root)]
    last = path.rpartition(".")[2]
    # A name left without its group ("kl_cost") is nearer to "model.kl_cost" than its letters are.
    near = [known for known in paths if known.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(path, paths, n=1, cutoff=0.5)
    lasts = {known.rpartition(".")[2]: known for known in paths}
    near = near or [lasts[name] for name in difflib.get_close_matches(last, lasts, n=1)]
    known = ", ".join(paths) if len(paths) <= 20 else "those that `merlin train --help-settings` lists"
    hint = f"did you mean {near[0]!r}?" if near else f"take one of {known}"
    return f"there is no setting {quote(path)}: {hint}"


def _name(annotation: Any) -> str:
    """Return an annotation as one would write it."""
    if annotation is type(None):
        return "None"
    if _is_union(annotation):
        return " | ".join(_name(member) for member in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _in_words(annotation: Any) -> str:
    """Return what a value of an annotation is, for messages."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if _is_union(annotation):
        return ", or ".join(map(_in_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and arguments:
        each = arguments[-1] is Ellipsis
        return (
            f"a list{', each entry' if each else ' of'} {', '.join(map(_in_words, arguments[: len(arguments) - each]))}"
        )
    if origin is dict:
        return "a JSON object such as '{\"size\": 9}'"
    return (
        f"settings of {_name(annotation)}"
        if dataclasses.is_dataclass(annotation)
        else words.get(origin, _name(annotation))
    )


def _wrong(path: str, annotation: Any, value: Any) -> WrongSetting:
    return WrongSetting(f"{path} must be {_in_words(annotation)}, but is {quote(value)}: take another.")


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse(text: Any, annotation: Any, path: str) -> Any:
    """Return the value that `text` writes down in a field of this annotation; if it is no text, the value itself."""
    if not isinstance(text, str):
        whole = isinstance(text, float) and text.is_integer()  # as 1e6 is
        choices = [text, int(text)] if whole else [list(text)] if isinstance(text, tuple) else [text]
        for value in choices:
            with contextlib.suppress(MerlinError):
                return _convert(value, annotation, path, {})
        raise _wrong(path, annotation, text)
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    for member in sorted(members, key=lambda member: member is not type(None)):  # `none` is None before it is a text
        try:
            return _convert(_plain(text, member, path), member, path, {})
        except MerlinError:
            continue
    raise _wrong(path, annotation, text)


def _plain(text: str, annotation: Any, path: str) -> Any:
    """Return what JSON would hold for `text`, in a field of this annotation; the text itself where that is nothing."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is type(None):
        return None if text.lower() in ("none", "null") else text
    if origin is bool:
        return _BOOLEANS.get(text.lower(), text)
    if origin in (int, float):
        try:
            number = int(text) if origin is int and re.fullmatch(r"[+-]?[\d_]+", text) else float(text)
        except ValueError:
            return text
        # NaN is no number, and a fraction no integer, nor is ∞, whose remainder is NaN.
        return text if number != number or (origin is int and number % 1) else origin(number)
    if origin is Literal:
        return next((choice for choice in arguments if text == str(choice)), text)
    if origin is tuple:
        listed = _literal(text)
        if not isinstance(listed, list):
            listed = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
        members = _members(arguments, len(listed))
        return members and [_parse(item, member, path) for item, member in zip(listed, members, strict=True)]
    return text if origin is str else _literal(text)


def _members(arguments: tuple, length: int) -> tuple | None:
    """Return the annotation of each of `length` entries of a tuple; None where the tuple has another length."""
    if not arguments:
        return (Any,) * length
    if arguments[-1] is Ellipsis:
        return (arguments[0],) * length
    return arguments if len(arguments) == length else None


def _convert(value: Any, annotation: Any, path: str, classes: Mapping[str, type]) -> Any:
    """Return `value`, read from JSON, as an instance of `annotation`."""
    annotation = classes.get(path, annotation)
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    wrong = _wrong(path or "the configuration", annotation, value)
    if _is_union(annotation):
        for member in arguments:
            try:
                return _convert(value, member, path, classes)
            except MerlinError:
                continue
        raise wrong
    if annotation is Any or annotation is object:
        return value
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise wrong
        return value
    if origin is tuple:
        members = _members(arguments, len(value)) if isinstance(value, list | tuple) else None
        if members is None:
            raise wrong
        return tuple(_convert(item, member, path, classes) for item, member in zip(value, members, strict=True))
    if dataclasses.is_dataclass(annotation) or origin is dict:
        if not isinstance(value, Mapping):
            raise wrong
        if origin is not dict:
            assert isinstance(annotation, type)
            return _build(annotation, value, path, classes)
        of_values = arguments[1] if arguments else Any
        return {key: _convert(item, of_values, f"{path}.{key}", classes) for key, item in value.items()}
    if annotation is float and type(value) is int:
        return float(value)
    if not isinstance(value, annotation) or (type(value) is bool and annotation is not bool):
        raise wrong
    return value


def _build(config_class: type, values: Mapping, path: str, classes: Mapping[str, type]) -> Any:
    hints = get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    at = f" in {path!r}" if path else ""
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            raise WrongSetting(f"the configuration{at} has the unknown setting {quote(name)}: {hint}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise WrongSetting(f"the configuration{at} lacks the setting {name!r}: add it")
    prefix = f"{path}." if path else ""
    read = {name: _convert(values[name], hints[name], prefix + name, classes) for name in values}
    return _made(config_class, read, prefix)
