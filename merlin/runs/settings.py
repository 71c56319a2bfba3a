"""Frozen dataclasses of settings: changed by name, written to JSON and read back, each value held to its annotation."""

import dataclasses
import difflib
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from merlin.errors import MerlinError

Config = TypeVar("Config")

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def override(config: Config, assignments: list[str]) -> Config:
    """Return a copy of `config` with fields set from texts such as "model.kl_cost=0.02".

    Values are read as their field's annotation says: `1e6` and `1_000_000` are integers, `none` is None, `64,32` is a
    tuple, `{"size": 9}` a dict; one entry of a dict is set by its key (`env_kwargs.size=9`).

    Raises:
        MerlinError: The path names no field, or the value is not of the field's type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise MerlinError(f"a setting must be written path=value, got {assignment!r}")
        try:
            config = _set(config, path.strip().split("."), text.strip(), config, path.strip())
        except ValueError as error:
            raise MerlinError(f"{path.strip()} cannot be {text.strip()!r}: {error}") from error
    return config


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


def fields_help(config: Any) -> list[str]:
    """Return one line per setting, "model.kl_cost: float = 1.0  — what it is", from a config or its class.

    What it is comes from the comment on the field's line or just above it, or from the docstring below it.
    """
    lines = []
    for path, owner, field, value in _leaves(config):
        shown = "" if value is dataclasses.MISSING else f" = {value!r}"
        comment = _comment(owner, field.name)
        lines.append(f"{path}: {_name(get_type_hints(owner)[field.name])}{shown}{comment and f'  — {comment}'}")
    return lines


def _set(config: Any, parts: list[str], text: str, root: Any, path: str) -> Any:
    """Return `config` with the field at `parts` parsed from `text`; `root` and `path` are for messages."""
    name, *rest = parts
    hints = get_type_hints(type(config))
    if name not in {field.name for field in dataclasses.fields(config)}:
        raise MerlinError(_unknown(path, root))
    value, annotation = getattr(config, name), hints[name]
    if dataclasses.is_dataclass(value):
        if not rest:
            first = _leaves(value)[0][0]
            raise MerlinError(f"{path} is a group of settings: set one of them, such as {path}.{first}=...")
        value = _set(value, rest, text, root, path)
    elif rest and isinstance(value, Mapping):
        value = {**value, ".".join(rest): _literal(text)}
    elif rest:
        raise MerlinError(_unknown(path, root))
    else:
        value = _parse(text, annotation, path)
    return dataclasses.replace(config, **{name: value})


def _unknown(path: str, root: Any) -> str:
    paths = [leaf[0] for leaf in _leaves(root)]
    last = path.rpartition(".")[2]
    # A name left without its group ("kl_cost") is nearer to "model.kl_cost" than its letters are.
    near = [known for known in paths if known.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(path, paths, n=1, cutoff=0.5)
    lasts = {known.rpartition(".")[2]: known for known in paths}
    near = near or [lasts[name] for name in difflib.get_close_matches(last, lasts, n=1)]
    hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(paths)}"
    return f"there is no setting {path!r}: {hint}"


def _leaves(config: Any, prefix: str = "") -> list[tuple[str, type, dataclasses.Field, Any]]:
    """Return (dotted path, dataclass that owns it, field, value or default) of every setting that holds no others."""
    owner = config if isinstance(config, type) else type(config)
    found = []
    for field in dataclasses.fields(owner):
        annotation = get_type_hints(owner)[field.name]
        if config is not owner:
            value = getattr(config, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = field.default
        nested = value if dataclasses.is_dataclass(value) else annotation
        if dataclasses.is_dataclass(nested):
            found += _leaves(nested, f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, owner, field, value))
    return found


def _comment(owner: type, name: str) -> str:
    """Return the first line of what the source says of a field: behind it, in a docstring below it, or above it."""
    for defined_in in owner.__mro__:
        if name not in vars(defined_in).get("__annotations__", {}):
            continue
        try:
            lines = [line.strip() for line in inspect.getsource(defined_in).splitlines()]
        except (OSError, TypeError):  # a class typed at a prompt has no source
            return ""
        at = next((i for i, line in enumerate(lines) if re.match(rf"{name}\s*:", line)), 0)
        if behind := re.search(r"\s#\s*(.*)", lines[at]):
            return behind[1]
        if lines[at + 1 : at + 2] and lines[at + 1].startswith('"""'):
            return lines[at + 1].strip('"')
        above = at
        while above > 0 and lines[above - 1].startswith("#"):
            above -= 1
        return lines[above].lstrip("# ") if above < at else ""
    return ""


def _name(annotation: Any) -> str:
    """Return an annotation as one would write it."""
    if annotation is type(None):
        return "None"
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_name(member) for member in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse(text: str, annotation: Any, path: str) -> Any:
    """Return the value that `text` writes down in a field of this annotation."""
    wrong = MerlinError(f"{path} must be {_name(annotation)}, got {text!r}")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() in ("none", "null"):
            return None
        for member in arguments:
            try:
                return _parse(text, member, path)
            except MerlinError:
                continue
        raise wrong
    if origin is Literal:
        for choice in arguments:
            if text == str(choice):
                return choice
        raise wrong
    if annotation is str:
        return text
    if annotation is bool:
        if text.lower() not in _BOOLEANS:
            raise wrong
        return _BOOLEANS[text.lower()]
    if annotation in (int, float):
        try:
            number = float(text) if annotation is float or not re.fullmatch(r"[+-]?[\d_]+", text) else int(text)
        except ValueError:
            raise wrong from None
        if number != number or (annotation is int and number % 1):  # NaN; a fraction, or ∞ % 1, which is NaN
            raise wrong
        return annotation(number)
    if origin is tuple or annotation is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
        members = _members(arguments, len(items))
        if members is None:
            raise wrong
        try:
            return tuple(_parse(item, member, path) for item, member in zip(items, members, strict=True))
        except MerlinError:
            raise wrong from None
    value = _literal(text)
    if (origin is dict or annotation is dict) and not isinstance(value, dict):
        raise MerlinError(f"{path} must be a JSON object such as '{{\"size\": 9}}', got {text!r}")
    return _convert(value, annotation, path, {})


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
    wrong = MerlinError(f"{path or 'the configuration'} must be {_name(annotation)}, got {value!r}")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise wrong
        return _build(annotation, value, path, classes)
    if origin in (Union, types.UnionType):
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
    if origin is tuple or annotation is tuple:
        members = _members(arguments, len(value)) if isinstance(value, list | tuple) else None
        if members is None:
            raise wrong
        return tuple(_convert(item, member, path, classes) for item, member in zip(value, members, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong
        return {key: _convert(item, arguments[1], f"{path}.{key}", classes) for key, item in value.items()}
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
            raise MerlinError(f"the configuration{at} has the unknown setting {name!r}: {hint}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise MerlinError(f"the configuration{at} lacks the setting {name!r}: add it")
    prefix = f"{path}." if path else ""
    return config_class(**{name: _convert(values[name], hints[name], prefix + name, classes) for name in values})
