"""One run against another: every outcome, with what the command exits with."""

import copy

import pandas as pd
import pytest
from handmade import REJECT, StoredJob, a_run, cell, identities, run, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_bench.bench.compare import main, promotion
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics.paired import Comparison, compare, mcnemar
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.store import Store

N = 20
CLEAN = cell("clean", labels=[0] * N)
CELL = ("digits", "d", "a", "linf", 0.1)


def attacked(beaten: int, **more: object) -> pd.DataFrame:
    """An attack that beats the first `beaten` of N inputs."""
    return cell("a", labels=[0] * N, adv=[1] * beaten + [0] * (N - beaten), **more)


def compared(before: pd.DataFrame, after: pd.DataFrame, changes: dict[str, object] | None = None) -> list[Comparison]:
    """Compares; changes: dotted paths in the new identities of the attack's job and their values."""
    old, new = identities(before), copy.deepcopy(identities(after))
    for path, value in (changes or {}).items():
        *above, name = path.split(".")
        for key, identity in new.items():
            if "/clean/" not in key:
                for part in above:
                    identity = identity[part]
                identity[name] = value
    return compare(a_run(before, old), a_run(after, new))


def compared_attack(before: pd.DataFrame, after: pd.DataFrame, **changes: object) -> Comparison:
    """Return the comparison of the attacked cell; the clean cell is unchanged."""
    dotted = {path.replace("__", "."): value for path, value in changes.items()}
    return next(v for v in compared(run(CLEAN, before), run(CLEAN, after), dotted) if v.cell == CELL)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (6, 0, 2 / 2**6),
        (0, 6, 2 / 2**6),
        (5, 1, 2 * (1 + 6) / 2**6),  # at most one of six coins shows heads, either way
        (3, 3, 1),
        (0, 0, 1),
    ],
)
def test_mcnemar_by_hand(lost, gained, p):
    assert mcnemar(lost, gained) == pytest.approx(p)


def test_no_difference():
    found = compared_attack(attacked(3), attacked(3))
    assert (found.sign, found.n, found.lost, found.gained) == ("=", N, 0, 0)


def test_worse_and_better_with_holm_over_all_cells():
    # eight lost of eight: p = 2 / 2^8, doubled because the clean cell is tested too
    worse = compared_attack(attacked(0), attacked(8))
    assert (worse.sign, worse.lost, worse.gained, worse.baseline, worse.new) == ("-", 8, 0, 1, 0.6)
    assert worse.p == pytest.approx(2 * 2 / 2**8)
    better = compared_attack(attacked(8), attacked(0))
    assert (better.sign, better.lost, better.gained) == ("+", 0, 8)


def test_six_one_way_are_significant_alone_but_not_among_two():
    (alone,) = compared(attacked(0), attacked(6))
    assert (alone.sign, alone.p) == ("-", pytest.approx(2 / 2**6))
    among = compared_attack(attacked(0), attacked(6))
    assert (among.sign, among.p) == ("~", pytest.approx(4 / 2**6))


def test_clean_cells_are_compared_too():
    wrong = cell("clean", labels=[0] * N, clean=[1] * 10 + [0] * 10)
    (found,) = compared(CLEAN, wrong)
    assert (found.sign, found.lost) == ("-", 10)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dataset__revision", "2"),
        ("dataset__split", "validation"),
        ("defense__version", "2"),
        ("defense__spec", {"width": 64}),
        ("attack__version", "2"),
        ("attack__parameters", {"steps": 100}),
        ("protocol", "worst-of-5"),
        ("eps", ["0.05", "0.1"]),
    ],
)
def test_what_was_measured_changed(path, value):
    found = compared_attack(attacked(0), attacked(20), **{path: value})
    assert found.sign == "x"
    assert " → " in found.note
    assert found.p is None


def test_the_note_names_the_parameter():
    found = compared_attack(attacked(0), attacked(20), attack__parameters={"steps": 100})
    assert found.note == "attack.parameters.steps 40 → 100"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("defense__weights_sha256", "cc"),
        ("defense__source_sha256", "dd"),
        ("dataset__n", 7),
        ("dataset__indices_sha256", "ee"),
        ("seed", 1),
        ("eps", ["0.1", "0.5"]),
    ],
)
def test_a_retrained_defense_or_other_inputs_are_what_a_gate_is_for(path, value):
    assert compared_attack(attacked(0), attacked(20), **{path: value}).sign == "-"


def test_only_shared_inputs_count():
    # ten inputs in common, of which the new run loses the first; what it has beyond them is lost altogether
    more = cell("a", labels=[0] * N, adv=[1] * N, samples=range(N - 1, 2 * N - 1))
    found = compared_attack(attacked(0), more)
    assert (found.n, found.lost) == (1, 1)
    other = cell("a", labels=[0] * N, samples=range(100, 100 + N))
    found = compared_attack(attacked(0), other)
    assert (found.sign, found.note) == ("x", "no shared inputs")


def test_only_shared_seeds_count():
    def seeded(**beaten: int) -> pd.DataFrame:
        """An attack that beats so many with each seed."""
        return run(*(attacked(n, seed=int(name[1:])) for name, n in beaten.items()))

    # seed 1 beats another eight, which are no fault of the defense: the baseline has no such seed
    (found,) = compared(seeded(s0=2), seeded(s0=2, s1=10))
    assert (found.sign, found.new) == ("=", 0.9)
    # over the seeds that both have the worst counts
    (found,) = compared(seeded(s0=2, s1=3), seeded(s0=2, s1=11))
    assert (found.sign, found.baseline, found.new) == ("-", 0.85, 0.45)
    # which one it was is chance, how many is not
    (found,) = compared(seeded(s0=2), seeded(s1=10))
    assert (found.sign, found.new) == ("-", 0.5)
    (found,) = compared(seeded(s0=2), seeded(s1=2, s2=10))
    assert (found.sign, found.note) == ("x", "seeds 0 → 1, 2")


def test_the_same_image_under_another_label_is_another_input():
    relabelled = cell("a", labels=[1] * N)
    assert compared_attack(attacked(0), relabelled).note == "no shared inputs"


def test_an_input_with_several_aims_is_one_input_beaten_by_any_of_them():
    def aimed(beaten: int) -> pd.DataFrame:
        """Ten inputs of class 0, each aimed at 1 and 2; the first few are beaten by the second aim."""
        adv = [answer for i in range(10) for answer in (0, 2 if i < beaten else 0)]
        samples, aims = [i for i in range(10) for _ in (1, 2)], [1, 2] * 10
        return cell("a", labels=[0] * 20, adv=adv, samples=samples, aims=aims)

    (found,) = compared(aimed(1), aimed(8))
    assert (found.n, found.lost, found.gained, found.baseline, found.new) == (10, 7, 0, 0.9, pytest.approx(0.2))


def test_noise_is_robust_where_nothing_fooled_the_defense():
    def fooled(n: int, clean: int) -> pd.DataFrame:
        return cell("a", norm="fooling", labels=[-1] * N, clean=[clean] * N, adv=[3] * n + [REJECT] * (N - n))

    for clean in (REJECT, 3):
        (found,) = compared(fooled(2, clean), fooled(12, clean))
        assert (found.sign, found.n, found.lost, found.gained) == ("-", N, 10, 0)
        assert (found.baseline, found.new) == (0.9, 0.4)


def test_calibration_images_are_compared_as_clean_ones_are():
    right, wrong = (cell("calibration", labels=[0] * N, clean=[label] * 10 + [0] * 10) for label in (0, 1))
    (found,) = compared(right, wrong)
    assert (found.sign, found.lost, found.cell[2:]) == ("-", 10, ("calibration", "none", 0.0))


def test_without_a_ladder_other_sizes_make_no_difference():
    for sizes in (["0.05", "0.1"], ["0.1", "0.5"]):
        old, new = attacked(0), attacked(20)
        ids = {"old": identities(old), "new": identities(new)}
        for known in (*ids["old"].values(), *ids["new"].values()):
            known["ladder"] = False
        for known in ids["new"].values():
            known["eps"] = sizes
        (found,) = compare(a_run(old, ids["old"]), a_run(new, ids["new"]))
        assert found.sign == "-"
    assert compared_attack(attacked(0), attacked(20), ladder=False).note.startswith("ladder true → false")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("ok", "failed", "!"),
        ("ok", "skipped", "?"),
        ("failed", "failed", "="),
        ("skipped", "skipped", "="),
        ("skipped", "failed", "!"),
        ("failed", "ok", "x"),
        ("skipped", "ok", "x"),
    ],
)
def test_cells_without_figures(before, after, expected):
    old, new = (attacked(0, status=status, reason="" if status == "ok" else "why") for status in (before, after))
    assert compared_attack(old, new).sign == expected


def test_a_failed_cell_fails_even_where_its_version_changed():
    assert compared_attack(attacked(0), attacked(0, status="failed", reason="why"), attack__version="2").sign == "!"


def test_vanished_whatever_it_was():
    assert [v.sign for v in compared(run(CLEAN, attacked(0)), CLEAN)] == ["=", "?"]
    assert [v.sign for v in compared(run(CLEAN, attacked(0, status="skipped")), CLEAN)] == ["=", "?"]


def test_a_defense_that_vanished_is_one_line_and_a_warning(monkeypatch, capsys):
    other = [cell(one, labels=[0] * N, defense="b") for one in ("clean", "a", "fgsm")]
    code, output = command(monkeypatch, capsys, run(CLEAN, attacked(0), *other), run(CLEAN, attacked(0)))
    assert code == 1 and output.count("not in the new run") == 1 and "? all 3 cells" in output
    assert "has no cell of b on digits" in " ".join(output.split())


def command(monkeypatch, capsys, before: pd.DataFrame, after: pd.DataFrame) -> tuple[int, str]:
    """Exit code and output of the command on two runs."""
    runs = {"old": before, "new": after}
    monkeypatch.setattr(Results, "load", lambda folder: a_run(runs[folder.name]))
    return main(["old", "new"]), capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "code", "closing"),
    [
        (attacked(0), attacked(0), 0, "PASS: 1 = (no difference)"),
        (attacked(8), attacked(0), 0, "PASS: 1 + (better)"),
        (attacked(0), attacked(1), 0, "PASS: 1 ~ (difference not significant)"),
        (attacked(0, status="failed"), attacked(0), 1, "FAIL: 1 x (not comparable); no cell could be compared"),
        (attacked(0, status="failed"), attacked(0, status="failed"), 1, "no cell could be compared"),
        (run(CLEAN, attacked(0, status="failed")), run(CLEAN, attacked(0)), 0, "PASS: 1 x (not comparable), 1 = "),
        (attacked(0), attacked(8), 1, "FAIL: 1 - (worse)"),
        (attacked(0), attacked(0, status="failed", reason="[out] of memory"), 1, "FAIL: 1 ! (failed in the new run)"),
        (run(CLEAN, attacked(0)), CLEAN, 1, "FAIL: 1 ? (vanished from the new run), 1 = (no difference)"),
    ],
)
def test_exit_code_and_closing_line(monkeypatch, capsys, before, after, code, closing):
    got, output = command(monkeypatch, capsys, before, after)
    assert got == code
    assert closing in output.splitlines()[-1]
    meant = code != 0 and "failed in the new run" not in closing and "vanished" not in closing
    assert ("manifold-bench baseline new --name NAME" in output) == meant


def test_cells_without_a_difference_are_counted_and_not_listed(monkeypatch, capsys):
    others = [cell("clean", defense="e"), attacked(0, status="skipped", reason="too slow")]
    cells = run(CLEAN, *others, cell("fgsm"))
    code, output = command(monkeypatch, capsys, cells, cells)
    lines = [line.strip() for line in output.splitlines()]
    assert code == 0 and [line for line in lines if "fgsm" in line] == []
    first, second = lines.index("= digits / d"), lines.index("= digits / e")
    assert lines[first + 1] == "2 cells without any difference, 1 cell skipped in both runs"
    assert lines[second + 1] == "1 cell without any difference"


def test_a_baseline_of_a_name_keeps_it_where_a_meant_change_is_promoted():
    assert promotion("results/baselines/smoke", "a run").endswith("manifold-bench baseline 'a run' --name smoke")


@pytest.mark.parametrize("other", [cell("clean", defense="e"), cell("clean", dataset="mnist"), cell("other")])
def test_runs_without_a_common_cell_are_refused_in_one_line(monkeypatch, capsys, other):
    monkeypatch.setattr(Results, "load", lambda folder: a_run({"old": CLEAN, "new": other}[folder.name]))
    assert main(["old", "new"]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert not shown.out and "d on digits" in line and f"{other['defense'][0]} on {other['dataset'][0]}" in line


def test_a_reason_is_printed_as_it_is(monkeypatch, capsys):
    failed = attacked(0, status="failed", reason="[out] of memory")
    assert "[out] of memory" in command(monkeypatch, capsys, attacked(0), failed)[1]


def test_the_screen_explains_every_column_of_its_figures(monkeypatch, capsys):
    _, output = command(monkeypatch, capsys, attacked(0), attacked(0))
    shown, _, legend = " ".join(output.split()).partition("Baseline, new: ")
    assert shown.partition(" ─")[0].split()[-5:] == ["n", "baseline", "new", "lost/gained", "p"]
    assert all(f"{column} " in legend for column in ("n", "lost/gained:", "p:"))


def test_cells_only_in_the_new_run_are_named_and_pass(monkeypatch, capsys):
    code, output = command(monkeypatch, capsys, CLEAN, run(CLEAN, attacked(20)))
    assert code == 0
    assert "new, not in the baseline: digits / d / a L∞ ε = 0.1" in output


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_damaged_file_is_bad_input(monkeypatch, capsys):
    def damaged(folder):
        raise InputError(f"{folder}/records/a.parquet: damaged")

    monkeypatch.setattr(Results, "load", damaged)
    assert main(["old", "new"]) == 2
    assert capsys.readouterr().err == "error: old/records/a.parquet: damaged\n"


def test_a_cell_with_two_results_is_bad_input(tmp_path, capsys):
    folder = write_run(tmp_path, run(CLEAN, attacked(3)))
    Store(folder).write(StoredJob({"device": "cuda"} | next(iter(identities(attacked(5)).values()))), attacked(5))
    assert main([str(folder), str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {folder}: digits / d / a L∞ ε = 0.1, seed 0, has records of several jobs: ")
    assert message.count("\n") == 1


@st.composite
def records_of_a_run(draw) -> pd.DataFrame:
    """Cells of one defense on the same six inputs, answered in any way; the first is ok, the others maybe not."""
    answers = st.lists(st.sampled_from([0, 0, 1, REJECT]), min_size=6, max_size=6)
    clean = draw(answers)
    cells = [cell("clean", labels=[0] * 6, clean=clean)]
    for attack in draw(st.lists(st.sampled_from("abc"), unique=True)):
        status = draw(st.sampled_from(["ok", "ok", "failed", "skipped"]))
        cells.append(cell(attack, labels=[0] * 6, clean=clean, adv=draw(answers), status=status))
    return run(*cells)


@settings(max_examples=8, deadline=None)
@given(before=records_of_a_run(), after=records_of_a_run(), random=st.randoms(use_true_random=False))
def test_what_holds_for_any_two_runs(before, after, random):
    def shuffled(records: pd.DataFrame) -> Results:
        return a_run(records.sample(frac=1, random_state=random.randrange(1000)))

    found = compare(a_run(before), a_run(after))
    tested = [one for one in found if one.p is not None]

    # the order of rows does not matter
    assert compare(shuffled(before), shuffled(after)) == found

    # a run equals itself
    assert {one.sign for one in compare(a_run(before), a_run(before))} == {"="}

    # the other way round, lost is gained and better is worse
    back = {one.cell: one for one in compare(a_run(after), a_run(before)) if one.p is not None}
    mirrored = {"+": "-", "-": "+"}
    for one in tested:
        other = back[one.cell]
        assert (other.lost, other.gained, other.p) == (one.gained, one.lost, one.p)
        assert other.sign == mirrored.get(one.sign, one.sign)

    # Holm keeps the order of the p-values and never lowers one
    pairs = sorted((mcnemar(one.lost, one.gained), one.p) for one in tested)
    assert all(raw <= adjusted <= 1 for raw, adjusted in pairs)
    assert [adjusted for _, adjusted in pairs] == sorted(adjusted for _, adjusted in pairs)


def test_a_run_in_results_is_meant_where_its_name_alone_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results" / "quick", CLEAN)
    assert main(["quick", "slow"]) == 2
    assert "did you mean results/quick?" in capsys.readouterr().err
    assert main(["results/quick", "slow"]) == 2
    assert "did you mean" not in capsys.readouterr().err
