"""An attack that optimises an image and a latent together, for defenses that project on a generator's range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.lagrangian import apart
from manifold_bench.attacks.latent import Look, RangeAttack, Scene


@dataclass(frozen=True, kw_only=True)
class Combined(RangeAttack):
    """Optimises the image and its latent together, against defenses that project.

    It minimises c·margin(C(G z)) + λ‖G z − (x + δ)‖ over (δ, z), with x + δ in the ball, by one Adam on both; a
    Lagrange multiplier sets c/λ.

    The defense takes the nearest image of the generator's range, so that G z has to be nearer to x + δ than every rival
    image. The constraint's excess is how much farther it is. Rivals are G z*(x); what the defense found for images that
    did not fool it; and G r, where the latent r starts at z*(x) and descends towards x + δ, as the defense's own search
    would. If the deployed defense denies a success, r continues from the latent that the defense found.

    image_rate: Adam's learning rate for δ, as a share of ε (in L2: of ε divided by the root of the number of pixels).
    """

    adapted_to = ("projection",)

    starts: Annotated[int, Ge(1)] = 3
    image_rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.1

    def passes(self) -> tuple[int, int]:
        return self.cost(2)

    def begin(self, scene: Scene, start: Tensor) -> Tensor:
        """Return the starting points [N, pixels + 2k]: image, z and r of each input."""
        image = scene.projected(blockwise(scene.generator, start), scene.all)
        return torch.cat([image.flatten(1), start, scene.start], dim=1)

    def rates(self, scene: Scene) -> Tensor:
        pixels, latent = scene.x[0].numel(), scene.start.shape[1]
        image = self.image_rate * scene.eps / (math.sqrt(pixels) if self.norm == "l2" else 1.0)
        return torch.cat([scene.x.new_full((pixels,), image), scene.x.new_full((2 * latent,), self.rate)])

    def settle(self, scene: Scene, point: Tensor, rows: Tensor) -> Tensor:
        image, z, r = self.parts(scene, point)
        return torch.cat([scene.projected(image, rows).flatten(1), z, r], dim=1)

    def parts(self, scene: Scene, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split points [n, pixels + 2k] into images [n,C,H,W], and z and r [n,k]."""
        latent = scene.start.shape[1]
        image, z, r = point.split([point.shape[1] - 2 * latent, latent, latent], dim=1)
        return image.view(-1, *scene.x.shape[1:]), z, r

    def look(self, scene: Scene, point: Tensor, rows: Tensor) -> Look:
        scene.target.count(rows, 2, 2)
        image, z, r = self.parts(scene, point)
        made = scene.generator(torch.cat([z, r]))
        own, rival = made.chunk(2)
        logits, rival_logits = scene.classifier(made).chunk(2)
        scene.target.scored(image, rows, logits)
        far = apart(image, rival.detach())
        fooled = scene.wrong(rival_logits, rows) & (far <= scene.eta)
        excess = apart(image, own) - torch.minimum(scene.room(image, rows), far)
        excess = torch.where(fooled, excess - excess.detach().clamp_min(0), excess)
        follows = apart(image.detach(), rival)  # for r's descent: it adds a gradient, and no value
        lacking = scene.lacking(logits / scene.unit[rows], rows, self.confidence) + follows - follows.detach()
        return Look(lacking, excess, scene.wrong(logits, rows) | fooled)

    def answer(self, scene: Scene, point: Tensor, rows: Tensor) -> Tensor:
        return self.parts(scene, point)[0]

    def denied(self, scene: Scene, point: Tensor, rows: Tensor, failed: Tensor) -> None:
        z = scene.add_rivals(self.answer(scene, point[failed], rows[failed]), rows[failed])
        point[failed, -z.shape[1] :] = z
