"""merlin compare."""

import argparse
from pathlib import Path
from typing import Any

from merlin.cli.arguments import (
    add_command,
    add_device,
    add_import_from,
    add_set,
    add_wandb,
    flag,
    json_object,
    path,
    seconds,
    seed,
    whole_number,
)
from merlin.cli.configuration import refuse
from merlin.cli.output import fail, print_table
from merlin.errors import MerlinError
from merlin.plugins import short_name

_EXAMPLES = """\
examples:
  merlin compare merlin/MemoryGame-v0 --env-kwargs '{"pairs": 4}' --seeds 1 2 3 4 5
  merlin compare merlin/TMaze-v0 MiniGrid-MemoryS7-v0 --agents merlin rl-lstm my_agent:Mine --max-seconds 900
  merlin compare examples/ablations.toml
"""


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "train several agents on several tasks with several seeds, and compare them"
    add = add_command(commands, "compare", summary, compare, epilog=_EXAMPLES, names_modules=True)
    add("what", metavar="TASK|FILE", nargs="+", help="gymnasium ids, or a .toml file that says what is compared")
    add("--agents", metavar="NAME", nargs="+", help="merlin, dreamer, ftw, rl-lstm, rl-mem or module:Class "
        "(default: merlin rl-lstm rl-mem)")  # fmt: skip
    add("--seeds", metavar="S", nargs="+", type=seed, help="one run for each (default: 1 2 3)")
    add("--steps", metavar="N", type=whole_number(1), help="environment steps of each run (default: by task)")
    add("--env-kwargs", metavar="JSON", type=json_object, help="""settings of the tasks, such as '{"pairs": 4}'""")
    add_set(add, "settings of all agents, of model.*, training.* and num_envs, as of train")
    add("--max-seconds", metavar="S", type=seconds, help="end each run after this long; with more, they go on")
    add("--episodes", metavar="N", type=whole_number(1), help="held-out episodes of each evaluation (default: 512)")
    add("--memory", nargs="+", choices=("zeroed", "frozen", "shuffled"), help="evaluate each agent that has a memory "
        "with another than its own, too: see evaluate --help")  # fmt: skip
    add("--only", metavar="NAME", nargs="+", help="train only the tasks and only the agents of these "
        "names; the table is of all that is done")  # fmt: skip
    add("--jobs", metavar="N", type=whole_number(1), help="runs at a time (default: one for each core)")
    add("--out", metavar="DIR", type=path, help="where the runs, the table and the picture go; what is done there is "
        "not done again (default: runs/compare-NAME, by the first task and --env-kwargs, or by the file)")  # fmt: skip
    add_device(add, "where the agents run: auto, the default, takes a GPU where there is one")
    add_wandb(add, ", runs grouped by task")
    add_import_from(add, "the working directory")


def compare(options: argparse.Namespace) -> int:
    """Train and evaluate what is compared, and print the table."""
    from merlin.experiments import launcher
    from merlin.experiments.results import (
        CURVE_COLUMNS,
        collect,
        collect_curves,
        legend,
        plot_comparison,
        reference_scores,
        table,
        write_rows,
    )
    from merlin.experiments.spec import COMPARED, choose, make_comparison, plan, read_comparison

    first, *others = options.what
    asked = {name: getattr(options, name) for name in ("seeds", "episodes", "max_seconds", "memory")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if first.endswith(".toml"):
        names = [flag(name) for name in ("agents", "steps", "env_kwargs", "set") if getattr(options, name)]
        if others or names:
            options.parser.error(
                f"a file says which tasks and agents are compared, but {', '.join(others + names)} came too: "
                f"leave that out, or write it into {first}"
            )
        comparison = read_comparison(Path(first), asked)
    else:
        entry = {"env_kwargs": options.env_kwargs or {}, "steps": options.steps}
        agents = [{"agent": name, "set": options.set} for name in options.agents or COMPARED]
        try:
            comparison = make_comparison(
                {"tasks": [{"task": x, **entry} for x in options.what], "agents": agents, **asked}
            )
        except MerlinError as error:
            refuse(options, error)
    out = options.out or Path("runs") / default_name(first, options.env_kwargs or {})
    runs = plan(comparison, out)
    chosen = plan(choose(comparison, options.only or []), out)
    references = reference_scores(comparison, runs)  # and each task can be built
    failures = launcher.compare(
        chosen,
        comparison,
        jobs=options.jobs,
        wandb=options.wandb,
        import_from=options.import_from or Path(),
        device="auto" if options.device is None else options.device,
    )
    runs = [run for run in runs if run in chosen or run.result()]
    rows = collect(runs, references)
    if rows:
        text = table(rows, references) + legend(rows, comparison)
        write_rows(rows, out / "results.csv")
        (out / "results.md").write_text(text, encoding="utf-8")
        write_rows(collect_curves(runs), out / "curves.csv", CURVE_COLUMNS)
        plot_comparison(runs, references, out / "curves.png")
        print(text)
        print_table(
            [
                ("table", str(out / "results.md")),
                ("runs", str(out / "results.csv")),
                ("curves", f"{out / 'curves.png'}, {out / 'curves.csv'}"),
            ]
        )
    if failures:
        return fail(f"{len(failures)} of {len(chosen)} runs failed, the first of them {failures[0]}", 1)
    return 0


def default_name(first: str, env_kwargs: dict[str, Any]) -> str:
    """Return the name of the directory of a comparison, by its file, or by its first task and that one's settings."""
    from merlin.experiments.spec import slug

    if first.endswith(".toml"):
        return f"compare-{Path(first).stem}"
    return slug("-".join(["compare", short_name(first), *(f"{key}-{value}" for key, value in env_kwargs.items())]))
