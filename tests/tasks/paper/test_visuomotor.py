"""Visuomotor mapping by hand, and its scores: the oracle is the best of all policies, no fixed answers beat chance."""

import itertools
from functools import lru_cache

import pytest
import torch

from merlin.tasks.paper.glyphs import make_glyphs
from merlin.tasks.paper.visuomotor import Memoryless, Oracle, VisuomotorMapping, oracle_score, scores
from tests.tasks.play import assert_mean, play, random_policy


def rigged(right_responses, chances, **kwargs):
    """Return one environment with a given mapping and given draws of the pictures of trials 1, 2, ..."""
    env = VisuomotorMapping(pictures=len(right_responses), responses=3, trials=len(chances), **kwargs)
    env.reset()
    env.right_responses = torch.tensor([right_responses])
    env.chances = torch.tensor([[0.0, *chances]], dtype=torch.float64)
    return env


def answer(env, responses):
    """Return (picture, pictures in play, reward) of each trial, and the last info."""
    trials = []
    for response in responses:
        picture = int(env._observe())
        _, reward, terminated, truncated, info = env.step(torch.tensor([response]))
        trials.append((picture, int(info["num_in_play"]), float(reward)))
        assert not truncated and bool(terminated) == (len(trials) == env.trials)
    return trials, info


def test_an_episode_by_hand():
    #                                     0    1    2       3       4       5      the end
    env = rigged([2, 0, 1], chances=[0.9, 0.9, 0.6, 0.0, 0.99, 0.99])
    trials, info = answer(env, [0, 2, 1, 2, 1, 1])
    # wrong; right: a second joins; wrong; the first again; wrong; the second is wrong still
    assert trials == [(0, 1, 0), (0, 1, 1), (1, 2, 0), (1, 2, 0), (0, 2, 0), (1, 2, 0)]
    assert float(info["is_success"]) == 0


def test_a_picture_joins_when_the_latest_answers_to_all_were_right():
    env = rigged([2, 0, 1], chances=[0.0, 0.9, 0.0, 0.9, 0.9, 0.9])
    trials, info = answer(env, [2, 0, 0, 2, 0, 1])
    #   A right: B joins   A forgotten     B right, A not    A right: C joins  C wrong, C right
    assert trials == [(0, 1, 1), (0, 2, 0), (1, 2, 1), (0, 2, 1), (2, 3, 0), (2, 3, 1)]
    assert float(info["is_success"]) == 1 and info["_final_obs"].all()


def test_a_mistake_at_the_end_is_no_success():
    env = rigged([2], chances=[0.0, 0.0])
    trials, info = answer(env, [2, 0])
    assert trials == [(0, 1, 1), (0, 1, 0)] and float(info["is_success"]) == 0


def test_glyphs_are_what_is_seen():
    env = rigged([2, 0], chances=[0.9, 0.9], view="picture", glyph_seed=3)
    observation = env.step(torch.tensor([2]))[0]
    assert torch.equal(observation[0], torch.from_numpy(make_glyphs(2, 3)[2]))


def test_picture_shows_what_is_in_play():
    env = rigged([2, 0, 1], chances=[0.9, 0.9])
    env.step(torch.tensor([2]))
    picture = env.draw(0)
    frames, bars, responses = picture[1, 18::36].tolist(), picture[37, 18::36].tolist(), picture[60, 18::36].tolist()
    white, orange, grey = [255] * 3, [230, 150, 30], [190] * 3
    assert frames == [white, orange, white] and bars == [[40, 170, 80], white, white]
    assert responses == [grey, grey, orange] and (picture[4:32, 76:104] == 255).all()


def test_mappings_and_pictures_are_uniform():
    env = VisuomotorMapping(num_envs=30_000, pictures=3, responses=3, trials=10)
    env.reset(seed=0)
    counts = torch.stack([(env.right_responses == response).sum(0) for response in range(3)])
    assert ((counts - 10_000).abs() < 4 * (30_000 * 2 / 9) ** 0.5).all()
    oracle = Oracle(env)
    for _ in range(9):
        observation = env.step(oracle(env._observe()))[0]
    for num_in_play in (2, 3):
        shown = observation[env.num_in_play == num_in_play]
        counts = shown.bincount(minlength=num_in_play)
        expected = len(shown) / num_in_play
        assert len(counts) == num_in_play and ((counts - expected).abs() < 4 * expected**0.5).all()


@pytest.mark.parametrize(
    "settings", [{}, {"pictures": 1, "responses": 2, "trials": 3}, {"pictures": 6, "responses": 3, "view": "picture"}]
)
def test_scores_are_what_the_policies_earn(settings):
    env = VisuomotorMapping(num_envs=2000, **settings)
    expected, oracle = scores(**settings), Oracle(env)
    assert expected == env.scores
    for seed in range(2):
        assert_mean(play(env, oracle, seed)[0], expected["oracle"])
    assert_mean(play(env, Memoryless(env))[0], expected["memoryless"])
    assert_mean(play(env, random_policy(env))[0], expected["random"])


def test_scores_by_hand():
    assert oracle_score(pictures=1, responses=4, trials=2) == pytest.approx(1 / 4 * 2 + 3 / 4 * 1 / 3)
    # right at once (1/2): both are in play, 1 for the first and 1/2 for the second; else right now, by elimination
    assert oracle_score(pictures=2, responses=2, trials=2) == pytest.approx(1 / 2 * (1 + 3 / 4) + 1 / 2)


@pytest.mark.parametrize("pictures, responses, trials", [(2, 2, 12), (4, 2, 25), (4, 4, 30), (3, 8, 25), (6, 3, 25)])
def test_no_policy_earns_more_than_the_oracle(pictures, responses, trials):
    """Backward induction over every policy, erring on purpose included."""

    def moved(counts, source, target):
        counts = list(counts)
        counts[source] -= 1
        counts[target] += 1
        return tuple(counts)

    def joined(counts):
        is_joining = counts[-1] == sum(counts) < pictures
        return (counts[0] + is_joining, *counts[1:])

    @lru_cache(None)
    def best(counts, left):
        """counts[e]: pictures with e responses found wrong whose latest response was wrong; last: those mastered."""
        if left == 0:
            return 0.0
        total = 0.0
        for wrong, count in enumerate(counts):
            if count == 0:
                continue
            if wrong == responses:
                options = [
                    1 + best(joined(counts), left - 1),
                    best(moved(counts, responses, responses - 1), left - 1),
                ]
            else:
                chance = 1 / (responses - wrong)
                value = chance * (1 + best(joined(moved(counts, wrong, responses)), left - 1))
                if chance < 1:
                    value += (1 - chance) * best(moved(counts, wrong, wrong + 1), left - 1)
                options = [value] + [best(counts, left - 1)] * (wrong > 0)
            total += count / sum(counts) * max(options)
        return total

    assert best((1,) + (0,) * responses, trials) == pytest.approx(oracle_score(pictures, responses, trials), rel=1e-12)


@pytest.mark.parametrize("pictures, trials, grid", [(2, 8, 11), (3, 9, 5)])
def test_no_function_of_the_picture_earns_more_than_chance(pictures, trials, grid):
    """Of all probabilities of the first of two responses to each picture, on a grid."""
    policies = torch.cartesian_prod(*[torch.linspace(0, 1, grid, dtype=torch.float64)] * pictures)
    total = torch.zeros(len(policies), dtype=torch.float64)
    for mapping in itertools.product((0, 1), repeat=pictures):
        is_right = torch.where(torch.tensor(mapping) == 0, policies, 1 - policies)
        likelihoods = {(False,): torch.ones_like(total)}  # of which pictures in play are mastered
        for _ in range(trials):
            after = {}
            for mastered, likelihood in likelihoods.items():
                for picture in range(len(mastered)):
                    for answer_is_right in (True, False):
                        chance = is_right[:, picture] if answer_is_right else 1 - is_right[:, picture]
                        weight = likelihood * chance / len(mastered)
                        total += weight * answer_is_right
                        key = (*mastered[:picture], answer_is_right, *mastered[picture + 1 :])
                        key += (False,) * (all(key) and len(key) < pictures)
                        after[key] = after.get(key, 0) + weight
            likelihoods = after
    total /= 2**pictures
    uniform = (policies == 0.5).all(1)
    assert total[uniform].item() == pytest.approx(trials / 2) and total.max() <= trials / 2 + 1e-9
    assert total.min() < 0.9 * trials / 2


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"pictures": 0}, "pictures must be at least 1, but is 0"),
        ({"responses": 1}, "responses must be at least 2, but is 1"),
        ({"trials": 0}, "trials must be at least 1, but is 0"),
        ({"view": "pixels"}, "view must be 'symbolic' or 'picture', but is 'pixels'"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        VisuomotorMapping(**settings)
