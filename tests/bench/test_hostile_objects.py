"""Objects that are handed in through Python may raise anything anywhere: an InputError names the argument."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import manifold_bench as mb


class Base(BaseException):
    """What no `except Exception` catches."""


class Silent(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise SystemExit


ENDS = {"exit": SystemExit, "interrupt": KeyboardInterrupt, "base": Base, "empty": ValueError, "silent": Silent}
PLACES = (
    *("__class__", "__len__", "__iter__", "__bool__", "__getattr__", "__getattribute__", "__repr__", "__str__"),
    *("__eq__", "__hash__", "__array__", "__getitem__", "__call__", "__fspath__", "__float__", "__index__"),
    *("__deepcopy__", "__reduce_ex__", "keys", "detach", "tolist", "items"),
)


def hostile(end: type[BaseException], *places: str, base: type = object) -> Any:
    """An object of which these places raise that exception; else it does what an object of its base does."""

    def raises(*_: Any, **__: Any) -> Any:
        raise end

    members = {place: property(raises) if place == "__class__" else raises for place in places}
    made = type("It", (base,), members)
    return object.__new__(made) if base is object else made()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Data(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), 0.5), number % 2


X, Y = torch.full((4, 1, 8, 8), 0.5), torch.tensor([0, 1, 0, 1])
NET = Net().eval()


def evaluated(model: Any = NET, data: Any = (X, Y), attacks: Any = ("noise",), eps: Any = 0.1, **options: Any) -> Any:
    return mb.evaluate(model, data, attacks=attacks, eps=eps, **options)


def ran(matrix: Any = "smoke", **options: Any) -> Any:
    chosen = {"n": 2, "attack": "fgsm", "dataset": "digits"}
    return mb.run(matrix, **(chosen | options))


ARGUMENTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "model": (lambda it: evaluated(it), "model"),
    "data": (lambda it: evaluated(data=it), "data"),
    "images": (lambda it: evaluated(data=(it, Y)), "data"),
    "labels": (lambda it: evaluated(data=(X, it)), "data"),
    "one image": (lambda it: evaluated(data=([it, it], [0, 1])), "data"),
    "attacks": (lambda it: evaluated(attacks=it), "attacks"),
    "one attack": (lambda it: evaluated(attacks=[it]), "attacks"),
    "a parameter": (lambda it: evaluated(attacks=[{"name": "pgd", "steps": it}]), "steps"),
    "norm": (lambda it: evaluated(norm=it), "norm"),
    "eps": (lambda it: evaluated(eps=it), "eps"),
    "one eps": (lambda it: evaluated(eps=[0.1, it]), "eps"),
    "n": (lambda it: evaluated(n=it), "n"),
    "draws": (lambda it: evaluated(draws=it), "draws"),
    "normalize": (lambda it: evaluated(normalize=(0.5, it)), "normalize"),
    "rejects": (lambda it: evaluated(rejects=it), "rejects"),
    "out": (lambda it: evaluated(out=it), "out"),
    "matrix": (lambda it: ran(it), "matrix"),
    "defenses": (lambda it: ran(defenses=it), "defenses"),
    "one defense": (lambda it: ran(defenses={"mine": it}), "mine"),
    "a setting": (lambda it: ran(defenses={"mine": {"model": NET, "draws": it}}), "mine"),
    "defense": (lambda it: ran(defense=it), "defense"),
    "attack: model": (lambda it: mb.attack("noise", it, (X, Y), eps=0.1), "model"),
    "attack: name": (lambda it: mb.attack(it, NET, (X, Y), eps=0.1), "name"),
    "attack: norm": (lambda it: mb.attack("noise", NET, (X, Y), norm=it, eps=0.1), "norm"),
    "attack: a parameter": (lambda it: mb.attack("pgd", NET, (X, Y), eps=0.1, steps=it), "steps"),
    "as_defense: model": (lambda it: mb.as_defense(it, (1, 8, 8), 10), "model"),
    "as_defense: shape": (lambda it: mb.as_defense(NET, it, 10), "shape"),
    "as_defense: classes": (lambda it: mb.as_defense(NET, (1, 8, 8), it), "classes"),
    "as_defense: normalize": (lambda it: mb.as_defense(NET, (1, 8, 8), 10, normalize=it), "normalize"),
}


class Ran(Exception):
    """The run would have begun."""


def refused(call: Callable[..., Any], *given: Any) -> str | None:
    """What InputError says on its one line; None if the call went well. Anything else goes through."""
    try:
        call(*given)
    except Ran:
        pass
    except mb.InputError as error:
        text = str(error)
        assert text.strip() and "\n" not in text and not text.rstrip().endswith(":")
        return text
    return None


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as at a terminal; a process that a shell starts in the background ignores it, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_whatever_an_argument_raises_names_the_argument(monkeypatch, argument):
    def ran(*_: Any) -> Any:
        raise Ran

    monkeypatch.setattr("manifold_bench.bench.api.functions.start", ran)
    call, name = ARGUMENTS[argument]
    ends = cycle(ENDS.values())
    for places in (*((place,) for place in PLACES), *[PLACES[1:]] * len(ENDS)):
        text = refused(call, hostile(next(ends), *places))
        assert text is None or name in text, (places, text)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "place",
    [
        "__deepcopy__",
        "forward",
        "__call__",
        "__getattr__",
        "train",
        "eval",
        "parameters",
        "named_parameters",
        "modules",
        "state_dict",
        "__repr__",
        "__len__",
        "__iter__",
        "__bool__",
        "__eq__",
        "__setstate__",
        "__class__",
    ],
)
def test_whatever_a_module_raises_is_an_error_or_a_failed_cell(place):
    ends = cycle([SystemExit, ValueError, KeyboardInterrupt])
    for call in (evaluated, lambda it: ran(defenses={"mine": it}), lambda it: mb.as_defense(it, (1, 8, 8), 10)):
        text = refused(call, hostile(next(ends), place, base=Net))
        assert text is None or any(name in text for name in ("model", "mine", "It")), text


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("place", ["__len__", "__getitem__", "__class__", "__getattribute__"])
def test_whatever_a_data_set_raises_names_the_data(place, end):
    text = refused(lambda it: evaluated(data=it), hostile(ENDS[end], place, base=Data))
    assert text is None or "data" in text


@pytest.mark.parametrize("end", ENDS)
def test_a_model_that_ends_the_process_later_has_failed_cells(end):
    class Later(Net):
        calls, limit = 0, 6

        def forward(self, x: Tensor) -> Tensor:
            Later.calls += 1
            if Later.calls > Later.limit:
                raise ENDS[end]
            return super().forward(x)

    found = evaluated(Later(), attacks=["pgd"])
    assert (found.records["status"] == "failed").any()
    Later.calls, Later.limit = 0, 2
    assert "pgd" in (refused(lambda: mb.attack("pgd", Later(), (X, Y), eps=0.1)) or "")


INTERRUPTED = """
import os, signal, sys, threading, time
import torch
import manifold_bench as mb

def model(x):
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        time.sleep(60)
    except Exception:
        time.sleep(60)
    return x.flatten(1)[:, :10]

try:
    mb.evaluate(model, (torch.full((4, 1, 8, 8), 0.5), torch.tensor([0, 1, 0, 1])), attacks=["noise"], eps=0.1)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sys.exit(7)
"""


def test_ctrl_c_of_a_person_still_interrupts():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
