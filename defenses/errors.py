"""How an exception is told: on one line, or as a traceback. Neither is longer than anybody reads."""

from __future__ import annotations

import textwrap
import traceback

LINE, TRACEBACK = 300, 100_000
"""Characters at most: the message of an exception can have any length."""


def one_line(error: BaseException) -> str:
    """The type and message of an exception on one line of at most 300 characters: `KeyError: 'inner'`.

    It never raises and is never empty: an exception without a message gives its type alone.
    """
    try:
        message = str(error)
    except BaseException:  # a __str__ of somebody else's
        message = ""
    return shortened(f"{type(error).__name__}: {message}").removesuffix(":")


def shortened(text: str) -> str:
    """A text on one line of at most 300 characters that every encoding takes."""
    plain = text[: 10 * LINE].encode("utf-8", "replace").decode()
    return textwrap.shorten(plain, LINE, placeholder=" …")


def traceback_text() -> str:
    """The traceback of the exception that is being handled, cut after 100,000 characters."""
    return traceback.format_exc()[:TRACEBACK].encode("utf-8", "replace").decode()
