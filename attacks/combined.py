"""An attack that optimises an image and a latent together, for defenses that project on a generator's range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.lagrangian import ProblemValues, l2_distance
from manifold_bench.attacks.latent import RangeAttack, RangeProblem


@dataclass(frozen=True, kw_only=True)
class Combined(RangeAttack):
    """Optimises the image and its latent together, against defenses that project.

    It minimises c·margin(C(G z)) + λ‖G z − (x + δ)‖ over (δ, z), with x + δ in the ball, by one Adam on both; a
    Lagrange multiplier sets c/λ.

    The defense takes the nearest image of the generator's range, so that G z has to be nearer to x + δ than every rival
    image. The constraint's excess is how much farther it is. Rivals are G z*(x); what the defense found for images that
    did not fool it; and G r, where the latent r starts at z*(x) and descends towards x + δ, as the defense's own search
    would. If the deployed defense does not confirm a success, r continues from the latent that the defense found.

    image_rate: Adam's learning rate for δ, as a share of ε (in L2: of ε divided by the root of the number of pixels).
    """

    adapted_to = ("projection",)

    starts: Annotated[int, Ge(1)] = 3
    image_rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.1

    def passes(self) -> tuple[int, int]:
        return self.pass_limits(2)

    def first_points(self, problem: RangeProblem, start: Tensor) -> Tensor:
        """Return the starting points [N, pixels + 2k]: image, z and r of each input."""
        image = problem.projected(blockwise(problem.generator, start), problem.rows)
        return torch.cat([image.flatten(1), start, problem.start], dim=1)

    def learning_rates(self, problem: RangeProblem) -> Tensor:
        pixels, latent = problem.x[0].numel(), problem.start.shape[1]
        image = self.image_rate * problem.eps / (math.sqrt(pixels) if self.norm == "l2" else 1.0)
        return torch.cat([problem.x.new_full((pixels,), image), problem.x.new_full((2 * latent,), self.rate)])

    def feasible(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> Tensor:
        image, z, r = self.parts(problem, point)
        return torch.cat([problem.projected(image, rows).flatten(1), z, r], dim=1)

    def parts(self, problem: RangeProblem, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split points [n, pixels + 2k] into images [n,C,H,W], and z and r [n,k]."""
        latent = problem.start.shape[1]
        image, z, r = point.split([point.shape[1] - 2 * latent, latent, latent], dim=1)
        return image.view(-1, *problem.x.shape[1:]), z, r

    def evaluate(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> ProblemValues:
        problem.target.count(rows, 2, 2)
        image, z, r = self.parts(problem, point)
        made = problem.generator(torch.cat([z, r]))
        own, rival = made.chunk(2)
        logits, rival_logits = problem.classifier(made).chunk(2)
        problem.target.record_logits(image, rows, logits)
        far = l2_distance(image, rival.detach())
        fooled = problem.wrong(rival_logits, rows) & (far <= problem.eta)
        excess = l2_distance(image, own) - torch.minimum(problem.distance_limit(image, rows), far)
        excess = torch.where(fooled, excess - excess.detach().clamp_min(0), excess)
        follows = l2_distance(image.detach(), rival)  # for r's descent: it adds a gradient, and no value
        loss = problem.margin_loss(logits / problem.unit[rows], rows, self.confidence) + follows - follows.detach()
        return ProblemValues(loss, excess, problem.wrong(logits, rows) | fooled)

    def adversarial(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> Tensor:
        return self.parts(problem, point)[0]

    def on_failed_confirmation(self, problem: RangeProblem, point: Tensor, rows: Tensor, failed: Tensor) -> None:
        z = problem.add_rivals(self.adversarial(problem, point[failed], rows[failed]), rows[failed])
        point[failed, -z.shape[1] :] = z
