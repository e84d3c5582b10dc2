"""A defense as an attack sees it: every pass through it counted, its parts handed out, its gradients as declared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from manifold_bench.attacks.batching import pad_to_block
from manifold_bench.attacks.contract import AttackableDefense, GradientMode, Network, Part, Verdict
from manifold_bench.attacks.view import CountedModule, View


class BudgetExhausted(RuntimeError):
    """The attack asked for more passes than the matrix file allows it."""


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
