import pytest
import torch

from merlin.agents.merlin.reward_keys import RewardKeys
from merlin.memory import content
from tests.agents.helpers import act, make_agent

Z, ROWS = 8, (40, 6)


def window(rewarded=0.2, size=1.0, seed=0):
    """Latents, the rewards that came with them and those that followed, and which rows count: half of them."""
    torch.manual_seed(seed)
    rewards = size * (torch.rand(2, *ROWS) < rewarded).float()
    seen = 2 * (rewards / size).unsqueeze(-1) * torch.eye(Z)[:2].view(2, 1, 1, Z)
    return torch.randn(*ROWS, Z) + seen.sum(0), *rewards, torch.rand(ROWS) < 0.5


def test_keys_lie_along_what_latents_have_more_of_where_reward_came_and_where_it_followed():
    """One by one, by the mean of such latents less that of the others, of the rows that count."""
    latent, *rewards, counts = window()
    keys = RewardKeys(Z)
    keys.update(torch.where(counts.unsqueeze(-1), latent, torch.nan), *rewards, counts)
    latents = latent[counts]
    spread = latents.var(0, correction=0).sum().sqrt()
    gaps = [latents[r[counts] == 1].mean(0) - latents[r[counts] == 0].mean(0) for r in rewards]
    after, before = (gap / gap.norm() for gap in gaps)
    longest = max(gap.norm() for gap in gaps) / spread
    assert 0.1 < longest < 1
    present = torch.randn(3, Z)
    here = 0.5 * present / present.norm(dim=1, keepdim=True)
    found, strengths = keys(present + latents.mean(0), 2 * Z)
    expected = [
        torch.cat([first, second], 1)
        for first, second in [
            (after.expand(3, Z), torch.zeros(3, Z)),
            (after + here, torch.zeros(3, Z)),
            (before.expand(3, Z), after.expand(3, Z)),
            (before + here, after.expand(3, Z)),
        ]
    ]
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
    assert strengths.flatten().tolist() == pytest.approx(12 * [20 * float(longest)], 1e-4)
    torch.testing.assert_close(keys(present, Z)[0], keys(present, 2 * Z)[0][..., :Z])
    fewer = RewardKeys(Z, 2)
    fewer.load_state_dict(keys.state_dict())
    for x, y in zip(fewer(present, 2 * Z), keys(present, 2 * Z), strict=True):
        torch.testing.assert_close(x, y[:, :2])


def test_keys_do_not_depend_on_units_of_rewards_and_follow_the_last_windows():
    small, large = RewardKeys(Z), RewardKeys(Z)
    for seed in range(350):  # what rewards go with is turned over late: most windows, which were first, are forgotten
        sign = 1 if seed < 200 else -1
        for keys, size in ((small, 1.0), (large, 1024.0)):
            latent, *rewards, counts = window(size=size, seed=seed)
            keys.update(sign * latent, *rewards, counts)
    present = torch.randn(4, Z)
    for x, y in zip(small(present, Z), large(present, Z), strict=True):
        torch.testing.assert_close(x, y)
    direction = small(present, Z)[0][0, 0]
    assert direction[0] < -0.9 * direction.norm()


@pytest.mark.parametrize("rewarded", [0.0, 1.0])
def test_where_rewards_never_differ_nothing_is_asked_for(rewarded):
    keys = RewardKeys(Z)
    for seed in range(3):
        keys.update(*window(rewarded, seed=seed))
    assert keys(torch.randn(2, Z), Z)[1].abs().max() < 1e-3
    keys.update(*window()[:3], torch.zeros(ROWS, dtype=torch.bool))
    assert all(x.isfinite().all() for x in keys(torch.randn(2, Z), Z))


def test_keys_find_what_was_rewarded_and_what_led_to_it_and_where_it_looked_like_now():
    """A slot is a latent and its trace. Each of two places leads to reward once, and once does not."""
    keys = RewardKeys(Z)
    for seed in range(20):
        keys.update(*window(seed=seed))
    reward, leads, here, there = 3 * torch.eye(Z)[:4]
    memory = torch.stack(
        [
            torch.cat([place + first, second])
            for place in (here, there)
            for first, second in ((leads, 0 * reward), (leads, reward), (reward, 0 * reward))
        ]
    ).unsqueeze(0)
    _, weights = content.read(memory, *keys(here.unsqueeze(0), 2 * Z))
    rewarded, rewarded_here, leading, leading_here = weights[0]
    assert rewarded[[2, 5]].sum() > 0.9 and rewarded[[2, 5]].min() > 0.3
    assert rewarded_here[2] > 0.9
    assert leading[[1, 4]].sum() > 0.9 and leading[[1, 4]].min() > 0.3
    assert leading_here[1] > 0.8


def test_a_window_that_was_learnt_from_teaches_the_keys():
    agent = make_agent("merlin", policy_reward_keys=3)
    keys = agent.policy.reward_keys
    unroll, _, _, _ = act(agent, torch.zeros(6, 3, dtype=torch.bool))
    keys.sums.zero_()
    expected = RewardKeys(6)
    expected.update(unroll.extras.latent, unroll.previous_reward, unroll.reward, unroll.is_valid)
    agent.update_scales(unroll)
    assert keys.sums.any()
    torch.testing.assert_close(keys.sums, expected.sums)
    assert agent.initial_state(2).policy_read_words.shape[1] == (3 + agent.policy.reader.num_read_keys) * 12
