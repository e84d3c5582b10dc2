"""manifold-bench: measures how robust image classifiers and their defenses are.

>>> import manifold_bench as mb
>>> result = mb.evaluate(model, "mnist5k", n=64, attacks=["pgd", "autoattack"], norm="linf", eps=[0.1, 0.2, 0.3])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manifold_bench.bench.api.functions import as_defense, attack, evaluate, run
    from manifold_bench.bench.api.one_attack import Attacked
    from manifold_bench.bench.errors import InputError
    from manifold_bench.bench.report.results import Results, load
    from manifold_bench.defenses.base import append_reject_score
    from manifold_bench.defenses.bpda import bpda

__all__ = [
    "Attacked",
    "InputError",
    "Results",
    "append_reject_score",
    "as_defense",
    "attack",
    "bpda",
    "evaluate",
    "load",
    "run",
]

_HOMES = {
    "Attacked": "manifold_bench.bench.api.one_attack",
    "InputError": "manifold_bench.bench.errors",
    "Results": "manifold_bench.bench.report.results",
    "append_reject_score": "manifold_bench.defenses.base",
    "bpda": "manifold_bench.defenses.bpda",
    "load": "manifold_bench.bench.report.results",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that importing the package takes no time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "manifold_bench.bench.api.functions")), name)


def __dir__() -> list[str]:
    return __all__
