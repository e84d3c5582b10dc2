"""What an attack may know of a defense: its answer, the interface of every defense, and the parts that some have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeGuard

from torch import Tensor

Part = Literal["defense", "classifier"]

GradientMode = Literal["default", "identity", "unrolled", "gauss-newton", "implicit"]


@dataclass(frozen=True)
class Verdict:
    """The deployed answer. labels: [N] int64 in 0..K−1 (also where rejected); rejected: [N] bool.

    scores: [N] float, how suspicious each input looks, larger is more so; for a defense that rejects, > 0 exactly
    where it does (up to rounding). None for a defense that gives no scores: it gets no risk–coverage curve.
    """

    labels: Tensor
    rejected: Tensor
    scores: Tensor | None = None

    def wrong(self, y: Tensor) -> Tensor:
        """Accepted and not y → [N] bool."""
        return ~self.rejected & (self.labels != y)


def answered(logits: Tensor, classes: int) -> Verdict:
    """The answers that outputs [N,K] or [N,K+1] mean: the largest decides, and the last of K+1 means rejected.

    ±∞ is a value like any other: a class may be masked by −∞.
    """
    return Verdict(logits[:, :classes].argmax(1), logits.argmax(1) == classes)


def succeeded(answer: Verdict, y: Tensor, aims: Tensor | None = None) -> Tensor:
    """Whether an attack that got these answers was a success → [N] bool: accepted and wrong, whatever was aimed at.

    Noise has no label (y = −1): accepted, and as the class aimed at where there is one (aims [N]; −1 or None: none).
    """
    wrong = answer.wrong(y)
    if aims is None:
        return wrong
    return wrong & ((y >= 0) | (aims < 0) | (answer.labels == aims))


class AttackableDefense(Protocol):
    """What a Target needs to know of a defense; `defenses.base.Defense` fulfils it and says what each part means."""

    num_classes: int

    @property
    def classifier(self) -> Callable[[Tensor], Tensor] | None: ...

    @property
    def detectors(self) -> tuple[str, ...]: ...

    @property
    def rejects(self) -> bool: ...

    @property
    def randomized(self) -> bool: ...

    @property
    def gradient_modes(self) -> tuple[str, ...]: ...

    @property
    def inference_steps(self) -> int: ...

    @property
    def attacked_steps(self) -> int: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def verdict(self, x: Tensor) -> Verdict: ...


class Detecting(Protocol):
    """A defense that names its `detectors`."""

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]: ...


class Optimising(Protocol):
    """A defense that optimises at inference: its `gradient_modes` name others than "default"."""

    def attack_forward(
        self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int
    ) -> tuple[Tensor, Tensor]: ...


class Encoding(Protocol):
    """A defense with an encoder, images [N,C,H,W] → codes [N,...]."""

    @property
    def encoder(self) -> Callable[[Tensor], Tensor]: ...


class Generator(Protocol):
    """A map from latents z [N,latent], z ~ N(0, I), to images [N,C,H,W]."""

    latent: int

    def __call__(self, z: Tensor, /) -> Tensor: ...

    def sample(self, n: int, seed: int) -> Tensor: ...


class Generating(Protocol):
    """A defense with a generator, and a classifier, images → logits [N,K], for what it generates."""

    @property
    def generator(self) -> Generator: ...

    @property
    def classifier(self) -> Callable[[Tensor], Tensor]: ...


class Projecting(Generating, Protocol):
    """A defense that classifies the nearest image of its generator's range.

    inverter: images [N,C,H,W] → latents [N,k] of the nearest images; eta: the largest L2 distance to them that is
    accepted.
    """

    @property
    def eta(self) -> Tensor: ...

    def inverter(self, x: Tensor) -> Tensor: ...


def encodes(defense: object) -> TypeGuard[Encoding]:
    return _has(defense, "encoder")


def generates(defense: object) -> TypeGuard[Generating]:
    return _has(defense, "generator", "classifier")


def projects(defense: object) -> TypeGuard[Projecting]:
    return _has(defense, "generator", "classifier", "inverter")


def _has(defense: object, *parts: str) -> bool:
    """By name: isinstance with a Protocol does not see the submodules of a torch module from Python 3.12 on."""
    return all(getattr(defense, part, None) is not None for part in parts)
