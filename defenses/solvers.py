"""Solvers for the projection on the range of a generator, z*(x) = argmin_z ‖G(z) − x‖².

The result for a latent depends on its own start and image alone, in whatever batch it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.batching import pad_to_block
from manifold_bench.attacks.threat import draw_per_input
from manifold_bench.defenses.base import Settings

Penalty = Callable[[Tensor, Tensor], Tensor]
"""A function of latents [M,k] and their rows among all latents of the solver [M] → penalty added to each error, [M]."""

Memory = tuple[Tensor, ...]
"""The state that a solver keeps from step to step, with a row for each latent; () before the first step."""

CHECKED_EVERY = 10
"""Number of steps between two checks of which latents have converged."""

AT_ONCE = 128
"""Number of latents that pass through a generator together on a CPU, so that activations stay in the caches."""


@dataclass(frozen=True, kw_only=True)
class Solver(Settings, ABC):
    """The base of solvers, which descend on the mean squared error over the pixels of each image.

    steps: number of steps, each one pass forward and backward through the generator. rate: step size. starts: number of
    starts for each image; the best result is used.
    origin: `prior`, where all starts are drawn from N(0, spread² I), or `encoder`, where the inverting encoder gives
    the first one. spread: standard deviation of the random starts.
    race: number of steps after which only the best start of each image continues; 0: all continue to the end.
    tolerance: a latent stops when its error fell by less than this share in the last ten steps; 0: none stops early.
    """

    steps: Annotated[int, Ge(1)] = 1000
    rate: Annotated[float, Gt(0)] = 1.0
    starts: Annotated[int, Ge(1)] = 1
    origin: Literal["prior", "encoder"] = "prior"
    spread: Annotated[float, Gt(0)] = 1.0
    race: Annotated[int, Ge(0)] = 0
    tolerance: Annotated[float, Ge(0), Lt(1)] = 0.0

    def start(self, n: int, latent: int, seed: int, like: Tensor) -> Tensor:
        """Return starts [n, starts, latent] from the prior, the same for each of the n inputs."""
        z = self.spread * torch.randn(self.starts, latent, generator=torch.Generator().manual_seed(seed))
        return z.to(like.device, like.dtype).expand(n, -1, -1).contiguous()

    def start_per_input(self, x: Tensor, latent: int, seed: int) -> Tensor:
        """Return starts [N, starts, latent] from the prior, seeded by each image's pixels [N,C,H,W] and by `seed`."""
        shape = (self.starts, latent)
        return self.spread * draw_per_input(x, seed, lambda generator: torch.randn(shape, generator=generator))

    @abstractmethod
    def step(self, z: Tensor, error: Tensor, gradient: Tensor, memory: Memory, number: int) -> tuple[Tensor, Memory]:
        """Return the next latents and the new memory, given latents z [M,k], their errors [M] and gradients [M,k].

        number: number of the step, from 1.
        """

    def unrolls_whole(self, steps: int) -> bool:
        """Return whether an attacker who unrolls that many steps unrolls the whole search from its own starts.

        Fewer steps are unrolled from where the full search ended.
        """
        return steps >= self.steps

    def unrolled(self, steps: int) -> Solver:
        """Return the solver whose steps an attacker unrolls: this one for a whole search, else `at_optimum`."""
        return self if self.unrolls_whole(steps) else self.at_optimum()

    def at_optimum(self) -> Solver:
        """Return the solver that replaces this one if unrolled steps begin at a converged latent.

        Adam and L-BFGS have no useful gradient there, so slow momentum descent replaces them.
        """
        return SLOW_DESCENT

    @property
    def passes(self) -> int:
        """Largest number of passes forward and backward through the generator for one image."""
        if not self.race:
            return self.starts * self.steps
        return self.starts * min(self.race, self.steps) + max(0, self.steps - self.race)

    def solve(
        self,
        generator: nn.Module,
        x: Tensor,
        start: Tensor,
        steps: int,
        unroll: bool = False,
        penalty: Penalty | None = None,
    ) -> Tensor:
        """Take `steps` steps from start [N,R,k] towards x [N,C,H,W]; return latents [N,R,k], or [N,1,k] after a race.

        unroll: whether to return the last iterate of each start, differentiable in x through every step, in place of
        the best iterate, detached. penalty: penalty on the N·R latents.
        """
        n, starts, latent = start.shape
        rows = torch.arange(n * starts, device=start.device)
        z = start.detach().reshape(-1, latent)
        if unroll:
            aim = x.repeat_interleave(starts, 0)
            return self._unrolled(generator, aim, z, rows, steps, penalty).view(n, starts, latent)
        aim = x.detach().repeat_interleave(starts, 0)
        if self.race and starts > 1:
            z, error = self._descended(generator, aim, z, rows, min(self.race, steps), penalty)
            first = torch.arange(n, device=z.device) * starts + error.view(n, starts).argmin(1)
            z, aim, rows, starts, steps = z[first], aim[first], rows[first], 1, max(0, steps - self.race)
        z, _ = self._descended(generator, aim, z, rows, steps, penalty)
        return z.view(n, starts, latent)

    def _descended(
        self, generator: nn.Module, aim: Tensor, z: Tensor, rows: Tensor, steps: int, penalty: Penalty | None
    ) -> tuple[Tensor, Tensor]:
        """Return the best iterate of each latent [M,k] and its error [M]; latents that converged leave the batch."""
        best, best_error = z.clone(), z.new_full((len(z),), torch.inf)
        active = torch.arange(len(z), device=z.device)

        def keep_better(z: Tensor, error: Tensor) -> None:
            better = error < best_error[active]
            best[active[better]], best_error[active[better]] = z[better], error[better]

        before = best_error.clone()
        memory: Memory = ()
        for number in range(1, steps + 1):
            error, gradient = slope(generator, z, aim[active], rows[active], penalty)
            keep_better(z, error)
            if self.tolerance and number % CHECKED_EVERY == 1:
                left = best_error[active]
                moving = (left < (1 - self.tolerance) * before) | before.isinf()
                before = left[moving]
                active, z, error, gradient = (kept[moving] for kept in (active, z, error, gradient))
                memory = tuple(kept[moving] for kept in memory)
                if not len(active):
                    return best, best_error
            z, memory = self.step(z, error, gradient, memory, number)
        with torch.no_grad():
            error = objective(generator, z, aim[active], rows[active], penalty)
        keep_better(z, error)
        return best, best_error

    def _unrolled(
        self, generator: nn.Module, aim: Tensor, z: Tensor, rows: Tensor, steps: int, penalty: Penalty | None
    ) -> Tensor:
        memory: Memory = ()
        # An attack may call this under no_grad
        with torch.enable_grad():
            for number in range(1, steps + 1):
                if not z.requires_grad:
                    z.requires_grad_(True)
                error = objective(generator, z, aim, rows, penalty)
                (gradient,) = torch.autograd.grad(error.sum(), z, create_graph=True)
                z, memory = self.step(z, error, gradient, memory, number)
        return z


@dataclass(frozen=True, kw_only=True)
class MomentumSolver(Solver):
    """Gradient descent with momentum (reference code of Ilyas et al. 2017; Samangouei et al. 2018).

    momentum: share of the last step that is kept. drop: share of the steps after which the rate is a tenth; 1: never.

    The rate in the code of Ilyas et al. is 100, for their generators. On those of this project it does not converge: on
    100 validation images of MNIST the median and the 99 % quantile of the distance to the range after 1,000 steps are
    1.85 and 5.96 at rate 50, 1.43 and 3.44 at 20, 1.36 and 3.41 at 10, 1.34 and 2.60 at 5, 1.37 and 2.64 at 3.
    """

    method: Literal["momentum"] = "momentum"
    rate: Annotated[float, Gt(0)] = 5.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    drop: Annotated[float, Gt(0), Le(1)] = 1.0

    def step(self, z: Tensor, error: Tensor, gradient: Tensor, memory: Memory, number: int) -> tuple[Tensor, Memory]:
        velocity = -self.rate * (0.1 if number > self.drop * self.steps else 1.0) * gradient
        if memory:
            velocity = self.momentum * memory[0] + velocity
        return z + velocity, (velocity,)

    def at_optimum(self) -> Solver:
        return self if self.drop == 1 else replace(self, rate=self.rate / 10, drop=1.0)


SLOW_DESCENT = MomentumSolver(rate=2.0)
"""The solver that is unrolled from an optimum. PGD with 9 steps, through ten unrolled steps from the optimum of L-BFGS,
fools Defense-GAN at L2 4 on 100 % of 24 validation images of MNIST (rate 10: 42 %; ten steps of Adam: 17 %)."""


@dataclass(frozen=True, kw_only=True)
class AdamSolver(Solver):
    """Adam (Kingma and Ba 2015) with its usual decays. rate: about the largest change of a coordinate in a step."""

    method: Literal["adam"] = "adam"
    steps: Annotated[int, Ge(1)] = 50
    rate: Annotated[float, Gt(0)] = 0.05

    def step(self, z: Tensor, error: Tensor, gradient: Tensor, memory: Memory, number: int) -> tuple[Tensor, Memory]:
        moments = (Moments(*memory) if memory else Moments.none(gradient)).after(gradient)
        return z - moments.step(self.rate, number, epsilon=1e-12, floor=1e-30), moments


@dataclass(frozen=True, kw_only=True)
class QuasiNewtonSolver(Solver):
    """L-BFGS (Liu and Nocedal 1989) for every latent by itself, in one batch, with a backtracking line search.

    Each step is one pass, which evaluates a trial point. A trial that reduces the error too little (Armijo's condition)
    is shortened; otherwise the search continues from it. rate: length of the first step. pairs: number of pairs of
    differences that are kept.
    """

    method: Literal["l-bfgs"] = "l-bfgs"
    steps: Annotated[int, Ge(1)] = 150
    rate: Annotated[float, Gt(0)] = 1.0
    origin: Literal["prior", "encoder"] = "encoder"
    tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-3
    pairs: Annotated[int, Ge(1)] = 10

    def unrolls_whole(self, steps: int) -> bool:
        """Return False, because the choices of the line search have no derivative."""
        return False

    def step(self, z: Tensor, error: Tensor, gradient: Tensor, memory: Memory, number: int) -> tuple[Tensor, Memory]:
        """See `Solver.step`.

        memory: base point, its error and gradient; differences s, y [M,pairs,k] and 1/s·y; scale; share of the step.
        """
        if not memory:
            length = gradient.norm(dim=1).clamp_min(1e-30)
            # no farther than where a straight line would reach zero, so that a start near its goal stays there
            scale = torch.minimum(self.rate / length, error / length.square())
            history = z.new_zeros(len(z), self.pairs, z.shape[1])
            memory = (z, error, gradient, history, history, history[:, :, 0], scale, torch.ones_like(error))
        else:
            memory = self._after_trial(z, error, gradient, memory)
        base, _, slope, s, y, weight, scale, share = memory
        return base + share[:, None] * direction(slope, s, y, weight, scale), memory

    def _after_trial(self, z: Tensor, error: Tensor, gradient: Tensor, memory: Memory) -> Memory:
        """Return the memory after a trial; the trial point is the new base if it reduced the error enough."""
        base, base_error, base_gradient, s, y, weight, scale, share = memory
        moved, turned = z - base, gradient - base_gradient
        taken = error <= base_error + 1e-4 * (moved * base_gradient).sum(1)
        curvature, turn = (moved * turned).sum(1), turned.square().sum(1)
        learnt = taken & (curvature > 1e-8 * scale * turn)
        kept = learnt[:, None, None]
        return (
            torch.where(taken[:, None], z, base),
            torch.where(taken, error, base_error),
            torch.where(taken[:, None], gradient, base_gradient),
            torch.where(kept, torch.cat([s[:, 1:], moved[:, None]], 1), s),
            torch.where(kept, torch.cat([y[:, 1:], turned[:, None]], 1), y),
            torch.where(kept[:, :, 0], torch.cat([weight[:, 1:], 1 / curvature[:, None]], 1), weight),
            torch.where(learnt, curvature / turn, scale),
            torch.where(taken, 1.0, 0.4 * share),
        )


def direction(gradient: Tensor, s: Tensor, y: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return −H·gradient [M,k] by the two loops of L-BFGS.

    s, y: differences of points and of gradients [M,pairs,k], the latest last. weight: 1/s·y [M,pairs], 0 for a missing
    pair. scale: scale of the first estimate of H, [M].
    """
    pairs = s.shape[1]
    q, shares = gradient, []
    for i in reversed(range(pairs)):
        share = weight[:, i] * (s[:, i] * q).sum(1)
        q = q - share[:, None] * y[:, i]
        shares.append(share)
    q = q * scale[:, None]
    for i in range(pairs):
        q = q + s[:, i] * (shares[pairs - 1 - i] - weight[:, i] * (y[:, i] * q).sum(1))[:, None]
    downhill = (q * gradient).sum(1) > 0
    return -torch.where(downhill[:, None], q, gradient * scale[:, None])


def slope(generator: nn.Module, z: Tensor, aim: Tensor, rows: Tensor, penalty: Penalty | None) -> tuple[Tensor, Tensor]:
    """Return the errors [M] of latents z [M,k] and their gradients [M,k], computed on whole blocks."""
    at_once = AT_ONCE if z.device.type == "cpu" else max(1, len(z))
    errors, gradients = [], []
    for latents, images, numbers in zip(z.split(at_once), aim.split(at_once), rows.split(at_once), strict=True):
        # An attack may call this under no_grad, and autograd.Function switches gradients off
        with torch.enable_grad():
            padded = pad_to_block(latents.detach()).clone().requires_grad_(True)
            error = objective(generator, padded, pad_to_block(images), pad_to_block(numbers), penalty)
            (gradient,) = torch.autograd.grad(error.sum(), padded)
        errors.append(error.detach()[: len(latents)])
        gradients.append(gradient[: len(latents)])
    return torch.cat(errors), torch.cat(gradients)


def objective(generator: nn.Module, z: Tensor, x: Tensor, rows: Tensor, penalty: Penalty | None) -> Tensor:
    """Return the objective of a solver for latents z [M,k] and images x [M,C,H,W], [M]: error plus penalty."""
    error = mean_squared_error(generator(z), x)
    return error if penalty is None else error + penalty(z, rows)


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared difference of each pair of images, both [N,C,H,W] → [N]."""
    return (a - b).square().flatten(1).mean(1)


def best_start(generator: nn.Module, x: Tensor, z: Tensor, penalty: Penalty | None = None) -> tuple[Tensor, Tensor]:
    """Return the best of latents z [N,R,k] for each image x [N,C,H,W]: latents [N,k], and their images [N,C,H,W].

    The best one has the smallest mean squared error of G(z), plus the penalty, as in `Solver.solve`.
    """
    n, starts, latent = z.shape
    images = generator(z.reshape(-1, latent))
    if starts == 1:
        return z[:, 0], images
    error = mean_squared_error(images.detach(), x.detach().repeat_interleave(starts, 0))
    if penalty is not None:
        error = error + penalty(z.detach().reshape(-1, latent), torch.arange(n * starts, device=z.device))
    chosen = torch.arange(n, device=z.device) * starts + error.view(n, starts).argmin(1)
    return z.reshape(-1, latent)[chosen], images[chosen]
