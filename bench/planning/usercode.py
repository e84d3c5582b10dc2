"""Limits for users' code that runs in the command's process during planning: its time, and its changes of settings."""

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

import numpy as np
import torch
from torch import overrides

from manifold_bench.bench.errors import InputError, interruption
from manifold_bench.bench.planning.process_exit import exit_as_error
from manifold_bench.defenses.errors import one_line

SECONDS = 300.0
"""Default limit in seconds for each piece of a user's code, such as an import or the loading of data."""

LEAST_SECONDS = 30.0
"""Smallest limit here, even if a matrix has a shorter timeout, because importing libraries takes time."""

AGAIN_SECONDS = 1.0
"""Seconds after which code that caught its interruption is interrupted again."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM)
"""Signals on which this process or its child processes rely."""


class TooSlow(BaseException):
    """Code of a user took too long. It is no Exception, because that code may catch these."""


_state = {"limit": SECONDS, "inside": False}
"""The limit in seconds, and whether a user's code is running now."""


def limit_time(seconds: float) -> None:
    """Set the limit for each piece of a user's code from now on; 0: no limit."""
    _state["limit"] = seconds


def _autocast_nesting() -> int:
    """Return how many autocast contexts are open in this thread."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


class _Modes:
    """The contexts of torch functions that are open in this thread, with torch's default device, which is one of them.

    A context that was opened and not closed, such as `torch.device("meta").__enter__()`, lets
    `torch.set_default_device` fail, so that torch's own list is restored.
    """

    def __init__(self) -> None:
        self.modes = overrides._get_current_function_mode_stack()
        self.device = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)

    def restore(self) -> None:
        """Close the contexts that were opened since then, and open those that were closed."""
        for _ in overrides._get_current_function_mode_stack():
            overrides._pop_mode()
        for mode in self.modes:
            overrides._push_mode(mode)
        torch._GLOBAL_DEVICE_CONTEXT.device_context = self.device


@contextmanager
def contained(what: str, in_time: bool = True) -> Iterator[None]:
    """Restore this process' settings after the code inside, and raise InputError(f"{what} (…)") for all that it raises.

    Code that takes longer than `limit_time` is interrupted, in the main thread and at the next Python instruction,
    unless in_time is False. InputErrors and interrupts by the user are passed on unchanged. Inside another `contained`
    only the message differs.
    """
    by_user = interruption()
    with nullcontext() if _state["inside"] else _kept_and_timed(in_time):
        try:
            yield
        except (InputError, by_user):
            raise
        except BaseException as error:  # a user's code may raise exceptions that end a process
            raise InputError(f"{what} ({one_line(error)})") from error


@contextmanager
def _kept_and_timed(in_time: bool) -> Iterator[None]:
    with settings_kept(), exit_as_error(), _in_time() if in_time else nullcontext():
        _state["inside"] = True
        try:
            yield
        finally:
            _state["inside"] = False


@contextmanager
def _in_time() -> Iterator[None]:
    """Raise TooSlow in the code inside when it reaches the limit."""
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
    raise TooSlow(f"it took more than {_state['limit']:g} s; set a larger `timeout` in the matrix file")


def working_folder() -> str | None:
    """Return this process' working folder, or None if it is gone."""
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:
        return None


def return_to(folder: str | None) -> None:
    """Change to a working folder; do nothing if this process is there already, or if it is None."""
    if folder not in (None, working_folder()):
        os.chdir(folder)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore the settings of this process after the code inside, which may be a user's.

    These are settings of torch and NumPy, states of random number generators, environment, working folder, umask,
    locale, signals, destinations of warnings and output, built-in functions, and modules that were replaced.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    changes: list[Callable[[], object]] = [
        partial(return_to, working_folder()),
        partial(os.umask, umask),
        partial(locale.setlocale, locale.LC_ALL, locale.setlocale(locale.LC_ALL)),
        partial(sys.setrecursionlimit, sys.getrecursionlimit()),
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002
        partial(torch.set_rng_state, torch.get_rng_state()),
        partial(torch.set_default_dtype, torch.get_default_dtype()),
        partial(torch.set_num_threads, torch.get_num_threads()),
        _Modes().restore,
        partial(torch.set_grad_enabled, torch.is_grad_enabled()),
        partial(torch.set_autocast_enabled, "cpu", torch.is_autocast_enabled("cpu")),
        partial(vars(builtins).update, dict(vars(builtins))),
        partial(sys.modules.update, dict(sys.modules)),
    ]
    if threading.current_thread() is threading.main_thread():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        changes.append(partial(signal.pthread_sigmask, signal.SIG_SETMASK, blocked))
        changes += [partial(signal.signal, one, signal.getsignal(one)) for one in SIGNALS]
    environment, streams = dict(os.environ), (sys.stdout, sys.stderr)
    deterministic, nesting = torch.are_deterministic_algorithms_enabled(), _autocast_nesting()
    try:
        with (
            warnings.catch_warnings(),
            np.errstate(),
            torch.inference_mode(torch.is_inference_mode_enabled()),
        ):
            yield
    finally:
        sys.stdout, sys.stderr = streams
        for undo in changes:
            undo()
        while _autocast_nesting() > nesting:
            torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()  # else casts of weights stay, whatever the weights learn
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)  # which imports a compiler
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
