"""How many inputs the benchmarks attack, and where the tables go that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--inputs", type=int, default=256, help="inputs of each benchmark (fewer where a peer is slow)")


@pytest.fixture
def inputs(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--inputs"))


@pytest.fixture
def tell(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Puts a table into the benchmark's JSON, for the page, and on the screen."""

    def add_table(title: str, text: str, columns: list[str], rows: list[list[str]]) -> None:
        benchmark.extra_info["table"] = {"title": title, "text": text, "columns": columns, "rows": rows}
        with capsys.disabled():
            print(f"\n{title}", *map(" · ".join, rows), sep="\n  ")

    return add_table
