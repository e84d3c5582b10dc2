"""A defense as an attack sees it: every pass through it counted, its parts handed out, its gradients as declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

BLOCK = 8
"""Batches are padded to a multiple of this. Matrix kernels round differently for ragged row counts; with whole
blocks an input's logits and gradients are the same bits whatever batch it is in."""

MOST_ROWS, MOST_VALUES = 256, 256 * 28 * 28
"""Of a batch: inputs, and pixel values of all of them. A GPU has room for 16 times as many values."""

Part = Literal["defense", "classifier"]
Network = Literal["encoder", "decoder", "generator", "inverter", "classifier"]
GradientMode = Literal["default", "identity", "unrolled", "gauss-newton", "implicit"]


@dataclass(frozen=True)
class Verdict:
    """The deployed answer. labels: [N] int64 in 0..K−1 (also where rejected); rejected: [N] bool.

    scores: [N] float, how suspicious each input looks, larger is more so; for a defense that rejects, > 0 exactly
    where it does (up to rounding). None where a defense doesn't say: no risk–coverage figure is made of it then.
    """

    labels: Tensor
    rejected: Tensor
    scores: Tensor | None = None

    def wrong(self, y: Tensor) -> Tensor:
        """Accepted and not y → [N] bool."""
        return ~self.rejected & (self.labels != y)


class AttackableDefense(Protocol):
    """What a Target needs to know of a defense; `defenses.base.Defense` fulfils it.

    `attack_forward` is asked for only where `gradient_modes` names others than "default".
    """

    num_classes: int
    classifier: Any  # a module, or None where the defense has no separable one

    @property
    def detectors(self) -> tuple[str, ...]: ...

    @property
    def rejects(self) -> bool: ...

    @property
    def randomized(self) -> bool: ...

    @property
    def gradient_modes(self) -> tuple[str, ...]: ...

    @property
    def inference_steps(self) -> int: ...

    @property
    def attacked_steps(self) -> int: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def verdict(self, x: Tensor) -> Verdict: ...


class BudgetExhausted(RuntimeError):
    """The attack asked for more passes than the matrix file allows it."""


def batch_rows(x: Tensor) -> int:
    """How many inputs like those of x [N,...] are handled at once: whole blocks, fewer of large images.

    So memory is bounded, however many inputs there are and however large they are. It follows from the images' shape
    and the kind of device alone, not from what is free: a randomized defense draws by the batch.
    """
    values = MOST_VALUES * (16 if x.is_cuda else 1)
    return max(BLOCK, min(MOST_ROWS, values // x.shape[1:].numel()) // BLOCK * BLOCK)


def pad_to_block(x: Tensor) -> Tensor:
    """x [N,...] with its last row repeated up to a multiple of BLOCK."""
    missing = -len(x) % BLOCK
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


def blockwise(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int | None = None) -> Tensor:
    """function(x) [N,...] in padded batches, without gradient; the same bits for an input in any batch.

    batch_size: inputs in each; None: `batch_rows`.
    """
    with torch.no_grad():
        return torch.cat([function(pad_to_block(part))[: len(part)] for part in x.split(batch_size or batch_rows(x))])


class Notes:
    """What an attack keeps of each input, to know it again at the next ε: tensors [inputs,…] by name."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self._kept: dict[str, Tensor] = {}

    def keep(self, name: str, rows: Tensor, values: Tensor) -> None:
        """values: [n,…] of those rows."""
        if name not in self._kept:
            self._kept[name] = values.new_full((self.inputs, *values.shape[1:]), torch.nan)
        self._kept[name][rows] = values

    def recall(self, name: str, rows: Tensor, like: Tensor) -> Tensor:
        """The values of those rows, shaped [n,…] as `like` is; NaN where none are kept."""
        kept = self._kept.get(name)
        return torch.full_like(like, torch.nan) if kept is None else kept[rows]


class Target:
    """A defense under attack, for one batch of n inputs.

    `forwards` and `backwards` [n] count passes per input. An attack addresses inputs by `rows` (indices into the
    batch it was given), so those that leave the batch stop counting.

    aims: [n] the class that each input is to be taken for, for an attack whose `aims` asks for that; else None.
    held_out: gives images [M,C,H,W] and labels [M] that the attacker owns: of the same kind, never the test data.
    counted: called with this target whenever it has counted passes, for whoever wants to know how far the attack is.
    source: gives another classifier, images → logits [N,K], that the attacker owns.
    notes: of the inputs that this batch is some of; numbers: [n] which of them. By default it has its own.
    """

    def __init__(
        self,
        defense: AttackableDefense,
        n: int,
        *,
        max_forwards: int | None = None,
        aims: Tensor | None = None,
        held_out: Callable[[], tuple[Tensor, Tensor]] | None = None,
        counted: Callable[[Target], None] = lambda target: None,
        source: Callable[[], nn.Module] | None = None,
        notes: Notes | None = None,
        numbers: Tensor | None = None,
    ) -> None:
        self.defense = defense
        self.num_classes = defense.num_classes
        self.forwards = torch.zeros(n, dtype=torch.float64)
        self.backwards = torch.zeros(n, dtype=torch.float64)
        self.max_forwards = max_forwards
        self.aims = aims
        self._held_out = held_out
        self._counted = counted
        self._source = source
        self._notes = notes or Notes(n)
        self._numbers = torch.arange(n) if numbers is None else numbers

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The attacker's own labelled images; raises ValueError where there are none."""
        if self._held_out is None:
            raise ValueError("this attack needs held-out images of the data set, and was handed none")
        return self._held_out()

    def source(self) -> nn.Module:
        """The attacker's own classifier; raises ValueError where there is none."""
        if self._source is None:
            raise ValueError("this attack needs a classifier of its own, and was handed none")
        return self._source()

    def network(self, name: Network) -> Callable[[Tensor], Tensor]:
        """A part of the defense: images → latents or logits, or latents → images; its passes are the caller's to count.

        Raises ValueError where the defense has no such part; `unsuited` is the place to ask before.
        """
        part = getattr(self.defense, name, None)
        if part is None:
            raise ValueError(f"this defense has no {name}")
        return lambda values: part(pad_to_block(values))[: len(values)]

    def count(self, rows: Tensor, forwards: float, backwards: float) -> None:
        """Adds passes to each of those rows."""
        rows = rows.cpu()
        self.forwards[rows] += forwards
        self.backwards[rows] += backwards
        if self.max_forwards is not None and len(self.forwards) and self.forwards.max() > self.max_forwards:
            raise BudgetExhausted(f"more than {self.max_forwards} forward passes for one input")
        self._counted(self)

    def verdict(self, x: Tensor, rows: Tensor) -> Verdict:
        """The full-strength answer for those rows, counted as one forward pass. x: [N,C,H,W]."""
        self.count(rows, 1, 0)
        with torch.no_grad():
            answer = self.defense.verdict(pad_to_block(x))
        scores = None if answer.scores is None else answer.scores[: len(x)]
        return Verdict(answer.labels[: len(x)], answer.rejected[: len(x)], scores)

    def keep(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Notes values [n,…] of those rows, for this attack at a larger ε."""
        self._notes.keep(name, self._numbers.to(rows.device)[rows], values)

    def recall(self, name: str, like: Tensor) -> Tensor:
        """What this attack noted of its inputs at a smaller ε [N,…], shaped as `like` is; NaN where nothing."""
        return self._notes.recall(name, self._numbers, like)

    def only(self, rows: Tensor) -> Target:
        """The same target for those of its inputs alone; what is counted there is counted here."""
        return Rows(self, rows)

    def view(
        self,
        part: Part = "defense",
        gradient: GradientMode = "default",
        inner_steps: int = 20,
        warm_start: bool = False,
    ) -> View:
        """What the attack differentiates: the whole defense, or its classifier alone (an oblivious attacker)."""
        return View(self, part, gradient, inner_steps, warm_start)

    def module(self, view: View, rows: Tensor) -> nn.Module:
        """A view as a plain module of [N,C,H,W] → logits, for attacks of other libraries on those rows."""
        return CountedModule(view, rows)


class Rows(Target):
    """Some rows of another target, for an attack that hands its survivors to the next."""

    def __init__(self, whole: Target, rows: Tensor) -> None:
        super().__init__(
            whole.defense, len(rows), aims=None if whole.aims is None else whole.aims[rows], held_out=whole.held_out,
            notes=whole._notes, numbers=whole._numbers.to(rows.device)[rows],
        )  # fmt: skip
        self.whole, self.rows = whole, rows

    def count(self, rows: Tensor, forwards: float, backwards: float) -> None:
        super().count(rows, forwards, backwards)
        self.whole.count(self.rows[rows], forwards, backwards)


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
        padded = pad_to_block(x)
        if self.part == "classifier":
            return self.target.defense.classifier(padded)[: len(x)]
        if not self.iterative:
            return self.target.defense(padded)[: len(x)]
        return self._iterated(padded, len(x), rows)

    def _iterated(self, padded: Tensor, n: int, rows: Tensor | None) -> Tensor:
        """A defense that optimises at inference: with `warm_start` from where the last call for these rows ended."""
        defense: Any = self.target.defense
        mode = defense.gradient_modes[0] if self.gradient_mode == "default" else self.gradient_mode
        start = None
        if self.memory is not None and rows is not None:
            start = pad_to_block(self.memory[rows])
            if not start.isfinite().all():  # some of these rows have never been seen
                start = None
        logits, end = defense.attack_forward(padded, mode, start, self.inner_steps)
        if self.warm_start and rows is not None:
            if self.memory is None:
                self.memory = end.new_full((len(self.target.forwards), *end.shape[1:]), torch.nan)
            once = 1 if n > 1 and bool((rows == rows[0]).all()) else n  # many queries about one input: the first one's
            self.memory[rows[:once]] = end[:once]
        return logits[:n]

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
        stands = torch.zeros_like(claimed)
        if due and claimed.any():
            stands[claimed] = self.target.verdict(x[claimed], rows[claimed]).wrong(y[claimed])
        return stands

    def detection(self, x: Tensor, labels: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits as `logits` gives them, and the detectors' ratios [N,D]; both differentiable in x, not counted.

        A ratio is a detector's score over its threshold if the answer were `labels` [N]: > 1 rejects. A defense that
        names its `detectors` says them itself; of another that rejects, the one ratio follows from its reject score;
        without rejection D = 0.
        """
        defense: Any = self.target.defense
        if self.part == "defense" and not self.iterative and defense.detectors:
            logits, ratios = defense.detection(pad_to_block(x), pad_to_block(labels))
            return logits[: len(x)], ratios[: len(x)]
        logits = self.logits(x, rows)
        if not self.rejects:
            return logits, logits.new_zeros(len(x), 0)
        excess = logits[:, self.num_classes] - logits[:, : self.num_classes].amax(1)
        return logits, excess[:, None] + 1

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
