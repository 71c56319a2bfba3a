"""Distributions of latent variables, one family beside another, made of what a network puts out.

A family has

    size, num_parameters              Z, entries of a latent, and how wide a network's output is for it
    from_parameters(parameters)       the distribution
    draw_noise(batch_size, ...)       what makes a sample a function of the parameters

and a distribution, a NamedTuple of its parameters,

    sample(noise)                     a sample through which gradients pass; of no noise (zeros) the mode
    mean, mode                        the latent expected, and the likeliest
    entropy_nats, kl_nats             in nats, summed over the latent's entries
    marginal                          of all rows together

so that the noise can be kept, and learning computes the latents of acting again.

Axes: Z entries of a latent; for one-hots G groups of C classes, Z = G · C.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merlin.errors import MerlinError
from merlin.precision import as_type, may_differentiate
from merlin.ranges import WIDTH, Range, Settings
from merlin.states import detach_state

Estimator = Literal["straight_through", "gumbel_softmax", "st_gumbel", "gumbel_rao", "reinmax"]


@runtime_checkable
class Latent(Protocol):
    """A distribution of a latent variable. See the module for what each does."""

    def sample(self, noise: Float[Tensor, "*batch _"]) -> Float[Tensor, "*batch Z"]: ...

    @property
    def mean(self) -> Float[Tensor, "*batch Z"]: ...

    @property
    def mode(self) -> Float[Tensor, "*batch Z"]: ...

    def entropy_nats(self) -> Float[Tensor, "*batch"]: ...

    def kl_nats(self, prior: Any) -> Float[Tensor, "*batch"]: ...

    def marginal(self) -> "Latent": ...


@runtime_checkable
class LatentFamily(Protocol):
    """What makes distributions of a network's output. See the module for what each does."""

    @property
    def size(self) -> int: ...

    @property
    def num_parameters(self) -> int: ...

    def from_parameters(self, parameters: Float[Tensor, "*batch Y"]) -> Latent: ...

    def draw_noise(
        self, batch_size: int, like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B Z"]: ...


Distribution = TypeVar("Distribution", bound=Latent)


class DiagonalGaussian(NamedTuple):
    """A Gaussian with independent entries, by mean and log-variance."""

    mean: Float[Tensor, "*batch Z"]
    log_variance: Float[Tensor, "*batch Z"]

    def sample(self, noise: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        """Return mean + standard deviation · noise: a sample if the noise is standard normal, the mode if it is 0."""
        return torch.addcmul(self.mean, torch.exp(0.5 * self.log_variance), noise)

    @property
    def mode(self) -> Float[Tensor, "*batch Z"]:
        """The mean."""
        return self.mean

    def entropy_nats(self) -> Float[Tensor, "*batch"]:
        """Return ½ Σ (log σ² + log 2πe), the differential entropy."""
        return 0.5 * (self.log_variance + math.log(2 * math.pi * math.e)).sum(-1)

    def kl_nats(self, prior: "DiagonalGaussian") -> Float[Tensor, "*batch"]:
        """Return KL[self ‖ prior].

            d  = log σ² − log σ²_prior
            KL = ½ Σ (exp(d) − 1 − d + (μ − μ_prior)² / σ²_prior)

        At least 0, and exactly 0 where the two are the same.
        """
        d = self.log_variance - prior.log_variance
        distance = (self.mean - prior.mean).square() * torch.exp(-prior.log_variance)
        return 0.5 * (torch.expm1(d) - d + distance).sum(-1)

    def marginal(self) -> "DiagonalGaussian":
        """Return the Gaussian with the moments of all rows together: what a prior that knows nothing would be."""
        mean, log_variance = (_rows(x, 1) for x in self)
        return DiagonalGaussian(mean.mean(0), (mean.var(0, correction=0) + log_variance.exp().mean(0)).log())


class OneHots(NamedTuple):
    """G independent categorical variables of C classes each, one-hot and side by side.

    Attributes:
        logits: Up to a constant of each group.
        estimator: How gradients pass through a sample.
        temperature: Of estimators that relax.
    """

    logits: Float[Tensor, "*batch G C"]
    estimator: Estimator = "straight_through"
    temperature: float = 1.0

    @property
    def log_probs(self) -> Float[Tensor, "*batch G C"]:
        """Log-probabilities, finite where a logit is −∞ too."""
        return _finite(self.logits).log_softmax(-1)

    def sample(
        self, noise: Float[Tensor, "*batch Z"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch Z"]:
        """Return one-hots (with `gumbel_softmax`, what is between them), of which the noise is standard Gumbel.

        Args:
            generator: Of what `gumbel_rao` draws beside the noise, which unless given follows from that; it changes
                gradients alone.
        """
        noise = noise.unflatten(-1, self.logits.shape[-2:])
        if self.estimator == "gumbel_rao":
            return gumbel_rao(self.logits, noise, self.temperature, generator=generator).flatten(-2)
        return SAMPLERS[self.estimator](self.logits, noise, self.temperature).flatten(-2)

    @property
    def mean(self) -> Float[Tensor, "*batch Z"]:
        """Probabilities."""
        return self.logits.softmax(-1).flatten(-2)

    @property
    def mode(self) -> Float[Tensor, "*batch Z"]:
        """The likeliest class of each group, one-hot."""
        return highest(self.logits).flatten(-2)

    def log_prob(self, one_hots: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch"]:
        """Return the log-probability of what was sampled."""
        return (self.log_probs.flatten(-2) * one_hots).sum(-1)

    def entropy_nats(self) -> Float[Tensor, "*batch"]:
        """Return −Σ p log p, over classes and groups."""
        log_probs = self.log_probs
        return -(log_probs.exp() * log_probs).sum((-2, -1))

    def kl_nats(self, prior: "OneHots") -> Float[Tensor, "*batch"]:
        """Return KL[self ‖ prior] = Σ p (log p − log p_prior), over classes and groups; of itself exactly 0."""
        log_probs = self.log_probs
        return (log_probs.exp() * (log_probs - prior.log_probs)).sum((-2, -1))

    def marginal(self) -> "OneHots":
        """Return the mean distribution of all rows: what a prior that knows nothing would be."""
        return self._replace(logits=_rows(self.logits, 2).softmax(-1).mean(0).clamp(min=1e-30).log())


@dataclass(frozen=True)
class GaussianFamily:
    """Gaussians of `size` independent entries, by means, then log-variances. Noise is standard normal."""

    size: int

    @property
    def num_parameters(self) -> int:
        return 2 * self.size

    def from_parameters(self, parameters: Float[Tensor, "*batch Y"]) -> DiagonalGaussian:
        """Return the Gaussian whose means and log-variances a network put out side by side.

        Raises:
            MerlinError: These are not `num_parameters` numbers.
        """
        _check_width(parameters, self.num_parameters)
        return DiagonalGaussian(*parameters.chunk(2, -1))

    def draw_noise(
        self, batch_size: int, like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B Z"]:
        """Return standard normal noise, of the device and type of `like`."""
        return torch.randn((batch_size, self.size), generator=generator, device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class OneHotFamily:
    """One-hot categoricals, `groups` of `classes` each, by their logits. Noise is standard Gumbel.

    Args:
        uniform_mix: ε, part of the uniform distribution in every one, in samples and KL alike, so that no class is
            ruled out and no KL is above G · log(C / ε). Hafner et al. 2023, arXiv:2301.04104.
        estimator: How gradients pass through a sample.
        temperature: Of estimators that relax.

    Raises:
        MerlinError: There are fewer groups than 1, classes than 2, or a number is out of its range.
    """

    groups: int
    classes: int
    uniform_mix: float = 0.0
    estimator: Estimator = "straight_through"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("classes", 2)):
            if (count := getattr(self, name)) < least:
                raise MerlinError(
                    f"Categorical latents must have {name} of at least {least}, but {count} came: raise it."
                )
        if not 0 <= self.uniform_mix < 1:
            raise MerlinError(f"uniform_mix must be at least 0 and less than 1, but {self.uniform_mix} came.")
        if self.estimator not in get_args(Estimator):
            known = ", ".join(get_args(Estimator))
            raise MerlinError(f"estimator must be one of {known}, but {self.estimator!r} came.")
        if not self.temperature >= (least := 1.0 if self.estimator == "reinmax" else 1e-3):
            raise MerlinError(
                f"The temperature of {self.estimator} must be at least {least:g}, but {self.temperature} came."
            )

    @property
    def size(self) -> int:
        return self.groups * self.classes

    @property
    def num_parameters(self) -> int:
        return self.size

    def from_parameters(self, parameters: Float[Tensor, "*batch Y"]) -> OneHots:
        """Return the categoricals whose logits a network put out, group by group.

        Raises:
            MerlinError: These are not `num_parameters` numbers.
        """
        _check_width(parameters, self.num_parameters)
        logits = parameters.unflatten(-1, (self.groups, self.classes))
        if self.uniform_mix:
            logits = torch.log((1 - self.uniform_mix) * logits.softmax(-1) + self.uniform_mix / self.classes)
        return OneHots(logits, self.estimator, self.temperature)

    def draw_noise(
        self, batch_size: int, like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B Z"]:
        """Return standard Gumbel noise, of the device and type of `like`."""
        return gumbel((batch_size, self.size), like, generator)


@dataclass(frozen=True, kw_only=True)
class LatentConfig(Settings):
    """Family and size of an agent's latents."""

    latent: Literal["gaussian", "categorical"] = "gaussian"
    """A Gaussian of `latent_size` entries, or one-hots of `latent_groups` variables of `latent_classes` each."""
    latent_size: Annotated[int, WIDTH] = 200
    """Z, entries of a Gaussian latent."""
    latent_groups: Annotated[int, WIDTH] = 32
    """G, variables of a categorical one. Where much is to be said many small ones learn sooner than few large ones;
    where little is, an independent prior imagines few of them more consistently."""
    latent_classes: Annotated[int, Range(2, 65_536)] = 4
    """C, classes of each."""
    latent_uniform_mix: Annotated[float, Range(0, 0.99)] = 0.01
    """Part of the uniform distribution in categorical ones, so that no class is ruled out (Hafner et al. 2023;
    DreamerV2 has none)."""
    latent_estimator: Estimator = "straight_through"
    """How gradients pass through a categorical sample (`merlin.latents`)."""
    latent_temperature: Annotated[float, Range(1e-3, 1000)] = 1.0
    """Of estimators that relax; of reinmax at least 1."""


def _check_width(parameters: Tensor, width: int) -> None:
    if parameters.shape[-1:] != (width,):
        raise MerlinError(
            f"A latent's parameters must be {width} numbers in the last dimension, but their shape is "
            f"{list(parameters.shape)}: let the network put out `num_parameters`."
        )


def _rows(x: Tensor, axes: int) -> Tensor:
    """Return parameters of all rows, each of so many axes; where there is no row, those of one that knows nothing."""
    rows = x.reshape(-1, *x.shape[-axes:])
    return rows if len(rows) else rows.new_zeros(1, *rows.shape[1:])


def make_family(config: LatentConfig) -> LatentFamily:
    """Return the family of latents that is configured."""
    if config.latent == "gaussian":
        return GaussianFamily(config.latent_size)
    return OneHotFamily(
        config.latent_groups,
        config.latent_classes,
        config.latent_uniform_mix,
        config.latent_estimator,
        config.latent_temperature,
    )


def gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "*batch"]:
    """Return standard Gumbel noise, −log(−log u), of the device and type of `like`.

    Uniforms cost a fifth of exponentials. They begin just above 0, whose noise would be infinite. In bfloat16 there are
    256 of them: drawn so, the highest of many classes would often be several, of which the first is taken.
    """
    uniform = torch.empty(shape, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    uniform.uniform_(torch.finfo(uniform.dtype).tiny, 1, generator=generator)
    return as_type(uniform.log_().neg_().log_().neg_(), like.dtype)


def highest(scores: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Return the one-hot of the highest score of each row."""
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def _finite(logits: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Return logits of which −∞ is so low that its probability is 0 too, and the product of both no NaN."""
    return logits.clamp(min=torch.finfo(logits.dtype).min / 4)


def straight_through(
    logits: Float[Tensor, "*batch C"], noise: Float[Tensor, "*batch C"], temperature: float = 1.0
) -> Float[Tensor, "*batch C"]:
    """Return a one-hot sample D with the gradient of the probabilities softmax(θ). Bengio et al. 2013, arXiv:1308.3432.

    The temperature is 1, whatever is given.
    """
    one_hot = highest(logits.detach() + noise)
    return pass_gradient(one_hot, logits.softmax(-1)) if may_differentiate() else one_hot


def gumbel_softmax(
    logits: Float[Tensor, "*batch C"], noise: Float[Tensor, "*batch C"], temperature: float = 1.0
) -> Float[Tensor, "*batch C"]:
    """Return softmax((θ + g) / τ), which is not one-hot. Jang et al. 2016, arXiv:1611.01144; Maddison et al. 2016."""
    return ((logits + noise) / temperature).softmax(-1)


def st_gumbel(
    logits: Float[Tensor, "*batch C"], noise: Float[Tensor, "*batch C"], temperature: float = 1.0
) -> Float[Tensor, "*batch C"]:
    """Return a one-hot sample with the gradient of `gumbel_softmax` of the same noise. Jang et al. 2016."""
    return pass_gradient(highest(logits.detach() + noise), gumbel_softmax(logits, noise, temperature))


def gumbel_rao(
    logits: Float[Tensor, "*batch C"],
    noise: Float[Tensor, "*batch C"],
    temperature: float = 1.0,
    num_samples: int = 10,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch C"]:
    """Return a one-hot sample with the mean gradient of `st_gumbel` over noise that leads to the same sample.

        D = onehot(argmax(θ + g));   gradient of the mean over j of softmax((θ + G_j) / τ),  G_j ~ Gumbel given D

    The expectation is that of `st_gumbel`, the variance less. Paulus et al. 2020, arXiv:2010.04838.

    Args:
        num_samples: Draws of G.
        generator: Of them. Unless given they follow from the noise: a step that is taken again has the same gradient.
            `torch.func.vmap` maps over none that is given.
    """
    one_hot = highest(logits.detach() + noise)
    if not may_differentiate():
        return one_hot
    if generator is None:
        draws = _conditional_gumbels(logits.detach(), one_hot, exponentials_of(noise.detach(), num_samples))
    else:
        draws = conditional_gumbels(logits.detach(), one_hot, num_samples, generator)
    soft = ((logits + as_type(draws, logits.dtype)) / temperature).softmax(-1)
    return pass_gradient(one_hot, soft.mean(0))


def conditional_gumbels(
    logits: Float[Tensor, "*batch C"],
    one_hot: Float[Tensor, "*batch C"],
    num_samples: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "k *batch C"]:
    """Return Gumbel noise given that θ + G is highest where the one-hot is 1, at i.

        θ_i + G_i = log Z − log E_i;   θ_j + G_j = −log(E_j / exp θ_j + E_i / Z);   E ~ Exp(1),   Z = Σ exp θ

    Maddison et al. 2014, arXiv:1411.0030; Paulus et al. 2020, Eq 8.
    """
    exponentials = logits.new_empty(num_samples, *logits.shape).exponential_(generator=generator)
    return _conditional_gumbels(logits, one_hot, exponentials)


def _conditional_gumbels(
    logits: Float[Tensor, "*batch C"], one_hot: Float[Tensor, "*batch C"], exponentials: Float[Tensor, "k *batch C"]
) -> Float[Tensor, "k *batch C"]:
    log_probs = _finite(logits).log_softmax(-1)  # so that Z = 1
    of_highest = (exponentials * one_hot).sum(-1, keepdim=True)
    # log E_j − log p_j, added to log E_i as exponents are: p_j may be too small to divide by.
    others = -torch.logaddexp(exponentials.log() - log_probs, of_highest.log())
    return torch.where(one_hot > 0, -of_highest.log(), others) - log_probs


def exponentials_of(noise: Float[Tensor, "*batch C"], num_samples: int) -> Float[Tensor, "k *batch C"]:
    """Return numbers that look like draws of Exp(1) and follow from the noise, those of each row from that row alone.

    Operations of tensors, which are compiled and mapped as a generator's draws are not: the bits of a row, mixed with
    the number of each draw by a hash.
    """
    bits = noise.to(torch.float32).view(torch.int32).long()
    size = bits.shape[-1]
    places = torch.arange(size, device=noise.device)
    row = _mixed(_mixed(bits) + places).sum(-1, keepdim=True)
    numbers = torch.arange(num_samples, device=noise.device).view(-1, *[1] * noise.ndim) * size + places
    bits = _mixed(_mixed(row) + _mixed(numbers))
    uniform = ((bits >> 9).to(torch.float32) + 0.5) / 2**23  # of 24 bits the largest would round to 1
    return as_type(-uniform.log(), torch.promote_types(noise.dtype, torch.float32))


def _mixed(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return 32 bits that depend on all of the last 32. Wellons 2018, "Prospecting for hash functions"."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)


def reinmax(
    logits: Float[Tensor, "*batch C"], noise: Float[Tensor, "*batch C"], temperature: float = 1.0
) -> Float[Tensor, "*batch C"]:
    """Return a one-hot sample D with a gradient of second order, that of 2 π₁ − ½ p.

        p = softmax(θ);   π = (softmax(θ / τ) + D) / 2;   π₁ = softmax(θ + sg(log π − θ))

    Exact in expectation for quadratic functions where τ = 1. Liu et al. 2023, arXiv:2304.08612, Algorithm 2.

    Args:
        temperature: τ, at least 1.
    """
    probs = logits.softmax(-1)
    one_hot = highest(logits.detach() + noise)
    constant = _finite(logits.detach())
    shift = (((constant / temperature).softmax(-1) + one_hot) / 2).log() - constant
    return pass_gradient(one_hot, 2 * (logits + shift).softmax(-1) - 0.5 * probs)


def pass_gradient(value: Tensor, through: Tensor) -> Tensor:
    """Return exactly the value, with the gradient of `through`. Any other bracketing rounds."""
    return value + (through - through.detach())


SAMPLERS = {
    "straight_through": straight_through,
    "gumbel_softmax": gumbel_softmax,
    "st_gumbel": st_gumbel,
    "gumbel_rao": gumbel_rao,
    "reinmax": reinmax,
}
"""Samplers of one-hots by name: (logits, standard Gumbel noise, temperature) -> sample with a gradient."""


def kl_nats(posterior: Distribution, prior: Distribution) -> Float[Tensor, "*batch"]:
    """Return KL[posterior ‖ prior] in nats, summed over the latent's entries."""
    return posterior.kl_nats(prior)


def balanced_kl_nats(
    posterior: Distribution, prior: Distribution, balance: float | None = 0.8
) -> Float[Tensor, "*batch"]:
    """Return KL[posterior ‖ prior] in nats, `balance` of whose gradient teaches the prior, the rest the posterior.

        α · KL[sg(posterior) ‖ prior] + (1 − α) · KL[posterior ‖ sg(prior)]

    Hafner et al. 2021, arXiv:2010.02193, Algorithm 2.

    Args:
        balance: α, from 0 to 1; None is the plain KL.

    Raises:
        MerlinError: The balance is out of its range.
    """
    if balance is None:
        return kl_nats(posterior, prior)
    if not 0 <= balance <= 1:
        raise MerlinError(f"balance must be from 0 to 1, but {balance} came.")
    to_prior, to_posterior = split_kl_nats(posterior, prior)
    return balance * to_prior + (1 - balance) * to_posterior


def split_kl_nats(
    posterior: Distribution, prior: Distribution
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return KL[sg(posterior) ‖ prior] and KL[posterior ‖ sg(prior)]: one value, each with a gradient for one."""
    return kl_nats(detach_state(posterior), prior), kl_nats(posterior, detach_state(prior))
