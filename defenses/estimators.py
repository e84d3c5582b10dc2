"""Defenses for other libraries: as an ART classifier, an ART preprocessor or a Foolbox model."""

from __future__ import annotations

from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from foolbox.models import PyTorchModel
from torch import Tensor

from manifold_bench.attacks.from_art import ModuleClassifier, module_classifier
from manifold_bench.attacks.from_foolbox import AcceptedAndWrong, foolbox_model
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.project_and_classify import ProjectAndClassify
from manifold_bench.defenses.projection_gradients import straight_through
from manifold_bench.defenses.training import device_of

__all__ = ["AcceptedAndWrong", "projection_preprocessor", "to_art", "to_foolbox"]


def to_art(defense: Defense) -> ModuleClassifier:
    """Return the defense as an ART `PyTorchClassifier` of K classes, or of K+1 if it rejects; the last means rejected.

    Gradients pass through the defense by its first gradient mode (`gradient_modes[0]`).
    """
    outputs = defense.num_classes + defense.rejects
    return module_classifier(defense.eval(), defense.spec.shape, outputs, device_of(defense))


def to_foolbox(defense: Defense) -> PyTorchModel:
    """Return the defense as a Foolbox model: images [N,C,H,W] in [0,1] → [N,K], or [N,K+1] if it rejects.

    With K+1 outputs give attacks the criterion `AcceptedAndWrong(labels, K)` in place of the labels.
    """
    return foolbox_model(defense, device_of(defense))


def projection_preprocessor(defense: ProjectAndClassify) -> PreprocessorPyTorch:
    """Return the projection G(z*(x)) of a defense as an ART `PreprocessorPyTorch`, for any ART classifier.

    Its gradient is the identity (BPDA), inside `forward`, because ART ignores `estimate_forward` when it differentiates
    a PyTorchClassifier (ART's issue 1526). It projects, and rejects nothing.
    """
    return _ProjectionPreprocessor(defense)


class _ProjectionPreprocessor(PreprocessorPyTorch):
    """See `projection_preprocessor`."""

    def __init__(self, defense: ProjectAndClassify) -> None:
        device = "cpu" if device_of(defense).type == "cpu" else "gpu"
        super().__init__(device_type=device, is_fitted=True, apply_fit=False, apply_predict=True)
        self.defense = defense.eval()

    def forward(self, x: Tensor, y: object = None) -> tuple[Tensor, object]:
        """Return G(z*(x)) for images x [N,C,H,W], same shape, and y unchanged."""
        return straight_through(x, self.defense.perceived(x)), y
