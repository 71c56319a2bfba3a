"""Compares RL-LSTM's training with recurrent PPOs in JAX that are compiled whole, update by update, on the card game.

    pip install . jax optax memorax
    python benchmarks/against_jax.py [--peers jax memorax] [--rounds 9] [--num-envs 16 64 1024] [--hidden 256]
    python benchmarks/against_jax.py --learn 1e6 [--peers memorax]      does it learn? its return, as it trains

The two are the same agent: cards, position, last action and reward in one row, one LSTM, a tanh layer of 200 each for
policy and value on [row, h], windows of 16 steps, one pass, PPO's loss on generalised advantages, Adam, gradients
clipped by their norm. In JAX the game, acting, learning and the loop over windows are one compiled program, as in
PureJaxRL. memorax's PPO is built with an LSTM and such a layer for its policy, and another of both for its value; the
game, the window, the losses and the rate are the same. The processes take turns, each doing windows for about as long;
counted are CPU seconds of all threads, of which each has one. Compiling is told apart.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAIRS, WINDOW, HEAD = 3, 16, 200
DISCOUNT, LAMBDA, ENTROPY_COST, VALUE_COST, RATE, MAX_NORM = 0.96, 0.9, 0.02, 0.5, 2e-3, 10.0
"""Of RL-LSTM's preset for the game, as is HEAD."""
SECONDS = 1.0
"""Of a turn, about."""


def card_game(num_envs: int, pairs: int) -> tuple[Callable, Callable, Callable]:
    """Return what begins games, what flips a card in each, and what makes rows of sight, last action and reward."""
    import jax.numpy as jnp
    from jax import nn, random

    cards = 2 * pairs

    def reset(key):
        faces = jnp.argsort(random.uniform(key, (num_envs, cards)), axis=1) // 2 + 1
        card, position = jnp.zeros((2, num_envs), jnp.int32)
        return {"faces": faces, "gone": jnp.zeros((num_envs, pairs + 1), bool), "card": card, "position": position}

    def step(game, action):
        face = jnp.take_along_axis(game["faces"], action[:, None], 1)[:, 0]
        card = jnp.where(jnp.take_along_axis(game["gone"], face[:, None], 1)[:, 0], 0, face)
        position = action + 1
        match = (card == game["card"]) & (position != game["position"]) & (card != 0)
        gone = game["gone"] | (nn.one_hot(face, pairs + 1, dtype=bool) & match[:, None])
        return game | {"gone": gone, "card": card, "position": position}, match.astype(jnp.float32)

    def encode(game, action, reward):
        parts = nn.one_hot(game["card"], pairs + 1), nn.one_hot(game["position"], cards + 1), action, reward[:, None]
        return jnp.concatenate(parts, 1)

    return reset, step, encode


def jax_trainer(num_envs: int, hidden: int, pairs: int, total_steps: float = math.inf) -> Callable[[int], float]:
    """Return what trains for so many windows and returns the mean return of the last episodes."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax import lax, nn, random

    cards, length = 2 * pairs, 3 * pairs
    reset, step, encode = card_game(num_envs, pairs)
    size = (pairs + 1) + (cards + 1) + cards + 1

    def linear(key, inputs, outputs, gain=1.0):
        bound = gain / math.sqrt(inputs)
        return {"w": random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound), "b": jnp.zeros(outputs)}

    def init(key):
        keys = random.split(key, 5)
        return {
            "lstm": linear(keys[0], size + hidden, 4 * hidden),
            "policy": [linear(keys[1], size + hidden, HEAD), linear(keys[2], HEAD, cards, 0.1)],
            "value": [linear(keys[3], size + hidden, HEAD), linear(keys[4], HEAD, 1)],
        }

    def apply(layer, x):
        return x @ layer["w"] + layer["b"]

    def cell(parameters, state, row, is_first):
        h, c = (jnp.where(is_first, 0.0, x) for x in state)
        i, f, g, o = jnp.split(apply(parameters["lstm"], jnp.concatenate([row, h], 1)), 4, axis=1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def heads(parameters, row, h):
        x = jnp.concatenate([row, h], -1)
        logits, value = (
            apply(parameters[name][1], jnp.tanh(apply(parameters[name][0], x))) for name in ("policy", "value")
        )
        return nn.log_softmax(logits), value[..., 0]

    def act(parameters, carry, key):
        game, row, state, flip = carry
        is_first = flip == 0
        state, h = cell(parameters, state, row, is_first)
        log_pi, value = heads(parameters, row, h)
        action = random.categorical(key, log_pi)
        log_prob = jnp.take_along_axis(log_pi, action[:, None], 1)[:, 0]
        game, reward = step(game, action)
        is_end = flip + 1 == length
        new = reset(random.fold_in(key, 1))
        game = jax.tree.map(lambda fresh, now: jnp.where(is_end, fresh, now), new, game)
        kept = 1.0 - is_end
        seen = encode(game, nn.one_hot(action, cards) * kept, reward * kept)
        flip = jnp.where(is_end, 0, flip + 1)
        return (game, seen, state, flip), (row, is_first, action, log_prob, value, reward, is_end)

    def loss_of(parameters, state, seen, scale):
        rows, is_first, actions, behaviour, values, rewards, is_end, last_value = seen
        _, h = lax.scan(lambda s, x: cell(parameters, s, *x), state, (rows, is_first))
        log_pi, value = heads(parameters, rows, h)
        discount = DISCOUNT * (1.0 - is_end)[:, None]
        following = jnp.concatenate([values[1:], last_value[None]])
        errors = rewards + discount * following - values
        back = partial(lax.scan, reverse=True)
        _, advantages = back(lambda a, x: (x[0] + LAMBDA * x[1] * a,) * 2, jnp.zeros(num_envs), (errors, discount))
        _, returns = back(lambda r, x: (x[0] + x[1] * r,) * 2, last_value, (rewards, discount))
        log_prob = jnp.take_along_axis(log_pi, actions[..., None], -1)[..., 0]
        ratio = jnp.exp(log_prob - behaviour)
        surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
        entropy = -(jnp.exp(log_pi) * log_pi).sum(-1)
        critic = 0.5 * (returns - value) ** 2
        return (-surrogate - ENTROPY_COST * scale * entropy + VALUE_COST * critic).mean()

    def falling(windows):
        return 1.0 - 0.9 * jnp.minimum(1.0, windows * WINDOW * num_envs / total_steps)

    optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adam(lambda n: RATE * falling(n)))

    def window(carry, key):
        parameters, moments, player, count = carry
        state = player[2]
        player, seen = lax.scan(partial(act, parameters), player, random.split(key, WINDOW))
        _, h = cell(parameters, player[2], player[1], player[3] == 0)
        last_value = heads(parameters, player[1], h)[1]
        gradient = jax.grad(loss_of)(parameters, state, (*seen, last_value), falling(count))
        updates, moments = optimizer.update(gradient, moments)
        earned = seen[5].mean() * length
        return (optax.apply_updates(parameters, updates), moments, player, count + 1), earned

    run = jax.jit(lambda carry, keys: lax.scan(window, carry, keys), donate_argnums=0)
    key = random.key(0)
    parameters = init(key)
    game, state = reset(key), tuple(jnp.zeros((2, num_envs, hidden)))
    first = encode(game, jnp.zeros((num_envs, cards)), jnp.zeros(num_envs))
    player = game, first, state, jnp.zeros((), jnp.int32)
    carry = parameters, optimizer.init(parameters), player, jnp.zeros((), jnp.int32)

    def train(windows: int) -> float:
        nonlocal carry, key
        key, now = random.split(key)
        carry, earned = run(carry, random.split(now, windows))
        return float(earned[-50:].mean())

    return train


def memorax_trainer(num_envs: int, hidden: int, pairs: int, total_steps: float = math.inf) -> Callable[[int], float]:
    """Return what trains memorax's PPO for so many windows and returns the mean return of the last episodes."""
    import flax.linen as flax
    import jax
    import jax.numpy as jnp
    import optax
    from gymnax.environments.spaces import Discrete
    from jax import nn, random
    from memorax.algorithms import PPO, PPOConfig
    from memorax.networks import RNN, FeatureExtractor, Network, Stack, heads

    cards, length = 2 * pairs, 3 * pairs
    reset, step, _ = card_game(1, pairs)

    class Game:
        """One game, as gymnax has it: another begins where it ends."""

        def action_space(self, params):
            return Discrete(cards)

        def seen(self, game):
            return jnp.concatenate([nn.one_hot(game["card"][0], pairs + 1), nn.one_hot(game["position"][0], cards + 1)])

        def reset(self, key, params):
            game = reset(key) | {"flip": jnp.zeros((), jnp.int32)}
            return self.seen(game), game

        def step(self, key, state, action, params):
            game, reward = step({name: x for name, x in state.items() if name != "flip"}, action[None])
            is_end = state["flip"] + 1 == length
            following = jax.tree.map(
                lambda new, now: jnp.where(is_end, new, now),
                self.reset(key, params)[1],
                game | {"flip": state["flip"] + 1},
            )
            return self.seen(following), following, reward[0], is_end, {}

    class Layer(flax.Module):
        @flax.compact
        def __call__(self, inputs, mask=None, initial_carry=None, **_):
            return None, nn.tanh(flax.Dense(HEAD)(inputs))

        @flax.nowrap
        def initialize_carry(self, key, input_shape):
            return None

    def network(head):
        seen = FeatureExtractor(lambda x: x, lambda action: nn.one_hot(action, cards), lambda reward: reward)
        return Network(seen, Stack((RNN(flax.OptimizedLSTMCell(hidden)), Layer())), head)

    config = PPOConfig(
        name="PPO",
        num_envs=num_envs,
        num_eval_envs=1,
        num_steps=WINDOW,
        gamma=DISCOUNT,
        gae_lambda=LAMBDA,
        num_minibatches=1,
        update_epochs=1,
        normalize_advantage=False,
        clip_coef=0.2,
        clip_vloss=False,
        ent_coef=ENTROPY_COST,
        vf_coef=VALUE_COST,
    )
    rate = (
        optax.linear_schedule(RATE, RATE / 10, math.ceil(total_steps / WINDOW / num_envs))
        if total_steps < math.inf
        else RATE
    )
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adam(rate))
    policy, value = network(heads.Categorical(cards)), network(heads.VNetwork())
    agent = PPO(config, Game(), None, policy, value, optimizer, optimizer)
    key, state = agent.init(random.key(0))

    def train(windows: int) -> float:
        nonlocal key, state
        key, state, transitions = agent.train(key, state, windows * WINDOW * num_envs)
        return float(transitions.reward[-50 * WINDOW * num_envs :].mean() * length)

    return train


def our_trainer(num_envs: int, hidden: int, pairs: int) -> Callable[[int], None]:
    """Return what trains RL-LSTM for so many windows."""
    from dataclasses import replace

    import torch

    from merlin import Trainer, build_agent, build_environment, preset

    torch.set_num_threads(1)
    config = preset("rl-lstm", "merlin/MemoryGame-v0", {"pairs": pairs})
    assert (config.training.unroll_length, config.model.head_size) == (WINDOW, HEAD), "as in JAX"
    model = replace(config.model, hidden_size=hidden, num_layers=1)
    config = replace(config, num_envs=num_envs, device="cpu", model=model)
    environment = build_environment(config).__enter__()
    trainer = Trainer(build_agent(config, environment), environment, config.training, total_steps=10**12, seed=1)

    def train(windows: int) -> None:
        for _ in range(windows):
            trainer.update()

    return train


TRAINERS = {"ours": our_trainer, "jax": jax_trainer, "memorax": memorax_trainer}


def serve(kind: str, num_envs: int, hidden: int) -> None:
    """Do as many windows as a line says, and print what they cost."""
    begin = time.process_time()
    train = TRAINERS[kind](num_envs, hidden, PAIRS)
    train(2)
    print(time.process_time() - begin, flush=True)
    for line in sys.stdin:
        begin = time.process_time()
        train(int(line))
        print(time.process_time() - begin, flush=True)


def start(kind: str, num_envs: int, hidden: int) -> subprocess.Popen:
    one = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    one["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    command = [sys.executable, __file__, "--serve", json.dumps([kind, num_envs, hidden])]
    return subprocess.Popen(command, env=os.environ | one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen, windows: int) -> float:
    process.stdin.write(f"{windows}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[16, 64, 1024])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--peers", nargs="+", choices=("jax", "memorax"), default=["jax", "memorax"])
    parser.add_argument("--learn", type=float, metavar="STEPS", help="train the peers alone, with 128 environments")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if options.learn:
        per_part = round(options.learn / 10 / WINDOW / 128)
        for peer in options.peers:
            train = TRAINERS[peer](128, options.hidden, PAIRS, options.learn)
            for part in range(1, 11):
                print(f"{peer}{part * per_part * WINDOW * 128:>12,} steps  return {train(per_part):.2f}", flush=True)
        return
    print(f"RL-LSTM {options.hidden} on the card game of {PAIRS} pairs: environment steps per CPU second, medians")
    print("environments      ours   peer           its   ours / its (quartiles)   it compiles")
    for num_envs in options.num_envs:
        kinds = ("ours", *options.peers)
        processes = {kind: start(kind, num_envs, options.hidden) for kind in kinds}
        ready = {kind: float(process.stdout.readline()) for kind, process in processes.items()}
        windows, rates = {}, {kind: [] for kind in kinds}
        for kind, process in processes.items():
            ask(process, 20)
            windows[kind] = max(1, round(20 * SECONDS / ask(process, 20)))
            ask(process, windows[kind])  # of another length: compiled again
        for index in range(options.rounds):
            for kind in kinds[:: -1 if index % 2 else 1]:
                rates[kind].append(windows[kind] * WINDOW * num_envs / ask(processes[kind], windows[kind]))
        for process in processes.values():
            process.stdin.close()
            process.wait()
        for peer in options.peers:
            low, middle, high = statistics.quantiles(
                (a / b for a, b in zip(rates["ours"], rates[peer], strict=True)), n=4
            )
            ours, theirs = (statistics.median(rates[kind]) for kind in ("ours", peer))
            print(
                f"{num_envs:>12,} {ours:>9,.0f}   {peer:<8}{theirs:>10,.0f}   {middle:.2f} ({low:.2f} to {high:.2f})"
                f"{ready[peer]:>20.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
