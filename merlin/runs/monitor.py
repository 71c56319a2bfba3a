"""The monitor of a run: reports, checkpoints, evaluations, pictures."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merlin import distributed
from merlin.runs.presets import RunConfig
from merlin.runs.reporting import Reporter
from merlin.runs.tracking import Tracker
from merlin.training import checkpoint
from merlin.training.rollout import Episodes
from merlin.training.trainer import Trainer
from merlin.training.value_errors import explained

RECENT_EPISODES = 100
"""The best weights are those of the highest mean return in as many episodes, unless training is evaluated."""


class Monitor:
    """Follows the training loop: reports, checkpoints, the picture at the end.

    Where several processes train together, each has one: those without a reporter and a tracker hand in what they saw.

    Args:
        offset: What is added to a monotonic clock to give the run's training time.
        evaluate: Plays held-out episodes with the agent as it is, and returns what `merlin.training.evaluation` does.
        film: Films an episode of the run and returns the file, for Weights & Biases at the end; none leaves it out.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        trainer: Trainer,
        reporter: Reporter | None,
        tracker: Tracker | None,
        offset: float,
        evaluate: Callable[[], dict[str, Any]],
        film: Callable[[Path], Path] | None = None,
    ) -> None:
        self.config, self.run_dir, self.trainer = config, run_dir, trainer
        self.reporter, self.tracker, self.offset, self.evaluate, self.film = reporter, tracker, offset, evaluate, film
        self.last_return = math.nan
        self.best = -math.inf if (best := checkpoint.read_best(run_dir)) is None else best.score
        # About a hundred reports, 10,000 steps each for a million, but more of a run too long to wait for the first.
        self.report_steps = config.training.report_steps or min(max(1, config.steps // 100), 50_000)
        self.next_report = _next(self.report_steps, trainer.env_steps)
        self.next_evaluation = _next(config.training.evaluation_steps, trainer.env_steps)
        self.ended, self.recent = 0, torch.empty(0)
        self.saved_at = time.monotonic()
        self._clear()
        if reporter is not None:
            reporter.break_silence(self.standing)

    def wall_seconds(self) -> float:
        """Return the run's training time, that of earlier sessions included."""
        return time.monotonic() + self.offset

    def standing(self) -> str:
        """Return in a line how far the run is, though no report is due."""
        (steps, since, _), now = self.since, self.wall_seconds()
        rate = (self.trainer.env_steps - steps) / max(now - since, 1e-9)
        return (
            f"env_steps {self.trainer.env_steps:,} of {self.config.steps:,}  {rate:,.1f}/s  step "
            f"{self.trainer.rollout.window_step} of a window of {self.config.training.unroll_length}  "
            f"{now - since:,.0f} s since the last report"
        )

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.windows = 0
        self.episodes: list[Episodes] = []
        self.since = (self.trainer.env_steps, self.wall_seconds(), dict(self.trainer.seconds))

    def report(self, losses: dict[str, Tensor], episodes: Episodes) -> None:
        """Take in one window; report and save when it is time."""
        for name, x in losses.items():
            self.sums[name] = self.sums[name] + x if name in self.sums else x
        self.windows += 1
        self.episodes.append(episodes)
        if self.trainer.env_steps >= min(self.next_report, self.config.steps):
            self.next_report = _next(self.report_steps, self.trainer.env_steps)
            self._report()
        if distributed.any_of(time.monotonic() - self.saved_at >= self.config.training.checkpoint_seconds):
            self.save()

    def _report(self) -> None:
        steps, seconds, spent = self.since
        wall_seconds = self.wall_seconds()
        ended = [torch.cat(column).cpu() for column in zip(*self.episodes, strict=True)]
        means = {name: (x / self.windows).item() for name, x in self.sums.items()}
        seen = distributed.gather((ended, means))
        if seen is None or self.reporter is None or self.tracker is None:
            self._clear()
            return
        columns = (torch.cat(column) for column in zip(*(x for x, _ in seen), strict=True))
        returns, lengths, successes, value_sums = columns
        metrics = {
            "env_steps": self.trainer.env_steps,
            "wall_seconds": wall_seconds,
            "env_steps_per_second": (self.trainer.env_steps - steps) / max(wall_seconds - seconds, 1e-9),
            "episode_return_mean": returns.mean().item(),
            "episode_return_std": returns.std(correction=0).item() if len(returns) else math.nan,
            "episode_length_mean": lengths.mean().item(),
            "episodes": len(returns),
            "value_explained": explained(value_sums),
        }
        if not successes.isnan().all():
            metrics["success_rate"] = successes.nanmean().item()
        for name, total in self.trainer.seconds.items():
            metrics[f"{name}_seconds"] = total - spent[name]
        metrics |= {name: statistics.fmean(x[name] for _, x in seen) for name in means}
        if len(returns):
            self.last_return = metrics["episode_return_mean"]
        # The first to end are those that end soon, and the best of few are lucky: they say little of the weights.
        self.ended, self.recent = self.ended + len(returns), torch.cat([self.recent, returns])[-RECENT_EPISODES:]
        is_fair = len(returns) > 0 and self.ended >= self.config.num_envs + RECENT_EPISODES
        score = self.recent.mean().item() if is_fair else -math.inf
        if self.trainer.env_steps >= self.next_evaluation:
            self.next_evaluation = _next(self.config.training.evaluation_steps, self.trainer.env_steps)
            evaluation = self.evaluate()
            metrics |= {f"evaluation_{name}": value for name, value in evaluation.items()}
            score = evaluation["episode_return_mean"]
        elif self.config.training.evaluation_steps:
            score = -math.inf
        if score > self.best:
            self.best = score
            checkpoint.save_best(self.run_dir, self.trainer.env_steps, score, self.trainer.agent)
        self.reporter.report(metrics)
        self.tracker.log(metrics, self.trainer.env_steps)
        if self.trainer.env_steps >= 0.1 * self.config.steps:  # before, an agent has not had the time
            for key, sentence in self.trainer.agent.warnings(metrics).items():
                self.reporter.warn_once(key, sentence)
        self._clear()

    def finish(self) -> None:
        """Report what was not reported yet, and write a checkpoint."""
        if self.windows:
            self._report()
        self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        rest = {"trainer": self.trainer.state_dict(), "wall_seconds": self.wall_seconds()}
        if self.reporter is not None:
            checkpoint.save(self.run_dir, self.trainer.env_steps, self.trainer.agent, rest)
        self.saved_at = time.monotonic()

    def draw(self) -> None:
        """Write the learning curve, and hand wandb a picture of it and an episode."""
        from merlin.runs.learning_curve import plot_learning_curve  # matplotlib takes a second to import

        assert self.reporter is not None and self.tracker is not None, "the process that leads draws"
        if not (self.run_dir / "metrics.jsonl").stat().st_size:
            return
        path = self.run_dir / "learning_curve.png"
        plot_learning_curve([self.run_dir], path, self.trainer.environment.scores)
        self.tracker.log_media(path, "learning_curve")
        if self.tracker.is_on and self.film is not None:
            try:
                self.tracker.log_media(self.film(self.run_dir), "episode")
            except Exception as error:  # a picture for wandb is no reason to lose a finished run
                self.reporter.note(f"wandb gets no episode: {error}")


def _next(interval: int | None, env_steps: int) -> int | float:
    """Return the next multiple of `interval`, wherever a session began; infinity without one."""
    return math.inf if interval is None else (env_steps // interval + 1) * interval
