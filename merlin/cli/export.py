"""merlin export."""

import argparse
from pathlib import Path
from typing import Any

from merlin.cli.arguments import add_command, add_run_dir, whole_number


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "write a trained agent's step as a program of its own, which needs no merlin to run"
    add = add_command(commands, "export", summary, export)
    add_run_dir(add)
    add("--format", choices=("torch", "onnx"), default="torch", help="torch, for torch.export.load; or onnx, which "
        "needs pip install 'merlin-agents[export]' (default: torch)")  # fmt: skip
    add("--out", metavar="FILE", type=Path, help="what to write (default: RUN_DIR/agent.pt2 or agent.onnx)")
    add("--batch", metavar="N|dynamic", type=batch, default="1", help="environments that a step is of; dynamic leaves "
        "it open (default: 1)")  # fmt: skip


def batch(text: str) -> int | None:
    """Return a batch size; None for one that is left open."""
    return None if text == "dynamic" else whole_number(1)(text)


def export(options: argparse.Namespace) -> int:
    """Export, and say how what was written compares with the agent."""
    from merlin.runs.export import export as write
    from merlin.runs.player import load
    from merlin.runs.run import load_config

    config = load_config(options.run_dir)
    agent = load(options.run_dir, options.checkpoint, "cpu").agent
    suffix = {"torch": ".pt2", "onnx": ".onnx"}[options.format]
    path = options.out or options.run_dir / f"agent{suffix}"
    exported = write(agent, config, path, options.format, options.batch)
    seen = config.task if exported.is_of_environment else "drawn from their spaces"
    print(exported.path)
    print(
        f"largest difference from the agent {exported.difference:.1e}, over {exported.steps} steps with resets, "
        f"observations {'of ' if exported.is_of_environment else ''}{seen}"
    )
    return 0
