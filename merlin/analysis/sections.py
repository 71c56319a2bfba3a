"""Sections of the report of `merlin analyse`: each a title, a text, a table, pictures and numbers.

Wayne et al. 2018, arXiv:1803.10760, Figure 3 and Extended Data Figure 3.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space

from merlin.agents.agent import Agent, Predicts
from merlin.agents.memory_ablation import ABLATIONS, MemoryAblation
from merlin.analysis.figures import MAX_COLUMNS, draw_observations, plot_lines, plot_maps
from merlin.analysis.metrics import decode_goal, predict_returns, steps_to_goal, where_keys_read
from merlin.analysis.predictions import Rows, expectations
from merlin.analysis.recording import Trajectories
from merlin.analysis.saliency import saliency
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.networks.spaces import ROOT, kind
from merlin.training.evaluation import evaluate
from merlin.viewer.observations import is_minigrid

MIN_COUNT = 5  # of which a mean is drawn


class Section(NamedTuple):
    """A part of a report. Pictures are files beside it, by their captions."""

    title: str
    text: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    pictures: dict[str, str] = {}  # noqa: RUF012, nobody writes into it
    numbers: dict[str, Any] = {}  # noqa: RUF012


def left_out(title: str, reason: str) -> Section:
    """Return a section that says why it has nothing."""
    return Section(title, f"Left out: {reason}.")


def memory_section(agent: Agent, environment: Environment, episodes: int, seed: int) -> Section:
    """Return the score of the agent with its memory as it is, and with each ablation of it."""
    title = "What the memory is worth"
    if agent.memory is None:
        return left_out(title, "the agent has no memory but its recurrent state")
    rows, numbers, unfinished = [], {}, []
    for name, what in {"own": "as the agent wrote it", **ABLATIONS}.items():
        try:
            player = agent if name == "own" else MemoryAblation(agent, name)
        except MerlinError as error:
            rows.append((name, str(error), math.nan, math.nan))
            continue
        result = evaluate(player, environment, episodes=episodes, seed=seed, skip=1 if name == "frozen" else 0)
        score, success = result["episode_return_mean"], result.get("success_rate", math.nan)
        numbers[name] = {"episode_return_mean": score, "success_rate": success}
        rows.append((name, what, score, success))
        if "unfinished_episodes" in result:
            numbers[name]["unfinished_episodes"] = count = result["unfinished_episodes"]
            unfinished.append(f"With {name} memory {count:,} had not ended after {result['max_steps']:,} steps.")
    rows += [(f"*{name} play*", "", score, math.nan) for name, score in environment.scores.items()]
    text = f"{episodes} held-out episodes each; frozen, those after each environment's first."
    if unfinished:
        text = " ".join([text, *unfinished, "These count nowhere."])
    return Section(
        title,
        text,
        ("memory", "what the agent reads", "return", "success"),
        rows,
        numbers={"memory": numbers},
    )


def arrivals_section(trajectories: Trajectories, out: Path) -> Section:
    """Return the steps to the goal, sub-episode by sub-episode."""
    title = "Steps to the goal"
    found = steps_to_goal(trajectories)
    if found is None:
        return left_out(title, "the task has no sub-episodes")
    known = found.count >= MIN_COUNT
    if not known.any():
        return left_out(title, f"the goal was reached fewer than {MIN_COUNT} times in episodes that came to their end")
    numbers = torch.arange(1, len(found.count) + 1)
    same = found.mean_steps_of_same
    lines = {"all arrivals": (numbers[known].numpy(), found.mean_steps[known].numpy())}
    if found.same_episodes >= MIN_COUNT:
        lines[f"the same {found.same_episodes} episodes"] = (numbers[: len(same)].numpy(), same.numpy())
    plot_lines(lines, out / "steps_to_goal.png", x="sub-episode", y="steps", title=title)
    columns = found.count, found.mean_steps.where(known, math.nan), torch.full_like(found.mean_steps, math.nan)
    columns[2][: len(same)] = same
    return Section(
        title,
        "From the place where a sub-episode begins. Who is slow arrives less often in the same time; the last column "
        f"is of the {found.same_episodes} episodes that arrive in each of these sub-episodes.",
        ("sub-episode", "arrivals", "steps", "steps, same episodes"),
        list(zip(*(x.tolist() for x in (numbers, *columns)), strict=True)),
        {title: "steps_to_goal.png"},
        {"steps_to_goal": found._asdict()},
    )


def decoding_section(trajectories: Trajectories, out: Path) -> Section:
    """Return the error of the goal's place as probes decode it from features."""
    title = "Where the goal is, decoded from frozen features"
    found = decode_goal(trajectories)
    if found is None:
        return left_out(title, "the task tells of no goal on a map")
    known = found.count >= MIN_COUNT
    numbers = torch.arange(1, len(known) + 1)
    errors = {**found.error, "no features": found.constant}
    lines = {name: (numbers[known].numpy(), error[known].numpy()) for name, error in errors.items()}
    plot_lines(
        lines,
        out / "goal_decoding.png",
        x="sub-episode",
        y="error in steps",
        title=title,
        reference="no features",
    )
    return Section(
        title,
        "Manhattan distance from the goal to the cell that is nearest to it in the mean, as far as a softmax of a "
        "linear map of the features can tell, in episodes that it was not fitted to. Of these "
        f"{found.unseen:.0%} of the steps have a goal where none was in the others, which no map can name: more "
        "episodes lower that.",
        ("sub-episode", "steps asked", *errors),
        list(zip(*(x[known].tolist() for x in (numbers, found.count, *errors.values())), strict=True)),
        {title: "goal_decoding.png"},
        {"goal_decoding": found._asdict()},
    )


def returns_section(trajectories: Trajectories, discount_factor: float, out: Path) -> Section:
    """Return how V follows the discounted return."""
    title = "The return, predicted"
    found = predict_returns(trajectories, discount_factor)
    if found is None:
        return left_out(title, "no episode ended")
    steps = np.arange(1, len(found.value) + 1)
    plot_lines(
        {"V": (steps, found.value.numpy()), "return": (steps, found.returns.numpy())},
        out / "returns.png",
        x="step",
        y="discounted return",
        from_zero=False,
        title="Along one episode: what V says and what was earned from there on",
    )
    pictures = {title: "returns.png"}
    known = np.flatnonzero(found.count >= MIN_COUNT)
    if len(known):
        pictures["Error before a reward"] = "return_error.png"
        plot_lines(
            {"|return − V|": (known, found.error_before_reward.numpy()[known])},
            out / "return_error.png",
            x="steps before a reward",
            y="mean error",
            title="Error before what is rewarded",
        )
    text = f"V explains {found.explained:.0%} of the variance of the discounted return."
    if math.isnan(found.explained):
        text = "Every discounted return was the same."
    elif found.explained < 0:
        text = "V says less of the discounted return than its mean would."
    if found.is_cut:
        text += " Where time ended an episode, the V of its last step stands for what would have followed."
    return Section(
        title,
        text,
        ("steps before a reward", "mean error", "times"),
        [(d, float(found.error_before_reward[d]), int(found.count[d])) for d in (0, 1, 2, 5, 10, 20, 29) if d in known],
        pictures,
        {"returns": found._asdict()},
    )


def reads_section(trajectories: Trajectories, out: Path) -> Section:
    """Return where the agent was when it wrote the slots that each key reads."""
    title = "Where each key reads"
    found = where_keys_read(trajectories)
    if found is None:
        reads = trajectories.read_weights is not None
        return left_out(
            title,
            "of this memory it is not known which step wrote what is read" if reads else "the agent has no memory",
        )
    maps = [(place.name, place.on_map.numpy()) for place in found if place.on_map is not None]
    if not maps:
        return Section(
            title,
            "How long ago what is read was written, in steps, weighted by how much of it is read, and the largest "
            "weight of a read; means over all steps. `by chance` reads everything alike. The task tells of no map on "
            "which to show where.",
            ("key", "steps ago", "largest weight"),
            [(place.name, place.age, place.largest) for place in found],
            {},
            {"reads": [place._asdict() for place in found]},
        )
    plot_maps(maps, out / "reads.png", "Where what was read had been written, in one episode")
    return Section(
        title,
        "The cell that the agent was in when it wrote what is read, weighted by how much of it is read; distances in "
        "steps, means over all steps. `by chance` reads everything alike.",
        ("key", "to the goal", "to the agent", "steps ago", "largest weight"),
        [(place.name, place.to_goal, place.to_agent, place.age, place.largest) for place in found],
        {title: "reads.png"},
        {"reads": [place._asdict() for place in found]},
    )


def saliency_section(agent: Agent, environment: Environment, seed: int, out: Path) -> Section:
    """Return the mean change of V by the entry of the observation that changes."""
    title = "What the value looks at"
    found = saliency(agent, environment, seed=seed)
    # MiniGrid's views count columns first
    maps = [
        (name, (x.T if is_minigrid(environment.spaces[name]) else x).numpy())
        for name, x in found.items()
        if x.ndim == 2 and not x.isnan().all()
    ]
    if maps:
        plot_maps(maps, out / "saliency.png", "Change of V when a part is as it was seen elsewhere")
    means = {name: float(x.nanmean()) for name, x in found.items()}
    return Section(
        title,
        "Mean change of V when a part of the observation is as another environment or step showed it, in 32 steps of "
        "each: of grids and pictures the mean over the map, which the picture shows part by part, grey what never "
        "differs.",
        ("entry", "mean change of V"),
        [(_label(name), "not measured: it never differs" if math.isnan(x) else x) for name, x in means.items()],
        {title: "saliency.png"} if maps else {},
        {"saliency": found},
    )


def expectations_section(agent: Predicts, environment: Environment, seed: int, out: Path) -> Section:
    """Return how much of the observations the prior and the posterior decode right, with pictures of them."""
    title = "What it expects, infers, remembers and imagines"
    found, spaces = expectations(agent, environment, seed=seed), environment.spaces
    decoded = {"seen": found.seen, "expected": found.expected, "inferred": found.inferred}
    shown = _spread(len(found.seen))
    draw_observations(
        [(name, [observations[i] for i in shown]) for name, observations in decoded.items()],
        [f"step {i + 1}" for i in shown],
        spaces,
        out / "expected.png",
        "Decoded from the prior, before it looked, and from the posterior",
    )
    pictures = {title: "expected.png"}
    if found.written:
        shown = _spread(len(found.written))
        written = [found.written[i] for i in shown]
        then = [found.seen[step] for step in written]
        draw_observations(
            [("remembered", [found.remembered[i] for i in shown]), ("seen then", then)],
            [f"step {step + 1}" for step in written],
            spaces,
            out / "remembered.png",
            "Decoded from the memory's rows after the last step",
        )
        pictures["Remembered"] = "remembered.png"
    ahead = found.seen[found.imagined_from + 1 : found.imagined_from + 1 + len(found.imagined)]
    draw_observations(
        [("imagined", found.imagined), ("what came", ahead)],
        [f"+{i + 1}" for i in range(len(found.imagined))],
        spaces,
        out / "imagined.png",
        f"Imagined from step {found.imagined_from + 1} on, without looking, where what was done is done",
    )
    agreement = {
        name: _agreement(spaces, found.seen, observations)
        for name, observations in (("prior", found.expected), ("posterior", found.inferred))
    }
    return Section(
        title,
        f"Of the first {len(found.seen)} steps of one episode. Expected is decoded from the prior's mean, before the "
        "observation was seen; inferred from the posterior's. Imagination samples the prior, does what was "
        "done, and sees nothing.",
        ("decoded from", *agreement["prior"]),
        [(name, *shares.values()) for name, shares in agreement.items()],
        pictures | {"Imagined": "imagined.png"},
        {"expectations": agreement},
    )


def _spread(count: int) -> list[int]:
    """Return as many of `count` indices as are drawn side by side, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(MAX_COLUMNS, count)).round().astype(int)).tolist()


def _agreement(spaces: dict[str, Space], seen: Rows, decoded: Rows) -> dict[str, float]:
    """Return for each entry the share of it that is decoded right, or of numbers and pixels the mean error."""
    found = {}
    for name, space in spaces.items():
        pairs = [(x[name].astype(float), y[name].astype(float)) for x, y in zip(seen, decoded, strict=True)]
        is_measured = kind(space) in ("image", "vector")
        what = "mean error" if is_measured else "share right"
        differences = [np.abs(x - y) if is_measured else x == y for x, y in pairs]
        found[f"{_label(name)}: {what}"] = float(np.mean([x.mean() for x in differences]))
    return found


def _label(entry: str) -> str:
    return "observation" if entry == ROOT else entry
