"""Distributions of actions, built from the action space."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin.errors import MerlinError
from merlin.networks.action_spaces import SimpleSpace, join_spaces, open_action_space
from merlin.networks.categories import Categories
from merlin.networks.entries import CLOSE, flatten_entry, unflatten_entry
from merlin.networks.spaces import ACTION_MASK
from merlin.precision import as_type, may_differentiate

# A Gaussian action's log standard deviation, in half ranges of the Box: its value at parameter 0, and how far from it
# the parameter can move it. The bound keeps an entropy bonus from growing it, and a certain policy from shrinking it,
# without end: from 0.05 to 7.4, beginning at 0.6.
LOG_STD_CENTRE, LOG_STD_REACH = -0.5, 2.5

LARGEST_BOUND = 1e6
"""Bounds from here on say nothing of a number's size, as those do that are the largest float."""

# A Beta action's concentration: its least, and the log of what is added to that, alike. It begins at 3, up to 400.
# The standard deviation in half ranges is from 0.53, of an entropy 0.02 below the uniform distribution's, to 0.05, and
# begins at 0.4. The mode's gradient is in proportion to the concentration, and the least keeps it alive.
LEAST_CONCENTRATION, LOG_CONCENTRATION_CENTRE, LOG_CONCENTRATION_REACH = 0.5, 1.0, 5.0

# How far from its bounds a Beta action stays, as a part of the range: at them its log-density is infinite.
INSIDE = 1e-6

MASKED_LOG_PROB = -10.0
"""What a value network is told of an action that is not allowed, whose log-probability is -inf: about never."""


def make_action_distribution(
    space: gymnasium.Space, box_actions: Literal["gaussian", "beta"] = "gaussian"
) -> "ActionDistribution":
    """Return the distribution of the actions of a space.

    An action of a Dict or a Tuple is one flat row, the numbers of its simple spaces side by side in their order.

    Args:
        box_actions: What the numbers of a Box that have two finite bounds are drawn from.

    Raises:
        MerlinError: A space in it is no Discrete, MultiDiscrete, MultiBinary, Box, Dict or Tuple, or it is empty.
    """
    spaces = [part for _, part in open_action_space(space)]
    if spaces == [space]:
        return _simple(spaces[0], box_actions)
    groups = groupby(spaces, lambda part: isinstance(part, Box))
    parts = [_simple(join_spaces(list(group)), box_actions) for _, group in groups]
    return parts[0] if len(parts) == 1 else ProductActions(parts)


def _simple(space: SimpleSpace, box_actions: Literal["gaussian", "beta"]) -> "ActionDistribution":
    if not isinstance(space, Box):
        return CategoricalActions(space)
    return BetaActions(space) if box_actions == "beta" else GaussianActions(space)


class ActionDistribution(nn.Module, ABC):
    """A family of distributions over actions, one for each row of parameters; any leading dimensions.

    Attributes:
        num_parameters: What a policy head puts out.
        num_choices: C, categories of all variables: what a mask has an entry for. 0 for a Box.
        encoding_size: The width of `encode`, and what a decoder of past actions puts out.
        shape, dtype: Of one action, as tensors hold it.
    """

    num_parameters: int
    num_choices: int
    encoding_size: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def restrict(
        self, parameters: Float[Tensor, "*batch A"], observation: Mapping[str, Tensor]
    ) -> Float[Tensor, "*batch A"]:
        """Return the parameters with the actions that the observation's mask forbids made impossible.

        Where the observation has no entry `action_mask`, they come back as they are. Of what is forbidden the
        probability is exactly 0, the log-probability finite, and no gradient reaches its logit.

        Raises:
            MerlinError: The mask is of another size than the choices, or there are none.
        """
        mask = observation.get(ACTION_MASK)
        if mask is None:
            return parameters
        if mask.shape != (*parameters.shape[:-1], self.num_choices) or not self.num_choices:
            raise MerlinError(
                f"An action mask must have a row of {self.num_choices} numbers for each environment, one for each "
                f"choice, but is of shape {tuple(mask.shape)}: correct the mask."
                if self.num_choices
                else "An action mask must be of choices, but actions of a Box have none: leave the mask out."
            )
        return self.mask(parameters, mask.bool())

    @abstractmethod
    def mask(
        self, parameters: Float[Tensor, "*batch A"], allowed: Bool[Tensor, "*batch C"]
    ) -> Float[Tensor, "*batch A"]:
        """Return the parameters with everything that is not allowed made impossible. See `restrict`."""

    @abstractmethod
    def is_possible(self, allowed: Bool[Tensor, "*batch C"]) -> Bool[Tensor, "*batch"]:
        """Return the rows of a mask that allow an action: something of each variable."""

    @abstractmethod
    def encode(self, action: Tensor) -> Float[Tensor, "*batch E"]:
        """Return an action as a network reads it."""

    @abstractmethod
    def sample(self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None) -> Tensor:
        """Return an action drawn from the distribution; no gradient passes through it."""

    def draw_noise(self, batch: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Any:
        """Return what `sample` draws for actions of these leading dimensions: tensors, which `choose` takes.

        None where that depends on the parameters.

        Args:
            like: A tensor of the parameters' device and type.
        """
        return None

    def choose(self, parameters: Float[Tensor, "*batch A"], noise: Any) -> Tensor:
        """Return the action that `sample` makes of this noise."""
        raise NotImplementedError(f"{type(self).__name__} draws noise that depends on its parameters")

    @abstractmethod
    def sample_code(
        self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Float[Tensor, "*batch E"]]:
        """Return an action drawn from the distribution, and its encoding, through which gradients pass.

        Of choices straight through, of numbers by the noise that they are a function of.
        """

    @abstractmethod
    def greedy(self, parameters: Float[Tensor, "*batch A"]) -> Tensor:
        """Return the action of greedy play: the likeliest of choices, the mean of numbers."""

    @abstractmethod
    def log_prob(self, parameters: Float[Tensor, "*batch A"], action: Tensor) -> Float[Tensor, "*batch"]:
        """Return the log-probability (for a Box, log-density) of an action."""

    @abstractmethod
    def entropy(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        """Return the entropy in nats, of what is allowed."""

    @abstractmethod
    def log_probs(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Return the policy as the value network sees it: all log-probabilities; for a Box the parameters.

        Those of what is not allowed are `MASKED_LOG_PROB`.
        """

    @abstractmethod
    def probabilities(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch C"]:
        """Return the probability of each choice, exactly 0 of what is not allowed; a Box has none."""

    @abstractmethod
    def reconstruction_nats(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        """Return the loss of a decoder of encoded actions: cross-entropy, or half the squared error."""

    @abstractmethod
    def reconstruction_accuracy(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        """Return the fraction of an encoded action that such a decoder gets right, in [0, 1]."""


def has_scale(space: Box) -> Bool[np.ndarray, " n"]:
    """Return which numbers of a Box, flattened, have two bounds that say how large they are."""
    low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
    is_near = (np.abs(low) < LARGEST_BOUND) & (np.abs(high) < LARGEST_BOUND)
    return is_near & (low < high)


class CategoricalActions(ActionDistribution):
    """Discrete, MultiDiscrete, MultiBinary: independent categories; the parameters are their logits side by side."""

    def __init__(self, space: Discrete | MultiDiscrete | MultiBinary):
        super().__init__()
        self.categories = Categories(space)
        self.num_parameters = self.num_choices = self.encoding_size = self.categories.num_columns
        self.shape, self.dtype = self.categories.shape, torch.int64

    def mask(
        self, parameters: Float[Tensor, "*batch A"], allowed: Bool[Tensor, "*batch C"]
    ) -> Float[Tensor, "*batch A"]:
        # Not -inf, whose product with a probability of 0 is NaN. A row that allows nothing comes out uniform.
        return parameters.masked_fill(~allowed, _least(parameters))

    def is_possible(self, allowed: Bool[Tensor, "*batch C"]) -> Bool[Tensor, "*batch"]:
        best = self.categories.columns(self.categories.highest(allowed.float()))
        return allowed.gather(-1, best).all(-1)

    def encode(self, action: Tensor) -> Float[Tensor, "*batch E"]:
        return self.categories.encode(action)

    def sample(self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None) -> Tensor:
        return self.choose(parameters, self.draw_noise(parameters.shape[:-1], parameters, generator))

    def draw_noise(
        self, batch: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch A"]:
        # Gumbel-max: argmax(logits - log(-log u)) is a sample. No normalising, no cumulative sums; drawing uniforms
        # takes a third of the time of drawing exponentials. A uniform of 0 would put the one choice that is allowed
        # behind those that are not, so the draw begins just above; all other draws are as from 0 on.
        uniform = torch.empty(*batch, self.num_parameters, device=like.device, dtype=torch.float32)
        uniform.uniform_(torch.finfo(uniform.dtype).tiny, 1, generator=generator)
        return uniform.log_().neg_().log_()

    def choose(self, parameters: Float[Tensor, "*batch A"], noise: Float[Tensor, "*batch A"]) -> Tensor:
        return self.categories.highest(parameters - noise)

    def sample_code(
        self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Float[Tensor, "*batch E"]]:
        action = self.sample(parameters.detach(), generator)
        if not may_differentiate():
            return action, self.encode(action)
        probabilities = self.probabilities(parameters)
        return action, self.encode(action) + (probabilities - probabilities.detach())

    def greedy(self, parameters: Float[Tensor, "*batch A"]) -> Tensor:
        return self.categories.highest(parameters)

    def log_prob(self, parameters: Float[Tensor, "*batch A"], action: Tensor) -> Float[Tensor, "*batch"]:
        return self.categories.log_prob(parameters, action).sum(-1)

    def entropy(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        log_probs = self.categories.normalise(parameters.clamp(min=_least(parameters)))  # -inf, as others mask
        return -(log_probs.exp() * log_probs).sum(-1)

    def log_probs(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        log_probs = self.categories.normalise(parameters)
        return log_probs.masked_fill(log_probs < _least(log_probs) / 2, MASKED_LOG_PROB)

    def probabilities(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch C"]:
        return self.categories.normalise(parameters).exp()

    def reconstruction_nats(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return -(code * self.categories.normalise(decoded)).sum(-1)

    def reconstruction_accuracy(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return self.categories.accuracy(decoded, self.greedy(code))


class GaussianActions(ActionDistribution):
    """Box: a diagonal Gaussian; the parameters are its means, then its log standard deviations before bounding.

        mean    = centre + half_range · parameter
        log std = log half_range + LOG_STD_CENTRE + LOG_STD_REACH · tanh(parameter / LOG_STD_REACH)

    An action without two finite bounds has centre 0 and half_range 1. Actions are not clipped: their density is that
    of the Gaussian, and it is the environment that decides what a too large action does.
    """

    centre: Float[Tensor, " n"]
    half_range: Float[Tensor, " n"]
    is_bounded: Bool[Tensor, " n"]

    def __init__(self, space: Box):
        super().__init__()
        self.shape, self.dtype = tuple(space.shape), torch.float32
        self.encoding_size = math.prod(self.shape)
        self.num_parameters, self.num_choices = 2 * self.encoding_size, 0
        low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
        finite = has_scale(space)
        low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
        for name, numbers in (("centre", (low + high) / 2), ("half_range", (high - low) / 2)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.get_default_dtype()), persistent=False)
        self.register_buffer("is_bounded", torch.from_numpy(finite), persistent=False)

    def moments(
        self, parameters: Float[Tensor, "*batch A"]
    ) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
        """Return the means and the log standard deviations, in the units of the flattened action."""
        return self.gaussian(parameters)

    def gaussian(
        self, parameters: Float[Tensor, "*batch A"]
    ) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
        """Return `moments` of numbers that are Gaussian."""
        mean, log_std = parameters.chunk(2, dim=-1)
        log_std = LOG_STD_CENTRE + LOG_STD_REACH * torch.tanh(log_std / LOG_STD_REACH)
        return self.centre + self.half_range * mean, self.half_range.log() + log_std

    def mask(
        self, parameters: Float[Tensor, "*batch A"], allowed: Bool[Tensor, "*batch C"]
    ) -> Float[Tensor, "*batch A"]:
        return parameters

    def is_possible(self, allowed: Bool[Tensor, "*batch C"]) -> Bool[Tensor, "*batch"]:
        return allowed.new_ones(allowed.shape[:-1])

    def encode(self, action: Tensor) -> Float[Tensor, "*batch E"]:
        return (flatten_entry(action, self.shape).to(self.centre.dtype) - self.centre) / self.half_range

    def sample(self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None) -> Tensor:
        return self._action(self.draw(parameters.detach(), generator))

    def sample_code(
        self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Float[Tensor, "*batch E"]]:
        numbers = self.draw(parameters, generator)
        return self._action(numbers.detach()), (numbers - self.centre) / self.half_range

    def draw(
        self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch n"]:
        """Return numbers drawn, flat, as a function of the parameters and of noise."""
        return self._drawn(parameters, self._normal(parameters.shape[:-1], parameters, generator))

    def draw_noise(
        self, batch: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch n"] | None:
        return self._normal(batch, like, generator)

    def _normal(
        self, batch: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Float[Tensor, "*batch n"]:
        return like.new_empty(*batch, self.encoding_size).normal_(generator=generator)

    def choose(self, parameters: Float[Tensor, "*batch A"], noise: Float[Tensor, "*batch n"]) -> Tensor:
        return self._action(self._drawn(parameters, noise))

    def _drawn(
        self, parameters: Float[Tensor, "*batch A"], noise: Float[Tensor, "*batch n"]
    ) -> Float[Tensor, "*batch n"]:
        mean, log_std = self.gaussian(parameters)
        return mean + log_std.exp() * noise

    def greedy(self, parameters: Float[Tensor, "*batch A"]) -> Tensor:
        return self._action(self.moments(parameters)[0])

    def _action(self, numbers: Float[Tensor, "*batch n"]) -> Tensor:
        """Return numbers as an environment takes them, in float32 at least: there are no arrays of bfloat16."""
        return unflatten_entry(as_type(numbers, torch.promote_types(numbers.dtype, torch.float32)), self.shape)

    def log_prob(self, parameters: Float[Tensor, "*batch A"], action: Tensor) -> Float[Tensor, "*batch"]:
        return self.log_densities(parameters, flatten_entry(action, self.shape)).sum(-1)

    def entropy(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        return self.entropies(parameters).sum(-1)

    def log_densities(
        self, parameters: Float[Tensor, "*batch A"], numbers: Float[Tensor, "*batch n"]
    ) -> Float[Tensor, "*batch n"]:
        """Return the log-density of each number of a flattened action."""
        mean, log_std = self.gaussian(parameters)
        deviations = (numbers - mean) * torch.exp(-log_std)
        return -(0.5 * deviations.square() + log_std + 0.5 * math.log(2 * math.pi))

    def entropies(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch n"]:
        """Return the entropy of each number of a flattened action."""
        return self.gaussian(parameters)[1] + 0.5 * math.log(2 * math.pi * math.e)

    def log_probs(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        return parameters

    def probabilities(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch C"]:
        return parameters[..., :0]

    def reconstruction_nats(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return 0.5 * (code - decoded).square().sum(-1)

    def reconstruction_accuracy(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return ((code - decoded).abs() < CLOSE).float().mean(-1)


class BetaActions(GaussianActions):
    """Box: a Beta over the range of each number that has two finite bounds; a Gaussian for each other number.

        mode          = centre + half_range · tanh(parameter)
        log extra     = LOG_CONCENTRATION_CENTRE + LOG_CONCENTRATION_REACH · tanh(parameter / LOG_CONCENTRATION_REACH)
        concentration = LEAST_CONCENTRATION + extra
        x(action)     = (action − low) / (high − low)
        α, β          = 1 + concentration · x(mode), 1 + concentration · (1 − x(mode))
        log p(action) = (α − 1) log x(action) + (β − 1) log(1 − x(action)) − log B(α, β) − log 2

    Chou, Maturana & Scherer 2017, "Improving stochastic policy gradients in continuous control with deep reinforcement
    learning using the Beta distribution", whose α and β, from 1 on as here, are parameters by themselves.

    What is drawn lies within the bounds, so that it is what an environment executes; of integers it rounds it.
    Densities and entropies are of the number in half ranges, [-1, 1]: the uniform distribution has the largest entropy,
    log 2 per number, whatever the units of the space. A Gaussian number's are in the units of the space, as it has no
    other.

    The gradient of `sample_code` is the first one of `backward`: it has no second, and `torch.func` takes none.
    """

    def shapes(
        self, parameters: Float[Tensor, "*batch A"]
    ) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
        """Return α and β of each number, in at least float32: log B(α, β) is a small difference of large numbers."""
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        mode, log_extra = parameters.chunk(2, dim=-1)
        log_extra = LOG_CONCENTRATION_CENTRE + LOG_CONCENTRATION_REACH * torch.tanh(log_extra / LOG_CONCENTRATION_REACH)
        half = (LEAST_CONCENTRATION + torch.exp(log_extra)) / 2
        return 1 + half * (1 + torch.tanh(mode)), 1 + half * (1 - torch.tanh(mode))

    def moments(
        self, parameters: Float[Tensor, "*batch A"]
    ) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
        alpha, beta = self.shapes(parameters)
        total = alpha + beta
        mean = self.centre + self.half_range * (alpha - beta) / total
        std = self.half_range * 2 * torch.sqrt(alpha * beta / (total + 1)) / total
        gaussian_mean, gaussian_log_std = self.gaussian(parameters)
        return self._where_bounded(mean, gaussian_mean), self._where_bounded(std.log(), gaussian_log_std)

    def draw_noise(self, batch: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> None:
        return None

    def draw(
        self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch n"]:
        shapes = torch.stack(self.shapes(parameters), -1)
        sample = _Dirichlet.apply if shapes.requires_grad else torch._sample_dirichlet  # pyright: ignore[reportPrivateImportUsage]
        x = sample(shapes, generator)[..., 0]
        bounded = self.centre + self.half_range * (2 * x.clamp(INSIDE, 1 - INSIDE) - 1)
        return self._where_bounded(bounded, super().draw(parameters, generator))

    def log_densities(
        self, parameters: Float[Tensor, "*batch A"], numbers: Float[Tensor, "*batch n"]
    ) -> Float[Tensor, "*batch n"]:
        alpha, beta = self.shapes(parameters)
        x = (1 + (numbers.to(alpha.dtype) - self.centre) / self.half_range) / 2
        x = x.clamp(INSIDE, 1 - INSIDE)
        bounded = (alpha - 1) * x.log() + (beta - 1) * torch.log1p(-x) - _log_beta(alpha, beta) - math.log(2)
        return self._where_bounded(bounded, super().log_densities(parameters, numbers))

    def entropies(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch n"]:
        alpha, beta = self.shapes(parameters)
        surprises = (alpha - 1) * alpha.digamma() + (beta - 1) * beta.digamma()
        surprises = surprises - (alpha + beta - 2) * (alpha + beta).digamma()
        bounded = _log_beta(alpha, beta) - surprises + math.log(2)
        return self._where_bounded(bounded, super().entropies(parameters))

    def _where_bounded(self, bounded: Tensor, other: Tensor) -> Tensor:
        return torch.where(self.is_bounded, bounded, other)


class _Dirichlet(torch.autograd.Function):
    """A draw with its gradient; a Beta is one of two. torch.distributions has the same, but takes no generator."""

    @staticmethod
    def forward(ctx, concentration, generator):
        draw = torch._sample_dirichlet(concentration, generator)  # pyright: ignore[reportPrivateImportUsage]
        ctx.save_for_backward(draw, concentration)
        return draw

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        draw, concentration = ctx.saved_tensors
        total = concentration.sum(-1, keepdim=True).expand_as(concentration)
        slope = torch._dirichlet_grad(draw, concentration, total)  # pyright: ignore[reportPrivateImportUsage]
        return slope * (grad - (draw * grad).sum(-1, keepdim=True)), None


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    """Return the log of the Beta function, B(α, β) = Γ(α) Γ(β) / Γ(α + β)."""
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


class ProductActions(ActionDistribution):
    """Dict and Tuple of choices and Boxes: independent parts, all that is theirs side by side.

        log π(a) = Σₚ log πₚ(aₚ),   entropy = Σₚ entropyₚ

    Attributes:
        dtype: float64, which holds whole numbers exactly beside those of a Box.
    """

    def __init__(self, parts: list[ActionDistribution]):
        super().__init__()
        self.parts: list[ActionDistribution] = nn.ModuleList(parts)  # pyright: ignore[reportAttributeAccessIssue]
        self._parameters_of, self._choices_of, self._codes_of = (
            [getattr(part, size) for part in parts] for size in ("num_parameters", "num_choices", "encoding_size")
        )
        self._numbers_of = [math.prod(part.shape) for part in parts]
        self.num_parameters, self.num_choices, self.encoding_size = map(
            sum, (self._parameters_of, self._choices_of, self._codes_of)
        )
        self.shape, self.dtype = (sum(self._numbers_of),), torch.float64

    def actions(self, action: Tensor) -> list[Tensor]:
        """Return the action of each part, in its own type."""
        numbers = action.split(self._numbers_of, -1)
        return [x.to(part.dtype) for part, x in zip(self.parts, numbers, strict=True)]

    def mask(
        self, parameters: Float[Tensor, "*batch A"], allowed: Bool[Tensor, "*batch C"]
    ) -> Float[Tensor, "*batch A"]:
        return self._each("mask", parameters.split(self._parameters_of, -1), allowed.split(self._choices_of, -1))

    def is_possible(self, allowed: Bool[Tensor, "*batch C"]) -> Bool[Tensor, "*batch"]:
        rows = zip(self.parts, allowed.split(self._choices_of, -1), strict=True)
        return torch.stack([part.is_possible(x) for part, x in rows]).all(0)

    def encode(self, action: Tensor) -> Float[Tensor, "*batch E"]:
        return self._each("encode", self.actions(action))

    def sample(self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None) -> Tensor:
        rows = zip(self.parts, parameters.split(self._parameters_of, -1), strict=True)
        return torch.cat([part.sample(x, generator).to(self.dtype) for part, x in rows], -1)

    def draw_noise(self, batch: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Any:
        noise = tuple(part.draw_noise(batch, like, generator) for part in self.parts)
        return None if any(x is None for x in noise) else noise

    def choose(self, parameters: Float[Tensor, "*batch A"], noise: tuple[Tensor, ...]) -> Tensor:
        rows = zip(self.parts, parameters.split(self._parameters_of, -1), noise, strict=True)
        return torch.cat([part.choose(x, drawn).to(self.dtype) for part, x, drawn in rows], -1)

    def sample_code(
        self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Float[Tensor, "*batch E"]]:
        rows = zip(self.parts, parameters.split(self._parameters_of, -1), strict=True)
        actions, codes = zip(*(part.sample_code(x, generator) for part, x in rows), strict=True)
        return torch.cat([action.to(self.dtype) for action in actions], -1), torch.cat(codes, -1)

    def greedy(self, parameters: Float[Tensor, "*batch A"]) -> Tensor:
        rows = zip(self.parts, parameters.split(self._parameters_of, -1), strict=True)
        return torch.cat([part.greedy(x).to(self.dtype) for part, x in rows], -1)

    def log_prob(self, parameters: Float[Tensor, "*batch A"], action: Tensor) -> Float[Tensor, "*batch"]:
        return self._sum("log_prob", parameters.split(self._parameters_of, -1), self.actions(action))

    def entropy(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        return self._sum("entropy", parameters.split(self._parameters_of, -1))

    def log_probs(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        return self._each("log_probs", parameters.split(self._parameters_of, -1))

    def probabilities(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch C"]:
        return self._each("probabilities", parameters.split(self._parameters_of, -1))

    def reconstruction_nats(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return self._sum("reconstruction_nats", decoded.split(self._codes_of, -1), code.split(self._codes_of, -1))

    def reconstruction_accuracy(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        rows = zip(self.parts, decoded.split(self._codes_of, -1), code.split(self._codes_of, -1), strict=True)
        shares = zip(rows, self._numbers_of, strict=True)
        right = [part.reconstruction_accuracy(x, y) * n for (part, x, y), n in shares]
        return torch.stack(right).sum(0) / sum(self._numbers_of)

    def _each(self, name: str, *columns: Sequence[Tensor]) -> Tensor:
        """Return what each part answers to its share of the columns, side by side."""
        rows = zip(self.parts, *columns, strict=True)
        return torch.cat([getattr(part, name)(*row) for part, *row in rows], -1)

    def _sum(self, name: str, *columns: Sequence[Tensor]) -> Tensor:
        """Return the sum of what each part answers to its share of the columns."""
        rows = zip(self.parts, *columns, strict=True)
        return torch.stack([getattr(part, name)(*row) for part, *row in rows]).sum(0)


def _least(x: Tensor) -> float:
    """Return a logit of what is not allowed: so low that its probability is 0, and far from overflowing in sums."""
    return torch.finfo(x.dtype).min / 4
