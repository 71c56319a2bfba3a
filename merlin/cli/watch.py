"""merlin watch."""

import argparse
from typing import Any

from merlin.cli.arguments import add_command, add_run_dir, path, seed, whole_number


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "record episodes of a trained agent: what it sees, believes, expects and recalls"
    add = add_command(commands, "watch", summary, watch)
    add_run_dir(add, "cpu")
    add("--episodes", metavar="N", type=whole_number(1), default=1, help="how many (default: 1)")
    add("--seed", metavar="S", type=seed, default=0, help="another seed shows other episodes (default: 0)")
    add(
        "--greedy",
        action="store_true",
        help="take the likeliest choices and the means of numbers instead of sampling",
    )
    add("--out", metavar="FILE", type=path, help="a .gif or .mp4 film, an .html page to step through, or a .png "
        "of one step (default: RUN_DIR/episode.gif)")  # fmt: skip


def watch(options: argparse.Namespace) -> int:
    """Record the episodes, and print the path of the file."""
    if options.out is not None and options.out.suffix.lower() not in (".gif", ".mp4", ".html", ".png"):
        options.parser.error(f"--out must end in .gif, .mp4, .html or .png, but is {options.out}: choose one of them")
    from merlin.viewer import watch as recorder

    written = recorder.watch(
        options.run_dir,
        options.out,
        episodes=options.episodes,
        seed=options.seed,
        which=options.checkpoint,
        greedy=options.greedy,
        device="cpu" if options.device is None else options.device,
    )
    print(written)
    return 0
