"""What engines share: which call comes next, and calls whose files lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.matrix import Needs
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.running.engines.calls import Call, CallQueue, pack, run_packed


def call(id: str, after=()) -> Call:
    return Call(id, print, (), None, after)


def names(calls: list[Call]) -> str:
    return "".join(call.id for call in calls)


def test_the_most_urgent_that_are_ready_come_first():
    urgency = {"a": 1, "b": 3, "c": 2, "d": 9}
    waiting = CallQueue([call("a"), call("b"), call("c"), call("d", after=("a",))], urgency.__getitem__)
    assert names(waiting.pop(2)) == "bc" and names(waiting.pop(9)) == "a" and names(waiting.pop(9)) == ""
    waiting.mark_finished("b")
    assert waiting and not waiting.pop(9)
    waiting.mark_finished("a")
    assert names(waiting.pop(0)) == "" and names(waiting.pop(1)) == "d" and not waiting


def test_without_urgency_their_own_order_counts_and_what_is_not_there_is_finished():
    waiting = CallQueue([call("b", after=("elsewhere",)), call("a")], None)
    assert names(waiting.pop(1)) == "b"
    waiting.put_back(call("b"))
    assert names(waiting.pop(5)) == "ab"


def test_ten_thousand_calls_are_handed_out_in_a_moment():
    waiting = CallQueue([call(f"{i}") for i in range(10_000)], int)
    first = waiting.pop(256)
    assert [call.id for call in first[:2]] == ["9999", "9998"] and len(first) == 256


def where(*paths: Path) -> tuple[Path, ...]:
    return paths


def test_paths_move_with_the_files():
    content = pack(Call(0, where, (Path("/data"), Path("/data/a/b"), Path("/out/x"), Path("/usr/lib")), None)).function
    moved = [("/out", "/tmp/own"), ("/data/a/b", "/tmp/all/data/a/b")]
    found = run_packed(content, moved)
    assert found == tuple(map(Path, ("/tmp/all/data", "/tmp/all/data/a/b", "/tmp/own/x", "/usr/lib")))


def jobs(device: str, **keys: object) -> dict[str, Needs]:
    """What the jobs of one defense occupy, by attack."""
    pgd = {"name": "pgd", "eps": [0.1], "resources": {"cpus": 3, "gpus": 2}}
    fgsm = {"name": "fgsm", "eps": [0.1]}
    raw = {"datasets": [{"name": "digits", "n": 4}], "defenses": [{"name": "undefended"}], "attacks": [pgd, fgsm]}
    matrix = parse_matrix({**raw, **keys}, "test")
    return {job.label: job.needs for job in make_plan(matrix, Options(device=device)).jobs}


def test_a_job_occupies_the_most_that_its_parts_say():
    assert jobs("cpu") == {"clean": Needs(1, 0), "pgd": Needs(3, 0), "fgsm": Needs(1, 0)}
    assert jobs("cuda") == {"clean": Needs(1, 1), "pgd": Needs(3, 2), "fgsm": Needs(1, 1)}
    shares = jobs("cuda", resources={"gpus": 0.25, "cpus": 2})
    assert shares == {"clean": Needs(2, 0.25), "pgd": Needs(3, 2), "fgsm": Needs(2, 0.25)}
    large = jobs("cuda", defenses=[{"name": "undefended", "resources": {"cpus": 4, "gpus": 1}}])
    assert large == {"clean": Needs(4, 1), "pgd": Needs(4, 2), "fgsm": Needs(4, 1)}


@pytest.mark.parametrize(
    ("given", "hint"),
    [({"gpus": 1.5}, "whole number"), ({"cpus": 0}, "cpus: 0 is not allowed"), ({"cpu": 1}, "did you mean 'cpus'")],
)
def test_resources_that_cannot_be_are_refused(given, hint):
    with pytest.raises(InputError, match=r"test: resources.*") as caught:
        jobs("cpu", resources=given)
    assert hint in str(caught.value)
