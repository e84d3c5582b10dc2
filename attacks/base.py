"""The contract of an attack."""

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
    max_forwards: largest number of forward passes that an input may cost; the attack fails when it asks for more. None:
    no limit.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    """The norms it can be asked for."""
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    """The key of its paper in `bench/references.bib`, or a citation as text."""
    open_parameters: ClassVar[bool] = False
    """For adapters, named `library:Class`: the part after the colon becomes the field `attack`, and keys of the matrix
    file that are not fields become the field `parameters`."""

    norm: Norm = "linf"
    max_forwards: Annotated[int, Ge(1)] | None = None

    @property
    @abstractmethod
    def knowledge(self) -> Knowledge:
        """What the attacker knows: nothing of the defense, everything, its scores, its decisions."""

    @property
    def adapted_to(self) -> tuple[str, ...]:
        """The families of defenses (`Defense.family`) that it is made for: without such an attack a family's robust
        accuracy says little."""
        return ()

    @property
    def revision(self) -> str:
        """The version as it enters a result's identity; adapters add that of the library they call."""
        return str(self.version)

    @property
    def aims(self) -> Literal["none", "wrong", "every"]:
        """Whether it is handed a class that each input is to be taken for (`Target.aims`).

        `wrong`: it runs once for every wrong class of every input, and each pair has a record of its own. `every`: once
        for every class, where inputs have no label. An attack that chooses among the classes itself says `none`.
        """
        return "none"

    @property
    def minimal(self) -> bool:
        """Whether it looks for the smallest perturbation (one run serves all ε) instead of working within an ε."""
        return False

    @abstractmethod
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        """Adversarial images for x [N,C,H,W] in [0,1] with labels y [N], within eps in `norm`, in [0,1].

        A minimal attack ignores eps. What it returns is judged afresh by the harness; where it found nothing it
        may return anything valid (x, or its best attempt).
        """

    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes that one input costs at the most, at one ε (an estimate, for the plan)."""

    def steps_of_a_pass(self, defense: AttackableDefense) -> int:
        """Number of solver steps inside the defense that each of the `passes` costs; 0 where it does not optimise."""
        return defense.inference_steps

    def unsuited(self, defense: AttackableDefense) -> str | None:
        """Why this attack makes no sense on that defense, or None; the plan skips the pair with this reason."""
        return None


@dataclass(frozen=True, kw_only=True)
class ViewAttack(Attack):
    """An attack that computes with a view of the defense, and chooses which.

    part: what the attack computes with: the whole `defense`, or its `classifier` alone, for an attacker who does not
    know the rest. The whole defense judges the result in both cases.
    gradient: how gradients pass through what is not differentiable; `default` is the defense's own choice.
    warm_start: whether an optimisation inside the defense starts where it ended at the last point and takes
    `inner_steps` steps. That is cheap but weaker: the deployed defense starts afresh, and may end in another optimum.
    Without it the attack runs the defense's full optimisation at every point.
    inner_steps: number of solver steps after a warm start, and of those that `unrolled` differentiates.
    """

    part: Part = "defense"
    gradient: GradientMode = "default"
    inner_steps: Annotated[int, Ge(1)] = 20
    warm_start: bool = False

    @property
    def knowledge(self) -> Knowledge:
        """An attacker who differentiates a part alone knows nothing of the rest."""
        return "white-box" if self.part == "defense" else "oblivious"

    def steps_of_a_pass(self, defense: AttackableDefense) -> int:
        if self.part != "defense":
            return 0
        return min(self.inner_steps, defense.attacked_steps) if self.warm_start else defense.attacked_steps

    def view(self, target: Target) -> View:
        """The view of the target that these choices name."""
        return target.view(self.part, self.gradient, self.inner_steps, self.warm_start)

    def unsuited(self, defense: AttackableDefense) -> str | None:
        if self.part == "classifier" and defense.classifier is None:
            return "this defense is a plain classifier, so the oblivious attack is the same as the white-box attack"
        if self.gradient != "default" and (self.part != "defense" or self.gradient not in defense.gradient_modes):
            return f"gradient = {self.gradient!r} is for defenses that project, attacked as a whole"
        return None
