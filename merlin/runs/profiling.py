"""Where the time and the memory of training go."""

import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from merlin.environments.batch import Environment
from merlin.networks.products import flop_formulas, product
from merlin.networks.spaces import describe_entries
from merlin.precision import restoring_torch
from merlin.runs.monitor import Monitor
from merlin.runs.presets import RunConfig
from merlin.runs.reporting import Reporter
from merlin.runs.run import build_agent, build_environment, evaluate_held_out
from merlin.runs.settings import to_dict
from merlin.runs.tracking import Tracker
from merlin.states import map_state
from merlin.training.trainer import Trainer

PARTS = ("environment", "acting", "learning", "logging")
MEGABYTE = 2**20
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What training costs on this machine."""

    steps_per_second: float
    """Environment steps, all environments together."""
    shares: dict[str, float]
    """Fractions of the time spent in environment, acting, learning and logging; what is missing to 1 is the rest."""
    peak_megabytes: float
    """Most memory ever in use: of the GPU's where there is one, else of the process."""
    first_megabytes: float
    """Memory in use before the first window."""
    agent_bytes: float
    """What the agent carries from step to step, per environment."""
    task_bytes: float | None
    """What the task carries, per environment; none where it does not tell."""
    flops_per_step: float
    """Floating point operations of matrix products and convolutions per environment step."""
    product_flops_per_second: float
    """What this machine reaches in large matrix products, on as many threads and at the run's precision."""
    entries: list[str]
    """What each entry of the observation is read as."""
    operator_calls: dict[str, int]
    """Calls of PyTorch's operators in a window, by environment, acting and learning.

    Each takes the host some microseconds, however few environments share it.
    """

    @property
    def utilization(self) -> float:
        """Fraction of the machine's matrix products that training makes use of."""
        return self.steps_per_second * self.flops_per_step / self.product_flops_per_second


@restoring_torch()
def profile(
    config: RunConfig,
    seconds: float = 10.0,
    trace: Path | None = None,
    on_start: Callable[[], object] = lambda: None,
) -> Profile:
    """Train for some seconds after a warm-up of two windows, and return where the time went. Nothing is kept.

    On a GPU the shares are taken apart from the speed, for to tell them the host has to wait for the device.

    Args:
        seconds: How long to measure, at least two windows.
        trace: Where to write a Chrome trace of one window more.
        on_start: Is called once the environments are built.
    """
    config.training.set_torch()
    with build_environment(config) as environment, tempfile.TemporaryDirectory() as directory:
        run_dir, device = Path(directory), environment.device
        on_start()
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=10**12, seed=config.seed)
        with Reporter(run_dir, 10**12, stream=io.StringIO()) as reporter:
            tracker = Tracker("disabled", run_dir, to_dict(config), run_dir.name, config.task, note=reporter.note)
            monitor = Monitor(
                config, run_dir, trainer, reporter, tracker, -time.monotonic(), lambda: evaluate_held_out(agent, config)
            )
            first = _memory(device)
            for _ in range(2):
                monitor.report(*trainer.update())

            begin, steps = _now(device), trainer.env_steps
            while _now(device) - begin < seconds / 2 or trainer.env_steps == steps:
                monitor.report(*trainer.update())
            steps_per_second = (trainer.env_steps - steps) / (_now(device) - begin)

            clock = _Clock(device)
            environment.step = clock.timed("environment", environment.step)
            trainer.rollout.collect = clock.timed("acting", trainer.rollout.collect)
            trainer.update = clock.timed("learning", trainer.update)
            monitor.report = clock.timed("logging", monitor.report)
            begin = _now(device)
            while _now(device) - begin < seconds / 2 or not clock.spent["learning"]:
                monitor.report(*trainer.update())
            spent = _now(device) - begin
            shares = _apart({name: clock.spent[name] / spent for name in PARTS})

            steps = trainer.env_steps
            with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter, clock.counter:
                trainer.update()
            flops = counter.get_total_flops() / (trainer.env_steps - steps)
            if trace is not None:
                activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
                with torch.profiler.profile(activities=activities) as profiler:
                    monitor.report(*trainer.update())
                profiler.export_chrome_trace(str(trace))
            return Profile(
                steps_per_second=steps_per_second,
                shares=shares,
                peak_megabytes=_memory(device),
                first_megabytes=first,
                agent_bytes=_bytes(trainer.rollout.state.agent_state) / environment.num_envs,
                task_bytes=_task_bytes(environment),
                flops_per_step=flops,
                product_flops_per_second=measure_products(device),
                entries=describe_entries(environment.spaces),
                operator_calls=_apart(clock.calls),
            )


def measure_products(device: torch.device, size: int | None = None) -> float:
    """Return the floating point operations per second of square float32 matrix products, the median of nine.

    Args:
        size: Rows and columns; none takes 8,192 on a GPU and 1,024 elsewhere.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = torch.rand(2, size, size, device=device)
    product(a, b)
    spent = []
    for _ in range(9):
        begin = _now(device)
        product(a, b)
        spent.append(_now(device) - begin)
    return 2 * size**3 / statistics.median(spent)


class _Counter(TorchDispatchMode):
    """Counts calls of PyTorch's operators while it is entered."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.namespace != "profiler"  # names of parts for traces, see `_Clock`
        return func(*args, **(kwargs or {}))


class _Clock:
    """Adds up what calls cost, by name, and names them in traces."""

    def __init__(self, device: torch.device):
        self.device, self.counter = device, _Counter()
        self.spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.calls: dict[str, int] = dict.fromkeys(PARTS[:3], 0)

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            begin, number = _now(self.device), self.counter.number
            with record_function(name):
                result = function(*arguments)
            self.spent[name] += _now(self.device) - begin
            if self.counter.number > number:
                self.calls[name] += self.counter.number - number
            return result

        return call


def _apart(costs: dict[str, Number]) -> dict[str, Number]:
    """Return costs of parts without those inside: an update collects a window first, and that steps the environment."""
    acting, environment = costs["acting"], costs["environment"]
    return costs | {"learning": costs["learning"] - acting, "acting": acting - environment}


def _now(device: torch.device) -> float:
    """Return seconds by a clock that only goes on, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> float:
    """Return the most megabytes ever in use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _task_bytes(environment: Environment) -> float | None:
    if not environment.is_native:
        return None
    return sum(x.nbytes for x in environment.state_dict().values()) / environment.num_envs


def _bytes(state: Any) -> int:
    sizes: list[int] = []
    map_state(lambda x: sizes.append(x.nbytes) or x, state)
    return sum(sizes)
