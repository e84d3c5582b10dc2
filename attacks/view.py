"""What an attack differentiates: the whole defense or its classifier, with gradients as declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from manifold_bench.attacks.batching import pad_to_block, padded
from manifold_bench.attacks.contract import Detecting, GradientMode, Optimising, Part
from manifold_bench.attacks.losses import reject_excess

if TYPE_CHECKING:
    from manifold_bench.attacks.target import Target


class View:
    """One way to look at a target: `logits`, and the gradient of a loss on them.

    `exact` says whether its answers are the deployed ones; where they are not (a part, a cheaper inner
    optimisation, a randomized defense) a success seen here has to be confirmed by `Target.verdict`.
    """

    def __init__(self, target: Target, part: Part, gradient: GradientMode, inner_steps: int, warm_start: bool) -> None:
        defense = target.defense
        self.target = target
        self.num_classes = target.num_classes
        self.part = part
        self.gradient_mode = gradient
        self.inner_steps = inner_steps
        self.warm_start = warm_start
        self.memory: Tensor | None = None
        if part == "classifier":
            if defense.classifier is None:
                raise ValueError("this defense has no classifier of its own to attack")
            self.rejects = False
        else:
            self.rejects = defense.rejects
            if gradient != "default" and gradient not in defense.gradient_modes:
                raise ValueError(f"gradients of this defense: {', '.join(defense.gradient_modes)}; not {gradient!r}")
        self.iterative = part == "defense" and defense.gradient_modes != ("default",)
        self.exact = part == "defense" and not self.iterative and not defense.randomized

    def logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """[N,C,H,W] → [N,K] or [N,K+1]; differentiable in x. Not counted: `answer` and `ascent` do that.

        rows: which inputs these are, None where that isn't known (then every inner optimisation is a full one).
        """
        defense = self.target.defense
        if self.part == "classifier":
            assert defense.classifier is not None
            return padded(defense.classifier)(x)
        return self._iterated(x, rows) if self.iterative else padded(defense)(x)

    def _iterated(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """A defense that optimises at inference: with `warm_start` from where the last call for these rows ended."""
        defense = self.target.defense
        mode = defense.gradient_modes[0] if self.gradient_mode == "default" else self.gradient_mode
        start = None
        if self.memory is not None and rows is not None:
            start = pad_to_block(self.memory[rows])
            if not start.isfinite().all():  # some of these rows have never been seen
                start = None
        logits, end = cast(Optimising, defense).attack_forward(pad_to_block(x), mode, start, self.inner_steps)
        if self.warm_start and rows is not None:
            if self.memory is None:
                self.memory = end.new_full((len(self.target.forwards), *end.shape[1:]), torch.nan)
            n = len(x)
            once = 1 if n > 1 and bool((rows == rows[0]).all()) else n  # many queries about one input: the first one's
            self.memory[rows[:once]] = end[:once]
        return logits[: len(x)]

    def answer(self, x: Tensor, rows: Tensor) -> Tensor:
        """Logits without gradient, counted as one forward pass."""
        self.target.count(rows, 1, 0)
        with torch.no_grad():
            return self.logits(x, rows)

    def ascent(self, x: Tensor, loss: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, loss [N] and its gradient [N,C,H,W] at x; counted as one forward and one backward pass.

        A gradient that isn't finite is no direction: it comes back as zero.
        """
        self.target.count(rows, 1, 1)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = self.logits(x, rows)
            values = loss(logits)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        return logits.detach(), values.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)

    def slopes(self, x: Tensor, scores: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, M scores of them [N,M] and the gradient of each [N,M,C,H,W]: one forward and M backward passes."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = self.logits(x, rows)
            values = scores(logits)
            count = values.shape[1]
            gradients = [
                torch.autograd.grad(values[:, k].sum(), x, retain_graph=k + 1 < count)[0] for k in range(count)
            ]
        self.target.count(rows, 1, count)
        return logits.detach(), values.detach(), torch.stack(gradients, dim=1).nan_to_num(0.0, 0.0, 0.0)

    def confirmed(self, x: Tensor, y: Tensor, rows: Tensor, claimed: Tensor, due: bool = True) -> Tensor:
        """Which claimed successes [n] stand: those that the full-strength defense confirms, asked only when due.

        An exact view's claims stand as they are; so do a part's, whose attacker knows no more.
        """
        if self.exact or self.part != "defense":
            return claimed
        confirmed = torch.zeros_like(claimed)
        if due and claimed.any():
            confirmed[claimed] = self.target.verdict(x[claimed], rows[claimed]).wrong(y[claimed])
        return confirmed

    def detection(self, x: Tensor, labels: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits as `logits` gives them, and the detectors' ratios [N,D]; both differentiable in x, not counted.

        A ratio is a detector's score over its threshold if the answer were `labels` [N]: > 1 rejects. A defense that
        names its `detectors` says them itself; of another that rejects, the one ratio follows from its reject score;
        without rejection D = 0.
        """
        defense = self.target.defense
        if self.part == "defense" and not self.iterative and defense.detectors:
            logits, ratios = cast(Detecting, defense).detection(pad_to_block(x), pad_to_block(labels))
            return logits[: len(x)], ratios[: len(x)]
        logits = self.logits(x, rows)
        if not self.rejects:
            return logits, logits.new_zeros(len(x), 0)
        return logits, reject_excess(logits, self.num_classes)[:, None] + 1

    def detected_ascent(
        self, x: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `ascent` for a loss of (x, logits, ratios): logits, ratios, loss [N], gradient [N,C,H,W]."""
        self.target.count(rows, 1, 1)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits, ratios = self.detection(x, labels, rows)
            values = loss(x, logits, ratios)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        return logits.detach(), ratios.detach(), values.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)


class CountedModule(nn.Module):
    """A view as a module that answers for certain rows of the batch.

    Called with as many inputs as rows it takes them for those rows, in order; where there is one row every input
    belongs to it. Called otherwise it can't know which they are: the passes are spread evenly over the rows.
    """

    def __init__(self, view: View, rows: Tensor) -> None:
        super().__init__()
        self.view = view
        self.rows = rows
        self.num_classes = view.num_classes
        self.rejects = view.rejects

    def forward(self, x: Tensor) -> Tensor:
        share = len(x) / max(len(self.rows), 1)
        self.view.target.count(self.rows, share, 0)
        known = self.rows.expand(len(x)) if len(self.rows) == 1 else self.rows
        logits = self.view.logits(x, known if len(x) == len(known) else None)
        if logits.requires_grad:
            logits.register_hook(lambda _: self.view.target.count(self.rows, 0, share))
        return logits
