"""Attacks of the Adversarial Robustness Toolbox (ART), and ART classifiers made of torch modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.attacks.adapter import LibraryAttack, constructor_defaults
from manifold_bench.attacks.base import Knowledge
from manifold_bench.attacks.threat import Norm

NORM_OF: Mapping[str, Norm] = {
    "BasicIterativeMethod": "linf",
    "BoundaryAttack": "l2",
    "CarliniL0Method": "l0",
    "CarliniL2Method": "l2",
    "CarliniLInfMethod": "linf",
    "DeepFool": "l2",
    "NewtonFool": "l2",
    "PixelAttack": "l0",
    "SaliencyMapMethod": "l0",
    "ShadowAttack": "unrestricted",
    "SignOPTAttack": "l2",
    "SimBA": "l2",
    "SpatialTransformation": "unrestricted",
    "ThresholdAttack": "linf",
    "VirtualAdversarialMethod": "l2",
    "ZooAttack": "l2",
}
"""Norm of each usable class that has no parameter for it, but for ElasticNet, which minimises L1 + L2."""

ORDERS: Mapping[Norm, float] = {"linf": np.inf, "l2": 2, "l1": 1}
"""Values of ART's parameter `norm`. Not every class takes 1; its constructor says so."""

DECISION = ("BoundaryAttack", "HopSkipJump", "SignOPTAttack", "SpatialTransformation")
"""Classes that use predicted labels alone."""

COMPOSED = ("AutoAttack", "UniversalPerturbation")
"""Classes that run gradient attacks without requiring gradients themselves."""

TARGETS_ONLY = ("SaliencyMapMethod", "ShadowAttack")
"""Classes that take y for a target class; without y they choose target classes themselves."""

PROBABILITIES = ("SimBA", "VirtualAdversarialMethod")
"""Classes that need probabilities in place of logits."""

NEEDS: Mapping[str, str] = {"AutoAttack": "multiprocess", "BrendelBethgeAttack": "numba"}
"""Packages that ART imports for a class without requiring them; without numba that class does not even exist."""

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class ArtAttack(LibraryAttack):
    """Runs an evasion attack of the Adversarial Robustness Toolbox, named as art:ClassName.

    The attacks are the untargeted classes of `art.attacks.evasion`.

    A class that has parameters for ε and the norm gets those of the matrix; a class without ε looks for the smallest
    perturbation. The default step size `eps_step` is 2.5 ε / max_iter, and 2 ε for AutoPGD and AutoAttack (as in their
    paper).
    """

    paper = "nicolae2018"
    version: ClassVar[int] = 2
    library = "art"
    single = (*DECISION, "ShadowAttack")
    distribution = "adversarial-robustness-toolbox"
    refused: ClassVar = {
        "GeoDA": "it calls np.mat, which NumPy 2 no longer has",
        "LowProFool": "it is for tables, not for images",
        "TargetedUniversalPerturbation": "it needs target classes",
        "Wasserstein": "its ε is a Wasserstein radius, which is none of the norms here",
    }
    ours = ("estimator", "classifier", "eps", "norm", "targeted", "minimal", "verbose", "summary_writer")
    costs: ClassVar = {
        "AutoAttack": (41_700, 2000),
        "AutoProjectedGradientDescent": (3, 1),
        "CarliniL0Method": (200, 350),
        "CarliniL2Method": (8, 20),
        "CarliniLInfMethod": (60, 30),
        "DeepFool": (2, 10),
        "ElasticNet": (4, 17),
        "HopSkipJump": (510, 0),
        "NewtonFool": (2, 10),
        "PixelAttack": (1200, 0),
        "SaliencyMapMethod": (130, 200),
        "ShadowAttack": (400, 400),
        "SignOPTAttack": (20, 0),
        "SimBA": (3, 0),
        "SquareAttack": (2, 0),
        "ThresholdAttack": (1200, 0),
        "UniversalPerturbation": (25, 110),
        "VirtualAdversarialMethod": (100, 0),
        "ZooAttack": (257, 0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in (norms := _norms(self.attack, self.defaults)):
            raise ValueError(f"{self.name}: norm: {self.norm!r} is not supported; allowed: {' or '.join(norms)}")
        try:  # ART checks values when it constructs
            self.implementation(module_classifier(nn.Flatten(), (1, 1, 2), 2), **self._arguments(0.1))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: {error}") from error

    @property
    def needs(self) -> str | None:
        if self.attack in NEEDS:
            return NEEDS[self.attack]
        return "cma" if self.values.get("es") == 0 else None  # PixelAttack and ThresholdAttack, searching by CMA-ES

    @staticmethod
    def classes() -> Mapping[str, type]:
        return art_attacks()

    @property
    def _uses(self) -> set[str]:
        """The names of the abilities that ART requires of the classifier."""
        return {one.__name__ for one in getattr(self.implementation, "_estimator_requirements", ())}

    @property
    def knowledge(self) -> Knowledge:
        if self.attack in DECISION:
            return "decision"
        if self.attack not in COMPOSED and not {"LossGradientsMixin", "ClassGradientsMixin"} & self._uses:
            return "score"
        return super().knowledge

    @property
    def minimal(self) -> bool:
        return "eps" not in self.defaults

    def search(self, module: nn.Module, x: Tensor, y: Tensor, eps: float, others: Tensor) -> Tensor:
        with torch.no_grad():
            classes = module(x[:1]).shape[1]
        if self.attack in PROBABILITIES:
            module = nn.Sequential(module, nn.Softmax(1))
        classifier = module_classifier(module, tuple(x.shape[1:]), classes, x.device)
        attack = self.implementation(classifier, **self._arguments(eps))
        for part in getattr(attack, "attacks", ()):  # of AutoAttack, each with its progress bar
            part.verbose = False
        images, labels = x.cpu().numpy(), F.one_hot(y, classes).cpu().numpy()
        return torch.from_numpy(attack.generate(x=images, y=None if self.attack in TARGETS_ONLY else labels))

    def _arguments(self, eps: float) -> dict[str, object]:
        """Return the constructor's arguments other than the classifier, at that ε."""
        values = self.values
        ours: dict[str, object] = {}
        if "eps" in values:
            ours["eps"] = eps
        if "norm" in values:
            ours["norm"] = ORDERS[self.norm]
        if "eps_step" in values and "eps_step" not in self.parameters:
            ours["eps_step"] = 2 * eps if self.attack.startswith("Auto") else 2.5 * eps / self.rounds("max_iter")
        if "targeted" in values:
            ours["targeted"] = False
        if "verbose" in values:
            ours["verbose"] = False
        if values.get("attacker") == "deepfool":
            ours["attacker_params"] = {"verbose": False}
        # These attacks' default is one by one, but inputs of one batch do not influence each other
        if values.get("batch_size") == 1 and "ClassGradientsMixin" in self._uses:
            ours["batch_size"] = BATCH
        return ours | dict(self.parameters)


class ModuleClassifier(PyTorchClassifier):  # type: ignore[misc]
    """An ART classifier that converts inputs to float32: under NumPy 2 HopSkipJump and Boundary pass float64."""

    def predict(self, x: np.ndarray, *more: object, **named: object) -> np.ndarray:
        return super().predict(np.asarray(x, np.float32), *more, **named)


def module_classifier(
    module: nn.Module, shape: Sequence[int], outputs: int, device: torch.device | str = "cpu"
) -> ModuleClassifier:
    """Return an ART `PyTorchClassifier` for a module: images [N,*shape] in [0,1] → logits [N,outputs].

    outputs: K, or K+1 for a module that rejects. All of a defense has to be inside the module, because AutoPGD and
    AutoAttack build a new classifier from it.
    """
    return ModuleClassifier(
        model=module,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(shape),
        nb_classes=outputs,
        channels_first=True,
        clip_values=(0.0, 1.0),
        device_type="cpu" if torch.device(device).type == "cpu" else "gpu",
    )


@cache
def art_attacks() -> Mapping[str, type]:
    """Return the usable classes of `art.attacks.evasion` by name: those for labelled images, in a known norm."""
    usable = {}
    for name, cls in vars(evasion).items():
        if isinstance(cls, type) and name not in ArtAttack.refused and _norms(name, constructor_defaults(cls)):
            needs = getattr(cls, "_estimator_requirements", ())
            if all(isinstance(one, type) and issubclass(PyTorchClassifier, one) for one in needs):
                usable[name] = cls
    return {name: usable[name] for name in sorted(usable) if not name.endswith("TensorFlowV2")}


def _norms(name: str, accepted: Collection[str]) -> tuple[Norm, ...]:
    """Return the norms that a class supports; none for a class that does not attack labelled images."""
    if name == "ElasticNet":
        return ("l1", "l2")
    if name in NORM_OF:
        return (NORM_OF[name],)
    return tuple(ORDERS) if "norm" in accepted else ()
