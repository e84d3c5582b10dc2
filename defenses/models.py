"""Any model as a defense: plain modules, functions of tensors, TorchScript, classifiers of ART, models of Foolbox."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from manifold_bench.defenses.answers import answers
from manifold_bench.defenses.base import Defense, DefenseSpec, Trainable
from manifold_bench.defenses.checks import in_train_mode
from manifold_bench.defenses.other_state import reached_from

Values = float | tuple[float, ...]
"""One number, or one for each channel."""


NEED_NO_GRADIENT = "square, spsa, art:HopSkipJump"
"""Attacks that need no gradient, for messages; each of them works in L∞ and L2."""

TO_NUMPY = "Can't call numpy() on Tensor that requires grad"
"""What torch says where a model computes in NumPy while a gradient is needed."""

WITHOUT_GRADIENT = (
    "has no gradient (torch.no_grad, detach, NumPy?): remove that, wrap the step with mb.bpda, or use attacks that "
    f"need none ({NEED_NO_GRADIENT})"
)
"""What is said of such a model, and of one whose outputs need no gradient."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec(DefenseSpec):
    """The parameters of a plain model as a defense.

    normalize: mean and standard deviation with which inputs are normalized for the model; None: it takes images in
    [0,1].
    rejects: whether the model has K+1 outputs; the last one is then the reject score, and it rejects where that is the
    largest.
    """

    normalize: tuple[Values, Values] | None = None
    rejects: bool = False


class Model(Defense):
    """A user's model as a defense: images [N,C,H,W] in [0,1] → logits [N,K], or [N,K+1] if it rejects.

    The model is not tried; see `as_defense` and `check_suits`. Raises TypeError for an object that is no model.
    """

    Spec: ClassVar = ModelSpec
    family: ClassVar[str] = "plain model"
    spec: ModelSpec

    def __init__(self, spec: ModelSpec, model: object) -> None:
        super().__init__(spec)
        self.model = module_of(model)
        self.normalize = None if spec.normalize is None else Normalize(*spec.normalize, channels=spec.shape[0])
        self.name = name_of(model)
        self._rejects = declares(model, "rejects")

    @property
    def rejects(self) -> bool:
        return self.spec.rejects or self._rejects

    def forward(self, x: Tensor) -> Tensor:
        try:
            outputs = self.model(x if self.normalize is None else self.normalize(x))
        except RuntimeError as error:
            if TO_NUMPY in str(error):
                raise NotImplementedError(f"{self.name} {WITHOUT_GRADIENT}") from error
            raise
        if x.requires_grad and torch.is_grad_enabled() and isinstance(outputs, Tensor) and not outputs.requires_grad:
            raise NotImplementedError(f"{self.name} {WITHOUT_GRADIENT}")
        return outputs


class RandomizedModel(Model):
    """A user's model whose answers differ from call to call; the judge takes `draws` answers, as the matrix says."""

    randomized: ClassVar[bool] = True


def as_defense(model: object, spec: ModelSpec, randomized: bool = False) -> Defense:
    """Return a defense that answers as the model does.

    model: a `Defense`, which is returned as it is; a `torch.nn.Module` (also TorchScript), which is copied and put into
    evaluation mode; a function from images [N,C,H,W] to logits; an ART classifier, with its preprocessing and its
    gradients; or a Foolbox model. spec: shape of the images, number of classes, and parameters of the model.
    randomized: whether its answers differ from call to call. A model may also have the attribute `rejects = True` or
    `randomized = True`.

    Raises TypeError for an object that is no model, and ValueError for a model that fails on images of that shape or
    does not return numbers [N,K] (or [N,K+1]).
    """
    if isinstance(model, Defense):
        if spec.normalize is not None or spec.rejects or randomized:
            raise TypeError("normalize, rejects and randomized are for plain models; a Defense declares them itself")
        _check_fit(model, spec)
        return model
    made = (RandomizedModel if randomized or declares(model, "randomized") else Model)(spec, model)
    _check_outputs(model, outputs_of(model, spec.shape), spec)
    return in_evaluation_mode(made, made.name)


def in_evaluation_mode(made: Defense, name: str) -> Defense:
    """Put a defense into evaluation mode and return it; warns if that changes some of its layers."""
    if layers := in_train_mode(made):
        warnings.warn(
            f"{name} is in training mode; it is evaluated in evaluation mode, which changes {', '.join(layers)}. "
            "A model that is meant to be random has to draw in its forward; say randomized=True then",
            stacklevel=5,
        )
    return made.eval()


class Handed(type):
    """The metaclass of classes that `class_of` makes; they are in no module, and are found by their reference.

    reference: name under which `registry.find` finds the class. given: the object that the class was made from.
    tried: number of the object's outputs for images of each shape [C,H,W] on which it was tried.
    """

    reference: str
    given: object
    tried: dict[tuple[int, int, int], int]


def handed(cls: type) -> Handed | None:
    """Return a class that `class_of` made; None for any other one."""
    return cls if isinstance(cls, Handed) else None


def outputs_for(cls: Handed, shape: tuple[int, int, int]) -> int:
    """Return the number of outputs of the model in a class of `class_of` for images of that shape; tried once each."""
    if shape not in cls.tried:
        cls.tried[shape] = outputs_of(cls.given, shape)
    return cls.tried[shape]


def check_suits(cls: type, spec: DefenseSpec) -> None:
    """Raise ValueError if a class of `class_of` has an object that does not suit images and classes of a spec.

    Other classes pass.
    """
    if not isinstance(cls, Handed):
        return
    if isinstance(spec, ModelSpec):
        _check_outputs(cls.given, outputs_for(cls, spec.shape), spec)
    elif isinstance(cls.given, Defense):
        _check_fit(cls.given, spec)


def class_of(model: object, reference: str, module: str, randomized: bool = False) -> type[Defense]:
    """Return a class of defenses that answer as a model does, so that it can be planned like any other defense.

    model: as in `as_defense`. reference: name under which another process finds the class. module: name of the module
    that the model comes from, whose source is part of the identity. randomized: whether its answers differ from call to
    call.
    """
    library_of(model)
    plain = RandomizedModel if randomized or declares(model, "randomized") else Model
    base = type(model) if isinstance(model, Defense) else plain

    def start(self: Defense, spec: ModelSpec) -> None:
        nn.Module.__init__(self)
        made = copied(model) if isinstance(model, Defense) else plain(spec, model)
        self.__dict__.update(made.__dict__)

    content = {"__init__": start, "__module__": module, "fit": Trainable.fit, "parts": ()}
    content |= {"reference": reference, "given": model, "tried": {}}
    if isinstance(model, Defense):
        content["Spec"] = DefenseSpec
    made = Handed(name_of(model), (base,), content)
    assert issubclass(made, Defense)
    return made


def name_of(model: object) -> str:
    """Return the name of a model for messages: that of its class, or of the function."""
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    return getattr(model, "__qualname__", None) or type(model).__qualname__


def declares(model: object, attribute: Literal["rejects", "randomized"]) -> bool:
    """Return whether a plain model says of itself that it rejects or is randomized, by an attribute that is True."""
    inner = unwrapped(model) if isinstance(model, nn.Module) else model
    value = getattr(inner, attribute, False)
    return not isinstance(model, Defense) and isinstance(value, (bool, int, np.bool_)) and bool(value)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`, `DataParallel` or `DistributedDataParallel`, else the module itself.

    A wrapper that computes something of its own, in hooks or in the forward of a subclass, is part of the model.
    """
    kind = type(module)
    if hooked(module):
        return module
    if kind in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        inner = module.module
    elif kind.__module__.startswith("torch._dynamo."):  # importing the class of compiled modules takes a second
        inner = module._orig_mod
    else:
        return module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def hooked(module: nn.Module) -> bool:
    """Return whether hooks on a module itself, not on its parts, may change what it computes or its gradients."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def outputs_of(model: object, shape: tuple[int, int, int]) -> int:
    """Try a model on two random images of that shape [C,H,W], and return the number of its outputs for each.

    Raises TypeError and ValueError as `as_defense` does.
    """
    images = torch.rand((2, *shape), dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    copied, name = module_of(model), name_of(model)
    found = answers(copied, images, name)
    if isinstance(model, nn.Module) and _copies_itself(model):
        again, own = answers(copied, images, name), answers(model, images, name)
        if torch.equal(found, again) and not torch.allclose(found, own, rtol=1e-3, atol=1e-6):
            raise ValueError(f"{name} has a copy (copy.deepcopy) that answers otherwise; correct its __deepcopy__")
    return found.shape[1]


def _copies_itself(model: nn.Module) -> bool:
    """Return whether a module or a part of it has its own way to be copied, which may copy something else."""
    own = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
    return any(
        vars(cls).get(name)
        for part in model.modules()
        if not isinstance(part, torch.jit.ScriptModule)
        for cls in type(part).__mro__
        if not cls.__module__.startswith("torch.") and cls is not object
        for name in own
    )


def _check_outputs(model: object, found: int, spec: ModelSpec) -> None:
    """Raise ValueError if a plain model has another number of outputs than its spec says. found: number of outputs."""
    rejects = spec.rejects or declares(model, "rejects")
    if found == spec.num_classes + 1 and not rejects:
        raise ValueError(
            f"{name_of(model)} returns {found} outputs for {spec.num_classes} classes; if the last one means that the "
            "input is rejected, say rejects=True, or give the model the attribute rejects = True; if the data lack "
            f"images of a class, say classes={found}, or add an empty folder for it"
        )
    if found != spec.num_classes + int(rejects):
        score = " and a reject score, which mb.append_reject_score(logits, excess) appends" if rejects else ""
        cure = f"; its last layer needs {spec.num_classes}"
        raise ValueError(f"{name_of(model)} returns {found} outputs for {spec.num_classes} classes{score or cure}")


def _check_fit(defense: Defense, spec: DefenseSpec) -> None:
    """Raise ValueError if a defense was made for other images, or another number of classes, than a spec says."""
    if (defense.spec.shape, defense.num_classes) != (spec.shape, spec.num_classes):
        raise ValueError(
            f"{name_of(defense)} is made for {defense.num_classes} classes and images of shape {defense.spec.shape}; "
            f"the data have {spec.num_classes} classes and shape {spec.shape}"
        )


def module_of(model: object) -> nn.Module:
    """Return a model as a module: images [N,C,H,W] → logits; see `as_defense`."""
    library = library_of(model)
    if isinstance(model, nn.Module):
        inner = copied(unwrapped(model))
        return inner if hasattr(inner, "training") else Function(lambda x: inner(x))  # frozen TorchScript has no mode
    if library == "art":
        # late: importing ART takes seconds
        from manifold_bench.defenses.from_art import art_module

        return art_module(model)
    assert callable(model)
    if library == "foolbox" and isinstance(model, Bounded):
        low, high = model.bounds
        return Function(lambda x: model(low + (high - low) * x))
    return Function(model)


def library_of(model: object) -> str:
    """Return a model's library: torch, art or foolbox; "" for a function. Raises TypeError for any other object."""
    libraries = [base.__module__.partition(".")[0] for base in type(model).__mro__]
    if isinstance(model, nn.Module):
        return "torch"
    for library in ("art", "foolbox"):
        if library in libraries:
            return library
    if isinstance(model, type) or not callable(model):
        what = f"{name_of(model)} is a class" if isinstance(model, type) else f"{name_of(model)} is no model"
        if isinstance(model, ModuleType):
            what = f"{model.__name__} is a Python module; name what is in it"
        raise TypeError(
            f"{what}; give a torch.nn.Module, a function of tensors, an ART classifier, a Foolbox model or a Defense"
        )
    return ""


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module; a TorchScript module is saved and loaded, because `deepcopy` loses its leaves.

    Raises TypeError for a TorchScript module with hooks, since these are not saved, and for a module that has a
    function as an attribute which still calls the original, as one that was put in the place of `forward` does. What
    the class of a module names is not looked at: its constructor may name the global network that it wraps.
    """
    if not isinstance(module, torch.jit.ScriptModule):
        made = copy.deepcopy(module, _computed_tensors(module))
        originals = {id(part) for part in module.modules()}
        values = (value for part in made.modules() for value in vars(part).values())
        functions = [one for one in values if isinstance(one, (FunctionType, MethodType, partial))]
        if any(id(one) in originals for function in functions for one in reached_from(function)):
            raise TypeError(
                "a function in it calls the module itself, such as one in the place of its forward, so that no copy "
                "is made of it; give a torch.nn.Module that calls it and computes what the function adds"
            )
        return made
    if any(hooked(part) for part in module.modules()):
        raise TypeError(
            "a TorchScript module with hooks cannot be copied; give a torch.nn.Module that calls it and computes "
            "what the hooks compute"
        )
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def _computed_tensors(module: nn.Module) -> dict[int, Tensor]:
    """Return copies of the tensors that a module has computed and keeps, by `id`, since `deepcopy` refuses them.

    Pruned layers and such with an older weight norm keep a weight that is computed from others in each forward.
    """
    kept = (value for part in module.modules() for value in vars(part).values())
    return {id(value): value.detach().clone() for value in kept if isinstance(value, Tensor) and not value.is_leaf}


@runtime_checkable
class Bounded(Protocol):
    """What is used of a Foolbox model besides that it is called: the smallest and the largest value of its pixels."""

    @property
    def bounds(self) -> tuple[float, float]: ...


class Function(nn.Module):
    """A function of tensors as a module. What a user's function returns is checked where the module is called."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


class Normalize(nn.Module):
    """A layer that computes (x − mean) / deviation for images x [N,C,H,W].

    mean, deviation: one number, or one for each channel; the deviation is > 0. Raises ValueError for other values.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: float | Sequence[float], deviation: float | Sequence[float], channels: int) -> None:
        super().__init__()
        for name, given in (("mean", mean), ("deviation", deviation)):
            values = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
            if len(values) not in (1, channels):
                raise ValueError(
                    f"normalize: {len(values)} values of the {name} for {channels} channels; give 1 or {channels}"
                )
            self.register_buffer(name, values.view(1, -1, 1, 1))
        if not bool((self.deviation > 0).all()):
            raise ValueError("normalize: the standard deviation has to be > 0")

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation
