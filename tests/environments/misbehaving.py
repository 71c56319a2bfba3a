"""An environment that does, at its third step or when asked, one of the many things that environments should not.

    gymnasium.make("test/Misbehaving-v0", misdeed="sys.exit()")
    merlin train tests.environments.misbehaving:test/Misbehaving-v0 --env-kwargs '{"misdeed": "sys.exit()"}'

`MISDEEDS` says of each what is told of it.
"""

import ctypes
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

SUBPROCESS_SECONDS = 31.25 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) / 64
"""How long what is left running by "starts a program" would run: its command line has the number."""


class Misdeed(NamedTuple):
    """What is done, and what comes of it."""

    does: Callable[[Any], Any]
    """Called with the environment; what it returns takes the place of what the method returns, unless None."""
    told: str | None = None
    """A pattern of the sentence that ends the run; None where it goes on."""
    when: str = "step"
    """In the third step, in a reset, in the constructor, when the environment is closed."""
    in_process: bool = True
    """May be done in the trainer's own process, of which it leaves something."""


class Misbehaving(gymnasium.Env):
    action_space = spaces.Discrete(2)
    observation_space = spaces.Dict(
        {
            "number": spaces.Box(0, 1, (3,), np.float32),
            "card": spaces.Discrete(5, start=2),
            "cells": spaces.MultiDiscrete([3, 4]),
            "bits": spaces.MultiBinary(3),
            "said": spaces.Text(4, charset="ab"),
            "pair": spaces.Tuple([spaces.Discrete(2), spaces.Box(-9, 9, (2,), np.float64)]),
        }
    )

    def __init__(self, misdeed="none", when=None, action_space=None, observation_space=None):
        self.misdeed, self.num_steps, self.num_resets = MISDEEDS[misdeed], 0, 0
        self.when = when or self.misdeed.when
        self.action_space = action_space or self.action_space
        self.observation_space = observation_space or self.observation_space
        in_worker = multiprocessing.parent_process() is not None
        if self.when == "constructor" or (self.when == "constructor in a worker" and in_worker):
            self.misdeed.does(self)

    def observe(self, **changes):
        share = torch.get_num_threads() / 100
        observation = {
            "number": np.full(3, share, np.float32),
            "card": 2,
            "cells": np.array([2, 3]),
            "bits": np.array([0, 1, 1], np.int8),
            "said": "ab",
            "pair": (1, np.zeros(2)),
        }
        return {name: value for name, value in (observation | changes).items() if value is not MISSING}

    def answer(self, reward=0.5, terminated=False, truncated=None, info=None, **changes):
        self.num_steps %= 5
        ends = self.num_steps == 0 if truncated is None else truncated
        return self.observe(**changes), reward, terminated, ends, {} if info is None else info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        instead = self.misdeed.does(self) if self.when == "reset" else None
        return (self.observe(), {"deep": lambda: None}) if instead is None else instead

    def step(self, action):
        self.num_steps += 1
        instead = self.misdeed.does(self) if self.num_steps == 3 and self.when == "step" else None
        return self.answer() if instead is None else instead

    def close(self):
        if self.when == "close" or (self.when == "close in a worker" and multiprocessing.parent_process() is not None):
            self.misdeed.does(self)


MISSING = object()


def raises(error):
    def does(env):
        raise error() if callable(error) else error

    return does


def observes(**changes):
    return lambda env: env.answer(**changes)


def returns(answer):
    return lambda env: answer


class CannotBePrinted(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class OfItsOwn(BaseException):
    pass


def recurses(env):
    recurses(env)


def hangs(env):
    while True:
        time.sleep(100)


def hangs_on(env):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hangs(env)


def starts_a_program(env):
    subprocess.Popen(["sleep", str(SUBPROCESS_SECONDS)])


def moves_to_nowhere(env):
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)


def leaks_threads(env):
    for _ in range(20):
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()


def changes_handlers(env):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def seeds_everything(env):
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


def forks(env):
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)


def warns(env):
    warnings.warn("it is late", DeprecationWarning, stacklevel=1)


def at_the_end(**changes):
    """The observation that ends an episode by truncation."""
    return lambda env: env.answer(truncated=True, **changes)


def numbers(values, dtype=np.float32):
    return np.array(values, dtype)


FAILED = "test/Misbehaving-v0 failed in step: "
NUMBER = r"Observations must be those of the declared space, a value of Box of shape \(3,\) and type float32 in entry "
CARD = r"Observations must be those of the declared space, a value of Discrete\(5, start=2\) in entry 'card'"
LIES = "Observations must lie in their space, but environment . of test/Misbehaving-v0 returned "
FINITE = "Observations must be finite, but environment . of test/Misbehaving-v0 returned "
REWARD = "The reward must be a number, but test/Misbehaving-v0 returned "
STEP = "`step` must return observation, reward, terminated, truncated, info, but that of test/Misbehaving-v0 returned "
BUILT = "test/Misbehaving-v0 cannot be built with .*: "

MISDEEDS = {
    "none": Misdeed(lambda env: None),
    # what is raised
    "raise": Misdeed(
        raises(lambda: ZeroDivisionError("the moon is full")), FAILED + "ZeroDivisionError: the moon is full"
    ),
    "raise what cannot be pickled": Misdeed(
        raises(lambda: type("LocalError", (Exception,), {})("held", lambda: None)), FAILED + "LocalError: .*held"
    ),
    "raise what cannot be printed": Misdeed(raises(CannotBePrinted), FAILED + "CannotBePrinted"),
    "raise a megabyte": Misdeed(raises(ValueError("x" * 10**6)), FAILED + "ValueError: x{500}[. ]"),
    "raise many lines": Misdeed(raises(ValueError("one.\ntwo\nthree")), FAILED + "ValueError: one[. ]"),
    "raise nothing in particular": Misdeed(raises(Exception), FAILED + "Exception"),
    "raise what is no text": Misdeed(raises(ValueError("\udc80")), FAILED + "ValueError: "),
    "assert": Misdeed(raises(AssertionError), FAILED + "AssertionError"),
    "raise StopIteration": Misdeed(raises(StopIteration), FAILED + "StopIteration"),
    "raise GeneratorExit": Misdeed(raises(GeneratorExit), FAILED + "GeneratorExit"),
    "raise MemoryError": Misdeed(raises(MemoryError), FAILED + "MemoryError"),
    "raise EOFError": Misdeed(raises(EOFError), FAILED + "EOFError"),
    "raise BrokenPipeError": Misdeed(raises(BrokenPipeError), FAILED + "BrokenPipeError"),
    "raise FloatingPointError": Misdeed(raises(FloatingPointError), FAILED + "FloatingPointError"),
    "raise a BaseException": Misdeed(raises(OfItsOwn), FAILED + "OfItsOwn"),
    "raise KeyboardInterrupt": Misdeed(raises(KeyboardInterrupt), FAILED + "KeyboardInterrupt", in_process=False),
    "recurse": Misdeed(recurses, FAILED + "RecursionError"),
    "sys.exit()": Misdeed(lambda env: sys.exit(), FAILED + "SystemExit"),
    "sys.exit(3)": Misdeed(lambda env: sys.exit(3), FAILED + "SystemExit: 3"),
    "sys.exit(text)": Misdeed(lambda env: sys.exit("enough"), FAILED + "SystemExit: enough"),
    "raise in reset": Misdeed(raises(OSError("no file")), "failed in reset: OSError: no file", when="reset"),
    "exit in reset": Misdeed(lambda env: sys.exit(), "failed in reset: SystemExit", when="reset"),
    "raise in the constructor": Misdeed(raises(OSError("no file")), BUILT + "OSError: no file", when="constructor"),
    "exit in the constructor": Misdeed(lambda env: sys.exit(), BUILT + "SystemExit", when="constructor"),
    "raise in close": Misdeed(raises(OSError("no file")), when="close"),
    "exit in close": Misdeed(lambda env: sys.exit(), when="close"),
    # what is done to processes
    "exit": Misdeed(
        lambda env: os._exit(7), FAILED + "the worker process of environment . ended with status 7", in_process=False
    ),
    "segfault": Misdeed(lambda env: ctypes.string_at(0), FAILED + ".* was killed by signal 11", in_process=False),
    "kill itself": Misdeed(lambda env: os.kill(os.getpid(), 9), FAILED + ".* was killed by signal 9", in_process=False),
    "sleep": Misdeed(hangs, FAILED + "environment . did not answer for", in_process=False),
    "sleep through SIGTERM": Misdeed(hangs_on, FAILED + "environment . did not answer for", in_process=False),
    "sleep in the constructor": Misdeed(
        hangs, BUILT + "environment . did not answer for", when="constructor in a worker", in_process=False
    ),
    "sleep in close": Misdeed(hangs, when="close in a worker", in_process=False),
    "close all files": Misdeed(lambda env: os.closerange(3, 256), FAILED, in_process=False),
    "start a program": Misdeed(starts_a_program, in_process=False),
    "change directory": Misdeed(lambda env: os.chdir(tempfile.gettempdir()), in_process=False),
    "change to no directory": Misdeed(moves_to_nowhere, in_process=False),
    "leak threads": Misdeed(leaks_threads),
    "seed everything": Misdeed(seeds_everything, in_process=False),
    "fork": Misdeed(forks),
    "change signal handlers": Misdeed(changes_handlers, in_process=False),
    "print": Misdeed(lambda env: print("a line of its own")),
    "print errors": Misdeed(lambda env: print("a line of its own", file=sys.stderr)),
    "warn": Misdeed(warns, in_process=False),
    # what is observed
    "observe None": Misdeed(returns((None, 0.0, False, False, {})), "a dict with 'bits'.* returned None"),
    "observe an array": Misdeed(returns((np.zeros(3), 0.0, False, False, {})), "a dict with .* an array of shape"),
    "observe nothing": Misdeed(returns(({}, 0.0, False, False, {})), "a dict with .* returned an empty dict"),
    "observe less": Misdeed(observes(card=MISSING), "a dict with 'bits', 'card'.* a dict with 'number', 'cells'"),
    "observe more": Misdeed(observes(more=np.zeros(2))),
    "observe None in an entry": Misdeed(observes(number=None), NUMBER + "'number', but .* returned None"),
    "observe another shape": Misdeed(observes(number=numbers([0, 0])), NUMBER + r"'number', but .* shape \(2,\)"),
    "observe a number for an array": Misdeed(observes(number=0.5), NUMBER + "'number', but .* returned a float, 0.5"),
    "observe a text for an array": Misdeed(observes(number="abc"), NUMBER + "'number', but .* a str, 'abc'"),
    "observe objects": Misdeed(observes(number=np.array([None] * 3)), NUMBER + "'number', but .* type object"),
    "observe rows of different lengths": Misdeed(observes(number=[[1], [2, 3]]), NUMBER + "'number', but .* a list"),
    "observe complex numbers": Misdeed(observes(number=np.zeros(3, complex)), NUMBER + "'number', but .* complex128"),
    "observe a matrix": Misdeed(observes(number=np.zeros((1, 3))), NUMBER + r"'number', but .* shape \(1, 3\)"),
    "observe nan": Misdeed(observes(number=numbers([0, np.nan, 0])), FINITE + r"nan at \(1,\) in entry 'number'"),
    "observe inf": Misdeed(observes(number=numbers([0, 0, np.inf])), FINITE + r"inf at \(2,\) in entry 'number'"),
    "observe nan deep inside": Misdeed(
        observes(pair=(1, numbers([0, np.nan], np.float64))), FINITE + r"nan at \(1,\) in entry 'pair.1'"
    ),
    "observe nan at the end": Misdeed(at_the_end(number=numbers([np.nan, 0, 0])), FINITE + r"nan at \(0,\)"),
    "observe too much": Misdeed(
        observes(card=7), LIES + r"7 in entry 'card', Discrete\(5, start=2\), which takes 2 to 6"
    ),
    "observe too little": Misdeed(observes(card=1), LIES + "1 in entry 'card'"),
    "observe too much at the end": Misdeed(at_the_end(card=7), LIES + "7 in entry 'card'"),
    "observe too much in a cell": Misdeed(
        observes(cells=np.array([3, 0])),
        LIES + r"3 at \(0,\) in entry 'cells', MultiDiscrete\(\[3, 4\]\), .* 0 to 2 there",
    ),
    "observe two in a bit": Misdeed(observes(bits=np.array([0, 2, 1])), LIES + r"2 at \(1,\) in entry 'bits'"),
    "observe a fraction": Misdeed(observes(card=2.5), CARD + ", but .* a float, 2.5"),
    "observe a whole float": Misdeed(observes(card=3.0)),
    "observe an array of one": Misdeed(observes(card=np.array([3])), CARD + r", but .* an array of shape \(1,\)"),
    "observe a number beyond 64 bits": Misdeed(observes(card=2**70), CARD + ", but .* an int, 1180591620717411303424"),
    "observe nan for a category": Misdeed(observes(card=np.nan), CARD + ", but .* a float, nan"),
    "observe a letter": Misdeed(observes(said="abc"), "A text must be .* returned 'abc' in entry 'said', with 'c'"),
    "observe a long text": Misdeed(observes(said="a" * 9), "A text must be .* at most 4 tokens, .* with 9 tokens"),
    "observe no text": Misdeed(observes(said=None), "a text in entry 'said', but .* returned None"),
    "observe bytes": Misdeed(observes(said=b"ab"), "a text in entry 'said', but .* returned a bytes"),
    "observe a short tuple": Misdeed(observes(pair=(1,)), "a tuple of 2 in entry 'pair', but .* a tuple of 1"),
    "observe a list for a tuple": Misdeed(observes(pair=[1, np.zeros(2)])),
    "observe other types": Misdeed(
        observes(number=np.zeros(3, np.int16), bits=np.array([True, False, True]), card=np.uint8(3))
    ),
    "observe a tensor": Misdeed(observes(number=torch.zeros(3))),
    "observe swapped bytes": Misdeed(observes(number=np.zeros(3, ">f4"))),
    "observe what cannot be written": Misdeed(observes(number=np.broadcast_to(np.float32(0.5), (3,)))),
    "observe beyond the bounds": Misdeed(observes(number=numbers([0, 0, 1.5]))),
    "observe beyond float32": Misdeed(observes(number=np.full(3, 1e300)), FINITE + "inf"),
    # what is earned
    "nan": Misdeed(
        observes(reward=np.nan), "Rewards must be finite, but test/Misbehaving-v0 returned nan in environment 0"
    ),
    "earn infinity": Misdeed(observes(reward=-np.inf), "Rewards must be finite, but .* returned -inf in environment 0"),
    "earn beyond float32": Misdeed(
        observes(reward=1e300), "Rewards must be finite, but .* returned 1e.300 in environment 0"
    ),
    "earn None": Misdeed(observes(reward=None), REWARD + "None"),
    "earn a text": Misdeed(observes(reward="1"), REWARD + "a str, '1'"),
    "earn a dict": Misdeed(observes(reward={"a": 1}), REWARD + "a dict with 'a'"),
    "earn two numbers": Misdeed(observes(reward=np.ones(2)), REWARD + r"an array of shape \(2,\)"),
    "earn a complex number": Misdeed(observes(reward=1j), REWARD + "a complex"),
    "earn a decimal": Misdeed(observes(reward=Decimal(1)), REWARD + "a Decimal"),
    "earn an array of one": Misdeed(observes(reward=np.ones(1))),
    "earn an object": Misdeed(observes(reward=np.array(1.0, object))),
    "earn a tensor": Misdeed(observes(reward=torch.ones(1, requires_grad=True))),
    "earn true": Misdeed(observes(reward=True)),
    # how it ends
    "end by None": Misdeed(observes(terminated=None), "The flag terminated must be a number, but .* returned None"),
    "end by a text": Misdeed(observes(truncated="False"), "The flag truncated must be a number, but .* 'False'"),
    "end by a number": Misdeed(observes(terminated=1)),
    "end by numpy": Misdeed(observes(terminated=np.True_)),
    "end by an array": Misdeed(observes(truncated=np.array([True]))),
    # what is returned
    "return None": Misdeed(lambda env: (), STEP + "a tuple of 0"),
    "return four": Misdeed(returns((0, 0, False, {})), STEP + "a tuple of 4: this is gym's old form"),
    "return six": Misdeed(returns((0, 0, False, False, {}, 0)), STEP + "a tuple of 6: correct"),
    "return no info": Misdeed(
        lambda env: (*env.answer()[:4], None), "info that `step` returns must be a dict, .* None"
    ),
    "return a list of infos": Misdeed(lambda env: (*env.answer()[:4], [{}]), "must be a dict, but .* a list of 1"),
    "reset to an observation": Misdeed(
        lambda env: env.observe(), "`reset` must return observation, info", when="reset"
    ),
    "inform in no words": Misdeed(
        observes(info={"is_success": "yes"}, terminated=True), "is_success must be true, .* 'yes'"
    ),
    "inform beyond 1": Misdeed(observes(info={"is_success": 7}, terminated=True), "is_success must be true, .* 7"),
    "inform of None": Misdeed(observes(info={"is_success": None}, terminated=True)),
    "inform of what cannot be pickled": Misdeed(
        observes(info={"f": lambda: 0, "final_obs": 3, "final_info": 4}, terminated=True)
    ),
    # what is declared
    "declare no observations": Misdeed(
        lambda env: setattr(env, "observation_space", None),
        "of Misbehaving at .* the observation_space is None: set",
        when="constructor",
    ),
    "declare no actions": Misdeed(
        lambda env: setattr(env, "action_space", None), "the action_space is None: set them", when="constructor"
    ),
    "declare a sequence": Misdeed(
        lambda env: setattr(env, "observation_space", spaces.Sequence(spaces.Discrete(2))),
        "is a Sequence",
        when="constructor",
    ),
    "declare an empty dict": Misdeed(
        lambda env: setattr(env, "observation_space", spaces.Dict({})), "must have an entry", when="constructor"
    ),
    "declare other actions in a worker": Misdeed(
        lambda env: setattr(env, "action_space", spaces.Discrete(3)),
        "All environments of a task must have the same spaces",
        when="constructor in a worker",
        in_process=False,
    ),
}

gymnasium.register("test/Misbehaving-v0", entry_point=Misbehaving)
