"""Which packages results depend on, in which versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "manifold-bench", "torch", "numpy", "pandas", "pyarrow", "scikit-learn", "mlxtend", "safetensors",
    "adversarial-robustness-toolbox", "foolbox",
)  # fmt: skip


def package_version(name: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
