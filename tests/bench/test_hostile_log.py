"""Lines of a log that no process of this project writes: a user's code can append to the file, too."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from manifold_bench.bench.records.log import Log
from manifold_bench.bench.running.board import Board, Work

ODD = [None, 3, -1.5, 1e308, "text", "\x1b[2J", [], {}, ["k"], True, "9" * 6000]
FIELDS = {
    "job started": {"title": "t", "pid": 1},
    "job running": {"share": 0.5, "eps": 0.1, "passes": 3},
    "training epoch": {"stage": "fit", "epoch": 1, "epochs": 3, "figures": {"loss": 1.0}},
}


@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_of_a_log_stops_the_run_that_reads_it(tmp_path, terminal):
    log, now = Log(tmp_path / "log.jsonl"), "2026-01-01T00:00:00.000+00:00"
    lines = []
    for event, fields in FIELDS.items():
        right = {"time": now, "event": event, "key": "k", **fields}
        lines.append(right)
        for name in (*right, "figures"):
            lines += [{**right, name: value} for value in ODD]
            lines.append({key: value for key, value in right.items() if key != name})
        lines.append({**right, "figures": {"loss": "low"}})
        lines.append(right)
    board = Board(Console(file=io.StringIO(), force_terminal=terminal, width=100), 1, log)
    board.expect({"k": Work("job", "title")})
    with board:
        for line in lines:
            log.append(json.dumps(line).encode() + b"\n")
            board.tick()
            board.line("x")
        log.append(b'{"time": \xff}\n[1]\n' + b"[" * 100_000 + b"\n")
        board.tick()
        assert board.running["k"].title == "title"
        board.done("k", None)


def test_a_text_with_half_a_character_is_written(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.event("training epoch", stage="\ud800")
    assert len(log.read()[0]) == 1
