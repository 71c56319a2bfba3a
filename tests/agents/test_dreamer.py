"""Dreamer: what its losses reach, what follows from imagined rewards by hand, its replay, and exact resumption."""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch

from merlin.agents.dreamer import Dreamer
from merlin.agents.dreamer.world_model import WorldModel
from merlin.environments.batch import make_environment
from merlin.errors import MerlinError
from merlin.runs.presets import preset
from merlin.training.replay import Replay
from merlin.training.trainer import Trainer, TrainingConfig
from tests.agents.helpers import act, make_agent

T, B = 6, 5
SMALL = {
    "latent_groups": 3,
    "latent_classes": 4,
    "deterministic_size": 7,
    "head_size": 9,
    "imagination_length": 4,
    "imagination_starts": None,
}


def make(action_space="discrete", **settings) -> Dreamer:
    agent = make_agent("dreamer", action_space, **SMALL | settings)
    assert isinstance(agent, Dreamer)
    return agent


def firsts(length: int = T) -> torch.Tensor:
    is_first = torch.zeros(length, B, dtype=torch.bool)
    is_first[3, :2] = True
    return is_first


def gradients(agent: Dreamer, loss: torch.Tensor) -> dict[str, float]:
    """The largest gradient of each group of parameters, and of v'."""
    agent.zero_grad()
    loss.backward()
    groups = agent.parameter_groups() | {"target": list(agent.value_target.parameters())}
    return {
        name: max(0.0 if p.grad is None else float(p.grad.abs().max()) for p in group) for name, group in groups.items()
    }


def model_loss(agent: Dreamer, unroll, state) -> torch.Tensor:
    activations, _ = agent.scan(unroll, state, *agent.action_codes(unroll, state))
    codes = agent.action_codes(unroll, state)[0]
    return agent.model.loss(activations.posterior, activations.latent, unroll, codes)[0]


@pytest.mark.parametrize("action_space", ["discrete", "multi", "box", "mixed"])
@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_model_policy_and_value_learn_from_their_own_losses_alone(action_space, rho):
    agent = make(action_space, reinforce_fraction=rho, entropy_cost=0.0)
    unroll, state, _, _ = act(agent, firsts())
    of_model = gradients(agent, model_loss(agent, unroll, state))
    assert of_model["model"] > 0 and of_model["policy"] == of_model["value"] == of_model["target"] == 0
    activations, _ = agent.scan(unroll, state, *agent.action_codes(unroll, state))
    found = gradients(agent, agent.behaviour_loss(agent.dream(activations.latent.flatten(0, 1))).total)
    assert found["policy"] > 0 and found["value"] > 0 and found["model"] == found["target"] == 0


class Chain:
    """A world of states 0, 1, 2, 3 passed in this order; coming to 3 pays 1 and ends it. Features say which."""

    values = torch.tensor([0.5, -1.0, 2.0, 7.0])

    @staticmethod
    def imagine(model, features, action, generator=None):
        moved = features.clone()
        moved[..., 0] += 1
        return moved

    @staticmethod
    def reward(model, features):
        return (features[..., 0] == 3).float()

    @staticmethod
    def discount_logit(model, features):
        return torch.where(features[..., 0] >= 3, -torch.inf, math.log(0.9 / 0.1))


class Values(torch.nn.Module):
    def forward(self, features):
        return Chain.values[features[..., :1].long().clamp(max=3)]


def dream_of_chain(agent: Dreamer):
    agent.value_target = Values()
    starts = torch.zeros(2, agent.model.feature_size)
    starts[1, 0] = 2
    names = ("imagine", "reward", "discount_logit")
    with mock.patch.multiple(WorldModel, **{name: getattr(Chain, name) for name in names}):
        return agent.dream(starts)


def test_returns_weights_and_advantages_of_a_chain_by_hand():
    agent = make(imagination_length=3, gae_lambda=0.8, entropy_cost=0.0)
    dream = dream_of_chain(agent)
    g, lam, v = 0.9, 0.8, Chain.values
    last = torch.tensor(1.0)  # discount 0 after it: nothing later counts
    middle = 0.0 + g * ((1 - lam) * v[2] + lam * last)
    first = 0.0 + g * ((1 - lam) * v[1] + lam * middle)
    torch.testing.assert_close(dream.returns[:, 0], torch.stack([first, middle, last]))
    torch.testing.assert_close(dream.weight[:, 0], torch.tensor([1.0, g, g * g]))
    assert dream.weight[2, 0] > 0  # the action that pays counts
    assert dream.returns[0, 1] == 1 and dream.weight[:, 1].tolist() == [1, 0, 0]
    advantage = dream.returns[:, 0] - v[:3]
    losses = agent.behaviour_loss(dream)
    log_prob = agent.actions.log_prob(agent.policy(dream.features[:-1]), dream.actions)
    both = torch.stack([advantage, dream.returns[:, 1] - v[torch.tensor([2, 3, 3])]], 1)
    expected = -(dream.weight * log_prob * both / agent.spread.clamp(min=0.05)).mean()
    torch.testing.assert_close(losses.metrics["policy_loss"], expected)


def test_one_imagined_step_is_worth_its_reward_and_what_follows():
    agent = make(imagination_length=1, gae_lambda=0.3)
    dream = agent.dream(torch.randn(8, agent.model.feature_size))
    discount = torch.sigmoid(agent.model.discount_logit(dream.features[1]))
    torch.testing.assert_close(dream.returns[0], dream.reward[0] + discount * dream.values[1])
    assert (dream.weight == 1).all()


def test_what_is_imagined_is_told_in_rewards_whatever_they_are_learnt_in():
    found = []
    for unit in (1.0, 50.0):
        agent = make(running_scales=True)
        agent.update_scales(act(agent, firsts(), reward_unit=unit)[0])
        dream = agent.dream(torch.ones(8, agent.model.feature_size), torch.Generator().manual_seed(0))
        found.append(agent.behaviour_loss(dream).metrics)
    for name in ("imagined_return", "imagined_reward"):
        assert found[0][name] != 0
        torch.testing.assert_close(found[1][name], 50 * found[0][name])
    torch.testing.assert_close(found[1]["advantage_spread"], found[0]["advantage_spread"])


@pytest.mark.parametrize("action_space, box_actions", [("box", "gaussian"), ("box", "beta"), ("mixed", "gaussian")])
def test_the_dynamics_gradient_is_the_exact_one_of_a_step(action_space, box_actions):
    """By finite differences with the same noise; of choices, which jump, only the gradient's being there is known."""
    agent = make(
        action_space,
        box_actions=box_actions,
        imagination_length=1,
        reinforce_fraction=0.0,
        entropy_cost=0.0,
        scale_advantages=False,
        latent="gaussian",
    ).double()
    starts = torch.randn(20, agent.model.feature_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss():
        return agent.behaviour_loss(agent.dream(starts, torch.Generator().manual_seed(2))).metrics["policy_loss"]

    weight = agent.policy[-1].weight
    (gradient,) = torch.autograd.grad(loss(), weight)
    assert gradient.abs().max() > 0
    if box_actions == "beta":  # whose draws are not continuous in the parameters, noise by noise: rejections
        return
    rows = slice(0, None) if action_space == "box" else slice(3, 7)
    direction = torch.zeros_like(weight)
    direction[rows] = torch.randn(direction[rows].shape, dtype=torch.float64)
    sides = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight.add_(direction, alpha=step)
            sides.append(loss())
            weight.sub_(direction, alpha=step)
    torch.testing.assert_close((gradient * direction).sum(), (sides[0] - sides[1]) / 2e-6, rtol=1e-5, atol=1e-9)


def test_the_gradient_of_a_beta_draw_moves_its_mean_as_the_parameters_do():
    agent = make("box", box_actions="beta")
    parameters = torch.tensor([[0.3, -0.4, 0.5, 0.2]]).expand(200_000, -1).clone().requires_grad_()
    _, code = agent.actions.sample_code(parameters, torch.Generator().manual_seed(0))
    found = torch.autograd.grad(code[:, 0].mean(), parameters)[0].sum(0)
    alone = parameters[:1].detach().clone().requires_grad_()
    expected = torch.autograd.grad(agent.actions.moments(alone)[0][0, 0], alone)[0][0]
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_a_policy_starts_uniform_and_a_model_neutral():
    agent = Dreamer(make().spaces, make().action_space, make().config)
    unroll, state, _, _ = act(agent, firsts())
    activations, _ = agent.scan(unroll, state, *agent.action_codes(unroll, state))
    dream = agent.dream(activations.latent.flatten(0, 1))
    entropy = agent.behaviour_loss(dream).metrics["entropy_nats"]
    torch.testing.assert_close(entropy, torch.tensor(math.log(4)))
    assert (dream.reward == 0).all() and (dream.values == 0).all()


def test_arrivals_are_the_next_rows_within_an_episode_and_imagined_at_its_end():
    agent = make()
    unroll, state, _, _ = act(agent, firsts())
    codes = agent.action_codes(unroll, state)
    features = agent.scan(unroll, state, *codes)[0].latent
    arrived = agent.model.arrivals(features, unroll.is_first, codes[0], torch.Generator().manual_seed(0))
    follows = ~torch.cat([unroll.is_first[1:], torch.ones(1, B, dtype=torch.bool)])
    assert torch.equal(arrived[:-1][follows[:-1]], features[1:][follows[:-1]])
    hidden = agent.model.recur(*agent.model.split(features)[:1], codes[0], agent.model.split(features)[1])
    torch.testing.assert_close(agent.model.split(arrived)[1][~follows], hidden[~follows])


def test_what_another_episode_held_changes_nothing():
    agent = make()
    unroll, state, _, _ = act(agent, firsts())
    codes = agent.action_codes(unroll, state)
    features = agent.scan(unroll, state, *codes)[0].latent
    other = type(state)(*(x + 1 for x in state))
    observation = {name: x.clone() for name, x in unroll.observation.items()}
    observation["place"][:3] += 1
    disturbed = unroll._replace(observation=observation)
    again = agent.scan(disturbed, other, codes[0], agent.action_codes(disturbed, other)[1])[0].latent
    assert torch.equal(features[3:, :2], again[3:, :2])
    assert not torch.allclose(features[3:, 2:], again[3:, 2:])


def test_a_stored_window_comes_back_as_it_was():
    agent = make()
    unroll, state, _, _ = act(agent, firsts(12))
    replay = Replay(B, 12)
    replay.add(unroll, state)
    drawn, start = replay.sample(40, torch.Generator().manual_seed(0))
    assert drawn.is_first.shape == (12, 40)
    found = {int(x): column for column, x in enumerate(drawn.reward[0].mul(1e6).round())}
    for column, reward in enumerate(unroll.reward[0].mul(1e6).round()):
        at = found[int(reward)]  # each of the 5 is among 40 draws
        for name in ("is_first", "action", "reward", "discount", "is_end", "is_valid", "previous_reward"):
            assert torch.equal(getattr(drawn, name)[:, at], getattr(unroll, name)[:, column])
        for name, x in unroll.observation.items():
            assert (
                torch.equal(drawn.observation[name][:, at], x[:, column]) and drawn.observation[name].dtype == x.dtype
            )
        assert all(torch.equal(x[at], y[column]) for x, y in zip(start, state, strict=True))


def trainer(environment, **settings) -> Trainer:
    torch.manual_seed(3)
    config = replace(
        preset("dreamer", "merlin/TMaze-v0").model,
        **SMALL | {"replay_rows": 64, "replay_windows": 3, "replay_ratio": 1.0, "prefill_steps": 24} | settings,
    )
    agent = Dreamer(environment.spaces, environment.action_space, config)
    return Trainer(agent, environment, TrainingConfig(unroll_length=4), total_steps=400, seed=5)


@pytest.mark.parametrize("replay_state", ["stored", "zero"])
def test_a_run_goes_on_exactly_replay_and_all(replay_state, tmp_path):
    directory = tmp_path if replay_state == "stored" else None
    found = []
    for interrupted in (False, True):
        with make_environment("merlin/TMaze-v0", 2) as environment:
            run = trainer(environment, replay_state=replay_state, target_updates=3)
            for number in range(24):
                if interrupted and number in (2, 7, 15):  # before the first update, within and after a wrap
                    saved = run.state_dict(directory), {n: x.clone() for n, x in run.agent.state_dict().items()}
                    run = trainer(environment, replay_state=replay_state, target_updates=3)
                    run.agent.load_state_dict(saved[1])
                    run.load_state_dict(saved[0], directory)
                run.update()
            found.append(run.agent.state_dict())
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())
    assert bool(list(tmp_path.glob("segment-*"))) == (directory is not None)


def test_the_target_follows_after_so_many_updates_and_not_before():
    with make_environment("merlin/TMaze-v0", 2) as environment:
        run = trainer(environment, target_updates=4, replay_ratio=1.5)
        start = [x.clone() for x in run.agent.value_target.parameters()]
        while run.learner.updates < 4:
            assert all(torch.equal(x, y) for x, y in zip(start, run.agent.value_target.parameters(), strict=True))
            assert run.update()[0] or run.learner.updates == 0
        pairs = zip(run.agent.value_head.parameters(), run.agent.value_target.parameters(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)


def test_what_a_replay_cannot_do_is_told():
    with make_environment("merlin/TMaze-v0", 2) as environment:
        run = trainer(environment, replay_rows=11)
        with pytest.raises(MerlinError, match=r"3 windows of 4 rows, but model\.replay_rows is 11"):
            run.update()
        with pytest.raises(MerlinError, match=r"training\.passes, which must be 1, but 3 came"):
            run.agent.learner(TrainingConfig(passes=3), torch.Generator())
        run = trainer(environment)
        run.update()
        longer = run.agent.learner(TrainingConfig(unroll_length=6), run.generator)
        with pytest.raises(MerlinError, match=r"of 4 rows, but training\.unroll_length is 6: resume with 4"):
            longer.load_share_dict(run.learner.share_dict())


def test_terminal_rows_are_decoded_and_start_no_imagination():
    """With next-step autoreset the observation that an episode ended with is a row whose action was ignored."""
    agent = make(entropy_cost=0.0)
    unroll, state, _, _ = act(agent, firsts())
    valid = torch.ones(T, B, dtype=torch.bool)
    valid[2, :2] = False
    unroll = unroll._replace(is_valid=valid)
    with mock.patch.object(agent, "dream", wraps=agent.dream) as dream:
        agent.losses(unroll, state)
    assert len(dream.call_args.args[0]) == int(valid.sum())
    other = unroll._replace(reward=unroll.reward.masked_fill(~valid, 99.0))
    torch.manual_seed(0)
    first = model_loss(agent, unroll, state)
    torch.manual_seed(0)
    assert model_loss(agent, other, state) == first  # its reward is nobody's
    place = {"place": unroll.observation["place"].masked_fill(~valid.unsqueeze(-1), 0.9)}
    assert model_loss(agent, unroll._replace(observation=unroll.observation | place), state) != first


@pytest.mark.usefixtures("on_a_command_line")
def test_warnings():
    agent = make()
    good = {"prior_explained": 0.5, "kl_nats": 2.0, "reward_explained": 0.9, "entropy_nats": 0.01}
    assert agent.warnings(good) == {}
    assert "kl_cost=10" in agent.warnings(good | {"prior_explained": 0.01})["prior_explained"]
    bad = agent.warnings(good | {"reward_explained": -0.1})
    assert "reward_cost=200" in bad["reward_explained"] and "entropy_cost" in bad["entropy"]
    assert agent.warnings({"reward_explained": math.nan}) == {}


def test_imagined_steps_follow_the_state_and_can_be_decoded():
    agent = make()
    _, _, state, _ = act(agent, firsts())
    imagined = agent.imagine(state, 5, torch.Generator().manual_seed(0))
    assert imagined.shape == (5, B, agent.model.feature_size)
    decoded = agent.reconstruct(imagined)
    assert {name: x.shape[:2] for name, x in decoded.items()} == {"card": (5, B), "place": (5, B)}
    hidden = agent.model.recur(state.latent, state.previous_action, state.hidden)
    torch.testing.assert_close(agent.model.split(imagined[0])[1], hidden)
    done = torch.eye(agent.actions.encoding_size)[torch.randint(agent.actions.encoding_size, (4, B))]
    given = agent.imagine(state, 5, torch.Generator().manual_seed(0), done)
    for k in range(4):
        hidden = agent.model.recur(*agent.model.split(given[k])[:1], done[k], agent.model.split(given[k])[1])
        torch.testing.assert_close(agent.model.split(given[k + 1])[1], hidden)
    expected = agent.expect(state, torch.zeros(B, dtype=torch.bool))
    assert expected["place"].shape == (B, 3)


def test_where_nothing_is_imagined_nothing_is_learnt_and_the_spread_stays():
    agent = make(scale_advantages=True)
    agent.spread.fill_(0.7)
    losses = agent.behaviour_loss(agent.dream(torch.zeros(0, agent.model.feature_size)))
    losses.total.backward()
    assert losses.total == 0 and not any(losses.metrics.values()) and agent.spread == torch.tensor(0.7)
