"""Kills at random moments: of a whole run, of its template, of single jobs, some of them while they still load."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from commands import bench_run, environment, matrix_file, record_files, records

from manifold_bench.bench.records.log import Log
from manifold_bench.bench.records.store import Store

KILLS = 50
SLOW = """
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean"]
""" + "".join(f'[[attacks]]\nname = "tiny:Slow"\nnumber = {i}\neps = [0.1]\n' for i in range(6))


def victims(run: psutil.Process) -> list[psutil.Process]:
    """The run itself and every process that it has started."""
    with suppress(psutil.Error):
        return [run, *run.children(recursive=True)]
    return []


def good(out: Path) -> dict[str, tuple[int, int]]:
    """The record files of jobs that went well, as they are on the disk."""
    store, there = Store(out), record_files(out)
    return {
        name: there[name]
        for name in there
        if name.endswith(".parquet") and store.read(store.folder / name)[0]["status"].eq("ok").all()
    }


@pytest.mark.slow
def test_fifty_kills_change_no_bit_and_no_finished_job_runs_twice(tmp_path):
    assert bench_run("smoke", tmp_path / "whole").returncode == 0
    out, draw, killed, kept = tmp_path / "out", random.Random(0), 0, {}
    while True:
        with subprocess.Popen(
            [sys.executable, "-m", "manifold_bench.bench", "run", "--matrix", "smoke", "--out", out, "--workers", "2"],
            env=environment(tmp_path / "cache"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            run = psutil.Process(running.pid)
            while killed < KILLS and running.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    running.wait(draw.uniform(0, 8))
                    break
                everyone = victims(run)
                if everyone:
                    victim = run if draw.random() < 0.3 else draw.choice(everyone)
                    with suppress(psutil.Error):
                        victim.kill()
                        killed += 1
            errors = running.communicate()[1]
        assert "Traceback" not in errors, errors
        stored = good(out) if (out / "records").exists() else {}
        assert kept.items() <= stored.items()
        kept = stored
        if killed >= KILLS and running.returncode == 0:
            break
    pd.testing.assert_frame_equal(records(out), records(tmp_path / "whole"), check_exact=True)
    finished = Counter(event["key"] for event in Log(out / "log.jsonl").read()[0] if event["event"] == "job finished")
    assert finished and set(finished.values()) == {1}


def until(condition, seconds: float = 600) -> None:
    """Waits for it; a slow machine takes minutes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
def test_a_run_killed_in_the_middle_resumes_to_the_same_records(tmp_path):
    matrix, out = matrix_file(tmp_path, SLOW), tmp_path / "out"
    killed = subprocess.Popen(
        [sys.executable, "-m", "manifold_bench.bench", "run", "--matrix", matrix, "--out", out, "--workers", "2"],
        env=environment(tmp_path / "cache", TINY_SECONDS="1.5"),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: list((out / "records").glob("*Slow*.parquet")))
    workers = psutil.Process(killed.pid).children()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert workers
    until(lambda: not any(alive(worker) for worker in workers))

    finished = {
        name: stat
        for name, stat in record_files(out).items()
        if (out / "records" / name).with_suffix(".parquet").exists()
    }
    assert len([name for name in finished if "Slow" in name and name.endswith(".parquet")]) < 6
    (out / "records" / ".digits--half--written.parquet.1.tmp").write_bytes(b"PAR1 half")
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["finished"] is False

    assert bench_run(matrix, out).returncode == 0
    assert finished.items() <= record_files(out).items()
    whole = bench_run(matrix, tmp_path / "whole")
    assert whole.returncode == 0
    pd.testing.assert_frame_equal(records(out), records(tmp_path / "whole"), check_exact=True)
    assert set(record_files(out)) == set(record_files(tmp_path / "whole"))
