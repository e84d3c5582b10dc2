"""What the adapters of other libraries' attacks share.

Those attacks know neither rejection, nor seeds, nor what a pass costs: here they get a module whose argmax differs
from the label exactly where the defense accepts and is wrong, a seeded run, and counted passes.
"""

from __future__ import annotations

import difflib
import inspect
import math
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, ClassVar  # Any: classes of other libraries and their parameters

import numpy as np
import torch
from torch import Tensor, nn

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.contract import AttackableDefense
from manifold_bench.attacks.losses import accepted_and_wrong
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import NORMS, input_seeds, project
from manifold_bench.attacks.view import CountedModule, View

Parameter = bool | int | float | str | list[bool | int | float | str]
"""What a matrix file can say."""

STEPS = ("binary_search_steps", "max_iter", "nb_steps", "steps")
"""Parameters of the libraries' classes that say how many iterations they take, for `passes`."""

RESTARTS = ("nb_random_init", "nb_restarts", "num_random_init", "num_rotations", "num_translations", "repeats")
"""Those that say how often they do so."""


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(ViewAttack):
    """An attack class of another library by its name, with its own parameters.

    attack: name of the class. parameters: arguments of its constructor, as the library names them, with its defaults.

    Inputs that are accepted and wrong as they are come back unchanged; so do those for which a minimal attack found
    nothing (some libraries return an empty image there). Raises ValueError where the class doesn't exist or can't
    be used, where a parameter isn't one of its own, and where it doesn't work in `norm`.
    """

    norms = NORMS
    open_parameters: ClassVar[bool] = True
    library: ClassVar[str]
    """What names of its attacks begin with."""
    distribution: ClassVar[str]
    """The library's name on the package index."""
    refused: ClassVar[Mapping[str, str]]
    """Why a class that looks usable is not."""
    ours: ClassVar[tuple[str, ...]]
    """Parameters of constructors that are not the matrix file's to set."""
    costs: ClassVar[Mapping[str, tuple[int, int]]]
    """Passes that an input costs in one iteration of a class, where they are many more than one of each."""

    single: ClassVar[tuple[str, ...]] = ()
    """Classes that get one input at a time, so that every query is known to be about that one."""

    attack: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        settable = {name: default for name, default in self.defaults.items() if name not in self.ours}
        for key in self.parameters:
            if key not in settable:
                allowed = ", ".join(sorted(settable)) or "none"
                raise ValueError(f"{self.name}: {key!r} is not a parameter to set here; allowed: {allowed}")
        missing = [k for k, v in settable.items() if v is inspect.Parameter.empty and k not in self.parameters]
        if missing:
            raise ValueError(f"{self.name}: needs {', '.join(missing)}")

    @property
    def name(self) -> str:
        """What the attack is called in a matrix file."""
        return f"{self.library}:{self.attack}"

    @abstractmethod
    def classes(self) -> Mapping[str, type]:
        """The library's usable classes by name."""

    @property
    def implementation(self) -> Any:
        """The library's class; ValueError with the nearest names, or with the reason why it can't be used."""
        if self.attack in self.refused:
            raise ValueError(f"{self.name} can't be used: {self.refused[self.attack]}")
        usable = self.classes()
        if self.attack not in usable:
            lower = {name.lower(): name for name in usable}
            near = [lower[name] for name in difflib.get_close_matches(self.attack.lower(), lower, n=3, cutoff=0.5)]
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(usable))}"
            raise ValueError(f"{self.name}: no such attack; {hint}")
        return usable[self.attack]

    @property
    def defaults(self) -> dict[str, Any]:
        """The named parameters of the class' constructor, with their defaults."""
        return constructor_defaults(self.implementation)

    @property
    def values(self) -> dict[str, Any]:
        """The same, with the matrix file's values."""
        return self.defaults | dict(self.parameters)

    @property
    def revision(self) -> str:
        return f"{self.version}/{self.distribution}-{metadata.version(self.distribution)}"

    def passes(self) -> tuple[int, int]:
        rounds = math.prod(max(int(self.values.get(knob) or 1), 1) for knob in (*STEPS, *RESTARTS))
        differentiates = self.knowledge in ("white-box", "oblivious")
        forwards, backwards = self.costs.get(self.attack, (1, int(differentiates)))
        return 2 + rounds * forwards, rounds * backwards

    @abstractmethod
    def search(self, module: nn.Module, x: Tensor, y: Tensor, eps: float, others: Tensor) -> Tensor:
        """Adversarial images for x [N,C,H,W] against a module of logits [N,K]: success is argmax ≠ y [N].

        others: [M,C,H,W] the whole batch, for attacks that start from another image.
        """

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        found, view = x.clone(), self.view(target)
        with seeded(seed), frozen(target.defense):
            rows = (~self._beaten(view, x, y, all_rows(x))).nonzero()[:, 0]
            if not len(rows):
                return found
            # A module that folds rejection into the true class has to know that class
            groups = [rows[y[rows] == label] for label in y[rows].unique()] if view.rejects else [rows]
            alone = self.attack in self.single
            for part in (part for group in groups for part in group.split(1 if alone else len(group))):
                module: nn.Module = CountedModule(self.view(target), part)
                if view.rejects:
                    module = RejectFolded(module, int(y[part[0]]), view.num_classes)
                if alone:
                    seed_everything(input_seeds(x[part], seed)[0])
                found[part] = self.search(module.eval(), x[part], y[part], eps, x).to(x)
            if not self.minimal:
                return project(found, x, self.norm, eps)
            found = found.clamp(0, 1)
            failed = rows[~self._beaten(view, found[rows], y[rows], rows)]
            found[failed] = x[failed]
            return found

    def _beaten(self, view: View, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Accepted and wrong as far as this attacker can tell: by the defense's verdict, or by the part he knows."""
        if self.part == "defense":
            return view.target.verdict(x, rows).wrong(y)
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
        logits, classes = self.module(x), torch.arange(self.classes, device=x.device)
        real, reject = logits[:, : self.classes], logits[:, self.classes :]
        return torch.where(classes == self.label, torch.maximum(real, reject), real)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random states of Python, NumPy and torch set to `seed`, and put back afterwards.

    New `np.random.RandomState()` are seeded by the global one: ART's HopSkipJump and Boundary draw from unseeded ones.
    """
    python, numpy, unseeded = random.getstate(), np.random.get_state(), np.random.RandomState  # noqa: NPY002
    own = partial(np.random.randint, 2**32, dtype=np.uint32)
    with torch.random.fork_rng():
        seed_everything(seed)
        np.random.RandomState = lambda seed=None: unseeded(own() if seed is None else seed)  # type: ignore[assignment,misc]
        try:
            yield
        finally:
            np.random.RandomState = unseeded  # type: ignore[misc]
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def seed_everything(seed: int) -> None:
    """Seed the global random states that libraries draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def frozen(defense: AttackableDefense) -> Iterator[None]:
    """The weights of a defense without gradients: libraries call `backward`, which would add up in them."""
    weights = [w for w in defense.parameters() if w.requires_grad] if isinstance(defense, nn.Module) else []
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def constructor_defaults(cls: type) -> dict[str, Any]:
    """The named parameters of a constructor and their defaults; `inspect.Parameter.empty` where there is none."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p.default for n, p in inspect.signature(cls).parameters.items() if p.kind in named}
