"""merlin profile."""

import argparse
import json
from typing import Any

from merlin.cli.arguments import add_command, add_configuration, add_import_from, path, seconds
from merlin.cli.configuration import new_config
from merlin.cli.output import print_table


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "train for some seconds and tell where the time and the memory go; nothing is kept"
    add = add_command(commands, "profile", summary, profile, names_modules=True)
    add_configuration(add)
    add("--seconds", metavar="S", type=seconds, default=10.0, help="how long to measure (default: 10)")
    add("--trace", metavar="FILE", type=path, help="also write a Chrome trace of one window, for chrome://tracing or "
        "ui.perfetto.dev")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add_import_from(add, "the working directory")


def profile(options: argparse.Namespace) -> int:
    """Measure, and print where the time and the memory went."""
    from dataclasses import asdict

    from merlin.errors import counted, tell
    from merlin.runs import profiling
    from merlin.runs.run import resolve_device

    config = new_config(options)
    if options.trace is not None and (options.trace.is_dir() or not options.trace.parent.is_dir()):
        options.parser.error(f"--trace must name a file in a directory that exists, but {options.trace} does not")
    environments = counted(config.num_envs, "environment")
    plan = (
        f"training {config.agent} on {config.task} for {options.seconds:g} s and at least five windows of "
        f"{config.training.unroll_length} steps in each of {environments}, which may take longer"
    )
    result = profiling.profile(config, options.seconds, options.trace, on_start=lambda: tell(plan))
    if options.json:
        print(json.dumps(asdict(result) | {"utilization": result.utilization}))
        return 0
    threads = config.training.num_threads
    device = str(resolve_device(config.device))
    where = f"cpu, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
    print(f"{config.agent} on {config.task}, {environments}, windows of {config.training.unroll_length} steps, {where}")
    calls = result.operator_calls
    rest = max(0.0, 1 - sum(result.shares.values()))
    rows = [("observation" if i == 0 else "", entry) for i, entry in enumerate(result.entries)]
    rows += [("environment steps", f"{result.steps_per_second:,.0f} per second")]
    rows += [(f"  {name}", f"{share:.1%} of the time") for name, share in (result.shares | {"the rest": rest}).items()]
    rows += [
        ("operations", f"{result.flops_per_step / 1e6:,.2f} million per environment step: products, convolutions"),
        (
            "  of the machine's",
            f"{result.utilization:.1%} of {result.product_flops_per_second / 1e9:,.0f} billion per second, "
            f"which large products reach here",
        ),
        ("operator calls", f"{sum(calls.values()):,} a window: {', '.join(f'{x} {n:,}' for x, n in calls.items())}"),
        ("peak memory", f"{result.peak_megabytes:,.0f} MB, {result.first_megabytes:,.0f} MB of it before training"),
        ("agent's state", f"{result.agent_bytes:,.0f} bytes per environment"),
    ]
    if result.task_bytes is not None:
        rows.append(("task's state", f"{result.task_bytes:,.0f} bytes per environment"))
    if options.trace is not None:
        rows.append(("trace", str(options.trace)))
    print_table(rows)
    return 0
