"""Outputs of any defense in the one form that attacks compute with: logits without NaN, in the inputs' precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.attacks.batching import blockwise, padded
from manifold_bench.attacks.scales import UNEVEN, Unit, in_units, reject_unit, spreads

Form = Literal["logits", "likelihoods", "sigmoids", "tanh", "log-sigmoids"]
"""What outputs are: `likelihoods` are probabilities too, normalised or not; `sigmoids`, their logarithms and `tanh`, a
hyperbolic tangent of each output, are one-versus-rest."""

SUM = 1e-2
"""Largest difference between 1 and the sum of probabilities: bfloat16 keeps eight bits of each."""

PROBES, POINTS = 8, 9
"""Number of images that decide the form, and of points on the way from one to another."""

MORE_LINEAR = 0.5
"""Largest share of the outputs' own deviation from a straight line that logarithms or log-odds may have."""

ALMOST = 0.9
"""Least value of a hyperbolic tangent, and of a sigmoid, of which its class is almost sure."""

RARE = -3.0
"""Largest logarithm of a sigmoid of which its class is almost surely none."""

NEGLIGIBLE = 0.02
"""Deviation from a straight line that is none."""

MASKED = 10.0
"""Least distance from a masked class' output to all others, as a multiple of the range of these."""


class Scored:
    """A function images → outputs [N,K] or [N,K+1], turned into one that returns logits (`logits_of`).

    It is computed on whole blocks. Where outputs vanish, or sigmoids are rounded to 1, a copy of the function in double
    precision computes them again: double precision reaches down to 1e-308.

    The form of the outputs is decided once, so that all losses and values of an attack have one scale. It is a property
    of the function: likelihoods, if all rows are probabilities, and otherwise the one of the forms that suit the range
    of the outputs (`forms_of`), or logits, in which the margin between two classes changes most steadily on the
    straight way from an image of one to an image of the other. The margin of logits does. Likelihoods, however, vanish
    between the two images, and sigmoids jump; an attack on such values would follow the gradient of one class alone.

    The unit of the outputs is decided once, too: where their spread differs from image to image by more than the factor
    `UNEVEN`, and the margin changes much more steadily in units of the spread, these are the units (`attacks.scales`).

    So are the classes that are masked by a very low output, such as −1e9 (`masked_classes`): their logits are −∞.

    clean: images [M,C,H,W] that decide; without them, those of the first call do.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], classes: int, clean: Tensor | None = None) -> None:
        self.function, self.classes, self.clean = function, classes, clean
        self.form: Form | None = None
        self.unit: Unit = "given"
        self.masked: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        outputs = padded(self._outputs)(x)
        logits = self.logits(outputs, x)
        real = outputs[:, : self.classes]
        tiny = math.sqrt(torch.finfo(real.dtype).tiny)  # so that a constant factor cannot make the gradient overflow
        if self.form == "tanh":
            lost = (real.abs() == 1).any(1)
        elif self.form == "log-sigmoids":
            lost = (real == 0).any(1)
        elif self.form == "logits":
            lost = (self.unit != "given") & ~((spreads(real) > tiny) & real.isfinite().any(1))
        else:
            lost = ((real < tiny) | ((real == 1) & (self.form == "sigmoids"))).any(1)
        if not lost.any() or x.dtype == torch.float64:
            return logits
        finer = self._precisely(x)
        return logits if finer is None else torch.where(lost[:, None], self.logits(finer, x), logits)

    def logits(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Return logits [N,K] or [N,K+1], of x's dtype, for the function's outputs on images x [N,C,H,W].

        They are a differentiable copy of the outputs, which have the same shape. The first call also decides `form`,
        `unit` and `masked`. Raises ValueError if the outputs contain NaN and x does not.
        """
        if outputs.isnan().any() and not x.isnan().any():
            raise ValueError("the defense returned NaN for an image")
        if self.form is None:
            clean = x.detach() if self.clean is None else self.clean
            self.form = self.chosen_form(clean) if forms_of(outputs[:, : self.classes]) else "logits"
            self._measure(clean)
        return logits_of(self._masking(outputs), x.dtype, self.form, self.classes, self.unit)

    def _masking(self, outputs: Tensor) -> Tensor:
        """Return outputs [...,K] or [...,K+1] with −∞ for the masked classes."""
        return outputs if self.masked is None else outputs.masked_fill(self.masked[: outputs.shape[-1]], -torch.inf)

    def _outputs(self, x: Tensor) -> Tensor:
        """Return the outputs for a copy of images as the function gives them, before `Defense.__call__` rounds them."""
        return nn.Module.__call__(self.function, x) if isinstance(self.function, nn.Module) else self.function(x)

    @cached_property
    def _precise(self) -> nn.Module | None:
        """A copy of the function in double precision; None if it is no module, or cannot be copied."""
        try:
            return deepcopy(self.function).double() if isinstance(self.function, nn.Module) else None
        except (RuntimeError, TypeError):
            return None

    def _precisely(self, x: Tensor) -> Tensor | None:
        """Return the outputs for images x in double precision; None if the function mixes float types."""
        try:
            return None if self._precise is None else padded(self._precise)(x.double())
        except (RuntimeError, TypeError):
            self._precise = None
            return None

    @torch.no_grad()
    def chosen_form(self, x: Tensor) -> Form:
        """Return the form of the outputs for images x [M,C,H,W], of which it takes `PROBES`."""
        x = probes(x)
        outputs = blockwise(self._outputs, x)
        forms = forms_of(outputs[:, : self.classes])
        if forms and probabilities(outputs, self.classes).all():
            return "likelihoods"
        with torch.random.fork_rng([x.device] if x.is_cuda else [], enabled="likelihoods" not in forms):
            ways = self._ways(x, outputs) if forms else None
        return "logits" if ways is None else most_linear_form(*ways)

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        """Decide `masked` and `unit` of outputs whose form is decided, by `PROBES` of the images x [M,C,H,W].

        Random numbers that the function draws here are drawn again by the next call, so that they are the same as
        without this one.
        """
        assert self.form is not None
        x = probes(x)
        if len(x) < 2:  # spreads of one image tell nothing
            return
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            outputs = blockwise(self._outputs, x)
            masked = masked_classes(outputs[:, : self.classes])
            if masked.any():
                self.masked = F.pad(masked, (0, 1))  # a reject score is no class
            logits = logits_of(self._masking(outputs), torch.float64, self.form, self.classes)
            each = spreads(logits[:, : self.classes])
            if not each.amax() > UNEVEN * each.amin():
                return
            ways = self._ways(x, outputs)
        if ways is None:
            return
        between, *ends = ways
        between = self._masking(between)
        seen = logits_of(between.flatten(0, 1), between.dtype, self.form, self.classes)
        plain, steady = (
            nonlinearity(z.unflatten(0, between.shape[:2]), *ends)
            for z in (seen, in_units(seen, self.classes, "classes"))
        )
        if is_more_linear(steady, plain):
            self.unit = reject_unit(logits, self.classes)

    def _ways(self, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the outputs of the classes at `POINTS` on the ways between images x, and the classes at their ends.

        The ways [P] are those between images to which the function gives different answers: outputs [T,P,K] float64,
        and labels [P] and [P]. None where there are no such images, or the function fails between them.
        """
        labels = outputs[:, : self.classes].argmax(1)
        one, other = (labels[:, None] != labels).triu().nonzero(as_tuple=True)
        if not len(one):  # images of one class tell nothing of a margin
            return None
        way = torch.linspace(0, 1, POINTS).to(x)[:, None, None, None, None]
        between = torch.lerp(x[one], x[other], way).flatten(0, 1)
        self._precisely(x)
        kind = torch.float64 if self._precise else x.dtype
        try:
            outputs = blockwise(self._precise or self._outputs, between.to(kind))
        except Exception:  # it may fail on other images than clean ones; an attack that meets these will say so
            return None
        outputs = outputs[:, : self.classes].double().unflatten(0, (POINTS, -1))
        return outputs, labels[one], labels[other]


def probes(x: Tensor) -> Tensor:
    """Return `PROBES` of the images x [M,C,H,W], or all where there are fewer."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:PROBES].to(x.device)]


def masked_classes(outputs: Tensor) -> Tensor:
    """Return which classes are masked by a very low output, given outputs [M,K] for M images → [K] bool.

    A masked class has outputs below those of all other classes on all images, by at least `MASKED` times the range of
    the other classes' outputs. None is masked by images that all have the same answer: two classes that are nearly tied
    on all of them have no range. An output of −∞ masks by itself.
    """
    values, classes = outputs.detach().double(), outputs.shape[1]
    masked = torch.zeros(classes, dtype=torch.bool, device=values.device)
    if len(values.argmax(1).unique()) < 2:
        return masked
    order = values.amax(0).argsort(descending=True)
    most, least = values.amax(0)[order], values.amin(0)[order].cummin(0).values
    for kept in range(2, classes):
        span = most[0] - least[kept - 1]
        if span > 0 and least[kept - 1] - most[kept] > MASKED * span:
            masked[order[kept:]] = True
            break
    return masked


def forms_of(outputs: Tensor) -> list[Form]:
    """Return the forms other than logits that outputs [N,K] of the classes may have, by their range.

    Logarithms of probabilities are logits of the same classes, and have no other form. Outputs below 0 are one-versus-
    rest where most images have a class almost for sure; small logits are in the same range.
    """
    values = outputs.detach().double()
    if (values >= 0).all():
        return ["likelihoods", "sigmoids"] if (values <= 1).all() else ["likelihoods"]
    forms: list[Form] = []
    if (values.abs() <= 1).all() and values.amax(1).median() > ALMOST:
        forms.append("tanh")
    # outputs in [-1, 0] may be sigmoids minus 1, whose gradients are nearly those of the logarithms of sigmoids
    least = -ALMOST if (values >= -1).all() else RARE
    sure = values.amax(1).median() > ALMOST - 1 and values.amin(1).median() < least
    if (values <= 0).all() and sure and (values.logsumexp(1).abs() > SUM).any():
        forms.append("log-sigmoids")
    return forms


def logits_of(outputs: Tensor, kind: torch.dtype, form: Form, classes: int, unit: Unit = "given") -> Tensor:
    """Return outputs [N,K] or [N,K+1] of any float type as logits of that type and unit; a copy, differentiable.

    Likelihoods become their logarithms, and sigmoids and their like their log-odds, because the gradients of tiny ones,
    and of sigmoids near 1, vanish. The order of the outputs stays the same.
    """
    # a sigmoid that rounds to 1 is nearer to 1 than the last number before it
    doubt = torch.finfo(outputs.dtype).eps / 4
    if form == "likelihoods":
        outputs = log(outputs)
    elif form == "sigmoids":
        outputs = log(outputs) - (1 - outputs.double()).clamp_min(doubt).log()
    elif form == "tanh":
        outputs = outputs.double()
        outputs = (1 + outputs).clamp_min(doubt).log() - (1 - outputs).clamp_min(doubt).log()
    elif form == "log-sigmoids":
        outputs = outputs.double()
        outputs = outputs - (-outputs.expm1()).clamp_min(doubt).log()
    return cast_keeping_argmax(in_units(outputs, classes, unit), kind, classes).clone()


def most_linear_form(outputs: Tensor, first: Tensor, second: Tensor) -> Form:
    """Return the form in which margins between two classes change most steadily; logits, where that is much the same.

    outputs: float64 [T,P,K] at T points at equal distances on P ways. first, second: classes of the two ends [P].
    """
    flat, (points, ways, classes) = outputs.flatten(0, 1), outputs.shape
    forms: list[Form] = ["logits", *forms_of(flat)]
    logits = {form: logits_of(flat, outputs.dtype, form, classes).view(points, ways, classes) for form in forms}
    nonlinear = {form: nonlinearity(z, first, second) for form, z in logits.items()}
    best = min(nonlinear, key=lambda form: nonlinear[form])
    return best if is_more_linear(nonlinear[best], nonlinear["logits"]) else "logits"


def nonlinearity(logits: Tensor, first: Tensor, second: Tensor) -> float:
    """Return the share of the margins' variance that a straight line does not explain, averaged over P lines.

    The lines lead from one image to another. logits: float64 [T,P,K] at T points at equal distances on each. first,
    second: classes of the two ends [P].
    """
    at = torch.linspace(-1, 1, len(logits)).to(logits)[:, None]
    margins = logits.gather(2, first.expand(len(at), -1)[..., None]) - logits.gather(
        2, second.expand(len(at), -1)[..., None]
    )
    moved = margins[..., 0] - margins[..., 0].mean(0)
    rest = moved - (moved * at).sum(0) / at.square().sum() * at
    return float((rest.square().sum(0) / moved.square().sum(0)).nanmean())


def is_more_linear(nonlinearity: float, before: float) -> bool:
    """Return whether margins of that nonlinearity are much straighter than others, and those are not straight."""
    return nonlinearity < MORE_LINEAR * before and before > NEGLIGIBLE


def cast_keeping_argmax(outputs: Tensor, kind: torch.dtype, classes: int) -> Tensor:
    """Return outputs [N,K] or [N,K+1] in another float type, so that the largest one stays the largest; differentiable.

    Rows that the type cannot tell apart (1e9 + 1 and 1e9 + 2, or 1e40 and 2e40, as float32) lose their largest output
    first, and are divided by a power of two where they still overflow or vanish. Probabilities are only rounded, unless
    the two largest become equal.
    """
    narrow = outputs.to(kind)
    if torch.finfo(outputs.dtype).bits <= torch.finfo(kind).bits:
        return narrow
    values = outputs.detach()
    tied = _tied(values.topk(min(2, values.shape[1]), dim=1).values.flip(1), kind)
    lost = _lost(values, kind) & (tied | ~probabilities(values, classes))
    if not lost.any():
        return narrow
    top, spread = _range(values)
    shifted = outputs - top
    exponents = 64 * (spread.clamp_max(torch.finfo(values.dtype).max).frexp().exponent / 64).round().clamp_min(-15)
    factor = torch.full_like(values[:, :1], 2.0) ** -exponents  # in steps, so that neighbours get the same one
    scaled = outputs * factor - top * factor
    apart = (scaled.detach().to(kind) == 0).sum(1) == (values == top).sum(1)
    scales = _lost(shifted.detach(), kind) & apart
    return torch.where(lost[:, None], torch.where(scales[:, None], scaled, shifted).to(kind), narrow)


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest finite value of each row, and its distance to the smallest one, both [N,1]."""
    finite = values.isfinite()
    top = values.masked_fill(~finite, -torch.inf).amax(1, keepdim=True)
    return top, top - values.masked_fill(~finite, torch.inf).amin(1, keepdim=True)


def _lost(values: Tensor, kind: torch.dtype) -> Tensor:
    """Return in which rows of values a float type cannot hold the order, or less than half of its digits, [N] bool."""
    tied = _tied(values.sort(1).values, kind)
    spread = _range(values)[1][:, 0]
    largest = values.masked_fill(~values.isfinite(), 0).abs().amax(1)
    limits = torch.finfo(kind)
    coarse = (spread < largest * math.sqrt(limits.eps)) | (spread < limits.tiny / limits.eps)
    return tied | ((spread > 0) & coarse)


def _tied(ordered: Tensor, kind: torch.dtype) -> Tensor:
    """Return in which rows of values, smallest first, a float type makes different neighbours equal, [N] bool."""
    narrow = ordered.to(kind)
    return ((ordered[:, 1:] > ordered[:, :-1]) & (narrow[:, 1:] == narrow[:, :-1])).any(1)


def probabilities(outputs: Tensor, classes: int) -> Tensor:
    """Return which rows of outputs are probabilities, [N] bool: not negative, of sum 1 with or without output K+1."""
    values = outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
    totals = torch.stack([values[:, :classes].sum(1), values.sum(1)])
    return (values[:, :classes] >= 0).all(1) & ((totals - 1).abs() <= SUM).any(0)


def log(likelihoods: Tensor) -> Tensor:
    """Return the natural logarithm in float64; at 0, where its gradient is 0, that of half the least positive number.

    The gradient is at most one over the least normal number, so that the type of the likelihoods can hold it.
    """
    value, kind = likelihoods.detach().double(), torch.finfo(likelihoods.dtype)
    slope = torch.where(value > 0, 1 / value.clamp_min(kind.tiny), 0.0)
    least = kind.tiny * kind.eps
    level = torch.where(value > 0, value.clamp_min(least).log(), math.log(least) - math.log(2))
    return level + slope * (likelihoods - likelihoods.detach())
