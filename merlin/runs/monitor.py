"""The monitor of a run: reports, checkpoints, evaluations, pictures."""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merlin import distributed
from merlin.errors import MerlinError, describe, obstacle, resuming
from merlin.runs import choice
from merlin.runs.advice import Advice
from merlin.runs.agent_spaces import to_config
from merlin.runs.choice import Candidate
from merlin.runs.curriculum import Curriculum
from merlin.runs.directory import write_config
from merlin.runs.metrics import Means
from merlin.runs.presets import RunConfig
from merlin.runs.reporting import Reporter
from merlin.runs.settings import to_dict
from merlin.runs.trackers import Tracks
from merlin.training import checkpoint
from merlin.training.checkpoint import Best
from merlin.training.plain import to_plain
from merlin.training.rollout import Episodes
from merlin.training.trainer import Trainer
from merlin.training.value_errors import explained


class Monitor:
    """Follows the training loop: reports, checkpoints, the picture at the end.

    Where several processes train together, each has one: those without a reporter and a tracker hand in what they saw.

    Args:
        offset: What is added to a monotonic clock to give the run's training time.
        evaluate: Plays held-out episodes with the agent as it is, and returns what `merlin.training.evaluation` does.
        film: Films an episode of the run and returns the file, for Weights & Biases at the end; none leaves it out.
        is_here: Whether the run directory is still the one that this process writes to.
        curriculum: Where the run stands in it; none is one without stages.
        enter: Lets the trainer go on in the environments of the curriculum's stage.
        on_report: Is given each report, and may stop the run: see `merlin.train`.

    Attributes:
        is_stopped: Whether it has.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        trainer: Trainer,
        reporter: Reporter | None,
        tracker: Tracks | None,
        offset: float,
        evaluate: Callable[[], dict[str, Any]],
        film: Callable[[Path], Path] | None = None,
        is_here: Callable[[], bool] = lambda: True,
        curriculum: Curriculum | None = None,
        enter: Callable[[], object] = lambda: None,
        on_report: Callable[[dict[str, int | float]], object] | None = None,
    ) -> None:
        self.config, self.run_dir, self.trainer = config, run_dir, trainer
        self.reporter, self.tracker, self.offset, self.evaluate, self.film = reporter, tracker, offset, evaluate, film
        self.is_here = is_here
        self.curriculum, self.enter = curriculum or Curriculum(config.curriculum), enter
        self.on_report, self.is_stopped = on_report, False
        self.about = {"config": json.dumps(to_dict(config) | to_config(trainer.environment))}
        self.comparing = ""
        note = (lambda _: None) if reporter is None else reporter.note
        # A comparison at the end of an earlier session is of other episodes than training's scores.
        best = checkpoint.read_best(run_dir, note, compared=config.training.evaluation_steps is not None)
        self.best = -math.inf if best is None else best.score
        self.unsaved_best: tuple[Best, dict[str, Tensor]] | None = None
        # About a hundred reports, 10,000 steps each for a million, but more of a run too long to wait for the first.
        self.report_steps = config.training.report_steps or min(max(1, config.steps // 100), 50_000)
        self.evaluated_at, self.row = trainer.env_steps, 0
        self.advice = Advice(config, trainer.environment)
        self.recent = self.newest = torch.zeros(0, dtype=torch.float64)
        self.candidate = Candidate(config.num_envs, trainer.environment.num_envs)
        self.saved_at = time.monotonic()
        self._clear()
        if reporter is not None:
            reporter.break_silence(self.standing)

    @property
    def is_self_play(self) -> bool:
        """Whether it plays against itself in the present stage."""
        return self.trainer.environment.is_self_play

    def wall_seconds(self) -> float:
        """Return the run's training time, that of earlier sessions included."""
        return time.monotonic() + self.offset

    def standing(self) -> str:
        """Return in a line how far the run is, though no report is due."""
        if self.comparing:
            return self.comparing
        (steps, since, _), now = self.since, self.wall_seconds()
        rate = (self.trainer.env_steps - steps) / max(now - since, 1e-9)
        return (
            f"env_steps {self.trainer.env_steps:,} of {self.config.steps:,}  {rate:,.1f}/s  step "
            f"{self.trainer.rollout.window_step} of a window of {self.config.training.unroll_length}  "
            f"{now - since:,.0f} s since the last report"
        )

    def _clear(self) -> None:
        self.means = Means()
        self.episodes: list[Episodes] = []
        self.since = (self.trainer.env_steps, self.wall_seconds(), dict(self.trainer.seconds))

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen since the last report, and what the next ones go on from."""
        steps, seconds, spent = self.since
        return {
            **self.means.state_dict(),
            "episodes": self._ended()._asdict() if self.episodes else None,
            "reported_at": steps,
            "seconds": self.wall_seconds() - seconds,
            "spent": {name: total - spent[name] for name, total in self.trainer.seconds.items()},
            "evaluated_at": self.evaluated_at,
            "row": self.row,
            "candidate": self.candidate.state_dict(),
            "advice": self.advice.state_dict(),
            "recent": self.recent,
            "curriculum": self.curriculum.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, so that reports are those of a run that never stopped."""
        device = self.trainer.environment.device
        self.means.load_state_dict(state, device)
        self.episodes = [Episodes(**state["episodes"])] if state["episodes"] else []
        spent = {name: total - state["spent"][name] for name, total in self.trainer.seconds.items()}
        self.since = (state["reported_at"], self.wall_seconds() - state["seconds"], spent)
        self.evaluated_at, self.row = state["evaluated_at"], state["row"]
        self.candidate.load_state_dict(state["candidate"])
        self.advice.load_state_dict(state.get("advice"))
        self.recent = self.newest = state.get("recent", self.recent)
        self.curriculum.load_state_dict(state.get("curriculum", self.curriculum.state_dict()))

    def report(self, losses: dict[str, Tensor], episodes: Episodes) -> None:
        """Take in one window; report and save when it is time."""
        self.means.add(losses)
        self.episodes.append(episodes._replace(begins=episodes.begins + self.row))
        self.row += self.config.training.unroll_length
        if self.trainer.env_steps >= min(_next(self.report_steps, self.since[0]), self.config.steps):
            self._report()
        if distributed.any_of(time.monotonic() - self.saved_at >= self.config.training.checkpoint_seconds):
            self.save()

    def _ended(self) -> Episodes:
        """Return the episodes of this process that ended since the last report."""
        return Episodes(*(torch.cat(column) for column in zip(*self.episodes, strict=True)))

    def _metrics(self, ended: Episodes) -> dict[str, int | float] | None:
        """Return what all processes saw since the last report, in the first of them."""
        steps, seconds, spent = self.since
        wall_seconds = self.wall_seconds()
        seen = distributed.gather((ended, self.means.means()))
        if seen is None:
            return None
        columns = Episodes(*(torch.cat(column) for column in zip(*(x for x, _ in seen), strict=True)))
        returns, lengths, successes = columns.returns, columns.lengths, columns.successes
        order = (columns.begins + lengths).argsort(stable=True)
        self.newest = torch.cat([self.recent, returns[order].double()])[-choice.EPISODES :]
        metrics = {
            "env_steps": self.trainer.env_steps,
            "wall_seconds": wall_seconds,
            "env_steps_per_second": (self.trainer.env_steps - steps) / max(wall_seconds - seconds, 1e-9),
            "episode_return_mean": returns.mean().item(),
            "episode_return_std": returns.std(correction=0).item() if len(returns) else math.nan,
            "episode_length_mean": lengths.mean().item(),
            "episodes": len(returns),
            "value_explained": explained(columns.value_sums),
        }
        if not successes.isnan().all():
            metrics["success_rate"] = successes.nan_to_num(0.0).mean().item()  # who does not tell has not succeeded
        for name, total in self.trainer.seconds.items():
            metrics[f"{name}_seconds"] = total - spent[name]
        if self.config.curriculum.values:
            metrics["curriculum_stage"] = self.curriculum.stage
        # an entry of the observation may be called as one of these
        told = dict.fromkeys(name for _, means in seen for name in means)
        return {name: statistics.fmean(means[name] for _, means in seen if name in means) for name in told} | metrics

    def _report(self) -> None:
        ended = self._ended()
        metrics, found = self._metrics(ended), None
        self.recent = self.newest
        if self.config.training.evaluation_steps is None:
            # In self-play the last weights are the best known, and returns of easier tasks say nothing of weights.
            if not self.is_self_play and self.curriculum.is_over:
                found = self._scored_candidate(ended)
            self.evaluated_at = self.trainer.env_steps
        elif metrics is not None and self.trainer.env_steps >= min(
            _next(self.config.training.evaluation_steps, self.evaluated_at), self.config.steps
        ):
            evaluation = self.evaluate()
            metrics |= {f"evaluation_{name}": value for name, value in evaluation.items()}
            self.evaluated_at = self.trainer.env_steps
            score, episodes = evaluation["episode_return_mean"], evaluation["episodes"]
            if self.is_self_play:
                score = evaluation.get("success_rate", score)  # points, whatever events are worth
            best = Best(self.evaluated_at, score, "evaluation", episodes, self.evaluated_at)
            if self.curriculum.is_over and (not self.is_self_play or self.trainer.environment.judged_by):
                found = best, choice.copied(self.trainer.agent)
        if metrics is not None and self.reporter is not None and self.tracker is not None:
            if not self.is_here():
                self.saved_at = -math.inf  # all processes save together
            elif found is not None and found[0].score > self.best:
                self.best, self.unsaved_best = found[0].score, found
            self._tell(metrics)
            for name, sentence in self.trainer.inspection.warnings.items():
                self.reporter.warn_once(f"entry {name}", sentence)
            longest = int(self.trainer.rollout.state.episode_length.max())
            for key, sentence in self.advice.take(metrics, self.trainer.agent, longest).items():
                self.reporter.warn_once(key, sentence)
        is_done = metrics is not None and self.curriculum.is_done(metrics)
        if not self.curriculum.is_over and distributed.any_of(is_done):
            self.curriculum.move_on(self.trainer.env_steps)
            self.enter()
        self._clear()
        if metrics is not None:
            self._hand_on(metrics)

    def _tell(self, metrics: dict[str, int | float]) -> None:
        assert self.reporter is not None and self.tracker is not None, "the process that leads tells"
        self.reporter.report(metrics)
        self.tracker.log(metrics, self.trainer.env_steps)

    def _hand_on(self, metrics: dict[str, int | float]) -> None:
        """Give a report to whoever asked for it; what he raises ends the run, which is saved first."""
        if self.on_report is None:
            return
        try:
            self.is_stopped |= bool(self.on_report(dict(metrics)))
        except BaseException:
            if distributed.world_size() == 1:  # others would have to save with this one
                self.save()
            raise

    def _scored_candidate(self, ended: Episodes) -> tuple[Best, dict[str, Tensor]] | None:
        """Return the candidate and its weights, if its episodes have all ended, and take the next one."""
        candidate, found = self.candidate, None
        candidate.count(ended)
        if candidate.weights is not None:
            if distributed.any_of(not candidate.is_scored):
                return None
            totals = distributed.gather(candidate.total)
            if totals is not None:
                episodes = candidate.each * self.config.num_envs
                best = Best(candidate.step, sum(totals) / episodes, "training", episodes, self.trainer.env_steps)
                found = best, candidate.weights
        candidate.take(self.trainer.agent, self.trainer.env_steps, self.row, keep=self.reporter is not None)
        return found

    def finish(self) -> None:
        """Report what was not reported yet, and write a checkpoint.

        That report is of less than others. The run goes on as if it had not been made, and makes the whole one.
        """
        metrics = self._metrics(self._ended()) if self.episodes else None
        if metrics is not None:
            self._tell(metrics)
        self.save()
        if metrics is not None and not self.is_stopped:
            self._hand_on(metrics)

    def choose(
        self, compare: Callable[[list[dict[str, Tensor]], float], Tensor], is_interrupted: Callable[[], bool]
    ) -> None:
        """Let held-out episodes choose among the best weights in training, those being scored, and the last ones.

        For the process that leads, once the run has come to its end and is saved. The run's state has nothing of it:
        one that goes on does so as if no choice had been made. There is none where evaluations while training choose,
        or where the run was too short for a score.

        Args:
            compare: Plays with each of several weights for so many seconds; see `merlin.runs.choice.compare`.
        """
        assert self.reporter is not None, "the process that leads chooses"
        agent, note, end = self.trainer.agent, self.reporter.note, self.trainer.env_steps
        if self.config.training.evaluation_steps is not None or self.is_self_play or not self.is_here():
            return
        before = checkpoint.read_best(self.run_dir, note)
        if before is not None and (before.chosen_by, before.chosen_at) == ("comparison", end):
            return
        trained = checkpoint.read_best_in_training(self.run_dir, agent, note)
        if trained is None:
            return
        found = {trained[0].step: trained[1], self.candidate.step: self.candidate.weights, end: agent.state_dict()}
        contenders = {step: weights for step, weights in found.items() if weights and _is_finite(agent, weights)}
        if len(contenders) < 2:
            return
        episodes = self.config.training.evaluation_episodes
        self.comparing = f"comparing {len(contenders)} sets of weights on {episodes:,} held-out episodes"
        note(self.comparing)
        try:
            returns = compare(list(contenders.values()), choice.COMPARISON_FRACTION * self.wall_seconds())
        except Exception as error:  # of an environment, say; the run is finished and saved
            self._choose_without(f"the comparison failed ({describe(error)}): ", trained[0])
            return
        finally:
            self.comparing = ""
        ended = returns[:, ~returns.isnan().any(0)]
        if is_interrupted() or not ended.numel():
            why = "was interrupted" if is_interrupted() else "had no time for an episode of each"
            self._choose_without(f"the comparison {why}: ", trained[0])
            return
        scores = dict(zip(contenders, ended.mean(1).tolist(), strict=True))
        step = max(reversed(scores), key=lambda step: scores[step])  # of equals the last, which learnt the most
        note(
            f"the best weights are those of {step:,} steps: mean returns of {ended.shape[1]:,} episodes are "
            + ", ".join(f"{score:.4g} ({at:,} steps)" for at, score in scores.items())
        )
        if self.is_here():
            best = Best(step, scores[step], "comparison", ended.shape[1], end)
            checkpoint.save_best(self.run_dir, best, contenders[step], self.about)

    def choose_early(self) -> None:
        """Choose between the best weights in training and the last ones in a run that stopped before its steps.

        What may be a deadline leaves no time for a comparison. See `choose`.
        """
        assert self.reporter is not None, "the process that leads chooses"
        if self.config.training.evaluation_steps is not None or self.is_self_play or not self.is_here():
            return
        trained = checkpoint.read_best(self.run_dir, self.reporter.note, compared=False)
        if trained is not None and trained.step < self.trainer.env_steps:
            self._choose_without("", trained)

    def _choose_without(self, why: str, trained: Best) -> None:
        """Let the last weights be the best if the last episodes of training earned more than the best's, and say so.

        Args:
            why: Begins the sentence.
        """
        assert self.reporter is not None, "the process that leads chooses"
        agent, recent, end = self.trainer.agent, self.newest.mean().item(), self.trainer.env_steps
        weights = agent.state_dict()
        if not recent > trained.score or not _is_finite(agent, weights):
            self.reporter.note(
                f"{why}the best weights are still those of {trained.step:,} steps, by their episodes in training"
            )
            return
        self.reporter.note(
            f"{why}the best weights are the last: the last episodes of training returned {recent:#.4g} in the mean, "
            f"those of the weights of {trained.step:,} steps {trained.score:#.4g}"
        )
        if self.is_here():
            checkpoint.save_best(self.run_dir, Best(end, recent, "recent", None, end), weights, self.about)

    def save_best(self) -> None:
        """Write the best weights, if better ones were found since they were written, unless the run directory is gone.

        That is with each checkpoint, not with each report: a disk may take a second to have a file for certain.
        """
        if self.unsaved_best is not None and self.is_here():
            checkpoint.save_best(self.run_dir, *self.unsaved_best, self.about)
            self.unsaved_best = None

    def save(self) -> None:
        """Write a checkpoint, and the best weights before it, as a run that goes on from it goes on from those.

        Raises:
            MerlinError: It cannot be written; or the run directory is gone, and the checkpoint lies elsewhere.
        """
        rest = {
            "trainer": self.trainer.state_dict(self.run_dir / checkpoint.REPLAY if self.is_here() else None),
            "wall_seconds": self.wall_seconds(),
            "monitors": distributed.gather(to_plain(self.state_dict())),
        }
        if self.reporter is not None:
            try:
                self.save_best()
                if self.is_here():
                    checkpoint.save(self.run_dir, self.trainer.env_steps, self.trainer.agent, rest, about=self.about)
            except MerlinError:
                if self.is_here():
                    raise
            if not self.is_here():  # it may have gone while it was written to
                self._save_elsewhere(rest)
        self.saved_at = time.monotonic()

    def _save_elsewhere(self, rest: dict[str, Any]) -> None:
        """Save a run whose directory is gone in a new one, and end it."""
        assert self.reporter is not None, "the process that leads saves"
        lost = f"The run directory {self.run_dir} was moved or removed while training"
        for parent in (self.run_dir.parent, Path(tempfile.gettempdir())):
            try:
                home = Path(tempfile.mkdtemp(prefix=f"{self.run_dir.name}-rescued-", dir=parent))
                write_config(self.config, home, to_config(self.trainer.environment))
                self.reporter.copy_rows(home)
                if distributed.world_size() == 1:  # what lay beside the checkpoints is gone too
                    rest = rest | {"trainer": self.trainer.state_dict(home / checkpoint.REPLAY)}
                checkpoint.save(home, self.trainer.env_steps, self.trainer.agent, rest, about=self.about)
            except (OSError, MerlinError):
                continue
            raise MerlinError(
                f"{lost}: all that was learnt in {self.trainer.env_steps:,} steps is in {home}, "
                f"go on with {resuming(home)}."
            )
        raise MerlinError(f"{lost}, and no other place could be written: resume from the directory's last checkpoint.")

    def draw(self) -> None:
        """Write the learning curve, and hand wandb a picture of it and an episode."""
        from merlin.runs.learning_curve import plot_learning_curve  # matplotlib takes a second to import

        assert self.reporter is not None and self.tracker is not None, "the process that leads draws"
        if not (self.run_dir / "metrics.jsonl").stat().st_size:
            return
        path = self.run_dir / "learning_curve.png"
        try:
            plot_learning_curve([self.run_dir], path, self.trainer.environment.scores)
            self.tracker.log_media(path, "learning_curve")
        except OSError as error:  # the run is finished and saved, but the disk is full
            self.reporter.note(f"{path} could not be drawn: {obstacle(error)}")
        if self.tracker.is_on and self.film is not None:
            try:
                self.tracker.log_media(self.film(self.run_dir), "episode")
            except Exception as error:  # a picture for wandb is no reason to lose a finished run
                self.reporter.note(f"wandb gets no episode: {error}")


def _is_finite(agent: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    return all(bool(weights[name].isfinite().all()) for name, _ in agent.named_parameters())


def _next(interval: int | None, env_steps: int) -> int | float:
    """Return the next multiple of `interval`, wherever a session began; infinity without one."""
    return math.inf if interval is None else (env_steps // interval + 1) * interval
