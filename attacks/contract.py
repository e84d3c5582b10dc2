"""What attacks know of a defense: the form of its answers, and the interfaces of defenses and of their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeGuard

from torch import Tensor

Part = Literal["defense", "classifier"]

GradientMode = Literal["default", "identity", "unrolled", "gauss-newton", "implicit"]


@dataclass(frozen=True)
class Verdict:
    """The answer of a defense to N images.

    labels: [N] int64 in 0..K−1, also for rejected inputs. rejected: [N] bool. scores: [N] float, how suspicious each
    input looks; larger is more suspicious. For a defense that rejects, a score is > 0 exactly where the input is
    rejected (up to rounding). None for a defense without scores, which gets no risk–coverage curve.
    """

    labels: Tensor
    rejected: Tensor
    scores: Tensor | None = None

    def wrong(self, y: Tensor) -> Tensor:
        """Return whether each input is accepted and its label is not y [N] → [N] bool."""
        return ~self.rejected & (self.labels != y)


def verdict_of(logits: Tensor, classes: int) -> Verdict:
    """Return the answers that outputs [N,K] or [N,K+1] encode: the largest output decides; output K+1 means rejected.

    ±∞ is a value like any other, since a defense may mask a class by −∞.
    """
    return Verdict(logits[:, :classes].argmax(1), logits.argmax(1) == classes)


def succeeded(answer: Verdict, y: Tensor, aims: Tensor | None = None) -> Tensor:
    """Return whether each answer is a success of an attack → [N] bool: accepted and wrong, whatever the target class.

    y: labels [N]; −1 for noise, which has no label. Noise succeeds where it is accepted, and accepted as its target
    class if it has one. aims: target classes [N]; −1 or None: no target class.
    """
    wrong = answer.wrong(y)
    if aims is None:
        return wrong
    return wrong & ((y >= 0) | (aims < 0) | (answer.labels == aims))


class AttackableDefense(Protocol):
    """The interface of a defense that a Target uses; `defenses.base.Defense` implements and documents it."""

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
    """A defense that optimises at inference; its `gradient_modes` name more than "default"."""

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
    """A defense with a generator, and with a classifier of the generator's images: images → logits [N,K]."""

    @property
    def generator(self) -> Generator: ...

    @property
    def classifier(self) -> Callable[[Tensor], Tensor]: ...


class Projecting(Generating, Protocol):
    """A defense that classifies the nearest image of its generator's range.

    inverter: images [N,C,H,W] → latents [N,k] of the nearest images. eta: largest accepted L2 distance between an input
    and its nearest image.
    """

    @property
    def eta(self) -> Tensor: ...

    def inverter(self, x: Tensor) -> Tensor: ...


def encodes(defense: object) -> TypeGuard[Encoding]:
    """Return whether a defense has an encoder."""
    return _has(defense, "encoder")


def generates(defense: object) -> TypeGuard[Generating]:
    """Return whether a defense has a generator and a classifier."""
    return _has(defense, "generator", "classifier")


def projects(defense: object) -> TypeGuard[Projecting]:
    """Return whether a defense has a generator, a classifier and an inverter."""
    return _has(defense, "generator", "classifier", "inverter")


def _has(defense: object, *parts: str) -> bool:
    # Not isinstance: with a Protocol it does not see the submodules of a torch module from Python 3.12 on
    return all(getattr(defense, part, None) is not None for part in parts)


def without_rejection(defense: AttackableDefense) -> str | None:
    """Return why attacks on the rejection make no sense for a defense; None if it rejects."""
    return (
        None
        if defense.rejects
        else "the defense rejects nothing, so this attack would be plain PGD; run pgd with targeted = true instead"
    )
