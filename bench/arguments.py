"""Parsing and checking of command-line arguments that several commands share, and the arguments of `run`."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, get_args

from manifold_bench.attacks.norms import Norm
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.text import closest, eps_of, norm_of

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)")
"""The form of a duration: a number and its unit."""


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError for arguments that are not allowed, are empty or hold NUL characters."""

    def parse_args(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        arguments = sys.argv[1:] if arguments is None else arguments
        for before, word in pairwise(["", *arguments]):
            if not word or re.fullmatch("--[^=]+=", word):  # as a path, an empty text would be the present folder
                option = word.rstrip("=") or before
                named = f"argument {option}: " if option.startswith("--") else "an argument "
                self.error(f"{named}is empty; give a value, or leave it out")
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._about(unknown, given))
        for name, value in vars(given).items():
            if any("\0" in str(one) for one in (value if isinstance(value, list) else [value])):
                self.error(f"argument {name}: holds a NUL character; remove it")
        return given

    def _about(self, unknown: Sequence[str], given: argparse.Namespace) -> str:
        """Return a message on words that the command does not take. given: the arguments that it takes."""
        names = {option.lstrip("-"): option for action in self._actions for option in action.option_strings}
        places = [action for action in self._actions if not action.option_strings]
        said = f"unrecognized arguments: {' '.join(unknown)}"
        if unknown[0].startswith("-"):
            word = unknown[0].partition("=")[0].lstrip("-")
            near = closest(word, [name for name in names if len(name) > 1])
            return f"{said}; did you mean {names[near]!r}?" if near else said
        if any(word.startswith("-") for word in unknown):
            return said
        if not places and "matrix" in names:
            return f"{said}; write --matrix {unknown[0]}"
        if not places:
            return f"{said}; it takes nothing without an option"
        taken = [str(vars(given)[action.dest]) for action in places]
        names_of_places = " ".join(str(action.metavar or action.dest) for action in places)
        return f"it takes {names_of_places} alone; got {', '.join([*taken, *unknown])}"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{'' if message.endswith('?') else ';'} see {self.prog} --help")


def positive(text: str) -> int:
    """Parse a whole number ≥ 1 that fits into 64 bits; raises ArgumentTypeError."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Parse a whole number ≥ 0 that fits into 64 bits; raises ArgumentTypeError."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    shown = text if len(text) <= 40 else f"{text[:39]}…"
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{shown!r} is not allowed; give a whole number from {least} to 2^63 − 1")
    return value


UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
"""Seconds of each unit of a duration."""


def duration(text: str) -> str:
    """Return a duration such as 90s, 30min or 2h unchanged; raises ArgumentTypeError for any other text."""
    if not (found := DURATION.fullmatch(text.strip())) or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not allowed; give a time > 0 such as 90s, 30min or 2h")
    return text.strip()


def seconds_of(text: str) -> float:
    """Return the number of seconds of a `duration`."""
    found = DURATION.fullmatch(text)
    assert found is not None
    return float(found[1]) * UNITS[found[2]]


def size(text: str) -> float:
    """Parse a perturbation size > 0, written as a number or a fraction; raises ArgumentTypeError."""
    try:
        value = eps_of(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not allowed; give a size > 0 as 0.1 or 8/255")
    return value


SYSTEMS = (
    ("defense", "defense", ", file.py:Name@weights, or package.module:Name"),
    ("attack", "attack", ", or package.module:Name"),
    ("dataset", "data set", ", package.module:Name, or a folder of images by class"),
)
"""Options of `run` that name systems, each with its title and with further forms of its values."""


def run_parser() -> Parser:
    """Return the parser of the arguments of the command `run`, which are options of the Python interface, too."""
    p = Parser(
        prog="manifold-bench run",
        description="Attack defenses and measure how robust they are. The same command again runs what is missing.",
        epilog="Exit codes: 0 done, 1 finished with failed jobs, 2 bad input.",
    )
    p.add_argument("--matrix", metavar="NAME|FILE", help="matrix to run (required): a name from `list`, or a TOML file")
    p.add_argument("--out", metavar="DIR|URL", help="output folder, or s3://… (default: results/<matrix>)")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of data files (default: $MANIFOLD_BENCH_DATA)")
    images = "number of test images of each data set, in place of the matrix's numbers"
    p.add_argument("--n", type=positive, metavar="N", help=images)
    p.add_argument("--seed", type=natural, metavar="N", help="seed of the attacks, in place of the matrix's seeds")
    p.add_argument(
        "--workers",
        type=natural,
        metavar="N",
        help="number of parallel jobs (default: the number of cores; 0: all in this process, not isolated)",
    )
    engines = "run on this machine (local, default) or on a Ray cluster (ray)"
    p.add_argument("--engine", choices=("local", "ray"), default="local", help=engines)
    address = "address of the Ray cluster (default: the one on this machine)"
    p.add_argument("--address", metavar="HOST:PORT", help=address)
    p.add_argument("--device", default="cpu", help="device to compute on: cpu (default), cuda, cuda:1, …")
    for kind, title, more in SYSTEMS:
        only = f"run only this {title} (repeatable); may be outside the matrix: a name, file.py:Name{more}"
        p.add_argument(f"--{kind}", action="append", default=[], metavar="NAME", help=only)
    norms = f"run only attacks in this norm: {', '.join(get_args(Norm))} (repeatable)"
    p.add_argument("--norm", action="append", type=norm_of, default=[], metavar="NORM", help=norms)
    sizes = "perturbation size, such as 0.1 or 8/255, in place of the matrix's sizes of one norm (repeatable)"
    p.add_argument("--eps", action="append", type=size, default=[], metavar="SIZE", help=sizes)
    p.add_argument("--quiet", action="store_true", help="show only failures and the last line; log.jsonl has the rest")
    probes = "run or leave out the probes of the masking diagnosis (docs/diagnosis.md), whatever the matrix says"
    p.add_argument("--diagnose", action=argparse.BooleanOptionalAction, help=probes)
    p.add_argument("--export", type=Path, metavar="DIR", help="write every judged image to .npz files in this folder")
    p.add_argument("--dry-run", action="store_true", help="show the plan and how long it would take, and run nothing")
    fitting = "time for the run, such as 90s, 30min or 2h: use fewer images, and then fewer iterations, until it fits"
    p.add_argument("--budget", type=duration, metavar="TIME", help=fitting)
    return p
