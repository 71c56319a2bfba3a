"""Trees of tensors and numbers in plain containers, which are stored without pickled code, and back."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor

from merlin.errors import MerlinError


@runtime_checkable
class _Named(Protocol):
    """A NamedTuple."""

    _fields: tuple[str, ...]

    def _asdict(self) -> dict[str, Any]: ...


def to_plain(tree: Any, device: str | None = None) -> Any:
    """Return the tree with NamedTuples as dicts and tensors detached and compact: what `weights_only=True` loads.

    Args:
        device: Where its tensors are to be; none leaves them where they are.
    """
    if isinstance(tree, Tensor):  # a copy, for a view would be stored with all of its storage
        return tree.detach().to(device or tree.device, copy=True)  # strides stay: sums are in their order
    if isinstance(tree, _Named):
        return {name: to_plain(value, device) for name, value in tree._asdict().items()}
    if isinstance(tree, Mapping):
        return {name: to_plain(value, device) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(to_plain(value, device) for value in tree)
    if isinstance(tree, float):
        return float(tree)  # NumPy's float64 is a float that weights_only refuses
    assert tree is None or type(tree) in (bool, int, str, bytes), f"a checkpoint cannot hold a {type(tree).__name__}"
    return tree


def from_plain(plain: Any, template: Any, path: str = "state") -> Any:
    """Return `plain` in the shape of `template`: the inverse of `to_plain`, tensors on the template's devices.

    Raises:
        MerlinError: A name is missing or a tensor has another shape, as when the number of environments was changed.
    """
    if isinstance(template, Tensor):
        if not isinstance(plain, Tensor) or plain.shape != template.shape:
            came = list(plain.shape) if isinstance(plain, Tensor) else type(plain).__name__
            raise _foreign(path, f"have shape {list(template.shape)} and has {came}")
        return plain.to(template.device, template.dtype)
    if isinstance(template, _Named):
        return type(template)(**_each(plain, template._asdict(), path))
    if isinstance(template, Mapping):
        return _each(plain, template, path)
    if isinstance(template, list | tuple):
        return type(template)(_each(dict(enumerate(plain)), dict(enumerate(template)), path).values())
    return plain


def is_state_of(generator: Generator, state: Tensor) -> bool:
    """Return whether a generator can go on from a state, rather than one of another kind of device."""
    return state.shape == generator.get_state().shape


def _each(plain: Any, template: Mapping, path: str) -> dict:
    if not isinstance(plain, Mapping) or plain.keys() != template.keys():
        came = ", ".join(map(str, plain)) if isinstance(plain, Mapping) else type(plain).__name__
        raise _foreign(path, f"hold {', '.join(map(str, template))} and holds {came}")
    return {name: from_plain(plain[name], value, f"{path}.{name}") for name, value in template.items()}


def _foreign(path: str, what: str) -> MerlinError:
    return MerlinError(f"the checkpoint's {path} must {what}: resume with the settings that the run began with")
