"""Experience: what passes between agents and training, a window of it, the output of a step, and losses.

Time, drawn once:

    row           0      1      2      3  (next episode)
    observation   o0     o1     o2     o0'
    is_first      1      0      0      1        recurrent state and memory are zeroed BEFORE a row with is_first is seen
    action        a0     a1     a2     a0'      chosen on seeing the row
    reward        r0     r1     r2     r0'      earned by this row's action
    discount      g      g      0|g    g        0 after termination; g after truncation, which bootstraps from
                                                its final observation
    next_value    V1     V2     -|Vf   ...      value of what the action led to: the next row, or the final observation
    is_end        0      0      1      0        the episode ended with this row's action, in either way

Axes: T time, B batch, A action parameters, Z latent, K read keys, N slots.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Reads(NamedTuple):
    """Reads of the steps of a window, by the step that wrote what they found. Steps read what earlier ones wrote.

    `strengths` are those of the keys, `weights` the read weights on the words of the window's own steps, and `earlier`
    the largest on a word that was written before the window.
    """

    strengths: Float[Tensor, "T B K"]
    weights: Float[Tensor, "T B K T"]
    earlier: Float[Tensor, "T B K"]


class Unroll(NamedTuple):
    """A window of T steps of B environments, time-major. The state that it starts from travels beside it.

    `action` is what was taken on `observation`, and `reward` what it earned. `discount` is the discount factor, 0 where
    the action ended the episode by termination. `next_value` is V of the observation that the action led to, the final
    one where the episode was truncated. `is_end` is true where the episode ended with the action, in either way.
    `previous_reward` is the reward of the row before, 0 where an episode starts. `is_valid` is false in rows whose
    action the environment ignored (gymnasium's next-step autoreset); they count in no loss. `extras` are the agent's
    own: what it must keep of acting, such as the noise of its latents, to compute the same numbers in learning. `reads`
    are kept where value is transported (`merlin.objectives.value_transport`).
    """

    observation: dict[str, Tensor]
    is_first: Bool[Tensor, "T B"]
    previous_reward: Float[Tensor, "T B"]
    action: Tensor
    log_prob: Float[Tensor, "T B"]
    reward: Float[Tensor, "T B"]
    discount: Float[Tensor, "T B"]
    value: Float[Tensor, "T B"]
    next_value: Float[Tensor, "T B"]
    is_end: Bool[Tensor, "T B"]
    is_valid: Bool[Tensor, "T B"]
    extras: Any = None
    reads: Reads | None = None


class StepOutput(NamedTuple):
    """The action on one observation, and what led to it. Entries that an agent lacks are None.

    `extras` are those of `Unroll`. `read_weights` are those of the reads that the next step sees, `policy_read_weights`
    those of a policy that reads before it acts; `slots` is where the step was written, −1 where nowhere.
    """

    action: Tensor
    log_prob: Float[Tensor, "B"]
    value: Float[Tensor, "B"]
    policy_parameters: Float[Tensor, "B A"]
    extras: Any = None
    slots: Int[Tensor, "B"] | None = None
    latent: Float[Tensor, "B Z"] | None = None
    read_weights: Float[Tensor, "B K N"] | None = None
    policy_read_weights: Float[Tensor, "B K N"] | None = None


class Losses(NamedTuple):
    """The scalar to minimise, and metrics by name with their unit."""

    total: Float[Tensor, ""]
    metrics: dict[str, Tensor]
