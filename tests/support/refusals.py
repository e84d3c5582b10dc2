"""What an adapter of a library says of what it cannot do."""

from __future__ import annotations

import pytest


def check_refusal(adapter, given: dict[str, object], name: str, says: str) -> None:
    """Refusing it is one line that begins with the attack's name; says: a pattern in it."""
    with pytest.raises(ValueError, match=says) as error:
        adapter(**given)
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)
