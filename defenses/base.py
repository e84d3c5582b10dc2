"""The base classes of defenses and of their parts: what they declare, how they answer, and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict, verdict_of
from manifold_bench.attacks.losses import reject_excess
from manifold_bench.attacks.outputs import cast_keeping_argmax

T = TypeVar("T")


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels. images: [N,C,H,W] float32 in [0,1]. labels: [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of dataclasses whose fields a matrix file may set; an unknown key is an error."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


def deployment(default: T) -> T:
    """Return a dataclass field for a parameter that changes how the trained defense answers, but not its training."""
    return field(default=default, metadata={"deployment": True})


@dataclass(frozen=True, kw_only=True)
class TrainableSpec(Settings):
    """The parameters of a `Trainable`. These two follow from the data; subclasses add others."""

    shape: tuple[int, int, int]
    """Channels, height, width of the images."""
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class DefenseSpec(TrainableSpec):
    """The parameters of a defense. Subclasses add fields, which a matrix file may set."""


@dataclass(frozen=True)
class Certificate:
    """The kind of certificate that a defense gives.

    norm: norm of the perturbations. alpha: probability that a certificate is wrong; 0 for a proof.
    """

    norm: Literal["linf", "l2"]
    alpha: float = 0.0


class Progress:
    """Receives the progress of a training, and names the folder of its checkpoints; this one ignores both."""

    checkpoints: Path | None = None
    """Folder for checkpoints of unfinished trainings, or None."""

    def epoch(self, stage: str, done: int, epochs: int, **figures: float) -> None:
        """Called after each epoch of a stage ("classifier", "generator", ...) with its figures."""


class Trainable(nn.Module):
    """A module that is trained once for a data set and stored in a weights file: a defense, or a part that they share.

    A subclass sets `Spec`, a frozen dataclass with all of its parameters, and `version`. Raise `version` whenever the
    same spec and weights would answer differently, or a field of `Spec` gets another default. Everything that `fit`
    learns has to be a torch parameter or buffer.
    """

    Spec: ClassVar[type[TrainableSpec]] = TrainableSpec
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    """The key of its paper in `bench/references.bib`, or a citation as text."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Names of attributes that are `Trainable`s with their own weights files, which are trained before this one."""

    def __init__(self, spec: TrainableSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def named_parts(self) -> dict[str, Trainable]:
        """The `parts` as modules, by the names of their attributes."""
        return {name: getattr(self, name) for name in self.parts}

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        """Train in place, leave the module in eval mode, and return figures for the card by name.

        budget: share of the full training, in (0, 1]. Thresholds are set on `validation` or `train`; test data are
        never used. A class with nothing to learn does not override this method.
        """
        return {}


class Defense(Trainable):
    """A defended classifier.

    `forward`: images [N,C,H,W] float32 in [0,1] → logits [N,K], or [N,K+1] for a defense that rejects; the last logit
    is then the largest exactly where the input is rejected. It is differentiable in x by the defense's first gradient
    mode, so that ART, Foolbox and other code can use the defense as a module.

    A subclass sets `Spec` and `version`, as every `Trainable` does, and where they apply `family`, `rejects`,
    `randomized`, `gradient_modes` with `attack_forward`, `detectors` with `detection`, `perceived` and `classifier`.
    """

    Spec: ClassVar[type[DefenseSpec]] = DefenseSpec
    family: ClassVar[str] = "not stated"
    """The kind of defense, by which reports group; it changes no result."""
    randomized: ClassVar[bool] = False
    open_parameters: ClassVar[bool] = False
    """Whether it is an adapter for a library, whose classes a matrix file names as `library:ClassName`."""
    detectors: ClassVar[tuple[str, ...]] = ()
    """Names of the detectors whose ratios `detection` returns; empty if the defense has no `detection`."""

    @staticmethod
    def named(name: str) -> type[Defense]:
        """Return the defense of the library's class with that name, where this is an adapter; raises ValueError."""
        raise NotImplementedError

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.num_classes = spec.num_classes
        self.classifier: nn.Module | None = None
        """The part that maps images to logits [N,K] without the defense around it; None if there is none."""

    def __call__(self, x: Tensor, *others: object, **named: object) -> Any:
        """Return `forward` of a copy of the images, which it may change in place; floats in the images' type.

        Outputs that this type cannot tell apart are moved or scaled first, each row as a whole (`cast_keeping_argmax`).
        """
        outputs = super().__call__(x.clone(), *others, **named)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return outputs
        return cast_keeping_argmax(outputs, x.dtype, self.num_classes)

    @property
    def rejects(self) -> bool:
        """Whether the outputs include a reject score."""
        return False

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        """Ways in which a gradient can pass; modes other than "default" need `attack_forward`, see there."""
        return ("default",)

    def verdict(self, x: Tensor) -> Verdict:
        """Return the deployed answer to images x [N,C,H,W]."""
        logits = self(x)
        return replace(verdict_of(logits, self.num_classes), scores=suspicion(logits, self.num_classes))

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of images x [N,C,H,W], and the ratios [N,D] of the `detectors`.

        A ratio is a detector's score over its threshold for the answer `labels` [N]; a ratio > 1 rejects. Both are
        differentiable in x, for attackers who know the defense.
        """
        raise NotImplementedError(f"{type(self).__name__} declares detectors but no detection")

    @property
    def inference_steps(self) -> int:
        """Number of solver steps of one deployed answer, for estimates of time; 0 if the defense does not optimise."""
        return 0

    @property
    def attacked_steps(self) -> int:
        """Number of solver steps of one `attack_forward` call without a warm start."""
        return self.inference_steps

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """Return the logits of images x [N,C,H,W] as an attacker computes them, and where the inner optimisation ended.

        Only for defenses with other `gradient_modes` than "default". gradient: the gradient mode. start: where an
        earlier inner optimisation ended, [N,...], from which `inner_steps` steps follow; None: the full optimisation.
        """
        raise NotImplementedError(f"{type(self).__name__} declares gradient modes but no attack_forward")

    @property
    def certificate(self) -> Certificate | None:
        """The kind of certificate that `certified` gives; None if the defense has no `certified`."""
        return None

    def certified(self, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        """Return whether every image within eps [N,E] of x [N,C,H,W] certainly gets the answer `labels` [N] → [N,E].

        False means that it is not known. Only for defenses with a `certificate`.
        """
        raise NotImplementedError(f"{type(self).__name__} declares a certificate but no certified")

    def perceived(self, x: Tensor) -> Tensor:
        """Return the projection or reconstruction that the defense uses in place of x [N,C,H,W], or else x."""
        return x


def suspicion(logits: Tensor, classes: int) -> Tensor:
    """Return how suspicious each input looks, [N]: its reject score minus the largest logit; > 0 where rejected.

    Without a reject score it is minus the largest softmax probability (Hendrycks and Gimpel 2017, the usual baseline).
    """
    if logits.shape[1] > classes:
        return reject_excess(logits, classes)
    return -logits.softmax(1).amax(1)


def append_reject_score(logits: Tensor, excess: Tensor) -> Tensor:
    """Append a reject score to logits [N,K] → [N,K+1]; it is the largest exactly where the excess [N] is > 0.

    excess: how far each image is beyond the limit from which on it is rejected, as score − threshold. Attacks climb its
    gradient. Raises ValueError for another shape than [N], and for bools, which have none.
    """
    if excess.dtype == torch.bool:
        raise ValueError(
            "excess: bools have no gradient, so that attacks would not see the detector; give its score minus the "
            "threshold, or 0.5 - accepted.float() where there is no score (then attack by queries, too)"
        )
    if excess.shape != logits.shape[:1]:
        raise ValueError(f"excess: its shape is {tuple(excess.shape)}; give one value for each of {len(logits)} images")
    top = logits.amax(1)
    score = top + excess
    # Next to a large logit rounding would lose a small excess. The value is corrected; the gradient is that of the sum.
    below, above = (torch.nextafter(top.detach(), torch.full_like(top, way)) for way in (-torch.inf, torch.inf))
    exact = torch.where(excess > 0, torch.maximum(score, above), torch.minimum(score, below)).detach()
    score = torch.where(score.isfinite(), exact + (score - score.detach()), exact)
    return torch.cat([logits, score[:, None]], dim=1)
