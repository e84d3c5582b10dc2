"""What a call's process answers: one line of JSON of checked types, so that no code of a user's comes back with it."""

from __future__ import annotations

import dataclasses
import json
import os
from multiprocessing.connection import Connection
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue
from pydantic.dataclasses import dataclass

from manifold_bench.bench.records.files import parsed
from manifold_bench.defenses.errors import shortened

LONGEST = 1 << 20
"""Bytes of an answer at most: what a call computes lies in files, and never in its answer."""


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Ending:
    """How a call ended. number: the engine's number of the call. result: what it returned, as JSON has it.

    failure: why there is no result, on one line. memory: bytes that its process and its partner's had resident at most.
    """

    number: int
    result: JsonValue = None
    failure: str | None = None
    memory: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def line(self) -> bytes:
        """This as a line of JSON; raises TypeError or ValueError where the result is no JSON data."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def ending(line: bytes, number: int | None = None) -> Ending:
    """What a line says; where it says nothing, or it is of another call than `number`, that the call failed."""
    try:
        found = parsed(line, Ending)
        found.line()  # what can be read can have too many digits to be written
        if number not in (None, found.number):
            raise ValueError("number: of another call")
    except ValueError as error:
        return Ending(-1 if number is None else number, failure=shortened(f"its answer cannot be read ({error})"))
    return found if found.failure is None else dataclasses.replace(found, failure=shortened(found.failure))


class AnswerPipe:
    """The end of a pipe that a call's answer comes from. It is read as far as it is there, and never waited for.

    So a call that stops in the middle of its answer, or never ends it, holds up nobody.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self._number, self._received = connection, number, b""
        os.set_blocking(connection.fileno(), False)

    def read(self) -> Ending | None:
        """Read on; return the answer once it is whole. Raises EOFError where nothing more comes and none was."""
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
