"""How soon a population replaces agents that it would do without: four from one trained agent, two at learning rates of
1e-2 and 3e-2.

    merlin train merlin/CaptureTheFlag-v0 --agent rl-lstm --steps 450000 --run-dir START --device cpu --env-kwargs \
        '{"size": 9, "rewards": [1, 0.4, 0.3, 0.5, 0.1, 0.1, 0.3, 0.1, -0.3, -0.1, -0.5, -0.2, -0.1]}'
    python benchmarks/sabotage.py START [--seed 1] [--games 300]

Times are CPU seconds of this process.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from merlin.population.population import Population, PopulationConfig, Round
from merlin.runs.run import build_agent, build_environment, load_config, load_weights

SABOTAGED = {1: 1e-2, 3: 3e-2}
"""Learning rates by agent."""


def main() -> None:
    """Print each evolution, and after how many games nobody descends from a sabotaged agent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="START", help="the run that all four start from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--games", type=int, default=300, help="after which it gives up")
    options = parser.parse_args()
    config = load_config(options.run_dir)
    config.training.set_torch()
    rewards = tuple(config.env_kwargs["rewards"])
    env_kwargs = {name: x for name, x in config.env_kwargs.items() if name != "rewards"}
    config = replace(config, env_kwargs=env_kwargs, num_envs=256, seed=options.seed)
    with build_environment(config) as environment:
        agents = [build_agent(config, environment) for _ in range(4)]
        for agent in agents:
            load_weights(options.run_dir, agent, "last")
        settings = PopulationConfig(agents=len(agents), initial_spread=1.0)
        population = Population(agents, environment, config.training, settings, total_steps=10**9, seed=options.seed)
        for index, member in enumerate(population.members):
            rates = {"learning_rate": SABOTAGED.get(index, config.training.learning_rate)}
            member.adopt(member.hyperparameters._replace(rewards=rewards, rates=rates))
        left, begin = set(SABOTAGED), time.process_time()

        def tell(happened: Round) -> None:
            for evolution in happened.evolutions:
                made = evolution.copy
                (left.add if made.model in left else left.discard)(made.agent)
                print(
                    f"games {population.games_played}: agent {made.agent} copied {made.model} at P "
                    f"{made.win_probability:.2f}, learning rate {evolution.before.rates['learning_rate']:.2g} -> "
                    f"{evolution.after.rates['learning_rate']:.2g}; sabotaged are left {sorted(left)}",
                    flush=True,
                )

        population.run(tell, lambda: not left or population.games_played >= options.games)
    seconds = time.process_time() - begin
    print(
        f"seed {options.seed}: left {sorted(left)} after {population.games_played} games, {population.env_steps:,} "
        f"steps, {seconds:.0f} s, {population.env_steps / seconds:,.0f} steps/s; ratings "
        f"{[round(x) for x in population.ratings.tolist()]}"
    )


if __name__ == "__main__":
    main()
