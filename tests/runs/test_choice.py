import math

import pytest
import torch
from torch import nn

from merlin.runs.choice import EPISODES, Candidate
from merlin.training.rollout import Episodes


def episodes(*rows):
    """Return episodes of (environment, row that it began in, return), by the row that they ended in."""
    environments, begins, returns = zip(*rows, strict=True)
    scores, whole = torch.tensor(returns, dtype=torch.float32), torch.ones(len(rows))
    return Episodes(scores, whole, whole, torch.zeros(len(rows), 4), torch.tensor(environments), torch.tensor(begins))


def candidate(num_envs, row=0):
    found = Candidate(num_envs, num_envs)
    found.take(nn.Linear(1, 1), 7, row, keep=True)
    return found


def test_episodes_that_began_before_the_weights_were_as_they_are_say_nothing_of_them():
    """However few have ended since: long episodes are of weights from many updates ago."""
    found = candidate(EPISODES, row=1000)
    found.count(episodes(*((i, 999, 50.0) for i in range(EPISODES))))
    assert not found.is_scored and found.total == 0
    found.count(episodes(*((i, 1000, 0.5) for i in range(EPISODES))))
    assert found.is_scored and found.total == EPISODES / 2


def test_every_environment_counts_the_same_number_of_its_first_episodes():
    """Else episodes that end soon, the failed ones say, would be most of the first hundred."""
    found = candidate(EPISODES // 2)  # two of each
    short = [(i, 10 * n, -1.0) for n in range(30) for i in range(EPISODES // 2 - 1)]
    found.count(episodes(*short))
    assert not found.is_scored
    long = EPISODES // 2 - 1
    found.count(episodes((long, 0, 9.0), (0, 400, -1.0), (long, 300, 9.0), (long, 600, 100.0)))
    assert found.is_scored and found.total == 18 - (EPISODES - 2)


def test_a_candidate_goes_on_from_a_checkpoint():
    whole, half = candidate(3), candidate(3)
    parts = [episodes(*((i, 3 * n, float(n)) for n in range(a, a + 20) for i in range(3))) for a in (0, 20)]
    half.count(parts[0])
    other = Candidate(3, 3)
    other.load_state_dict(half.state_dict())
    for part in parts:
        whole.count(part)
    other.count(parts[1])
    assert other.is_scored and other.total == whole.total == 3 * sum(range(math.ceil(EPISODES / 3)))
    assert other.weights is not None and other.step == 7
    of_others = Candidate(4, 4)
    of_others.load_state_dict(half.state_dict())
    assert of_others.weights is None


def test_weights_are_copied_where_they_are_saved():
    agent, found = nn.Linear(1, 1), Candidate(2, 2)
    found.take(agent, 1, 0, keep=True)
    before = agent.weight.item()
    with torch.no_grad():
        agent.weight.add_(1)
    assert found.weights["weight"].item() == before
    found.take(agent, 1, 0, keep=False)
    assert found.weights == {}


@pytest.mark.parametrize("num_envs", [1, 7, 128])
def test_at_least_a_hundred_episodes_count(num_envs):
    assert 100 <= candidate(num_envs).each * num_envs < 100 + num_envs
