"""The rules by hand, and its scores: oracle exactly `pairs`, best memoryless and random as derived."""

import itertools

import pytest
import torch

from merlin.tasks.paper.memory_game import MemoryGame, Memoryless, Oracle, random_score, scores
from tests.tasks.play import assert_mean, play, random_policy


def rigged(faces, **kwargs):
    env = MemoryGame(num_envs=1, pairs=len(faces) // 2, **kwargs)
    env.reset()
    env.faces = torch.tensor([faces])
    return env


def flips(env, positions):
    steps = [env.step(torch.tensor([position])) for position in positions]
    return [(int(info.get("final_obs", obs)["card"]), float(reward)) for obs, reward, _, _, info in steps]


def test_a_game_by_hand():
    env = rigged([1, 2, 2, 1, 3, 3])
    #              1        2        2 again  mate +1   removed  removed  1        mate +1   3 is left
    assert flips(env, [0, 1, 1, 2, 1, 2, 0, 3, 4]) == [
        (1, 0), (2, 0), (2, 0), (2, 1), (0, 0), (0, 0), (1, 0), (1, 1), (3, 0),
    ]  # fmt: skip


def test_only_consecutive_flips_match():
    assert flips(rigged([1, 1, 2, 2]), [0, 2, 1, 3, 3, 2]) == [(1, 0), (2, 0), (1, 0), (2, 0), (2, 0), (2, 1)]


def test_the_mate_after_a_match_is_gone():
    assert flips(rigged([1, 1, 2, 2]), [0, 1, 0, 1]) == [(1, 0), (1, 1), (0, 0), (0, 0)]


def test_picture_of_the_table():
    env = rigged([1, 1, 2, 2])
    flips(env, [0, 1, 2])
    corners = env.draw(0)[[2, 2, 34, 34], [2, 34, 2, 34], 0]  # removed, removed, face shown, face down
    assert corners[0] == corners[1] == 235 and corners[2] in (40, 255) and corners[3] == 150


def test_episode_has_exactly_three_flips_per_pair():
    env = MemoryGame(num_envs=3, pairs=5)
    env.reset(seed=0)
    ends = [bool(env.step(torch.zeros(3, dtype=torch.int64))[2].all()) for _ in range(30)]
    assert [step for step, is_end in enumerate(ends) if is_end] == [14, 29]


def test_arrangements_are_uniform():
    env = MemoryGame(num_envs=60_000, pairs=2)
    env.reset(seed=0)
    _, counts = env.faces.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 10_000).abs() < 4 * (60_000 * 5 / 36) ** 0.5).all()


@pytest.mark.parametrize("view", ["symbolic", "picture"])
@pytest.mark.parametrize("pairs", [2, 3, 4, 8, 13])
def test_oracle_scores_exactly_the_maximum(pairs, view):
    env = MemoryGame(num_envs=200, pairs=pairs, view=view)
    policy = Oracle(env)
    for seed in range(2):  # twice, so that the second game starts from a policy full of the first
        returns, success = play(env, policy, seed)
        assert (returns == pairs).all() and (success == 1).all()


def test_success_is_every_pair():
    env = MemoryGame(num_envs=4000, pairs=2)
    returns, success = play(env, random_policy(env))
    assert 0 < success.mean() < 1
    assert torch.equal(success == 1, returns == 2)


@pytest.mark.parametrize("pairs", [2, 3, 4, 8])
def test_random_play_earns_its_score(pairs):
    env = MemoryGame(num_envs=40_000, pairs=pairs)
    returns, _ = play(env, random_policy(env))
    assert_mean(returns, random_score(pairs))


def test_random_play_of_the_paper():
    assert round(random_score(8), 2) == 1.26
    assert scores(pairs=8)["oracle"] == 8.0


@pytest.mark.parametrize("pairs", [2, 3, 4, 8])
def test_memoryless_policy_earns_its_score(pairs):
    env = MemoryGame(num_envs=40_000, pairs=pairs)
    returns, _ = play(env, Memoryless(env))
    assert_mean(returns, scores(pairs=pairs)["memoryless"])


@pytest.mark.parametrize("pairs", [2, 3, 4, 8])
def test_memoryless_policy_never_repeats_two_positions(pairs):
    env = MemoryGame(num_envs=1, pairs=pairs)
    policy = Memoryless(env)
    trail = [int(policy({"position": torch.tensor([flip])})) for flip in range(3 * pairs)]
    edges = {frozenset(edge) for edge in itertools.pairwise(trail)}
    assert all(len(edge) == 2 for edge in edges) and len(edges) == 3 * pairs - 1
    assert all(0 <= position < 2 * pairs for position in trail)


def test_no_sequence_of_positions_earns_more_than_the_memoryless_policy():
    # every one of the 4^6 sequences of flips on 2 pairs, against every arrangement
    sequences = torch.cartesian_prod(*[torch.arange(4)] * 6)
    assert game_scores(lambda flip, position, card: sequences[:, flip], len(sequences)).max() == pytest.approx(5 / 3)


@pytest.mark.slow
def test_no_deterministic_function_of_the_observation_earns_more_than_four_thirds():
    # Bits 2k and 2k+1 of the policy's number are its action on observation k = 3 · position + card, k < 12.
    # By symmetry of the positions the first flip is 0, and from there, on card 1, 0 or 1.
    best = 0.0
    for chunk in torch.arange(2**24).split(2**16):
        policies = chunk[((chunk >> 2) & 3) < 2].to(torch.int32)

        def choose(flip, position, card, policies=policies):
            return torch.zeros_like(policies) if flip == 0 else (policies >> (2 * (3 * position + card))) & 3

        best = max(best, game_scores(choose, len(policies)).max().item())
    assert best == pytest.approx(4 / 3)


def test_a_clock_and_the_position_can_stand_in_for_memory():
    def choose(flip, position, card):
        if flip < 4:
            return torch.tensor([[0, 1, 2, 0][flip]])
        return torch.where(card == 0, 2, 3) if flip == 4 else torch.where(position == 2, 3, 1)

    assert game_scores(choose, 1) == 2.0


def game_scores(choose, num_policies):
    """Return the mean score of each of many policies over the 6 arrangements of 2 pairs, by a simulation of its own."""
    total = torch.zeros(num_policies, dtype=torch.int32)
    for faces in [(1, 1, 2, 2), (1, 2, 1, 2), (1, 2, 2, 1), (2, 2, 1, 1), (2, 1, 2, 1), (2, 1, 1, 2)]:
        code = sum(face << 2 * position for position, face in enumerate(faces))
        position = card = found = torch.zeros(num_policies, dtype=torch.int32)
        for flip in range(6):
            action = choose(flip, position, card).to(torch.int32)
            face = (code >> (2 * action)) & 3
            shown = face * (1 - ((found >> face) & 1))
            is_match = ((shown == card) & (shown > 0) & (action != position) & (flip > 0)).to(torch.int32)
            found = found | (is_match << face)
            total += is_match
            position, card = action, shown
    return total / 6
