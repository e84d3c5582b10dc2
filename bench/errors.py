"""Errors that a user can mend, and how a command ends: with one line, whatever ends it."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

from manifold_bench.bench.text import printable

P = ParamSpec("P")


class InputError(Exception):
    """Bad input: the message names the file, the key or the argument, and what is allowed. Exit code 2."""


class Interrupted(KeyboardInterrupt):
    """Somebody asks the command to end: Ctrl-C, a closed terminal, or a system that shuts down."""


def report_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Makes a command end with one line and exit code 2 on bad input, 1 where the system fails it, 130 interrupted."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            with signals_interrupt():
                return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            return 130
        except (OSError, MemoryError) as error:
            print(f"error: {printable(system_error(error))}; what is stored stays", file=sys.stderr)
            return 1

    return wrapped


def system_error(error: OSError | MemoryError) -> str:
    """What the system could not do, on one line: `results/records: No space left on device`."""
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    what = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__} {error}"
    return " ".join(f"{place}{what}".split())


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread, except where the user has them ignored."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
