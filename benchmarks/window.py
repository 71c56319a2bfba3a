"""Measures what MERLIN's learning from one window takes, time and peak memory, against automatic differentiation.

    python benchmarks/window.py [--lengths 20 50 100] [--slots 128 1350] [--latent 200] [--num-envs 16] [--limit-gb 16]
    python benchmarks/window.py --lengths 16 --slots 1350 10000 100000 --num-envs 2 --top-k 16 --ways ours

Both ways compute the same losses of the same window, and their gradients; `plain` takes the steps that acting takes,
one by one, under automatic differentiation. Every figure is a process of its own, on one thread; the peak before it
learnt is subtracted from the peak after. A way that needs more than the limit is said to.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from itertools import product

WAYS = ("ours", "plain")


def step_by_step(agent, unroll, state, actions, previous_actions):
    """Return what `Agent.scan` returns, by the steps that acting takes, on a memory that is written to plainly."""
    from merlin.states import map_state, reset_state, stack_states

    codes = agent.encode(unroll.observation, previous_actions, unroll.previous_reward)
    rows = []
    for t, (code, action, is_first) in enumerate(zip(codes, actions, unroll.is_first, strict=True)):
        extras = map_state(lambda x, t=t: x[t], unroll.extras)
        perceived = agent.perceive(code, reset_state(state, is_first), extras)
        rows.append(perceived.activations)
        state = agent.advance(perceived, action).state
    return stack_states(rows), state


def measure(
    way: str, length: int, slots: int, latent: int, num_envs: int, limit_gb: float, top_k: int | None
) -> dict[str, float]:
    """Return the seconds and the MB that learning from a window takes, forward and backward."""
    import torch
    from gymnasium import spaces

    from merlin.agents.merlin import Merlin, MerlinConfig
    from merlin.agents.merlin.agent import MerlinExtras
    from merlin.experience import Unroll

    torch.set_num_threads(1)
    torch.manual_seed(0)
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gb * 2**30),) * 2)
    config = MerlinConfig(latent_size=latent, memory_size=slots, top_k=top_k)
    agent = Merlin({"card": spaces.Discrete(16)}, spaces.Discrete(8), config)
    if way == "plain":
        agent.scan = lambda *args: step_by_step(agent, *args)
    state = agent.initial_state(num_envs)
    memory = state.predictor.memory  # a full one
    memory = memory._replace(memory=torch.randn_like(memory.memory), num_written=memory.num_written + slots)
    state = state._replace(predictor=state.predictor._replace(memory=memory))
    zeros = torch.zeros(length, num_envs)
    never = zeros > 0
    unroll = Unroll(
        observation={"card": torch.randint(16, (length, num_envs))},
        is_first=never,
        previous_reward=zeros,
        action=torch.randint(8, (length, num_envs)),
        log_prob=zeros - 2,
        reward=torch.rand(length, num_envs),
        discount=zeros + 0.9,
        value=zeros,
        next_value=zeros,
        is_end=never,
        is_valid=~never,
        extras=MerlinExtras(
            *torch.randn(2, length, num_envs, latent),
            torch.arange(length).remainder(slots).unsqueeze(1).expand(-1, num_envs),
        ),
    )

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, begin = peak(), time.perf_counter()
    agent.losses(unroll, state)[0].total.backward()
    return {"seconds": time.perf_counter() - begin, "mb": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--slots", type=int, nargs="+", default=[128, 1350])
    parser.add_argument("--latent", type=int, default=200)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--limit-gb", type=float, default=16)
    parser.add_argument("--top-k", type=int, help="slots that each key reads; all unless given")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = ("--latent", str(options.latent), "--num-envs", str(options.num_envs), "--limit-gb", str(options.limit_gb))
    sizes += ("--top-k", str(options.top_k)) if options.top_k else ()
    if options.one:
        way, length, slots = options.one
        limits = (options.latent, options.num_envs, options.limit_gb, options.top_k)
        print(json.dumps(measure(way, int(length), int(slots), *limits)))
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, 1 thread")
    read = f"the {options.top_k} nearest slots" if options.top_k else "all slots"
    print(
        f"Z {options.latent}, {options.num_envs} environments, {read} read by each key; a window forward and backward:"
    )
    for length, slots in product(options.lengths, options.slots):
        found = {}
        for way in options.ways:
            command = [sys.executable, __file__, "--one", way, str(length), str(slots), *sizes]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode and "memory" not in done.stderr:
                sys.exit(done.stderr)
            found[way] = None if done.returncode else json.loads(done.stdout.splitlines()[-1])
        text = "   ".join(
            f"{way} {x['mb']:>7,.0f} MB {x['seconds']:6.2f} s" if x else f"{way} above {options.limit_gb:g} GB"
            for way, x in found.items()
        )
        if len(found) == 2 and all(found.values()):
            text += f"   {found['plain']['mb'] / found['ours']['mb']:.1f} times less memory"
        print(f"T {length:>4}, N {slots:>6}   {text}", flush=True)


if __name__ == "__main__":
    main()
