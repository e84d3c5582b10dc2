"""The console script: `manifold-bench run | report | compare | baseline | train | list`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "run": ("run", "run a matrix of data sets, defenses and attacks, and write a report"),
    "report": ("report.__main__", "rebuild a run's report from its records"),
    "compare": ("compare", "compare a run with a baseline; the exit code says whether robustness fell"),
    "baseline": ("baseline", "promote a run to a baseline"),
    "train": ("train", "train a defense"),
    "list": ("list", "list every known data set, defense, attack, measurement and matrix"),
}

USAGE = "usage: manifold-bench COMMAND [ARGUMENTS]\n\n" + "\n".join(
    f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with the remaining arguments; `manifold-bench COMMAND --help` explains them."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = given[0] if given else "", given[1:]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in COMMANDS:
        print(f"{USAGE}\n\nerror: {name!r} is no command" if name else USAGE, file=sys.stderr)
        return 2
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # for systems of the user's own, named as module:Class
    command = importlib.import_module(f"manifold_bench.bench.{COMMANDS[name][0]}")
    return int(command.main(rest))


if __name__ == "__main__":
    sys.exit(main())
