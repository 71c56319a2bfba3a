"""Asks what MERLIN leaves unread: where platforms of the water maze were, which responses of a mapping were right.

    python benchmarks/unread.py RUN_DIR

Of a run of WaterMaze with at least as many slots as steps, last weights, 512 episodes: how many steps it takes to a
platform that was found before, and to one that was not; the weight of the slot that was written on the platform, by
key, in steps in a pool whose platform was found before; and how often a small network tells the platform's cell from
that slot's latent, and from what is read, in a quarter of the episodes that it did not learn from. Of a run of
VisuomotorMapping, 256 episodes: how often a response is right once it was found, by how many pictures were seen, and
how often a wrong one is given again.
"""

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merlin.runs.build import build_environment
from merlin.runs.directory import load_config
from merlin.runs.player import load

SEED = 777


def play(run_dir: Path, num_envs: int) -> list[dict[str, Any]]:
    """Return what there was at each step of an episode in each environment, all of which end together."""
    agent, config = load(run_dir, "last", "cpu").agent, replace(load_config(run_dir), device="cpu")
    rows, generator = [], torch.Generator().manual_seed(1)
    with build_environment(config, num_envs) as environment, torch.no_grad():
        task = environment.vector_env.unwrapped
        timestep, state = environment.reset(SEED), agent.initial_state(num_envs)
        while not rows or not timestep.is_first.any():
            row = {"observation": timestep.observation, "earned": timestep.reward}
            if hasattr(task, "room_size"):
                row |= {"cell": task.position, "room": task.coordinates(task.position)[0] // (task.room_size + 1)}
            output, state = agent.step(
                timestep.observation, state, timestep.is_first, timestep.reward, generator=generator
            )
            memory = agent.memory_state(state).memory
            row |= {"latent": output.latent, "action": output.action}
            for name, weights in (("policy", output.policy_read_weights), ("predictor", output.read_weights)):
                padded = nn.functional.pad(weights, (0, memory.shape[1] - weights.shape[-1]))
                row |= {f"{name} weights": padded, f"{name} reads": (padded @ memory).flatten(1)}
            timestep = environment.step(output.action)
            rows.append(row | {"reward": timestep.reward})
    return rows


def told(features: Tensor, classes: Tensor, episodes: Tensor) -> float:
    """Return how often a small network is right about classes, in episodes that it did not learn from."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-5)
    is_asked = episodes >= 0.75 * (episodes.max() + 1)
    network = nn.Sequential(nn.Linear(x.shape[1], 128), nn.Tanh(), nn.Linear(128, int(classes.max()) + 1))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, weight_decay=1e-4)
    known = (~is_asked).nonzero().squeeze(1)
    for _ in range(500):
        chosen = known[torch.randint(len(known), (512,))]
        loss = nn.functional.cross_entropy(network(x[chosen]), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((network(x[is_asked]).argmax(1) == classes[is_asked]).float().mean())


def platforms(run_dir: Path) -> None:
    """Print what is read of the platforms that were found before."""
    rows = play(run_dir, 512)
    torch.manual_seed(0)
    found, seen = {}, defaultdict(list)
    for step, row in enumerate(rows):
        for index in range(512):
            key = index, int(row["room"][index])
            if row["earned"][index] > 0:  # it rests on the platform
                found[key] = step
            elif key in found:
                there = rows[found[key]]
                seen["episode"].append(torch.tensor(index))
                seen["chance"].append(torch.tensor(1 / step))
                seen["cell"].append(there["cell"][index])
                seen["latent of the slot"].append(there["latent"][index])
                for name in ("policy", "predictor"):
                    seen[f"{name} weight"].append(row[f"{name} weights"][index, :, found[key]])
                    seen[f"{name} reads"].append(row[f"{name} reads"][index])
    taken = defaultdict(list)
    for index in range(512):
        rooms, begun = set(), 0
        for step, row in enumerate(rows):
            if row["earned"][index] > 0:
                room = int(row["room"][index])
                taken["found before" if room in rooms else "not found before"].append(step - begun)
                rooms.add(room)
                begun = step + 1
    for what, steps in taken.items():
        print(f"steps to a platform {what}: {sum(steps) / len(steps):.1f} ({len(steps):,})")
    table = {name: torch.stack(column) for name, column in seen.items()}
    classes = table["cell"].unique(return_inverse=True)[1]
    print(f"{len(classes):,} steps, {int(classes.max()) + 1} cells; weight by chance: {table['chance'].mean():.4f}")
    for name in ("policy", "predictor"):
        print(f"weight of the slot, {name}:", [round(x, 4) for x in table[f"{name} weight"].mean(0).tolist()])
    for name in ("latent of the slot", "policy reads", "predictor reads"):
        print(f"cell told right from the {name}: {told(table[name], classes, table['episode']):.2f}")


def mapping(run_dir: Path) -> None:
    """Print how often responses are right, and how often wrong ones are given again."""
    rows = play(run_dir, 256)
    right, again = defaultdict(list), defaultdict(list)
    for index in range(256):
        found, wrong, pictures = set(), defaultdict(set), set()
        for row in rows:
            picture, action = int(row["observation"]["observation"][index]), int(row["action"][index])
            if picture in found:
                right[len(pictures)].append(float(row["reward"][index]))
            elif wrong[picture]:
                again[len(wrong[picture])].append(float(action in wrong[picture]))
            pictures.add(picture)
            if row["reward"][index] > 0:
                found.add(picture)
            elif picture not in found:
                wrong[picture].add(action)
    total = [x for column in right.values() for x in column]
    print(f"right once found: {sum(total) / len(total):.2f}")
    for what, columns in (("right, pictures seen", right), ("wrong again, wrong ones so far", again)):
        print(f"{what}:", {count: round(sum(x) / len(x), 2) for count, x in sorted(columns.items())})


if __name__ == "__main__":
    run = Path(sys.argv[1])
    (platforms if "WaterMaze" in load_config(run).task else mapping)(run)
