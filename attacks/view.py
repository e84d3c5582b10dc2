"""The function that an attack differentiates: the whole defense or its classifier, with a chosen kind of gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from manifold_bench.attacks.batching import pad_to_block
from manifold_bench.attacks.contract import Detecting, GradientMode, Optimising, Part, verdict_of
from manifold_bench.attacks.losses import reject_excess, typical_temperature

if TYPE_CHECKING:
    from manifold_bench.attacks.target import Target


WITHOUT_GRADIENT = "wrap the step without a gradient with mb.bpda, or use an attack that needs none, as square"
"""What to do about outputs that have no gradient in the images."""


@dataclass(eq=False)
class View:
    """The differentiable form of a target, which attacks climb: its logits, and gradients of losses on them.

    part, gradient, inner_steps, warm_start: as in `attacks.base.ViewAttack`. memory: where the inner optimisation of
    each input ended, [n,...]; None before the first one.

    `exact` says whether the view gives the deployed defense's answers. A view of a part, of a cheaper inner
    optimisation or of a randomized defense does not: there a success needs the confirmation of `Target.verdict`.
    """

    target: Target
    part: Part
    gradient: GradientMode
    inner_steps: int
    warm_start: bool
    memory: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        defense = self.target.defense
        self.num_classes = defense.num_classes
        if self.part == "classifier" and defense.classifier is None:
            raise ValueError("this defense has no classifier of its own to attack")
        if self.part == "defense" and self.gradient not in ("default", *defense.gradient_modes):
            modes = ", ".join(defense.gradient_modes)
            raise ValueError(f"gradient: {self.gradient!r} is no gradient of this defense; give default, {modes}")
        self._scored = self.target.outputs(self.part)
        self.rejects = self.part == "defense" and defense.rejects
        self.iterative = self.part == "defense" and defense.gradient_modes != ("default",)
        self.exact = self.part == "defense" and not self.iterative and not defense.randomized

    def logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Return logits [N,K] or [N,K+1] for images x [N,C,H,W], differentiable in x; the pass is not counted.

        rows: index of each input in the batch; None where it is not known. Without it there is no warm start.
        """
        return self._iterated(x, rows) if self.iterative else self._scored(x)

    def _iterated(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Return the logits of a defense that optimises at inference, with a warm start where one is chosen."""
        defense = self.target.defense
        mode = defense.gradient_modes[0] if self.gradient == "default" else self.gradient
        start = None
        if self.memory is not None and rows is not None:
            start = pad_to_block(self.memory[rows])
            if not start.isfinite().all():  # some of these rows have no earlier optimum
                start = None
        logits, end = cast(Optimising, defense).attack_forward(pad_to_block(x), mode, start, self.inner_steps)
        if self.warm_start and rows is not None:
            if self.memory is None:
                self.memory = end.new_full((len(self.target.forwards), *end.shape[1:]), torch.nan)
            n = len(x)
            once = 1 if n > 1 and bool((rows == rows[0]).all()) else n  # of many queries about one input, the first one
            self.memory[rows[:once]] = end[:once]
        return self._scored.logits(logits[: len(x)], x)

    def answer(self, x: Tensor, rows: Tensor, fresh: bool = False) -> Tensor:
        """Return logits without gradient; counts one forward pass.

        fresh: whether to ignore `warm_start`, for attackers who cannot choose where an inner optimisation starts.
        """
        self.target.count(rows, 1, 0)
        with torch.no_grad():
            logits = self.logits(x, None if fresh else rows)
        self.record(x, rows, logits)
        return logits

    def record(self, x: Tensor, rows: Tensor, logits: Tensor) -> None:
        """Record the logits that the view gives for images x [n,C,H,W], the queries for the inputs `rows` [n]."""
        self.target.record_logits(x, rows, logits)
        if self.target.queries is not None and self.part == "defense" and not self.iterative:
            self.target.queries.record_answers(x, rows, verdict_of(logits, self.num_classes))

    def ascent(self, x: Tensor, loss: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits at x [N,C,H,W], the loss and its gradient [N,C,H,W]; counts a forward and a backward pass.

        loss: function of the logits → [N], or M losses at once [N,M]: then the gradients are [N,M,C,H,W] and cost M
        backward passes.
        """

        def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.logits(x, rows)
            return logits, loss(logits)

        (logits, values), gradient = self._differentiated(x, evaluate, rows)
        return logits, values, gradient

    def _differentiated(
        self, x: Tensor, evaluate: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the values of `evaluate` at x [N,C,H,W], detached, and the gradients of the last of them.

        evaluate: function of x whose first value are logits and whose last value are losses [N] or [N,M]. The gradients
        are [N,C,H,W] or [N,M,C,H,W]; entries that are not finite are replaced by 0.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            values = evaluate(x)
            losses = values[-1].sum(0, keepdim=values[-1].dim() == 1)
            if not losses.requires_grad:
                raise ValueError(f"the defense's outputs have no gradient; {WITHOUT_GRADIENT}")
            gradients = [torch.autograd.grad(loss, x, retain_graph=True, allow_unused=True)[0] for loss in losses]
            if any(gradient is None for gradient in gradients):
                raise ValueError(
                    "the defense's outputs have a gradient in something else, but none in the images (detach, "
                    f"torch.no_grad or NumPy before its last layers?); remove that, {WITHOUT_GRADIENT}"
                )
        self.target.count(rows, 1, len(losses))
        gradient = gradients[0] if values[-1].dim() == 1 else torch.stack(gradients, dim=1)
        self.record(x.detach(), rows, values[0].detach())
        self.target.record_gradients(rows, gradient)
        return tuple(value.detach() for value in values), gradient.nan_to_num(0.0, 0.0, 0.0)

    def confirmed(self, x: Tensor, y: Tensor, rows: Tensor, claimed: Tensor, due: bool = True) -> Tensor:
        """Return which of the claimed successes [n] of images x [n,C,H,W] are confirmed → [n] bool.

        The deployed defense confirms them, and only when `due`; otherwise none is confirmed. Claims of an exact view
        need no confirmation, and neither do those of a part, since its attacker knows nothing else.
        """
        if self.exact or self.part != "defense":
            return claimed
        confirmed = torch.zeros_like(claimed)
        if due and claimed.any():
            confirmed[claimed] = self.target.verdict(x[claimed], rows[claimed]).wrong(y[claimed])
        return confirmed

    def detection(self, x: Tensor, labels: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits and the detectors' ratios [N,D] for x [N,C,H,W], differentiable in x; nothing is counted.

        A ratio is a detector's score over its threshold for the answer `labels` [N]; a ratio > 1 rejects. A defense
        that names its `detectors` computes their ratios. For any other defense that rejects, D = 1 and the ratio is the
        reject excess + 1. For a defense that never rejects, D = 0.
        """
        defense = self.target.defense
        if self.part == "defense" and not self.iterative and defense.detectors:
            logits, ratios = cast(Detecting, defense).detection(pad_to_block(x), pad_to_block(labels))
            return self._scored.logits(logits[: len(x)], x), ratios[: len(x)].to(x.dtype)
        logits = self.logits(x, rows)
        if not self.rejects:
            return logits, logits.new_zeros(len(x), 0)
        return logits, reject_excess(logits, self.num_classes)[:, None] + 1

    def detected_ascent(
        self, x: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits [N,K] or [N,K+1], ratios [N,D], loss [N] and its gradient [N,C,H,W] at images x [N,C,H,W].

        It counts a forward and a backward pass for the inputs `rows` [N]. loss: function of (x, logits, ratios) → [N];
        the ratios are those of `detection` for the answer `labels` [N].
        """

        def evaluate(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, ratios = self.detection(x, labels, rows)
            return logits, ratios, loss(x, logits, ratios)

        (logits, ratios, values), gradient = self._differentiated(x, evaluate, rows)
        return logits, ratios, values, gradient


class CountedModule(nn.Module):
    """A view as a torch module, for attacks of other libraries; it counts passes for the inputs `rows` of the batch.

    A batch of as many images as rows belongs to those rows, in order; if there is one row, every image belongs to it.
    For a batch of any other size the module cannot know which input an image belongs to: it spreads the passes evenly
    over the rows, and records each query as one about the nearest input. The logits are divided by twice their
    `typical_temperature`.
    """

    def __init__(self, view: View, rows: Tensor) -> None:
        super().__init__()
        self.view = view
        self.rows = rows
        self.num_classes = view.num_classes
        self.rejects = view.rejects

    def forward(self, x: Tensor) -> Tensor:
        target, rows = self.view.target, self.rows
        share = len(x) / max(len(rows), 1)
        target.count(rows, share, 0)
        known = rows.expand(len(x)) if len(rows) == 1 else rows
        x = x.view_as(x)  # so that the hook below belongs to this call alone
        logits = self.view.logits(x, known if len(x) == len(known) else None)
        if target.queries is not None:
            about = known if len(x) == len(known) else rows[target.queries.only(rows).about(x.detach())]
            self.view.record(x.detach(), about, logits.detach())
            if x.requires_grad:
                x.register_hook(partial(target.queries.record_gradients, about))
        if logits.requires_grad:
            logits.register_hook(lambda _: target.count(rows, 0, share))
        # Cross-entropies of libraries underflow where logits are large; at this temperature 1 − p_y has digits left
        temperature = 2 * typical_temperature(logits, self.num_classes)[:, None]
        return logits / torch.where(temperature > 1e-20, temperature, 1.0)
