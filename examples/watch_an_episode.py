"""Play one episode with a trained agent and write what it saw, recalled, expected and did.

    python examples/watch_an_episode.py RUN_DIR [OUT.gif|.mp4|.html|.png]
    python examples/watch_an_episode.py                  trains a tiny agent first, for some seconds

`merlin watch RUN_DIR` does the same; here are the parts, for pictures of one's own.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from merlin.runs.presets import preset
from merlin.runs.run import build_environment, load_agent, load_config, train
from merlin.viewer.episodes import record_episode
from merlin.viewer.formats import save_episodes


def main(run_dir: Path | None = None, out: Path = Path("episode.gif"), steps: int = 20_000) -> Path:
    if run_dir is None:
        run_dir = Path(tempfile.mkdtemp()) / "run"
        train(dataclasses.replace(preset("merlin"), steps=steps), run_dir)

    config = load_config(run_dir)
    with build_environment(config, num_envs=1, render_mode="rgb_array") as environment:
        agent = load_agent(run_dir, environment, config)
        generator = torch.Generator(environment.device).manual_seed(0)
        episode = record_episode(agent, environment, seed=0, generator=generator, max_steps=200)

    for index, step in enumerate(episode.steps):
        line = f"step {index + 1}: value {step.value:5.2f}, {episode.action_name(index)}, reward {step.reward:g}"
        if step.policy_read_weights is not None and index > 0:
            key, slot = divmod(int(step.policy_read_weights.argmax()), step.policy_read_weights.shape[-1])
            writer = episode.held(index).get(slot)
            when = "that holds nothing" if writer is None else f"written at step {writer + 1}"
            line += f"; key {key + 1} of the policy reads most from slot {slot}, {when}"
        print(line)
    save_episodes([episode], out, f"{config.agent} on {config.task}")
    print(f"{out} shows it")
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="?", type=Path)
    parser.add_argument("out", nargs="?", type=Path, default=Path("episode.gif"))
    main(**vars(parser.parse_args()))
