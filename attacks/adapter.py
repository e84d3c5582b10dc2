"""What the adapters of other libraries' attacks share.

Those attacks know neither rejection, nor seeds, nor what a pass costs: here they get a module whose argmax differs
from the label exactly where the defense accepts and is wrong, a seeded run, and counted passes.
"""

from __future__ import annotations

import difflib
import inspect
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.losses import accepted_and_wrong
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import NORMS, project
from manifold_bench.attacks.view import View

Parameter = bool | int | float | str | list[bool | int | float | str]
"""What a matrix file can say."""


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(ViewAttack):
    """An attack class of another library by its name, with its own parameters.

    attack: the class. parameters: of its constructor, as the library names them; defaults are the library's.

    Inputs that are accepted and wrong as they are come back unchanged; so do those for which a minimal attack found
    nothing (some libraries return an empty image there). Raises ValueError where the class doesn't exist or can't
    be used, where a parameter isn't one of its own, and where it doesn't work in `norm`.
    """

    norms = NORMS
    open_parameters: ClassVar[bool] = True
    distribution: ClassVar[str]
    """The library's name on the package index."""

    attack: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict, hash=False)

    @property
    def revision(self) -> str:
        return f"{self.version}/{self.distribution}-{metadata.version(self.distribution)}"

    @property
    def one_at_a_time(self) -> bool:
        """Whether `search` gets one input at a time, so that every query is known to be about that one."""
        return False

    @abstractmethod
    def search(self, module: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int, others: Tensor) -> Tensor:
        """Adversarial images for x [N,C,H,W] against a module of logits [N,K]: success is argmax ≠ y [N].

        others: [M,C,H,W] the whole batch, for attacks that start from another image.
        """

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        found = x.clone()
        with seeded(seed), frozen(target.defense):
            open_rows = (~self._beaten(target, view, x, y)).nonzero()[:, 0]
            for group, fold in by_class(y, open_rows, view):
                for rows in group.split(1 if self.one_at_a_time else max(len(group), 1)):
                    module = fold(target.module(self.view(target), rows)).eval()
                    found[rows] = self.search(module, x[rows], y[rows], eps, seed, x).to(x)
            if not self.minimal:
                return project(found, x, self.norm, eps)
            found = found.clamp(0, 1)
            succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            if len(open_rows):
                succeeded[open_rows] = self._beaten(target, view, found[open_rows], y[open_rows], open_rows)
            return torch.where(succeeded.view(-1, 1, 1, 1), found, x)

    def _beaten(self, target: Target, view: View, x: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """Accepted and wrong as far as this attacker can tell: by the defense's verdict, or by the part he knows."""
        if rows is None:
            rows = all_rows(x)
        if self.part == "defense":
            return target.verdict(x, rows).wrong(y)
        return accepted_and_wrong(view.answer(x, rows), y, view.num_classes)


class RejectFolded(nn.Module):
    """Outputs [N,K+1] as [N,K] for inputs of one true class: being rejected counts as being that class.

    The true logit becomes the larger of itself and the reject score. So argmax ≠ label means accepted and wrong,
    cross-entropy and every margin see rejection, and a decision-based attack doesn't mistake it for success.
    """

    def __init__(self, module: nn.Module, label: int, classes: int) -> None:
        super().__init__()
        self.module = module
        self.label = label
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logits = self.module(x)
        true = torch.maximum(logits[:, self.label], logits[:, self.classes])
        columns = list(logits[:, : self.classes].unbind(1))
        columns[self.label] = true
        return torch.stack(columns, dim=1)


def by_class(y: Tensor, rows: Tensor, view: View) -> Iterator[tuple[Tensor, Callable[[nn.Module], nn.Module]]]:
    """Groups of `rows`, each with what turns the view's module into one of K logits whose argmax ≠ y means accepted
    and wrong.

    One group is enough where nothing is rejected; else there is one for each true class, because the module has to
    know it. y: labels [N] of the whole batch.
    """
    if not view.rejects:
        if len(rows):
            yield rows, lambda module: module
        return
    for label in y[rows].unique().tolist():
        yield rows[y[rows] == label], partial(RejectFolded, label=label, classes=view.num_classes)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random states of Python, NumPy and torch set to `seed`, and put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (these libraries draw from the global state)
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def frozen(defense: Any) -> Iterator[None]:
    """The weights of a defense without gradients: libraries call `backward`, which would add up in them."""
    weights = [w for w in defense.parameters() if w.requires_grad] if isinstance(defense, nn.Module) else []
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The named parameters of a class' constructor."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in inspect.signature(cls).parameters.items() if p.kind in named}


def unknown_name(name: str, wrong: str, known: Iterable[str]) -> ValueError:
    """The error for an attack class that doesn't exist, with the nearest that do."""
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(wrong.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(lower.values()))}"
    return ValueError(f"{name}: no such attack; {hint}")


def check_parameters(name: str, given: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter]) -> None:
    """ValueError where a parameter is not one of `accepted`, or one without a default is missing."""
    for key in given:
        if key not in accepted:
            allowed = ", ".join(sorted(accepted)) or "none"
            raise ValueError(f"{name}: {key!r} is not a parameter to set here; allowed: {allowed}")
    missing = [k for k, p in accepted.items() if p.default is inspect.Parameter.empty and k not in given]
    if missing:
        raise ValueError(f"{name}: needs {', '.join(missing)}")
