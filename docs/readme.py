"""Write the lists of attacks and defenses into README.md, between its markers: `python docs/readme.py`."""

from __future__ import annotations

import re
from pathlib import Path

from manifold_bench.bench.list import knowledge, name_in_matrix
from manifold_bench.bench.planning.catalogue import descriptions
from manifold_bench.bench.text import norm_text
from manifold_bench.defenses.identity import Kind

README = Path(__file__).parent.parent / "README.md"
KINDS: tuple[Kind, ...] = ("attacks", "defenses")


def updated(page: str) -> str:
    """The page with the lists as the registry has them now."""
    rows = [f"| {group} | {', '.join(names)} |" for kind in KINDS for group, names in sorted(groups(kind).items())]
    table = "\n".join(["| | names |", "|---|---|", *rows])
    return re.sub(r"(<!-- systems: .*? -->\n).*?(?=\n<!-- end)", lambda found: found[1] + table, page, flags=re.S)


def groups(kind: Kind) -> dict[str, list[str]]:
    """The names of all systems by what they have to know or what they do, with norms that are unusual and papers."""
    found: dict[str, list[str]] = {}
    for one in descriptions(kind):
        group = knowledge(one) if kind == "attacks" else str(one.values.get("family", "not stated"))
        norms = one.values.get("norms", ())
        unusual = [] if kind != "attacks" or norms in (..., ("linf", "l2")) else map(norm_text, norms)
        about = ", ".join(filter(None, [*unusual, one.cited]))
        found.setdefault(f"{kind}: {group}", []).append(f"`{name_in_matrix(one)}`" + (f" ({about})" if about else ""))
    return found


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
