"""What holds during each call of the Python interface: one call at a time, and Ctrl-C ends it.

Objects of a program run in its own process. Whatever such an object raises while an argument is read, InputError names
the argument.
"""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

from manifold_bench.bench.errors import InputError, signals_interrupt
from manifold_bench.bench.planning.usercode import contained

P = ParamSpec("P")
R = TypeVar("R")

_running = threading.RLock()
"""Held while a call computes; a thread may call again inside, as `evaluate` calls `run`."""


def called_by_a_program(example: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let calls from several threads run one after the other, and tell Ctrl-C from what objects raise.

    Calls share what a process has once: random numbers, settings of torch, and the names of what was handed in. A
    program's own handler of SIGINT stays in place. Arguments that the function does not take raise InputError with the
    example, which is a call of it.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def called(*arguments: P.args, **named: P.kwargs) -> R:
            try:
                signature.bind(*arguments, **named)
            except TypeError as error:
                raise InputError(f"{function.__name__}: {error}; write {example}") from None
            ordinary = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            with _running, signals_interrupt((signal.SIGINT,)) if ordinary else nullcontext():
                return function(*arguments, **named)

        return called

    return decorated


def argument(name: str) -> AbstractContextManager[None]:
    """Return a context for code that reads an argument; raises InputError that names it for whatever is raised inside.

    It may take any time, as data may that are still to be read.
    """
    return contained(f"{name}: reading it fails", in_time=False)
