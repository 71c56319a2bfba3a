"""Masks of actions hold for every agent: acting equals learning, and what is not allowed is neither done nor learnt."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from merlin.agents import AGENTS
from merlin.agents.acting import Acting
from merlin.environments.batch import make_environment
from merlin.errors import MerlinError
from merlin.networks.actions import MASKED_LOG_PROB, ProductActions
from merlin.networks.spaces import ACTION_MASK, flatten_space
from merlin.objectives.policy_gradient import actor_loss
from merlin.runs.presets import preset
from merlin.training.evaluation import evaluate
from merlin.training.rollout import Rollout
from merlin.training.trainer import Trainer, TrainingConfig
from tests.agents.helpers import ACTION_SPACES, ON_POLICY, act, learnt, make_agent, row, tensors
from tests.agents.test_agents import log_probs_and_values, random_firsts
from tests.environments.examples import allowed  # (registers test/Masked-v0)

T, B = 12, 5

every_agent = pytest.mark.parametrize("name", AGENTS)
on_policy = pytest.mark.parametrize("name", ON_POLICY)
choosing = pytest.mark.parametrize("action_space", sorted(ACTION_SPACES.keys() - {"box"}))


def random_masks(agent, *batch, seed=0):
    """Masks that allow about a third, and something of each variable."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(*batch, agent.actions.num_choices, generator=generator) < 0.35
    sample = agent.actions.sample(torch.zeros(*batch, agent.actions.num_parameters), generator)
    return masks | taken(agent, sample)


def taken(agent, action):
    """The choices that an action takes."""
    actions = agent.actions
    if not isinstance(actions, ProductActions):
        return actions.encode(action) > 0
    rows = zip(actions.parts, actions.actions(action), strict=True)
    return torch.cat([part.encode(x) for part, x in rows if part.num_choices], -1) > 0


def masked_window(name, action_space="discrete", seed=0):
    agent = make_agent(name, action_space)
    masks = random_masks(agent, T, B, seed=seed)
    return agent, masks, *act(agent, random_firsts(seed), seed=seed, masks=masks)[:3]


@every_agent
@choosing
def test_acting_equals_learning_under_random_masks(name, action_space):
    seed = (len(name) + len(action_space)) % 2
    agent, masks, unroll, initial, final = masked_window(name, action_space, seed)
    assert not (taken(agent, unroll.action) & ~masks).any()
    log_prob, value, after = log_probs_and_values(agent, unroll, initial)
    torch.testing.assert_close(log_prob, unroll.log_prob, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(value, unroll.value, atol=2e-5, rtol=1e-4)
    for x, y in zip(tensors(after), tensors(final), strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)
    bare = unroll._replace(observation={n: x for n, x in unroll.observation.items() if n != ACTION_MASK})
    assert not torch.allclose(log_probs_and_values(agent, bare, initial)[0], unroll.log_prob)  # masks matter


@on_policy
@choosing
def test_acting_for_a_window_obeys_masks_and_gives_a_ratio_of_exactly_one(name, action_space):
    agent, _, unroll, initial, _ = masked_window(name, action_space)
    acting = Acting(agent, initial, T, torch.Generator().manual_seed(0), records=True)
    actions = torch.stack(
        [acting.step(row(unroll, t), unroll.is_first[t], unroll.previous_reward[t]) for t in range(T)]
    )
    torch.testing.assert_close(actions, unroll.action, atol=2e-5, rtol=1e-4)
    columns = acting.columns()
    unroll = unroll._replace(action=actions, log_prob=columns["log_prob"], value=columns["value"])
    metrics = agent.losses(unroll, initial, acting=acting)[0].metrics
    # one graph, the same products: in the first pass of learning nothing has moved
    assert metrics["policy_kl_nats"] == 0
    assert metrics["entropy_nats"].isfinite()


@on_policy
def test_entropy_is_of_what_is_allowed(name):
    agent = make_agent(name)
    masks = torch.zeros(T, B, 4, dtype=torch.bool)
    masks[..., 2] = True  # a single choice
    unroll, initial, _, _ = act(agent, random_firsts(), masks=masks)
    assert (unroll.action == 2).all() and (unroll.log_prob == 0).all()
    metrics = agent.losses(unroll, initial)[0].metrics
    assert metrics["entropy_nats"] == 0 and metrics["policy_kl_nats"] == 0
    masks[..., :2] = True
    unroll, initial, _, _ = act(agent, random_firsts(), masks=masks)
    assert 0 < agent.losses(unroll, initial)[0].metrics["entropy_nats"] <= np.log(3) + 1e-6


@on_policy
@choosing
def test_gradients_are_finite_and_none_reaches_what_is_never_allowed(name, action_space):
    agent = make_agent(name, action_space)
    if isinstance(agent.actions, ProductActions):
        never = 1  # of the first variable, whose logits come first
    else:
        never = agent.actions.num_choices - 1
    masks = random_masks(agent, T, B)
    masks[..., never] = False
    masks[..., never - 1] = True
    unroll, initial, _, _ = act(agent, random_firsts(), masks=masks)
    agent.losses(unroll, initial)[0].total.backward()
    gradients = {n: p.grad for n, p in agent.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    head = agent.policy.head if name == "merlin" else agent.policy_head
    assert (head[-1].weight.grad[never] == 0).all() and head[-1].bias.grad[never] == 0
    assert (head[-1].bias.grad != 0).any()


@every_agent
def test_rows_on_which_no_action_follows_may_allow_nothing(name):
    agent = make_agent(name)
    masks = random_masks(agent, T, B)
    masks[5] = False
    unroll, initial, _, _ = act(agent, random_firsts(), masks=masks)
    is_valid = torch.ones(T, B, dtype=torch.bool)
    is_valid[5] = False
    losses, _ = agent.losses(unroll._replace(is_valid=is_valid), initial)
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in learnt(agent))


@every_agent
@pytest.mark.parametrize("greedy", [False, True])
def test_a_step_obeys_a_mask_of_any_type(name, greedy):
    agent = make_agent(name)
    observation = {"card": torch.arange(5), "place": torch.rand(5, 3)}
    outputs = []
    for dtype in (torch.bool, torch.int8, torch.float32):
        mask = torch.eye(5, 4).flip(0).to(dtype)
        mask[0, 3] = 1
        generator, firsts = torch.Generator().manual_seed(0), torch.ones(5, dtype=torch.bool)
        seen = observation | {ACTION_MASK: mask}
        outputs.append(agent.step(seen, agent.initial_state(5), firsts, generator=generator, greedy=greedy)[0])
        assert outputs[-1].action.tolist() == [3, 3, 2, 1, 0]
    assert all(torch.equal(x.value, outputs[0].value) for x in outputs)


def test_merlins_value_is_told_what_is_not_allowed():
    """By a finite number that is far from all others, and not by the logit."""
    agent = make_agent("merlin")
    seen = []
    agent.predictor.value_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    masks = random_masks(agent, T, B)
    act(agent, random_firsts(), masks=masks)
    log_probs = torch.stack(seen)[..., -4:]
    assert (log_probs[~masks] == MASKED_LOG_PROB).all()
    assert (log_probs[masks] > MASKED_LOG_PROB).all() and torch.isclose(
        torch.where(masks, log_probs.exp(), 0).sum(-1), torch.tensor(1.0)
    ).all()


@every_agent
def test_parameters_do_not_depend_on_masks(name):
    entries = {"card": spaces.Discrete(5)}
    with_mask = spaces.Dict(entries | {ACTION_MASK: spaces.MultiBinary(4)})
    shapes = []
    for space in (spaces.Dict(entries), with_mask):
        agent = AGENTS[name].agent_class(flatten_space(space), spaces.Discrete(4), preset(name).model)
        shapes.append({n: p.shape for n, p in agent.named_parameters()})
    assert shapes[0] == shapes[1]


class MaskedSignal(VectorEnv):
    """One action of 6 pays and ends the episode, as does any other; the mask names it and one of the upper three.

    The observation says nothing. Either of the two that are allowed, by chance, pays in half of the episodes; the lower
    one pays in all, and without masks no policy earns more than 1/3.
    """

    single_observation_space = spaces.Box(-1, 1, (1,), np.float32)
    single_action_space = spaces.Discrete(6, start=3)
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "tensors": True}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, num_envs=1, device="cpu"):
        self.num_envs = num_envs

    def reset(self, *, seed=None, options=None):
        self.generator = torch.Generator().manual_seed(seed)
        return self._begin()

    def _begin(self):
        self.pays = torch.randint(3, (self.num_envs,), generator=self.generator)
        self.mask = torch.nn.functional.one_hot(self.pays, 3).repeat(1, 2)
        return torch.zeros(self.num_envs, 1), {"action_mask": self.mask}

    def step(self, actions):
        actions = actions - 3
        assert (self.mask.gather(1, actions.unsqueeze(1)) == 1).all(), "only what is allowed is done"
        reward, last = (actions == self.pays).float(), {"action_mask": self.mask}
        observation, info = self._begin()
        ended = torch.ones(self.num_envs, dtype=torch.bool)
        return observation, reward, ended, ~ended, info | {"final_obs": observation, "final_info": last}


gymnasium.register("test/MaskedSignal-v0", vector_entry_point=MaskedSignal)


def small(name):
    sizes = {"latent_size": 6, "hidden_size": 16, "policy_hidden_size": 16, "memory_size": 5, "num_read_keys": 1}
    config = preset(name).model
    return replace(config, **{key: value for key, value in sizes.items() if hasattr(config, key)})


class NothingAllowed(MaskedSignal):
    """After the first window, every second environment is allowed nothing."""

    steps = 0

    def step(self, actions):
        self.steps += 1
        observation, reward, terminated, truncated, _ = super().step(3 + self.mask.argmax(-1))
        mask = torch.ones(self.num_envs, 6)
        mask[1::2] = self.steps < 4
        return observation, reward, terminated, truncated, {"action_mask": mask}


gymnasium.register("test/NothingAllowed-v0", vector_entry_point=NothingAllowed)


def test_tensors_whose_mask_allows_nothing_end_training_with_a_sentence():
    """They are looked at once in each window, not at every step."""
    with make_environment("test/NothingAllowed-v0", 4) as environment:
        agent = AGENTS["rl-lstm"].agent_class(environment.spaces, environment.action_space, small("rl-lstm"))
        trainer = Trainer(agent, environment, TrainingConfig(unroll_length=4), total_steps=100, seed=1)
        trainer.update()
        with pytest.raises(MerlinError, match="must allow an action, but test/NothingAllowed-v0 allowed"):
            trainer.update()


def test_merlins_further_policy_passes_obey_masks():
    agent, _, unroll, initial, _ = masked_window("merlin")
    assert agent.policy_losses(unroll, initial).metrics["policy_kl_nats"].abs() < 1e-5


def test_the_loss_of_an_agent_that_knows_of_no_masks_obeys_them():
    agent, masks, unroll, _, _ = masked_window("rl-lstm")
    parameters, advantages = torch.randn(T, B, 4), torch.randn(T, B)
    loss = actor_loss(agent.actions, parameters, unroll, advantages, agent.config, 1.0)
    allowed_alone = torch.distributions.Categorical(logits=parameters.masked_fill(~masks, -torch.inf))
    torch.testing.assert_close(loss.log_prob, allowed_alone.log_prob(unroll.action))


@on_policy
def test_an_agent_learns_where_the_mask_tells_what_the_observation_does_not(name):
    torch.manual_seed(0)
    with make_environment("test/MaskedSignal-v0", 64) as environment:
        agent = AGENTS[name].agent_class(environment.spaces, environment.action_space, small(name))
        config = TrainingConfig(unroll_length=8, learning_rate=1e-2)
        trainer = Trainer(agent, environment, config, total_steps=12_288, seed=1)
        trainer.run(lambda *_: None)  # the environment refuses what is masked, in each of 12,288 steps
        result = evaluate(agent, environment, episodes=200, seed=3)
        assert result["episode_return_mean"] > 0.85
        assert evaluate(agent, environment, episodes=128, seed=4, greedy=True)["episode_return_mean"] > 0.95


@every_agent
def test_the_value_of_what_would_come_next_is_that_of_a_step_with_its_mask(name):
    agent, _, unroll, state, _ = masked_window(name)
    seen = row(unroll, 0), unroll.is_first[0], unroll.previous_reward[0]
    value = Acting(agent, state, 1, torch.Generator().manual_seed(1)).next_value(*seen)
    output, _ = agent.step(seen[0], state, *seen[1:], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(value, output.value)
    bare = {key: x for key, x in seen[0].items() if key != ACTION_MASK}
    other, _ = agent.step(bare, state, *seen[1:], generator=torch.Generator().manual_seed(1))
    assert torch.allclose(value, other.value) == (name != "merlin")  # whose V sees the policy


@every_agent
@pytest.mark.parametrize("where", ["info", "observation"])
def test_a_rollout_bootstraps_from_the_mask_of_the_final_observation(name, where):
    torch.manual_seed(0)
    with make_environment("test/Masked-v0", 8, env_kwargs={"where": where}) as environment:
        agent = AGENTS[name].agent_class(environment.spaces, environment.action_space, small(name))
        rollout = Rollout(agent, environment, 0.9, torch.Generator().manual_seed(0), seed=5)
        seen, next_value = [], Acting.next_value
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Acting, "next_value", lambda *args: seen.append(args[1]) or next_value(*args))
            window, _ = rollout.collect(12)
        unroll = window.unroll
        assert (unroll.is_end & (unroll.discount > 0)).any() and len(seen) > 2
        for observation in (*seen, {key: x.flatten(0, 1) for key, x in unroll.observation.items()}):
            assert torch.equal(observation[ACTION_MASK], torch.tensor(allowed(observation["clock"])))
        assert unroll.next_value.isfinite().all()
        metrics = agent.losses(unroll, window.state)[0].metrics
        assert name not in ON_POLICY or abs(metrics["policy_kl_nats"]) < 1e-5
