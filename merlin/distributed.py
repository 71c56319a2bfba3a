"""The processes that train together, as torchrun starts them: sums over all of them.

With one process, which is the usual case, every function here returns what it was given. Where they train one agent,
each process has a share of the environments and a copy of the agent; what is taken over the batch (the loss, the scale
of advantages, the entropy of observations) is taken over all shares, so that learning is that of one process with all
environments. Where they train a population, each has agents of its own: see `merlin.population.population`.
"""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from merlin.errors import MerlinError
from merlin.errors import is_launched as is_launched

_is_alone = False


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() and not _is_alone else 1


def rank() -> int:
    """Return which of them this is, from 0: the one that reports and saves."""
    return dist.get_rank() if dist.is_initialized() and not _is_alone else 0


@contextmanager
def alone() -> Iterator[None]:
    """Take this process for the only one, as where each process trains agents of its own."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def speaks() -> bool:
    """Return whether this process is the one that speaks, also before they have joined."""
    return not is_launched() or os.environ["RANK"] == "0"


def local_rank() -> int:
    """Return which of the processes on this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def total(x: Tensor) -> Tensor:
    """Return the sum of x over all processes, without a gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def mean(x: Float[Tensor, "n *shape"]) -> Float[Tensor, "*shape"]:
    """Return the mean over the first dimension of all processes' x; 0 of no rows."""
    if world_size() == 1:
        return x.mean(0) if len(x) else x.sum(0)
    return total(x.sum(0)) / total(torch.tensor(float(len(x)), device=x.device)).clamp(min=1)


def total_count(count: int) -> int:
    """Return the sum of a number that the host knows over all processes."""
    return count if world_size() == 1 else int(total(torch.tensor(count)))


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return total_count(int(flag)) > 0


def gather(x: Any) -> list[Any] | None:
    """Return what all processes hold, in order, in the first of them, and None in the others."""
    if world_size() == 1:
        return [x]
    everything = [None] * world_size() if rank() == 0 else None
    dist.gather_object(x, everything)
    return everything


def share(x: Any) -> list[Any]:
    """Return what all processes hold, in order, in each of them."""
    if world_size() == 1:
        return [x]
    everything = [None] * world_size()
    dist.all_gather_object(everything, x)
    return everything


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over all processes, in one message."""
    if world_size() == 1:
        return
    gradients = [x.grad for x in parameters if x.grad is not None]
    flat = total(torch.cat([x.flatten() for x in gradients])) / world_size()
    for gradient, x in zip(gradients, flat.split([x.numel() for x in gradients]), strict=True):
        gradient.copy_(x.view_as(gradient))


@contextmanager
def joined(device: torch.device, timeout_seconds: float = 1800) -> Iterator[None]:
    """Join the other processes that torchrun started, if it did, and leave them at the end.

    Args:
        timeout_seconds: How long to wait for one that does not answer, as while the first evaluates.

    Raises:
        MerlinError: Another process ended before its time.
    """
    if not is_launched():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    if device.type == "cuda":
        torch.cuda.set_device(local_rank())
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise MerlinError(
                f"All {world_size()} processes must train to the end, but one that process {rank()} waited for ended "
                f"or did not answer: see what it printed, then resume from the last checkpoint."
            ) from error
        raise
    finally:
        # What holds on to the group in cycles would end its threads only as Python ends, which may abort the process.
        gc.collect()
        dist.destroy_process_group()
