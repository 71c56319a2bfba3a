"""The LSTM: a window equals its steps, in values and gradients, with resets inside."""

import pytest
import torch

from merlin.networks import lstm as recurrent
from merlin.networks.lstm import LSTM, LSTMState
from merlin.states import map_state, reset_state

T, B, INPUT, HIDDEN = 6, 3, 5, 7


def make() -> tuple[LSTM, torch.Tensor, LSTMState, torch.Tensor]:
    torch.manual_seed(0)
    lstm = LSTM(INPUT, HIDDEN, 2).double()
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    state = LSTMState(*(torch.randn(B, 2 * HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(2)))
    return lstm, x, state, torch.rand(T, B) < 0.3


def stepped(lstm: LSTM, x: torch.Tensor, state: LSTMState, is_first: torch.Tensor) -> tuple[torch.Tensor, LSTMState]:
    outputs = []
    for row, first in zip(x, is_first, strict=True):
        state = lstm.step(row, reset_state(state, first))
        outputs.append(state.hidden)
    return torch.stack(outputs), state


def test_unroll_equals_steps_in_values_and_gradients():
    lstm, x, state, is_first = make()
    assert is_first[1:].any() and not is_first[0].all()
    ours, after = lstm.unroll(x, state, is_first)
    expected, last = stepped(lstm, x, state, is_first)
    torch.testing.assert_close(ours, expected)
    for y, z in zip(after, last, strict=True):
        torch.testing.assert_close(y, z)
        assert not y.requires_grad
    weights = torch.randn_like(ours)
    leaves = [x, *state, *lstm.parameters()]
    for y, z in zip(
        torch.autograd.grad((ours * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(y, z)


@pytest.mark.parametrize("cached", [1, 2 * B * HIDDEN, recurrent.CACHED])
def test_gradients_of_unroll(cached, monkeypatch):
    monkeypatch.setattr(recurrent, "CACHED", cached)  # steps worked on at a time
    lstm, x, state, is_first = make()
    assert torch.autograd.gradcheck(lambda x, h, c: lstm.unroll(x, LSTMState(h, c), is_first)[0], (x, *state))


def test_outputs_of_both_layers_are_given():
    lstm, x, state, is_first = make()
    hidden, _ = lstm.unroll(x, state, is_first)
    assert hidden.shape == (T, B, 2 * HIDDEN) and lstm.output_size == 2 * HIDDEN
    only_second = map_state(lambda s: s.detach().clone(), state)
    only_second.hidden[:, HIDDEN:] += 1
    changed, _ = lstm.unroll(x, only_second, torch.zeros_like(is_first))
    plain, _ = lstm.unroll(x, state, torch.zeros_like(is_first))
    assert torch.equal(changed[..., :HIDDEN], plain[..., :HIDDEN]) and not torch.equal(changed, plain)


def test_reset_touches_its_rows_alone_and_stops_nan():
    state = LSTMState(torch.full((B, 4), torch.nan), torch.ones(B, 4))
    after = reset_state(state, torch.tensor([True, True, False]))
    assert (after.hidden[:2] == 0).all() and after.hidden[2].isnan().all() and (after.cell[2] == 1).all()
