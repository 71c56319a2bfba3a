"""merlin evaluate."""

import argparse
import json
import math
import sys
from contextlib import redirect_stdout
from typing import Any

from merlin.cli.arguments import add_command, add_run_dir, json_object, seed, whole_number
from merlin.cli.output import print_table
from merlin.errors import counted


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "play held-out episodes with a trained agent and print its score"
    add = add_command(commands, "evaluate", summary, evaluate)
    add_run_dir(add)
    add("--episodes", metavar="N", type=whole_number(1), default=100, help="how many (default: 100)")
    add("--seed", metavar="S", type=seed, help="chooses the held-out episodes (default: the run's seed)")
    add(
        "--greedy",
        action="store_true",
        help="take the likeliest choices and the means of numbers instead of sampling",
    )
    add("--num-envs", metavar="B", type=whole_number(1), help="environments stepped together (default: the run's)")
    add("--env-kwargs", metavar="JSON", type=json_object, help="settings of the task that are not those of "
        """training, such as '{"opponents": "random"}' (default: none; after self-play, those by which the task """
        "judges an agent)")  # fmt: skip
    add("--memory", choices=("own", "zeroed", "frozen", "shuffled"), default="own", help="show the agent another "
        "memory than its own, to see what it uses it for: zeroed, empty at every step; frozen, as an earlier episode "
        "left it; shuffled, that of another environment (default: own)")  # fmt: skip
    add("--max-steps", metavar="N", type=whole_number(1), help="give up an episode that takes longer (default: 10000, "
        "or the task's own limit if that is longer)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object and nothing else")


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate, and print the scores."""
    from dataclasses import replace
    from functools import partial

    from merlin.agents.memory_ablation import possible_ablations
    from merlin.cli.progress import Progress
    from merlin.runs.build import describe_weights, which_weights
    from merlin.runs.directory import load_config
    from merlin.runs.held_out import play_held_out
    from merlin.runs.player import load
    from merlin.training.evaluation import standard_error

    config = load_config(options.run_dir)
    device = config.device if options.device is None else options.device
    config = replace(config, device=device, env_kwargs=config.env_kwargs | (options.env_kwargs or {}))
    way, seed = options.memory, config.seed if options.seed is None else options.seed
    if way == "shuffled" and min(options.num_envs or config.num_envs, options.episodes) < 2:
        options.parser.error(
            "--memory shuffled needs at least 2 environments to shuffle between: raise --num-envs or --episodes"
        )
    # What an environment prints is no part of a JSON object.
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        player = load(options.run_dir, options.checkpoint, device)
        weights = player.weights
        assert weights is not None, "a run's agent has some of its weights"
        result, references = play_held_out(
            player.agent,
            config,
            episodes=options.episodes,
            seed=seed,
            greedy=options.greedy,
            num_envs=options.num_envs,
            memory=way,
            max_steps=options.max_steps,
            as_told=options.env_kwargs is not None,
            tell=Progress(),
            note=partial(print, file=sys.stderr),
            plays_at_random=not options.json,
        )
    if options.json:
        defined = {name: value if math.isfinite(value) else None for name, value in result.items()}  # JSON has no NaN
        defined |= {"memory": way, "ablations": possible_ablations(player.agent)}
        print(json.dumps(defined | {"checkpoint": which_weights(weights), "checkpoint_step": weights.step}))
        return 0
    actions = "most probable" if options.greedy else "sampled"
    who = config.agent if way == "own" else f"{config.agent} with its memory {way}"
    print(f"{who} on {config.task}, {describe_weights(weights)}, {actions} actions, held-out seed {seed}")
    ended, std = result["episodes"], result["episode_return_std"]
    error = standard_error(std, ended)
    spread = f" (standard error; standard deviation {std:.3f})" if math.isfinite(error) else ""
    rows = [
        ("episode return", _score(result["episode_return_mean"], error) + spread if ended else "-"),
        *(
            (f"  of {name} play", _score(mean, error) + (f" ({counted(played, 'episode')})" if played else ""))
            for name, (mean, played, error) in references.items()
        ),
        ("episode length", f"{result['episode_length_mean']:.1f} steps" if ended else "-"),
        ("episodes", f"{ended:,}"),
    ]
    if "success_rate" in result:
        success, drawn = result["success_rate"], result.get("draw_rate", 0.0)
        told = f"{success:.1%}" + (f" ({success - drawn / 2:.1%} won, {drawn:.1%} drawn)" if drawn else "")
        rows.insert(1 + len(references), ("success rate", told))
    print_table(rows)
    if events := {name: mean for name, mean in result.items() if name.startswith("event_")}:
        print("events in an episode")
        print_table([(name.removeprefix("event_").replace("_", " "), f"{mean:.2f}") for name, mean in events.items()])
    if "unfinished_episodes" in result:
        print(
            f"{result['unfinished_episodes']:,} of {options.episodes:,} episodes had not ended after "
            f"{result['max_steps']:,} steps and count nowhere above; those begun had earned "
            f"{result['unfinished_return_mean']:.3f} so far: --max-steps lets them go on."
        )
    return 0


def _score(mean: float, error: float) -> str:
    return f"{mean:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else "")
