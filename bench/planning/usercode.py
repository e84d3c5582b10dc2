"""Code of users that runs in the command's own process while it plans: what it does to the process is undone."""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from manifold_bench.bench.errors import InputError, Interrupted
from manifold_bench.defenses.errors import one_line


class ProcessExit(BaseException):
    """Code of a user called os._exit."""


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Undo what the code inside does to this process' settings, and raise InputError(f"{what} (…)") for all it raises.

    Settings are those of torch and NumPy, the states of the random number generators, the environment, the working
    directory, and where warnings and output go. What has been decided already (InputError) passes, and so does an
    interrupt by the user.
    """
    import numpy as np  # late: `--help` and `list` wait for neither
    import torch

    def refuse(code: int) -> None:
        raise ProcessExit(f"it called os._exit({code})")

    changes: list[tuple[Callable[[Any], Any], Any]] = [
        (os.chdir, os.getcwd()),  # noqa: PTH109
        (sys.setrecursionlimit, sys.getrecursionlimit()),
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),  # noqa: NPY002
        (torch.set_rng_state, torch.get_rng_state()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
    ]
    environment, device, streams = dict(os.environ), torch.get_default_device(), (sys.stdout, sys.stderr)
    by_user = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it raises Interrupted
    exit_process, os._exit = os._exit, refuse  # type: ignore[assignment]
    try:
        with warnings.catch_warnings(), np.errstate():
            yield
    except (InputError, Interrupted):
        raise
    except BaseException as error:  # it is a user's code: it may raise what ends a process
        if by_user and isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(f"{what} ({one_line(error)})") from error
    finally:
        os._exit = exit_process
        sys.stdout, sys.stderr = streams
        for change, value in changes:
            change(value)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
