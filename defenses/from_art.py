"""Classifiers of ART as modules, with their preprocessing and their gradients."""

from __future__ import annotations

import copy

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from art.estimators import BaseEstimator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from manifold_bench.defenses.bpda import BackwardBy, declare_estimated
from manifold_bench.defenses.models import NEED_NO_GRADIENT


def art_module(classifier: object) -> nn.Module:
    """Return an ART classifier as a module: images in [0,1] → outputs [N,K], preprocessing included.

    Torch differentiates a `PyTorchClassifier` through its module and through preprocessors in torch; for other
    preprocessors it uses `estimate_gradient`, as ART does. Other classifiers are differentiated by `class_gradient`,
    which costs K backward passes; those without it raise NotImplementedError when a gradient is needed. Raises
    TypeError for ART estimators that are no classifiers.
    """
    if not hasattr(classifier, "nb_classes"):
        raise TypeError(f"{type(classifier).__qualname__} of ART is no classifier")
    return ArtTorch(classifier) if isinstance(classifier, PyTorchClassifier) else ArtClassifier(classifier)


class _Art(nn.Module):
    """The base of both modules: it scales images in [0,1] to the range of values that the classifier expects."""

    def __init__(self, classifier: BaseEstimator) -> None:
        super().__init__()
        self.classifier = classifier
        low, high = (0.0, 1.0) if classifier.clip_values is None else classifier.clip_values
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)

    def scaled(self, x: Tensor) -> Tensor:
        """Return images x [N,C,H,W] in [0,1] in the classifier's range of values."""
        low, high = (torch.as_tensor(value, device=x.device) for value in (self.low, self.high))
        return low + (high - low) * x


class ArtTorch(_Art):
    """A `PyTorchClassifier` of ART; see `art_module`."""

    def __init__(self, classifier: BaseEstimator) -> None:
        super().__init__(classifier)
        self.module = copy.deepcopy(classifier.model).eval()  # as its `predict` does

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x)
        for step in self.classifier.preprocessing_operations:
            if step.apply_predict:
                x = preprocessed(step, x)
        outputs = self.module(x)
        return postprocessed(self.classifier, outputs[-1] if isinstance(outputs, (list, tuple)) else outputs)


def preprocessed(step: Preprocessor, x: Tensor) -> Tensor:
    """Return the output of an ART preprocessor for images x, in its order of axes, differentiable in x."""
    if isinstance(step, PreprocessorPyTorch):
        return step.forward(x)[0]
    given, name = x.detach().cpu().numpy(), type(step).__qualname__
    returned = step(given.copy())
    if not isinstance(returned, tuple):
        raise TypeError(f"{name}.__call__ of ART returned {type(returned).__name__}; return the pair (x, y)")
    value = _tensor(returned[0], x)

    def product(gradient: Tensor) -> Tensor:
        try:
            return _tensor(step.estimate_gradient(given.copy(), gradient.cpu().numpy()), x)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{name}.estimate_gradient of ART is not implemented; let it return a gradient for x (grad itself is "
                "BPDA), or use an attack that needs none, as square"
            ) from error

    declare_estimated(name)
    return BackwardBy.apply(x, value, product)


def postprocessed(classifier: BaseEstimator, outputs: Tensor) -> Tensor:
    """Return outputs [N,K] as they are in rows where ART's postprocessors keep the class, and else what these make.

    So the answers are those of `predict`, and attacks have the gradient of the outputs, as ART's own attacks do.
    """
    steps = [step for step in classifier.postprocessing_defences or () if step.apply_predict]
    if not steps:
        return outputs
    values = outputs.detach().cpu().numpy()
    for step in steps:
        values = step(values.copy())
    deployed = _tensor(values, outputs)
    kept = (deployed.argmax(1) == outputs.argmax(1))[:, None]
    if not kept.all():
        declare_estimated("postprocessor")
    return torch.where(kept, outputs, outputs + (deployed - outputs).detach())


class ArtClassifier(_Art):
    """A classifier of ART that does not compute in torch; its gradient is that of ART's `class_gradient`.

    One whose inputs have one dimension, as those of scikit-learn, gets flat images.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x)
        if len(getattr(self.classifier, "input_shape", None) or x.shape[1:]) == 1:
            x = x.flatten(1)
        given = x.detach().cpu().numpy()

        def product(gradient: Tensor) -> Tensor:
            if not hasattr(self.classifier, "class_gradient"):
                raise NotImplementedError(
                    f"{type(self.classifier).__qualname__} of ART has no gradients; attack it by queries alone "
                    f"({NEED_NO_GRADIENT})"
                )
            jacobian = _tensor(self.classifier.class_gradient(given.copy()), x)
            return torch.einsum("nk,nk...->n...", gradient, jacobian)

        return BackwardBy.apply(x, _tensor(self.classifier.predict(given.copy()), x), product)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=like.dtype, device=like.device)
