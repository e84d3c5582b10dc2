"""What an adapter of a library says of what it cannot do."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest


def check_refusal(adapter, given: dict[str, object], name: str, says: str) -> None:
    """Refusing it is one line that begins with the attack's name; says: a pattern in it."""
    with pytest.raises(ValueError, match=says) as error:
        adapter(**given)
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that package were not installed here."""
    find = importlib.util.find_spec

    def found(name: str, *more: Any) -> Any:
        return None if name == package else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", found)
