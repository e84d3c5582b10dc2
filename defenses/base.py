"""The contract of a defense, and the little it needs from its surroundings to be trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict, answered
from manifold_bench.attacks.losses import reject_excess


@dataclass(frozen=True)
class LabelledImages:
    """images: [N,C,H,W] float32 in [0,1]; labels: [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters that a matrix file may set; a misspelt key is an error."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class TrainableSpec(Settings):
    """What something trained on labelled images is built from: these follow from the data, subclasses add the rest."""

    shape: tuple[int, int, int]
    """Channels, height, width of the images."""
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class DefenseSpec(TrainableSpec):
    """What a defense is built from. Subclasses add their parameters; a matrix file may set those."""


@dataclass(frozen=True)
class Certificate:
    """What a defense can certify. norm: of the perturbations. alpha: probability that it is wrong; 0 for a proof."""

    norm: Literal["linf", "l2"]
    alpha: float = 0.0


class Progress:
    """Where a training reports to, and where it keeps its checkpoints. This one is silent and keeps none."""

    checkpoints: Path | None = None
    """Folder for checkpoints of unfinished trainings, or None."""

    def epoch(self, stage: str, done: int, epochs: int, **figures: float) -> None:
        """Called after each epoch of a stage ("classifier", "generator", ...) with its figures."""


class Trainable(nn.Module):
    """What is trained once for a data set and kept in a weights file: a defense, or a part that defenses share.

    A subclass sets `Spec`, a frozen dataclass with everything it is built from, and `version`, raised whenever the same
    spec and weights would answer differently, or a field of `Spec` gets another default. Everything learnt is a
    parameter or a buffer.
    """

    Spec: ClassVar[type[TrainableSpec]] = TrainableSpec
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    """The key of its paper in `bench/references.bib`, or a citation as text."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Attributes that are `Trainable`s with weights files of their own, trained before this; it doesn't change them."""

    def __init__(self, spec: TrainableSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def named_parts(self) -> dict[str, Trainable]:
        """Its `parts` by the names of their attributes."""
        return {name: getattr(self, name) for name in self.parts}

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        """Trains in place and leaves the module in eval mode; returns figures for the card.

        budget: share of the full training, in (0, 1]. Thresholds are set on `validation` or `train`; test data is
        never seen here. What has nothing to learn leaves this as it is.
        """
        return {}


class Defense(Trainable):
    """A defended classifier.

    `forward`: images [N,C,H,W] float32 in [0,1] → logits [N,K], or [N,K+1] for a defense that rejects, the last one
    being the largest exactly where the input is rejected. It is differentiable in x by the defense's declared
    backward mode, so it goes as it is into ART, Foolbox or any loop that takes a module.

    A subclass sets what every `Trainable` does and, where they apply, `family`, `rejects`, `randomized`,
    `gradient_modes` and `attack_forward`, `detectors` and `detection`, `perceived`, and the classifier.
    """

    Spec: ClassVar[type[DefenseSpec]] = DefenseSpec
    family: ClassVar[str] = "other"
    """What kind of defense it is, for reports to group by; it changes no result."""
    randomized: ClassVar[bool] = False
    detectors: ClassVar[tuple[str, ...]] = ()
    """Names of the detectors that `detection` tells apart; none where it isn't offered."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.num_classes = spec.num_classes
        self.classifier: nn.Module | None = None
        """The part that maps images to logits [N,K] without the defense around it, where there is one."""

    def __call__(self, x: Tensor, *others: object, **named: object) -> Any:
        """`forward` on a copy of the images, which it may change in place; floats come back in the images' type."""
        outputs = super().__call__(x.clone(), *others, **named)
        return outputs.to(x.dtype) if isinstance(outputs, Tensor) and outputs.is_floating_point() else outputs

    @property
    def rejects(self) -> bool:
        """Whether the outputs include a reject score."""
        return False

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        """Ways a gradient may pass through it; others mean that it optimises at inference, see `attack_forward`."""
        return ("default",)

    def verdict(self, x: Tensor) -> Verdict:
        """The deployed, full-strength answer for images [N,C,H,W]."""
        logits = self(x)
        return replace(answered(logits, self.num_classes), scores=suspicion(logits, self.num_classes))

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of images [N,C,H,W], and how near each of the `detectors` is to rejecting them: [N,D].

        A ratio is a detector's score over its threshold if the answer were `labels` [N]; > 1 rejects. Both are
        differentiable: this is what an attacker who knows the defense computes with.
        """
        raise NotImplementedError(f"{type(self).__name__} declares detectors but no detection")

    @property
    def inference_steps(self) -> int:
        """Number of solver steps of one full-strength answer, for estimates of time; 0 where it does not optimise."""
        return 0

    @property
    def attacked_steps(self) -> int:
        """Number of solver steps of one `attack_forward` call without a warm start."""
        return self.inference_steps

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """The logits as an attacker computes them: gradients by that mode, the inner optimisation from `start`.

        Only for defenses with `gradient_modes` of their own. Returns the logits and where the inner optimisation ended,
        to be handed in as `start` [N,...] next time (None: the full optimisation; else `inner_steps` of it).
        """
        raise NotImplementedError(f"{type(self).__name__} declares gradient modes but no attack_forward")

    @property
    def certificate(self) -> Certificate | None:
        """What `certified` gives, or None where it isn't offered."""
        return None

    def certified(self, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        """Whether it is certain that every image within eps [N,E] of x [N,C,H,W] is answered with `labels` [N] → [N,E].

        False says nothing. Only for defenses with a `certificate`.
        """
        raise NotImplementedError(f"{type(self).__name__} declares a certificate but no certified")

    def perceived(self, x: Tensor) -> Tensor:
        """What the defense sees in place of x [N,C,H,W]: a projection or reconstruction; x where there is none."""
        return x


def suspicion(logits: Tensor, classes: int) -> Tensor:
    """How suspicious each input looks, [N]: its reject score's excess over the largest logit, > 0 where rejected.

    Without a reject score: minus the largest softmax probability (Hendrycks and Gimpel 2017, the usual baseline).
    """
    if logits.shape[1] > classes:
        return reject_excess(logits, classes)
    return -logits.softmax(1).amax(1)


def append_reject_score(logits: Tensor, excess: Tensor) -> Tensor:
    """[N,K] and the detector's excess [N] (> 0: reject) → [N,K+1], argmax = K exactly where it rejects."""
    top = logits.amax(1)
    score = top + excess
    # Rounding must not decide: next to a large logit a small excess would vanish. The gradient stays that of the sum.
    below, above = (torch.nextafter(top.detach(), torch.full_like(top, way)) for way in (-torch.inf, torch.inf))
    exact = torch.where(excess > 0, torch.maximum(score, above), torch.minimum(score, below)).detach()
    score = torch.where(score.isfinite(), exact + (score - score.detach()), exact)
    return torch.cat([logits, score[:, None]], dim=1)
