"""Write the lists of attacks and defenses into README.md, between its markers: `python docs/readme.py`."""

from __future__ import annotations

import re
from pathlib import Path

from manifold_bench.bench.list import knowledge, named
from manifold_bench.bench.planning.catalogue import descriptions
from manifold_bench.bench.text import norm_text
from manifold_bench.defenses.identity import Kind

README = Path(__file__).parent.parent / "README.md"
GROUPS: dict[Kind, str] = {"attacks": "knowledge", "defenses": "kind"}


def updated(page: str) -> str:
    """The page with the lists as the registry has them now."""
    for kind in GROUPS:
        inner = f"<!-- {kind}: made by docs/readme.py -->\n{listed(kind)}<!-- end of {kind} -->"
        page = re.sub(rf"<!-- {kind}: .*?<!-- end of {kind} -->", lambda _: inner, page, flags=re.S)  # noqa: B023
    return page


def listed(kind: Kind) -> str:
    """A table with a row for each kind of knowledge or of defense, and the names of all that are of it."""
    groups: dict[str, list[str]] = {}
    for one in descriptions(kind):
        group = knowledge(one) if kind == "attacks" else str(one.values.get("family", "other"))
        norms = one.values.get("norms", ())
        other = [] if kind != "attacks" or norms in (..., ("linf", "l2")) else map(norm_text, norms)
        about = ", ".join(filter(None, [*other, one.cited]))
        cited = f" ({about})" if about else ""
        groups.setdefault(group, []).append(f"`{named(kind, one)}`{cited}")
    rows = [f"| {group} | {', '.join(names)} |" for group, names in sorted(groups.items())]
    return "\n".join([f"| {GROUPS[kind]} | {kind} |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
