"""Whatever ends a command, it says why in one line, and nothing that was stored is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import bench_run, command, environment, last_events, one_error_line, record_files, records

from manifold_bench.bench.records.results import Results
from manifold_bench.bench.run import main
from manifold_bench.bench.running.environment import ensure_home

MATRIX = """
datasets = [{ name = "digits", n = 6 }]
defenses = ["tiny:NearestMean"]
[[attacks]]
name = "fgsm"
eps = [0.1]
""" + "".join(f'[[attacks]]\nname = "tiny:Slow"\nnumber = {i}\neps = [0.1]\n' for i in range(4))

OTHER_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def matrix(tmp_path):
    path = tmp_path / "matrix.toml"
    path.write_text(MATRIX, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    assert bench_run(folder / "matrix.toml", folder / "out").returncode == 0
    return folder / "out"


def heed_interrupts() -> None:
    """What a shell runs in the background, or nohup, ignores some of them, and hands that down."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(matrix: Path, out: Path) -> subprocess.Popen[str]:
    """A run that has stored something and is still at work."""
    running = subprocess.Popen(
        [sys.executable, "-m", "manifold_bench.bench", "run", "--matrix", matrix, "--out", out, "--workers", "2"],
        env=environment(out.parent / "cache", TINY_SECONDS="1"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    end = time.monotonic() + 120
    while not list((out / "records").glob("*.parquet")):
        assert time.monotonic() < end and running.poll() is None
        time.sleep(0.02)
    return running


def resumed(matrix: Path, out: Path, whole: Path) -> None:
    """Run it again to its end: what was stored stays, and all is as undisturbed."""
    before = {name: stat for name, stat in record_files(out).items() if name.endswith(".parquet")}
    done = bench_run(matrix, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert before.items() <= record_files(out).items()
    pd.testing.assert_frame_equal(records(out), records(whole))
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


slow = pytest.mark.slow  # the same handler


@pytest.mark.parametrize("number", [signal.SIGINT, *(pytest.param(one, marks=slow) for one in OTHER_SIGNALS)])
def test_a_signal_ends_a_run_with_one_line(matrix, tmp_path, whole, number):
    running = started(matrix, tmp_path / "out")
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and len(errors.splitlines()) == 1 and "again to continue" in errors, errors
    resumed(matrix, tmp_path / "out", whole)


def test_a_path_that_is_no_text_leaves_a_run_that_can_be_read(tmp_path):
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/nu\xff"))
    arguments = ("--defense", "undefended", "--attack", "fgsm", "--n", "4", "--quiet")
    assert bench_run("smoke", out, *arguments).returncode == 0
    assert command("report", out, cache=tmp_path).returncode == 0 and len(Results.load(out).records) > 0


def test_a_second_run_on_a_folder_says_who_holds_it(matrix, tmp_path, whole):
    running = started(matrix, tmp_path / "out")
    running.send_signal(signal.SIGSTOP)  # it holds the folder for as long as the second run takes
    second = bench_run(matrix, tmp_path / "out")
    running.send_signal(signal.SIGCONT)
    assert f"process {running.pid}" in one_error_line(second) and "--out" in second.stderr
    assert running.wait(timeout=120) == 0
    running.communicate()
    pd.testing.assert_frame_equal(records(tmp_path / "out"), records(whole))


def test_drafts_of_killed_runs_are_removed(matrix, tmp_path, whole):
    out = tmp_path / "out"
    running = started(matrix, out)
    running.kill()
    running.communicate()
    for path in (out / ".run.json.1.tmp", out / "records" / ".x.parquet.1.tmp", out / "records" / ".x.sha256.1.tmp"):
        path.write_bytes(b"half")
    resumed(matrix, out, whole)


def test_a_limit_on_the_size_of_files_is_one_line(matrix, tmp_path, whole):
    """As a full disk: a write fails in the middle."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-m", "manifold_bench.bench", "run", "--matrix", matrix, "--out", tmp_path / "out"],
        env=environment(tmp_path / "cache", PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=limit,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"error: {tmp_path}"), done.stderr
    resumed(matrix, tmp_path / "out", whole)


@pytest.mark.parametrize("name", ["run.json", "log.jsonl", "records/index.json", "summary.csv", "report.md", ".lock"])
def test_a_folder_in_place_of_a_file_is_one_line(whole, tmp_path, name):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "finished.json").unlink()
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    done = bench_run(whole.parent / "matrix.toml", out)
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and f"/{Path(name).name}" in done.stderr and ".tmp" not in done.stderr
    (out / name).rmdir()
    resumed(whole.parent / "matrix.toml", out, whole)


@pytest.mark.parametrize("out", ["x" * 300, "/".join(["x" * 200] * 30), "nul\0inside"], ids=["name", "path", "nul"])
def test_a_path_that_no_file_system_takes_is_bad_input(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--matrix", "smoke", "--out", out], ["--matrix", out], ["--matrix", "smoke", "--data", out]):
        code = main([*arguments, "--defense", "tiny:NearestMean", "--attack", "clean", "--n", "2"])
        said = capsys.readouterr().err.splitlines()
        assert code in (1, 2) and said and "error: " in said[-1] and not any("Traceback" in line for line in said)


@pytest.mark.parametrize("option", [["--seed", str(2**63)], ["--seed", "9" * 6000], ["--device", "hpu"]])
def test_values_that_cannot_be_are_bad_input(option, tmp_path, capsys):
    code = main(["--matrix", "smoke", "--out", str(tmp_path / "out"), *option])
    said = capsys.readouterr().err
    assert code == 2 and option[0] in said and "Traceback" not in said and not (tmp_path / "out").exists()


def test_the_largest_seed_is_stored_as_it_is(tmp_path, matrix):
    done = bench_run(matrix, tmp_path / "out", "--seed", 2**63 - 1, "--attack", "fgsm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(records(tmp_path / "out")["seed"]) == {2**63 - 1}


def test_a_data_set_that_the_matrix_does_not_have(tmp_path):
    done = bench_run("quick", tmp_path / "out", "--dataset", "digits", "--defense", "undefended", "--n", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(records(tmp_path / "out")["dataset"]) == {"digits"}


NOBODY = """
import pwd

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown
"""


def homeless_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run that imports ART, of a user without HOME and without an entry; temporary files are in that folder."""
    (folder / "sitecustomize.py").write_text(NOBODY, encoding="utf-8")
    env = environment(folder / "cache", path=str(folder), TMPDIR=str(folder))
    env = {name: value for name, value in env.items() if name not in ("HOME", "MANIFOLD_BENCH_CACHE", "XDG_CACHE_HOME")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "manifold_bench.bench",
            "run",
            "--matrix",
            "smoke",
            "--defense",
            "undefended",
            "--attack",
            "art:DeepFool",
            "--n",
            "2",
            "--out",
            folder / "out",
            "--quiet",
            *arguments,
        ],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_user_without_a_home(tmp_path):
    """No HOME and no entry among the users: libraries find a folder of their own among the temporary files."""
    done = homeless_run(tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    home = tmp_path / f"manifold-bench-{os.getuid()}"
    assert (home / ".art").is_dir() and list(home.rglob("kernels/*.json")) and not (tmp_path / "~").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_temporary_folders_of_another_user_are_left_alone(tmp_path):
    """A user without a home gets a folder of a known name there. Another user may make one with that name first."""
    stranger = 54321
    foreign = [
        tmp_path / name for name in (".art", f"manifold-bench-{os.getuid()}", f"manifold-bench-{os.getuid()}/.art")
    ]
    for folder in foreign:
        folder.mkdir(mode=0o700)
        os.chown(folder, stranger, stranger)
    before = [(list(folder.iterdir()), folder.stat()) for folder in foreign]

    done = homeless_run(tmp_path, "--dry-run")  # which imports ART as well
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    for folder, (inside, stat) in zip(foreign, before, strict=True):
        now = folder.stat()
        assert list(folder.iterdir()) == inside
        assert (now.st_uid, now.st_mode, now.st_mtime_ns) == (stranger, stat.st_mode, stat.st_mtime_ns)
    homes = [path for path in tmp_path.glob("manifold-bench-*") if path not in foreign]
    assert [path for path in homes if (path / ".art").is_dir()]
    assert {(path.stat().st_uid, path.stat().st_mode & 0o777) for path in homes} == {(os.getuid(), 0o700)}


@pytest.mark.parametrize(
    "put", [Path.touch, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(".")]
)
def test_what_stands_in_place_of_a_folder_for_the_homeless_is_left_alone(tmp_path, monkeypatch, put):
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    put(tmp_path / f"manifold-bench-{os.getuid()}")
    ensure_home()
    home = Path(os.environ["HOME"])
    assert home.is_dir() and home.parent == tmp_path and home.name != f"manifold-bench-{os.getuid()}"


def test_a_cache_that_cannot_be_written_to_costs_nothing(tmp_path, monkeypatch):
    """As in a container with a read-only home. No user may write below a file, not even root."""
    (tmp_path / "cache").touch()
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    arguments = ["--matrix", "smoke", "--defense", "tiny:NearestMean", "--attack", "clean", "--n", "2", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    ran = last_events(tmp_path / "out" / "log.jsonl", "job finished")
    assert len(ran) == 2 and set(records(tmp_path / "out")["status"]) == {"ok"}


def test_a_folder_for_images_that_cannot_be_written_to_is_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["--matrix", "smoke", "--defense", "tiny:NearestMean", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--export", str(tmp_path / "file" / "images")]) == 2
    assert capsys.readouterr().err.startswith("error: --export: ") and not (tmp_path / "out").exists()


TRAINED = """
datasets = [{ name = "digits", n = 6 }]
defenses = ["tiny:Trained"]
[[attacks]]
name = "fgsm"
eps = [0.1]
"""


def test_two_runs_that_need_the_same_training_do_it_once(tmp_path):
    (tmp_path / "matrix.toml").write_text(TRAINED, encoding="utf-8")
    lines = [
        [sys.executable, "-m", "manifold_bench.bench", "run", "--matrix", tmp_path / "matrix.toml", "--out", out]
        for out in (tmp_path / "a", tmp_path / "b")
    ]
    env = environment(tmp_path / "cache", TINY_TRAINING_SECONDS="1")
    both = [subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for line in lines]
    ends = [(running.communicate(timeout=300)[1], running.returncode) for running in both]
    assert ends == [(b"", 0), (b"", 0)]
    pd.testing.assert_frame_equal(records(tmp_path / "a"), records(tmp_path / "b"))
    logs = [(tmp_path / out / "log.jsonl").read_text(encoding="utf-8").splitlines() for out in "ab"]
    epochs = sum(json.loads(line)["event"] == "training epoch" for log in logs for line in log)
    assert epochs == 4
    left = {path.name.rsplit(".", 1)[1] for path in (tmp_path / "cache" / "weights").iterdir()}
    assert left == {"json", "safetensors"}


@pytest.mark.parametrize(("name", "reason"), [("EndsInTraining", "exit code 0"), ("ExitsInTraining", "SystemExit: 0")])
def test_a_training_that_ends_its_process_is_no_success(tmp_path, name, reason):
    done = command("train", "--dataset", "digits", "--defense", f"hostile:{name}", cache=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (log,) = (tmp_path / "weights").glob("*.log.jsonl")
    (failed,) = last_events(log, "training failed")
    assert failed["title"] == f"hostile:{name} on digits" and reason in failed["reason"]
    assert not list(log.parent.glob("*.safetensors")) and not last_events(log, "training finished")
