"""Texts of exceptions, of limited length: one line, or a traceback."""

from __future__ import annotations

import textwrap
import traceback

LINE, TRACEBACK = 300, 100_000
"""Largest numbers of characters; the message of an exception can have any length."""


def one_line(error: BaseException) -> str:
    """Return type and message of an exception on one line of at most 300 characters: `KeyError: 'inner'`.

    It never raises and never returns an empty text; without a message it returns the type alone.
    """
    try:
        message = str(error)
    except BaseException:  # __str__ may be a user's code
        message = ""
    return shortened(f"{type(error).__name__}: {message}").removesuffix(":")


def message_of(error: BaseException) -> str:
    """Return the message of an exception on one line, or else its type; it never raises and is never empty."""
    try:
        message = " ".join(str(error).split())
    except BaseException:  # __str__ may be a user's code
        message = ""
    return message[: 10 * LINE].encode("utf-8", "replace").decode() or type(error).__name__


def shortened(text: str) -> str:
    """Return a text on one line of at most 300 characters, without characters that UTF-8 cannot encode."""
    plain = text[: 10 * LINE].encode("utf-8", "replace").decode()
    return textwrap.shorten(plain, LINE, placeholder=" …")


def traceback_text() -> str:
    """Return the traceback of the exception that is being handled, cut after 100,000 characters."""
    return traceback.format_exc()[:TRACEBACK].encode("utf-8", "replace").decode()
