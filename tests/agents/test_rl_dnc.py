"""RL-DNC: acting equals learning, windows are their steps, episodes are apart, gradients in float64."""

import pytest
import torch

from merlin.agents.acting import Acting
from merlin.agents.memory_ablation import MemoryAblation
from merlin.agents.rl_dnc import RLDNC, RLDNCConfig
from merlin.experience import Unroll
from merlin.states import map_state, reset_state, stack_states
from tests.agents.helpers import ACTION_SPACES, SPACES, act, leaves, row, tensors, window

T, B = 9, 3


def make(dtype=torch.float32):
    torch.manual_seed(0)
    config = RLDNCConfig(hidden_size=7, head_size=8, memory_size=5, word_size=4, num_read_keys=2)
    agent = RLDNC(SPACES, ACTION_SPACES["discrete"], config)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return agent.to(dtype)


def some_starts():
    is_first = torch.rand(T, B, generator=torch.Generator().manual_seed(3)) < 0.25
    assert is_first.any() and not is_first.all(1).any()
    return is_first


def test_acting_and_learning_compute_the_same():
    agent, is_first = make(), some_starts()
    before = act(agent, torch.zeros(4, B, dtype=torch.bool))[2]
    unroll, initial, after, outputs = act(agent, is_first, before)
    losses, end = agent.losses(unroll, initial)
    for name, x in leaves(end).items():
        torch.testing.assert_close(x, leaves(after)[name], rtol=1e-5, atol=1e-6)
    assert losses.metrics["policy_kl_nats"].abs() < 1e-6
    acting = Acting(agent, initial, T, records=True)
    for t in range(T):
        acting.step(row(unroll, t), is_first[t], unroll.previous_reward[t])
    assert torch.allclose(acting.columns()["value"][0], outputs[0].value, atol=1e-6)


def test_two_windows_are_one():
    agent, is_first = make(torch.float64), some_starts()
    unroll, initial, _, _ = act(agent, is_first)
    middle = agent.losses(window(unroll, 0, 4), initial)[1]
    ends = agent.losses(window(unroll, 4, T), middle)[1], agent.losses(unroll, initial)[1]
    for x, y in zip(*map(tensors, ends), strict=True):
        torch.testing.assert_close(x, y)


def test_an_episode_knows_nothing_of_the_one_before():
    agent, is_first = make(), torch.zeros(T, B, dtype=torch.bool)
    is_first[4, 1] = True
    state = act(agent, torch.zeros(5, B, dtype=torch.bool))[2]
    ends = [act(agent, is_first, start)[2] for start in (state, agent.initial_state(B))]
    for x, y in zip(*map(tensors, ends), strict=True):
        torch.testing.assert_close(x[1], y[1])
    assert any(not torch.allclose(x[0], y[0]) for x, y in zip(*map(tensors, ends), strict=True))


def test_gradients_of_the_loss():
    agent = make(torch.float64)
    unroll, initial, _, _ = act(agent, some_starts())
    initial = map_state(torch.Tensor.detach, initial)

    def loss(bias, weight):
        parts = {"interface.bias": bias, "interface.weight": weight}
        return torch.func.functional_call(_Loss(agent), {f"agent.{k}": v for k, v in parts.items()}, (unroll, initial))

    inputs = [p.detach().clone().requires_grad_() for p in (agent.interface.bias, agent.interface.weight)]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6, fast_mode=True)


class _Loss(torch.nn.Module):
    """The loss of a window, whose steps are taken plainly."""

    def __init__(self, agent: RLDNC) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, unroll: Unroll, state):
        agent = self.agent
        actions, previous = agent.action_codes(unroll, state)
        rows = []
        for t in range(len(actions)):
            code = agent.encode(row(unroll, t), previous[t], unroll.previous_reward[t])
            perceived = agent.perceive(code, reset_state(state, unroll.is_first[t]))
            rows.append(perceived.activations)
            state = agent.advance(perceived, actions[t]).state
        return agent.loss(stack_states(rows), unroll, actions, previous, 1.0).total


def test_a_window_has_the_gradients_of_its_steps():
    agent = make(torch.float64)
    unroll, initial, _, _ = act(agent, some_starts())
    agent.losses(unroll, initial)[0].total.backward()
    ours = {name: p.grad.clone() for name, p in agent.named_parameters()}
    agent.zero_grad()
    _Loss(agent)(unroll, initial).backward()
    for name, parameter in agent.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad)
    assert ours["interface.weight"].any()


def test_its_memory_can_be_taken_away():
    agent = make()
    ablated = MemoryAblation(agent, "zeroed")
    state = ablated.initial_state(B)
    unroll, *_ = act(agent, torch.zeros(T, B, dtype=torch.bool))
    for t in range(3):
        _, state = ablated.step(row(unroll, t), state, torch.zeros(B, dtype=torch.bool))
    with pytest.raises(Exception, match="can be shuffled where a step writes one word"):
        MemoryAblation(agent, "shuffled")
