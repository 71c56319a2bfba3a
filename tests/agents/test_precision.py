"""Agents of other types of floats than float32, and inside torch.autocast."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from merlin.agents.acting import Acting
from tests.agents import helpers
from tests.agents.helpers import EVERY_KIND, KINDS, ON_POLICY, act, cast, learnt, leaves, make_agent, row
from tests.agents.test_border import observations

T, B = 7, 3  # longer than the memory's 5 slots
FIRSTS = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.25

every_agent = pytest.mark.parametrize("name", KINDS)
every_action_space = pytest.mark.parametrize("action_space", ["discrete", "box"])


def play(agent, length: int = T):
    """Return outputs of greedy steps on the same observations of every kind, and the states after them."""
    found, state = [], agent.initial_state(B)
    for t in range(length):
        seen = observations(t) | {"place": torch.rand(B, 3, generator=torch.Generator().manual_seed(t))}
        output, state = agent.step(seen, state, FIRSTS[t] | (t == 0), torch.full((B,), 0.5), greedy=True)
        found.append((output, state))
    return found


def types(state) -> dict[str, torch.dtype]:
    return {name: x.dtype for name, x in leaves(state).items()}


@every_agent
@pytest.mark.parametrize("action_space, dtype", [("multi", torch.float64), ("box", torch.bfloat16)])
def test_the_state_has_the_agents_type_and_keeps_it(name, action_space, dtype):
    agent = make_agent(name, action_space, spaces=EVERY_KIND).to(dtype)
    before = types(agent.initial_state(B))
    counts = {path for path in before if path.endswith(("usage", "num_written", "num_steps"))}
    assert {before[path] for path in before if path not in counts} == {dtype}
    for output, state in play(agent):
        assert types(state) == before
        assert output.value.dtype == output.policy_parameters.dtype == dtype


@pytest.mark.parametrize("box_actions", ["gaussian", "beta"])
@pytest.mark.parametrize("greedy", [False, True])
def test_actions_of_an_agent_in_bfloat16_are_arrays_as_spaces_take_them(box_actions, greedy):
    agent = make_agent("rl-lstm", "box", box_actions=box_actions).bfloat16()
    seen = {"card": np.zeros(B, np.int64), "place": np.zeros((B, 3), np.float32)}
    output, state = agent.step(seen, agent.initial_state(B), True, greedy=greedy)
    assert output.action.numpy().dtype == np.float32
    assert state.previous_action.dtype == torch.bfloat16 and output.log_prob.isfinite().all()


@every_agent
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_a_step_in_another_type_is_near_one_in_float32(name, dtype, tolerance):
    expected = play(make_agent(name, spaces=EVERY_KIND), 3)
    for (output, _), (other, _) in zip(play(make_agent(name, spaces=EVERY_KIND).to(dtype), 3), expected, strict=True):
        torch.testing.assert_close(output.value.float(), other.value, atol=tolerance, rtol=tolerance)
        difference = output.policy_parameters.float() - other.policy_parameters
        assert difference.abs().max() < tolerance * (1 + other.policy_parameters.abs().max())


def test_usage_is_counted_in_float32_at_least():
    """In bfloat16, 256 + 1 is 256, and the least used slot would be forgotten."""
    assert make_agent("rl-mem").bfloat16().initial_state(B).memory.usage.dtype == torch.float32
    assert make_agent("rl-mem").double().initial_state(B).memory.usage.dtype == torch.float64


@pytest.mark.parametrize("name", ["rl-lstm", "rl-mem"])  # MERLIN's loss stops gradients, which differences do not
@every_action_space
@pytest.mark.parametrize("is_acting", [False, True])
def test_gradients_of_a_whole_agent_are_those_of_finite_differences(name, action_space, is_acting):
    agent = make_agent(name, action_space).double()
    unroll, initial, _, _ = act(agent, FIRSTS)
    unroll = unroll._replace(discount=unroll.discount.double())

    def loss():
        acting = None
        if is_acting:
            acting = Acting(agent, initial, T, torch.Generator().manual_seed(0), records=True)
            for t in range(T):
                action = acting.step(row(unroll, t), unroll.is_first[t], unroll.previous_reward[t])
                torch.testing.assert_close(action, unroll.action[t])  # else these would be gradients of another window
        return agent.losses(unroll, initial, acting=acting)[0].total

    total = loss()
    total.backward()
    assert total.dtype == torch.float64
    generator = torch.Generator().manual_seed(1)
    for name, parameter in agent.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                values.append(agent.losses(unroll, initial)[0].total)
                parameter.sub_(direction, alpha=step)
        difference = (values[0] - values[1]) / 2e-6
        along = (parameter.grad * direction).sum()
        torch.testing.assert_close(
            along, difference, atol=1e-7, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", ON_POLICY)  # Dreamer draws other noise
def test_gradients_in_float64_are_near_those_in_float32(name):
    found = []
    for dtype in (torch.float32, torch.float64):
        agent = make_agent(name, "box").to(dtype)
        unroll = act(make_agent(name, "box"), FIRSTS)[0]
        unroll = unroll._replace(extras=cast(unroll.extras, dtype))
        agent.losses(unroll, agent.initial_state(B))[0].total.backward()
        found.append([p.grad.double() for p in learnt(agent)])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


@every_agent
@pytest.mark.parametrize("action_space", ["multi", "box"])
def test_the_state_keeps_its_type_under_autocast(name, action_space):
    agent = make_agent(name, action_space, spaces=EVERY_KIND)
    expected = play(agent, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = play(agent, 3)
    for (output, state), (other, before) in zip(found, expected, strict=True):
        assert types(state) == types(before)
        torch.testing.assert_close(output.value.float(), other.value, atol=0.1, rtol=0.1)


@every_agent
@every_action_space
@pytest.mark.parametrize("is_backward_inside, is_acting", [(False, True), (True, False)])
def test_a_window_is_learnt_from_under_autocast(name, action_space, is_backward_inside, is_acting):
    agent = make_agent(name, action_space)
    unroll, initial, _, _ = act(agent, FIRSTS)
    found = []
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        agent.zero_grad()
        with context:
            acting = None
            torch.manual_seed(0)  # of what Dreamer imagines
            if is_acting:
                acting = Acting(agent, initial, T, torch.Generator().manual_seed(0), records=True)
                for t in range(T):
                    acting.step(row(unroll, t), unroll.is_first[t], unroll.previous_reward[t])
                    acting.next_value(row(unroll, t), unroll.is_first[t], unroll.previous_reward[t])
            losses, after = agent.losses(unroll, initial, acting=acting)
            if is_backward_inside:
                losses.total.backward()
        if not is_backward_inside:
            losses.total.backward()
        assert types(after) == types(initial)
        found.append((losses.total.detach(), torch.cat([p.grad.flatten() for p in learnt(agent)])))
    (loss, gradient), (other, other_gradient) = found
    torch.testing.assert_close(other, loss, atol=0.05, rtol=0.05)
    assert torch.cosine_similarity(gradient, other_gradient, dim=0) > 0.99


def observe_every_kind(length: int, batch: int) -> dict[str, torch.Tensor]:
    rows = [observations(t) for t in range(length)]
    return {name: torch.from_numpy(np.stack([row[name] for row in rows]))[:, :batch] for name in rows[0]}


def rewarded_in(unroll, dtype: torch.dtype):
    """The window as environments give it: their numbers in another type than the agent's."""
    given = cast(unroll._replace(observation=None, extras=None), dtype)._asdict()
    own = {name: getattr(unroll, name) for name in ("observation", "extras", "log_prob", "value", "next_value")}
    return unroll._replace(**given | own)


@every_agent
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_window_of_float32_teaches_an_agent_of_another_type(name, dtype):
    agent = make_agent(name, running_scales=True).to(dtype)
    unroll, initial, _, _ = act(agent, FIRSTS)
    agent.update_scales(unroll)
    state = copy.deepcopy(agent.state_dict())
    found = []
    for window in (unroll, rewarded_in(unroll, torch.float32)):
        agent.load_state_dict(state)
        agent.update_scales(window)
        torch.manual_seed(0)  # of what Dreamer imagines
        found.append(agent.losses(window, initial)[0].total)
    found[1].backward()
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02, check_dtype=False)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt(agent))


@every_agent
@pytest.mark.parametrize("action_space", ["multi", "box"])
def test_an_agent_learns_where_floats_are_float64_unless_told(name, action_space, monkeypatch):
    monkeypatch.setattr(helpers, "random_observation", observe_every_kind)
    torch.set_default_dtype(torch.float64)
    try:
        agent = make_agent(name, action_space, spaces=EVERY_KIND, running_scales=True)
        unroll, initial, after, _ = act(agent, FIRSTS)
        agent.update_scales(unroll)
        total = agent.losses(unroll, initial)[0].total
        total.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert total.dtype == torch.float64 and types(after) == types(initial)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt(agent))
