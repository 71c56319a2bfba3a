"""The recurrence differentiated by hand against the same steps under automatic differentiation, in float64."""

from functools import partial

import pytest
import torch

from merlin.states import map_state, reset_state
from tests.agents.helpers import act, make_agent, tensors

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-11)

T, B = 12, 4  # longer than the memory's 5 slots

SWITCHES = [
    {},
    {"num_layers": 1},
    {"num_layers": 3},
    {"top_k": 2},
    {"top_k": 2, "retroactive_discount": None},
    {"mask_unwritten": False},
    {"retroactive_discount": None},
    {"retroactive_discount": None, "mask_unwritten": False},
    {"policy_gradient_to_latent": True},
]
OUTPUTS = ("prior", "posterior", "latent", "policy_hidden", "policy_words")


def step_by_step(agent, codes, actions, unroll, state):
    """Return what the recurrence returns, by the steps that acting takes."""
    rows = {name: [] for name in OUTPUTS}
    for t in range(codes.shape[0]):
        state = reset_state(state, unroll.is_first[t])
        thought = agent.predictor.perceive(codes[t], unroll.noise[t], state.predictor)
        state, _ = agent._recall(thought.latent, state)
        found = (torch.cat(thought.prior, -1), torch.cat(thought.posterior, -1), thought.latent)
        for name, x in zip(OUTPUTS, (*found, state.policy.hidden, state.policy_read_words), strict=True):
            rows[name].append(x)
        state, _ = agent._advance(thought.latent, actions[t], state)
        unroll.slots[t] = state.predictor.memory.write_weights.argmax(-1)  # what the other way is told
    return {name: torch.stack(x) for name, x in rows.items()}, state


def at_once(agent, codes, actions, unroll, state):
    found, after = agent._recur(codes, actions, unroll, state)
    return found._asdict(), after


@pytest.fixture(
    scope="module",
    params=[(switches, before) for switches in SWITCHES for before in (T, 2)],
    ids=lambda x: f"{','.join(x[0]) or 'default'} after {x[1]}",
)
def both(request):
    """Values and gradients of both ways, from a state in the middle of episodes, with resets inside."""
    switches, before = request.param
    agent = make_agent("merlin", **switches).double()
    is_first = torch.rand(2 * T, B, generator=torch.Generator().manual_seed(1)) < 0.12
    unroll, _, middle, _ = act(agent.float(), is_first[T - before : T])
    unroll, initial, _, _ = act(agent, is_first[T:], middle, seed=1)
    agent = agent.double()
    generator = torch.Generator().manual_seed(2)
    results = []
    for way in (step_by_step, at_once):
        state = map_state(lambda x: x.double().requires_grad_() if x.is_floating_point() else x, initial)
        leaves = [state.predictor.lstm.hidden, state.predictor.lstm.cell, state.predictor.read_words]
        leaves += [*state.policy, state.policy_read_words]
        codes = torch.randn(T, B, 12, dtype=torch.float64, generator=generator.manual_seed(3)).requires_grad_()
        actions = agent.actions.encode(unroll.action).double().requires_grad_()
        double = unroll._replace(noise=unroll.noise.double())
        carried = map_state(lambda x: x, state)
        memory = map_state(torch.Tensor.detach, state.predictor.memory)
        carried = carried._replace(predictor=carried.predictor._replace(memory=memory))
        found, after = way(agent, codes, actions, double, carried)
        loss = sum(
            (
                found[name] * torch.randn(found[name].shape, dtype=torch.float64, generator=generator.manual_seed(i))
            ).sum()
            for i, name in enumerate(OUTPUTS)
        )
        named = dict(agent.named_parameters())
        inputs = [codes, actions, *leaves, *named.values()]
        names = ["codes", "actions", "h", "c", "m", "policy h", "policy c", "policy m", *named]
        grads = dict(zip(names, torch.autograd.grad(loss, inputs, allow_unused=True), strict=True))
        results.append((found, grads, after))
    return results


def test_values_are_those_of_single_steps(both):
    (plain, _, after), (ours, _, ours_after) = both
    for name in OUTPUTS:
        close(ours[name], plain[name], msg=name)
    for x, y in zip(tensors(ours_after), tensors(after), strict=True):
        close(x, y)


def test_gradients_are_those_of_automatic_differentiation(both):
    (_, plain, _), (_, ours, _) = both
    moved = 0
    for name, expected in plain.items():
        if expected is None:
            assert ours[name] is None or (ours[name] == 0).all(), name
        else:
            close(ours[name], expected, msg=lambda text, name=name: f"{name}: {text}")
            moved += bool((expected != 0).any())
    assert moved > 25, "nearly every weight takes part"


def test_what_was_acted_by_is_learnt_from_once_and_before_anything_changes():
    agent = make_agent("merlin")
    unroll, initial, _, _ = act(agent, torch.zeros(T, B, dtype=torch.bool))

    def acted():
        acting = agent.begin(initial, T)
        for t in range(T):
            acting.step({name: x[t] for name, x in unroll.observation.items()}, unroll.is_first[t], torch.zeros(B))
        return acting

    acting = acted()
    agent.losses(unroll, initial, acting=acting)[0].total.backward()
    with pytest.raises(AssertionError, match="once"):
        agent.losses(unroll, initial, acting=acting)[0].total.backward()
    acting = acted()
    with torch.no_grad():
        agent.predictor.reader.project.bias.add_(1)
    with pytest.raises(AssertionError, match="changes"):
        agent.losses(unroll, initial, acting=acting)
    with pytest.raises(AssertionError, match="all of its steps"):
        agent.losses(unroll, initial, acting=agent.begin(initial, T))
