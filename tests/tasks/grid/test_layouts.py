"""Starts drawn ahead are handed out in order, each once, whether or not the host knows how many are taken."""

import pytest
import torch

from merlin.tasks.grid.layouts import StartPool
from merlin.tasks.minigrid_tasks.memory import Hallway


class Numbered:
    """Draws starts that are numbered by a generator's count."""

    def __init__(self):
        self.draws = []

    def __call__(self, count, generator):
        first = int(torch.randint(10**6, (), generator=generator)) * 1000
        self.draws.append(first)
        return {"number": first + torch.arange(count)}


def make_pool(size):
    pool = StartPool(Numbered(), size, torch.Generator())
    pool.seed(3)
    return pool


def test_starts_are_handed_out_in_order_and_none_twice():
    pool = make_pool(10)
    taken = torch.cat([pool.take(count)["number"] for count in (4, 5, 3, 12, 1)])
    assert len(taken.unique()) == 25
    assert taken[:9].tolist() == [pool.generate.draws[0] + i for i in range(9)]


def test_taking_where_asks_in_time_and_gives_none_twice():
    pool, taken = make_pool(5), []
    generator = torch.Generator().manual_seed(0)
    for chance in [0.0, 0.1, 1.0] * 20:
        is_taken = torch.rand(6, generator=generator) < chance
        numbers = pool.take_where(is_taken)["number"]
        assert numbers.shape == (6,)
        taken.append(numbers[is_taken])
    taken = torch.cat(taken)
    assert len(taken) > 120 and len(taken.unique()) == len(taken)


@pytest.mark.parametrize("steps", [0, 3, 40])
def test_a_pool_goes_on_where_its_state_was_taken(steps):
    pool, other = make_pool(7), make_pool(7)
    for _ in range(steps):
        pool.take(2)
    other.load(*pool.state())
    assert [pool.take(3)["number"].tolist() for _ in range(9)] == [other.take(3)["number"].tolist() for _ in range(9)]


def test_restarting_by_mask_is_restarting_by_rows():
    """A GPU restarts all rows under a mask, for it is never asked which; from equal pools it is the same play."""
    envs = [Hallway(8, agent_view_size=3, max_steps=9) for _ in range(2)]
    for env, syncs in zip(envs, (True, False), strict=True):
        env.pool.size, env.syncs = 16 * 8, syncs
        env.reset(seed=4)
    ends = 0
    for _ in range(50):
        actions = torch.randint(7, (8,))
        (one, *rest, info), (other, *others, other_info) = (env.step(actions) for env in envs)
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(torch.equal(x, y) for x, y in zip(rest, others, strict=True))
        is_end = info["_final_obs"]
        assert all(
            torch.equal(x[is_end], other_info["final_obs"][name][is_end]) for name, x in info["final_obs"].items()
        )
        ends += int(is_end.sum())
    assert 30 < ends < 120
