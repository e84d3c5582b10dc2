"""Protection of a process from users' code that would end it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class ProcessExit(BaseException):
    """Code of a user called os._exit."""


@contextmanager
def exit_as_error() -> Iterator[None]:
    """Raise ProcessExit where code inside calls os._exit in this process.

    Processes that are forked meanwhile, such as those that load a user's data, end as they should.
    """
    own, exit_process = os.getpid(), os._exit

    def refuse(code: int) -> None:
        if os.getpid() != own:
            exit_process(code)
        raise ProcessExit(f"it called os._exit({code})")

    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = exit_process
