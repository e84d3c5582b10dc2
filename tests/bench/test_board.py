"""What a command shows while it works: plain lines, a terminal, and nothing."""

from __future__ import annotations

import io
import os
import re
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from planned import job
from rich.console import Console

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.running import board as progress
from manifold_bench.bench.running.board import Board, Work, clock, size
from manifold_bench.bench.running.heartbeat import Heartbeat

LINE = re.compile(r"\[\d+/\d+\] .+  \d+\.\d s( · left ~[\d:]+)? · \d+(\.\d)? [GM]iB memory")


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log.jsonl")


def board_of(log, quiet=False, terminal=False, workers=2):
    """A board and the stream that it writes to."""
    out = io.StringIO()
    return Board(Console(file=out, width=100, force_terminal=terminal), workers, log, quiet), out


def some(number):
    jobs = [job("cnn"), *(job("cnn", PGD(), f"pgd {i}") for i in range(number - 1))]
    return {f"key {i}": Work("job", f"job {i}", made) for i, made in enumerate(jobs)}


def rows(seconds):
    return pd.DataFrame({"seconds": [seconds], "forwards": [60.0], "backwards": [40.0]})


def run(board, log, number=6, failing=()):
    """Jobs begun by this process and finished one after the other, each 100 s by its records."""
    with board:
        board.expect(some(number))
        for i in range(number):
            log.event("job started", title=f"job {i}", key=f"key {i}", pid=os.getpid())
            board.done(f"key {i}", "out of luck" if i in failing else None, rows(1.0 if i == 0 else 100.0))


def test_a_line_for_each_job_that_ends_and_no_flood(log):
    board, out = board_of(log)
    run(board, log, failing=[3])
    lines = out.getvalue().splitlines()
    assert len(lines) == 6 and lines[3] == "[4/6] FAILED job 3: out of luck"
    assert all(LINE.fullmatch(line) for i, line in enumerate(lines) if i != 3), lines
    assert lines[0].startswith("[1/6] job 0  ") and "left" not in lines[-1]
    left = [line.split("left ~")[1].split(" ")[0] for line in lines[1:5] if "left" in line]
    assert len(left) == 3 and left[0] > left[-1]


def test_quiet_shows_failures_alone_and_the_log_has_the_rest(log):
    board, out = board_of(log, quiet=True)
    run(board, log, failing=[3])
    board.line("anything")
    assert out.getvalue().splitlines() == ["[4/6] FAILED job 3: out of luck"]
    ended = [event for event in log.read()[0] if event["event"] != "job started"]
    assert [event["event"].split()[1] for event in ended] == ["finished"] * 3 + ["failed"] + ["finished"] * 2
    assert ended[3]["reason"] == "out of luck" and ended[3]["title"] == "job 3"
    for event in ended:
        assert event["seconds"] >= 0 and event["memory"] > 2**20
    assert ended[1]["measured"] == 100 and (ended[1]["forwards"], ended[1]["backwards"]) == (60, 40)
    assert 2**20 < board.peak_process <= board.peak


def test_long_silence_is_broken_by_what_runs_now(log, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.05)
    board, out = board_of(log)
    board.expect(some(3))
    for i in range(2):
        log.event("job started", title=f"job {i}", key=f"key {i}", pid=os.getpid())
    log.event("job running", title="job 1", key="key 1", pid=os.getpid(), eps=0.25, passes=10, share=0.4)
    log.event("job started", title="of another run", key="unknown", pid=1)
    time.sleep(0.06)
    board.tick()
    board.tick()
    (line,) = out.getvalue().splitlines()
    assert line.startswith("[0/3] running: job 0 (0:00), job 1 (ε = 0.25, 40%, 0:00)  ")


def test_a_terminal_shows_what_runs_where_it_is_and_its_memory(log):
    board, out = board_of(log, terminal=True)
    board.expect(some(12))
    for i in range(10):
        log.event("job started", title=f"job {i}", key=f"key {i}", pid=os.getpid())
    log.event("job running", title="job 1", key="key 1", pid=os.getpid(), eps=float("inf"), passes=10, share=0.4)
    board.done("key 0", None, rows(1.0))
    board.tick()
    board.console.print(board._shown())
    shown = out.getvalue()
    assert "1/12" in shown and "left ~" in shown and "peak" in shown and "1 more" in shown
    assert re.search(r"job 1 .*40% · 0:00 · [\d.]+ [MG]iB memory", shown) and "job 9" not in shown
    assert "job 0" not in shown


def test_a_resumed_run_knows_from_its_log_how_long_jobs_take(log):
    run(board_of(log)[0], log, number=2)
    board, _ = board_of(log)
    made = some(3)
    assert board.left() is None
    for key, work in made.items():
        work.job.key = key
    board.learn([work.job for work in made.values()])
    board.expect({"key 2": made["key 2"]})
    assert board.left() == pytest.approx(100, rel=0.4)


def epoch(log, stage, done, epochs):
    log.event(
        "training epoch",
        title="net on digits",
        key="w",
        pid=os.getpid(),
        stage=stage,
        epoch=done,
        epochs=epochs,
        figures={"loss": 0.5},
    )


def test_epochs_are_shown_with_loss_time_left_and_memory_but_not_each_of_many(log):
    board, out = board_of(log)
    with board:
        board.expect({"w": Work("training", "net on digits")})
        log.event("training started", title="net on digits", key="w", pid=os.getpid())
        for i in range(1, 101):
            epoch(log, "classifier", i, 100)
        epoch(log, "generator", 3, 9)  # goes on from a checkpoint
        epoch(log, "generator", 4, 9)
        board.tick()
    lines = out.getvalue().splitlines()
    shown = [re.search(r"(\w+): epoch (\d+) of", line).groups() for line in lines]
    assert shown == [("classifier", "1"), ("classifier", "100"), ("generator", "3"), ("generator", "4")]
    assert all("loss 0.5" in line and "iB" in line and line.startswith("[0/1] net on digits") for line in lines)
    assert "left ~0:00" in lines[-1]  # the last one known when it ended


def attacked(log, eps=(0.1, 0.2), **more):
    made = job("cnn", PGD(steps=10, **more), "pgd")
    made.eps, made.title, made.key = eps, "a job", "a key"
    return Heartbeat(made, log)  # 21 passes for an input and ε at the most


def test_the_share_of_an_attack_counts_passes_done_and_those_that_may_come(log):
    heartbeat = attacked(log)
    heartbeat.begin(0.1, 6)
    target = Target(SimpleNamespace(num_classes=2), 3)
    target.count(torch.arange(3), 5, 5)
    done, share = heartbeat.progress(target.forwards + target.backwards)
    assert done == 30 and share == pytest.approx(30 / (4 * 63))  # 2 batches at 2 strengths
    target.count(torch.arange(1), 6, 5)  # two leave, one goes to the end
    done, share = heartbeat.progress(target.forwards + target.backwards)
    assert done == 41 and share == pytest.approx(1 / 4)
    heartbeat.end_batch(target)
    heartbeat.begin(0.2, 2)
    assert heartbeat.progress(torch.tensor([0, 0], dtype=torch.float64))[1] == pytest.approx(41 / (41 + 42))
    assert heartbeat.progress(torch.tensor([21, 21], dtype=torch.float64))[1] == 1


def test_the_log_hears_of_an_attack_now_and_then(log):
    heartbeat = attacked(log)
    heartbeat.begin(0.1, 3)
    target = Target(SimpleNamespace(num_classes=2), 3, on_count=heartbeat.beat)
    target.count(torch.arange(3), 1, 1)
    assert log.read()[0] == []
    heartbeat.last -= Heartbeat.SECONDS
    target.count(torch.arange(3), 1, 1)
    target.count(torch.arange(3), 1, 1)
    (event,) = log.read()[0]
    assert (event["event"], event["key"], event["eps"], event["passes"]) == ("job running", "a key", 0.1, 12)
    assert 0 < event["share"] < 1


def test_times_and_sizes_read_well():
    assert [clock(s) for s in (0, 59.6, 61, 3599, 3661, -1)] == ["0:00", "1:00", "1:01", "59:59", "1:01:01", "0:00"]
    assert [size(b) for b in (0, 300 * 2**20, 2**30, 1.26 * 2**30)] == ["0 MiB", "300 MiB", "1.0 GiB", "1.3 GiB"]
