"""merlin analyse."""

import argparse
import sys
from typing import Any

from merlin.cli.arguments import add_command, add_run_dir, path, seed, whole_number


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "ask a trained agent what it knows, where it reads and what it expects: a report"
    add = add_command(commands, "analyse", summary, analyse)
    add_run_dir(add)
    add("--out", metavar="DIR", type=path, help="where report, pictures and numbers go (default: RUN_DIR/analysis)")
    add("--episodes", metavar="N", type=whole_number(4), default=256, help="held-out episodes that figures and "
        "scores are of (default: 256)")  # fmt: skip
    add("--seed", metavar="S", type=seed, default=0, help="another seed plays other episodes (default: 0)")


def analyse(options: argparse.Namespace) -> int:
    """Write the report, and print its path."""
    from merlin.analysis import report

    written = report.analyse(
        options.run_dir,
        options.out,
        episodes=options.episodes,
        seed=options.seed,
        which=options.checkpoint,
        device=options.device,
        note=lambda sentence: print(f"{sentence} ...", file=sys.stderr),
    )
    print(written)
    return 0
