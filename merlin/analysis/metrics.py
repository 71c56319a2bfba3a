"""Metrics of the paper's analyses, of trajectories: nothing here draws or prints."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from merlin.analysis.probes import TEST, TRAIN, VALIDATION, guess_class, manhattan
from merlin.analysis.recording import Trajectories, discounted_returns

MAX_SUB_EPISODES = 8
MAX_ROWS = 8_000  # that a probe is trained on; of one episode all have nearly the same goals


class Arrivals(NamedTuple):
    """Steps to the goal by sub-episode, of all arrivals and of those episodes that have every one of them."""

    count: Int[Tensor, "S"]
    mean_steps: Float[Tensor, "S"]
    same_episodes: int
    mean_steps_of_same: Float[Tensor, "S"]


def steps_to_goal(played: Trajectories) -> Arrivals | None:
    """Return how many steps the goal was away, sub-episode by sub-episode; None where the task has none.

    Who is slow arrives less often in the same time, so that late sub-episodes are those of the fast: hence the second
    mean, over episodes that arrive in all the sub-episodes that half of the episodes arrive in.
    """
    if played.sub_episode is None or played.sub_episode_steps is None:
        return None
    arrives = (played.reward > 0) & played.is_valid
    number, steps = played.sub_episode, played.sub_episode_steps + 1.0
    episode = played.is_first.long().cumsum(0) - 1
    keys = episode * played.reward.shape[1] + torch.arange(played.reward.shape[1])
    num_episodes = int(keys.max()) + 1
    table = torch.full((num_episodes, MAX_SUB_EPISODES), torch.nan)
    chosen = arrives & (number < MAX_SUB_EPISODES)
    table[keys[chosen], number[chosen]] = steps[chosen]
    complete = torch.zeros(num_episodes, dtype=torch.bool)
    complete[keys[played.is_end & played.is_valid]] = True
    table = table[complete]
    count = table.isfinite().sum(0)
    depth = int((count >= max(1, len(table) / 2)).sum())
    same = table[table[:, :depth].isfinite().all(1), :depth] if depth else table[:0, :0]
    return Arrivals(count, table.nanmean(0), len(same), same.mean(0))


class GoalDecoding(NamedTuple):
    """Error of the goal's cell as decoded from features, in steps, by sub-episode; and of the best constant guess."""

    error: dict[str, Float[Tensor, "S"]]
    constant: Float[Tensor, "S"]
    count: Int[Tensor, "S"]
    unseen: float  # fraction of the test steps whose goal is where none was in training


def decode_goal(played: Trajectories) -> GoalDecoding | None:
    """Return how far from the goal a linear map of frozen features points; None where there is no goal to point at.

    A softmax over cells says how likely each is, and what is guessed is the cell that is nearest to the goal in the
    mean, as the guess without features is the one nearest to all goals.

    Trained and validated on the steps of every other environment, tested on the rest. The number of goals that those
    saw limits it, so that a thousand episodes tell much more than a hundred.

    Wayne et al. 2018, arXiv:1803.10760, Figure 3b.
    """
    if played.goal_cell is None or played.grid_size is None or not bool((played.goal_cell >= 0).any()):
        return None
    (height, width), (length, batch_size) = played.grid_size, played.reward.shape
    is_known = (played.goal_cell >= 0) & played.is_valid
    number = torch.zeros_like(played.goal_cell) if played.sub_episode is None else played.sub_episode
    # Half to test; of the others one of four to validate: with fewer goals to train on, more decay would be best.
    fold = torch.tensor([TRAIN, TEST, VALIDATION, TEST, TRAIN, TEST, TRAIN, TEST])[torch.arange(batch_size) % 8]
    fold = fold.expand(length, -1)
    generator = torch.Generator().manual_seed(0)
    keep = is_known & (torch.rand(length, batch_size, generator=generator) < 2 * MAX_ROWS / is_known.sum())
    target, number, fold = played.goal_cell[keep], number[keep], fold[keep]
    if len(fold.unique()) < 3:
        return None
    tested, truth, trained = number[fold == TEST], target[fold == TEST], target[fold != TEST]
    cells = torch.arange(height * width)
    apart = manhattan(cells.unsqueeze(1), cells.unsqueeze(0), width).double()
    middle = apart[:, trained].mean(1).argmin()
    errors = {}
    for name, features in played.features.items():
        guess = guess_class(features[keep], target, fold, apart)
        errors[name] = _mean_by(manhattan(guess, truth, width).float(), tested)
    constant = _mean_by(manhattan(middle.expand_as(truth), truth, width).float(), tested)
    count = torch.bincount(tested, minlength=MAX_SUB_EPISODES)[:MAX_SUB_EPISODES]
    unseen = float((~torch.isin(truth, trained)).double().mean())
    return GoalDecoding(errors, constant, count, unseen)


class ReturnPrediction(NamedTuple):
    """V as a prediction of the discounted return, over all steps whose episode's end was seen."""

    explained: float  # fraction of the variance; NaN if every return was the same
    is_cut: bool  # time ended some episode, so that V stands for what would have followed
    error_before_reward: Float[Tensor, "D"]  # mean |R − V|, 0, 1, 2, … steps before what earns a positive reward
    count: Int[Tensor, "D"]
    value: Float[Tensor, "L"]  # along the longest of the first episodes
    returns: Float[Tensor, "L"]


def predict_returns(played: Trajectories, discount: float, horizon: int = 30) -> ReturnPrediction | None:
    """Return how V follows the return, and its error in the steps before what is rewarded; None if no episode ended.

    Wayne et al. 2018, arXiv:1803.10760, Figures 3c and d.
    """
    returns, is_known = discounted_returns(played, discount)
    if not bool(is_known.any()):
        return None
    true, value = returns[is_known], played.value[is_known]
    spread = (true - true.mean()).square().mean()
    explained = float(1 - (true - value).square().mean() / spread) if spread > 0 else float("nan")
    until = _steps_until(played.reward > 0, played.is_end)
    errors, count = torch.full((horizon,), torch.nan), torch.zeros(horizon, dtype=torch.int64)
    for distance in range(horizon):
        rows = is_known & (until == distance)
        count[distance] = rows.sum()
        if count[distance]:
            errors[distance] = (returns - played.value)[rows].abs().mean()
    b, end = _first_episode(played)
    is_cut = bool((played.is_truncated & played.is_valid).any())
    return ReturnPrediction(explained, is_cut, errors, count, played.value[:end, b], returns[:end, b])


class ReadLocation(NamedTuple):
    """Cells that a key reads from: those that the agent was in when it wrote the slots, weighted by how they are read.

    `to_goal` and `to_agent` are mean distances in steps; `by_chance` are those of a read of everything alike. Where the
    task has no map, there is none and both are NaN.
    """

    name: str
    on_map: Float[Tensor, "H W"] | None  # in one episode
    to_goal: float
    to_agent: float
    age: float  # steps since what is read was written
    largest: float  # the mean of the largest weight


def where_keys_read(played: Trajectories) -> list[ReadLocation] | None:
    """Return the cells that each read key reads from, the policy's first, and last one that reads everything alike.

    None where the agent reads no memory, or one of which it is not known what is in its slots.

    Wayne et al. 2018, arXiv:1803.10760, Figures 3h and i.
    """
    if played.read_weights is None or played.slots is None:
        return None
    has_map = played.grid_size is not None
    height, width = played.grid_size or (1, 1)
    agent_cell = torch.zeros_like(played.slots) if played.agent_cell is None else played.agent_cell
    held, age = _held(played, agent_cell)
    is_held = (held >= 0) & played.is_valid.unsqueeze(-1)
    weights = [] if played.policy_read_weights is None else [("policy", played.policy_read_weights)]
    weights.append(("predictor" if weights else "key", played.read_weights))
    keys = [(f"{name} {k + 1}", x[:, :, k]) for name, x in weights for k in range(x.shape[2])]
    even = is_held.float() / is_held.sum(-1, keepdim=True).clamp(min=1)
    b, end = _first_episode(played)
    goal = played.goal_cell
    to_agent = (
        manhattan(held, agent_cell.unsqueeze(-1), width).float() if has_map else torch.full(held.shape, torch.nan)
    )
    to_goal = None
    if has_map and goal is not None and bool((goal >= 0).all()):
        to_goal = manhattan(held, goal.unsqueeze(-1), width).float()
    found = []
    for name, read in [*keys, ("by chance", even)]:
        share = read.masked_fill(~is_held, 0)
        rows = share.sum(-1) > 0.5
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-6)

        def mean(x: Tensor, share: Tensor = share, rows: Tensor = rows) -> float:
            return float((share * x).sum(-1)[rows].mean()) if rows.any() else float("nan")

        on_map = torch.zeros(height * width)
        on_map.index_add_(0, held[:end, b].clamp(min=0).flatten().long(), share[:end, b].flatten())
        on_map = on_map.view(height, width) if has_map else None
        largest = float(share.amax(-1)[rows].mean()) if rows.any() else float("nan")
        goalward = float("nan") if to_goal is None else mean(to_goal)
        found.append(ReadLocation(name, on_map, goalward, mean(to_agent), mean(age), largest))
    return found


def _held(played: Trajectories, agent_cell: Int[Tensor, "T B"]) -> tuple[Int[Tensor, "T B N"], Int[Tensor, "T B N"]]:
    """Return of each slot, as each step reads it, the cell that its writer was in, −1 if empty, and how long ago."""
    assert played.slots is not None and played.read_weights is not None
    shape = played.read_weights.shape
    cells, ages = (torch.empty(shape[0], shape[1], shape[3], dtype=torch.int32) for _ in range(2))
    cell, age = torch.full_like(cells[0], -1), torch.zeros_like(ages[0])
    for t in range(shape[0]):
        cell, here = cell.masked_fill(played.is_first[t].unsqueeze(1), -1), agent_cell[t].int()
        if played.slots_before_reads is not None:
            slot = played.slots_before_reads[t]
            cell, age = _put(cell, slot, here), _put(age, slot, torch.zeros_like(here))
        cells[t], ages[t] = cell, age
        cell, age = _put(cell, played.slots[t], here), _put(age + 1, played.slots[t], torch.ones_like(here))
    return cells, ages


def _put(x: Int[Tensor, "B N"], slot: Int[Tensor, "B"], value: Int[Tensor, "B"]) -> Int[Tensor, "B N"]:
    """Return x with a value in a slot of each row, but for rows whose slot is −1."""
    index = slot.clamp(min=0).unsqueeze(1)
    value = torch.where(slot >= 0, value, x.gather(1, index).squeeze(1))
    return x.scatter(1, index, value.unsqueeze(1))


def _first_episode(played: Trajectories) -> tuple[int, int]:
    """Return the environment whose first episode is longest, of those that ended, and how long it is."""
    ends = torch.where(played.is_end.any(0), played.is_end.int().argmax(0) + 1, 0)
    return (int(ends.argmax()), int(ends.max())) if ends.any() else (0, len(played.is_end))


def _steps_until(event: Bool[Tensor, "T B"], is_end: Bool[Tensor, "T B"]) -> Int[Tensor, "T B"]:
    """Return the steps to the next event of the same episode, 0 where it is now, −1 where none comes."""
    until = torch.full(event.shape, -1)
    ahead = torch.full(event.shape[1:], -1)
    for t in range(len(event) - 1, -1, -1):
        ahead = ahead.masked_fill(is_end[t], -1)
        ahead = torch.where(event[t], 0, torch.where(ahead >= 0, ahead + 1, -1))
        until[t] = ahead
    return until


def _mean_by(x: Float[Tensor, "R"], number: Int[Tensor, "R"]) -> Float[Tensor, "S"]:
    """Return the means of x by number, NaN where there is none."""
    keep = number < MAX_SUB_EPISODES
    total = torch.zeros(MAX_SUB_EPISODES).index_add_(0, number[keep], x[keep])
    count = torch.bincount(number[keep], minlength=MAX_SUB_EPISODES)
    return torch.where(count > 0, total / count, torch.nan)
