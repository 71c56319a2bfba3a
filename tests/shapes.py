"""The checks of jaxtyping and beartype, made once for each kind of arguments and result instead of at every call.

What they find depends on types, shapes and dtypes alone, so that a second call of the same kind would find the same. At
every call they took half of the time of small agents. Functions without arrays are basedpyright's to check: there the
tests run what users run.
"""

import functools
import inspect
import re
import threading
import types

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype

ARRAYS = (torch.Tensor, np.ndarray)
PLAIN: set[type] = set()  # types of which annotations ask nothing more
KINDS: dict[types.CodeType, dict] = {}  # what was checked: a function inside of another is made anew at each call
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number is a float, as Python has it


def kind(x):
    """Return all that an annotation can ask of a value. Of containers it asks for what is inside."""
    of = type(x)
    if of is torch.Tensor:
        return x.dtype, x.shape
    if of in PLAIN:
        return of
    if of is tuple or of is list:
        return of, *map(kind, x)
    if of is dict:
        return tuple([(key, kind(value)) for key, value in x.items()])
    if of is str or of is type:
        return x
    if issubclass(of, ARRAYS):
        return x.dtype, x.shape
    PLAIN.add(of)
    return of


def checks_once_a_kind(jaxtyped, function=None, *, typechecker=None):
    """Return what `jaxtyped` does, but for functions: those skip the checks that they made before.

    Checks are compiled at the first call. A size in braces, as in "{self.size}", is part of the kind.
    """
    if function is None:
        return functools.partial(checks_once_a_kind, jaxtyped, typechecker=typechecker)
    annotations = getattr(function, "__annotations__", {})
    values = re.findall(r"\{(.*?)\}", " ".join(map(str, annotations.values())))
    if not inspect.isfunction(function) or not all(re.fullmatch(r"self\.\w+", value) for value in values):
        return jaxtyped(function, typechecker=typechecker)
    if not any("jaxtyping." in str(annotation) for annotation in annotations.values()):
        return function  # basedpyright checks it
    sizes = [value.removeprefix("self.") for value in values]
    kinds, local, compiled = KINDS.setdefault(function.__code__, {}), threading.local(), []

    def call_or_return(*args, **kwargs):
        return local.result if hasattr(local, "result") else function(*args, **kwargs)

    def checked():
        if not compiled:
            compiled.append(function)  # for what is imported meanwhile, which may call it
            code, closure = call_or_return.__code__, call_or_return.__closure__
            inner = functools.wraps(function)(types.FunctionType(code, function.__globals__, closure=closure))
            compiled[0] = jaxtyped(inner, typechecker=typechecker)
        return compiled[0]

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():  # sizes may be symbols
            return checked()(*args, **kwargs)
        given = (*map(kind, args), *map(kind, kwargs.items())) if kwargs else tuple(map(kind, args))
        if sizes:
            given += tuple([getattr(args[0], name) for name in sizes])
        results = kinds.get(given)
        if results is None:
            result = checked()(*args, **kwargs)
            kinds[given] = {kind(result)}
            return result
        result = function(*args, **kwargs)
        if kind(result) not in results:
            local.result = result
            try:
                checked()(*args, **kwargs)
            finally:
                del local.result
            results.add(kind(result))
        return result

    return call


def check_every_shape() -> None:
    """Check the annotations of all of merlin that is imported from here on."""
    jaxtyping.jaxtyped = functools.partial(checks_once_a_kind, jaxtyping.jaxtyped)
    jaxtyping.install_import_hook(["merlin"], "tests.shapes.typechecker")
