"""Recorded operations do what the function does, or recording them is refused."""

from typing import NamedTuple

import pytest
import torch

from merlin import recorded
from merlin.recorded import NotRecordable, record

X, Y = torch.linspace(-2, 2, 6).view(2, 3), torch.tensor([[0.5, -1.0, 3.0]])


def assert_alike(function, *inputs):
    replay = record(function, inputs)
    for scale in (1.0, -0.3):
        scaled = [x * scale for x in inputs]
        assert all(map(torch.equal, replay(*scaled), function(*scaled)))
    return replay


@pytest.fixture(params=[True, False])
def with_and_without_tracing(request, monkeypatch):
    if not request.param:
        monkeypatch.delattr(torch.jit, "trace")


@pytest.mark.usefixtures("with_and_without_tracing")
def test_operations_of_every_form_are_replayed():
    weight = torch.ones(3, 3) / 3

    class Pair(NamedTuple):
        one: torch.Tensor
        other: torch.Tensor

    def function(x, y):
        left, right = (x @ weight).chunk(2, 0)
        stacked = torch.stack([left, right, left.tanh()], dim=-1)[..., 1:]
        cell = torch.lstm_cell(y, Pair(x[:1], y), weight.repeat(4, 1), weight.repeat(4, 1))
        return *cell, stacked.mT.sum(-1) * 2.5, x + y, 1 - y, torch.where(x > 0, x, torch.tensor(0.5))

    assert_alike(function, X, Y)


@pytest.mark.usefixtures("with_and_without_tracing")
def test_what_is_written_in_place_is_made_anew_in_each_call():
    def function(x, y):
        zeros, more = torch.zeros(2, 3), torch.zeros(2, 3)
        zeros[:, :1].add_(x[:, :1])
        zeros += y
        other = zeros.clone().mul_(2)
        return zeros, more, other, x.square(), x.square()

    replay = assert_alike(function, X, Y)
    first = replay(X, Y)[0].clone()
    replay(X + 1, Y)
    assert torch.equal(replay(X, Y)[0], first)


def test_equal_operations_and_those_on_no_tensor_are_taken_once():
    def function(x):
        return (torch.arange(3) + x.exp(),), (torch.arange(3) + x.exp(),)

    calls = []

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(torch.jit, "trace")
        replay = record(lambda x: tuple(a for (a,) in function(x)), (X,))
    with Counting():
        replay(X)
    assert calls == ["exp", "add"]


def test_one_tensor_as_two_inputs():
    replay = record(lambda x, y: (x - 2 * y,), (X, X))
    assert torch.equal(replay(X, X + 1)[0], X - 2 * (X + 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x if x.sum() > 0 else -x,),
        lambda x: (x * x.sum().item(),),
        lambda x: (x[x > 0] if len(x.nonzero().tolist()) else x,),
        lambda x: (x + torch.randn(3),),
        lambda x: (torch.nn.functional.dropout(x),),
    ],
)
def test_branches_on_numbers_and_draws_are_refused(function):
    with pytest.raises(NotRecordable):
        record(function, (X,))


def test_parameters_are_read_at_each_call():
    layer = torch.nn.Linear(3, 2)
    replay = record(lambda x: (layer(x),), (X,))
    with torch.no_grad():
        layer.weight.mul_(3)
    assert torch.equal(replay(X)[0], layer(X))
    assert not replay(X)[0].requires_grad and recorded.__doc__
