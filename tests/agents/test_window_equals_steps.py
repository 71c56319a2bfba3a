"""A window's steps on shared entries, with deferred weight gradients, against the same steps plainly, in float64.

Plainly: the agent's own `perceive` and `advance`, one step after another, on a memory that is rewritten at every step,
under automatic differentiation alone.
"""

from functools import partial

import pytest
import torch

from merlin.agents.acting import Acting
from merlin.memory import MemoryState
from merlin.states import map_state, reset_state, stack_states
from tests.agents.helpers import act, leaves, make_agent, row

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)

T, B = 12, 4  # longer than the memory's 5 slots, so that slots are used again

LAYERS = [{"num_layers": 1}, {"num_layers": 3}]
MEMORY = [
    {"top_k": 2},
    {"top_k": 2, "retroactive_discount": None},
    {"mask_unwritten": False},
    {"retroactive_discount": None},
    {"retroactive_discount": None, "mask_unwritten": False},
    {"memory_size": 30},
]
OF_FTW = [
    {"tick_steps": 1},
    {"tick_steps": 50},
    {"slow_gradient_scale": 0.5},
    {"top_k": 2},
    {"mask_unwritten": False},
    {"memory_size": 60},
    {"memory_size": 0},
    {"core": "lstm"},
]
OF_MERLIN = [
    {"policy_gradient_to_latent": True},
    {"policy_num_read_keys": 2},
    {"policy_encoder": True},
    {"policy_reward_keys": 4},
]
SWITCHES = {
    "ftw": [{}, *OF_FTW],
    "rl-lstm": [{}, *LAYERS],
    "rl-mem": [{}, *LAYERS, *MEMORY],
    "merlin": [{}, *LAYERS, *MEMORY, *OF_MERLIN],
}
AT_LEAST = {"ftw": 7, "rl-lstm": 7, "rl-mem": 12, "merlin": 28}  # gradients that are not zero
MIDDLE = [(0.15, T), (0.0, T), (0.15, 2)]  # how often episodes start, and the steps before the window


def cases(of_switches, of_default=MIDDLE):
    """Return names, switches and middles: all of the default's, and for each switch another of `of_switches`."""
    return [
        pytest.param(name, switches, *begin, id=f"{name} {switches or 'default'} {begin[0]} after {begin[1]}")
        for name, switched in SWITCHES.items()
        for number, switches in enumerate(switched)
        for begin in ([of_switches[number % len(of_switches)]] if switches else of_default)
    ]


def plainly(agent, unroll, state, actions, previous_actions):
    """Return what `Agent.scan` returns; slots are chosen anew."""
    rows, slots = [], []
    for t in range(T):
        code = agent.encode(row(unroll, t), previous_actions[t], unroll.previous_reward[t])
        extras = unroll.extras
        if extras is not None:
            extras = type(extras)(*(extras.noise[t] if name == "noise" else None for name in extras._fields))
        perceived = agent.perceive(code, reset_state(state, unroll.is_first[t]), extras)
        advanced = agent.advance(perceived, actions[t])
        rows.append(perceived.activations)
        slots.append(getattr(advanced.extras, "slots", None))
        state = advanced.state
    if agent.memory is not None:
        assert isinstance(agent.memory_state(state), MemoryState)
        assert torch.equal(torch.stack(slots), unroll.extras.slots), "slots are those of acting"
    return stack_states(rows), state


def learning(agent, state):
    """Return the state with leaves of the graph, and by name those that gradients are asked for: all but the memory."""
    state = map_state(torch.clone, state)
    found = {f"state{name}": x for name, x in leaves(state).items() if ".memory." not in name}
    entries = {name: x for name, x in found.items() if x.is_floating_point() and x.numel()}
    for x in entries.values():
        x.requires_grad_()
    return state, entries


def random_loss(activations):
    """Return a sum of all activations, weighed at random, but for words written: reads alone teach them."""
    total = 0.0
    for i, (name, x) in enumerate(leaves(activations).items()):
        if name == ".word" or not x.is_floating_point():
            continue
        total = total + (x * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(i))).sum()
    return total


def middle(name, switches, first_rate, before):
    """Return an agent, a state in the middle of episodes, and where episodes start in the window after it."""
    agent = make_agent(name, **switches).double()
    is_first = torch.rand(2 * T, B, generator=torch.Generator().manual_seed(1)) < first_rate
    return agent, act(agent, is_first[T - before : T])[2], is_first[T:]


def compare(ours, plain, at_least):
    """Check gradients by name; as many must not be zero."""
    moved = 0
    for name, expected in plain.items():
        if expected is None:
            assert ours[name] is None or not ours[name].any(), name
        else:
            assert ours[name] is not None, name
            close(ours[name], expected, msg=lambda text, name=name: f"{name}: {text}")
            moved += bool((expected != 0).any())
    assert moved >= at_least, f"only {moved} gradients are not zero"


@pytest.mark.parametrize(("name", "switches", "first_rate", "before"), cases(MIDDLE[::2]))
def test_values_and_gradients_of_a_window_are_those_of_single_steps(name, switches, first_rate, before):
    agent, state, is_first = middle(name, switches, first_rate, before)
    unroll, initial, final, _ = act(agent, is_first, state, seed=1)
    initial, entries = learning(agent, initial)
    observation = unroll.observation | {"place": unroll.observation["place"].requires_grad_()}
    unroll = unroll._replace(observation=observation, previous_reward=unroll.previous_reward.requires_grad_())
    codes = [x.detach().double().requires_grad_() for x in agent.action_codes(unroll, initial)]
    inputs = {
        "place": observation["place"], "previous reward": unroll.previous_reward, "actions": codes[0],
        "previous actions": codes[1], **entries, **dict(agent.named_parameters()),
    }  # fmt: skip
    found = []
    for way in (plainly, type(agent).scan):
        activations, after = way(agent, unroll, initial, *codes)
        gradients = torch.autograd.grad(random_loss(activations), inputs.values(), allow_unused=True)
        found.append((leaves(activations), dict(zip(inputs, gradients, strict=True)), leaves(after)))
    (plain, plain_gradients, plain_after), (ours, our_gradients, our_after) = found
    for expected, x in ((plain, ours), (plain_after, our_after), (leaves(final), our_after)):
        assert expected.keys() == x.keys()
        for key in expected:
            close(x[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")
    compare(our_gradients, plain_gradients, AT_LEAST[name])
    writers = {"rl-mem": ("projection",), "ftw": ("core.slow_writer", "core.fast_writer")}.get(name, ())
    for writer in writers if agent.memory is not None else ():
        assert (plain_gradients[f"{writer}.weight"] != 0).any(), "what is read teaches what was written"


@pytest.mark.parametrize(("name", "switches", "first_rate", "before"), cases(MIDDLE[:1], MIDDLE[::2]))
def test_values_and_gradients_of_acting_are_those_of_the_window_taken_again(name, switches, first_rate, before):
    """The agent is asked for values in between, which must leave no trace in the graph."""
    agent, state, is_first = middle(name, switches, first_rate, before)
    unroll, initial, final, _ = act(agent, is_first, state, seed=1)
    initial, entries = learning(agent, initial)
    acting = Acting(agent, initial, T, torch.Generator().manual_seed(1), records=True)
    with torch.no_grad():  # as a rollout does
        for t in range(T):
            seen = row(unroll, t), is_first[t], unroll.previous_reward[t]
            before = acting.generator.get_state()
            acting.next_value(*seen)
            acting.generator.set_state(before)
            assert torch.equal(acting.step(*seen), unroll.action[t])
            assert not any(x.requires_grad for x in leaves(acting._extras[t]).values())
    end = leaves(acting.state)  # which is of the time before the way back
    inputs = entries | dict(agent.named_parameters())
    taken_again, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    found = []
    for activations in (taken_again, acting.activations()):
        gradients = torch.autograd.grad(random_loss(activations), inputs.values(), allow_unused=True)
        found.append((leaves(activations), dict(zip(inputs, gradients, strict=True))))
    (plain, plain_gradients), (ours, our_gradients) = found
    for key in plain:
        close(ours[key], plain[key], msg=lambda text, key=key: f"{key}: {text}")
    for key, x in end.items():
        close(x, leaves(final)[key], msg=lambda text, key=key: f"{key}: {text}")
    compare(our_gradients, plain_gradients, AT_LEAST[name])
