"""Write the tables of attacks and defenses into README.md, between its markers, and draw its picture.

The command is `python docs/readme.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl

from manifold_bench.attacks.threat import Norm
from manifold_bench.bench.list import knowledge, name_in_matrix
from manifold_bench.bench.metrics.summary import summary_of
from manifold_bench.bench.planning.catalogue import Description, descriptions
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.report.plots import security_curves
from manifold_bench.bench.report.style import STYLE
from manifold_bench.bench.report.tables import Panel, panels
from manifold_bench.bench.text import norm_text

README = Path(__file__).parent.parent / "README.md"
BASELINE = README.parent / "bench" / "baselines" / "quick"
PICTURE = Path(__file__).parent / "images" / "quick.png"
KNOWLEDGE = ("white-box", "score", "decision", "as the class needs")
"""What attacks have to know, in the order of the table."""


def updated(page: str) -> str:
    """The page with the tables as the registry has them now."""
    tables = "\n\n".join([table(["knowledge", "norms", "attacks"], attacks()), table(["kind", "defenses"], defenses())])
    return re.sub(r"(<!-- systems: .*? -->\n).*?(?=\n<!-- end)", lambda found: found[1] + tables, page, flags=re.S)


def attacks() -> dict[tuple[str, ...], list[str]]:
    """The names and papers of all attacks by what they have to know and by their norms; those for one norm together."""
    found: dict[tuple[str, ...], list[str]] = {}
    ordered = sorted(descriptions("attacks"), key=lambda one: (KNOWLEDGE.index(knowledge(one)), -len(norms(one))))
    for one in ordered:
        shown = [norm_text(norm) for norm in norms(one)]
        group = (knowledge(one), "one" if len(shown) == 1 else " ".join(shown) or "any")
        found.setdefault(group, []).append(cited(one, *(shown if len(shown) == 1 else [])))
    return found


def defenses() -> dict[tuple[str, ...], list[str]]:
    """The names and papers of all defenses by what they do."""
    found: dict[tuple[str, ...], list[str]] = {}
    for one in descriptions("defenses"):
        found.setdefault((str(one.values.get("family", "not stated")),), []).append(cited(one))
    return dict(sorted(found.items()))


def norms(one: Description) -> tuple[Norm, ...]:
    """The norms in which an attack works; none where it works in every norm."""
    given = one.values.get("norms")
    return given if isinstance(given, tuple) else ()


def cited(one: Description, *norms: str) -> str:
    about = ", ".join(filter(None, [*norms, one.cited]))
    return f"`{name_in_matrix(one)}`" + (f" ({about})" if about else "")


def table(heads: list[str], groups: dict[tuple[str, ...], list[str]]) -> str:
    """A Markdown table with a row for each group."""
    rows = [heads, ["---"] * len(heads), *([*group, ", ".join(names)] for group, names in groups.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pictured() -> Panel:
    """What the picture shows: the worst cases in L∞ of the committed baseline of `quick`."""
    (panel,) = (one for one in panels(summary_of(Results.load(BASELINE))) if one.norm == "linf")
    return panel


def figures(panel: Panel) -> str:
    """The figures of the picture as a text, which is stored in its file."""
    worst = panel.worst
    shown = zip(worst["defense"], worst["eps"], worst["robust_accuracy"], strict=True)
    return "; ".join(f"{defense} {eps:g}: {100 * share:.1f}" for defense, eps, share in shown)


def draw(panel: Panel) -> None:
    """Draw the picture."""
    with mpl.rc_context(STYLE):
        security_curves(panel).savefig(PICTURE, dpi=170, metadata={"Description": figures(panel), "Software": None})


if __name__ == "__main__":
    draw(pictured())
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
