"""Errors that a user can mend, how a command ends with one, and how an exception is told on one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class InputError(Exception):
    """Bad input: the message names the file, the key or the argument, and what is allowed. Exit code 2."""


def report_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Makes a command end with one line and exit code 2 on bad input, and with 130 when interrupted."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            return 130

    return wrapped
