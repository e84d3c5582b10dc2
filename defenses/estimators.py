"""A defense as other libraries see it: an ART classifier, an ART preprocessor, a Foolbox model."""

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
    """The defense as an ART `PyTorchClassifier` with K classes, or K+1 where it rejects (the last means rejected).

    Losses and gradients go through the defense as it declares them (`gradient_modes[0]`).
    """
    outputs = defense.num_classes + defense.rejects
    return module_classifier(defense.eval(), defense.spec.shape, outputs, device_of(defense))


def to_foolbox(defense: Defense) -> PyTorchModel:
    """The defense as a Foolbox model of [N,C,H,W] in [0,1] → [N,K], or [N,K+1] where it rejects.

    With K+1 outputs give attacks `AcceptedAndWrong(labels, K)` as the criterion instead of the labels.
    """
    return foolbox_model(defense, device_of(defense))


def projection_preprocessor(defense: ProjectAndClassify) -> PreprocessorPyTorch:
    """G(z*(x)) of that defense as an ART `PreprocessorPyTorch`, to go before any classifier's own module.

    Its gradient is the identity (BPDA), inside `forward`: ART asks for no `estimate_forward` when it differentiates
    a PyTorchClassifier (its issue 1526). It projects and rejects nothing.
    """
    return _ProjectionPreprocessor(defense)


class _ProjectionPreprocessor(PreprocessorPyTorch):
    """See `projection_preprocessor`."""

    def __init__(self, defense: ProjectAndClassify) -> None:
        device = "cpu" if device_of(defense).type == "cpu" else "gpu"
        super().__init__(device_type=device, is_fitted=True, apply_fit=False, apply_predict=True)
        self.defense = defense.eval()

    def forward(self, x: Tensor, y: object = None) -> tuple[Tensor, object]:
        """x: [N,C,H,W] → G(z*(x)), same shape; y unchanged."""
        return straight_through(x, self.defense.perceived(x)), y
