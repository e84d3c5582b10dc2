"""Attacks of the Adversarial Robustness Toolbox (ART), and a module as an ART classifier.

ART is imported when the first of these is made: that takes seconds.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.attacks.adapter import LibraryAttack, check_parameters, constructor_parameters, seeded, unknown_name
from manifold_bench.attacks.base import Knowledge
from manifold_bench.attacks.threat import Norm, input_seeds

NORM_OF: Mapping[str, Norm] = {
    "BasicIterativeMethod": "linf",
    "BoundaryAttack": "l2",
    "CarliniL0Method": "l0",
    "CarliniL2Method": "l2",
    "CarliniLInfMethod": "linf",
    "DeepFool": "l2",
    "ElasticNet": "l2",
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
"""The norm of each usable class that has no parameter for it (ElasticNet minimises L1 + L2)."""

REFUSED: Mapping[str, str] = {
    "GeoDA": "it calls np.mat, which NumPy 2 no longer has",
    "LowProFool": "it is for tables, not images",
    "TargetedUniversalPerturbation": "it needs target classes",
    "Wasserstein": "its ε is a Wasserstein radius, none of the norms here",
}
"""Why a class that looks usable is not."""

DECISION = ("BoundaryAttack", "HopSkipJump", "SignOPTAttack", "SpatialTransformation")
"""Classes that look at predicted labels only."""

COMPOSED = ("AutoAttack", "UniversalPerturbation")
"""Classes that run gradient attacks without requiring gradients themselves."""

TARGETS_ONLY = ("SaliencyMapMethod", "ShadowAttack")
"""Classes that take a given y for the target; without one they choose targets themselves."""

PROBABILITIES = ("SimBA", "VirtualAdversarialMethod")
"""Classes that ask for probabilities instead of logits."""

NEEDS: Mapping[str, str] = {"AutoAttack": "multiprocess", "ThresholdAttack": "cma"}
"""Packages that ART imports for a class without requiring them."""

SINGLE = (*DECISION, "ShadowAttack")
"""Classes that work on one input at a time anyway; given one at a time, each input gets a seed of its own."""

OURS = ("estimator", "classifier", "eps", "norm", "targeted", "minimal", "verbose", "summary_writer")
"""Constructor parameters that are not the matrix file's to set."""

ROUND: Mapping[str, tuple[int, int]] = {
    "AutoProjectedGradientDescent": (3, 1),
    "CarliniL0Method": (200, 350),
    "CarliniL2Method": (8, 20),
    "CarliniLInfMethod": (60, 30),
    "DeepFool": (2, 10),
    "ElasticNet": (4, 17),
    "NewtonFool": (2, 10),
    "PixelAttack": (1200, 0),
    "SaliencyMapMethod": (130, 200),
    "ShadowAttack": (400, 400),
    "SimBA": (3, 0),
    "SquareAttack": (2, 0),
    "ThresholdAttack": (1200, 0),
    "UniversalPerturbation": (25, 110),
    "VirtualAdversarialMethod": (100, 0),
    "ZooAttack": (257, 0),
}
"""Passes an input costs in one iteration of a class, measured on ten classes of 8×8 images; one of each elsewhere."""

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class ArtAttack(LibraryAttack):
    """An attack class of `art.attacks.evasion`, untargeted.

    Where the class takes ε and a norm it gets the harness'; a class without ε looks for the smallest perturbation.
    A step size `eps_step` that is not given is 2.5 ε / max_iter, and 2 ε for AutoPGD and AutoAttack (their paper's).
    """

    distribution: ClassVar = "adversarial-robustness-toolbox"

    def __post_init__(self) -> None:
        name = f"art:{self.attack}"
        cls = self._class()
        accepted = constructor_parameters(cls)
        if self.norm not in (norms := _norms(self.attack, accepted)):
            raise ValueError(f"{name} perturbs in {' or '.join(norms)}, not {self.norm!r}")
        check_parameters(name, self.parameters, {k: p for k, p in accepted.items() if k not in OURS})
        package = NEEDS.get(self.attack, "art")
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{name}: needs the package {package!r}, which is not installed")
        try:  # ART checks values when it constructs
            cls(module_classifier(nn.Flatten(), (1, 1, 2), 2), **self._arguments(0.1, accepted))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error

    def _class(self) -> Any:
        """The class; ValueError with the nearest names, or with the reason why it can't be used."""
        usable = art_attacks()
        if self.attack in usable:
            return usable[self.attack]
        if self.attack in REFUSED:
            raise ValueError(f"art:{self.attack} can't be used: {REFUSED[self.attack]}")
        raise unknown_name(f"art:{self.attack}", self.attack, usable)

    @property
    def knowledge(self) -> Knowledge:
        if self.attack in DECISION:
            return "decision"
        requirements = [r.__name__ for r in self._class()._estimator_requirements]
        if self.attack not in COMPOSED and not {"LossGradientsMixin", "ClassGradientsMixin"} & set(requirements):
            return "score"
        return "white-box" if self.part == "defense" else "oblivious"

    @property
    def one_at_a_time(self) -> bool:
        return self.attack in SINGLE

    @property
    def minimal(self) -> bool:
        return "eps" not in constructor_parameters(self._class())

    def passes(self) -> tuple[int, int]:
        values = {k: p.default for k, p in constructor_parameters(self._class()).items()} | dict(self.parameters)
        match self.attack:
            case "HopSkipJump":
                steps = range(1, int(values["max_iter"]) + 1)
                evaluations = sum(min(int(values["init_eval"] * math.sqrt(i)), int(values["max_eval"])) for i in steps)
                return int(values["init_size"]) + evaluations + 30 * len(steps), 0
            case "SignOPTAttack":
                return int(values["query_limit"]), 0
            case "AutoAttack":  # two APGD of 5 restarts, DeepFool, Square of 5 restarts
                return 2 * 5 * 150 + 200 + 5 * 8000, 2 * 5 * 100 + 1000
        knobs = (
            "max_iter",
            "nb_steps",
            "binary_search_steps",
            "nb_restarts",
            "nb_random_init",
            "num_random_init",
            "num_trial",
            "sample_size",
            "num_translations",
            "num_rotations",
        )
        rounds = math.prod(max(int(values[k]), 1) for k in knobs if values.get(k) is not None)
        default = (1, 1) if self.knowledge in ("white-box", "oblivious") else (1, 0)
        forwards, backwards = ROUND.get(self.attack, default)
        return 2 + rounds * forwards, rounds * backwards

    def search(self, module: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int, others: Tensor) -> Tensor:
        cls = self._class()
        with torch.no_grad():
            classes = module(x[:1]).shape[1]
        if self.attack in PROBABILITIES:
            module = Probabilities(module)
        classifier = module_classifier(module, tuple(x.shape[1:]), classes, x.device)
        attack = cls(classifier, **self._arguments(eps, constructor_parameters(cls)))
        for part in getattr(attack, "attacks", ()):  # of AutoAttack, each with its progress bar
            part.verbose = False
        images, labels = x.cpu().numpy(), F.one_hot(y, classes).cpu().numpy()

        own = seeded(input_seeds(x, seed)[0]) if self.one_at_a_time else nullcontext()
        with seeded_random_states(), own:
            return torch.from_numpy(attack.generate(x=images, y=None if self.attack in TARGETS_ONLY else labels))

    def _arguments(self, eps: float, accepted: Mapping[str, Any]) -> dict[str, Any]:
        """The constructor's arguments but the classifier, at that ε. accepted: the constructor's parameters."""
        values = {k: p.default for k, p in accepted.items()} | dict(self.parameters)
        ours: dict[str, Any] = {}
        if "eps" in values:
            ours["eps"] = eps
        if "norm" in values:
            ours["norm"] = np.inf if self.norm == "linf" else 2
        if "eps_step" in values and "eps_step" not in self.parameters:
            ours["eps_step"] = 2 * eps if self.attack.startswith("Auto") else 2.5 * eps / values.get("max_iter", 1)
        if "targeted" in values:
            ours["targeted"] = False
        if "verbose" in values:
            ours["verbose"] = False
        if values.get("attacker") == "deepfool":
            ours["attacker_params"] = {"verbose": False}
        # One by one is these attacks' default only; the inputs of a batch don't see each other
        if values.get("batch_size") == 1 and "ClassGradientsMixin" in str(self._class()._estimator_requirements):
            ours["batch_size"] = BATCH
        return ours | dict(self.parameters)


class Probabilities(nn.Module):
    """The softmax of a module's logits [N,K]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).softmax(1)


def module_classifier(
    module: nn.Module,
    shape: Sequence[int],
    outputs: int,
    device: torch.device | str = "cpu",
    preprocessing: Sequence[Any] = (),
) -> Any:
    """An ART `PyTorchClassifier` over a module of images [N,*shape] in [0,1] → logits [N,outputs].

    outputs: K, or K+1 for a module that rejects. preprocessing: ART preprocessors before the module. All that a
    defense does has to be inside the module: AutoPGD and AutoAttack rebuild the classifier from it.
    """
    return _classifier_class()(
        model=module,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(shape),
        nb_classes=outputs,
        channels_first=True,
        clip_values=(0.0, 1.0),
        preprocessing_defences=list(preprocessing) or None,
        device_type="cpu" if torch.device(device).type == "cpu" else "gpu",
    )


@cache
def _classifier_class() -> Any:
    from art.estimators.classification import PyTorchClassifier

    class ModuleClassifier(PyTorchClassifier):
        """With float32 inputs: under NumPy 2 HopSkipJump and Boundary hand in float64, which a module refuses."""

        def predict(self, x: Any, batch_size: int = BATCH, training_mode: bool = False, **kwargs: Any) -> Any:
            return super().predict(np.asarray(x, np.float32), batch_size, training_mode, **kwargs)

    return ModuleClassifier


@cache
def art_attacks() -> Mapping[str, Any]:
    """The usable classes of `art.attacks.evasion` by name: those for images with labels, in a norm we know."""
    import art.attacks.evasion as evasion
    from art.estimators.classification import PyTorchClassifier

    usable = {}
    for name, cls in vars(evasion).items():
        if isinstance(cls, type) and name not in REFUSED and _norms(name, constructor_parameters(cls)):
            requirements = getattr(cls, "_estimator_requirements", ())
            if all(isinstance(r, type) and issubclass(PyTorchClassifier, r) for r in requirements):
                usable[name] = cls
    return {name: usable[name] for name in sorted(usable) if not name.endswith("TensorFlowV2")}


def _norms(name: str, accepted: Mapping[str, Any]) -> tuple[Norm, ...]:
    """The norms a class can be asked for; none where it isn't an attack on labelled images."""
    if name in NORM_OF:
        return (NORM_OF[name],)
    return ("linf", "l2") if "norm" in accepted else ()


@contextmanager
def seeded_random_states() -> Iterator[None]:
    """`np.random.RandomState()` seeded by the global state: HopSkipJump and Boundary draw from unseeded ones."""
    original = np.random.RandomState

    def state(seed: Any = None) -> Any:
        return original(np.random.randint(2**32, dtype=np.uint32) if seed is None else seed)  # noqa: NPY002

    np.random.RandomState = state  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        np.random.RandomState = original  # type: ignore[misc]
