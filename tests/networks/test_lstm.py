"""The LSTM: its step by hand, and a state that is a value."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from merlin.errors import MerlinError
from merlin.networks.lstm import LSTM, LSTMState
from merlin.states import map_state, reset_state
from tests import reference

B, INPUT, HIDDEN = 3, 5, 7


def make(num_layers: int = 2) -> tuple[LSTM, torch.Tensor, LSTMState]:
    torch.manual_seed(0)
    lstm = LSTM(INPUT, HIDDEN, num_layers).double()
    x = torch.randn(B, INPUT, dtype=torch.float64, requires_grad=True)
    return lstm, x, LSTMState(*torch.randn(2, B, num_layers * HIDDEN, dtype=torch.float64).requires_grad_())


def test_a_step_equals_the_reference():
    for num_layers in (1, 2, 3):
        lstm, x, state = make(num_layers)
        after = lstm.step(x, state)
        weights = {f"lstm.{name}": p.detach().numpy() for name, p in lstm.named_parameters()}
        for b in range(B):
            before = [np.split(part[b].detach().numpy(), num_layers) for part in state]
            hidden, cell = reference.lstm(weights, "lstm", x[b].detach().numpy(), *before)
            np.testing.assert_allclose(after.hidden[b].detach(), np.concatenate(hidden), atol=1e-12)
            np.testing.assert_allclose(after.cell[b].detach(), np.concatenate(cell), atol=1e-12)


def test_gradients_of_a_step():
    for num_layers in (1, 2):
        lstm, x, state = make(num_layers)
        assert torch.autograd.gradcheck(lambda x, h, c, lstm=lstm: tuple(lstm.step(x, LSTMState(h, c))), (x, *state))


def test_outputs_of_all_layers_are_given_and_depend_on_those_below_alone():
    lstm, x, state = make()
    plain = lstm.step(x, state).hidden
    assert plain.shape == (B, 2 * HIDDEN) and lstm.output_size == 2 * HIDDEN
    only_second = map_state(lambda s: s.detach().clone(), state)
    only_second.hidden[:, HIDDEN:] += 1
    changed = lstm.step(x, only_second).hidden
    assert torch.equal(changed[..., :HIDDEN], plain[..., :HIDDEN]) and not torch.equal(changed, plain)


def test_forget_biases_start_at_one():
    lstm = LSTM(INPUT, HIDDEN, 2)
    for cell in lstm.cells:
        assert (cell.bias_ih[HIDDEN : 2 * HIDDEN] == 1).all() and not (cell.bias_ih[:HIDDEN] == 1).any()


def test_the_first_state_is_zero_and_of_the_parameters_type():
    state = LSTM(INPUT, HIDDEN, 2).double().initial_state(B)
    assert all(x.shape == (B, 2 * HIDDEN) and x.dtype == torch.float64 and not x.any() for x in state)


def test_reset_touches_its_rows_alone_and_stops_nan():
    state = LSTMState(torch.full((B, 4), torch.nan), torch.ones(B, 4))
    after = reset_state(state, torch.tensor([True, True, False]))
    assert (after.hidden[:2] == 0).all() and after.hidden[2].isnan().all() and (after.cell[2] == 1).all()
    assert reset_state(state, torch.zeros(B, dtype=torch.bool)) is state


@pytest.mark.parametrize("flags", [[True], [True, False], [True, False, False, False]])
def test_there_is_a_flag_for_each_row(flags):
    """One would reset them all."""
    with pytest.raises(
        (MerlinError, TypeCheckError), match=r"one flag for each of the state's 3 rows|Type-check error"
    ):
        reset_state(LSTM(2, 4, 1).initial_state(B), torch.tensor(flags))
