"""The assessment of a defense: its figures are those of the records, and it names a command that can be run."""

from __future__ import annotations

import ast
import dataclasses
import shlex
from unittest import mock

import pytest
from handmade import RUN, a_run, cell, run

from manifold_bench.bench.arguments import run_parser
from manifold_bench.bench.diagnosis.diagnose import diagnose
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.schema import CLEAN, GUESSES, UNDECLARED, UNSTEADY
from manifold_bench.bench.report import assessment as assessment_module
from manifold_bench.bench.report.assessment import Assessment, assessments
from manifold_bench.bench.report.diagnosis import FINDINGS
from manifold_bench.bench.report.tables import doubts_of

LABELS = [0] * 10
RECORDS = run(
    cell(CLEAN, labels=LABELS, defense="pgd-training"),
    cell("fgsm", (0.1, 0.2), LABELS, adv=[1] * 2 + [0] * 8, defense="pgd-training"),
    cell("pgd", (0.1, 0.2), LABELS, adv={0.1: [0] * 10, 0.2: [1] * 3 + [0] * 7}, defense="pgd-training"),
    cell("cw", (0.5,), LABELS, norm="l2", status="failed", reason="out of memory", defense="pgd-training"),
    cell(CLEAN, labels=LABELS, defense="undefended"),
    cell("pgd", (0.1,), LABELS, adv=[1] * 10, defense="undefended"),
)


def made(records, **run_file) -> list[Assessment]:
    results = a_run(records, **run_file)
    found = summary(results.records)
    return assessments(results, found, diagnose(results), doubts_of(results, found))


def named(matrix: str, defense: str = "pgd-training") -> list[Assessment]:
    source = {"matrix": RUN["matrix"] | {"source": f"bench/matrices/{matrix}.toml"}}
    return made(RECORDS, named={"defenses": [defense]}, **source)


def test_only_the_named_defense_has_an_assessment_and_one_alone_needs_no_name():
    (assessment,) = named("quick")
    assert (assessment.dataset, assessment.defense) == ("digits", "pgd-training")
    assert made(RECORDS) == []
    alone = RECORDS[RECORDS["defense"] == "undefended"].reset_index(drop=True)
    assert [one.defense for one in made(alone)] == ["undefended"]


def test_it_says_what_is_left_at_each_size_with_interval_number_and_strongest_attack():
    (assessment,) = named("quick")
    weak, strong, failed = assessment.left
    assert "L2" in failed and "failed" in failed
    for part in ("ε = 0.1", "80.0 %", "49.0 to 94.3", "n = 10", "fgsm"):
        assert part in weak
    for part in ("ε = 0.2", "70.0 %", "pgd"):
        assert part in strong
    assert "100.0 %" in assessment.clean


def test_it_names_attacks_that_failed_next_to_what_the_others_left():
    failed = cell("apgd", (0.1,), LABELS, status="failed", reason="no gradient", defense="pgd-training")
    (assessment,) = made(run(RECORDS, failed), named={"defenses": ["pgd-training"]})
    weak, strong, _ = assessment.left
    assert "apgd" in weak and "80.0 %" in weak
    assert "apgd" not in strong


@pytest.mark.parametrize("matrix", ["smoke", "quick", "strong"])
def test_the_command_that_tells_more_can_be_run_and_attacks_the_same_defense(matrix):
    (assessment,) = named(matrix)
    words = shlex.split(assessment.command)
    assert words[:2] == ["manifold-bench", "run"]
    given = run_parser().parse_args(words[2:])
    assert given.norm == ["linf"] and given.eps == [0.1, 0.2]  # where most is left
    assert given.matrix == "strong" and given.defense == ["pgd-training"] and given.dataset == ["digits"]
    assert (given.diagnose is True) == (matrix == "strong")  # without a diagnosis, that comes next
    assert given.n == (100 if matrix == "strong" else None)  # of ten images, the interval is wide


def test_a_defense_that_guesses_is_told_to_mend_that_first():
    guessing = attacked(20, remark=f"it is right on 10.0 % of 20 clean images, {GUESSES}", dataset="data")
    assessment = from_python(guessing)
    assert "no better than guessing" in assessment.advice and "strong" not in assessment.command


@pytest.mark.parametrize(
    ("name", "hint"),
    [("net.py:Net", "net.py:Net@weights.pt"), ("my.nets:net", "my.nets:net@weights.pt"), ("net.py:Net@net.pt", "")]
    + [(name, "") for name in ("model", "timm:resnet18", "art:JpegCompression", "pgd-training", "net.pt")],
)
def test_a_network_in_a_file_that_guesses_is_named_with_a_file_of_weights(name, hint):
    remark = f"it is right on 10.0 % of 20 clean images, {GUESSES}"
    found = from_python(attacked(20, remark=remark, dataset="data"), name=name)
    assert hint in found.advice and ("@weights.pt" in found.advice) == bool(hint)


def test_a_model_of_a_program_has_advice_for_a_program():
    records = RECORDS.assign(defense=RECORDS["defense"].replace("pgd-training", "model"))
    (assessment,) = made(records, named={"defenses": ["model"]})
    assert assessment.command.startswith("mb.run(") and '"digits"' in assessment.command


@pytest.mark.parametrize(("by_queries", "misled"), [(20, True), (2, False), (0, False)])
def test_gradients_mislead_where_queries_beat_significantly_more(by_queries, misled):
    labels = [0] * 20
    beaten = {"square": by_queries, "pgd": 1}
    cells = [cell(name, (0.1,), labels, adv=[1] * n + [0] * (20 - n)) for name, n in beaten.items()]
    results = a_run(run(cell(CLEAN, labels=labels), *cells))
    for key, identity in results.identities.items():
        knowledge = {"square": "score", "pgd": "white-box"}.get(identity["attack"]["label"])
        results.index[key] = results.index[key]._replace(knowledge=knowledge)
    found = summary(results.records)
    (assessment,) = assessments(results, found, diagnose(results), doubts_of(results, found))
    assert any("mislead" in sentence for sentence in assessment.trust) == misled


def test_marks_of_the_worst_case_are_named():
    blind = cell("pgd", (0.1,), LABELS, adv=LABELS)
    blind["blind"] = 1.0
    (assessment,) = made(run(cell(CLEAN, labels=LABELS), blind))
    assert any(sentence.startswith("‖") for sentence in assessment.trust)
    (clear,) = made(run(cell(CLEAN, labels=LABELS), cell("pgd", (0.1,), LABELS, adv=[1] * 10)))
    assert len(clear.trust) == 1 and "diagnos" in clear.trust[0]


NAME = "rgb.py:Net@rgb.pth"


def attacked(n=10, remark="", defense="model", dataset="images"):
    """Records of a defense that keeps half of n images under PGD; a second attack was skipped."""
    labels = [0] * n
    names = {"defense": defense, "dataset": dataset}
    return run(
        cell(CLEAN, labels=labels, reason=remark, **names),
        cell("pgd", (8 / 255,), labels, adv=[1] * (n // 2) + [0] * (n - n // 2), **names),
        cell("tracking", (8 / 255,), labels, status="skipped", reason="it projects nothing", **names),
    )


def from_shell(*more, matrix="quick", data="./some/images", n=10, parameters=None, records=None) -> Assessment:
    """The assessment of `manifold-bench run` on a folder of images, with these further words."""
    words = ["run", "--matrix", matrix, "--dataset", data, "--defense", NAME, *more]
    content = {
        "source": f"bench/matrices/{matrix}.toml",
        "datasets": [{"name": data, "n": n}],
        "defenses": [{"name": NAME, "label": NAME, "parameters": parameters or {}}],
    }
    records = attacked(defense=NAME) if records is None else records
    given = {"defenses": [NAME], "datasets": [data]}
    (made_one,) = made(records, named=given, command=["manifold-bench", *words], matrix=content)
    return made_one


def from_python(records, attacks=("pgd", "tracking"), **entry) -> Assessment:
    """The assessment of `mb.evaluate` on a model and images of a program."""
    content = {
        "source": "/tmp/evaluate.toml",
        "datasets": [{"name": "data", "n": None}],
        "defenses": [{"name": "model", "label": "model", **entry}],
        "attacks": [{"name": name, "label": name, "parameters": {}} for name in attacks],
    }
    (made_one,) = made(records, command=["mine.py"], matrix=content)
    return made_one


def arguments(command):
    """The keyword arguments of a call in Python."""
    return {one.arg: ast.unparse(one.value) for one in ast.parse(command, mode="eval").body.keywords}


def options(command):
    """The options of a command of the shell."""
    words = shlex.split(command)
    assert words[:2] == ["manifold-bench", "run"]
    return run_parser().parse_args(words[2:])


@pytest.mark.parametrize("data", ["./some/images", "images", "my_data.py:Images", "mnist-of-mine"])
def test_a_run_on_data_of_the_command_line_has_the_command_of_strong_next(data):
    dataset = "images" if ":" in data else data  # a class names itself
    given = options(from_shell(data=data, records=attacked(defense=NAME, dataset=dataset)).command)
    assert (given.matrix, given.dataset, given.defense) == ("strong", [data], [NAME])
    assert given.norm == ["linf"] and given.eps == [8 / 255]
    assert given.n == 10  # there may be no more


@pytest.mark.parametrize("more", [(), ("--no-diagnose",), ("--n", "5")])
def test_settings_that_no_option_gives_are_kept_by_the_same_command_with_a_diagnosis(more):
    given = options(from_shell(*more, parameters={"width": 3}, records=attacked(200, defense=NAME)).command)
    assert (given.matrix, given.dataset, given.diagnose) == ("quick", ["./some/images"], True)


def test_in_python_skipped_attacks_are_left_out():
    call = arguments(from_python(attacked(200, dataset="data")).command)
    assert call["attacks"] == "['pgd']" and call["diagnose"] == "True"
    usual = cell("autoattack", (8 / 255,), [0] * 200, defense="model", dataset="data")
    records = run(attacked(200, dataset="data"), usual)
    assert "attacks" not in arguments(from_python(records, ("pgd", "autoattack", "tracking")).command)


@pytest.mark.parametrize(
    "remark", [f"{UNDECLARED} although randomized is False", f"it rejects every image; {UNDECLARED}"]
)
def test_undeclared_randomness_is_declared_next(remark):
    found = from_python(attacked(remark=remark, dataset="data"))
    assert {"randomized": "True", "draws": "10"}.items() <= arguments(found.command).items()
    shell = from_shell(records=attacked(remark=remark, defense=NAME))
    assert options(shell.command).matrix == "quick" and "randomized" in shell.advice


def test_answers_that_depend_on_the_batch_or_on_earlier_calls_are_not_declared_as_random():
    records = attacked(200, remark=f"{UNSTEADY}depend on the batch", defense=NAME)
    assert options(from_shell("--seed", "3", records=records).command).seed == 3  # the same run
    found = arguments(from_python(attacked(200, remark=f"{UNSTEADY}depend on the batch", dataset="data")).command)
    assert not {"randomized", "draws", "diagnose"} & set(found)


@pytest.mark.parametrize(("again", "randomized", "declared"), [(3, 0, True), (0, 0, False), (3, 1, False)])
def test_undeclared_randomness_is_known_from_the_diagnosis_too(again, randomized, declared):
    place = {"dataset": "digits", "defense": "d", "measurement": "diagnosis:repeats", "status": "ok", "reason": ""}
    counts = {"again": again, "randomized": randomized}
    results = a_run(run(cell(CLEAN), cell("pgd")), matrix=RUN["matrix"] | {"defenses": [{"name": "d", "label": "d"}]})
    results = dataclasses.replace(results, measured=[place | {"values": counts}])
    found = summary(results.records)
    (assessment,) = assessments(results, found, diagnose(results), doubts_of(results, found))
    assert ("'randomized': True" in ast.unparse(ast.parse(assessment.command))) == declared


@pytest.mark.parametrize(("n", "more"), [(5, True), (90, True), (100, False)])
def test_more_images_come_before_an_attack_of_ones_own(n, more):
    records = attacked(n, defense=NAME)
    passing = {"defenses": [{"dataset": "images", "defense": NAME, "result": "pass", "checks": []}]}
    with mock.patch(f"{__name__}.diagnose", lambda results: passing):
        given = options(from_shell(matrix="strong", n=n, records=records).command)
        assert (given.n, given.attack) == ((100, []) if more else (None, ["my_attack.py:MyAttack"]))
        whole = from_shell(matrix="strong", n=None, records=records)  # the folder has n images
        assert (options(whole.command).attack == []) == more and options(whole.command).n is None
    python = arguments(from_python(attacked(n, dataset="data")).command)
    assert python["eps"] == "'8/255'" and "norm" not in python
    assert ("diagnose" in python) == (not more)


def test_a_diagnosis_that_passes_and_a_mark_are_one_sentence():
    checks = [{"check": "moving", "title": "t", "result": "pass", "evidence": ""}] * 15
    for marks in (["§ The attacks look too weak: a."], ["§ The attacks look too weak: a.", "‡ Partial: b."]):
        (sentence,) = assessment_module._trust({"result": "pass", "checks": checks}, marks, "--diagnose")
        assert "15" in sentence and "§" in sentence and "nothing" not in sentence
        warned = assessment_module._trust({"result": "warn", "checks": checks}, marks, "--diagnose")
        assert len(warned) == 1 + len(marks)
    assert len(assessment_module._trust({"result": "pass", "checks": checks}, [], "--diagnose")) == 1
    for option in ("--diagnose", "diagnose=True"):
        (sentence,) = assessment_module._trust({"result": "not run", "checks": []}, [], option)
        assert f"({option})" in sentence


def blind(n=10, dataset="data", defense="model", norm="linf"):
    """Records of a defense under PGD whose gradients were all zero."""
    names = {"defense": defense, "dataset": dataset}
    masked = cell("pgd", (8 / 255,), [0] * n, norm=norm, **names)
    return run(cell(CLEAN, labels=[0] * n, **names), masked.assign(blind=1.0))


@pytest.mark.parametrize("n", [10, 200])
@pytest.mark.parametrize(("norm", "added"), [("linf", "square"), ("l0", "sparse-rs")])
def test_where_the_gradient_is_zero_an_attack_that_needs_none_is_next(n, norm, added):
    found = from_python(blind(n, norm=norm), attacks=["pgd"])
    assert ast.literal_eval(arguments(found.command)["attacks"]) == ["pgd", added]
    assert "mb.bpda" in found.advice
    shell = from_shell(parameters={"width": 3}, records=blind(n, "images", NAME, norm))
    assert options(shell.command).attack == [added] and "mb.bpda" in shell.advice
    named_data = from_shell(records=blind(n, "images", NAME))
    assert options(named_data.command).matrix == "strong" and "mb.bpda" in named_data.advice


def test_an_attack_by_queries_that_ran_is_not_added_again():
    labels, names = [0] * 10, {"defense": "model", "dataset": "data"}
    results = run(blind(), cell("square", (8 / 255,), labels, **names))
    with mock.patch("manifold_bench.bench.report.advice._asks_alone", lambda steps: True):
        found = from_python(results, attacks=["pgd", "square"])
    assert ast.literal_eval(arguments(found.command)["attacks"]) == ["pgd", "square"] and "mb.bpda" in found.advice


def test_attacks_that_a_parameter_makes_senseless_run_next_without_it():
    why = "this defense is not randomized; leave eot out"
    names = {"defense": "model", "dataset": "data", "status": "skipped", "reason": why}
    records = run(cell(CLEAN, labels=[0] * 4, defense="model", dataset="data"), cell("pgd", (0.1,), [0] * 4, **names))
    attacks = [{"name": "pgd", "label": "pgd", "parameters": {"eot": 8, "steps": 7}}]
    content = {"source": "/tmp/evaluate.toml", "datasets": [{"name": "data", "n": None}], "attacks": attacks}
    content["defenses"] = [{"name": "model", "label": "model"}]
    (found,) = made(records, command=["mine.py"], matrix=content)
    call = arguments(found.command)
    assert ast.literal_eval(call["attacks"]) == [{"name": "pgd", "steps": 7}] and "diagnose" not in call


def test_accuracy_over_several_answers_says_in_how_many():
    records = attacked(dataset="data").assign(answers=10)
    assert "in all of 10 answers" in from_python(records).clean
    once = from_python(attacked(dataset="data").assign(answers=1))
    assert "answers" not in once.clean and any("one answer to each image" in line for line in once.trust)
    assert not any("one answer" in line for line in from_python(records).trust)
    assert not any("one answer" in line for line in from_python(attacked(dataset="data")).trust)


@pytest.mark.parametrize(("l2", "one"), [((1.5, 3.0), False), ((1.5,), True)])
def test_a_run_at_all_sizes_of_strong_goes_on_in_all_of_its_norms(l2, one):
    names = {"defense": NAME, "dataset": "images"}
    cells = [cell("pgd", (0.1, 0.2, 0.3), [0] * 10, **names), cell("pgd", l2, [0] * 10, norm="l2", **names)]
    records = run(cell(CLEAN, labels=[0] * 10, **names), *cells)
    given = options(from_shell(records=records).command)
    assert given.matrix == "strong" and len(given.norm) == int(one) and bool(given.eps) == one


@pytest.mark.parametrize("result", ["fail", "warn"])
def test_what_the_diagnosis_found_is_said_as_below_the_tables(result):
    checks = [{"check": "gradients", "title": "a", "result": result}, {"check": "more", "title": "b", "result": "pass"}]
    (sentence,) = assessment_module._trust({"result": result, "checks": checks}, [], "--diagnose")
    assert FINDINGS["gradients"] in sentence and FINDINGS["more"] not in sentence
