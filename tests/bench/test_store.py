"""Records on disk: whole, checked, and never taken for another cell's."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import bench_run, command, last_events, one_error_line, record_files, records
from fuzzing import rewrite
from handmade import StoredJob, cell, write_run
from hypothesis import given
from hypothesis import strategies as st

from manifold_bench.bench import compare
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import REVISION
from manifold_bench.bench.records.store import IDENTITY, DamagedRecords, Store, checksum_path, file_name
from manifold_bench.bench.report import __main__ as report
from manifold_bench.defenses.identity import key_of

MATRIX = """
datasets = [{ name = "digits", n = 10 }]
defenses = ["tiny:NearestMean"]
[[attacks]]
name = "tiny:Slow"
eps = [0.1, 0.2]
[[attacks]]
name = "broken:OutsideBox"
eps = [0.1]
"""


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


DAMAGES = {
    "a flipped byte": flip_byte,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "no parquet at all": lambda path: path.write_bytes(b"PAR1 garbage"),
    "no checksum": lambda path: checksum_path(path).unlink(),
    "garbage for a checksum": lambda path: checksum_path(path).write_bytes(b"\xff\x00"),
    "somebody else's file": lambda path: path.write_bytes(sorted(path.parent.glob("*clean*.parquet"))[0].read_bytes()),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Matrix file and output folder of a finished run."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    assert bench_run(folder / "matrix.toml", folder / "out").returncode == 0
    return folder / "matrix.toml", folder / "out"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(tmp_path, damage):
    write_run(tmp_path, pd.concat([cell("clean"), cell("a", (0.1,)), cell("b", (0.1,))], ignore_index=True))
    store = Store(tmp_path)
    path = sorted(store.folder.glob("*--b--*.parquet"))[0]
    DAMAGES[damage](path)
    with pytest.raises(DamagedRecords) as caught:
        Results.load(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_records_are_reported_by_the_report_and_computed_again_by_the_run(run):
    matrix, out = run
    before, whole = record_files(out), records(out)
    clean, slow, box = (next((out / "records").glob(f"*{name}*.parquet")) for name in ("clean", "Slow", "OutsideBox"))
    flip_byte(slow)
    done = command("report", out, cache=out.parent / "cache")
    assert str(slow) in one_error_line(done)
    checksum_path(box).unlink()
    (out / "records" / "index.json").write_text("garbage", encoding="utf-8")
    done = command("report", out, cache=out.parent / "cache")
    assert "index.json" in one_error_line(done)
    (out / "records" / f".{slow.name}.4711.tmp").write_bytes(b"PAR1 half")

    done = bench_run(matrix, out)
    assert done.returncode == 0, done.stderr
    assert all(path.name in done.stdout.replace("\n", "") for path in (slow, box))
    again = [event["key"][:16] for event in last_events(out / "log.jsonl", "job started")]
    assert sorted(again) == sorted(path.stem.rsplit("--", 1)[1] for path in (slow, box))
    after = record_files(out)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {slow.name, box.name, checksum_path(slow).name, checksum_path(box).name} and clean.exists()
    pd.testing.assert_frame_equal(records(out), whole)


def test_records_of_another_version_are_distinguished_from_damaged_ones(tmp_path):
    """Whoever reads an old folder learns what to do; a run finds other keys and computes anew."""
    write_run(tmp_path, cell("a", (0.1,)))
    store = Store(tmp_path)
    (path,) = store.folder.glob("*.parquet")
    for old in (None, 1, 2, 3, REVISION + 1):
        table = pq.read_table(path)
        identity = json.loads(table.schema.metadata[IDENTITY]) | {"records": old}
        if old is None:
            del identity["records"]
            table = table.drop_columns(["aim", "clean_score", "adv_score"])
        metadata = {**table.schema.metadata, IDENTITY: json.dumps(identity).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), path)
        checksum_path(path).write_text(hashlib.sha256(path.read_bytes()).hexdigest(), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            Results.load(tmp_path)
        message = str(caught.value)
        assert not isinstance(caught.value, DamagedRecords) and "\n" not in message
        assert str(path) in message and f"revision {old or 1}" in message and "run its matrix again" in message
        assert compare.main([str(tmp_path), str(tmp_path)]) == report.main([str(tmp_path)]) == 2


def test_what_is_written_is_what_is_read(tmp_path):
    images = {0: (b"\x00" * 64, b"\xff" * 64, b"\x01" * 64)}
    rows = cell("a", (0.1, 0.2), adv={0.1: [0, 1, 2, -7], 0.2: [1, 1, 2, -7]}, images=images).drop(columns="key")
    job = StoredJob({"ε": [0.1, "∞"], "n": 4, "eps": ["0.1", "0.2"]})
    store = Store(tmp_path)
    assert store.status(job) == "missing"
    store.write(job, rows)
    read, identity = store.read(store.path(job))
    pd.testing.assert_frame_equal(read, rows)
    assert identity == job.identity and store.status(job) == "ok"
    assert {path.name for path in store.folder.iterdir()} == {store.path(job).name, checksum_path(store.path(job)).name}


@pytest.mark.parametrize("status", ["ok", "failed", "skipped"])
def test_the_status_is_that_of_the_rows(tmp_path, status):
    job = StoredJob({"n": 4})
    Store(tmp_path).write(job, cell("a", (0.1,), status=status, reason="why").drop(columns="key"))
    assert Store(tmp_path).status(job) == status


def test_a_file_under_a_name_that_is_not_its_own_is_no_result(tmp_path):
    """Same file name, another identity: a renamed or forged file, or a hash cut too short."""
    store, one, other = Store(tmp_path), StoredJob({"n": 4}), StoredJob({"n": 5})
    store.write(one, cell("a", (0.1,)).drop(columns="key"))
    checksum_path(store.path(one)).rename(checksum_path(store.path(other)))
    store.path(one).rename(store.path(other))
    assert store.status(other) == "damaged" and store.status(one) == "missing"


def other_job(folder: Path, label: str) -> tuple[Store, Path]:
    """A run of two attacks: its store, and the record file of the attack with that label."""
    write_run(folder, pd.concat([cell("clean"), cell("a", (0.1,)), cell("b", (0.1,), adv=[9] * 4)], ignore_index=True))
    (path,) = (folder / "records").glob(f"*--{label}--*.parquet")
    return Store(folder), path


def test_a_record_in_the_place_of_another_cell_s_is_refused(tmp_path):
    """A file that was copied over another one together with its checksum is whole, and is not the other's."""
    _, path = other_job(tmp_path, "a")
    _, other = other_job(tmp_path, "b")
    for file in (checksum_path, Path):
        file(path).write_bytes(file(other).read_bytes())
    with pytest.raises(DamagedRecords, match=re.escape(path.name)):
        Results.load(tmp_path)


REWRITTEN = {
    "rows of another cell": lambda rows: rows.assign(attack="b"),
    "rows of another defense": lambda rows: rows.assign(defense="e"),
    "another size": lambda rows: rows.assign(eps=0.05),
    "a row is gone": lambda rows: rows.iloc[1:],
    "a row is there twice": lambda rows: pd.concat([rows, rows.iloc[:1]]),
    "a row replaced another": lambda rows: pd.concat([rows.iloc[:1], rows.iloc[:1], rows.iloc[2:]]),
    "no rows": lambda rows: rows.iloc[:0],
}


@pytest.mark.parametrize("change", REWRITTEN)
def test_rows_that_are_not_those_of_the_job_are_refused(tmp_path, change):
    """However they came there: the checksum fits."""
    store, path = other_job(tmp_path, "a")
    contents = store.contents(path)
    store.save(path.name, contents._replace(rows=REWRITTEN[change](contents.rows)))
    with pytest.raises(DamagedRecords, match=re.escape(path.name)):
        Results.load(tmp_path)


@pytest.mark.parametrize("values", [{"label": 7, "success": True}, {"input_sha256": "00"}], ids=str)
def test_an_input_has_the_same_image_and_label_in_all_records(tmp_path, values):
    store, path = other_job(tmp_path, "a")
    contents = store.contents(path)
    store.save(path.name, contents._replace(rows=contents.rows.assign(**values)))
    with pytest.raises(DamagedRecords):
        Results.load(tmp_path)


@pytest.mark.parametrize("indexed", [True, False])
def test_two_records_of_one_job_are_refused(tmp_path, indexed):
    """One of them would silently take the place of the other."""
    store, path = other_job(tmp_path, "a")
    copy = path.with_name(f"copy--{path.stem.rsplit('--', 1)[1]}.parquet")
    for file in (checksum_path, Path):
        file(copy).write_bytes(file(path).read_bytes())
    if indexed:
        names = sorted(one.name for one in store.folder.glob("*.parquet"))
        (store.folder / "index.json").write_text(json.dumps({"jobs": [{"file": name} for name in names]}))
    with pytest.raises(InputError) as caught:
        Results.load(tmp_path)
    assert path.name in str(caught.value) and copy.name in str(caught.value)


def test_drafts_are_never_read(tmp_path):
    job, store = StoredJob({"n": 4}), Store(tmp_path)
    store.write(job, cell("a", (0.1,)).drop(columns="key"))
    for name in (f".{store.path(job).name}.1.tmp", "x.parquet.tmp"):
        (store.folder / name).write_bytes(store.path(job).read_bytes()[:200])
    rows = Results.load(tmp_path).records
    assert len(rows) == 4


def test_what_the_index_does_not_name_is_not_part_of_the_run(tmp_path):
    store, old, new = Store(tmp_path), StoredJob({"n": 4}), StoredJob({"n": 5}, names=("digits", "d", "b", "linf"))
    store.write(old, cell("a", (0.1,)).drop(columns="key"))
    store.write(new, cell("b", (0.1,)).drop(columns="key"))
    assert set(Results.load(tmp_path).records["attack"]) == {"a", "b"}
    store.write_index([new])
    assert set(Results.load(tmp_path).records["attack"]) == {"b"}


plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(allow_nan=False), st.text(max_size=8)
)
parameters = st.dictionaries(st.text(min_size=1, max_size=6), st.one_of(plain, st.lists(plain, max_size=3)), max_size=4)
cells = st.fixed_dictionaries(
    {
        "dataset": st.fixed_dictionaries({"name": st.text(), "revision": st.text(), "n": st.integers(1, 10**6)}),
        "defense": st.fixed_dictionaries(
            {
                "name": st.text(),
                "version": st.integers(),
                "parameters": parameters,
                "weights_sha256": st.one_of(st.none(), st.text()),
            }
        ),
        "attack": st.fixed_dictionaries({"name": st.text(), "version": st.text(), "parameters": parameters}),
        "norm": st.sampled_from(["linf", "l2", "l0", "unrestricted"]),
        "eps": st.lists(st.floats(0, 10).map(repr), max_size=4),
        "seed": st.integers(0, 2**63),
        "protocol": st.text(),
    }
)


def shape_of(value: Any) -> Any:
    """Equal exactly where the JSON is: 1, 1.0 and True are three different values."""
    if isinstance(value, dict):
        return {key: shape_of(part) for key, part in value.items()}
    return [shape_of(part) for part in value] if isinstance(value, list) else (type(value), repr(value))


@given(cells, cells)
def test_two_different_cells_never_share_a_key(a, b):
    assert (key_of(a) == key_of(b)) == (shape_of(a) == shape_of(b))


@given(cells, st.data())
def test_any_changed_field_changes_the_key(identity, data):
    changed = copy.deepcopy(identity)
    place: Any = changed
    name = data.draw(st.sampled_from(sorted(changed)))
    while isinstance(place[name], dict) and place[name]:
        place = place[name]
        name = data.draw(st.sampled_from(sorted(place)))
    place[name] = [place[name], "other"]
    assert key_of(changed) != key_of(identity)


@given(cells, st.randoms(use_true_random=False))
def test_the_order_in_which_fields_are_written_is_no_part_of_the_key(identity, random):
    shuffled = dict(random.sample(list(identity.items()), len(identity)))
    assert key_of(shuffled) == key_of(identity)


@given(st.lists(st.text(min_size=1), min_size=4, max_size=4))
def test_a_file_name_is_one_that_every_file_system_takes(parts):
    name = file_name(*parts)
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.=,+-_") and len(name) < 250


def test_an_original_image_without_its_adversarial_one_is_damage(run, tmp_path):
    folder = shutil.copytree(run[1], tmp_path / "run")
    path = next((folder / "records").glob("*Slow*.parquet"))
    table = pq.read_table(path)
    images = [None, *table["image_adversarial"].to_pylist()[1:]]
    place = table.column_names.index("image_adversarial")
    rewrite(path, table.set_column(place, "image_adversarial", pa.array(images, pa.binary())))
    with pytest.raises(DamagedRecords, match="an original without its adversarial image"):
        Results.load(folder)
