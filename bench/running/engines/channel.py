"""Messages between a call and its partner process: JSON data and plain tensors, so that nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait

import safetensors.torch
from pydantic import JsonValue
from torch import Tensor

from manifold_bench.bench.records.files import parsed
from manifold_bench.bench.running.engines.processes import Watched
from manifold_bench.defenses.errors import message_of, one_line, shortened, traceback_text
from manifold_bench.defenses.identity import JsonObject

Message = tuple[JsonObject, dict[str, Tensor]]
"""Words (JSON data) and tensors by name."""


class Channel:
    """One end of a connection between two processes, which carries JSON data and tensors both ways."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, words: Mapping[str, object], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Send words (JSON data) and tensors, which arrive on the CPU. Raises OSError if the other end is gone."""
        plain = {name: one.detach().cpu().contiguous() for name, one in (tensors or {}).items()}
        self.connection.send_bytes(json.dumps(words).encode())
        self.connection.send_bytes(safetensors.torch.save(plain))

    def receive(self) -> Message:
        """Wait for the next message; raises PartnerFailed, or EOFError if the other end is gone."""
        content = self.connection.recv_bytes(), self.connection.recv_bytes()
        try:
            words, tensors = parsed(content[0], dict[str, JsonValue]), safetensors.torch.load(content[1])
        except (ValueError, safetensors.SafetensorError) as error:
            raise PartnerFailed(
                shortened(f"a message of the other process cannot be read ({message_of(error)})")
            ) from error
        if "failed" in words:
            reason = shortened(str(words["failed"])) or "the other process failed and gave no reason"
            raise PartnerFailed(reason, str(words.get("traceback", "")))
        return words, tensors

    def serve(self, function: Callable[[], object]) -> None:
        """Run a function that uses this end; its exceptions are raised at the other end, as PartnerFailed."""
        try:
            function()
        except BaseException as error:  # a user's code may raise exceptions that end a process
            with suppress(Exception):  # the other end may be gone, or the function has broken what is used here
                self.send({"failed": one_line(error), "traceback": traceback_text()})


class PartnerFailed(Exception):
    """The partner raised an exception, or its process ended before it answered.

    The message is that exception on one line, or how the process ended. traceback: the traceback, or an empty text.
    """

    def __init__(self, reason: str, traceback: str = "") -> None:
        super().__init__(reason)
        self.traceback = traceback


class Partner(Channel):
    """A call's end of the connection to its partner process."""

    def __init__(self, connection: Connection, process: Watched) -> None:
        super().__init__(connection)
        self.process = process

    def send(self, words: Mapping[str, object], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Send words and tensors; raises PartnerFailed."""
        try:
            super().send(words, tensors)
        except OSError as error:
            raise PartnerFailed(self.process.ending()) from error

    def receive(self) -> Message:
        """Wait for the next message; raises PartnerFailed."""
        wait([self.connection, self.process.exit])
        try:
            if self.connection.poll():  # the partner may have answered before it ended
                return super().receive()
        except (EOFError, OSError):
            pass
        raise PartnerFailed(self.process.ending())
