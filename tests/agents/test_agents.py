"""What holds for every agent: acting equals learning, across resets and windows, and nothing crosses an episode."""

import sys
from unittest import mock

import pytest
import torch

from merlin.agents.acting import Acting
from merlin.agents.dreamer import Dreamer
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.states import map_state
from tests.agents.helpers import (
    ACTION_SPACES,
    DISCOUNT,
    KINDS,
    ON_POLICY,
    act,
    learnt,
    make_agent,
    row,
    tensors,
    window,
)

T, B = 12, 5  # longer than the memory's 5 slots, so that slots are used again

every_agent = pytest.mark.parametrize("name", KINDS)
on_policy = pytest.mark.parametrize("name", ON_POLICY)


def random_firsts(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(T, B, generator=generator) < 0.25


def log_probs_and_values(agent, unroll, state):
    """Return what learning computes, caught where it becomes a loss."""
    caught = {}
    if isinstance(agent, Dreamer):  # whose states are what it learns of what was done
        loss = agent.loss

        def catch_states(activations, unroll, *rest):
            with torch.no_grad():
                parameters, value = agent.heads(activations, unroll.observation)
                caught.update(log_prob=agent.actions.log_prob(parameters, unroll.action), value=value)
            return loss(activations, unroll, *rest)

        with mock.patch.object(agent, "loss", catch_states):
            _, after = agent.losses(unroll, state)
        return caught["log_prob"], caught["value"], after

    def catch(unroll, actor, value, returns, *config):
        caught.update(log_prob=actor.log_prob.detach(), value=value.detach())
        return {}

    with mock.patch.object(sys.modules[type(agent).loss.__module__], "actor_critic_metrics", catch):
        _, after = agent.losses(unroll, state)
    return caught["log_prob"], caught["value"], after


ACTIONS = [*((key, "gaussian") for key in ACTION_SPACES), ("box", "beta"), ("mixed", "beta")]


@pytest.mark.parametrize(
    ("name", "action_space", "box_actions", "seed"),
    # each pair of an agent, actions and a seed, but not each with each of the third
    [(name, *actions, (i + j) % 3) for i, name in enumerate(KINDS) for j, actions in enumerate(ACTIONS)],
)
def test_acting_equals_learning_under_random_resets(name, action_space, box_actions, seed):
    agent = make_agent(name, action_space, box_actions=box_actions)
    unroll, initial, final, _ = act(agent, random_firsts(seed), seed=seed)
    log_prob, value, after = log_probs_and_values(agent, unroll, initial)
    torch.testing.assert_close(log_prob, unroll.log_prob, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(value, unroll.value, atol=2e-5, rtol=1e-4)
    for x, y in zip(tensors(after), tensors(final), strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)


def act_for_a_window(agent, is_first, state=None, records=True):
    """As `act`, by `Acting`; between steps it is asked for values, which must leave no trace."""
    unroll, initial, final, _ = act(agent, is_first, state)
    generator = torch.Generator().manual_seed(0)
    acting = Acting(agent, initial, T, generator, records)
    for t in range(T):
        before = generator.get_state()
        acting.next_value(row(unroll, t), ~is_first[t], torch.ones(B))
        generator.set_state(before)
        assert torch.equal(acting.step(row(unroll, t), is_first[t], unroll.previous_reward[t]), unroll.action[t])
    return unroll, initial, final, acting


@every_agent
@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_acting_for_a_window_equals_single_steps(name, seed, records):
    agent = make_agent(name)
    unroll, _, final, acting = act_for_a_window(agent, random_firsts(seed), records=records)
    columns = acting.columns()
    for column in ("log_prob", "value"):
        torch.testing.assert_close(columns[column], getattr(unroll, column), atol=2e-5, rtol=1e-4, msg=column)
    for x, y in zip(tensors(columns["extras"]), tensors(unroll.extras), strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)
        assert not x.requires_grad
    for x, y in zip(tensors(acting.state), tensors(final), strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)


@every_agent
def test_how_sharp_reads_are_is_told_as_steps_read(name):
    agent = make_agent(name)
    *_, acting = act_for_a_window(agent, random_firsts(1))
    *_, outputs = act(agent, random_firsts(1))

    def peak(column):
        return torch.stack([getattr(x, column).amax(-1).mean() for x in outputs]).mean()

    names = {"read_peak": "read_weights", "policy_read_peak": "policy_read_weights"}
    expected = {key: peak(column) for key, column in names.items() if getattr(outputs[0], column) is not None}
    found = acting.read_metrics()
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        torch.testing.assert_close(found[key], x, atol=2e-5, rtol=1e-4)
        assert 1 / 5 < x < 1


@every_agent
def test_what_was_acted_by_gives_the_loss_and_gradients_that_replaying_gives(name):
    agent = make_agent(name)
    middle = act(agent, random_firsts(1))[2]
    unroll, initial, _, acting = act_for_a_window(agent, random_firsts(2), middle)
    found = []
    for kept in (None, acting):
        agent.zero_grad()
        torch.manual_seed(0)  # of what Dreamer imagines
        losses, after = agent.losses(unroll, initial, acting=kept)
        losses.total.backward()
        found.append((losses.total.detach(), [p.grad.clone() for p in learnt(agent)], tensors(after)))
    for (loss, *trees), (other, *others) in [found]:
        torch.testing.assert_close(loss, other)
        for tree, expected in zip(trees, others, strict=True):
            for x, y in zip(tree, expected, strict=True):
                torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-3)


@every_agent
def test_the_value_of_what_would_come_next_is_that_of_a_step(name):
    """Asked for inside a window and at its end, which it does not change."""
    agent = make_agent(name)
    unroll, state, _, _ = act(agent, random_firsts(3))
    acting = Acting(agent, state, 2)
    for t in range(3):
        seen = row(unroll, t), unroll.is_first[t], unroll.previous_reward[t]
        acting.generator, generator = (torch.Generator().manual_seed(t) for _ in range(2))
        value = acting.next_value(*seen)
        output, state = agent.step(seen[0], state, *seen[1:], generator=generator)
        torch.testing.assert_close(value, output.value)
        if t < 2:
            acting.generator.manual_seed(t)
            assert torch.equal(acting.step(*seen), output.action)
        if t == 1:
            for x, y in zip(tensors(acting.state), tensors(state), strict=True):
                torch.testing.assert_close(x, y)


@every_agent
def test_two_windows_equal_one(name):
    agent = make_agent(name)
    unroll, initial, _, _ = act(agent, random_firsts())
    log_prob, value, after = log_probs_and_values(agent, unroll, initial)
    first, value_first, middle = log_probs_and_values(agent, window(unroll, 0, 7), initial)
    second, value_second, end = log_probs_and_values(agent, window(unroll, 7, T), middle)
    torch.testing.assert_close(torch.cat([first, second]), log_prob)
    torch.testing.assert_close(torch.cat([value_first, value_second]), value)
    for x, y in zip(tensors(end), tensors(after), strict=True):
        torch.testing.assert_close(x, y)


@on_policy
def test_learning_again_after_no_change_keeps_the_ratio_at_one(name):
    agent = make_agent(name)
    unroll, initial, _, _ = act(agent, random_firsts())
    metrics = agent.losses(unroll, initial)[0].metrics
    assert metrics["policy_kl_nats"].abs() < 1e-5


@every_agent
def test_no_value_crosses_an_episode(name):
    """What came before an episode, in the carried state or in the window, changes nothing after its start."""
    agent = make_agent(name)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[6, :3] = True
    unroll, initial, _, _ = act(agent, is_first)
    disturbed = map_state(lambda x: x + 3 if x.is_floating_point() else x, initial)
    log_prob, value, _ = log_probs_and_values(agent, unroll, initial)
    log_prob_disturbed, value_disturbed, _ = log_probs_and_values(agent, unroll, disturbed)
    assert torch.equal(log_prob[6:, :3], log_prob_disturbed[6:, :3])
    assert torch.equal(value[6:, :3], value_disturbed[6:, :3])
    assert not torch.allclose(log_prob[6:, 3:], log_prob_disturbed[6:, 3:])
    assert not torch.allclose(log_prob[:6], log_prob_disturbed[:6])


@on_policy
def test_no_gradient_crosses_an_episode(name):
    """The loss of rows after an episode's start has no gradient to the state that the window began with."""
    agent = make_agent(name)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[6, :3] = True
    unroll, initial, _, _ = act(agent, is_first)
    late = unroll._replace(is_valid=(torch.arange(T) >= 6).unsqueeze(1) & torch.ones(T, B, dtype=torch.bool))
    leaves = map_state(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x, initial)
    agent.losses(late, leaves)[0].total.backward()
    found = 0
    for x in tensors(leaves):
        if x.grad is not None:
            assert (x.grad[:3] == 0).all()
            found += (x.grad[3:] != 0).any()
    assert found  # where no episode began, the state matters


@every_agent
def test_a_reset_row_equals_a_fresh_agent_and_leaves_the_others(name):
    agent = make_agent(name)
    _, _, state, _ = act(agent, random_firsts())
    observation = {"card": torch.zeros(B, dtype=torch.int64), "place": torch.zeros(B, 3)}
    first = torch.tensor([True, False, False, True, False])
    step = lambda state, first: agent.step(  # noqa: E731
        observation, state, first, torch.ones(B), generator=torch.Generator().manual_seed(1)
    )
    reset, _ = step(state, first)
    fresh, _ = step(agent.initial_state(B), torch.ones(B, dtype=torch.bool))
    carried, _ = step(state, torch.zeros(B, dtype=torch.bool))
    assert torch.equal(reset.log_prob[first], fresh.log_prob[first])
    assert torch.equal(reset.value[~first], carried.value[~first])
    assert not torch.equal(reset.value[first], carried.value[first])


@every_agent
def test_step_changes_neither_state_nor_parameters(name):
    agent = make_agent(name)
    state = act(agent, random_firsts())[2]
    before = [x.clone() for x in [*tensors(state), *agent.state_dict().values()]]
    act(agent, random_firsts(), state)
    assert all(torch.equal(x, y) for x, y in zip(before, [*tensors(state), *agent.state_dict().values()], strict=True))


@on_policy
def test_rows_whose_action_was_ignored_count_in_no_loss(name):
    agent = make_agent(name)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[6] = True
    unroll, initial, _, _ = act(agent, is_first)
    valid = torch.ones(T, B, dtype=torch.bool)
    valid[5] = False  # the final observation, as next-step autoreset shows it
    unroll = unroll._replace(is_valid=valid, is_end=unroll.is_end | ~valid)
    unroll.is_end[4] = True
    gradients = []
    for scale in (1.0, 1e3):
        agent.zero_grad()
        reward, value = unroll.reward.clone(), unroll.value.clone()
        reward[5], value[5] = reward[5] * scale, value[5] * scale
        agent.losses(unroll._replace(reward=reward, value=value), initial)[0].total.backward()
        gradients.append([p.grad.clone() for p in learnt(agent)])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


@every_agent
def test_every_parameter_learns(name):
    agent = make_agent(name)
    unroll, initial, _, _ = act(agent, random_firsts())
    agent.losses(unroll, initial)[0].total.backward()
    without = [n for n, p in agent.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    owned = [p for group in agent.parameter_groups().values() for p in group]
    assert len(owned) == len(set(owned)) == len(learnt(agent))


@pytest.mark.parametrize("name", ["merlin", "ftw", "rl-mem"])
@pytest.mark.parametrize("setting", [{"top_k": 2}, {"mask_unwritten": False}, {"retroactive_discount": None}])
def test_memory_switches_keep_acting_equal_to_learning(name, setting):
    agent = make_agent(name, **setting)
    unroll, initial, _, _ = act(agent, random_firsts())
    log_prob, value, _ = log_probs_and_values(agent, unroll, initial)
    torch.testing.assert_close(log_prob, unroll.log_prob, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(value, unroll.value, atol=2e-5, rtol=1e-4)


@every_agent
def test_greedy_takes_the_likeliest_action(name):
    agent = make_agent(name)
    observation = {"card": torch.arange(5), "place": torch.rand(5, 3)}
    output, _ = agent.step(observation, agent.initial_state(5), torch.ones(5, dtype=torch.bool), greedy=True)
    assert torch.equal(output.action, output.policy_parameters.argmax(-1))


@every_agent
def test_what_was_acted_by_is_learnt_from_once_and_whole_and_before_anything_changes(name):
    agent = make_agent(name)
    unroll, initial, _, acting = act_for_a_window(agent, random_firsts())
    agent.losses(unroll, initial, acting=acting)[0].total.backward()
    with pytest.raises(AssertionError, match="once"):
        agent.losses(unroll, initial, acting=acting)
    with pytest.raises(AssertionError, match="all of its steps"):
        agent.losses(unroll, initial, acting=Acting(agent, initial, T, records=True))
    *_, acting = act_for_a_window(agent, random_firsts(), records=False)
    with pytest.raises(AssertionError, match="recorded"):
        agent.losses(unroll, initial, acting=acting)
    *_, acting = act_for_a_window(agent, random_firsts())
    with torch.no_grad():
        next(agent.parameters()).add_(1)
    with pytest.raises(AssertionError, match="changes"):
        agent.losses(unroll, initial, acting=acting)


@every_agent
def test_a_window_leaves_no_graph_behind(name):
    agent = make_agent(name)
    unroll, initial, _, acting = act_for_a_window(agent, random_firsts())
    _, after = agent.losses(unroll, initial)
    assert not any(x.requires_grad for state in (after, acting.state) for x in tensors(state))


def test_discount_of_the_helpers_is_not_the_default():
    assert ActorCriticConfig().discount_factor != DISCOUNT  # else a loss that ignored the window's would pass
