"""The run configuration that options choose, and its settings for people to read."""

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING, NoReturn

from merlin.cli.arguments import Parser, flag
from merlin.errors import MerlinError

if TYPE_CHECKING:
    from merlin.runs.presets import RunConfig


def refuse(options: argparse.Namespace, error: MerlinError) -> NoReturn:
    """End the program with what is wrong with a configuration, and with status 2."""
    from merlin.runs.settings import WrongSetting

    parser: Parser = options.parser
    parser.fail(str(error), "merlin train --help-settings" if isinstance(error, WrongSetting) else "")


def new_config(options: argparse.Namespace) -> "RunConfig":
    """Return the configuration of a run that begins."""
    from merlin.runs.configure import configure

    names = ("seed", "steps", "num_envs", "device", "vectorization", "started_from_checkpoint")
    values = {name: getattr(options, name, None) for name in names}
    started_from = getattr(options, "started_from", None)
    if started_from is not None:
        values["started_from"] = str(started_from.absolute())
    try:
        return configure(
            options.task,
            options.agent,
            preset_name=options.preset,
            env_kwargs=options.env_kwargs,
            wrap=options.wrap or (),
            set=options.set,
            **values,
        )
    except MerlinError as error:
        refuse(options, error)


def resumed_config(options: argparse.Namespace) -> "RunConfig":
    """Return the configuration of the run that `--resume` names, which goes on as it began."""
    names = ("task", "agent", "preset", "seed", "num_envs", "env_kwargs", "wrap", "run_dir",
             "started_from", "started_from_checkpoint")  # fmt: skip
    given = ["TASK" if name == "task" else flag(name) for name in names if getattr(options, name) is not None]
    given += [f"--set {setting}" for setting in options.set if not setting.startswith("training.")]
    if given:
        options.parser.error(
            f"--resume continues a run as it began, so only --steps, --max-seconds, --device, --vectorization, "
            f"--wandb, --tensorboard and --set training.* may change, but {', '.join(given)} came: leave that out"
        )
    from merlin.runs.configure import changed
    from merlin.runs.directory import load_config

    config = load_config(options.resume)
    try:
        values = {name: getattr(options, name) for name in ("steps", "device", "vectorization")}
        return changed(config, {name: value for name, value in values.items() if value is not None}, options.set)
    except MerlinError as error:
        refuse(options, error)


def print_settings(config: "RunConfig") -> None:
    """Print every setting that --set takes: type, value, the paper's value where it is known, and meaning."""
    import inspect

    from merlin.runs.configure import CHOOSE_THE_PRESET
    from merlin.runs.presets import paper_values
    from merlin.runs.settings import Setting, list_settings

    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    stated = paper_values(config.agent, config.task, config.env_kwargs)
    legend = (
        f"Settings of {config.agent} on {config.task}, by the preset {config.preset or 'of its day'}. [paper: X] is "
        "the value of Wayne et al. 2018, second-hand where only others who rebuilt it tell; --preset paper takes them."
    )
    print(textwrap.fill(legend, width))
    groups: dict[str, list[Setting]] = {}
    for setting in list_settings(config):
        if not setting.path.startswith(CHOOSE_THE_PRESET):
            groups.setdefault(setting.path.rpartition(".")[0], []).append(setting)
    for group, settings in groups.items():
        owner = settings[0].owner
        about = (inspect.getdoc(owner) or "").split("\n\n")[0]
        if about.startswith(f"{owner.__name__}("):  # that dataclasses write where there is none
            about = ""
        print("", textwrap.fill(f"{group or 'run'}: {about}", width), sep="\n")
        for setting in settings:
            value, source = stated.get(setting.path, (None, ""))
            shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
            paper = f"  [paper: {shown}{', second-hand' * (source == 'second-hand')}]" if source else ""
            line = f"  {setting.path}: {setting.annotation} = {setting.value!r}{paper}"
            limits = f"  ({setting.range})" if setting.range else ""
            if len(line) > width:  # many choices
                line = textwrap.fill(line, width, subsequent_indent=" " * 4)
            fits = len(line.rpartition("\n")[2] + limits) <= width
            print(line + (limits if fits else f"\n    {limits}"))
            if setting.text:
                print(textwrap.fill(setting.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
