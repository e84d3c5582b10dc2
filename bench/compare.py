"""Compares a run with a baseline, cell by cell, and passes or fails: `python -m bench.compare BASELINE NEW`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.errors import report_errors

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

Cell = tuple[str, str, str, str, float]
"""Data set, defense, attack, norm, ε."""

VERDICTS = {
    "=": "no difference",
    "+": "better",
    "~": "difference not significant",
    "x": "not comparable",
    "-": "worse",
    "!": "failed in the new run",
    "?": "vanished from the new run",
}
"""In the order of the table: what fails the gate comes last, next to the closing line."""

GATE = ("-", "!", "?")

SIGNIFICANCE = 0.05
"""Chance, over all cells together, of calling any of them different where none is (Holm)."""

COMPARABLE = (
    "dataset.indices_sha256",
    "dataset.n",
    "defense.weights_sha256",
    "defense.source_sha256",
    "attack.label",
    "seed",
    "device",
    "eps",
)
"""What may differ in a job's identity without making its cells incomparable: the inputs, of which the shared ones are
taken; a defense that was trained again or rewritten under the same version, which is what a gate is for; chance."""


@dataclass(frozen=True)
class Comparison:
    """What became of one cell of the baseline.

    n: shared inputs; baseline, new: their robust shares; lost, gained: inputs robust only before, only now;
    p: exact McNemar, Holm-adjusted over all cells that could be compared. None where nothing could be compared.
    """

    cell: Cell
    verdict: str
    note: str = ""
    n: int | None = None
    baseline: float | None = None
    new: float | None = None
    lost: int = 0
    gained: int = 0
    p: float | None = None


@dataclass(frozen=True)
class Run:
    """A run's records by cell, and the identity of each job key."""

    cells: dict[Cell, pd.DataFrame]
    identities: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Reads folder/records; raises InputError where there are none or a file is damaged."""
        from bench.store import Store

        records, identities = Store(folder).load()
        groups = records.groupby(["dataset", "defense", "attack", "norm", "eps"])
        return cls({cast(Cell, cell): rows for cell, rows in groups}, identities)

    def identity(self, cell: Cell) -> dict[str, Any]:
        """The identity of the job that a cell came from."""
        return self.identities[self.cells[cell]["key"].iloc[0]]

    def status(self, cell: Cell) -> tuple[str, str]:
        """ok, failed or skipped, with the reason."""
        first = self.cells[cell].sort_values("status").iloc[0]  # failed before ok
        return str(first["status"]), str(first["reason"])


def compare(baseline: Run, new: Run) -> list[Comparison]:
    """A verdict for every cell of the baseline, those of clean and calibration images included, in VERDICTS' order.

    An input is robust where it is accepted and right when clean and the attack succeeded for no aim; noise, which has
    no right answer, where nothing succeeded. Inputs are the same where hash and label are. Worst cases are left out:
    they follow from cells that are compared already.
    """
    found = [_compared(cell, baseline, new) for cell in baseline.cells]
    tested = [one for one in found if one.p is not None]
    if tested:
        from statsmodels.stats.multitest import multipletests

        adjusted = multipletests([one.p for one in tested], method="holm")[1]
        corrected = {one.cell: float(p) for one, p in zip(tested, adjusted, strict=True)}
        found = [_judged(one, corrected[one.cell]) if one.cell in corrected else one for one in found]
    return sorted(found, key=lambda one: (list(VERDICTS).index(one.verdict), one.cell))


def _compared(cell: Cell, baseline: Run, new: Run) -> Comparison:
    """The verdict on one cell; where both runs have figures, p is not yet adjusted and the verdict is open (~)."""
    before, why_before = baseline.status(cell)
    if cell not in new.cells:
        return Comparison(cell, "?", "not in the new run")
    after, why_after = new.status(cell)
    if before == after != "ok":
        return Comparison(cell, "=", f"{after} in both: {why_after}")
    if after == "failed":
        return Comparison(cell, "!", why_after)
    if after == "skipped":
        return Comparison(cell, "?", f"skipped in the new run: {why_after}")
    if before != "ok":
        return Comparison(cell, "x", f"no figures in the baseline: {before}: {why_before}")
    changes = list(changed(baseline.identity(cell), new.identity(cell), cell[-1]))
    if changes:
        return Comparison(cell, "x", "; ".join(changes))
    was, now = _robust(baseline.cells[cell]), _robust(new.cells[cell])
    shared = was.index.intersection(now.index)
    if shared.empty:
        return Comparison(cell, "x", "no shared inputs")
    was, now = was[shared], now[shared]
    lost, gained = int((was & ~now).sum()), int((~was & now).sum())
    p = mcnemar(lost, gained)
    return Comparison(cell, "~", "", len(shared), float(was.mean()), float(now.mean()), lost, gained, p)


def _judged(one: Comparison, p: float) -> Comparison:
    """The final verdict on a cell by its adjusted p."""
    if one.lost == one.gained == 0:
        verdict = "="
    elif p > SIGNIFICANCE:
        verdict = "~"
    else:
        verdict = "-" if one.lost > one.gained else "+"
    return replace(one, verdict=verdict, p=p)


def _robust(rows: pd.DataFrame) -> pd.Series:
    """Robust or not, by input hash and label, for the rows of an ok cell.

    An image that is in the data twice counts once: it is one draw.
    """
    right = ~rows["clean_rejected"] & (rows["clean_label"] == rows["label"])
    stands = ~rows["success"] & (right | (rows["norm"] == "fooling"))
    return stands.groupby([rows["input_sha256"], rows["label"]]).min()


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p of the exact McNemar test: are lost and gained halves of their sum, up to chance (McNemar 1947)?"""
    from statsmodels.stats.contingency_tables import mcnemar as test

    return float(test([[0, lost], [gained, 0]], exact=True).pvalue)


def changed(before: dict[str, Any], after: dict[str, Any], eps: float) -> Iterator[str]:
    """`attack.parameters.steps 40 → 100` for whatever makes two results at this ε incomparable."""
    old, new = ({**dict(_flat(identity)), "eps up to this": _steps(identity, eps)} for identity in (before, after))
    for path in sorted({*old, *new}):
        if path not in COMPARABLE and old.get(path) != new.get(path):
            values = (textwrap.shorten(json.dumps(side.get(path), ensure_ascii=False), 40) for side in (old, new))
            yield f"{path} {' → '.join(values)}"


def _steps(identity: dict[str, Any], eps: float) -> list[float]:
    """What decided the result at this ε: on a ladder, an input beaten at a smaller one counts as beaten at this one."""
    return [value for value in map(float, identity["eps"]) if value <= eps] if identity["ladder"] else [eps]


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts with their dotted paths."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def print_comparison(found: list[Comparison], added: list[Cell], console: Console) -> None:
    """The table of verdicts, the cells that only the new run has, and the closing line."""
    from rich.table import Table
    from rich.text import Text

    from bench.tables import eps_text, norm_text

    table = Table()
    for column in (
        "",
        "data set",
        "defense",
        "attack",
        "norm",
        "ε",
        "n",
        "baseline",
        "new",
        "lost/gained",
        "p",
        "note",
    ):
        right = column in ("ε", "n", "baseline", "new", "lost/gained", "p")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for one in found:
        dataset, defense, attack, norm, eps = one.cell
        figures = ["–"] * 5
        if one.n is not None and one.baseline is not None and one.new is not None:
            shares = f"{100 * one.baseline:.1f}", f"{100 * one.new:.1f}"
            figures = [str(one.n), *shares, f"{one.lost}/{one.gained}", f"{one.p:.2g}"]
        line = [one.verdict, dataset, defense, attack, norm_text(norm), eps_text(eps), *figures, one.note]
        table.add_row(*map(Text, line))
    console.print(table)
    for dataset, defense, attack, norm, eps in added:
        console.print(Text(f"new, not in the baseline: {dataset} / {defense} / {attack} {norm} ε = {eps_text(eps)}"))
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict} ({VERDICTS[verdict]})" for verdict, count in counts.items() if count)
    if all(one.p is None for one in found):
        told += "; no cell could be compared"
    console.print(Text(f"{'PASS' if passes(found) else 'FAIL'}: {told}"), soft_wrap=True)


def passes(found: list[Comparison]) -> bool:
    """Whether no cell is worse, failed or vanished."""
    return not any(one.verdict in GATE for one in found)


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 where the gate passes, 1 where it fails, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("baseline", type=Path, metavar="BASELINE", help="folder of the run to compare with")
    parser.add_argument("new", type=Path, metavar="NEW", help="folder of the run to judge")
    folders = parser.parse_args(arguments)
    baseline, new = Run.load(folders.baseline), Run.load(folders.new)
    from rich.console import Console

    found = compare(baseline, new)
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a log has no edge to wrap at
    print_comparison(found, sorted(new.cells.keys() - baseline.cells.keys()), console)
    return 0 if passes(found) else 1


if __name__ == "__main__":
    sys.exit(main())
