"""Systems that write to whatever their process has open, or answer in ways that nobody expects."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import struct
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import NearestMean, Tiny, Trained
from torch import Tensor

from manifold_bench.attacks.target import Target

PAYLOAD = "FORGING_PAYLOAD"
"""Environment variable with the file that the payload of a forged pickle makes."""


class Payload:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(os.environ[PAYLOAD]),)


def connections() -> list[int]:
    """Pipes and sockets that this process has open, but the standard streams."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            if int(path.name) > 2 and str(path.readlink()).startswith(("pipe:", "socket:")):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def write_everywhere(content: bytes) -> None:
    for number in connections():
        try:
            os.set_blocking(number, False)
            os.write(number, content)
            os.set_blocking(number, True)
        except OSError:
            continue


class Loud(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class NoName(Exception):
    def __repr__(self) -> str:
        raise ValueError("no representation")


Steering = type("\x1b[2JSteering\n", (Exception,), {})


def misbehave(way: str) -> None:
    pickled = pickle.dumps(Payload())
    if way == "pickle":
        write_everywhere(struct.pack("!i", len(pickled)) + pickled)
        os._exit(0)
    if way == "pickle-stays":
        write_everywhere(struct.pack("!i", len(pickled)) + pickled)
    if way == "json":
        write_everywhere(b"".join(json.dumps({"number": n, "result": "ok"}).encode() + b"\n" for n in range(300)))
        os._exit(0)
    if way == "number":
        write_everywhere(b'{"number": ' + b"9" * 6000 + b"}\n")
        os._exit(0)
    if way == "nested":
        write_everywhere(b'{"number": 0, "result": ' + b"[" * 60_000 + b"\n")
        os._exit(0)
    if way == "half":
        write_everywhere(struct.pack("!i", 1000) + b"x")
        time.sleep(600)
    if way == "flood":
        end = time.monotonic() + 600
        while time.monotonic() < end:
            write_everywhere(b"x" * 4096)
    if way == "huge":
        raise ValueError("x " * 50_000_000)
    if way == "loud":
        raise Loud
    if way == "no-name":
        raise NoName("it has no representation")
    if way == "steering":
        raise Steering("\x1b]0;title\x07\r\ud800\x00end")
    if way == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if way == "stop-parent":
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(600)
    if way == "close":
        os.closerange(0, 256)
    if way == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
    if way == "at-exit":
        atexit.register(time.sleep, 600)
    if way == "forks":
        for _ in range(4):
            if os.fork() == 0:
                os.fork()
                time.sleep(600)
    if way == "umask":
        os.umask(0o777)
    if way == "warnings":
        warnings.simplefilter("error")
    if way == "inference":
        torch.inference_mode().__enter__()
    if way == "no-grad":
        torch.set_grad_enabled(False)
    if way == "device":
        torch.set_default_device("meta")
    if way == "autocast":
        torch.autocast("cpu").__enter__()
    if way == "dtype":
        torch.set_default_dtype(torch.float64)
    if way == "patches":
        import builtins

        torch.save = json.dumps = builtins.open = Path.open = None  # type: ignore[assignment]
        sys.modules["pyarrow"] = None  # type: ignore[assignment]


STOPS = ("pickle", "json", "number", "nested", "huge", "loud", "no-name", "steering")
"""Ways that end the process that they are in."""

HANGS = ("half", "flood", "stop", "stop-parent")
"""Ways in which a process never ends."""

CHANGES = (
    "pickle-stays",
    "close",
    "thread",
    "at-exit",
    "forks",
    "umask",
    "warnings",
    "inference",
    "no-grad",
    "device",
    "autocast",
    "dtype",
    "patches",
)


@dataclass(frozen=True, kw_only=True)
class Forges(Tiny):
    """An attack that does it."""

    way: str

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        misbehave(self.way)
        return x + (x.flip(0) - x).clamp(-eps, eps)


@dataclass(frozen=True, kw_only=True)
class Counts(Tiny):
    """An attack that spoils what is counted about it."""

    value: float

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        target.forwards.fill_(self.value)
        return x


def judged_by(way: str) -> type[NearestMean]:
    """A defense that does it once it answers: in the judge's process, too."""

    class Forging(NearestMean):
        def forward(self, x: Tensor) -> Tensor:
            misbehave(way)
            return super().forward(x)

    Forging.__qualname__ = Forging.__name__ = f"D_{way}".replace("-", "_")
    return Forging


for _way in (*STOPS, *HANGS, *CHANGES):
    _made = judged_by(_way)
    globals()[_made.__name__] = _made


class ForgesFit(Trained):
    """Forges the answer that its training went well, with no weights."""

    def fit(self, *arguments: Any, **keywords: Any) -> Any:
        misbehave("json")


class PicklesFit(Trained):
    def fit(self, *arguments: Any, **keywords: Any) -> Any:
        misbehave("pickle")
