"""Measures capture the flag: how fast games are, and how bots do against bots; or draws docs/capture_the_flag.png.

    python benchmarks/capture_the_flag.py [--games 512] [--seconds 3] [--rounds 3] [--only speed | bots]
    python benchmarks/capture_the_flag.py --picture docs/capture_the_flag.png

Speed is of one thread: player steps per second of CPU time, which other processes on the machine change less than the
clock, under random actions; medians and ranges over rounds. The bots' tables are of games of 200 steps from seed 0.
"""

import argparse
import platform
import statistics
import time
from itertools import cycle

import torch
from PIL import Image

from merlin.tasks.capture_the_flag.environment import CaptureTheFlag, match
from merlin.tasks.capture_the_flag.rules import NUM_PLAYERS

SPEED = {
    "random actions": {},
    "against mixed": {"opponents": "mixed"},
    "first person": {"view": "first_person"},
}
"""Settings of each row of the table of speeds."""
PAIRS = (
    ("random", "random"),
    ("attacker", "random"),
    ("mixed", "random"),
    ("defender", "random"),
    ("attacker", "attacker"),
    ("mixed", "mixed"),
    ("attacker", "mixed"),
    ("attacker", "defender"),
    ("mixed", "defender"),
)
SIZES = (9, 11, 13)


def player_steps_per_second(num_games: int, seconds: float, **settings) -> float:
    """Return the steps per second of CPU time of the players that learn."""
    learners = NUM_PLAYERS - 2 * ("opponents" in settings)
    env = CaptureTheFlag(num_games * learners, **settings)
    env.reset(seed=0, options={"merlin.stagger": True})
    generator = torch.Generator().manual_seed(0)
    choices = [torch.randint(n, (97, env.num_envs), generator=generator) for n in (5, 3, 2)]
    actions = cycle(torch.stack(choices, 2))
    for _ in range(10):
        env.step(next(actions))
    count, begin = 0, time.process_time()
    while (passed := time.process_time() - begin) < seconds:
        env.step(next(actions))
        count += 1
    return count * env.num_envs / passed


def show_speed(options: argparse.Namespace) -> None:
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, one thread")
    print("\n| 13 x 13 | games | player steps per CPU second | milliseconds per step |\n|---|---|---|---|")
    for name, settings in SPEED.items():
        for num_games in (64,) if "view" in settings else (64, 256, 1024):
            rates = [player_steps_per_second(num_games, options.seconds, **settings) for _ in range(options.rounds)]
            rate, learners = statistics.median(rates), NUM_PLAYERS - 2 * ("opponents" in settings)
            spread = f"{rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
            print(f"| {name} | {num_games:,} | {spread} | {1e3 * learners * num_games / rate:.1f} |", flush=True)


def show_bots(options: argparse.Namespace) -> None:
    heads = [f"{size} x {size}" for size in SIZES]
    print(f"\n{options.games:,} games of each pair, by size of the map: wins / draws / losses of the first in percent;")
    print("captures of the first - of the second, per game; pick-ups and tags of both, per game\n")
    print(f"| first v second | {' | '.join(heads)} |\n|{'---|' * (len(SIZES) + 1)}")
    for first, second in PAIRS:
        cells = []
        for size in SIZES:
            found = match(first, second, options.games, size=size)
            shares = " / ".join(f"{100 * share:.0f}" for share in (found.wins, found.draws, found.losses))
            captures = f"{found.captures:.2f} - {found.captures_against:.2f}"
            cells.append(f"{shares}; {captures}; {found.pick_ups:.1f}, {found.tags:.1f}")
        print(f"| {first} v {second} | {' | '.join(cells)} |", flush=True)


def draw_picture(path: str, seed: int = 3, num_steps: int = 60) -> None:
    """Draw the richest moment of some games of bots."""
    env = CaptureTheFlag(4 * 8, size=13, view="first_person", picture_size=152, render_mode="rgb_array")
    env.seat_bots(("attacker", "defender", "attacker", "attacker"))
    env.reset(seed=seed)
    most, picture = -1, None
    for _ in range(num_steps):
        observation, *_ = env.step(env.bot_actions(env.state).flatten(0, 1))
        things = observation["status"].view(-1, 4, 5)
        # flags away from home, and everybody on the map
        worth = (things[:, 0, :2] > 0).sum(1) * 2 + (things[:, 0, :2] == 1).sum(1) - things[..., 4].sum(1)
        if worth.max() > most:
            most, picture = int(worth.max()), env.draw(4 * int(worth.argmax()))
    Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=3.0, help="of CPU time, of each measurement of speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["speed", "bots"])
    parser.add_argument("--picture", metavar="PATH", help="draw this instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.picture:
        draw_picture(options.picture)
        return
    if options.only != "bots":
        show_speed(options)
    if options.only != "speed":
        show_bots(options)


if __name__ == "__main__":
    main()
