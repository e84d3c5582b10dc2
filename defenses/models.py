"""Any model as a defense: plain modules, functions of tensors, TorchScript, classifiers of ART, models of Foolbox."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from manifold_bench.defenses.base import Defense, DefenseSpec, Trainable
from manifold_bench.defenses.bpda import BackwardBy
from manifold_bench.defenses.errors import one_line

Values = float | tuple[float, ...]
"""One number, or one for each channel."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec(DefenseSpec):
    """How a model is used.

    normalize: mean and standard deviation with which its inputs have to be normalized; None: it takes images in [0,1].
    rejects: whether it has K+1 outputs, of which the last one is the reject score: it rejects where that is largest.
    """

    normalize: tuple[Values, Values] | None = None
    rejects: bool = False


class Model(Defense):
    """A model that was handed in, evaluated as it is: images [N,C,H,W] in [0,1] → logits [N,K], or [N,K+1]."""

    Spec: ClassVar = ModelSpec
    spec: ModelSpec

    def __init__(self, spec: ModelSpec, model: Any) -> None:
        super().__init__(spec)
        self.model = module_of(model)
        self.normalize = None if spec.normalize is None else Normalize(*spec.normalize, channels=spec.shape[0])
        self.eval()
        _check_outputs(self, name_of(model))

    @property
    def rejects(self) -> bool:
        return self.spec.rejects

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x if self.normalize is None else self.normalize(x))


class RandomizedModel(Model):
    """A model whose answers differ from call to call: several answers are judged where the matrix sets `draws`."""

    randomized: ClassVar[bool] = True


def as_defense(model: Any, spec: ModelSpec, randomized: bool = False) -> Defense:
    """Return a defense that answers as the model does.

    model: a `Defense`, which is returned as it is; a `torch.nn.Module` (also TorchScript), which is copied and put into
    evaluation mode; a function from images [N,C,H,W] to logits; a classifier of ART, with its preprocessing and its
    gradients; a model of Foolbox. randomized: whether its answers differ from call to call.

    Raises TypeError for what is no model, and ValueError for a model that fails on images of that shape or returns
    anything but [N,K] (or [N,K+1]) numbers.
    """
    if not isinstance(model, Defense):
        return (RandomizedModel if randomized else Model)(spec, model)
    if spec.normalize is not None or spec.rejects or randomized:
        raise TypeError("normalize, rejects and randomized are for plain models; a Defense says these itself")
    if (model.spec.shape, model.num_classes) != (spec.shape, spec.num_classes):
        raise ValueError(
            f"{name_of(model)} is made for {model.num_classes} classes and images of shape {model.spec.shape}; "
            f"the data have {spec.num_classes} classes and shape {spec.shape}"
        )
    return model


class Handed(type):
    """The metaclass of what `class_of` returns: such a class lies in no module, and is found by its reference."""

    reference: str


def class_of(model: Any, reference: str, module: str, randomized: bool = False) -> type[Defense]:
    """Return a class of defenses that answer as this object does, so that it can be planned like any other defense.

    reference: the name under which the class is found again in another process. module: the module that the object
    comes from, whose source counts for its identity.
    """
    library_of(model)
    base = type(model) if isinstance(model, Defense) else RandomizedModel if randomized else Model

    def start(self: Defense, spec: Any) -> None:
        nn.Module.__init__(self)
        made = copy.deepcopy(model) if isinstance(model, Defense) else as_defense(model, spec, randomized)
        self.__dict__.update(made.__dict__)

    content = {"__init__": start, "__module__": module, "fit": Trainable.fit, "parts": (), "reference": reference}
    if isinstance(model, Defense):
        content["Spec"] = DefenseSpec
    made: type[Any] = Handed(name_of(model), (base,), content)
    return made


def name_of(model: Any) -> str:
    """Name a model in messages: its class, or a function's own name."""
    return getattr(model, "__qualname__", None) or type(model).__qualname__


def module_of(model: Any) -> nn.Module:
    """Return the model as a module from images in the range that it takes to logits; see `as_defense`."""
    library = library_of(model)
    if library == "torch":
        return _in_eval_mode(_copied(model))
    if library == "art":
        return art_module(model)
    if library == "foolbox":
        low, high = model.bounds
        return Function(lambda x: model(low + (high - low) * x))
    return Function(model)


def library_of(model: Any) -> str:
    """Which library a model is of: torch, art or foolbox; "" for a function. Raises TypeError for what is no model."""
    libraries = [base.__module__.partition(".")[0] for base in type(model).__mro__]
    if isinstance(model, nn.Module):
        return "torch"
    for library in ("art", "foolbox"):
        if library in libraries:
            return library
    if isinstance(model, type) or not callable(model):
        what = f"{model.__qualname__} is a class" if isinstance(model, type) else f"{name_of(model)} is no model"
        raise TypeError(
            f"{what}; give a torch.nn.Module, a function of tensors, an ART classifier, a Foolbox model or a Defense"
        )
    return ""


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a module; that of a TorchScript module by its file, because `deepcopy` loses its leaves."""
    if not isinstance(module, torch.jit.ScriptModule):
        return copy.deepcopy(module)
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def _in_eval_mode(module: nn.Module) -> nn.Module:
    if any(isinstance(part, _CHANGED_BY_EVAL) and part.training for part in module.modules()):
        warnings.warn(
            "the model is in training mode; it is evaluated in evaluation mode, without dropout and with the stored "
            "statistics of batch normalization. A model that is meant to be random has to draw in its forward; "
            "say randomized=True then",
            stacklevel=4,
        )
    return module.eval()


_CHANGED_BY_EVAL = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Normalize(nn.Module):
    """(x − mean) / standard deviation, for each channel. Raises ValueError for other numbers of values."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: float | Sequence[float], deviation: float | Sequence[float], channels: int) -> None:
        super().__init__()
        for name, given in (("mean", mean), ("deviation", deviation)):
            values = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
            if len(values) not in (1, channels):
                raise ValueError(f"normalize: {len(values)} values for {channels} channels; give 1 or {channels}")
            self.register_buffer(name, values.view(1, -1, 1, 1))
        if not bool((self.deviation > 0).all()):
            raise ValueError("normalize: the standard deviation has to be > 0")

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def art_module(classifier: Any) -> nn.Module:
    """An ART classifier as a module of images in [0,1] → its outputs [N,K], preprocessing included.

    A `PyTorchClassifier` is differentiated by torch: through its own module and the preprocessors in torch, and with
    `estimate_gradient` through the others, as ART does it. Other classifiers are differentiated by `class_gradient`,
    at the price of K backward passes; those without it raise NotImplementedError when a gradient is needed.
    """
    from art.estimators.classification import PyTorchClassifier  # late: importing ART takes seconds

    if not hasattr(classifier, "nb_classes"):
        raise TypeError(f"{type(classifier).__qualname__} of ART is no classifier")
    return ArtTorch(classifier) if isinstance(classifier, PyTorchClassifier) else ArtClassifier(classifier)


class _Art(nn.Module):
    """What both have in common: images come in [0,1] and are scaled to the values that the classifier clips to."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier
        low, high = (0.0, 1.0) if classifier.clip_values is None else classifier.clip_values
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)

    def scaled(self, x: Tensor) -> Tensor:
        low, high = (torch.as_tensor(value, device=x.device) for value in (self.low, self.high))
        return low + (high - low) * x


class ArtTorch(_Art):
    """A `PyTorchClassifier` of ART; see `art_module`."""

    def __init__(self, classifier: Any) -> None:
        super().__init__(classifier)
        self.module = _in_eval_mode(copy.deepcopy(classifier.model))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x)
        for step in self.classifier.preprocessing_operations:
            if step.apply_predict:
                x = _preprocessed(step, x)
        outputs = self.module(x)
        return outputs[-1] if isinstance(outputs, (list, tuple)) else outputs


def _preprocessed(step: Any, x: Tensor) -> Tensor:
    """The output of one preprocessor of ART, differentiable in x."""
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch

    if isinstance(step, PreprocessorPyTorch):
        return step.forward(x)[0]
    given = x.detach().cpu().numpy()
    value = _tensor(step(given.copy())[0], x)

    def product(gradient: Tensor) -> Tensor:
        return _tensor(step.estimate_gradient(given.copy(), gradient.cpu().numpy()), x)

    return BackwardBy.apply(x, value, product)


class ArtClassifier(_Art):
    """A classifier of ART that isn't torch's; see `art_module`."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x)
        given = x.detach().cpu().numpy()

        def product(gradient: Tensor) -> Tensor:
            if not hasattr(self.classifier, "class_gradient"):
                raise NotImplementedError(
                    f"{type(self.classifier).__qualname__} of ART has no gradients; attack it by queries alone "
                    "(square, evolutionary, art:HopSkipJump)"
                )
            jacobian = _tensor(self.classifier.class_gradient(given.copy()), x)
            return torch.einsum("nk,nk...->n...", gradient, jacobian)

        return BackwardBy.apply(x, _tensor(self.classifier.predict(given.copy()), x), product)


def _tensor(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=like.dtype, device=like.device)


def _check_outputs(defense: Model, name: str) -> None:
    """Raises ValueError for a model that doesn't answer two images as it should."""
    outputs = defense.num_classes + int(defense.rejects)
    shape = defense.spec.shape
    device = next((part.device for part in defense.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            found = defense(torch.zeros(2, *shape, device=device))
    except Exception as error:  # it is a user's code: anything may happen
        raise ValueError(f"{name} fails on images of shape {(2, *shape)}: {one_line(error)}") from error
    if not isinstance(found, Tensor):
        raise ValueError(f"{name} returns {type(found).__name__}, not a tensor of logits [N,{outputs}]")
    if tuple(found.shape) == (2, outputs + 1) and not defense.rejects:
        raise ValueError(
            f"{name} returns {outputs + 1} outputs for {outputs} classes; if the last one means that the input is "
            "rejected, say rejects=True"
        )
    if tuple(found.shape) != (2, outputs):
        raise ValueError(f"{name} returns shape {tuple(found.shape)} for 2 images, not {(2, outputs)}")
