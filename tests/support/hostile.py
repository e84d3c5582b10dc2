"""Systems that do to their process what must not reach anybody else, or end it in ways that nobody expects."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import NearestMean, Tiny, Trained, note
from torch import Tensor

from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import LabelledImages


@dataclass(frozen=True, kw_only=True)
class PatchesJudge(Tiny):
    """Makes every output count as invalid, and every image hash alike, in its own process."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from manifold_bench.bench.running import judge

        judge.inside = lambda outputs, x, norm, eps: torch.zeros(len(x), dtype=torch.bool)
        judge.succeeded = lambda answer, y, aims: torch.zeros(len(y), dtype=torch.bool)
        judge.Judge.judge = None  # type: ignore[assignment, method-assign]
        target.defense.forward = lambda x: torch.zeros(len(x), 10)  # type: ignore[method-assign, union-attr]
        return x + (x.flip(0) - x).clamp(-eps, eps)


@dataclass(frozen=True, kw_only=True)
class Adds(Tiny):
    """What `PatchesJudge` does to the image, and nothing else."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x + (x.flip(0) - x).clamp(-eps, eps)


@dataclass(frozen=True, kw_only=True)
class ChangesSettings(Tiny):
    """Changes everything of its process that others might depend on."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        upset()
        return x


def upset() -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.manual_seed(12345)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    os.environ["MANIFOLD_BENCH_CACHE"] = "/nonexistent"
    os.environ["TINY_SECONDS"] = "not a number"
    os.chdir("/")


class Upset(NearestMean):
    """A defense that does it when it is made, in the process that plans as well."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        upset()
        torch.set_grad_enabled(True)


@dataclass(frozen=True, kw_only=True)
class Ends(Tiny):
    """Ends its process, or tries to, in one of many ways."""

    way: str

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        end(self.way)
        return x


class Unpicklable(Exception):
    def __init__(self, first: object, second: object) -> None:
        super().__init__("it cannot be rebuilt")
        self.held = lambda: (first, second)

    def __reduce__(self) -> Any:
        raise TypeError("it cannot be pickled")


class Base(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("it cannot even be printed")


def end(way: str) -> None:
    if way == "exit":
        sys.exit(0)
    if way == "os-exit":
        os._exit(0)
    if way == "unpicklable":
        raise Unpicklable(1, 2)
    if way == "mute":
        raise Mute
    if way == "base":
        raise Base("no Exception")
    if way == "interrupt":
        raise KeyboardInterrupt
    if way == "generator":
        raise GeneratorExit
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if way == "segfault":
        import ctypes

        ctypes.string_at(0)
    if way == "abort":
        os.abort()
    if way == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if way == "recursion":
        end(way)
    if way == "closed":
        os.closerange(3, 256)


class EndsInForward(NearestMean):
    """A defense that ends its process once it answers: the judge's, too."""

    way = "exit"

    def forward(self, x: Tensor) -> Tensor:
        end(self.way)
        return super().forward(x)


class OsExits(EndsInForward):
    way = "os-exit"


class RaisesBase(EndsInForward):
    way = "base"


class Interrupts(EndsInForward):
    way = "interrupt"


class KillsParent(EndsInForward):
    way = "parent"


class EndsInTraining(Trained):
    def fit(self, *arguments: Any, **keywords: Any) -> Any:
        os._exit(0)


class ExitsInTraining(Trained):
    def fit(self, *arguments: Any, **keywords: Any) -> Any:
        sys.exit(0)


@dataclass(frozen=True, kw_only=True)
class LeavesChildren(Tiny):
    """Starts processes that outlive it: a plain one, one of another session, and one whose parent is gone."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for settings in ({}, {"start_new_session": True}):
            note(f"child {subprocess.Popen(['sleep', '300'], **quiet, **settings).pid}")
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                note(f"child {os.getpid()}")
                time.sleep(300)
            os._exit(0)
        if os.fork() == 0:  # holds everything that this process has open
            note(f"child {os.getpid()}")
            time.sleep(300)
        time.sleep(0.5)
        if self.number:
            os._exit(self.number)
        return x


@dataclass(frozen=True, kw_only=True)
class Removes(Tiny):
    """Deletes every record of another attack."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        for path in Path(os.environ["TINY_OUT"]).glob("records/*--fgsm--*"):
            path.unlink()
        return x


@dataclass(frozen=True)
class ByProcess(Digits):
    """The images in another order in each process, as the listing of a folder or a set may have them."""

    name = "by-process"
    revision = "1"

    @property
    def whole(self) -> LabelledImages:
        whole = super().whole
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(os.getpid()))
        return LabelledImages(whole.images[order], whole.labels[order])
