"""Code of users that runs in the command's own process while it plans: what it does to the process is undone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

from manifold_bench.bench.errors import InputError, Interrupted
from manifold_bench.defenses.errors import one_line


class ProcessExit(BaseException):
    """Code of a user called os._exit."""


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Undo what the code inside does to this process' settings, and raise InputError(f"{what} (…)") for all it raises.

    Settings are those of torch, the states of the random number generators, the environment and the working directory.
    What has been decided already (InputError) passes, and so does Interrupted.
    """
    import numpy as np  # late: `--help` and `list` wait for neither
    import torch

    def refuse(code: int) -> None:
        raise ProcessExit(f"it called os._exit({code})")

    environment, folder, exit_process = dict(os.environ), os.getcwd(), os._exit  # noqa: PTH109
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    except (InputError, Interrupted):
        raise
    except BaseException as error:  # it is a user's code: it may raise what ends a process
        raise InputError(f"{what} ({one_line(error)})") from error
    finally:
        os._exit = exit_process
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(folder)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)
        torch.use_deterministic_algorithms(deterministic)
