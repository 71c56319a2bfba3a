"""`merlin watch`: an episode of a trained agent as a film, a page or a picture, with its reads and predictions."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch

from merlin.ranges import COUNT, SEED, check
from merlin.runs.build import build_environment, describe_weights, load_agent_and_weights
from merlin.runs.directory import load_config
from merlin.training.evaluation import HELD_OUT_SEED
from merlin.viewer.episodes import Episode, record_episode
from merlin.viewer.formats import find_writer, save_episodes

MAX_FRAMES, MAX_STEPS = 500, 2000  # of a film, of a page
AHEAD = 8  # steps that a page shows imagined


def watch(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    episodes: int = 1,
    seed: int = 0,
    which: str = "best",
    greedy: bool = False,
    device: str = "cpu",
    note: Callable[[str], object] = lambda sentence: print(sentence, file=sys.stderr),
) -> Path:
    """Play episodes that training never began with, write them as a picture of each step, and return the file.

    Args:
        out: Its ending chooses the format: .gif, .mp4, .html (a page to step through, and a memory to look into), or
            .png (the most telling step).
            RUN_DIR/episode.gif unless told.
        seed: Of the environment, the latents and the actions; another seed shows another episode.
        which: The run's best weights or its last.
        greedy: Take the most probable actions rather than samples.
        device: auto, cpu or cuda. One environment is too small for a GPU to pay.
        note: Is told which weights are shown, and when not everything is.

    Raises:
        MerlinError: No such format, an `.mp4` without the extra `video`, not a run, or a file that cannot be written.
    """
    run_dir = Path(run_dir)
    out = Path(out) if out is not None else run_dir / "episode.gif"
    find_writer(out)  # before an episode is played in vain
    check("episodes", episodes, Annotated[int, COUNT])
    check("seed", seed, Annotated[int, SEED])
    config = dataclasses.replace(load_config(run_dir), device=device, vectorization="sync")
    seed += config.seed + HELD_OUT_SEED
    played: list[Episode] = []
    with build_environment(config, num_envs=1, render_mode="rgb_array") as environment:
        agent, weights = load_agent_and_weights(run_dir, environment, config, which)
        note(f"{config.agent} on {config.task}, {describe_weights(weights)}")
        generator = torch.Generator(environment.device).manual_seed(seed)
        most, ahead = (MAX_STEPS, AHEAD) if out.suffix.lower() == ".html" else (MAX_FRAMES, 0)
        left = most
        while left and len(played) < episodes:
            begin = seed + len(played)
            played.append(
                record_episode(agent, environment, begin, generator, greedy=greedy, max_steps=left, imagine=ahead)
            )
            left -= len(played[-1].steps)
    if len(played) < episodes or not played[-1].is_complete:
        note(f"Only the first {most} steps are shown.")
    heading = f"{config.agent} on {config.task}"
    save_episodes(played, out, heading)
    return out
