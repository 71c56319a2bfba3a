"""A trained agent's step as a program of its own, by torch.export or ONNX: state in, state out, no merlin needed.

Inputs, batch first, by name:

    observation.NAME     an entry of the observation, texts as token ids; `action_mask` too, of a task that gives masks
    state.PATH           zeros before the first step, afterwards what came out under that name
    is_first             true where an episode starts: the state is zeroed before anything else
    reward               what the previous action earned

Outputs: `action`, the most probable choice or the mean of numbers, inside its space; `policy_parameters`; `value`; and
the next `state.PATH`.
"""

import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from merlin.agents import Agent
from merlin.errors import MerlinError, describe, obstacle, option
from merlin.networks.action_spaces import SimpleSpace, open_action_space
from merlin.networks.spaces import ACTION_MASK, shape_of
from merlin.runs.agent_spaces import to_config
from merlin.runs.presets import RunConfig
from merlin.runs.run import build_environment
from merlin.states import unflatten_state

Named = dict[str, Tensor]
TOLERANCE = 1e-4
"""Largest difference between a step's numbers in eager mode and exported, over 1 and their size."""


class Exported(NamedTuple):
    """A written program, and how it compares with the agent."""

    path: Path
    difference: float
    """The largest found, as `TOLERANCE` measures it."""
    steps: int
    """That were compared, each of a batch."""
    is_of_environment: bool
    """Whether the observations were the environment's; otherwise they were drawn from their spaces."""
    knows_masks: bool
    """Whether it is known that the task gives masks of actions, or that it gives none."""


class StepProgram(nn.Module):
    """An agent's greedy step as a function of named tensors."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent.eval().requires_grad_(False)
        self.template = agent.initial_state(1)
        self._seen = [*agent.spaces, ACTION_MASK]
        self.bounds: list[Tensor] | None = None
        parts = [part for _, part in open_action_space(agent.action_space)]
        if any(isinstance(part, Box) for part in parts):
            rows = [_bounds_of(part) for part in parts]
            columns = (np.concatenate(column) for column in zip(*rows, strict=True))
            low, high, whole = (column.reshape(agent.actions.shape) for column in columns)
            self.bounds = [torch.from_numpy(x).to(agent.actions.dtype) for x in (low, high)]
            self.is_whole = torch.from_numpy(whole)

    def forward(self, inputs: Named) -> Named:
        """Return a step's outputs."""
        agent = self.agent
        observation = {name: inputs[key] for name in self._seen if (key := f"observation.{name}") in inputs}
        state = unflatten_state(self.template, (inputs[name] for name in named_state(self.template)))
        extras = agent.likeliest_extras(state)
        perceived = agent.perceive_new(observation, state, inputs["is_first"], inputs["reward"], None, extras)
        parameters, value = agent.heads(perceived.activations, observation)
        action = agent.actions.greedy(parameters)
        after = agent.advance(perceived, agent.actions.encode(action)).state
        if self.bounds is not None:
            action = torch.clamp(action, *self.bounds)
            action = torch.where(self.is_whole, action.round(), action)
        return {"action": action, "policy_parameters": parameters, "value": value} | named_state(after)

    def inputs(self, observation: Named, state: Named, is_first: Tensor, reward: Tensor) -> Named:
        """Return the inputs of a step by their names, in their order."""
        seen = {f"observation.{name}": observation[name] for name in self._seen if name in observation}
        return seen | state | {"is_first": is_first, "reward": reward}


def _bounds_of(part: SimpleSpace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least and the largest of each number of a simple space, and whether it is whole; choices have none."""
    if not isinstance(part, Box):
        infinite = np.full(math.prod(shape_of(part)), np.inf)
        return -infinite, infinite, np.zeros(infinite.shape, bool)
    low, high = (bound.astype(np.float64).ravel() for bound in (part.low, part.high))
    return low, high, np.full(low.shape, not np.issubdtype(part.dtype, np.floating))


def named_state(state: Any, path: str = "state") -> Named:
    """Return the tensors of a state by their paths, such as `state.lstm.hidden`."""
    if isinstance(state, Tensor):
        return {path: state}
    if state is None:
        return {}
    return {name: x for key, part in state._asdict().items() for name, x in named_state(part, f"{path}.{key}").items()}


def export(
    agent: Agent,
    config: RunConfig,
    path: Path,
    form: Literal["torch", "onnx"] = "torch",
    batch_size: int | None = None,
    steps: int = 64,
) -> Exported:
    """Write an agent's step to a file, and return how its numbers compare with the agent's over `steps` steps.

    Args:
        agent: On the CPU.
        config: Of the run, for its environment to be played; where it is not installed observations are drawn, and
            masks of actions where the agent knows that there are.
        form: torch, an `ExportedProgram` for `torch.export.load`; or onnx.
        batch_size: B; None leaves it open.

    Raises:
        MerlinError: ONNX's packages are not installed, the agent cannot be exported, or what was written differs.
    """
    program = StepProgram(agent)
    rows, is_of_environment = play(program, config, batch_size or 3, steps)
    example = rows[0]
    dynamic = None
    if batch_size is None:
        batch = torch.export.Dim("batch", min=1)
        dynamic = ({name: {0: batch} for name in example},)
    about = {"spaces": to_config(agent), "agent": config.agent}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of GRUs, whose weights are also attributes, and of torch's own functions
            exported = torch.export.export(program, (example,), dynamic_shapes=dynamic)
            write = {"torch": write_torch, "onnx": write_onnx}[form]
            run = write(exported, example, path, json.dumps(about))
    except MerlinError:
        raise
    except OSError as error:
        raise MerlinError(f"{path} must be writable, but {obstacle(error)}: choose another {option('out')}.") from error
    except Exception as error:  # whatever an agent's step makes of being traced
        raise MerlinError(
            f"The step of {type(agent).__name__} must be a program without branches on data to be exported, "
            f"but {describe(error)}: export another agent."
        ) from error
    difference = largest_difference(run, program, rows)
    if not difference <= TOLERANCE:
        path.unlink(missing_ok=True)
        raise MerlinError(
            f"What is exported must compute the agent's numbers to {TOLERANCE:g}, but differs by {difference:.2g}: "
            "nothing was written; report this with the run's config.json."
        )
    knows_masks = is_of_environment or agent.gives_masks is not None or not agent.actions.num_choices
    return Exported(path, difference, len(rows), is_of_environment, knows_masks)


def write_torch(exported: Any, example: Named, path: Path, about: str) -> Callable[[Named], Named]:
    """Write an `ExportedProgram`, and return what was written as a function."""
    written = io.BytesIO()  # a path would have to end in .pt2
    torch.export.save(exported, written, extra_files={"merlin.json": about})
    path.write_bytes(written.getvalue())
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def write_onnx(exported: Any, example: Named, path: Path, about: str) -> Callable[[Named], Named]:
    """Write an ONNX file, and return what was written, run by onnxruntime, as a function."""
    try:
        onnxruntime, _ = import_module("onnxruntime"), import_module("onnxscript")  # which torch.onnx needs
    except ImportError as error:
        raise MerlinError(
            "ONNX needs onnx, onnxruntime and onnxscript, which are not all installed: pip install "
            "'merlin-agents[export]'."
        ) from error
    outputs = [spec.arg.name for spec in exported.graph_signature.output_specs]
    names = ["action", "policy_parameters", "value", *(name for name in example if name.startswith("state."))]
    assert len(outputs) == len(names), "outputs are named as StepProgram names them"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        exported, input_names=list(example), output_names=[_after(name) for name in names], dynamo=True, verbose=False
    )
    assert program is not None
    program.model.metadata_props["merlin"] = about
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}

    def run(inputs: Named) -> Named:
        found = session.run(None, {name: x.numpy() for name, x in inputs.items() if name in wanted})
        return {name: torch.from_numpy(np.asarray(x)) for name, x in zip(names, found, strict=True)}

    return run


def _after(name: str) -> str:
    """Return the name of an output in ONNX, where an input and an output cannot share one."""
    return f"next_{name}" if name.startswith("state.") else name


def play(program: StepProgram, config: RunConfig, batch_size: int, steps: int) -> tuple[list[Named], bool]:
    """Return the inputs of steps of the agent, resets among them, and whether the environment was played."""
    generator = torch.Generator().manual_seed(0)
    source, is_of_environment = _drawn(program.agent, batch_size), False
    try:
        environment = build_environment(config, batch_size)
    except MerlinError:
        environment = None
    if environment is not None:
        source, is_of_environment = _played(environment), True
    rows, outputs = [], {}
    state = {name: x.expand(batch_size, *x.shape[1:]) for name, x in named_state(program.template).items()}
    try:
        observation, is_first, reward = next(source)
        for _ in range(steps):
            is_first = is_first | (torch.rand(batch_size, generator=generator) < 0.05)
            rows.append(program.inputs(observation, state, is_first, reward))
            with torch.no_grad():
                outputs = program(rows[-1])
            state = {name: x for name, x in outputs.items() if name.startswith("state.")}
            observation, is_first, reward = source.send(outputs["action"])
    finally:
        if environment is not None:
            environment.close()
    return rows, is_of_environment


def _played(environment: Any) -> Generator[Any, Tensor, None]:
    timestep = environment.reset(0)
    while True:
        action = yield timestep.observation, timestep.is_first, timestep.reward
        timestep = environment.step(action)


def _drawn(agent: Agent, batch_size: int) -> Generator[Any, Tensor, None]:
    for number, space in enumerate(agent.spaces.values()):
        space.seed(number)
    is_first, generator = torch.ones(batch_size, dtype=torch.bool), torch.Generator().manual_seed(0)
    while True:
        samples = {name: [space.sample() for _ in range(batch_size)] for name, space in agent.spaces.items()}
        observation = {name: torch.from_numpy(np.stack(x)) for name, x in samples.items()}
        if agent.gives_masks:
            mask = torch.rand(batch_size, agent.actions.num_choices, generator=generator) < 0.5
            observation[ACTION_MASK] = mask | ~agent.actions.is_possible(mask).unsqueeze(-1)
        yield observation, is_first, torch.linspace(-1, 1, batch_size)
        is_first = torch.zeros_like(is_first)


def largest_difference(run: Callable[[Named], Named], program: StepProgram, rows: list[Named]) -> float:
    """Return the largest difference of any output, over 1 and the number's size, on the same inputs."""
    largest = 0.0
    with torch.no_grad():
        for inputs in rows:
            found = run(inputs)
            for name, wanted in program(inputs).items():
                wanted, came = wanted.double(), found[name].double()
                difference = ((came - wanted).abs() / (1 + wanted.abs())).max().item()
                largest = max(largest, difference) if difference == difference else float("nan")
    return largest
