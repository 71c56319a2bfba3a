"""merlin ray."""

import argparse
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from merlin.cli.arguments import add_command, whole_number
from merlin.errors import LAUNCHER, MerlinError

_EXAMPLES = """\
examples:
  merlin ray --processes 4 population merlin/CaptureTheFlag-v0 --agents 8
  merlin ray --processes 4 --address auto train --run-dir runs/four   on the machines of a cluster that runs
  merlin ray --processes 4 train --resume runs/four
"""
_COMMANDS = ("train", "population")
_PASSED_ON = ("GLOO_", "NCCL_", "TP_", "MERLIN_", "WANDB_")
"""Beginnings of the names of environment variables that all machines are given."""


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "train in several processes, wherever Ray has room for them, as torchrun does on one machine"
    add = add_command(commands, "ray", summary, ray, epilog=_EXAMPLES)
    add("--processes", metavar="N", type=whole_number(2, 10_000), required=True, help="how many")
    add("--cpus", metavar="C", type=whole_number(0), default=1, help="that Ray keeps for each (default: 1)")
    add("--gpus", metavar="G", type=whole_number(0), default=0, help="that Ray keeps for each (default: 0)")
    add("--address", metavar="ADDRESS", help="of the cluster; auto takes the one that this machine is in (default: "
        "RAY_ADDRESS or, without that, a cluster of this machine alone)")  # fmt: skip
    add("arguments", metavar="COMMAND ...", nargs=argparse.REMAINDER, help="train or population, and its arguments; "
        "all machines must have the package, and see the working directory")  # fmt: skip


def ray(options: argparse.Namespace) -> int:
    """Start the processes, print what they print, and return the first exit status that is not 0."""
    from merlin.cli import parse_arguments

    if options.arguments[:1] not in [[name] for name in _COMMANDS]:
        came = options.arguments[0] if options.arguments else "nothing"
        options.parser.error(f"what trains is `merlin train` or `merlin population`, but {came} came: name one of them")
    parse_arguments(options.arguments)  # what is wrong there is told once
    try:
        ray = _ray()
    except ImportError as error:
        raise MerlinError(
            "`merlin ray` needs Ray, which is not installed: run pip install 'merlin-agents[ray]'."
        ) from error
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise, in a cluster of this machine alone
    try:
        _reach(options.address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(options.address, logging_level="error", log_to_driver=False, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise MerlinError(
            f"There must be a Ray cluster at {options.address or os.environ.get('RAY_ADDRESS')}, but it was not "
            f"reached ({str(error).strip().splitlines()[0].rstrip('.')}): start one with `ray start --head`, or leave "
            "--address out."
        ) from error
    try:
        return _run(options)
    finally:
        ray.shutdown()


def _ray() -> Any:
    return importlib.import_module("ray")


def _reach(address: str) -> None:
    """Raise an OSError if nobody listens at host:port, where Ray would end the program after a minute."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), 5).close()


def _run(options: argparse.Namespace) -> int:
    from merlin.runs.run import interrupts

    ray = _ray()
    needs = {"CPU": options.processes * options.cpus, "GPU": options.processes * options.gpus}
    for name, number in needs.items():
        if number > (there := ray.cluster_resources().get(name, 0)):
            raise MerlinError(
                f"{options.processes} processes must find {number} {name}s together, but the cluster has {there:g}: "
                f"start fewer, or give each less with --{name.lower()}s."
            )
    actor = ray.remote(_Process).options(num_cpus=options.cpus, num_gpus=options.gpus, max_concurrency=2)
    actors = [actor.remote() for _ in range(options.processes)]
    nodes = ray.get([x.node.remote() for x in actors])
    here = ray.get_runtime_context().get_node_id()
    placed = sorted(zip(nodes, actors, strict=True), key=lambda x: (x[0] != here, x[0]))  # rank 0 here, if any is
    nodes, actors = [node for node, _ in placed], [actor for _, actor in placed]
    host, port = ray.get(actors[0].meeting_point.remote())
    shared = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    shared |= {"MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": str(options.processes)}
    given = "".join(
        f" --{x} {getattr(options, x)}"
        for x in ("cpus", "gpus")
        if options.parser.get_default(x) != getattr(options, x)
    )
    given += f" --address {options.address}" if options.address else ""
    shared[LAUNCHER] = f"merlin ray --processes {options.processes}{given}"

    refusals: set[str] = set()

    def follow(rank: int) -> int:
        # Ray shows each process its own GPUs alone, and counts them from 0.
        local_rank = 0 if options.gpus else nodes[:rank].count(nodes[rank])
        own = {"RANK": rank, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": nodes.count(nodes[rank])}
        environment = shared | {name: str(value) for name, value in own.items()}
        code = 1
        run = actors[rank].run.options(num_returns="streaming")
        for piece in run.remote(options.arguments, environment, str(Path.cwd())):
            told = ray.get(piece)
            if isinstance(told, int):
                code = told
            elif told not in refusals:
                if told.startswith("merlin: "):  # one sentence for all processes
                    refusals.add(told)
                sys.stdout.write(told)
                sys.stdout.flush()
        return code

    with ThreadPoolExecutor(options.processes) as pool, interrupts() as interrupted:
        running = [pool.submit(follow, rank) for rank in range(options.processes)]
        told = False
        while wait(running, 0.2).not_done:
            if interrupted and not told:  # each process writes its part of the checkpoint
                told = True
                for each in actors:
                    each.interrupt.remote()
    if interrupted:
        return 130
    return next((code for code in (x.result() for x in running) if code), 0)


class _Process:
    """An actor that keeps room for one process of `merlin`, and starts it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def node(self) -> str:
        """Return which machine this is."""
        return _ray().get_runtime_context().get_node_id()

    def meeting_point(self) -> tuple[str, int]:
        """Return a host and port of this machine where processes can meet."""
        with socket.socket() as free:
            free.bind(("", 0))
            return _ray().util.get_node_ip_address(), free.getsockname()[1]

    def run(self, arguments: list[str], environment: dict[str, str], directory: str) -> Iterator[str | int]:
        """Yield what the process prints, and at last its exit status."""
        if not Path(directory).is_dir():
            yield f"merlin: all machines must see the directory {directory}, but {socket.gethostname()} does not.\n"
            yield 1
            return
        command = [sys.executable, "-m", "merlin", *arguments]
        environment = dict(os.environ) | environment
        with subprocess.Popen(
            command, cwd=directory, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as self.process:
            assert self.process.stdout is not None
            for line in self.process.stdout:  # noqa: UP028 (Ray delegates to generators alone)
                yield line
        yield self.process.returncode

    def interrupt(self) -> None:
        """Ask the process to stop, which writes a checkpoint first. (Ray blocks SIGINT in what its workers start.)"""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
