"""The rollout: rows as `merlin.experience` draws them, in every autoreset mode; truncation bootstraps."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from merlin.agents import AGENTS
from merlin.environments.batch import Environment
from merlin.states import map_state
from merlin.training.rollout import Rollout
from tests.agents.helpers import tensors

B, T, DISCOUNT = 3, 24, 0.9


class Counting(gymnasium.Env):
    """Shows how many steps were taken; episode e lasts 2 + (e + start) % 4 steps and is truncated every other time.

    The reward of a step is its number, so that a row out of line shows.
    """

    observation_space = spaces.Box(0, 100, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, start: int = 0):
        self.episode = start - 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        over = self.count == 2 + self.episode % 4
        truncated = over and self.episode % 2 == 1
        return self._observe(), float(self.count), over and not truncated, truncated, {}

    def _observe(self):
        return np.array([self.count, self.episode], np.float32)


def collect(mode: AutoresetMode, name: str = "merlin", records: bool = False):
    """Return an agent, its rollout, a window of it in `mode`, and the episodes that ended."""
    vector = SyncVectorEnv([lambda i=i: Counting(i) for i in range(B)], autoreset_mode=mode)
    environment = Environment(vector)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "latent_size": 4, "memory_size": 6}
    config_class = AGENTS[name].config_class
    config = config_class(**{key: x for key, x in sizes.items() if key in config_class.__dataclass_fields__})
    agent = AGENTS[name].agent_class(environment.spaces, environment.action_space, config)
    rollout = Rollout(agent, environment, DISCOUNT, torch.Generator().manual_seed(0), seed=0)
    window, episodes = rollout.collect(T, records)
    environment.close()
    return agent, rollout, window, episodes


def test_rows_line_up():
    _, _, (unroll, *_), episodes = collect(AutoresetMode.SAME_STEP)
    count, episode = unroll.observation["observation"].unbind(-1)
    assert torch.equal(unroll.is_first, count == 0)
    assert torch.equal(unroll.reward, count + 1)  # the reward of the action that the row's observation led to
    assert torch.equal(unroll.previous_reward, count)  # and that of the row before, 0 at a start
    length = 2 + episode % 4
    assert torch.equal(unroll.is_end, count + 1 == length)
    terminated = unroll.is_end & (episode % 2 == 0)
    assert torch.equal(unroll.discount, torch.where(terminated, 0.0, DISCOUNT))
    assert unroll.is_valid.all() and terminated.any() and (unroll.is_end & ~terminated).any()
    lengths = length[unroll.is_end]
    assert torch.equal(episodes.lengths, lengths)
    assert torch.equal(episodes.returns, lengths * (lengths + 1) / 2)


@pytest.mark.parametrize("name", AGENTS)
def test_truncation_bootstraps_from_the_final_observation_on_the_episodes_own_state(name, monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))  # latents at their means
    agent, _, (unroll, state, _), _ = collect(AutoresetMode.SAME_STEP, name)
    episode = unroll.observation["observation"][..., 1]
    truncated = unroll.is_end & (episode % 2 == 1)
    assert truncated.any()
    for t in range(T):
        rows = {"observation": unroll.observation["observation"][t]}
        torch.manual_seed(t)
        while True:  # until the agent happens to act as it did
            output, after = agent.step(rows, state, unroll.is_first[t], unroll.previous_reward[t])
            if torch.equal(output.action, unroll.action[t]):
                break
        state = after
        final = {"observation": rows["observation"] + torch.tensor([1.0, 0.0])}
        value = agent.step(final, state, torch.zeros(B, dtype=torch.bool), unroll.reward[t])[0].value
        torch.testing.assert_close(unroll.next_value[t][truncated[t]], value[truncated[t]])
    following = ~unroll.is_end[:-1]
    assert torch.equal(unroll.next_value[:-1][following], unroll.value[1:][following])


@pytest.mark.parametrize("name", AGENTS)
def test_what_stands_for_a_final_observation_where_no_episode_ended_is_seen_by_no_network(name, monkeypatch):
    whole = Environment.step

    def step(self, action):
        following = whole(self, action)
        if following.final_observation is None:
            return following
        rows = following.truncated.unsqueeze(-1)
        nothing = {key: x.where(rows, torch.nan) for key, x in following.final_observation.items()}
        return following._replace(final_observation=nothing)

    encode, seen = AGENTS[name].agent_class.encode, []

    def watched(self, observation, *rest):
        seen.append(observation["observation"])
        return encode(self, observation, *rest)

    monkeypatch.setattr(Environment, "step", step)
    monkeypatch.setattr(AGENTS[name].agent_class, "encode", watched)
    collect(AutoresetMode.SAME_STEP, name)
    assert len(seen) > T + 1 and torch.stack(seen).isfinite().all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_every_autoreset_mode_gives_the_same_training_data(mode):
    """Row by row, the rows that count are those of same-step autoreset, in the same order in each environment."""
    _, _, (same, *_), _ = collect(AutoresetMode.SAME_STEP)
    _, _, (other, *_), episodes = collect(mode)
    lengths = other.observation["observation"][..., 0][other.is_end] + 1
    assert torch.equal(episodes.lengths, lengths) and torch.equal(episodes.returns, lengths * (lengths + 1) / 2)
    assert other.is_valid.all() == (mode is not AutoresetMode.NEXT_STEP)
    fields = ("is_first", "previous_reward", "reward", "discount", "is_end")
    for b in range(B):
        rows = other.is_valid[:, b]
        count = int(rows.sum())
        assert torch.equal(other.observation["observation"][rows, b], same.observation["observation"][:count, b])
        for field in fields:
            assert torch.equal(getattr(other, field)[rows, b], getattr(same, field)[:count, b]), field


def test_windows_carry_the_state():
    """Two windows are one: the second begins with the state that the first ended with, on the row after its last."""
    _, rollout, _, _ = collect(AutoresetMode.SAME_STEP)
    carried = map_state(torch.clone, rollout.state.agent_state)
    following = rollout.state.timestep.observation["observation"].clone()
    rollout.environment.step = lambda action: rollout.state.timestep  # the environments are closed by now
    window, _ = rollout.collect(1)
    assert torch.equal(window.unroll.observation["observation"][0], following)
    assert all(torch.equal(x, y) for x, y in zip(tensors(window.state), tensors(carried), strict=True))


@pytest.mark.parametrize("name", AGENTS)
def test_a_recorded_window_is_the_same_and_can_be_learnt_from_as_it_is(name):
    agent, rollout, (unroll, state, recorded), _ = collect(AutoresetMode.SAME_STEP, name, records=True)
    _, _, (plain, _, not_recorded), _ = collect(AutoresetMode.SAME_STEP, name)
    for x, y in zip(tensors(unroll._replace(observation=None)), tensors(plain._replace(observation=None)), strict=True):
        torch.testing.assert_close(x, y)
        assert not x.requires_grad
    assert not any(x.requires_grad for x in tensors(rollout.state.agent_state))
    agent.eval()
    gradients = []
    for acting in (None, recorded):
        agent.zero_grad()
        torch.manual_seed(0)  # of what Dreamer imagines
        agent.losses(unroll, state, acting=acting)[0].total.backward()
        gradients.append([p.grad for p in agent.parameters() if p.requires_grad])
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)
    with pytest.raises(AssertionError, match="recorded where it is learnt from"):
        not_recorded.activations()
