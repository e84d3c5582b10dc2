"""A plainly trained classifier without a defense, which every defense is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from manifold_bench.defenses.base import Certificate, Defense, LabelledImages, Progress
from manifold_bench.defenses.classifier import ClassifierSpec, fit_classifier
from manifold_bench.defenses.interval_bounds import proven
from manifold_bench.defenses.networks import Letter, StridedCNN, samangouei_classifier
from manifold_bench.defenses.training import Training, accuracy, epochs_for


@dataclass(frozen=True, kw_only=True)
class UndefendedSpec(ClassifierSpec):
    """Parameters of `Undefended`.

    network: `strided` (`StridedCNN`), or the letter of one of Defense-GAN's classifiers, see `networks`.

    The classifiers with letters have fixed sizes: width and hidden are for `strided` alone. They are trained in mixed
    precision, and their weights are rounded to eight bits (float8), because they are large; their accuracy is the same.
    epochs, rate: number of epochs and learning rate of the training (Adam, one cycle); None: 12 and 2e-3 for `strided`,
    and the paper's 10 and 1e-3 for the others.
    """

    network: Literal["strided"] | Letter = "strided"
    epochs: Annotated[int, Ge(1)] | None = None
    rate: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        strided = self.network == "strided"
        for size in ("width", "hidden"):
            if not strided and getattr(self, size) != getattr(type(self), size):
                raise ValueError(f"{size}: network {self.network} has a fixed size; leave it out")
        for name, usual in {"epochs": 12 if strided else 10, "rate": 2e-3 if strided else 1e-3}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)


class Undefended(Defense):
    """A plainly trained classifier, which every defense is compared with.

    The training minimises the mean of −log softmax(f(x + shift))_y over images x with label y, which are shifted by up
    to one pixel in sixteen. The answer is argmax_k f(x)_k.
    """

    Spec: ClassVar[type[UndefendedSpec]] = UndefendedSpec
    family: ClassVar[str] = "none"
    spec: UndefendedSpec

    def __init__(self, spec: UndefendedSpec) -> None:
        super().__init__(spec)
        if spec.network == "strided":
            self.network: nn.Module = StridedCNN(spec.shape, spec.num_classes, spec.width, spec.hidden)
        else:
            self.network = samangouei_classifier(spec.network, spec.shape, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    @property
    def certificate(self) -> Certificate | None:
        """A certificate by interval bounds, if the network is `strided` and nothing is computed around it."""
        alone = type(self).forward is Undefended.forward
        return Certificate("linf") if alone and isinstance(self.network, StridedCNN) else None

    def certified(self, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        assert isinstance(self.network, StridedCNN)
        return proven(self.network, x, labels, eps)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        assert spec.epochs and spec.rate
        training = Training("classifier", seed, epochs_for(budget, spec.epochs, len(train)), spec.batch_size, spec.rate)
        if spec.network != "strided":
            training = replace(training, mixed_precision=True, stored_as=torch.float8_e4m3fn)
        fit_classifier(self.network, train, validation, training, progress)
        self.eval()
        return {"validation_accuracy": accuracy(self, validation)}
