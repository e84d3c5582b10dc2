"""The log of a run: lines that are whole whatever happens to those who write them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

from manifold_bench.bench.records.log import Log, seconds_of

LONG = "x" * 3000


def write_on(path, name, together):
    """Writes long events without end, as a worker that is about to be killed does."""
    log, number = Log(path), 0
    together.wait()
    while True:
        log.event("job running", title=name, number=number, text=LONG)
        number += 1


def test_lines_of_killed_writers_are_whole_and_none_is_lost(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    writers = [context.Process(target=write_on, args=(log.path, name, together)) for name in "abc"]
    for writer in writers:
        writer.start()
    seen, read = set(), 0
    while seen != {"a", "b", "c"} or read < 2_000_000:
        time.sleep(0.01)
        assert all(writer.is_alive() for writer in writers)
        events, read = log.read(read)
        seen |= {event["title"] for event in events}
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    log.event("run finished")
    events = [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]
    assert events[-1]["event"] == "run finished"
    for name in "abc":
        numbers = [event["number"] for event in events if event.get("title") == name]
        assert numbers == list(range(len(numbers))) and numbers
    assert all(len(event["text"]) == 3000 for event in events[:-1])


def test_a_line_that_a_full_disk_tore_is_cut_off(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.event("run started", command=["run.py"])
    with log.path.open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:00:00+00:00", "event": "job sta')
    assert [event["event"] for event in log.read()[0]] == ["run started"]
    log.event("run started")
    log.event("run finished")
    lines = log.path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["run started", "run started", "run finished"]
    assert log.read()[0] == [json.loads(line) for line in lines]


def test_reading_goes_on_behind_the_last_whole_line(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    assert log.read() == ([], 0)
    log.event("one")
    events, behind = log.read()
    assert [event["event"] for event in events] == ["one"] and log.read(behind) == ([], behind)
    with log.path.open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:00:00+00:00", ')
        file.flush()
        assert log.read(behind) == ([], behind)
        file.write(b'"event": "two"}\n')
    events, behind = log.read(behind)
    assert [event["event"] for event in events] == ["two"] and behind == log.path.stat().st_size
    assert seconds_of(events[0]) == 1767225600


def test_an_event_is_json_whatever_is_in_it(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.event(
        "epoch", figures={"loss": float("nan"), "best": float("-inf")}, path=tmp_path, text="ε\nline", many=[1, 2.5]
    )
    (line,) = log.path.read_text(encoding="utf-8").splitlines()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    event = json.loads(line, parse_constant=refuse)
    assert event["figures"] == {"loss": None, "best": None} and event["path"] == str(tmp_path)
    assert event["text"] == "ε\nline" and event["many"] == [1, 2.5]
