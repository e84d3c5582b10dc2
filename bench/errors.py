"""Errors that a user can correct, and the decorator that makes every command end with one line."""

from __future__ import annotations

import functools
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec

from manifold_bench.bench.text import nearest, printable

P = ParamSpec("P")


LEAST_FILES = 64
"""Smallest limit of open files with which a command starts."""


class InputError(Exception):
    """Bad input by the user; a command that raises it ends with exit code 2.

    The message is one line that names the file, the key or the argument, and says what is allowed.
    """


class MissingData(InputError):
    """The published files of a data set are not found. A run of several data sets goes on without this one."""


def one_of(place: str, name: str, known: Iterable[str]) -> str:
    """Return the name if it is known; raises InputError otherwise. place: place of the name, for the message."""
    known = list(known)
    if name not in known:
        listed = nearest(name, known, f"it has: {', '.join(known)}")
        raise InputError(f"{place}: {name!r} is not in this matrix{listed}")
    return name


class Interrupted(KeyboardInterrupt):
    """The command is to end because of a signal: Ctrl-C, a closed terminal, or a system that shuts down."""


def report_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Make a command end with one line on the screen and an exit code, whatever it raises.

    The exit code is 2 for bad input, 1 for an error of the operating system such as a full disk, and 130 for an
    interruption. Other exceptions are errors of this program and pass with their traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            with signals_interrupt():
                allow_files()
                return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            return 130
        except (OSError, MemoryError) as error:
            print(f"error: {printable(system_error(error))}; stored results are kept", file=sys.stderr)
            return 1

    return wrapped


def allow_files() -> None:
    """Let this process open `LEAST_FILES` files at once; raises InputError where the system does not allow that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        raise InputError(f"only {hard} files may be open at once, and {LEAST_FILES} are needed; set `ulimit -n` higher")
    resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_FILES, hard))


def system_error(error: OSError | MemoryError) -> str:
    """Return an error of the operating system on one line: `results/records: No space left on device`.

    A file that cannot be given another name, as a draft that is complete, is named by that other name.
    """
    named = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    place = f"{named}: " if named else ""
    what = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__} {error}"
    return " ".join(f"{place}{what}".split())


def interrupt(number: int, frame: object) -> None:
    """Raise Interrupted; the handler of signals under `signals_interrupt`."""
    raise Interrupted


def interruption() -> type[KeyboardInterrupt]:
    """Return the exception that Ctrl-C raises here; code may raise any other KeyboardInterrupt, too.

    It is Interrupted under `signals_interrupt`, and where Ctrl-C raises nothing, as in threads.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    ordinary = signal.getsignal(signal.SIGINT) not in (interrupt, signal.SIG_IGN)
    return KeyboardInterrupt if in_main_thread and ordinary else Interrupted


@contextmanager
def signals_interrupt(
    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
) -> Iterator[None]:
    """Return a context in which these signals raise Interrupted in the main thread.

    Signals that are ignored when it begins (as under nohup) stay ignored. In other threads it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
