"""What an attack works on: a `Target`, which counts every pass through the defense, and the attacker's own data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from manifold_bench.attacks.batching import pad_to_block
from manifold_bench.attacks.contract import AttackableDefense, GradientMode, Part, Verdict
from manifold_bench.attacks.outputs import Scored
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.view import View


class BudgetSpent(Exception):
    """No input is left that an attack could still gain from: each has spent its `max_passes` or is beaten."""


@dataclass(frozen=True, eq=False)
class Attacker:
    """What the attacker of a batch of n inputs has besides access to the defense, and its budget of passes.

    aims: target class of each input, [n]; None where the attack gets none (`Attack.aims`).
    held_out: function that returns images [M,C,H,W] and labels [M] from the same data set, never test data.
    source: function that returns the attacker's own classifier, images → logits [N,K].
    max_passes: largest number of forward plus backward passes for each input; None: no limit.
    clean: images [M,C,H,W] that decide the form of the outputs (`attacks.outputs.Scored`), the same for all batches.
    outputs: the outputs of each part of the defense that was attacked before, whose form is decided.
    """

    aims: Tensor | None = None
    held_out: Callable[[], tuple[Tensor, Tensor]] | None = None
    source: Callable[[], nn.Module] | None = None
    max_passes: int | None = None
    clean: Tensor | None = None
    outputs: dict[Part, Scored] = field(default_factory=dict)


class Target:
    """A defense under attack, for one batch of n inputs.

    `forwards` and `backwards` [n] count passes per input. An attack names inputs by `rows`, their indices in its batch,
    so that inputs which leave the batch cost no more passes. An input whose next pass would exceed the attacker's
    `max_passes` has spent its budget: passes are no longer counted for it, and queries no longer recorded.

    on_count: function that is called with this target after every counted pass, to report progress. queries: recorder
    of every query about the inputs; None: queries are not recorded.
    """

    def __init__(
        self,
        defense: AttackableDefense,
        n: int,
        attacker: Attacker | None = None,
        on_count: Callable[[Target], None] = lambda target: None,
        queries: Queries | None = None,
    ) -> None:
        self.defense = defense
        self.num_classes = defense.num_classes
        self.forwards = torch.zeros(n, dtype=torch.float64)
        self.backwards = torch.zeros(n, dtype=torch.float64)
        self.spent = torch.zeros(n, dtype=torch.bool)
        self.attacker = attacker or Attacker()
        self.aims = self.attacker.aims
        self._on_count = on_count
        self.queries = queries

    def outputs(self, part: Part) -> Scored:
        """Return a function that computes logits of the whole defense or of its classifier; passes are not counted."""
        known = self.attacker.outputs
        if part not in known:
            attacked = self.defense if part == "defense" else self.defense.classifier
            assert attacked is not None
            known[part] = Scored(attacked, self.num_classes, self.attacker.clean)
        return known[part]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return the attacker's own images [M,C,H,W] and labels [M]; raises ValueError where there are none."""
        if self.attacker.held_out is None:
            raise ValueError("this attack needs held-out images of the data set, and there are none")
        return self.attacker.held_out()

    def source(self) -> nn.Module:
        """Return the attacker's own classifier; raises ValueError where there is none."""
        if self.attacker.source is None:
            raise ValueError("this attack needs a classifier of its own, and there is none")
        return self.attacker.source()

    def count(self, rows: Tensor, forwards: float, backwards: float) -> None:
        """Add that many passes to each of those rows that has not spent its budget; raises BudgetSpent."""
        rows = rows.cpu()
        if self.attacker.max_passes is not None:
            self._spend(rows, forwards + backwards, self.attacker.max_passes)
            rows = rows[~self.spent[rows]]
        self.forwards[rows] += forwards
        self.backwards[rows] += backwards
        self._on_count(self)

    def _spend(self, rows: Tensor, passes: float, most: int) -> None:
        """Mark the rows that cannot pay for that many passes more; raises BudgetSpent if no other row needs any."""
        self.spent[rows] |= (self.forwards + self.backwards)[rows] + passes > most
        done = self.spent
        if self.queries is not None:
            self.queries.frozen.copy_(self.spent)
            done = done | self.queries.solved.cpu()
        if self.spent[rows].all() and done.all():
            raise BudgetSpent(f"more than {most} passes for each input that is left")

    def verdict(self, x: Tensor, rows: Tensor) -> Verdict:
        """Return the deployed defense's answer to images x [n,C,H,W] of those rows; it counts as one forward pass."""
        self.count(rows, 1, 0)
        with torch.no_grad():
            answer = self.defense.verdict(pad_to_block(x))
        scores = None if answer.scores is None else answer.scores[: len(x)]
        answer = Verdict(answer.labels[: len(x)], answer.rejected[: len(x)], scores)
        if self.queries is not None:
            self.queries.record_answers(x, rows, answer)
        return answer

    def record_logits(self, x: Tensor, rows: Tensor, logits: Tensor) -> None:
        """Record logits [n,K] or [n,K+1], of the defense or of a part, for images x [n,C,H,W] of those rows."""
        if self.queries is not None:
            self.queries.record_logits(x.detach(), rows, logits.detach(), self.num_classes)

    def record_gradients(self, rows: Tensor, gradient: Tensor) -> None:
        """Record gradients [n,...] that the attack follows from points of those rows."""
        if self.queries is not None:
            self.queries.record_gradients(rows, gradient)

    def only(self, rows: Tensor) -> Target:
        """Return a target for the inputs at those rows alone; this target counts the passes of that one too."""
        return Rows(self, rows)

    def view(
        self,
        part: Part = "defense",
        gradient: GradientMode = "default",
        inner_steps: int = 20,
        warm_start: bool = False,
    ) -> View:
        """Return what the attack differentiates: the whole defense, or its classifier alone (an oblivious attacker)."""
        return View(self, part, gradient, inner_steps, warm_start)


class Rows(Target):
    """A target for some rows of another target, for attacks that run one after the other on what is still robust."""

    def __init__(self, whole: Target, rows: Tensor) -> None:
        aims = None if whole.aims is None else whole.aims[rows]
        queries = whole.queries and whole.queries.only(rows)
        super().__init__(whole.defense, len(rows), replace(whole.attacker, aims=aims), queries=queries)
        self.whole, self.rows = whole, rows

    def count(self, rows: Tensor, forwards: float, backwards: float) -> None:
        self.whole.count(self.rows[rows], forwards, backwards)
        super().count(rows, forwards, backwards)

    def _spend(self, rows: Tensor, passes: float, most: int) -> None:
        self.spent = self.whole.spent[self.rows.cpu()]
