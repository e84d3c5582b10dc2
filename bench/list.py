"""List every known data set, defense, attack, measurement and matrix."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.errors import report_errors
from manifold_bench.defenses.identity import registered


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Print every name, without importing what it stands for."""
    Parser(prog="manifold-bench list", description=__doc__).parse_args(arguments)
    for kind in ("datasets", "defenses", "attacks", "measurements"):
        print(f"{kind}:")
        for name, point in registered(kind).items():
            adapter = kind == "attacks" and name in ("art", "foolbox")
            print(f"  {name + ':ClassName' if adapter else name:<20} {point.value}")
    print("matrices:")
    for path in sorted((Path(__file__).parent / "matrices").glob("*.toml")):
        print(f"  {path.stem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
