"""The message for packages that only some systems need, and that are not installed."""

from __future__ import annotations


def not_installed(what: str, *modules: str) -> str:
    """Return one line that says what needs modules that are not installed, and the command that installs them.

    what: name of the attack or defense as users write it. modules: names of the modules under which they are imported.
    """
    packages = " ".join(name.replace("_", "-") for name in modules)
    it = "a package that is" if len(modules) == 1 else "packages that are"
    return f"{what}: needs {it} not installed; run `pip install {packages}`"
