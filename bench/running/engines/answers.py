"""Answers of a call's process: one line of JSON with checked types, so that no user's code is unpickled."""

from __future__ import annotations

import dataclasses
import json
import os
from multiprocessing.connection import Connection
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue
from pydantic.dataclasses import dataclass

from manifold_bench.bench.records.files import parsed
from manifold_bench.defenses.errors import message_of, shortened

LONGEST = 1 << 20
"""Largest number of bytes of an answer; results of calls are in files, not in answers."""


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Ending:
    """The end of a call. number: the engine's number of the call. result: its return value as JSON data.

    failure: reason why there is no result, on one line. memory: largest number of resident bytes of its process and its
    partner's.
    """

    number: int
    result: JsonValue = None
    failure: str | None = None
    memory: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def line(self) -> bytes:
        """Return this as a line of JSON; raises TypeError or ValueError if the result is no JSON data."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def ending(line: bytes, number: int | None = None) -> Ending:
    """Return the ending in a line; a failure if it cannot be read, or belongs to another call than `number`."""
    try:
        found = parsed(line, Ending)
        found.line()  # what can be read can have too many digits to be written
        if number not in (None, found.number):
            raise ValueError("number: of another call")
    except ValueError as error:
        return Ending(
            -1 if number is None else number, failure=shortened(f"its answer cannot be read ({message_of(error)})")
        )
    return found if found.failure is None else dataclasses.replace(found, failure=shortened(found.failure))


class AnswerPipe:
    """The reading end of a pipe for a call's answer; reading never blocks.

    So a call that stops in the middle of its answer blocks no other call.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self._number, self._received = connection, number, b""
        os.set_blocking(connection.fileno(), False)

    def read(self) -> Ending | None:
        """Read more; return the answer once it is complete. Raises EOFError if the pipe ends without an answer."""
        try:
            chunk = os.read(self.connection.fileno(), LONGEST)
        except BlockingIOError:
            return None
        self._received += chunk
        line, end, _ = self._received.partition(b"\n")
        if end or len(line) > LONGEST or (line and not chunk):
            return ending(line[:LONGEST], self._number)
        if not chunk:
            raise EOFError
        return None
