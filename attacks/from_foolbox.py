"""Attacks of Foolbox, Foolbox models made of torch modules, and a Foolbox criterion for defenses that reject."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # without a `git` program importing Foolbox fails otherwise

import eagerpy as ep
import foolbox
import torch
from foolbox import attacks
from foolbox.attacks import base
from foolbox.criteria import Misclassification
from foolbox.distances import LpDistance
from foolbox.models import PyTorchModel
from torch import Tensor, nn

from manifold_bench.attacks.adapter import LibraryAttack
from manifold_bench.attacks.base import Knowledge
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.threat import Norm

DECISION = (
    "additive_noise",
    "blended_noise",
    "blur",
    "boundary_attack",
    "contrast",
    "contrast_min",
    "hop_skip_jump",
    "inversion",
    "pointwise",
    "saltandpepper",
    "spatial_attack",
)
"""Modules of Foolbox whose attacks use predicted labels alone."""

BLACK_WHERE_FAILED = ("EADAttack", "L2CarliniWagnerAttack")
"""Classes that return an image of zeros where they find nothing."""

NOISE_DRAWS = 50
"""Number of random images that are candidates for starting points."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(LibraryAttack):
    """Runs an attack of Foolbox, named as foolbox:ClassName.

    The attacks are the untargeted classes of `foolbox.attacks`.

    A class with a fixed distance supports that norm alone (an L1 minimiser also L2; Foolbox' L0 counts values, not
    pixels); a class that can minimise any distance gets `norm`. The default of `abs_stepsize` is 2.5 ε / steps,
    because the library's default relative step size assumes its default number of steps. Attacks that start beyond the
    boundary start from the nearest image, of the batch or of noise, that is accepted as another class.
    """

    paper = "rauber2020"
    version: ClassVar[int] = 2
    library = "foolbox"
    distribution = "foolbox"
    refused: ClassVar = {
        "Attack": "it is the base class",
        "BinarizationRefinementAttack": "it refines another attack's result",
        "DatasetAttack": "it has to be given images by hand",
        "GenAttack": "it needs target classes",
    }
    ours = ("distance", "constraint", "init_attack", "tensorboard")
    costs: ClassVar = {"HopSkipJumpAttack": (500, 0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            attack = self._attack(eps=0.1)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: {error}") from error
        norms = _norms(attack)
        if self.norm not in norms:
            raise ValueError(f"{self.name}: norm: {self.norm!r} is not supported; allowed: {' or '.join(norms)}")

    @property
    def needs(self) -> str | None:
        return "numba" if self.attack.endswith("BrendelBethgeAttack") else None

    @staticmethod
    def classes() -> Mapping[str, type]:
        return foolbox_attacks()

    @property
    def knowledge(self) -> Knowledge:
        if self.implementation.__module__.rpartition(".")[2] in DECISION:
            return "decision"
        return super().knowledge

    @property
    def minimal(self) -> bool:
        return issubclass(self.implementation, base.MinimizationAttack)

    def search(self, module: nn.Module, x: Tensor, y: Tensor, eps: float, others: Tensor) -> Tensor:
        attack = self._attack(eps)
        model = foolbox_model(module, x.device)
        options: dict[str, Any] = {}
        rows = all_rows(x)
        if _needs_start(attack):
            starts, started = starting_points(module, x, y, others)
            rows = started.nonzero()[:, 0]
            options["starting_points"] = starts[rows]
        found = x.clone()
        if len(rows):
            criterion = Misclassification(y[rows])
            epsilons = None if self.minimal else eps
            if isinstance(attack, base.AttackWithDistance):
                options["epsilons"] = epsilons
            found[rows] = attack(model, x[rows], criterion, **options)[1]
        if self.attack in BLACK_WHERE_FAILED:
            black = (found == 0).flatten(1).all(1)
            found[black] = x[black]
        return found

    def _attack(self, eps: float) -> attacks.Attack:
        """Return the library's attack at that ε."""
        values = self.values
        ours: dict[str, object] = {}
        if "distance" in values and self.norm != "unrestricted":
            ours["distance"] = getattr(foolbox.distances, self.norm)
        if "constraint" in values:
            ours["constraint"] = self.norm
        if "abs_stepsize" in values and not {"abs_stepsize", "rel_stepsize"} & set(self.parameters):
            ours["abs_stepsize"] = 2.5 * eps / self.rounds("steps")
        return self.implementation(**ours, **self.parameters)


def foolbox_model(module: nn.Module, device: torch.device | str = "cpu") -> PyTorchModel:
    """Return a Foolbox model for a module: images [N,C,H,W] in [0,1] → logits, on that device."""
    return PyTorchModel(module.eval(), bounds=(0, 1), device=torch.device(device))


class AcceptedAndWrong(Misclassification):
    """A Foolbox criterion for outputs [N,K+1]: the answer is accepted and is not `labels` [N].

    It changes what counts as a success, but not the losses inside Foolbox' attacks, which ignore the reject score;
    `RejectFolded` changes both, for inputs of one class. It is a `Misclassification`, because several attacks read
    `labels`.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        super().__init__(labels)
        self.num_classes = num_classes

    def __call__(self, perturbed: T, outputs: T) -> T:
        logits, restore = ep.astensor_(outputs)
        answer = logits.argmax(axis=-1)
        return restore(ep.logical_and(answer != self.labels, answer < self.num_classes))


def starting_points(module: nn.Module, x: Tensor, y: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return an image that the module classifies as another class than y [N] for each x, [N,C,H,W], and whether any is.

    It is the nearest in L2 to x [N,C,H,W] of `others` [M,C,H,W] and of `NOISE_DRAWS` uniform random images; [N] bool.
    """
    images = torch.cat([others, torch.rand(NOISE_DRAWS, *x.shape[1:], device=x.device)])
    with torch.no_grad():
        wrong = module(images).argmax(1)[None, :] != y[:, None]
    distances = torch.cdist(x.flatten(1), images.flatten(1)).masked_fill(~wrong, torch.inf)
    return images[distances.argmin(1)], wrong.any(1)


@cache
def foolbox_attacks() -> Mapping[str, type]:
    """Return the usable attack classes of `foolbox.attacks` by name."""
    classes = {n: c for n, c in vars(attacks).items() if isinstance(c, type) and issubclass(c, attacks.Attack)}
    return {name: cls for name, cls in sorted(classes.items()) if name not in FoolboxAttack.refused}


def _norms(attack: attacks.Attack) -> tuple[Norm, ...]:
    """Return the norms that a Foolbox attack supports."""
    if not isinstance(attack, base.AttackWithDistance):
        return ("unrestricted",)
    by_power: dict[float, tuple[Norm, ...]] = {0: ("l0",), 1: ("l1",), 2: ("l2",), float("inf"): ("linf",)}
    if isinstance(attack, base.FlexibleDistanceMinimizationAttack) and getattr(attack, "_distance", None) is None:
        return ("linf", "l2", "l1", "l0")
    assert isinstance(attack.distance, LpDistance)
    if attack.distance.p == 1 and isinstance(attack, base.MinimizationAttack):
        return ("l1", "l2")
    return by_power[attack.distance.p]


def _needs_start(attack: attacks.Attack) -> bool:
    """Return whether an attack needs an adversarial starting point; the fast minimum-norm attacks merely accept one."""
    takes = "starting_points" in inspect.signature(attack.run).parameters if hasattr(attack, "run") else False
    return takes and not type(attack).__name__.endswith("FMNAttack")
