"""Preprocessors of the Adversarial Robustness Toolbox (ART) as defenses, found by the names of ART's classes.

ART's detectors are found here, too; they are defenses of their own, see `art_detectors`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import ClassVar

import torch
from art.defences import preprocessor
from art.defences.preprocessor import Preprocessor
from torch import Tensor

from manifold_bench.attacks.adapter import constructor_defaults, seeded
from manifold_bench.attacks.missing import not_installed
from manifold_bench.defenses.art_detectors import DETECTORS, ArtDetector
from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.from_art import preprocessed
from manifold_bench.defenses.pretrained import Behind, classifier_behind

FIXED: Mapping[str, object] = {
    "apply_fit": False,
    "apply_predict": True,
    "augmentation": False,
    "channels_first": False,
    "clip_values": (0.0, 1.0),
    "device_type": "cpu",
    "ratio": 1.0,
    "verbose": False,
}
"""Parameters of ART's constructors that a matrix file cannot set: those of images [N,H,W,C] in [0,1] at inference."""

RANDOMIZED = ("Cutout", "CutoutPyTorch", "GaussianAugmentation", "TotalVarMin")
"""Preprocessors that draw random numbers at inference."""

MIXES = "it mixes images with each other for a training"
AUDIO = "it is for audio"
VIDEO = "it is for videos"
REFUSED: Mapping[str, str] = {
    "BeyondDetectorPyTorch": "it needs a self-supervised network, which a matrix file cannot name",
    "CutMix": MIXES,
    "CutMixPyTorch": MIXES,
    "LabelSmoothing": "it changes labels for a training",
    "Mixup": MIXES,
    "MixupPyTorch": MIXES,
    "Mp3Compression": AUDIO,
    "Mp3CompressionPyTorch": AUDIO,
    "PixelDefend": "it needs a trained PixelCNN, which a matrix file cannot name",
    "Preprocessor": "it is abstract",
    "Resample": AUDIO,
    "ThermometerEncoding": "it makes several channels of one, so that `undefended` does not fit behind it",
    "VideoCompression": VIDEO,
    "VideoCompressionPyTorch": VIDEO,
}
"""Classes that cannot be used, and why."""

TYPES: Mapping[str, type] = {"bool": bool, "float": float, "int": int, "str": str}
"""Types of the parameters that can be set, by ART's annotations."""


@dataclass(frozen=True, kw_only=True)
class ArtSpec(DefenseSpec):
    """The parameters of an ART class, under ART's names, with ART's defaults and checks.

    implementation: ART's class. classifier: the defense without parameters that classifies the preprocessed images.
    """

    implementation: ClassVar[type[Preprocessor] | None] = None
    classifier: Behind = "undefended"

    def __post_init__(self) -> None:
        if self.implementation is not None:
            self.made()  # ART checks values when it constructs

    def made(self) -> Preprocessor:
        """Return ART's object with these parameters; raises ValueError for values that ART refuses."""
        implementation = self.implementation
        assert implementation is not None
        name, accepted = implementation.__name__, constructor_defaults(implementation)
        own = {field.name for field in dataclasses.fields(self)} - {"shape", "num_classes", "classifier"}
        fixed = {key: value for key, value in FIXED.items() if key in accepted}
        try:
            return implementation(**fixed, **{key: vars(self)[key] for key in own})
        except ImportError as error:
            raise ValueError(not_installed(f"art:{name}", (error.name or "").partition(".")[0])) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"art:{name}: {error}") from error


class ArtDefense(Defense):
    """Puts a preprocessor of the Adversarial Robustness Toolbox, named as art:ClassName, before a classifier.

    Among them are JpegCompression, FeatureSqueezing, SpatialSmoothing, TotalVarMin, GaussianAugmentation and Cutout.

    The answer is f(t(x)) for the classifier f, which is `undefended` or `pretrained`, and the preprocessor t. The
    gradient passes through t by ART's own estimate, which is the identity (BPDA) for what ART does not differentiate
    (Athalye et al. 2018, https://arxiv.org/abs/1802.00420). ART gets images [N,H,W,C], the only order that TotalVarMin
    understands.

    The same names work for ART's detectors BinaryInputDetector, BinaryActivationDetector and SubsetScanningDetector.
    """

    paper = "nicolae2018"
    Spec: ClassVar = ArtSpec
    family: ClassVar[str] = "input transformation"
    parts: ClassVar = ("classifier",)
    open_parameters: ClassVar[bool] = True
    spec: ArtSpec

    def __init__(self, spec: ArtSpec) -> None:
        super().__init__(spec)
        self.preprocessor = spec.made()
        self.classifier: Defense = classifier_behind(spec.classifier, spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.transformed(x))

    def transformed(self, x: Tensor) -> Tensor:
        """Return t(x) for images x [N,C,H,W], same shape, differentiable in x; torch's seed is also ART's."""
        draws = seeded(int(torch.randint(2**31, ()))) if self.randomized else nullcontext()
        with draws:
            return preprocessed(self.preprocessor, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def perceived(self, x: Tensor) -> Tensor:
        """Return the transformed images, which are classified."""
        with torch.no_grad():
            return self.transformed(x)

    @staticmethod
    def named(name: str) -> type[ArtDefense] | type[ArtDetector]:
        """Return the defense of ART's class with that name; raises ValueError, which names similar ones or says why."""
        usable = {key for key, value in vars(preprocessor).items() if inspect.isclass(value)} - set(REFUSED)
        usable = {key for key in usable if not key.endswith("TensorFlowV2")} | set(DETECTORS)
        if name in REFUSED:
            raise ValueError(f"it cannot be used: {REFUSED[name]}")
        if name not in usable:
            near = difflib.get_close_matches(name, usable, n=1, cutoff=0.5)
            hint = f"did you mean 'art:{near[0]}'?" if near else f"known: {', '.join(sorted(usable))}"
            raise ValueError(f"ART has no preprocessor or detector {name!r} that can be used; {hint}")
        return DETECTORS.get(name) or _defense(name)


@cache
def _defense(name: str) -> type[ArtDefense]:
    """Return the defense of one of ART's classes; its version is that of ART and of this file."""
    spec = _spec(f"{name}Spec", getattr(preprocessor, name))  # by name, as a matrix file gives it
    release = f"{ArtDefense.version}/{metadata.version('adversarial-robustness-toolbox')}"
    content = {
        "__doc__": f"{name} of the Adversarial Robustness Toolbox before `undefended`; see `ArtDefense`.",
        "__module__": __name__,
        "Spec": spec,
        "randomized": name in RANDOMIZED,
        "version": int(hashlib.sha256(release.encode()).hexdigest()[:15], 16),
    }
    made = type(name, (ArtDefense,), content)
    assert issubclass(made, ArtDefense)
    return made


def _spec(name: str, implementation: type) -> type[ArtSpec]:
    """Return the dataclass of the parameters of ART's class that a matrix file may set."""
    fields: list[tuple[str, type, object]] = []
    for key, parameter in inspect.signature(implementation).parameters.items():
        if key not in FIXED:
            default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
            fields.append((key, TYPES[parameter.annotation], dataclasses.field(default=default)))
    content = {"implementation": implementation, "__module__": __name__}
    made = dataclasses.make_dataclass(name, fields, bases=(ArtSpec,), namespace=content, frozen=True, kw_only=True)
    assert issubclass(made, ArtSpec)
    return made


def __getattr__(name: str) -> type:
    """Return the defense of an ART class, or its spec, as attributes of this module, where pickle looks for them."""
    try:
        cls = ArtDefense.named(name.removesuffix("Spec"))
    except ValueError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
    return cls.Spec if name.endswith("Spec") else cls
