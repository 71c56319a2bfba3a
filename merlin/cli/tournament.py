"""merlin tournament."""

import argparse
import json
import math
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from merlin.cli.arguments import add_command, add_device, add_import_from, json_object, path, seed, whole_number
from merlin.cli.output import print_table
from merlin.cli.progress import SECONDS

_EXAMPLES = """\
examples:
  merlin tournament runs/CaptureTheFlag-v0-ftw-population-seed1-20260101-120000 mixed
  merlin tournament RUN_DIR OTHER_RUN_DIR attacker defender --games 512
"""


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "let trained agents and bots play one another, and rate them"
    add = add_command(commands, "tournament", summary, tournament, epilog=_EXAMPLES)
    add("entrants", metavar="RUN_DIR", nargs="+", help="the directories of runs or populations, and names of the "
        "task's bots; random always plays, and has a rating of 500")  # fmt: skip
    add("--games", metavar="N", type=whole_number(2), default=256, help="of each pair, half of them with sides "
        "exchanged (default: 256)")  # fmt: skip
    add("--seed", metavar="S", type=seed, default=1, help="of maps and of every random choice (default: 1)")
    add("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")
    add("--env-kwargs", metavar="JSON", type=json_object, help="settings of the task other than those trained on")
    add_device(add, "where agents run; auto takes a GPU where there is one (default: that of the first run)")
    add("--out", metavar="DIR", type=path, help="where standings.csv, points.csv and points.png go (default: "
        "tournament/ in the first RUN_DIR)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add_import_from(add)


def tournament(options: argparse.Namespace) -> int:
    """Play, and print the table."""
    from merlin.population import tournament as played

    told = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told >= SECONDS:
            told = time.monotonic()
            print(f"playing: {done} of {of} pairs", file=sys.stderr, flush=True)

    directories = [Path(name) for name in options.entrants if Path(name).is_dir()]
    out = options.out or (directories[0] / "tournament" if directories else Path("tournament"))
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        found = played.tournament(
            options.entrants,
            games=options.games,
            seed=options.seed,
            device=options.device,
            checkpoint=options.checkpoint,
            env_kwargs=options.env_kwargs,
            tell=tell,
            check=lambda names: played.check_free(out, names, options.games),
        )
        played.write(found, out, f"Points of {options.games} games")
    if options.json:
        points = [[_number(x) for x in row] for row in found.points.tolist()]
        standings = [{name: _number(value) for name, value in x._asdict().items()} for x in found.standings]
        print(json.dumps({"standings": standings, "points": points, "games_per_pair": options.games}))
        return 0
    width = max(len(x.name) for x in found.standings)
    print(f"{'':<{width}}  rating  95% interval     wins  draws  losses  games")
    for x in found.standings:
        interval = f"{'-':^14}" if math.isnan(x.rating_low) else f"{x.rating_low:5.0f} to {x.rating_high:5.0f}"
        shares = f"{x.wins:6.1%} {x.draws:6.1%}  {x.losses:6.1%}"
        print(f"{x.name:<{width}}  {x.rating:6.0f}  {interval}  {shares}  {x.games:5,}")
    # of one whose rating is given there is none, whatever was played
    if sum(math.isnan(x.rating_low) for x in found.standings) > 1:
        print(
            f"There is no interval of who played fewer than {played.FEWEST_GAMES} games, or whose games against each "
            "other one all ended alike: raise --games, or let others play."
        )
    print_table([("pairs", f"{out / 'points.png'}, {out / 'points.csv'}"), ("table", f"{out / 'standings.csv'}")])
    return 0


def _number(value: Any) -> Any:
    """Return a value as JSON holds it, NaN as null."""
    return None if isinstance(value, float) and math.isnan(value) else value
