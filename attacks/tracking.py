"""An attack on defenses that project: it follows the optimum of the defense's search while the image changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import blockwise, pad_to_block, remaining
from manifold_bench.attacks.contract import AttackableDefense, projects
from manifold_bench.attacks.gradient import Best, or_random
from manifold_bench.attacks.latent import CONFIRMATIONS, RangeProblem
from manifold_bench.attacks.losses import likeliest_wrong, margin
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import expand, steepest

COLUMNS_AT_ONCE = 128
"""Number of Jacobian columns that pass through a generator together, so that its activations stay in the caches."""

LAST_STEP = 0.05
"""Length of the last step of an ascent as a share of the first."""

PULL_FROM = 0.95
"""Share of η from which on the image is pulled back towards the range."""

MIN_CURVATURE = 1e-2
"""The least eigenvalue that a Hessian is taken to have, as a share of the mean of the diagonal of JᵀJ."""


class Expansion(NamedTuple):
    """The derivatives of a generator G at latents z [M,k] that Newton steps towards the G(z) nearest to images x need.

    jacobian: the transposed Jacobian Jᵀ of G, [M,k,D]. inverse: the inverse A⁻¹ [M,k,k] of the Hessian of
    ½‖G(z) − x‖², which is A = JᵀJ + Σ rᵢ∇²Gᵢ with the residual r = G(z) − x. The eigenvalues of A are raised to a
    minimum, so that a Newton step leads downhill away from the optimum, too.
    """

    jacobian: Tensor
    inverse: Tensor

    @classmethod
    def at(cls, generator: Callable[[Tensor], Tensor], z: Tensor, x: Tensor) -> Expansion:
        """Compute J and A⁻¹ at latents z [M,k] for images x [M,C,H,W]; costs 2 passes for each of the k latents."""
        m, k = z.shape
        points, aims, directions = z.repeat_interleave(k, 0), x.repeat_interleave(k, 0), torch.eye(k).to(z).repeat(m, 1)
        parts = zip(
            points.split(COLUMNS_AT_ONCE), aims.split(COLUMNS_AT_ONCE), directions.split(COLUMNS_AT_ONCE), strict=True
        )
        found = [_columns(generator, *part) for part in parts]
        hessian = torch.cat([along for along, _ in found]).view(m, k, k)
        jacobian = torch.cat([columns for _, columns in found]).view(m, k, -1)
        least = MIN_CURVATURE * jacobian.square().sum(2).mean(1)
        values, vectors = torch.linalg.eigh((hessian + hessian.transpose(1, 2)) / 2)
        values = torch.maximum(values, least[:, None]).clamp_min(1e-12)
        return cls(jacobian, (vectors / values[:, None]) @ vectors.transpose(1, 2))

    def latent_change(self, change: Tensor) -> Tensor:
        """Return A⁻¹ Jᵀ change, the change of z*(x) when x changes by `change` [M,D] → [M,k]."""
        return (self.inverse @ (self.jacobian @ change[:, :, None]))[:, :, 0]

    def image_gradient(self, gradient: Tensor) -> Tensor:
        """Return J A⁻¹ Jᵀ gradient: the gradient for x, given the gradient [M,D] for G(z*(x)) → [M,D].

        This is the implicit function theorem.
        """
        return (self.jacobian.transpose(1, 2) @ self.latent_change(gradient)[:, :, None])[:, :, 0]


def _columns(generator: Callable[[Tensor], Tensor], z: Tensor, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of Jᵀ(G(z) − x) and of G(z) along directions [M,k] → [M,k], [M,D]."""
    aim = pad_to_block(x)

    def downhill(z: Tensor) -> tuple[Tensor, Tensor]:
        images, back = torch.func.vjp(generator, z)[:2]
        return back(images - aim)[0], images

    with torch.no_grad():
        along, columns = torch.func.jvp(downhill, (pad_to_block(z),), (pad_to_block(direction),))[1]
    return along[: len(z)], columns[: len(z)].flatten(1)


@dataclass
class AscentState:
    """The state of an ascent: n images, S optima that are followed for each of them, k latent dimensions.

    rows: index of each image's input, [n]. point: images [n,C,H,W]. memory: sum of their earlier directions, [n,C,H,W].
    z: the optima, [n·S,k]. images: G(z), [n·S,C,H,W]. expansion: the expansion at each z, as the last
    `update_expansions` computed it. share: share of the next Newton step that is tried, [n·S].
    """

    rows: Tensor
    point: Tensor
    memory: Tensor
    z: Tensor
    images: Tensor
    expansion: Expansion
    share: Tensor

    @classmethod
    def begin(cls, problem: RangeProblem, rows: Tensor, z: Tensor) -> AscentState:
        """Return the state at the inputs of those rows, with latents z [n,S,k] and empty expansions."""
        x, latents, (_, optima, k) = problem.x[rows], z.flatten(0, 1), z.shape
        expansion = Expansion(z.new_zeros(len(latents), k, x[0].numel()), z.new_zeros(len(latents), k, k))
        images = blockwise(problem.generator, latents)
        return cls(rows, x, torch.zeros_like(x), latents, images, expansion, z.new_ones(len(rows) * optima))

    @property
    def optima(self) -> int:
        """S, the number of optima for each image."""
        return len(self.z) // max(1, len(self.rows))

    def per_optimum(self, values: Tensor) -> Tensor:
        """Repeat values [n,…] of images for each of their optima → [n·S,…]."""
        return values.repeat_interleave(self.optima, 0)

    def residual(self) -> Tensor:
        """Return x − G(z), [n·S,D]."""
        return (self.per_optimum(self.point) - self.images).flatten(1)

    def only(self, going: Tensor) -> AscentState:
        """Return the state of the images for which `going` [n] is true."""
        each = self.per_optimum(going)
        rows, point, memory = remaining(going, self.rows, self.point, self.memory)
        z, images, share = remaining(each, self.z, self.images, self.share)
        return AscentState(rows, point, memory, z, images, Expansion(*remaining(each, *self.expansion)), share)

    def update_expansions(self, problem: RangeProblem, due: Tensor) -> None:
        """Compute the expansions of the images for which `due` [n] is true."""
        if due.any():
            chosen, (_, k) = self.per_optimum(due), self.z.shape
            problem.target.count(self.rows[due], self.optima * k, self.optima * k)
            fresh = Expansion.at(problem.generator, self.z[chosen], self.per_optimum(self.point)[chosen])
            self.expansion.jacobian[chosen], self.expansion.inverse[chosen] = fresh

    def restart(self, problem: RangeProblem, which: Tensor) -> None:
        """Replace the optima of the images for which `which` [n] is true by what the deployed search finds for them."""
        if which.any():
            found = [problem.inverted(self.point[which], self.rows[which]) for _ in range(self.optima)]
            chosen = self.per_optimum(which)
            self.z[chosen] = torch.stack(found, dim=1).flatten(0, 1)
            self.images[chosen] = blockwise(problem.generator, self.z[chosen])
            self.share[chosen] = 1.0

    def newton_step(self, problem: RangeProblem) -> None:
        """Take one Newton step of every search for the G(z) nearest to its image.

        A step that brings G(z) no nearer is not taken, and the next one is shorter.
        """
        residual = self.residual()
        z = self.z + self.share[:, None] * self.expansion.latent_change(residual)
        images = blockwise(problem.generator, z)
        nearer = (self.per_optimum(self.point) - images).flatten(1).norm(dim=1) < residual.norm(dim=1)
        self.z = torch.where(nearer[:, None], z, self.z)
        self.images = torch.where(expand(nearer, images), images, self.images)
        self.share = torch.where(nearer, (2 * self.share).clamp_max(1.0), self.share / 4)


@dataclass(frozen=True, kw_only=True)
class Tracking(Attack):
    """Ascends a gradient through a projection, whose optimum it follows by Newton steps.

    It runs targeted ascents on C(G(z*(x))), and keeps z*(x) = argmin over z of ‖G(z) − x‖² at the optimum by one Newton
    step after each step of x.

    The Jacobian J of the generator and the Hessian A of the search are computed explicitly, and J A⁻¹ Jᵀ gives both the
    Newton step and the gradient at x. So a step costs a few passes in place of the deployed search. Where the distance
    to G(z*) comes near η, the image is pulled back towards the range. A few times in an ascent the deployed defense
    checks possible successes; where it denies one, the attack follows the optimum that the defense found. Without the
    curvature of G in A (Gauss–Newton) the attack succeeds on 16 or 17 of 49 inputs of INC, with it on 19 (L∞ 0.2).

    steps: number of steps of each ascent. targets: number of target classes, the likeliest for the clean input first.
    optima: number of answers of a randomized defense whose optima are followed at once; the attack climbs their mean.
    refresh: number of steps after which J and A are computed again. step_size: length of the first step as a share of
    ε; steps shorten geometrically to a twentieth of it. decay: share of the earlier directions that a step
    keeps (momentum).
    """

    knowledge = "white-box"
    version: ClassVar[int] = 2
    adapted_to = ("projection",)

    steps: Annotated[int, Ge(1)] = 100
    targets: Annotated[int, Ge(1)] = 2
    optima: Annotated[int, Ge(1)] = 3
    refresh: Annotated[int, Ge(1)] = 10
    step_size: Annotated[float, Gt(0), Le(2)] = 0.5
    decay: Annotated[float, Ge(0), Lt(1)] = 0.75

    def passes(self) -> tuple[int, int]:
        latent = 32  # a guess, as is one optimum, since the defense is not known here
        evaluations = self.targets * (self.steps + 1)
        jacobians = self.targets * (math.ceil((self.steps + 1) / self.refresh) + CONFIRMATIONS + 1)
        confirmations = 2 * self.targets * (CONFIRMATIONS + 1)
        return 1 + 2 * evaluations + latent * jacobians + confirmations, evaluations + latent * jacobians

    def steps_of_a_pass(self, defense: AttackableDefense) -> int:
        """Return the mean number of solver steps for each pass; only confirmations run the solver."""
        return math.ceil(defense.inference_steps * self.targets * CONFIRMATIONS / sum(self.passes()))

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return None if projects(defense) else "this attack is for defenses that project images on a generator's range"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        problem = RangeProblem(target, x, y, self.norm, eps)
        more = self.optima - 1 if target.defense.randomized else 0
        z = torch.stack([problem.start, *(problem.inverted(x, problem.rows) for _ in range(more))], dim=1)
        with torch.no_grad():
            likely = likeliest_wrong(problem.classifier(problem.rivals[0]), y, target.num_classes)
        best, rows = Best(x.clone(), x.new_full((len(x),), -torch.inf)), problem.rows
        for place in range(min(self.targets, target.num_classes - 1)):
            rows = self.climb(problem, AscentState.begin(problem, rows, z[rows]), likely[:, place], best)
            if not len(rows):
                break
        return best.point

    def climb(self, problem: RangeProblem, state: AscentState, aims: Tensor, best: Best) -> Tensor:
        """Ascend towards the target classes `aims` [N], update `best`, and return the rows without a success."""
        every = max(1, self.steps // CONFIRMATIONS)
        for step in range(self.steps + 1):
            logits, gradient = self.margin_gradient(problem, state, aims, step)
            failed = torch.zeros_like(state.rows, dtype=torch.bool)
            if step == self.steps or step % every == 0:
                beaten, failed = self.confirm(problem, state, logits, best)
                gradient = gradient[~state.per_optimum(beaten)]
                failed, state = failed[~beaten], state.only(~beaten)
                if not len(state.rows) or step == self.steps:
                    break
                state.restart(problem, failed)
            state.update_expansions(problem, failed | (step % self.refresh == 0))
            state.memory = self.decay * state.memory + self.direction(problem, state, gradient)
            length = problem.eps * self.step_size * LAST_STEP ** (step / self.steps)
            state.point = problem.projected(state.point + length * steepest(state.memory, self.norm), state.rows)
            state.newton_step(problem)
        return state.rows

    def margin_gradient(
        self, problem: RangeProblem, state: AscentState, aims: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return the logits at G(z), [n·S,K], and the gradient there of the target class' margin, [n·S,D]."""
        # The generator passes once more in `newton_step`
        problem.target.count(state.rows, 2 * state.optima, state.optima)
        towards, classes = state.per_optimum(aims[state.rows]), problem.target.num_classes
        with torch.enable_grad():
            images = state.images.detach().requires_grad_(True)
            logits = problem.classifier(images)
            (gradient,) = torch.autograd.grad(margin(logits, towards, classes, towards).sum(), images)
        rows = state.per_optimum(state.rows)
        problem.target.record_logits(state.per_optimum(state.point), rows, logits)
        problem.target.record_gradients(rows, gradient)
        gradient = or_random(gradient.nan_to_num(0.0, 0.0, 0.0), state.images, step)
        return logits.detach(), gradient.flatten(1)

    def confirm(self, problem: RangeProblem, state: AscentState, logits: Tensor, best: Best) -> tuple[Tensor, Tensor]:
        """Return which images fool the deployed defense, and which need the optimum of a new search; update `best`.

        Both are [n] bool. A new search is needed where the defense did not confirm a success, and for a randomized
        defense wherever it is not fooled.
        """
        excess = state.residual().norm(dim=1) - problem.eta
        rows = state.per_optimum(state.rows)
        seems = problem.wrong(logits, rows) & (excess <= 0)
        value = -(problem.margin_loss(logits, rows, 0.0) + excess.clamp_min(0)).view(len(state.rows), -1).mean(1)
        claimed = seems.view(len(state.rows), -1).all(1)
        share = problem.fooled(state.point, state.rows, claimed)
        beaten = share == 1
        best.update(state.rows, state.point, torch.where(share > 0, share, value), beaten)
        return beaten, ~beaten & (claimed | problem.target.defense.randomized)

    def direction(self, problem: RangeProblem, state: AscentState, gradient: Tensor) -> Tensor:
        """Return the direction of the next step, [n,C,H,W]: the margin's unit gradient plus the pull towards the range.

        It is the mean over the optima of an image. gradient: gradient of the margin at G(z), [n·S,D].
        """
        up, residual = F.normalize(state.expansion.image_gradient(gradient)), state.residual()
        pull = ((residual.norm(dim=1) / problem.eta - PULL_FROM) / (1 - PULL_FROM)).clamp(0, 2)[:, None]
        both = (1 - pull / 2) * up - pull * F.normalize(residual)
        return both.view(len(state.rows), -1, both.shape[1]).mean(1).view_as(state.point)
