"""RL-MEM's window, whose memory is never rewritten, against the same steps one by one, in float64."""

from functools import partial

import pytest
import torch

from merlin.states import map_state, reset_state
from tests.agents.helpers import act, make_agent, tensors

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)

T, B = 12, 4  # longer than the memory's 5 slots

SWITCHES = [
    {},
    {"num_layers": 1},
    {"top_k": 2},
    {"mask_unwritten": False},
    {"retroactive_discount": None},
    {"retroactive_discount": None, "mask_unwritten": False},
]


def step_by_step(agent, encodings, state, unroll):
    """Return what the window returns, by the steps that acting takes."""
    features = []
    for t, (encoding, first) in enumerate(zip(encodings, unroll.is_first, strict=True)):
        feature, state, _ = agent._step(encoding, reset_state(state, first))
        features.append(feature)
        unroll.slots[t] = state.memory.write_weights.argmax(-1)  # what the other way is told
    return torch.stack(features), state


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda x: ",".join(x) or "default")
@pytest.mark.parametrize(("first_rate", "before"), [(0.0, T), (0.12, T), (0.0, 2)])
def test_values_and_gradients_are_those_of_single_steps(switches, first_rate, before):
    agent = make_agent("rl-mem", **switches)
    is_first = torch.rand(2 * T, B, generator=torch.Generator().manual_seed(1)) < first_rate
    _, _, middle, _ = act(agent, is_first[T - before : T])
    unroll, initial, _, _ = act(agent, is_first[T:], middle, seed=1)
    agent = agent.double()
    generator = torch.Generator().manual_seed(2)
    results = []
    for way in (step_by_step, type(agent)._unroll):
        state = map_state(lambda x: x.double() if x.is_floating_point() else x, initial)
        lstm = map_state(torch.Tensor.requires_grad_, state.lstm)
        state = state._replace(lstm=lstm, read_words=state.read_words.requires_grad_())
        size = (T, B, agent.encoding_size)
        encodings = torch.randn(size, dtype=torch.float64, generator=generator.manual_seed(3)).requires_grad_()
        features, after = way(agent, encodings, state, unroll)
        weight = torch.randn(features.shape, dtype=torch.float64, generator=generator.manual_seed(4))
        named = dict(agent.named_parameters())
        inputs = {"e": encodings, "h": lstm.hidden, "c": lstm.cell, "m": state.read_words, **named}
        found = torch.autograd.grad((features * weight).sum(), inputs.values(), allow_unused=True)
        results.append((features, dict(zip(inputs, found, strict=True)), after))
    (plain, plain_gradients, plain_after), (ours, our_gradients, our_after) = results
    close(ours, plain)
    for x, y in zip(tensors(our_after[:-1]), tensors(plain_after[:-1]), strict=True):  # all but the previous action
        close(x, y)
    moved = 0
    for name, expected in plain_gradients.items():
        if expected is None:
            assert our_gradients[name] is None, name
        else:
            close(our_gradients[name], expected, msg=lambda text, name=name: f"{name}: {text}")
            moved += bool((expected != 0).any())
    assert moved >= 10, "encodings, LSTM, reader and projection take part"
    assert (plain_gradients["projection.weight"] != 0).any(), "what is read teaches what was written"
