"""Modules as constants, through which gradients pass to their inputs alone."""

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def as_constant(module: Module) -> Module:
    """Return a copy of the module whose parameters are constants; they share storage with the module's own."""
    clone = object.__new__(type(module))
    clone.__dict__ = module.__dict__ | {
        "_parameters": {name: x if x is None else x.detach() for name, x in module._parameters.items()},
        "_modules": {name: x if x is None else as_constant(x) for name, x in module._modules.items()},
    }
    return clone
