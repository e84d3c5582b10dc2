"""The benchmarks' JSON as a page of the documentation: `python tests/benchmarks/table.py FILE.json [PAGE.md]`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Written by `tox -e benchmark`, which replaces the whole page. {machine}, Python {python}, torch's own CPU kernels with
one thread, {date}.
"""

ATTACKS = """# Attacks, compared with other libraries'

All libraries attack the same MNIST digits and weights of the zoo with the same budget, and take turns. Times are
medians over the rounds. "Ours" is a whole job of this harness in one of its workers: loading the defense, attacking,
judging, storing the records. A "bare loop" is the attack in a few lines of torch, without any library. The libraries
are called as their users call them, on the same weights in torch's own layers and layout. The robust accuracy of every
library is what this harness's judge says of its outputs at ε. Passes are means for each input.
"""

COLUMNS = (
    "| | time | ours / theirs | robust accuracy | median distance | forward | backward |\n|---|---|---|---|---|---|---|"
)


def page(results: dict[str, Any]) -> str:
    """Markdown of a pytest-benchmark JSON: tables as they were measured, then attacks and other libraries'."""
    machine, benchmarks = results["machine_info"], results["benchmarks"]
    cpu = machine.get("cpu", {}).get("brand_raw") or machine.get("processor") or "an unnamed CPU"
    parts = [HEAD.format(machine=cpu, python=machine["python_version"], date=results["datetime"][:10])]
    infos = [b.get("extra_info", {}) for b in benchmarks]
    tables = [info["table"] for info in infos if "table" in info]
    texts = [one["text"] for one in tables]
    parts += [table(one, explained=one["text"] in texts[:i]) for i, one in enumerate(tables)]
    attacks = [section(info["attack"]) for info in infos if "attack" in info]
    return "\n".join([*parts, *([ATTACKS] if attacks else []), *attacks])


def table(measured: dict[str, Any], explained: bool) -> str:
    """A benchmark that says itself what its columns are. explained: whether an earlier table has the same text."""
    lines = [measured["columns"], ["---"] * len(measured["columns"]), *measured["rows"]]
    text = [] if explained else [measured["text"]]
    return "\n".join([f"## {measured['title']}", *text, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def section(attack: dict[str, Any]) -> str:
    """One attack on one defense."""
    norm = {"linf": "L∞", "l2": "L2"}[attack["norm"]]
    rounds = f"{attack['rounds']} round{'s' * (attack['rounds'] > 1)}"
    lines = [
        f"## {attack['name']} on `{attack['defense']}`",
        f"{attack['n']} inputs, {norm}, ε = {attack['eps']:g}, {rounds}.",
        "",
        COLUMNS,
    ]
    ours = attack["contestants"][0]
    for contestant in attack["contestants"]:
        share = contestant["n"] / attack["n"]
        ratio = "" if contestant is ours else f"{ours['seconds'] * share / contestant['seconds']:.2f}"
        name = contestant["name"] if share == 1 else f"{contestant['name']}, {contestant['n']} inputs"
        distance = contestant["distance"]
        shown = "" if not attack["minimal"] else "–" if math.isinf(distance) else f"{distance:.3f}"
        lines.append(
            f"| {name} | {contestant['seconds']:.2f} s | {ratio} | {contestant['robust']:.3f} | {shown} "
            f"| {contestant['forwards']:.1f} | {contestant['backwards']:.1f} |"
        )
    alone = attack["passes_alone"]
    times = f"{alone:.2f} s alone; the whole job takes {ours['seconds'] / alone:.2f} times that"
    lines += ["", f"The passes of ours, with all inputs in one batch, take {times}."]
    lines += [""] + [f"{reason}." for reason in attack["lacking"]] + [""] * bool(attack["lacking"])
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("error: give the JSON file of pytest-benchmark, and where the page goes if not docs/", file=sys.stderr)
        return 2
    try:
        results = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"error: {arguments[0]}: {error}", file=sys.stderr)
        return 2
    target = Path(arguments[1]) if len(arguments) == 2 else PAGE
    target.write_text(page(results), encoding="utf-8")
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
