"""How an exception is told on one line."""

from __future__ import annotations

import textwrap


def one_line(error: BaseException) -> str:
    """The type and message of an exception on one line of at most 300 characters: `KeyError: 'inner'`.

    It never raises and is never empty: an exception without a message gives its type alone.
    """
    try:
        message = str(error)
    except Exception:  # a __str__ of somebody else's
        message = ""
    return textwrap.shorten(f"{type(error).__name__}: {message}", 300, placeholder=" …").removesuffix(":")
