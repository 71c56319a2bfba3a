"""Annotations are checked at the first call of each kind, be it the first call or a later one."""

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from merlin.memory.content import read
from tests.shapes import checks_once_a_kind


def checked(function):
    return checks_once_a_kind(jaxtyped, function, typechecker=beartype)


def test_each_kind_of_arguments_and_of_results_is_checked():
    calls = []

    @checked
    def cut(x: Float[Tensor, "B A"], y: list[Float[Tensor, "B"]], length: int | None = None) -> Float[Tensor, "B A"]:
        calls.append(length)
        return x if length is None else x[:length]

    x, rows = torch.zeros(3, 4), [torch.zeros(3)]
    for _ in range(2):
        assert cut(x, rows) is x and cut(x, y=rows, length=3).shape == x.shape
    with pytest.raises(TypeCheckError, match="return value"):  # as of the same arguments, but for a number
        cut(x, y=rows, length=2)
    assert calls == [None, 3, None, 3, 2], "a result is checked without a second call"
    for wrong in ((x.long(), rows), (x[:2], rows), (x, [torch.zeros(4)]), (x, rows, "3"), (x, [3])):
        with pytest.raises(TypeCheckError):
            cut(*wrong)
    assert len(calls) == 5 and cut(x, rows) is x


def test_a_size_in_an_annotation_is_looked_at():
    class Layer:
        @checked
        def widen(self, x: Float[Tensor, "B A"]) -> Float[Tensor, "B {self.size}"]:
            return x

    layer = Layer()
    layer.size = 4
    layer.widen(torch.zeros(3, 4))
    layer.size = 5
    with pytest.raises(TypeCheckError):
        layer.widen(torch.zeros(3, 4))


def test_functions_without_arrays_are_left_as_users_have_them():
    def double(x: int | None) -> int | None:
        return x

    def take(x: Float[Tensor, "B"] | None) -> None: ...

    assert checked(double) is double and checked(take) is not take


def test_the_package_is_checked():
    memory, keys = torch.zeros(2, 5, 4), torch.zeros(2, 3, 4)
    for _ in range(2):
        read(memory, keys, torch.ones(2, 3))
        with pytest.raises(TypeCheckError):
            read(memory, keys, torch.ones(2, 3).long())
