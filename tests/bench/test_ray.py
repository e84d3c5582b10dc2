"""Jobs on a cluster: two machines, played by two Ray nodes of this one, and what the loss of one costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from commands import HERE, bench_run, environment, figures, records

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.matrix import Needs
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.run import main
from manifold_bench.bench.running.engines.calls import Call

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'manifold-bench[ray]'")

RUNS = 6
MATRIX = """
timeout = 120
datasets = [{ name = "tiny:OnDisk", n = 12 }]
defenses = ["tiny:NearestMean", "tiny:Trained", "gmvae", "undefended"]
[[attacks]]
name = "fgsm"
eps = [0.1, 0.3]
defenses = ["tiny:Trained", "gmvae"]
resources = { cpus = 0.5 }
[[attacks]]
name = "broken:Kills"
defenses = ["tiny:NearestMean"]
eps = [0.1]
[[measurements]]
name = "fid"
samples = 20
defenses = ["gmvae"]
""" + "".join(
    f'[[attacks]]\nname = "tiny:Logged"\ndefenses = ["tiny:NearestMean"]\nnumber = {i}\neps = [0.1]\n'
    for i in range(RUNS)
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a matrix file, data, and what the same run leaves behind that stays on this machine."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    (folder / "data" / "below").mkdir(parents=True)
    (folder / "data" / "below" / "password.txt").write_text("open sesame", encoding="utf-8")
    done = bench_run(folder / "matrix.toml", folder / "local" / "out", "--data", folder / "data")
    assert done.returncode == 1, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def cluster(place):
    """Two machines with one CPU each. Their log is `place`/log, their temporary folder has a short name for Ray."""
    from ray.cluster_utils import Cluster

    short = tempfile.mkdtemp(prefix="mb")
    own = {
        **environment(place / "elsewhere", path=str(HERE.parents[1])),
        "TMPDIR": short,
        "TINY_SECONDS": "1.5",
        "TINY_LOG": str(place / "log"),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        made.small = small
        made.folder = Path(short)
        made.other = made.add_node(**small, env_vars={"TINY_MACHINE": "other"})
        yield made
        made.shutdown()
    shutil.rmtree(short, ignore_errors=True)


def command(place: Path, cluster, out: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "manifold_bench.bench",
        "run",
        "--matrix",
        str(place / "matrix.toml"),
        "--out",
        str(place / out / "out"),
        "--data",
        str(place / "data"),
        "--engine",
        "ray",
        "--address",
        cluster.address,
    ]


def notes(place: Path) -> list[tuple[str, str, str]]:
    """What was begun, done or read, what it was, and on which machine if that one has a name."""
    log = place / "log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [tuple(f"{line} -".split()[:3]) for line in lines]  # type: ignore[misc]


def test_two_machines_leave_the_records_that_one_leaves(place, cluster):
    done = subprocess.run(
        command(place, cluster, "two"),
        env=environment(place / "two" / "cache"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    pd.testing.assert_frame_equal(records(place / "two" / "out"), records(place / "local" / "out"))
    killed = figures(place / "two" / "out").loc[("tiny:NearestMean", "broken:Kills", 0.1)]
    assert killed["status"] == "failed" and killed["reason"] == "its process died with exit code 9"
    assert {path.name for path in (place / "two" / "cache" / "weights").iterdir()} == {
        path.name for path in (place / "local" / "cache" / "weights").iterdir()
    }
    (measured,) = (place / "two" / "out" / "measurements").glob("*gmvae*.json")
    assert measured.read_bytes() == (place / "local" / "out" / "measurements" / measured.name).read_bytes()

    counts = {"job": Counter(), "training": Counter(), "measurement": Counter()}
    for event in Log(place / "two" / "out" / LOG).read()[0]:
        kind, _, what = event["event"].partition(" ")
        if kind in counts:
            counts[kind][what] += 1
    assert counts["job"]["started"] == 13 and counts["job"]["finished"] == 12 and counts["training"]["epoch"]
    assert counts["training"]["started"] == counts["measurement"]["finished"] == counts["job"]["failed"] == 1

    read = {path for word, path, _ in notes(place) if word == "read"}
    assert len(read) == 2 and not any(path.startswith(str(place)) for path in read)  # each machine has its own copy
    assert not list(cluster.folder.glob("manifold-bench-*"))  # and none any more


def double(number: int) -> int:
    if number == 3:
        time.sleep(3600)
    return 2 * number


def test_calls_are_bounded_and_a_hang_costs_one(cluster, monkeypatch):
    from manifold_bench.bench.running.engines.ray import RayEngine

    given: list[int] = []
    with RayEngine(cluster.address, 2) as engine:
        start = engine._start
        monkeypatch.setattr(engine, "_start", lambda call: given.append(call.id) or start(call))
        outcomes = {}
        for outcome in engine.run([Call(i, double, (i,), 2 if i == 3 else None) for i in range(12)]):
            outcomes[outcome.id] = outcome
            assert len(given) - len(outcomes) <= 2
    assert outcomes.pop(3).failure == "it took more than 2 s and was stopped"
    assert {id: outcome.result for id, outcome in outcomes.items()} == {i: 2 * i for i in range(12) if i != 3}


def test_a_cluster_that_cannot_do_it_is_refused(cluster, monkeypatch):
    from manifold_bench.bench.running.engines import ray as engines

    with engines.RayEngine(cluster.address, None) as engine:
        with pytest.raises(InputError, match=r"no machine has the 2 CPUs .*machines: 1 CPUs and 0 GPUs, 1 CPU"):
            next(engine.run([Call(0, double, (1,), None, needs=Needs(2))]))
        monkeypatch.setattr(engines, "code", lambda: "another")
        with pytest.raises(InputError, match="has other code"):
            next(engine.run([Call(0, double, (1,), None)]))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--address", "127.0.0.1:1"], "--address: is allowed with --engine ray alone"),
        (["--engine", "ray", "--address", "ray://127.0.0.1:1"], "--address: ray://127.0.0.1:1"),
        (["--engine", "ray", "--device", "cuda:1"], "give 'cuda'"),
        (["--engine", "ray", "--device", "nonsense"], "'nonsense' is no device"),
    ],
)
def test_what_a_cluster_cannot_take_is_one_line(arguments, hint, tmp_path, capsys):
    assert main(["--matrix", "smoke", "--out", str(tmp_path / "out"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and hint in shown


@pytest.mark.slow
def test_a_machine_lost_in_the_middle_costs_nothing(place, cluster):
    (place / "log").unlink(missing_ok=True)
    (place / "hold").touch()  # the other machine stays in the middle of what it is doing until it is gone
    running = subprocess.Popen(
        command(place, cluster, "lost"),
        env=environment(place / "lost" / "cache"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    end = time.monotonic() + 120
    while not (cut := lost(place)):
        assert time.monotonic() < end and running.poll() is None
        time.sleep(0.05)
    cluster.remove_node(cluster.other, allow_graceful=False)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 1, output
    pd.testing.assert_frame_equal(records(place / "lost" / "out"), records(place / "local" / "out"))

    begun, done = (Counter(number for word, number, _ in notes(place) if word == one) for one in ("begun", "done"))
    assert done == {str(i): 1 for i in range(RUNS)}  # nothing was done twice
    assert begun == done + Counter([cut])  # and what was cut short was begun again


def lost(place: Path) -> str | None:
    """What the other machine is in the middle of, once something is stored."""
    mine = [(word, number) for word, number, machine in notes(place) if machine == "other"]
    stored = any((place / "lost" / "out" / "records").glob("*Logged*.parquet"))
    return mine[-1][1] if stored and mine and mine[-1][0] == "begun" else None
