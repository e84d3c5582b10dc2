"""Messages between a call and its partner process: words and plain tensors, so that no code crosses with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

import safetensors.torch
from torch import Tensor

from manifold_bench.bench.running.engines.processes import Watched

Message = tuple[dict[str, Any], dict[str, Tensor]]
"""Words (JSON data) and tensors by name."""


class Channel:
    """One end of a two-way connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, words: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Send words and tensors, which arrive on the CPU. Raises OSError where the other end is gone."""
        plain = {name: one.detach().cpu().contiguous() for name, one in (tensors or {}).items()}
        self.connection.send_bytes(json.dumps(words).encode())
        self.connection.send_bytes(safetensors.torch.save(plain))

    def receive(self) -> Message:
        """Wait for the next message; raises EOFError where the other end is gone."""
        words = json.loads(self.connection.recv_bytes())
        return words, safetensors.torch.load(self.connection.recv_bytes())


class PartnerDied(Exception):
    """The partner process ended before it had answered; the message says how."""


class Partner(Channel):
    """A call's end of the connection to its partner process."""

    def __init__(self, connection: Connection, process: Watched) -> None:
        super().__init__(connection)
        self.process = process

    def send(self, words: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Send words and tensors; raises PartnerDied."""
        try:
            super().send(words, tensors)
        except OSError as error:
            raise PartnerDied(self.process.ending()) from error

    def receive(self) -> Message:
        """Wait for the next message; raises PartnerDied."""
        wait([self.connection, self.process.exit])
        try:
            if self.connection.poll():  # it may have answered before it ended
                return super().receive()
        except (EOFError, OSError):
            pass
        raise PartnerDied(self.process.ending())
