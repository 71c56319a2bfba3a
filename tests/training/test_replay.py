"""A replay: what it forgets, and that it goes on exactly from what it says and from the files that it wrote."""

import pytest
import torch

from merlin.errors import MerlinError
from merlin.training.replay import Replay
from tests.agents.test_dreamer import act, firsts, make


@pytest.fixture(scope="module")
def window():
    unroll, state, _, _ = act(make(), firsts(4)[:3])
    return unroll, state


def numbered(unroll, number):
    return unroll._replace(reward=torch.full_like(unroll.reward, number))


def copy_of(replay, state, directory=None, note=print):
    copy = Replay(replay.capacity, replay.length, replay.segment)
    copy.load_state_dict(replay.state_dict(directory), state, torch.device("cpu"), directory, note)
    return copy


def drawn(replay):
    unroll, start = replay.sample(50, torch.Generator().manual_seed(0))
    return [unroll.reward, unroll.action, *unroll.observation.values(), *start]


@pytest.mark.parametrize("writes", [False, True])
def test_a_replay_forgets_the_oldest_and_goes_on_through_its_wrap(window, tmp_path, writes):
    unroll, state = window
    directory, replay, written = tmp_path if writes else None, Replay(12, 3, segment=4), {}
    for number in range(12):  # of 5 windows each
        replay.add(numbered(unroll, number), state)
        copy = copy_of(replay, state, directory, pytest.fail)
        assert all(torch.equal(x, y) for x, y in zip(drawn(replay), drawn(copy), strict=True))
        if number == 6:  # as a run that was resumed
            replay = copy
        for path in tmp_path.iterdir():
            assert written.setdefault(path.name, path.read_bytes()) == path.read_bytes(), "it is written once"
    assert len(replay) == 12 and set(drawn(replay)[0][0].tolist()) == {9.0, 10.0, 11.0}
    named = range((45 - 12) // 4, 60 // 4)  # by this state and the three before it
    kept = [f"segment-{k:08d}-0.pt" for k in named] if writes else []
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    large = unroll._replace(observation=unroll.observation | {"card": unroll.observation["card"] + 70_000})
    replay.add(large, state)
    assert replay.sample(50, torch.Generator().manual_seed(0))[0].observation["card"].max() >= 70_000
    assert all(torch.equal(x, y) for x, y in zip(drawn(replay), drawn(copy_of(replay, state, directory)), strict=True))


def test_whole_segments_are_not_in_the_state(window, tmp_path):
    unroll, state = window
    replay = Replay(12, 3, segment=4)
    for number in range(4):
        replay.add(numbered(unroll, number), state)
    found = replay.state_dict(tmp_path)
    assert [index for index, _ in found["files"]] == [2, 3, 4] and found["loose"]["numbers"].tolist() == []
    replay.add(numbered(unroll, 4), state)
    found = replay.state_dict(tmp_path)
    assert [index for index, _ in found["files"]] == [3, 4, 5] and found["loose"]["numbers"].tolist() == [24]


def test_lost_segments_are_told_of_and_others_take_their_place(window, tmp_path):
    unroll, state = window
    replay, notes = Replay(12, 3, segment=4), []
    for number in range(3):
        replay.add(numbered(unroll, number), state)
    found = replay.state_dict(tmp_path)
    lost = tmp_path / "segment-00000001-0.pt"
    lost.write_bytes(lost.read_bytes()[:-1])
    copy = Replay(12, 3, 4)
    copy.load_state_dict(found, state, torch.device("cpu"), tmp_path, notes.append)
    (sentence,) = notes
    assert str(lost) in sentence and "missing or damaged" in sentence
    assert len(copy) == 12 and set(drawn(copy)[0][0].tolist()) <= {0.0, 2.0, 1.0}
    copy.add(numbered(unroll, 9), state)
    for path in tmp_path.iterdir():
        path.unlink()
    empty = Replay(12, 3, 4)
    empty.load_state_dict(found | {"loose": found["loose"] | {"numbers": torch.zeros(0, dtype=torch.int64)}}, state,
                          torch.device("cpu"), tmp_path, notes.append)  # fmt: skip
    assert len(empty) == 0 and len(notes) == 2
    empty.add(unroll, state)
    assert len(empty) == 5


def test_what_a_replay_cannot_hold_is_told(window, tmp_path):
    unroll, state = window
    replay = Replay(12, 3)
    replay.add(unroll, state)
    with pytest.raises(MerlinError, match="which was 12 windows, but there is room for 11"):
        Replay(11, 3).load_state_dict(replay.state_dict(), state, torch.device("cpu"))
    with pytest.raises(MerlinError, match=r"GiB: lower model\.replay_rows"):
        Replay(2**50, 3).add(unroll, state)
    (tmp_path / "file").touch()
    with pytest.raises(MerlinError, match="could not write the replay to"):
        replay.state_dict(tmp_path / "file" / "replay")
