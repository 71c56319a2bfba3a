"""What a run says of itself: at its start, what it took things for; while it trains, what is not learning.

Advice is late and sure. Nothing is told before a tenth of the run and `FIRST_STEPS` steps, and what is told was so at
every report for a twentieth of the run, without getting better. A run that is shorter than its task's own preset asks
for is judged as that run: what it has not learnt yet is no fault of its settings.
"""

import math
from typing import Any

from gymnasium.spaces import Box

from merlin.agents import Agent
from merlin.environments.batch import Environment
from merlin.errors import option
from merlin.networks.action_spaces import SimpleSpace, describe_actions, open_action_space
from merlin.networks.actions import LARGEST_BOUND, LOG_STD_CENTRE, has_scale
from merlin.networks.categories import sizes_and_starts
from merlin.networks.spaces import describe_entries
from merlin.runs.presets import GENERAL, RunConfig, family_of, preset
from merlin.training.evaluation import standard_error

FIRST_STEPS = 5_000
FIRST_PART, PART = 0.1, 0.05
REPORTS = 3
"""Parts of a run before anything is told, and for which it must be so; and in how many reports at least."""
EXPLAINED = 0.05
"""Below this part of a variance nothing is explained."""
WRONG = -0.2
"""Below this V is worse than a constant, and not by the chance that makes it up to 0.1 worse where there is nothing to
explain."""
RISE = 0.02
"""A metric that rose by more than this is getting better."""
EPISODES = 100
"""To judge V or returns by."""
START_EPISODES = 20
"""That the start must have; it has `EPISODES` unless the first tenth of the run has fewer. Beside `EPISODES` recent
ones, a rise by half a standard deviation is then two standard errors."""
COMMON = 0.1
"""Rewards that differ by less than this part of them are mostly one number."""
LONG = 1_000
"""Steps without which no episode is told to be without end."""
GROWTH = 1.0
"""Nats per number by which the entropy of a Box's actions may grow: its spread e times that of the start."""


def describe_run(config: RunConfig, environment: Environment) -> list[str]:
    """Return sentences about what a run took things for: entries, actions, preset and units."""
    scales = "running scales: vectors, rewards, returns" if config.model.running_scales else "units as they come"
    entries = "; ".join(describe_entries(environment.spaces))
    masks = f", masked by {environment.masked_by}" if environment.masked_by else ""
    sentences = [entries, f"{describe_actions(environment.action_space)}{masks}; {describe_preset(config)}; {scales}"]
    boxes = [part for _, part in open_action_space(environment.action_space) if isinstance(part, Box)]
    if any((~has_scale(box) & (box.low != box.high).reshape(-1)).any() for box in boxes):
        sentences.append(
            f"an action's numbers without two bounds below {LARGEST_BOUND:,.0f} begin about 0, of a spread of "
            f"{math.exp(LOG_STD_CENTRE):.1f}: where they should be of another size, declare bounds, or scale them with "
            f"a wrapper ({option('wrap', 'module:Wrapper')})"
        )
    if environment.is_self_play:
        sentences.append(describe_self_play(config, environment))
    return sentences


def describe_self_play(config: RunConfig, environment: Environment) -> str:
    """Return how the best weights are chosen of an agent that plays against itself."""
    against = ", ".join(f"{name}={value}" for name, value in environment.judged_by.items())
    if not against or config.training.evaluation_steps is None:
        hint = f", unless training.evaluation_steps chooses by games with {against}" if against else ""
        return f"self-play, in which returns say nothing of the agent: its last weights count as the best{hint}"
    return f"self-play, in which returns say nothing of the agent: its best weights are chosen by games with {against}"


def describe_preset(config: RunConfig) -> str:
    """Return which preset the settings started from, and why."""
    reason = f" ({config.preset_reason})" if config.preset_reason else ""
    return f"preset {config.preset}{reason}" if config.preset else "no preset"


class Advice:
    """Follows the reports of a run, and says what is not learning, once each, with the settings to change."""

    def __init__(self, config: RunConfig, environment: Environment) -> None:
        self.config, self.task, self.steps = config, environment.task, config.steps
        if config.preset != GENERAL and config.preset == family_of(config.task):
            usual = preset(config.agent, config.task, config.env_kwargs, name=config.preset)
            self.steps = max(config.steps, usual.steps)
        parts = [part for _, part in open_action_space(environment.action_space)]
        self.numbers = sum(part.low.size for part in parts if isinstance(part, Box))
        self.most_entropy = sum(map(_most_entropy, parts))
        self.knows_start = config.started_from is None  # of weights that were trained, the start is no start
        self.told: list[str] = []
        self.since: dict[str, list[float]] = {}  # by key: steps, reports and episodes before, and the metric then
        self.reports, self.episodes = 0, 0
        self.without_end: list[float] = [0, 0]  # reports since the last that had an episode end, and that one's steps
        self.rewards, self.returns = [math.inf, -math.inf], [math.inf, -math.inf]  # lowest and highest
        # mean return, episodes, standard deviation: of those that the run began with, and of the last ones
        self.start, self.recent = [math.nan, 0.0, 0.0], [math.nan, 0.0, 0.0]
        self.entropies: list[float] = []  # of the first report, and the highest

    def state_dict(self) -> dict[str, Any]:
        """Return all that advice goes on from."""
        return {name: x for name, x in vars(self).items() if name in _STATE}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a `state_dict`; of a run that began without advice nothing is known of its start."""
        vars(self).update(state or {"knows_start": False})
        self.recent = [*self.recent, 0.0][:3]  # whose spread was not always kept

    def take(self, metrics: dict[str, int | float], agent: Agent, longest: int) -> dict[str, str]:
        """Take in a report, and return what is to be told now, by keys that tell it apart.

        Args:
            agent: Its own warnings are told likewise. A key of theirs that is a metric's name is of that metric: it is
                not told while the metric rises.
            longest: Steps of the longest episode that runs.
        """
        before = self.reports, self.episodes
        self._count(metrics)
        steps = metrics["env_steps"]
        if steps < max(FIRST_PART * self.steps, FIRST_STEPS):
            return {}
        found = (
            self._rewards(steps)
            or self._common(steps)
            or self._values(metrics) | self._decoding(metrics) | self._entropy(metrics)
        )
        found |= self._transport(metrics) | self._ends(longest) | agent.warnings(metrics)
        now = {}
        for key in [*self.since]:
            is_unknown = math.isnan(metrics.get(key, 0.0))  # neither so nor otherwise
            if key not in found and not is_unknown:
                del self.since[key]
        for key, sentence in found.items():
            value = metrics.get(key, 0.0)
            if key not in self.since or value > self.since[key][3] + RISE:
                self.since[key] = [steps, *before, value]
            begin, reports, episodes, _ = self.since[key]
            is_sure = steps - begin >= PART * self.steps and self.reports - reports >= REPORTS
            if key == "value_explained":
                is_sure &= self.episodes - episodes >= EPISODES
            if is_sure and key not in self.told:
                self.told.append(key)
                now[key] = sentence
        return now

    def _count(self, metrics: dict[str, int | float]) -> None:
        episodes, mean, std = (metrics[f"episode{name}"] for name in ("s", "_return_mean", "_return_std"))
        self.reports += 1
        self.episodes += episodes
        if episodes:
            self.without_end = [0, metrics["env_steps"]]
            self.returns = _widened(self.returns, mean - std, mean + std)
            is_early = metrics["env_steps"] <= FIRST_PART * self.steps
            if self.start[1] < (EPISODES if is_early else START_EPISODES):
                self.start = _pooled(self.start, [mean, episodes, std])
            faded = max(0.8 * self.recent[1], min(self.recent[1], EPISODES))  # the last five reports, or 100 episodes
            self.recent = _pooled([self.recent[0], faded, self.recent[2]], [mean, episodes, std])
        else:
            self.without_end = [self.without_end[0] + 1, self.without_end[1]]
        lowest, highest = (metrics.get(f"reward_{name}", math.nan) for name in ("min", "max"))
        if math.isinf(lowest):  # of a window without a row that counts: there were others, whose rewards are unknown
            lowest, highest = -math.inf, math.inf
        if not math.isnan(lowest):
            self.rewards = _widened(self.rewards, lowest, highest)
        entropy = metrics.get("entropy_nats", math.nan)
        if math.isfinite(entropy):
            self.entropies = [self.entropies[0], max(self.entropies[1], entropy)] if self.entropies else [entropy] * 2

    def _rewards(self, steps: int | float) -> dict[str, str]:
        """Tell that nothing tells one action from another: rewards that are all alike."""
        if not self.knows_start or not _is_one(self.rewards) or (self.episodes and not _is_one(self.returns)):
            return {}
        reward = self.rewards[0]
        if reward == 0:
            return {
                "rewards": f"no reward was seen in {steps:,} steps, so there is nothing to learn actions from: correct "
                f"{self.task} if it should have rewarded, bring rewards nearer with a wrapper "
                f"({option('wrap', 'module:Wrapper')}), or try more at random with "
                + option("set", f"model.entropy_cost={_more(self.config.model.entropy_cost)}")
            }
        if self.episodes < EPISODES:
            return {}
        length = self.returns[0] / reward
        return {
            "rewards": f"each of {steps:,} steps was rewarded with {reward:.4g}, and each of {self.episodes:,} "
            f"episodes took {length:,.0f} steps, so nothing tells one action from another: let episodes run longer "
            f"({option('env-kwargs')}), or reward progress with a wrapper ({option('wrap', 'module:Wrapper')})"
        }

    def _common(self, steps: int | float) -> dict[str, str]:
        """Tell that rewards are mostly one number, which every action earns as often, where nothing is learnt."""
        if not (_is_mostly_one(self.rewards) and _is_mostly_one(self.returns) and self._is_no_better(spreads=2.0)):
            return {}
        return {
            "common": f"each of {steps:,} steps was rewarded with {self.rewards[0]:.4g} to {self.rewards[1]:.4g}, and "
            f"the {self._standing(False)}: what all rewards have in common tells nothing of actions, and V's errors "
            f"about it hide what does, so subtract it with a wrapper ({option('wrap', 'module:Wrapper')})"
        }

    def _values(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell that V explains nothing, where the return is not much better than it was."""
        value, part = metrics["value_explained"], metrics["env_steps"] / self.steps
        is_nothing = part >= 0.2 and value < EXPLAINED and self._is_no_better()
        # Worse than a constant is wrong, also where the return rose a little. Where it rose more, V may be judged by
        # the few episodes that failed: the others are cut at their limit, and their returns unknown.
        is_wrong = part >= 0.5 and value < WRONG and self._is_no_better(spreads=2.0)
        if not (is_nothing or is_wrong):
            return {}
        model, training = self.config.model, self.config.training
        units = "" if model.running_scales else f"{option('set', 'model.running_scales=true')}, or "
        return {
            "value_explained": f"V explains {max(0, value):.0%} of the variance of returns, and the "
            f"{self._standing(is_nothing)}, so the policy learns from chance: try {units}another "
            f"training.learning_rate (it is "
            f"{training.learning_rate:g}) or model.discount_factor (it is {model.discount_factor:g})"
        }

    def _decoding(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell that a predictor does not decode rewards, where the return is no better than it was."""
        explained, cost = metrics.get("reward_explained", math.nan), getattr(self.config.model, "reward_cost", 0.0)
        if not explained < EXPLAINED or not cost or not self._is_no_better():
            return {}
        running = option("set", "model.running_scales=true")
        units = "" if self.config.model.running_scales else f"{running}, as they may be small, or "
        return {
            "reward_explained": f"rewards are not decoded ({max(0, explained):.0%} of their variance explained), and "
            f"the {self._standing()}, so the memory cannot tell what was rewarded: try {units}"
            + option("set", f"model.reward_cost={10 * cost:g}")
        }

    def _entropy(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell that a policy has settled, or lost itself, where the return is no better than it was."""
        entropy, cost = metrics.get("entropy_nats", math.nan), self.config.model.entropy_cost
        if not math.isfinite(entropy) or not self._is_no_better():
            return {}
        least = 0.01 * self.most_entropy
        if not self.numbers and entropy < least <= self.entropies[1]:  # with masks it may never have had as much
            return {
                "entropy": f"the policy has {entropy:.2g} nats of entropy left of {self.most_entropy:.2f}, and the "
                f"{self._standing()}, so it tries nothing else any more: begin anew with "
                + option("set", f"model.entropy_cost={_more(cost)}")
                + f" or training.{self._rate()[0]}={self._rate()[1] / 3:.1g}"
            }
        if self.numbers and not self.most_entropy and entropy > self.entropies[0] + GROWTH * self.numbers:
            return {
                "entropy": f"the policy's entropy grew from {self.entropies[0]:.2f} to {entropy:.2f} nats, and the "
                f"{self._standing()}, so its actions are mostly noise: begin anew with "
                + option("set", f"model.entropy_cost={cost / 10:.2g}")
            }
        return {}

    def _transport(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell that no value is transported, where some was to be."""
        model = self.config.model
        if not model.value_transport or metrics.get("transported_reward", math.nan) != 0:
            return {}
        threshold, is_sharper = model.transport_read_strength, hasattr(model, "read_strength")
        sharper = f"start reads sharper ({option('set', 'model.read_strength=5')}), or " if is_sharper else ""
        return {
            "transported_reward": f"model.value_transport={model.value_transport:g} transports nothing, as no read "
            f"stronger than {threshold:g} went back far enough: {sharper}lower model.transport_read_strength or "
            "model.transport_min_steps"
        }

    def _ends(self, longest: int) -> dict[str, str]:
        """Tell that no episode ends."""
        reports, at = self.without_end
        if reports < 2 * REPORTS or longest < LONG:
            return {}
        begin = f"since step {at:,}" if at else "so far"
        return {
            "episodes": f"no episode ended {begin}, in {reports:,} reports, and the longest that runs has {longest:,} "
            f"steps, so there is no return to show: limit episodes with {option('wrap', 'module:function')}, a "
            f"function of yours that returns gymnasium.wrappers.TimeLimit(env, {LONG}), or if they do end, report less "
            f"often with a larger training.report_steps"
        }

    def _is_no_better(self, spreads: float = 0.0) -> bool:
        """Return whether returns are surely no better than those that the run began with.

        Args:
            spreads: Standard deviations of these by which a return may be higher and still be no better, though not by
                more than half of the way to the best returns that were seen: 1 may be less than 2 of them above 0.25.
        """
        if not self.knows_start or self.start[1] < START_EPISODES or self.episodes < max(EPISODES, 2 * self.start[1]):
            return False
        margin = min(spreads * self.start[2], 0.5 * (self.returns[1] - self.start[0]))
        most = self.start[0] + margin
        # One episode in a hundred may earn what outweighs all others: then a mean that fell is chance.
        chance = 2 * standard_error(self.recent[2], int(self.recent[1]))
        return self.recent[0] <= most and self.recent[0] + chance <= most + 0.5 * self.start[2]

    def _standing(self, is_no_better: bool = True) -> str:
        how = "is no better than" if is_no_better else "is still near"
        mean, episodes, std = self.start
        error = standard_error(std, int(episodes))
        return f"return, {self.recent[0]:.3g}, {how} the {mean:.3g} ± {error:.2g} of the start"

    def _rate(self) -> tuple[str, float]:
        """Return the setting of the policy's learning rate, and its value."""
        training = self.config.training
        if training.policy_learning_rate is not None:
            return "policy_learning_rate", training.policy_learning_rate
        return "learning_rate", training.learning_rate


_STATE = {
    "knows_start", "told", "since", "reports", "episodes", "without_end", "rewards", "returns", "start", "recent",
    "entropies",
}  # fmt: skip


def _most_entropy(part: SimpleSpace) -> float:
    """Return the most nats of entropy that choices have; 0 of numbers."""
    return 0.0 if isinstance(part, Box) else sum(map(math.log, sizes_and_starts(part)[0]))


def _pooled(one: list[float], other: list[float]) -> list[float]:
    """Return mean, number and standard deviation of the episodes of two reports together."""
    if not one[1]:
        return other
    (mean, count, std), (other_mean, other_count, other_std) = one, other
    total = count + other_count
    variance = (count * std**2 + other_count * other_std**2) / total
    variance += count * other_count * ((mean - other_mean) / total) ** 2
    return [(count * mean + other_count * other_mean) / total, total, math.sqrt(variance)]


def _widened(span: list[float], lowest: float, highest: float) -> list[float]:
    return [min(span[0], lowest), max(span[1], highest)]


def _is_one(span: list[float]) -> bool:
    """Return whether a span, of means of equal numbers, is a single number."""
    return -math.inf < span[0] <= span[1] < math.inf and span[1] - span[0] <= 1e-5 * max(map(abs, span))


def _is_mostly_one(span: list[float]) -> bool:
    """Return whether a span is narrow, seen from 0."""
    return (
        math.isfinite(span[0] - span[1]) and span[1] - span[0] < COMMON * min(map(abs, span)) and span[0] * span[1] > 0
    )


def _more(cost: float) -> str:
    return f"{3 * cost:.1g}" if cost else "0.01"
