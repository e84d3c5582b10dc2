"""Limits the work of a job: an attack that would take too long gets fewer images first, fewer iterations second."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from manifold_bench.attacks.base import Attack

ITERATIONS = ("steps", "queries", "searches", "generations", "max_iter")
"""Parameters of attacks that are numbers of iterations, including those of ART and Foolbox."""

OPERATIONS = Path(__file__).with_name("operations.json")

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Shares of the attacks' iterations that are tried, in this order, until the rest fits."""

LEAST = 5
"""Number of images below which a job's iterations are cut instead."""

FAR = 30.0
"""How many times the limit a job may take where it cannot be made shorter."""

SMALLEST = 2.0**-8
"""Billions of operations that every answer counts as at least."""

ADAPTED = 5.0
"""How many times the work of other attacks those may take that are made for the defense's family."""


def shortened(attack: Attack, share: float) -> tuple[Attack, dict[str, tuple[int, int]]]:
    """Return an attack with that share of its iterations, and each changed parameter with its old and new value.

    An attack without a number of iterations, such as FGSM or AutoAttack, stays as it is.
    """
    changes: dict[str, tuple[int, int]] = {}
    own = {field.name: vars(attack)[field.name] for field in dataclasses.fields(attack)}
    inner: dict[str, Any] = own.get("parameters") or {}  # the library's parameters, for an adapter
    updates: dict[str, Any] = {}
    for name in ITERATIONS:
        old = own.get(name, inner.get(name))
        if isinstance(old, int) and not isinstance(old, bool) and (new := max(1, math.ceil(old * share))) < old:
            if name in own:
                updates[name] = new
            else:
                updates["parameters"] = {**updates.get("parameters", inner), name: new}
            changes[name] = (old, new)
    try:
        return (dataclasses.replace(attack, **updates), changes) if changes else (attack, {})
    except ValueError:  # the attack needs more iterations than that
        return attack, {}


def limited(attack: Attack, n: int, cost: float, limit: float) -> tuple[Attack, int] | str:
    """Return the attack, shorter if it must be, and the number of images on which it takes no more than the limit.

    n: number of images that there are. cost: work on one of them. With fewer than `LEAST` images the iterations are
    cut, and where that is not enough, or the attack has none, the passes of each input (`Attack.max_passes`). Where the
    least that is possible takes more than `FAR` times the limit, the answer is a reason to skip the job.
    """
    images = max(min(n, LEAST), min(n, int(limit / cost)))
    excess = cost * images / limit
    if excess <= 1:
        return attack, images
    share = next((one for one in SHARES if one * excess <= 1), SHARES[-1])
    before = max(1.0, sum(attack.affordable_passes()))
    shorter, _ = shortened(attack, share)
    passes = sum(shorter.affordable_passes())
    if (left := excess * passes / before) > 1:
        shorter = dataclasses.replace(shorter, max_passes=max(2, int(passes / left)))
    least = excess * sum(shorter.affordable_passes()) / before
    if least > FAR:
        return (
            f"the defense is slow: on {images} images and with the fewest passes this takes {least:,.0f} times the "
            "matrix's `work`; a larger one lets it run"
        )
    return shorter, images


class _Counter(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **(kwargs or {}), out_val=found)
        return found


def operations(defense: nn.Module, image: Tensor) -> float:
    """Return about how many billions of operations one answer of a defense to an image [C,H,W] takes.

    It is a power of two, so that it is the same on every processor where a search ends a little earlier on some. A
    plain classifier of MNIST takes 0.005; fewer count as `SMALLEST`, since smaller networks are hardly faster.
    """
    with torch.no_grad(), torch.random.fork_rng(), _Counter() as counter:
        defense(image[None])
    return max(SMALLEST, 2.0 ** round(math.log2(max(1, counter.operations) / 1e9)))


@cache
def known_operations() -> dict[str, float]:
    """Return what was counted, by the key of the defense; a command adds what it counts.

    `operations.json` holds it for the shipped defenses of the matrix `full` that optimise at inference, whose count
    takes seconds; `python docs/operations.py` writes it.
    """
    return dict(json.loads(OPERATIONS.read_text(encoding="utf-8")))


def work_text(work: float | None) -> str:
    """Return a sentence on the limit of a matrix, for the legends of tables; empty without a limit."""
    if work is None:
        return ""
    return (
        f"An attack took at most about {work:,.3g} billion operations in a job, and {ADAPTED:.0f} times as many where "
        "it is made for the defense's family: slow defenses met it on fewer images and with fewer iterations."
    )
