"""TRADES (Zhang et al. 2019, "Theoretically Principled Trade-off between Robustness and Accuracy").

The paper is at https://arxiv.org/abs/1901.08573.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.defenses.pgd_training import PGDTraining, PGDTrainingSpec


@dataclass(frozen=True, kw_only=True)
class TRADESSpec(PGDTrainingSpec):
    """Parameters of `TRADES`.

    beta: weight β of the divergence (1 on MNIST in the authors' code; 1/λ in the paper's tables).

    steps: number of steps by which the training images are made (paper, MNIST: 40). step_size: length of a step by
    which the training images are made (paper, MNIST: 0.01).

    Other fields are as in the base class.
    """

    beta: Annotated[float, Ge(0)] = 1.0
    steps: Annotated[int, Ge(1)] = 6
    step_size: Annotated[float, Gt(0)] = 0.08
    epochs: Annotated[int, Ge(1)] = 4
    rate: Annotated[float, Gt(0)] = 2e-3
    mixed_precision: bool = True


class TRADES(PGDTraining):
    """TRADES: the classifier learns to be right, and to give the same answer everywhere within the ball.

    It minimises E [CE(C_θ(x), y) + β max_{‖δ‖ ≤ ε} KL(p_θ(x) ‖ p_θ(x + δ))] over θ, where p_θ is the softmax of C_θ.

    The inner ascent starts at a random point of the ball, as in `pgd-training`. The authors' starts at noise of
    standard deviation 0.001, where the divergence and its gradient are too small for an ascent in bfloat16.
    """

    paper = "zhang2019"
    Spec: ClassVar = TRADESSpec
    stage: ClassVar[str] = "trades"
    spec: TRADESSpec

    def loss(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        adversarial = self.perturbed(images, labels, ramp)
        clean = self.network(images).float().log_softmax(1)
        attacked = self.network(adversarial).float().log_softmax(1)
        # the gradient passes through both arguments of the divergence, as in the authors' code
        divergence = F.kl_div(attacked, clean, reduction="batchmean", log_target=True)
        return F.nll_loss(clean, labels) + self.spec.beta * divergence

    def objective(self, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Return KL(p(x) ‖ p(x′)) as a function of the logits of x′; labels play no part."""
        with torch.no_grad():
            clean = self.network(images).float().log_softmax(1)
        return lambda logits: F.kl_div(logits.float().log_softmax(1), clean, reduction="sum", log_target=True)
