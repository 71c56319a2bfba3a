"""Gradient estimators of discrete latents, measured: bias and variance, a VAE and structured prediction on digits.

    pip install '.[digits]'
    python examples/estimators.py [--only bias vae prediction] [--seeds 1 2 3] [--steps 2500] [--out runs/estimators]

`bias` compares each estimator with the exact gradient, by enumeration of two variables of three classes, 200,000 draws.
`vae` trains 64 pixels - 4 variables of 4 classes - 64 pixels, both maps linear, with a learnt prior. Its 256 states can
be enumerated, so that the exact gradient is the floor, and what is told, -ELBO and -log p(x) in nats of held-out
digits, is exact. `prediction` tells the lower half of a digit from its upper half by way of two layers of 4 variables
of 8 classes, one draw in training, 100 in the test. Digits are scikit-learn's: 1,797 of 8 x 8 pixels, black from 8 of
16 on.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from merlin.latents import OneHots, gumbel, gumbel_rao, highest, kl_nats
from merlin.objectives.estimators import (
    SAMPLERS,
    Exponential,
    LeaveOneOutBaseline,
    MovingMeanBaseline,
    reinforce,
)

TASKS = ["bias", "vae", "prediction"]
DRAWS, TRAINED = 200_000, 1400
ANNEALED = Exponential(1.0, 4e-4, 0.5)
ESTIMATORS = {
    "REINFORCE, moving mean": ("score", 1),
    "REINFORCE, 4 draws, leave one out": ("score", 4),
    "straight-through": ("straight_through", 1),
    "Gumbel-softmax": ("gumbel_softmax", 1),
    "ST-Gumbel": ("st_gumbel", 1),
    "Gumbel-Rao, 10 draws": ("gumbel_rao", 1),
    "ReinMax": ("reinmax", 1),
}
"""The name of a sampler, or "score"; and draws for each digit."""


def sample(name: str, logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Return one-hots, or what is between them, with an estimator's gradient."""
    noise = gumbel(tuple(logits.shape), logits, generator)
    if name == "score":
        return highest(logits.detach() + noise)
    if name == "gumbel_rao":
        return gumbel_rao(logits, noise, 0.5, generator=generator)
    return SAMPLERS[name](logits, noise, 1.0 if name in ("straight_through", "reinmax") else temperature)


# Bias and variance


def measure_bias() -> list[dict]:
    """Return the relative bias and the relative standard deviation of each estimator's gradient, by cost."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    theta, linear, square, hidden, out = draw(2, 3), draw(6), draw(6, 6), draw(6, 8), draw(8)
    costs = {
        "linear": lambda d: d.flatten(-2) @ linear,
        "quadratic": lambda d: ((d.flatten(-2) @ square) * d.flatten(-2)).sum(-1),
        "network": lambda d: torch.tanh(d.flatten(-2) @ hidden) @ out,
    }
    rows: list[tuple[str, str, float, int]] = [
        ("REINFORCE, mean baseline", "score", 1.0, 1),
        ("straight-through", "straight_through", 1.0, 1),
        *((f"Gumbel-softmax, τ {t:g}", "gumbel_softmax", t, 1) for t in (1.0, 0.5)),
        *((f"ST-Gumbel, τ {t:g}", "st_gumbel", t, 1) for t in (1.0, 0.5, 0.1)),
        ("Gumbel-Rao, 10 draws, τ 0.5", "gumbel_rao", 0.5, 10),
        ("Gumbel-Rao, 100 draws, τ 0.1", "gumbel_rao", 0.1, 100),
        ("ReinMax, τ 1", "reinmax", 1.0, 1),
    ]
    return [
        {"estimator": label} | {cost: relative_errors(f, theta, name, temperature, inner) for cost, f in costs.items()}
        for label, name, temperature, inner in rows
    ]


def relative_errors(
    cost: Callable[[Tensor], Tensor], theta: Tensor, name: str, temperature: float, inner: int
) -> list[float]:
    """Return an estimator's bias and standard deviation, by the length of the exact gradient."""
    eye, leaf = torch.eye(3, dtype=torch.float64), theta.clone().requires_grad_()
    states = torch.stack([eye[list(classes)] for classes in itertools.product(range(3), repeat=2)])
    probs = (leaf.softmax(-1) * states).sum(-1).prod(-1)
    (exact,) = torch.autograd.grad(probs @ cost(states), leaf)
    generator, parts, rows = torch.Generator().manual_seed(1), [], 20_000
    for _ in range(DRAWS // rows):
        expanded = theta.expand(rows, 2, 3).clone().requires_grad_()
        noise = gumbel((rows, 2, 3), theta, generator)
        if name == "score":
            one_hots = highest(theta + noise)
            costs = cost(one_hots)
            log_prob = OneHots(expanded).log_prob(one_hots.flatten(-2))
            total = reinforce(log_prob, costs, (probs @ cost(states)).detach()).sum()
        elif name == "gumbel_rao":
            total = cost(gumbel_rao(expanded, noise, temperature, inner, generator)).sum()
        else:
            total = cost(SAMPLERS[name](expanded, noise, temperature)).sum()
        parts.append(torch.autograd.grad(total, expanded)[0])
    gradients = torch.cat(parts)
    bias, spread = (gradients.mean(0) - exact).norm(), gradients.var(0).sum().sqrt()
    return [float(bias / exact.norm()), float(spread / exact.norm())]


# A VAE whose states can be enumerated


class VAE(nn.Module):
    """Pixels to logits of 4 variables of 4 classes, these to pixels, and a prior, all linear."""

    groups, classes = 4, 4

    def __init__(self) -> None:
        super().__init__()
        size = self.groups * self.classes
        self.encoder, self.decoder = nn.Linear(64, size), nn.Linear(size, 64)
        self.prior = nn.Parameter(torch.zeros(self.groups, self.classes))
        eye = torch.eye(self.classes)
        codes = [eye[list(classes)] for classes in itertools.product(range(self.classes), repeat=self.groups)]
        self.states = torch.stack(codes).flatten(1)

    def posterior(self, x: Tensor) -> OneHots:
        return OneHots(self.encoder(x).unflatten(-1, (self.groups, self.classes)))

    def nats(self, code: Tensor, x: Tensor) -> Tensor:
        return pixel_nats(self.decoder(code), x)

    def loss(self, x: Tensor, name: str, draws: int, baseline: nn.Module, temperature: float, generator) -> Tensor:
        """Return −ELBO with an estimator's gradient; the KL is exact."""
        posterior = self.posterior(x)
        if name == "exact":
            return self.exact(x)[0].mean()
        logits = posterior.logits.expand(draws, *posterior.logits.shape)
        code = sample(name, logits, temperature, generator).flatten(-2)
        cost = self.nats(code, x)
        if name == "score":
            cost = reinforce(OneHots(logits).log_prob(code), cost, baseline(cost))
        return (cost + kl_nats(posterior, OneHots(self.prior))).mean()

    def exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return −ELBO and −log p(x) of each digit, over all states."""
        posterior = self.posterior(x)
        log_q = posterior.log_probs.flatten(-2) @ self.states.T
        log_prior = OneHots(self.prior).log_probs.flatten() @ self.states.T
        nats = self.nats(self.states.unsqueeze(1), x).T
        elbo = (log_q.exp() * nats).sum(-1) + kl_nats(posterior, OneHots(self.prior))
        return elbo, -(log_prior - nats).logsumexp(-1)


class Prediction(nn.Module):
    """The lower half of a digit, of its upper half by way of two layers of 4 variables of 8 classes."""

    groups, classes = 4, 8

    def __init__(self) -> None:
        super().__init__()
        size = self.groups * self.classes
        self.layers = nn.ModuleList([nn.Linear(32, size), nn.Linear(size, size)])
        self.decoder = nn.Linear(size, 32)

    def draw(self, x: Tensor, name: str, temperature: float, generator) -> tuple[Tensor, Tensor]:
        """Return the nats of the lower half, and the log-probability of what was drawn."""
        code, log_prob = x[..., :32], 0.0
        for layer in self.layers:
            logits = layer(code).unflatten(-1, (self.groups, self.classes))
            code = sample(name, logits, temperature, generator).flatten(-2)
            log_prob = log_prob + OneHots(logits).log_prob(code.detach())
        return pixel_nats(self.decoder(code), x[..., 32:]), log_prob

    def loss(self, x: Tensor, name: str, draws: int, baseline: nn.Module, temperature: float, generator) -> Tensor:
        cost, log_prob = self.draw(x.expand(draws, *x.shape), name, temperature, generator)
        return (reinforce(log_prob, cost, baseline(cost)) if name == "score" else cost).mean()

    def test_nats(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return −log of the mean probability of the lower half over 100 draws, which are one-hot."""
        nats, _ = self.draw(x.expand(100, *x.shape), "score", 1.0, generator)
        return math.log(100) - (-nats).logsumexp(0)


def pixel_nats(logits: Tensor, x: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(logits.shape, x.shape)
    return binary_cross_entropy_with_logits(logits.expand(shape), x.expand(shape), reduction="none").sum(-1)


def digits() -> Tensor:
    """Return the digits' pixels, 0 or 1, in an order that never changes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("The digits are scikit-learn's, which is not installed: pip install '.[digits]'") from None
    pixels = torch.tensor(load_digits().data >= 8, dtype=torch.float32)
    return pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]


def train(make: Callable[[], nn.Module], name: str, draws: int, rate: float, seed: int, steps: int) -> dict:
    """Train, and return held-out nats every 100 steps and the seconds of a step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, model = digits(), make()
    train_set, test_set = data[:TRAINED], data[TRAINED:]
    baseline = LeaveOneOutBaseline() if draws > 1 else MovingMeanBaseline()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    curve, seconds = [], 0.0
    for step in range(steps + 1):
        if step % 100 == 0:
            with torch.no_grad():
                found = model.exact(test_set) if isinstance(model, VAE) else (model.test_nats(test_set, generator),)
                curve.append([step, *(float(x.mean()) for x in found)])
        begin = time.process_time()
        batch = train_set[torch.randint(TRAINED, (100,), generator=generator)]
        optimizer.zero_grad()
        model.loss(batch, name, draws, baseline, ANNEALED(step), generator).backward()
        optimizer.step()
        seconds += time.process_time() - begin
    return {"curve": curve, "ms": 1e3 * seconds / (steps + 1)}


def compare(task: str, seeds: list[int], steps: int) -> list[dict]:
    """Train every estimator with the better of two rates, of which seed 0 tells, and return what came of it."""
    make = VAE if task == "vae" else Prediction
    rows = []
    for label, (name, draws) in (ESTIMATORS | ({"exact gradient": ("exact", 1)} if make is VAE else {})).items():
        tried = {rate: train(make, name, draws, rate, 0, steps)["curve"][-1][1] for rate in (3e-3, 1e-2)}
        rate = min(tried, key=lambda x: tried[x])
        runs = [train(make, name, draws, rate, seed, steps) for seed in seeds]
        row = {"estimator": label, "rate": rate, "ms": statistics.median(run["ms"] for run in runs)}
        row["curves"] = [run["curve"] for run in runs]
        rows.append(row)
        ends = " ".join(f"{run['curve'][-1][1]:.2f}" for run in runs)
        print(f"  {label:36} {ends}", flush=True)
    return rows


def table(task: str, rows: list[dict]) -> str:
    """Return a table in Markdown."""
    if task == "bias":
        costs = [name for name in rows[0] if name != "estimator"]
        lines = [f"| estimator | {' | '.join(costs)} |", "|---" * (len(costs) + 1) + "|"]
        cell = lambda pair: f"{pair[0]:.3f} / {pair[1]:.2f}"  # noqa: E731
        return "\n".join([*lines, *(f"| {r['estimator']} | {' | '.join(cell(r[c]) for c in costs)} |" for r in rows)])
    names = ("-ELBO", "-log p(x)") if task == "vae" else ("-log p(lower half)",)
    lines = [f"| estimator | {' | '.join(names)} | rate | ms a step |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        cells = []
        for entry in range(1, len(names) + 1):
            ends = [curve[-1][entry] for curve in row["curves"]]
            cells.append(f"{statistics.fmean(ends):.2f} ({min(ends):.2f} to {max(ends):.2f})")
        lines.append(f"| {row['estimator']} | {' | '.join(cells)} | {row['rate']:g} | {row['ms']:.1f} |")
    return "\n".join(lines)


def plot(task: str, rows: list[dict], path: Path) -> None:
    """Draw held-out nats against steps, the mean over seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        steps = [point[0] for point in row["curves"][0]]
        means = [statistics.fmean(curve[i][1] for curve in row["curves"]) for i in range(len(steps))]
        axes.plot(steps, means, label=row["estimator"], color="black" if "exact" in row["estimator"] else None)
    low = min(curve[-1][1] for row in rows for curve in row["curves"])
    axes.set(xlabel="updates", ylabel="held-out nats", ylim=(low - 0.3, low + 8), xlim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=Path("runs/estimators"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for task in options.only:
        print(f"{task}:", flush=True)
        rows = measure_bias() if task == "bias" else compare(task, options.seeds, options.steps)
        (options.out / f"{task}.json").write_text(json.dumps(rows))
        print(table(task, rows))
        if task != "bias":
            plot(task, rows, options.out / f"{task}.png")
            print(f"  {options.out / task}.png")


if __name__ == "__main__":
    main()
