"""Invert and classify (Ilyas et al. 2017, "The Robust Manifold Defense")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from torch import Tensor

from manifold_bench.defenses.base import LabelledImages, Progress, append_reject_score, deployment
from manifold_bench.defenses.calibration import HeldOutScores
from manifold_bench.defenses.project_and_classify import ProjectAndClassify, ProjectAndClassifySpec
from manifold_bench.defenses.training import accuracy, device_of, in_batches


@dataclass(frozen=True, kw_only=True)
class InvertAndClassifySpec(ProjectAndClassifySpec):
    """Parameters of `InvertAndClassify`.

    rejection_rate: share of clean validation images that are farther than η from their projections.

    reject: whether the defense rejects; otherwise η is infinite.
    calibration_images: number of validation images that are projected to set η.
    """

    rejection_rate: Annotated[float, Gt(0), Lt(1)] = deployment(0.01)
    reject: bool = deployment(True)
    calibration_images: Annotated[int, Ge(1)] = 1000


class InvertAndClassify(ProjectAndClassify):
    """Invert and classify (INC): classifies the generator's nearest image, rejects what is far from it.

    With z*(x) = argmin_z ‖G(z) − x‖², it rejects where ‖G(z*) − x‖₂ > η, and else answers C(G(z*)) (algorithm 1 of the
    paper).

    The classifier C is `undefended`, trained on natural images. The distance has its exact gradient in every gradient
    mode: at the optimum the derivative of min_z ‖G(z) − x‖ is (x − G(z*)) / ‖x − G(z*)‖ with z* fixed (envelope
    theorem).
    """

    paper = "ilyas2017"
    Spec: ClassVar = InvertAndClassifySpec
    spec: InvertAndClassifySpec
    version: ClassVar[int] = 4

    def __init__(self, spec: InvertAndClassifySpec) -> None:
        super().__init__(spec)
        self.held_out = HeldOutScores(1)

    @property
    def rejects(self) -> bool:
        return self.spec.reject

    @property
    def eta(self) -> Tensor:
        """η, the largest accepted L2 distance between an image and its projection; infinite without rejection."""
        return self.held_out.thresholds([self.spec.rejection_rate])[0] if self.rejects else super().eta

    def answer(self, x: Tensor, projected: Tensor) -> Tensor:
        logits = super().answer(x, projected)
        if self.rejects:
            distance = (x - projected.detach()).flatten(1).norm(dim=1)
            logits = append_reject_score(logits, distance / self.eta - 1)
        return logits

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        """Keep the distances of validation images to their projections; the parts are trained already."""
        some = validation.images[: self.spec.calibration_images]
        self.eval()
        distances = in_batches(lambda x: (self.perceived(x) - x).flatten(1).norm(dim=1), some, device_of(self))
        self.held_out.keep(distances[:, None])
        judged = LabelledImages(validation.images[:500], validation.labels[:500])
        return {
            "validation_accuracy_of_classifier": accuracy(self.classifier, validation),
            "validation_accuracy_500_images": accuracy(self, judged),
            "validation_median_distance_to_range": float(distances.median()),
            "eta": float(self.eta),
        }
