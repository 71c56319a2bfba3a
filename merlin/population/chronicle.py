"""What is told of a population while it trains."""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from merlin.errors import obstacle
from merlin.population.directory import AGENTS, JOURNAL, PICTURE, agent_dir, open_journal, whole_config
from merlin.population.evolution import Hyperparameters
from merlin.population.population import Evolution, Population, PopulationConfig, Round
from merlin.runs.agent_spaces import to_config
from merlin.runs.directory import write_config
from merlin.runs.metrics import Means
from merlin.runs.presets import RunConfig
from merlin.runs.reporting import Reporter
from merlin.runs.settings import to_dict
from merlin.runs.trackers import TensorBoard, Trackers, Tracks
from merlin.runs.tracking import Tracker
from merlin.training import checkpoint


class Chronicle:
    """Follows a population: reports, its journal, checkpoints, the agents' own directories.

    Args:
        configs: Of each agent.
        offset: What is added to a monotonic clock to give the run's training time.
        saved: `state_dict` of the chronicle to go on from.
        stack: Closes what it opens.
    """

    def __init__(
        self,
        configs: list[RunConfig],
        run_dir: Path,
        population: Population,
        offset: float,
        stream: TextIOBase | TextIO | None,
        saved: Mapping[str, Any] | None,
        stack: ExitStack,
    ) -> None:
        self.configs, self.run_dir, self.population, self.offset = configs, run_dir, population, offset
        config, steps = configs[0], population.total_steps
        self.report_steps = config.training.report_steps or min(max(1, steps // 100), 50_000)
        self.last_return, self.best_agent, self.num_evolutions = math.nan, 0, 0
        self.reported = (0, 0.0, 0)  # steps, wall seconds, games
        self.own_steps = [0] * len(configs)
        if saved is not None:
            self.reported, self.num_evolutions = tuple(saved["reported"]), saved["num_evolutions"]
            self.own_steps = list(saved["own_steps"])
        env_steps = population.env_steps
        self.reporter = stack.enter_context(Reporter(run_dir, steps, env_steps, stream, self.reported[0]))
        silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        self.reporters = []
        for index, (own, member) in enumerate(zip(configs, population.members, strict=True)):
            directory = agent_dir(run_dir, index)
            directory.mkdir(parents=True, exist_ok=True)
            reporter = Reporter(directory, own.steps, member.env_steps, silent, self.own_steps[index])
            self.reporters.append(stack.enter_context(reporter))
        self.journal = stack.enter_context(open_journal(run_dir / JOURNAL, env_steps))
        if not self.journal.tell():
            begin = [self._flat(member.hyperparameters) for member in population.members]
            self._write("start", {"hyperparameters": begin})
        self.tracker = Trackers([])
        stack.callback(lambda: self.tracker.close(1))  # unless it was closed already
        self.saved_at = time.monotonic()
        self._clear()
        if saved is not None:
            self._resume(saved)
        self.note = self.reporter.note
        self._write_configs()
        self.reporter.break_silence(lambda: f"env_steps {population.env_steps:,} of {steps:,}")

    def track(self, wandb: str, tensorboard: bool, config: RunConfig, population: PopulationConfig) -> None:
        """Tell trackers what is reported from here on."""
        values = whole_config(config, population)
        trackers: list[Tracks] = [TensorBoard(self.run_dir, values, self.reported[0])] if tensorboard else []
        trackers.append(Tracker(wandb, self.run_dir, values, self.run_dir.name, config.task, note=self.note))
        self.tracker = Trackers(trackers)

    def wall_seconds(self) -> float:
        """Return the run's training time, that of earlier sessions included."""
        return time.monotonic() + self.offset

    def _clear(self) -> None:
        self.means: dict[int, Means] = defaultdict(Means)
        self.episodes: dict[int, list[tuple[list[float], list[float], list[float]]]] = defaultdict(list)
        self.draws, self.rated = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen since the last report, and what the next ones go on from."""
        return {
            "reported": list(self.reported),
            "num_evolutions": self.num_evolutions,
            "own_steps": self.own_steps,
            "means": {str(index): means.state_dict() for index, means in self.means.items()},
            "episodes": {str(index): [list(x) for x in parts] for index, parts in self.episodes.items()},
            "draws": self.draws,
            "rated": self.rated,
        }

    def _resume(self, saved: Mapping[str, Any]) -> None:
        if "means" in saved:
            means = saved["means"]
        else:  # version 0.3.0 and before had their parts apart
            means = {i: {"sums": sums, "windows": saved["windows"][i]} for i, sums in saved["sums"].items()}
        for index, state in means.items():
            self.means[int(index)].load_state_dict(state, self.population.environment.device)
        self.episodes.update({int(index): list(map(tuple, parts)) for index, parts in saved["episodes"].items()})
        self.draws, self.rated = saved["draws"], saved["rated"]

    def report(self, happened: Round) -> None:
        """Take in one window; report and save when it is time."""
        for index, losses in happened.losses.items():
            self.means[index].add(losses)
        for index in happened.diverged:
            rate = self.population.members[index].hyperparameters.rates["learning_rate"]
            self.reporter.warn_once(
                f"diverged {index}",
                f"agent {index} has gradients that are not finite, at a learning rate of {rate:.2g}: it learns nothing "
                "of such windows, until it copies another agent",
            )
        for index, ended in happened.episodes.items():
            if len(ended.returns):
                columns = (ended.returns, ended.lengths, ended.successes)
                self.episodes[index].append(tuple(x.tolist() for x in columns))  # pyright: ignore[reportArgumentType]
        self.draws += int((happened.results.scores == 0.5).sum())
        self.rated += len(happened.results.scores)
        if happened.frozen is not None:
            place, index = self.population.past[happened.frozen], len(self.configs) + happened.frozen
            row = {"place": happened.frozen, "agent": place.of, "rating": float(self.population.ratings[index])}
            self._write("past", row)
        for evolution in happened.evolutions:
            self.num_evolutions += 1
            self._write("evolution", self._evolution_row(evolution))
            made = evolution.copy
            self.note(
                f"agent {made.agent} became a copy of agent {made.model}, which it would have beaten with a "
                f"probability of {made.win_probability:.2f}"
            )
        if len(happened.seats):
            seats = torch.bincount(happened.seats.flatten(), minlength=len(self.population.participants))
            self._write("deal", {"games": len(happened.seats), "seats": seats.tolist()})
        steps = self.population.env_steps
        if steps >= min((self.reported[0] // self.report_steps + 1) * self.report_steps, self.population.total_steps):
            self._report()

    @property
    def is_to_save(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self.saved_at >= self.population.training.checkpoint_seconds

    def _report(self, is_due: bool = True) -> None:
        """Report; one that is not due is not in the journal, as a run that goes on reports again when it is."""
        population, ratings = self.population, self.population.ratings[: len(self.configs)]
        now, (steps, seconds, games) = self.wall_seconds(), self.reported
        elapsed = max(now - seconds, 1e-9)
        own = [self._own_metrics(index, now, elapsed) for index in range(len(self.configs))]
        best = self.best_agent = int(ratings.argmax())
        self.last_return = own[best].get("episode_return_mean", math.nan)
        row = {
            "env_steps": population.env_steps,
            "wall_seconds": now,
            "env_steps_per_second": (population.env_steps - steps) / elapsed,
            "games": population.games_played,
            "games_since_report": population.games_played - games,
            "draw_rate": self.draws / self.rated if self.rated else math.nan,
            "rating_best": float(ratings.max()),
            "rating_mean": float(ratings.mean()),
            "rating_worst": float(ratings.min()),
            "best_agent": best,
            "evolutions": self.num_evolutions,
            **{f"{name}_seconds": total for name, total in population.seconds.items()},
        }
        self.reporter.report(row)
        if is_due:
            self._write("ratings", self._ratings())
        for index, (reporter, metrics) in enumerate(zip(self.reporters, own, strict=True)):
            reporter.report(metrics)
            row |= {f"{AGENTS}/{index:02d}/{name}": value for name, value in metrics.items()}
        self.tracker.log(row, population.env_steps)
        self.reported = (population.env_steps, now, population.games_played)
        self.own_steps = [member.env_steps for member in population.members]
        self._clear()

    def _ratings(self) -> dict[str, Any]:
        """Return all ratings; among those of agents, that of bots is the last."""
        population, rounded = self.population, [round(x, 2) for x in self.population.ratings.tolist()]
        count, end = len(self.configs), len(population.participants)
        past = [
            {"agent": who.of, "env_steps": who.env_steps, "rating": rating}
            for who, rating in zip(population.past, rounded[count:end], strict=True)
            if who.of is not None
        ]
        row = {"ratings": rounded[:count] + rounded[end:], "games": list(population.games)}
        return row | ({"past": past} if past else {})

    def _own_metrics(self, index: int, now: float, elapsed: float) -> dict[str, int | float]:
        """Return the row of an agent's own metrics."""
        member, parts = self.population.members[index], self.episodes[index]
        columns = [[x for part in parts for x in part[column]] for column in range(3)]
        returns, lengths, successes = (torch.tensor(x, dtype=torch.float64) for x in columns)
        metrics = self.means[index].means() | {
            "env_steps": member.env_steps,
            "wall_seconds": now,
            "env_steps_per_second": (member.env_steps - self.own_steps[index]) / elapsed,
            "episode_return_mean": returns.mean().item(),
            "episode_return_std": returns.std(correction=0).item() if len(returns) else math.nan,
            "episode_length_mean": lengths.mean().item(),
            "episodes": len(returns),
            "rating": float(self.population.ratings[index]),
        }
        if len(successes) and not successes.isnan().all():
            metrics["success_rate"] = successes.nan_to_num(0.0).mean().item()
        return metrics | self._flat(member.hyperparameters)

    def finish(self, state: Mapping[str, Any]) -> None:
        """Report what was not reported yet, and write a checkpoint, which goes on as if that had not been."""
        saved = self.state_dict()
        if self.rated or self.means:
            self._report(is_due=False)
        self.save(state, saved)
        from merlin.population.figures import plot_population  # matplotlib takes a second to import

        try:
            plot_population(self.run_dir / JOURNAL, self.run_dir / PICTURE, env_steps=self.population.env_steps)
            self.tracker.log_media(self.run_dir / PICTURE, "population")
        except OSError as error:  # all is finished and saved, but the disk is full
            self.note(f"{self.run_dir / PICTURE} could not be drawn: {obstacle(error)}")

    def save(self, state: Mapping[str, Any], chronicle: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint of all, then the agents' own.

        Args:
            state: The population's `state_dict`.
        """
        population = self.population
        rest = {
            "population": state,
            "wall_seconds": self.wall_seconds(),
            "chronicle": chronicle or self.state_dict(),
        }
        checkpoint.save(self.run_dir, population.env_steps, all_weights(population), rest)
        self._write_configs()
        for index, member in enumerate(population.members):
            about = {"config": json.dumps(to_dict(self._own_config(index)) | to_config(population.environment))}
            directory, alone = agent_dir(self.run_dir, index), {"wall_seconds": self.wall_seconds()}
            checkpoint.save(directory, population.env_steps, member.agent, alone, keep=1, about=about)
        self.saved_at = time.monotonic()

    def _write_configs(self) -> None:
        for index in range(len(self.configs)):
            write_config(
                self._own_config(index), agent_dir(self.run_dir, index), to_config(self.population.environment)
            )

    def _own_config(self, index: int) -> RunConfig:
        """Return the configuration of an agent as it is now: what else plays with it needs it too.

        Internal rewards are settings of the task there, as the agent sees them.
        """
        config, member = self.configs[index], self.population.members[index]
        training = replace(config.training, **member.hyperparameters.rates)
        env_kwargs, rewards = config.env_kwargs, member.hyperparameters.rewards
        if rewards is not None:
            env_kwargs = env_kwargs | {"rewards": list(rewards)}
        return replace(config, model=member.agent.config, training=training, env_kwargs=env_kwargs)

    def _write(self, kind: str, row: Mapping[str, Any]) -> None:
        line = json.dumps({"env_steps": self.population.env_steps, "kind": kind, **row})
        self.journal.write(f"{line}\n")
        self.journal.flush()

    def _evolution_row(self, evolution: Evolution) -> dict[str, Any]:
        made = evolution.copy
        before, after = self._flat(evolution.before), self._flat(evolution.after)
        return {
            "agent": made.agent,
            "copied": made.model,
            "win_probability": made.win_probability,
            "before": before | {"rating": evolution.rating_before},
            "after": after | {"rating": evolution.rating_after},
        }

    def _flat(self, settings: Hyperparameters) -> dict[str, int | float]:
        """Return hyperparameters by name, rewards by the names of events or by their numbers."""
        weights = settings.rewards or ()
        names: Sequence[str] = self.population.environment.event_names
        if len(names) != len(weights):
            names = [f"{index:02d}" for index in range(len(weights))]
        rewards = {f"reward_{name}": x for name, x in zip(names, weights, strict=True)}
        ticks = {} if settings.tick_steps is None else {"tick_steps": settings.tick_steps}
        return {**settings.rates, **settings.costs, **ticks, **rewards}


def all_weights(population: Population) -> nn.Module:
    """Return the networks of agents and of past selves."""
    return nn.ModuleList([participant.agent for participant in population.participants])
