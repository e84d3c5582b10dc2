"""The common part of the adapters for attacks of other libraries.

Those attacks handle neither rejection nor seeds, and do not count passes. The adapter gives them a module whose argmax
differs from the label exactly where the defense accepts and is wrong, seeds their random numbers, and counts passes.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.contract import AttackableDefense
from manifold_bench.attacks.losses import accepted_and_wrong
from manifold_bench.attacks.missing import not_installed
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import NORMS, input_seeds, project
from manifold_bench.attacks.view import CountedModule, View

Parameter = bool | int | float | str | list[bool | int | float | str]
"""Types of parameters that a matrix file can set."""

STEPS = ("binary_search_steps", "max_iter", "nb_steps", "steps")
"""Parameters of the libraries' classes that are numbers of iterations, for `passes`."""

RESTARTS = ("nb_random_init", "nb_restarts", "num_random_init", "num_rotations", "num_translations", "repeats")
"""Parameters of the libraries' classes that are numbers of restarts, for `passes`."""


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(ViewAttack):
    """An attack class of another library, chosen by its name, with the library's parameters.

    attack: name of the class. parameters: arguments of its constructor, under the library's names; others keep the
    library's defaults.

    Clean inputs that are accepted and wrong are returned unchanged, and so are inputs for which a minimal attack finds
    nothing (some libraries return an empty image there). Raises ValueError where the class does not exist or cannot be
    used, where a package that it needs is not installed, where it has no such parameter, and where it does not support
    `norm`.
    """

    norms = NORMS
    open_parameters: ClassVar[bool] = True
    library: ClassVar[str]
    """Prefix of the names of the library's attacks in a matrix file."""
    distribution: ClassVar[str]
    """The library's name on the package index."""
    refused: ClassVar[Mapping[str, str]]
    """Classes that cannot be used, and why."""
    ours: ClassVar[tuple[str, ...]]
    """Parameters of constructors that a matrix file cannot set, because the adapter sets them."""
    costs: ClassVar[Mapping[str, tuple[int, int]]]
    """Forward and backward passes of one input in one iteration of a class, where they are many more than one."""

    single: ClassVar[tuple[str, ...]] = ()
    """Classes that get one input at a time, so that it is known which input a query is about."""

    attack: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        package = self.needs
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(not_installed(self.name, package))
        settable = self.settable(self.attack)
        for key in self.parameters:
            if key not in settable:
                allowed = ", ".join(sorted(settable)) or "none"
                raise ValueError(f"{self.name}: {key!r} cannot be set here; allowed: {allowed}")
        missing = [k for k, v in settable.items() if v is inspect.Parameter.empty and k not in self.parameters]
        if missing:
            raise ValueError(f"{self.name}: missing parameters: {', '.join(missing)}; they have no defaults")

    @property
    def name(self) -> str:
        """The attack's name in a matrix file."""
        return f"{self.library}:{self.attack}"

    @classmethod
    def settable(cls, attack: str) -> dict[str, object]:
        """Return the arguments of the library's class that a matrix file may set, with defaults; raises ValueError.

        attack: name of the class. An argument without a default has `inspect.Parameter.empty`.
        """
        defaults = constructor_defaults(cls.named(attack))
        return {name: default for name, default in defaults.items() if name not in cls.ours}

    @property
    @abstractmethod
    def needs(self) -> str | None:
        """The package that the library imports for this attack without requiring it; None if there is none."""

    @staticmethod
    @abstractmethod
    def classes() -> Mapping[str, type]:
        """Return the library's usable classes by name."""

    @classmethod
    def named(cls, attack: str) -> type:
        """Return the library's class of that name; raises ValueError with similar names, or why it cannot be used."""
        place = f"{cls.library}:{attack}"
        if attack in cls.refused:
            raise ValueError(f"{place} cannot be used: {cls.refused[attack]}")
        usable = cls.classes()
        if attack not in usable:
            lower = {name.lower(): name for name in usable}
            near = [lower[name] for name in difflib.get_close_matches(attack.lower(), lower, n=3, cutoff=0.5)]
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(usable))}"
            raise ValueError(f"{place}: no such attack; {hint}")
        return usable[attack]

    @property
    def implementation(self) -> type:
        """The library's class; raises ValueError as `named`."""
        return self.named(self.attack)

    @property
    def defaults(self) -> dict[str, object]:
        """The named parameters of the class' constructor, with their defaults."""
        return constructor_defaults(self.implementation)

    @property
    def values(self) -> dict[str, object]:
        """The parameters of the class' constructor, with the values of the matrix file or else their defaults."""
        return self.defaults | dict(self.parameters)

    def rounds(self, name: str) -> int:
        """Return the value of a parameter that is a number of iterations or restarts; 1 if the class has none."""
        value = self.values.get(name)
        return max(int(value), 1) if isinstance(value, (int, float)) else 1

    @property
    def revision(self) -> str:
        return f"{self.version}/{self.distribution}-{metadata.version(self.distribution)}"

    def passes(self) -> tuple[int, int]:
        rounds = math.prod(map(self.rounds, (*STEPS, *RESTARTS)))
        differentiates = self.knowledge in ("white-box", "oblivious")
        forwards, backwards = self.costs.get(self.attack, (1, int(differentiates)))
        return 2 + rounds * forwards, rounds * backwards

    @abstractmethod
    def search(self, module: nn.Module, x: Tensor, y: Tensor, eps: float, others: Tensor) -> Tensor:
        """Return adversarial images for x [N,C,H,W] with labels y [N] against a module: images → logits [N,K].

        A success is an image whose largest logit is not that of y. eps: size of the perturbation. others: images
        [M,C,H,W] of the whole batch, for attacks that start from another image.
        """

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        found, view = x.clone(), self.view(target)
        with seeded(seed), frozen(target.defense):
            with nullcontext() if target.defense.randomized else kept_states():
                rows = (~self._beaten(view, x, y, all_rows(x))).nonzero()[:, 0]
            if not len(rows):
                return found
            # RejectFolded needs inputs of one true class
            groups = [rows[y[rows] == label] for label in y[rows].unique()] if view.rejects else [rows]
            alone = self.attack in self.single
            for part in (part for group in groups for part in group.split(1 if alone else len(group))):
                module: nn.Module = CountedModule(self.view(target), part)
                if not target.defense.randomized:
                    module = KeptRandomState(module)
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
        """Return which images are accepted and wrong, [N] bool, by the deployed defense or by the attacked part."""
        if self.part == "defense":
            return view.target.verdict(x, rows).wrong(y)
        return accepted_and_wrong(view.answer(x, rows), y, view.num_classes)


class RejectFolded(nn.Module):
    """A module with K outputs for inputs of one true class: rejection [N,K+1] counts as an answer of that class [N,K].

    The true logit becomes the larger of itself and the reject score. So the argmax differs from the label exactly where
    an input is accepted and wrong, losses depend on the reject score, and attacks do not take rejection for success.
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


class KeptRandomState(nn.Module):
    """A module that leaves the global random states as they were.

    A deterministic defense that seeds them in its forward would have a library draw the same numbers again and again.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with kept_states():
            return self.module(x)


@contextmanager
def kept_states() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and torch at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of Python, NumPy and torch, and restore them afterwards.

    The global state also seeds new `np.random.RandomState()`: ART's HopSkipJump and Boundary use unseeded ones.
    """
    unseeded = np.random.RandomState
    own = partial(np.random.randint, 2**32, dtype=np.uint32)
    with kept_states():
        seed_everything(seed)
        np.random.RandomState = lambda seed=None: unseeded(own() if seed is None else seed)  # type: ignore[assignment,misc]
        try:
            yield
        finally:
            np.random.RandomState = unseeded  # type: ignore[misc]


def seed_everything(seed: int) -> None:
    """Seed the global random states of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def frozen(defense: AttackableDefense) -> Iterator[None]:
    """Switch off gradients of a defense's weights: libraries call `backward`, which would accumulate in them."""
    weights = [w for w in defense.parameters() if w.requires_grad] if isinstance(defense, nn.Module) else []
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def constructor_defaults(cls: type) -> dict[str, object]:
    """Return the named parameters of a constructor and their defaults, or `inspect.Parameter.empty` without one."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p.default for n, p in inspect.signature(cls).parameters.items() if p.kind in named}
