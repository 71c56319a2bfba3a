"""merlin export."""

import argparse
from pathlib import Path
from typing import Any

from merlin.cli.arguments import add_command, add_run_dir, whole_number


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "write a trained agent to hand on: a folder, or its step as a program that needs no merlin to run"
    add = add_command(commands, "export", summary, export)
    add_run_dir(add)
    add("--format", choices=("folder", "torch", "onnx"), default="folder", help="folder, of weights, configuration and "
        "a model card; torch, for torch.export.load; or onnx, which needs pip install 'merlin-agents[export]' "
        "(default: folder)")  # fmt: skip
    add("--out", metavar="PATH", type=Path, help="what to write (default: RUN_DIR/agent, agent.pt2 or agent.onnx)")
    add("--batch", metavar="N|dynamic", type=batch, default="1", help="environments that a program's step is of; "
        "dynamic leaves it open (default: 1)")  # fmt: skip
    add("--episodes", metavar="N", type=whole_number(0), default=100, help="held-out episodes that are played for the "
        "score on a folder's card; 0 for none (default: 100)")  # fmt: skip


def batch(text: str) -> int | None:
    """Return a batch size; None for one that is left open."""
    return None if text == "dynamic" else whole_number(1)(text)


def export(options: argparse.Namespace) -> int:
    """Export, and say where it is; of a program, how it compares with the agent."""
    from merlin.errors import option, tell
    from merlin.runs.directory import load_config
    from merlin.runs.export import export as write
    from merlin.runs.player import load

    if options.format == "folder":
        loaded = load(options.run_dir, options.checkpoint, "cpu" if options.device is None else options.device)
        print(loaded.save(options.out or options.run_dir / "agent", episodes=options.episodes))
        return 0
    suffix = {"torch": ".pt2", "onnx": ".onnx"}[options.format]
    if options.out is not None and options.out.suffix != suffix:
        options.parser.error(f"--out must end in {suffix} with --format {options.format}, but is {options.out}")
    config = load_config(options.run_dir)
    agent = load(options.run_dir, options.checkpoint, "cpu").agent
    path = options.out or options.run_dir / f"agent{suffix}"
    exported = write(agent, config, path, options.format, options.batch)
    seen = config.task if exported.is_of_environment else "drawn from their spaces"
    print(exported.path)
    print(
        f"largest difference from the agent {exported.difference:.1e}, over {exported.steps} steps with resets, "
        f"observations {'of ' if exported.is_of_environment else ''}{seen}"
    )
    if not exported.knows_masks:
        tell(
            f"{config.task} could not be built, and the run does not tell whether it gives action masks, so the "
            f"program takes none: if it does, export again with {option('import-from', 'DIR')}, where its module lies"
        )
    return 0
