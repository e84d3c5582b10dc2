"""Code of users that runs in the command's own process while it plans: it ends in time, and what it does is undone."""

from __future__ import annotations

import builtins
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from manifold_bench.bench.errors import InputError, Interrupted
from manifold_bench.defenses.errors import one_line

SECONDS = 300.0
"""What each piece of a user's code may take, such as an import or the loading of data, where nothing else is given."""

LEAST_SECONDS = 30.0
"""A limit that a matrix gives is no shorter here: its jobs find the libraries imported."""

AGAIN_SECONDS = 1.0
"""After so long, code that has caught its interruption is interrupted again."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM)
"""Signals on which this process or those that it starts rely."""


class ProcessExit(BaseException):
    """Code of a user called os._exit."""


class TooSlow(BaseException):
    """Code of a user took too long; no Exception, which that code may catch."""


_state = {"limit": SECONDS, "inside": False}
"""The time that is allowed, and whether a user's code is running now."""


def limit_time(seconds: float) -> None:
    """From now on, let each piece of a user's code take so long; 0: any time."""
    _state["limit"] = seconds


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Undo what the code inside does to this process' settings, and raise InputError(f"{what} (…)") for all it raises.

    That includes that it takes too long (`limit_time`), which is noticed in the main thread, and by Python code. What
    has been decided already (InputError) passes, and so does an interrupt by the user. Inside of another one, only the
    words are other ones.
    """
    by_user = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it raises Interrupted
    with nullcontext() if _state["inside"] else _kept_and_timed():
        try:
            yield
        except (InputError, Interrupted):
            raise
        except BaseException as error:  # it is a user's code: it may raise what ends a process
            if by_user and isinstance(error, KeyboardInterrupt):
                raise
            raise InputError(f"{what} ({one_line(error)})") from error


@contextmanager
def _kept_and_timed() -> Iterator[None]:
    with _settings_kept(), _in_time():
        _state["inside"] = True
        try:
            yield
        finally:
            _state["inside"] = False


@contextmanager
def _in_time() -> Iterator[None]:
    """Raise TooSlow in the code inside once its time is over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGALRM, _interrupt)
    before = signal.setitimer(signal.ITIMER_REAL, _state["limit"], AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def _interrupt(number: int, frame: object) -> None:
    raise TooSlow(f"it took more than {_state['limit']:g} s; a matrix allows more by its `timeout`")


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Undo what the code inside changes of this process.

    That is: settings of torch and NumPy, the states of random number generators, the environment, the working folder,
    umask, locale and signals, where warnings and output go, built-in functions, and modules that it puts in the place
    of others.
    """
    import numpy as np  # late: `--help` and `list` wait for neither
    import torch

    def refuse(code: int) -> None:
        raise ProcessExit(f"it called os._exit({code})")

    umask = os.umask(0o077)
    os.umask(umask)
    changes: list[tuple[Callable[[Any], Any], Any]] = [
        (os.chdir, os.getcwd()),  # noqa: PTH109
        (os.umask, umask),
        (partial(locale.setlocale, locale.LC_ALL), locale.setlocale(locale.LC_ALL)),
        (sys.setrecursionlimit, sys.getrecursionlimit()),
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),  # noqa: NPY002
        (torch.set_rng_state, torch.get_rng_state()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (partial(torch.set_autocast_enabled, "cpu"), torch.is_autocast_enabled("cpu")),
        (vars(builtins).update, dict(vars(builtins))),
        (sys.modules.update, dict(sys.modules)),
    ]
    if threading.current_thread() is threading.main_thread():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        changes.append((partial(signal.pthread_sigmask, signal.SIG_SETMASK), blocked))
        changes += [(partial(signal.signal, one), signal.getsignal(one)) for one in SIGNALS]
    environment, device, streams = dict(os.environ), torch.get_default_device(), (sys.stdout, sys.stderr)
    deterministic = torch.are_deterministic_algorithms_enabled()
    exit_process, os._exit = os._exit, refuse  # type: ignore[assignment]
    try:
        with warnings.catch_warnings(), np.errstate(), torch.inference_mode(torch.is_inference_mode_enabled()):
            yield
    finally:
        os._exit = exit_process
        sys.stdout, sys.stderr = streams
        for change, value in changes:
            change(value)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)  # which imports a compiler
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
