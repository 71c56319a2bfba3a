"""Asks whether MERLIN's latent tells key from ball in the same way wherever in view they are.

    python benchmarks/cue_directions.py RUN_DIR [--steps 60] [--num-envs 256]

Of a run on merlin/Memory-v0: in views with one object, a key is put in a ball's place and a ball in a key's, and the
posterior's mean is compared. Prints, for each cell of the view, how far the latent moves, and the cosines between
the directions of different cells: 1 where what is learnt about the object in one cell holds in the other, 0 where it
says nothing of it, -1 where it says the opposite.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from merlin.networks.spaces import flatten_observation
from merlin.runs.run import build_environment, load_agent, load_config
from merlin.states import reset_state

KEY, BALL = 5, 6  # as MiniGrid numbers them


def directions(run_dir: Path, num_envs: int, steps: int) -> dict[tuple[int, int], torch.Tensor]:
    """Return, by cell of the view (column, row), the mean change of the latent from ball to key."""
    config = load_config(run_dir)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    changes = defaultdict(list)
    with build_environment(config, num_envs) as environment, torch.no_grad():
        agent = load_agent(run_dir, environment, config, "last")
        state, timestep = agent.initial_state(num_envs), environment.reset(77)
        noise = torch.zeros(num_envs, config.model.latent_size)
        for _ in range(steps):
            is_first = timestep.is_first
            state = reset_state(state, is_first)
            observation = flatten_observation(timestep.observation)
            reward = timestep.reward.masked_fill(is_first, 0)

            def mean(observation, state=state, reward=reward):
                code = agent.encode(observation, state.previous_action, reward)
                return agent.predictor.perceive(code, noise, state.predictor).latent

            image = observation["image"]
            objects = image[..., 0]
            is_key, is_ball = objects == KEY, objects == BALL
            swapped = image.clone()
            swapped[..., 0] = torch.where(is_key, BALL, torch.where(is_ball, KEY, objects)).to(image.dtype)
            change = mean({**observation, "image": swapped}) - mean(observation)
            for row in ((is_key | is_ball).flatten(1).sum(1) == 1).nonzero()[:, 0].tolist():
                cell = tuple((is_key | is_ball)[row].nonzero()[0].tolist())
                changes[cell].append(change[row] if is_ball[row][cell] else -change[row])
            output, state = agent.step(timestep.observation, state, is_first, timestep.reward, generator=generator)
            turns = torch.randint(3, (num_envs,), generator=generator)
            explore = torch.rand(num_envs, generator=generator) < 0.7
            timestep = environment.step(torch.where(explore, turns, output.action))
    return {cell: torch.stack(found).mean(0) for cell, found in sorted(changes.items()) if len(found) > 30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--num-envs", type=int, default=256)
    options = parser.parse_args()
    found = directions(options.run_dir, options.num_envs, options.steps)
    print("cell of the view (column, row): distance from ball to key in the latent, cosines with other cells")
    cosines = []
    for cell, change in found.items():
        row = {other: cosine_similarity(change, x, dim=0).item() for other, x in found.items() if other != cell}
        cosines += row.values()
        print(f"{cell}  {change.norm():5.1f}   " + "  ".join(f"{other} {x:+.2f}" for other, x in row.items()))
    mean, least, most = sum(cosines) / len(cosines), min(cosines), max(cosines)
    print(f"cosines: mean {mean:+.2f}, from {least:+.2f} to {most:+.2f}")


if __name__ == "__main__":
    main()
