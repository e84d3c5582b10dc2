"""The base classes of attacks: what every attack declares, and what the harness calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.contract import AttackableDefense, GradientMode, Part
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm
from manifold_bench.attacks.view import View

Knowledge = Literal["oblivious", "white-box", "score", "decision"]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its parameters, for one threat model.

    Its dataclass fields are what a matrix file may set, checked against their types; together with `version` they
    are the attack's identity. Raise `version` whenever the same parameters would give other results, or a field gets
    another default.

    norm: norm in which the perturbation is bounded, one of `norms`.
    max_passes: largest number of forward plus backward passes for each input. An input that has spent them keeps the
    best point that was met until then, and the attack goes on with the others. None: no limit.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    """The norms that this attack supports."""
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    """The key of its paper in `bench/references.bib`, or a citation as text."""
    open_parameters: ClassVar[bool] = False
    """For adapters, named `library:Class`: the part after the colon becomes the field `attack`, and keys of the matrix
    file that are not fields become the field `parameters`."""

    norm: Norm = "linf"
    max_passes: Annotated[int, Ge(1)] | None = None

    @property
    @abstractmethod
    def knowledge(self) -> Knowledge:
        """What the attacker knows of the defense.

        `oblivious`: nothing. `white-box`: everything. `score`: its logits. `decision`: its answers alone.
        """

    @property
    def adapted_to(self) -> tuple[str, ...]:
        """The families of defenses (`Defense.family`) that this attack is made for.

        Without an attack that is made for it, the robust accuracy of a family says little.
        """
        return ()

    @property
    def revision(self) -> str:
        """The version as text, as it enters a result's identity; adapters add the version of their library."""
        return str(self.version)

    @property
    def aims(self) -> Literal["none", "wrong", "every"]:
        """Whether the harness gives this attack a target class for each input (`Target.aims`).

        `wrong`: the attack runs once for every wrong class of every input, and each pair has a record of its own.
        `every`: it runs once for every class; for inputs without a label. `none`: it gets no target classes, and may
        choose some itself.
        """
        return "none"

    @property
    def minimal(self) -> bool:
        """Whether this attack looks for the smallest perturbation, so that one run serves all ε."""
        return False

    @abstractmethod
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        """Return adversarial images for x [N,C,H,W] with labels y [N]: in [0,1], and within eps in `norm`.

        eps: size of the perturbation in `norm`; ∞ for an attack with `minimal = True`, which returns the smallest
        perturbation that it finds. seed: seed of everything that is random.
        The judge decides which of the images are successes. For an input without a success the attack returns any valid
        image: x, or its best attempt.
        """

    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Return the most forward and backward passes that one input costs at one ε; an estimate, for the plan."""

    def affordable_passes(self) -> tuple[float, float]:
        """Return `passes`, but no more than `max_passes` of them."""
        forwards, backwards = self.passes()
        share = 1.0 if self.max_passes is None else min(1.0, self.max_passes / max(1, forwards + backwards))
        return forwards * share, backwards * share

    def training_passes(self) -> int:
        """Return how many passes of one image through a model that the attack trains, in the whole job; an estimate."""
        return 0

    def steps_of_a_pass(self, defense: AttackableDefense) -> int:
        """Return how many solver steps of the defense each of the `passes` costs; 0 where the defense has no solver."""
        return defense.inference_steps

    def unsuited(self, defense: AttackableDefense) -> str | None:
        """Return why this attack makes no sense on that defense, or None; the plan skips the pair for this reason."""
        return None


@dataclass(frozen=True, kw_only=True)
class ViewAttack(Attack):
    """An attack that differentiates a `View` of the defense: all of it or a part, with a chosen kind of gradient.

    part: what the attack differentiates: the whole `defense`, or its `classifier` alone, for an attacker who does not
    know the rest. The judge uses the whole defense in both cases.
    gradient: how gradients pass through parts of the defense that are not differentiable; `default` is the defense's
    own choice.
    warm_start: whether an optimisation inside the defense starts where it ended at the last point and takes
    `inner_steps` steps. That is cheap but weaker: the deployed defense starts from its own start, and may end in
    another optimum. Without a warm start the attack runs the defense's full optimisation at every point.
    inner_steps: number of solver steps after a warm start, and number of steps that `unrolled` differentiates.
    """

    part: Part = "defense"
    gradient: GradientMode = "default"
    inner_steps: Annotated[int, Ge(1)] = 20
    warm_start: bool = False

    @property
    def knowledge(self) -> Knowledge:
        """`white-box`, or `oblivious` for an attacker who differentiates the classifier alone (`part`)."""
        return "white-box" if self.part == "defense" else "oblivious"

    def steps_of_a_pass(self, defense: AttackableDefense) -> int:
        if self.part != "defense":
            return 0
        return min(self.inner_steps, defense.attacked_steps) if self.warm_start else defense.attacked_steps

    def view(self, target: Target) -> View:
        """Return the view of the target that `part`, `gradient`, `inner_steps` and `warm_start` choose."""
        return target.view(self.part, self.gradient, self.inner_steps, self.warm_start)

    def unsuited(self, defense: AttackableDefense) -> str | None:
        if self.part == "classifier" and defense.classifier is None:
            return "this defense is a plain classifier, so the oblivious attack is the same as the white-box attack"
        if self.gradient != "default" and (self.part != "defense" or self.gradient not in defense.gradient_modes):
            return f"gradient = {self.gradient!r} is for defenses that project, attacked as a whole"
        return None
