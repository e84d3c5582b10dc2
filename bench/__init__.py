"""The benchmark: a matrix of data sets, defenses and attacks is planned, run, judged, reported and compared.

Import it as `manifold_bench.bench`. In a checkout the commands can also be started as `manifold-bench run`.
"""

import sys
from importlib.abc import MetaPathFinder
from types import ModuleType

COMMANDS = {
    "run": "run a matrix of data sets, defenses and attacks, and write a report",
    "judge": "judge adversarial images that were made elsewhere",
    "report": "rebuild a run's report from its records",
    "compare": "compare a run with a baseline, and fail where robustness fell",
    "baseline": "store a run as the baseline that later runs are compared with",
    "train": "train a defense",
    "list": "list every known data set, defense, attack, measurement and matrix",
}
"""Every command with its purpose."""


class _CommandsAlone(MetaPathFinder):
    """Refuses `import bench.job` and the like: a module that is imported under two names is there twice."""

    allowed = (*(f"bench.{command}" for command in COMMANDS), "bench.report.__main__")

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
        if name.startswith("bench.") and name not in self.allowed:
            raise ImportError(f"`{name}` is not importable by itself; write `import manifold_bench.{name}`")


if __name__ == "bench":
    sys.meta_path.insert(0, _CommandsAlone())
