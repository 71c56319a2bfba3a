"""The analyses' numbers, from experience that is made up so that the answer is known."""

import pytest
import torch

from merlin.analysis.metrics import decode_goal, predict_returns, steps_to_goal, where_keys_read
from merlin.analysis.probes import DECAYS, guess_class, manhattan
from merlin.analysis.recording import Trajectories, discounted_returns
from merlin.analysis.sections import reads_section

HEIGHT, WIDTH = 3, 4


def made_up(length: int, batch_size: int, **known) -> Trajectories:
    """Return one episode in each environment, in which nothing happens but what is known."""
    no, zeros = torch.zeros(length, batch_size, dtype=torch.bool), torch.zeros(length, batch_size)
    is_first, is_end = no.clone(), no.clone()
    is_first[0], is_end[-1] = True, True
    nothing = dict.fromkeys(Trajectories._fields)
    always = {"is_valid": ~no, "is_first": is_first, "is_end": is_end, "is_truncated": no, "reward": zeros}
    return Trajectories(**nothing | always | {"value": zeros, "features": {}} | known)


def test_returns_are_sums_of_what_follows_in_the_episode():
    torch.manual_seed(0)
    reward, value = torch.randn(9, 4), torch.randn(9, 4)
    is_end = torch.rand(9, 4) < 0.4
    is_truncated = is_end & (torch.rand(9, 4) < 0.5)
    played = made_up(9, 4, reward=reward, value=value, is_end=is_end, is_truncated=is_truncated)
    returns, is_known = discounted_returns(played, 0.9)
    assert is_truncated.any() and (is_end & ~is_truncated).any() and (~is_known).any()
    for t in range(9):
        for b in range(4):
            ends = [s for s in range(t, 9) if is_end[s, b]]
            assert bool(is_known[t, b]) == bool(ends)
            if ends:
                expected = sum(0.9 ** (s - t) * float(reward[s, b]) for s in range(t, ends[0] + 1))
                if is_truncated[ends[0], b]:
                    expected += 0.9 ** (ends[0] + 1 - t) * float(value[ends[0], b])
                assert float(returns[t, b]) == pytest.approx(expected, abs=1e-5)


def test_steps_to_goal_are_counted_by_sub_episode():
    """Two environments: one arrives after 3 and 2 steps, the other after 4 and then not again."""
    reward = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]]).float().T
    number = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1]]).T
    steps = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]).T
    found = steps_to_goal(made_up(6, 2, reward=reward, sub_episode=number, sub_episode_steps=steps))
    assert found.count.tolist()[:3] == [2, 1, 0]
    assert found.mean_steps[:2].tolist() == [3.5, 2.0]
    assert found.same_episodes == 1 and found.mean_steps_of_same.tolist() == [3.0, 2.0]
    assert steps_to_goal(made_up(6, 2)) is None


def test_steps_to_goal_leave_out_episodes_that_are_not_complete():
    reward, number = torch.ones(2, 1), torch.tensor([[0], [1]])
    played = made_up(2, 1, reward=reward, sub_episode=number, sub_episode_steps=torch.zeros(2, 1, dtype=torch.int64))
    cut = played._replace(is_end=torch.zeros_like(played.is_end))
    assert steps_to_goal(played).count.sum() == 2 and steps_to_goal(cut).count.sum() == 0


def test_rows_that_do_not_count_are_in_no_figure():
    torch.manual_seed(4)
    played = made_up(6, 8, reward=torch.ones(6, 8), value=torch.randn(6, 8), agent_cell=torch.zeros(6, 8).long())
    played = played._replace(
        goal_cell=torch.zeros(6, 8).long(), grid_size=(HEIGHT, WIDTH), slots=torch.zeros(6, 8).long()
    )
    played = played._replace(read_weights=torch.ones(6, 8, 1, 1), features={"nothing": torch.zeros(6, 8, 1)})
    few = played._replace(is_valid=torch.zeros(6, 8, dtype=torch.bool))
    assert predict_returns(played, 0.9) is not None and predict_returns(few, 0.9) is None
    assert decode_goal(played).count.sum() == 24 and decode_goal(few) is None
    assert where_keys_read(played)[0].age == 1 and where_keys_read(few)[0].age != where_keys_read(few)[0].age
    ones = torch.zeros(6, 8, dtype=torch.int64)
    assert steps_to_goal(few._replace(sub_episode=ones, sub_episode_steps=ones)).count.sum() == 0


def test_distances_are_along_rows_and_columns():
    cells = torch.arange(HEIGHT * WIDTH)
    for one in cells.tolist():
        for other in cells.tolist():
            expected = abs(one // WIDTH - other // WIDTH) + abs(one % WIDTH - other % WIDTH)
            assert int(manhattan(torch.tensor(one), torch.tensor(other), WIDTH)) == expected


def test_a_goal_that_features_hold_is_decoded_and_no_other():
    torch.manual_seed(1)
    goal = torch.randint(HEIGHT * WIDTH, (20, 64))
    told = torch.nn.functional.one_hot(goal, HEIGHT * WIDTH).float() @ torch.randn(12, 12)
    played = made_up(
        20, 64, goal_cell=goal, grid_size=(HEIGHT, WIDTH), features={"told": told, "noise": torch.randn(20, 64, 5)}
    )
    found = decode_goal(played)
    assert found.count[0] == 20 * 32 and found.error["told"][0] == 0
    assert found.error["noise"][0] > 1.5
    middle_rows, middle_columns = (torch.arange(HEIGHT) - 1).abs().float(), (torch.arange(WIDTH) - 1).abs().float()
    expected = middle_rows.mean() + middle_columns.mean()  # of the cell nearest to all
    assert float(found.constant[0]) == pytest.approx(float(expected), abs=0.15)
    assert decode_goal(made_up(20, 64)) is None
    assert decode_goal(played._replace(goal_cell=torch.full_like(goal, -1))) is None


def test_a_probe_is_not_asked_about_what_it_was_fitted_to():
    """Labels that features do not hold cannot be told of others, however well those at hand are learnt by heart."""
    torch.manual_seed(2)
    features, target = torch.randn(90, 80), torch.randint(2, (90,))
    fold = torch.arange(90) // 30
    guess = guess_class(features, target, fold, 1 - torch.eye(2))
    assert len(guess) == 30 and 0.2 < (guess == target[60:]).float().mean() < 0.8


def test_a_probe_of_many_features_is_held_back_as_far_as_helps():
    """One of 60 features says it, and there are 40 rows: learnt by heart it is told half as well."""
    torch.manual_seed(3)
    features, fold = torch.randn(440, 60), torch.tensor([0] * 20 + [1] * 20 + [2] * 400)
    target = (features[:, 0] > 0).long()
    features[:, 0] *= 3
    features[:, 0] += 0.3 * torch.randn(440)
    right = [
        (guess_class(features, target, fold, 1 - torch.eye(2), decays) == target[40:]).float().mean()
        for decays in ((0.0,), DECAYS)
    ]
    assert right[1] >= right[0] and right[1] > 0.6


def test_features_that_say_nothing_cost_no_more_than_none():
    """Three quarters of the classes are one, half of the others are in what is asked alone, and nothing tells them."""
    torch.manual_seed(4)
    features, fold = torch.randn(300, 60), torch.arange(300) % 3
    target = torch.where(torch.rand(300) < 0.75, 4, torch.randint(9, (300,)))
    target[(fold != 2) & (target > 5)] = 4
    apart = (torch.arange(9).unsqueeze(1) - torch.arange(9)).abs().float()
    told = apart[target[fold == 2], guess_class(features, target, fold, apart)].mean()
    assert told <= 1.03 * apart[target[fold == 2], 4].mean()


def test_a_value_that_is_the_return_explains_it():
    torch.manual_seed(3)
    played = made_up(12, 3, reward=(torch.rand(12, 3) < 0.3).float())
    returns, _ = discounted_returns(played, 0.9)
    found = predict_returns(played._replace(value=returns), 0.9)
    assert found.explained == 1 and found.error_before_reward[found.count > 0].eq(0).all()
    off = predict_returns(played._replace(value=returns + 0.5), 0.9)
    torch.testing.assert_close(off.error_before_reward[off.count > 0], torch.full(((off.count > 0).sum(),), 0.5))
    assert off.explained < 1
    assert predict_returns(played._replace(is_end=torch.zeros_like(played.is_end)), 0.9) is None


def test_errors_are_counted_from_the_reward_that_comes_next():
    """Rewards in steps 2 and 5: of each distance 0, 1, 2 there are two steps, and of no other any."""
    reward = torch.tensor([0, 0, 1, 0, 0, 1.0, 0, 0]).unsqueeze(1)
    found = predict_returns(made_up(8, 1, reward=reward), 0.9, horizon=5)
    assert found.count.tolist() == [2, 2, 2, 0, 0]


def test_a_key_that_reads_one_slot_reads_where_that_was_written(tmp_path):
    """The agent walks along the first row and writes a slot a step; one key reads the first slot, one the newest."""
    length, slots = 4, 6
    first, newest = torch.zeros(length, 1, 1, slots), torch.zeros(length, 1, 1, slots)
    first[1:, :, :, 0] = 1
    for t in range(1, length):
        newest[t, 0, 0, t - 1] = 1
    below = torch.full((length, 1), WIDTH)  # the first cell
    played = made_up(
        length, 1, agent_cell=torch.arange(length).unsqueeze(1), goal_cell=below,
        slots=torch.arange(length).unsqueeze(1), read_weights=newest, policy_read_weights=first,
        grid_size=(HEIGHT, WIDTH),
    )  # fmt: skip
    policy, predictor, chance = where_keys_read(played)
    assert [policy.name, predictor.name, chance.name] == ["policy 1", "predictor 1", "by chance"]
    assert (policy.to_agent, policy.to_goal, policy.age, policy.largest) == (2, 1, 2, 1)
    assert (predictor.to_agent, predictor.to_goal, predictor.age) == (1, 2, 1)
    assert policy.on_map.sum() == policy.on_map[0, 0] == 3
    without = where_keys_read(played._replace(agent_cell=None, goal_cell=None, grid_size=None))
    assert [(x.name, x.age, x.largest, x.on_map) for x in without] == [
        (x.name, x.age, x.largest, None) for x in (policy, predictor, chance)
    ]
    assert without[0].to_agent != without[0].to_agent and without[0].to_goal != without[0].to_goal, "NaN"
    assert chance.age == pytest.approx((1 + 1.5 + 2) / 3)
    assert where_keys_read(made_up(4, 1)) is None
    assert reads_section(made_up(4, 1), tmp_path).text == "Left out: the agent has no memory."
    text = reads_section(played._replace(slots=None), tmp_path).text
    assert text == "Left out: of this memory it is not known which step wrote what is read."


def test_an_episode_begins_with_nothing_to_read():
    """What an earlier episode wrote is not where a key reads, though its slot weighs something by a fault."""
    weights = torch.full((4, 1, 1, 2), 0.6)
    played = made_up(
        4, 1, agent_cell=torch.arange(4).unsqueeze(1), slots=torch.tensor([[0], [1], [0], [1]]), read_weights=weights,
        grid_size=(HEIGHT, WIDTH),
    )  # fmt: skip
    again = played.is_first.clone()
    again[2] = True
    (key, _) = where_keys_read(played._replace(is_first=again))
    assert key.age == 1  # in steps 1 and 3; in 0 and 2 there is nothing


def test_what_is_written_before_the_reads_is_read_in_the_same_step():
    """The agent walks along the first row; what it reads was written in the first step and in the last, at once."""
    weights, before = torch.zeros(3, 1, 1, 2), torch.tensor([[1], [-1], [1]])
    weights[..., 1] = 1
    played = made_up(
        3, 1, agent_cell=torch.arange(3).unsqueeze(1), slots=torch.zeros(3, 1, dtype=torch.int64), read_weights=weights,
        slots_before_reads=before, grid_size=(HEIGHT, WIDTH),
    )  # fmt: skip
    key, _ = where_keys_read(played)
    assert key.age == key.to_agent == pytest.approx(1 / 3) and key.on_map[0].tolist() == [2, 0, 1, 0]


def test_a_step_that_wrote_nothing_is_read_from_nowhere():
    """The agent walks along the first row and keeps what it saw in the first step alone, which is read ever after."""
    weights, slots = torch.zeros(4, 1, 1, 2), torch.tensor([[0], [-1], [-1], [-1]])
    weights[1:, :, :, 0] = 1
    cells = torch.arange(4).unsqueeze(1)
    played = made_up(4, 1, agent_cell=cells, slots=slots, read_weights=weights, grid_size=(HEIGHT, WIDTH))
    key, chance = where_keys_read(played)
    assert key.age == key.to_agent == chance.age == 2 and key.largest == chance.largest == 1
