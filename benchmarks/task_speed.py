"""Measures how many steps per second grid worlds take under random actions, beside MiniGrid, EnvPool's and XLand's.

    python benchmarks/task_speed.py [--rounds 5] [--seconds 1] [--threads 2] [--size 13] [--view 7] [--only peers]
    python benchmarks/task_speed.py --only few --cpu --threads 1         few environments on a busy machine, one process

Every figure is a process of its own; the processes alternate, round after round, so that a drift of the machine meets
all of them. Printed: medians and ranges over the rounds. Then, of ours alone: what the grid, the view and the batch
cost, and the bytes of state of each environment.

MiniGrid is asked for the same task in one process (gymnasium's SyncVectorEnv) and in worker processes (AsyncVectorEnv,
one worker for each environment up to `--workers`, each holding its share). EnvPool and XLand-MiniGrid are measured
where they are installed. XLand-MiniGrid's own Memory is 16 cells long, shows two numbers a cell for our three, without
occlusion and in views of 3 unless told otherwise; its steps are taken a hundred at a time in one compiled loop, as
suits it best. Both take as many threads as there are cores.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle

NUM_ACTIONS = 7
STEPS_AT_A_TIME = 100  # of XLand-MiniGrid's compiled loop


def ours(num_envs: int, size: int, view: int, device: str, threads: int, kernels: bool = True) -> Callable[[], object]:
    import torch

    from merlin.tasks.minigrid_tasks.memory import Hallway

    torch.set_num_threads(threads)
    env = Hallway(num_envs, size, agent_view_size=view, device=device)
    if not kernels:
        env.kernels = None
    env.reset(seed=0)
    actions = cycle(torch.randint(NUM_ACTIONS, (997, num_envs), generator=torch.Generator().manual_seed(0)).to(device))
    return lambda: env.step(next(actions))


def single(num_envs: int, size: int, threads: int) -> Callable[[], object]:
    """One environment of numpy arrays, which is reset where an episode ends."""
    import torch

    from merlin.tasks.minigrid_tasks.memory import SingleHallway

    torch.set_num_threads(threads)
    env = SingleHallway(size=size)
    env.reset(seed=0)
    actions = cycle(torch.randint(NUM_ACTIONS, (997,), generator=torch.Generator().manual_seed(0)).tolist())

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if terminated or truncated:
            env.reset()

    return step


def minigrid(num_envs: int, size: int, view: int, workers: int) -> Callable[[], object]:
    import gymnasium
    import minigrid  # noqa: F401 (registers MiniGrid's tasks)
    import numpy as np
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
    from minigrid.wrappers import ImgObsWrapper

    def make() -> gymnasium.Env:
        return ImgObsWrapper(gymnasium.make(f"MiniGrid-MemoryS{size}-v0", agent_view_size=view))

    if workers:  # each worker steps its share in a loop, and sends one array of views

        def share() -> gymnasium.Env:
            return _share([make() for _ in range(num_envs // workers)])

        env, batch = AsyncVectorEnv([share] * workers, shared_memory=True), (workers, num_envs // workers)
    else:
        env, batch = SyncVectorEnv([make] * num_envs), (num_envs,)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = cycle([rng.integers(NUM_ACTIONS, size=batch) for _ in range(97)])
    return lambda: env.step(next(actions))


def _share(envs: list):
    """Return several environments that are stepped one after another as if they were one, restarted where they end."""
    import gymnasium
    import numpy as np

    class Share(gymnasium.Env):
        observation_space = gymnasium.vector.utils.batch_space(envs[0].observation_space, len(envs))
        action_space = gymnasium.vector.utils.batch_space(envs[0].action_space, len(envs))

        def reset(self, *, seed=None, options=None):
            return np.stack([env.reset(seed=seed)[0] for env in envs]), {}

        def step(self, action):
            seen = []
            for env, one in zip(envs, action, strict=True):
                observation, _, terminated, truncated, _ = env.step(int(one))
                seen.append(env.reset()[0] if terminated or truncated else observation)
            return np.stack(seen), 0.0, False, False, {}

    return Share()


def envpool(num_envs: int, size: int) -> Callable[[], object]:
    import envpool as pool
    import numpy as np

    env = pool.make(f"MiniGrid-MemoryS{size}-v0", env_type="gymnasium", num_envs=num_envs)
    env.reset()
    rng = np.random.default_rng(0)
    actions = cycle([rng.integers(NUM_ACTIONS, size=num_envs).astype(np.int32) for _ in range(97)])
    return lambda: env.step(next(actions))


def xland(num_envs: int, view: int) -> Callable[[], object]:
    """Return what takes STEPS_AT_A_TIME steps."""
    import jax
    import xminigrid
    from xminigrid.wrappers import GymAutoResetWrapper

    env, params = xminigrid.make("MiniGrid-MemoryS16")
    env, params = GymAutoResetWrapper(env), params.replace(view_size=view)
    num_actions = env.num_actions(params)

    def step(carry, _):
        timestep, key = carry
        key, now = jax.random.split(key)
        action = jax.random.randint(now, (num_envs,), 0, num_actions)
        timestep = jax.vmap(env.step, in_axes=(None, 0, 0))(params, timestep, action)
        # what is not used would not be computed
        return (timestep, key), timestep.observation.sum() + timestep.reward.sum()

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, STEPS_AT_A_TIME))
    keys = jax.random.split(jax.random.key(0), num_envs)
    carry = jax.vmap(env.reset, in_axes=(None, 0))(params, keys), jax.random.key(1)

    def call() -> None:
        nonlocal carry
        carry, seen = run(carry)
        jax.block_until_ready(seen)

    call()  # compiles
    return call


def per_second(
    step: Callable[[], object], num_envs: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return steps per second after a warm-up."""
    begin = clock()
    while clock() - begin < 0.3 * seconds:
        step()
    count, begin = 0, clock()
    while (passed := clock() - begin) < seconds:
        step()
        count += 1
    return count * num_envs / passed


def ready(setup: dict) -> tuple[Callable[[], object], int]:
    """Return what takes steps of one setup, compiled where that is needed, and how many at a time."""
    setup = dict(setup)
    kind, num_envs = setup.pop("kind"), setup["num_envs"]
    makers = {"ours": ours, "single": single, "minigrid": minigrid, "envpool": envpool, "xland": xland}
    return makers[kind](**setup), num_envs * (STEPS_AT_A_TIME if kind == "xland" else 1)


def measure(step: Callable[[], object], steps: int, options: argparse.Namespace) -> float:
    """Return steps per second."""
    return per_second(step, steps, options.seconds, time.process_time if options.cpu else time.perf_counter)


def alternate(setups: dict[str, dict], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the figures of all setups, round after round, each in a process of its own; empty where one failed."""
    figures: dict[str, list[float]] = {name: [] for name in setups}
    for _ in range(options.rounds):
        for name, setup in setups.items():
            python = options.peer_python if setup["kind"] in ("envpool", "xland") else sys.executable
            command = [python, "-W", "ignore", __file__, "--one", json.dumps(setup)]
            command += ["--seconds", str(options.seconds), *["--cpu"] * options.cpu]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                figures[name].append(float(done.stdout.split()[-1]))
    return figures


def together(setups: dict[str, dict], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the figures of all setups, round after round, all in this process; empty where one failed."""
    figures: dict[str, list[float]] = {name: [] for name in setups}
    found = {}
    for name, setup in setups.items():
        with suppress(ImportError, OSError, KeyError):  # it is not installed, or not whole
            found[name] = ready(setup)
    for _ in range(options.rounds):
        for name, one in found.items():
            figures[name].append(measure(*one, options))
    return figures


def show(figures: dict[str, list[float]]) -> None:
    for name, values in figures.items():
        if values:
            print(
                f"{name:44} {statistics.median(values):>12,.0f}  ({min(values):,.0f} to {max(values):,.0f})", flush=True
            )
        else:
            print(f"{name:44} not measured: it is not installed or has no such task", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="processes of MiniGrid's AsyncVectorEnv")
    parser.add_argument("--size", type=int, default=13)
    parser.add_argument("--view", type=int, default=7, help="what is seen; EnvPool knows 7 alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with EnvPool and XLand-MiniGrid")
    parser.add_argument(
        "--only", choices=["peers", "sizes", "few"], help="the first table, all but it, or few environments"
    )
    parser.add_argument("--cpu", action="store_true", help="count seconds of the processor, all threads together")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(*ready(options.one), options))
        return

    def mine(num_envs: int, size: int = options.size, view: int = options.view) -> dict:
        device = {"device": options.device, "threads": options.threads}
        return {"kind": "ours", "num_envs": num_envs, "size": size, "view": view, **device}

    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {options.threads} threads"
    )
    if options.only == "few":
        print(f"\nMemoryS{options.size}, few environments, steps per second{' of the processor' * options.cpu}:")
        shape = {"size": options.size}
        setups = {"ours, single": {"kind": "single", "num_envs": 1, "threads": options.threads, **shape}}
        theirs = {"kind": "minigrid", "num_envs": 1, "view": 7, "workers": 0}
        setups["MiniGrid, 1, one process"] = {**theirs, **shape}
        for num_envs in (1, 64, 1024, 16384):
            setups[f"ours, {num_envs} environments"] = mine(num_envs)
            setups[f"ours, {num_envs}, without kernels"] = {**mine(num_envs), "kernels": False}
            setups[f"EnvPool, {num_envs}"] = {"kind": "envpool", "num_envs": num_envs, **shape}
            setups[f"XLand-MiniGrid, {num_envs}"] = {"kind": "xland", "num_envs": num_envs, "view": options.view}
        show(together(setups, options))
        return
    if options.only != "sizes":
        print(f"\nMemoryS{options.size}, view {options.view} with occlusion, random actions, steps per second:")
        setups: dict[str, dict] = {}
        for num_envs in (1, 64, 1024):
            setups[f"ours, {num_envs} environments"] = mine(num_envs)
            if options.view == 7:
                setups[f"EnvPool, {num_envs}"] = {"kind": "envpool", "num_envs": num_envs, "size": options.size}
            xland = {"kind": "xland", "num_envs": num_envs, "view": options.view}
            setups[f"XLand-MiniGrid's Memory of 16, {num_envs}"] = xland
            theirs = {"kind": "minigrid", "num_envs": num_envs, "size": options.size, "view": options.view}
            setups[f"MiniGrid, {num_envs}, one process"] = {**theirs, "workers": 0}
            for workers in options.workers:
                if num_envs >= workers:
                    setups[f"MiniGrid, {num_envs}, {workers} workers"] = {**theirs, "workers": workers}
        show(alternate(setups, options))
    if options.only == "peers":
        return
    print("\nours, as the grid grows (1,024 environments):")
    show(alternate({f"size {size}": mine(1024, size) for size in (7, 13, 25, 49)}, options))
    print("\nours, as the view grows (1,024 environments):")
    show(alternate({f"view {view}": mine(1024, view=view) for view in (3, 5, 7, 9, 11)}, options))
    print("\nours, as the batch grows:")
    show(alternate({f"{count} environments": mine(count) for count in (1, 16, 64, 256, 1024, 4096, 16384)}, options))

    from merlin.tasks.minigrid_tasks.memory import Hallway

    print("\nbytes of state per environment, view 7:")
    for size in (7, 13, 25, 49):
        env = Hallway(8, size)
        env.reset(seed=0)
        held = sum(getattr(env, name).nbytes for name in env.state_names) // env.num_envs
        print(f"size {size:<39} {held:>12,}")


if __name__ == "__main__":
    main()
