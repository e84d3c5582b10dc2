"""The page: one file that asks for nothing and says what the records say."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from handmade import cell, run, write_run
from markupsafe import escape
from pages import CELLS, DIAGNOSIS, EVIL, FAMILIES, IMAGES, RUN, write_page

from manifold_bench.bench.planning.catalogue import describe, papers
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE
from manifold_bench.bench.report import contents
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.html import page
from manifold_bench.bench.report.html.cells import IMAGE_BUDGET, Cells
from manifold_bench.bench.report.pictures import difference
from manifold_bench.bench.report.style import shade
from manifold_bench.bench.report.writing import write_report
from manifold_bench.defenses.identity import registered


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("html") / "a run")


@pytest.fixture(scope="session")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


PAPERS = {paper.url for paper in papers().values()}
"""The only addresses outside of the page that it may name; it loads none of them."""


class Elements(HTMLParser):
    """Every element's tag and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))


def test_nothing_is_outside_and_every_link_leads_somewhere(text):
    elements = Elements(text).all
    ids = Counter(attributes["id"] for _, attributes in elements if "id" in attributes)
    assert [name for name, times in ids.items() if times > 1] == []
    links = [link for _, a in elements for link in (a.get("href"), a.get("src")) if link]
    loaded = [a.get("src") or a.get("href") for tag, a in elements if tag != "a" and (a.get("src") or a.get("href"))]
    assert {link[:5] for link in loaded if not link.startswith("#")} == {"data:"}
    assert {link for link in links if link[:5] != "data:" and not link.startswith("#")} <= PAPERS
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\((?!#)[^)]*\)", text)) == set()


def test_what_fails_the_diagnosis_is_marked_in_the_matrix_too(text):
    heads = re.findall(r'<th scope="row">([^<]*)</th>', text.partition('id="matrix"')[2].partition("<section")[0])
    assert heads[0] == "gmvae" and re.fullmatch(r"undefended ¶\(\d+\)", heads[1])


def test_everything_has_a_name_and_tables_have_heads(text):
    elements = Elements(text).all
    for tag, attributes in elements:
        if attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label") or attributes["class"] == "drawing", attributes
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    tags = Counter(tag for tag, _ in elements)
    assert tags["table"] == tags["caption"]
    assert text.count('class="drawing"') == len(re.findall(r'class="drawing"[^>]*><title>[^<]+</title>', text)) > 0


def test_text_of_records_means_nothing_to_the_page(text):
    assert EVIL not in text and EVIL not in text.replace("<wbr>", "")
    assert "failed: &lt;script&gt;alert(1)&lt;/script&gt; &amp; out of memory" in text.replace("<wbr>", "")


def test_an_image_is_stored_once_however_often_it_is_shown(text):
    elements = Elements(text).all
    stored = [attributes["href"] for tag, attributes in elements if tag == "image" and attributes["id"].startswith("i")]
    used = [attributes["href"] for tag, attributes in elements if tag == "use" and attributes["href"].startswith("#i")]
    assert len(stored) == len(set(stored)) < len(used)
    # four originals and as many attacked ones; the difference is the same everywhere
    assert len(stored) == 9


def test_fewer_inputs_are_shown_where_images_would_take_too_much(folder):
    report = Report(Results.load(folder))
    shown = []
    for budget in (IMAGE_BUDGET, 700, 0):
        shown.append(len(Cells(report, budget).find("digits", "gmvae", "pgd (b, c)", "linf").inputs))
    assert shown == [4, 2, 1]


def test_the_leaderboard_is_the_worst_case_by_hand(folder, monkeypatch):
    monkeypatch.setattr(contents, "diagnose", lambda results: {"defenses": DIAGNOSIS})
    board = page.leaderboard(Report(Results.load(folder)))
    entries = {(e.dataset, e.defense, e.norm, e.eps): e for e in board.entries}
    assert len(entries) == len(board.entries) == 9
    assert board.header == [
        "robust",
        "strict",
        "clean accuracy",
        "clean rejection",
        "median distance",
        "n attacked",
        "noise accepted",
    ]
    entry = entries["digits", "gmvae", "linf", "0.2"]
    assert [value for _, value in entry.figures] == [0.8, 0.5, 0.9, 0.1, np.inf, 10, 0.5]
    assert entry.figures[0][0] == "80.0 [49.0, 94.3] §(1)"
    assert (entry.rank, entries["digits", "undefended", "linf", "0.2"].rank) == (1, 2)
    assert (entry.family, entry.diagnosis, entry.largest) == ("generative rejection", "not run", True)
    assert entry.strongest == "pgd (b, c): 80.0"
    entry = entries["digits", "undefended", "linf", "0.1"]
    assert (entry.figures[0][1], entry.strongest, entry.diagnosis) == (0.2, "pgd (b, c): 20.0", "fail")
    failed = entries["digits", "gmvae", "l2", "1"]
    assert failed.figures[0] == ("failed (2)", None) and failed.strongest == "–" and failed.rank is None
    assert [entry.norm for entry in board.entries if entry.dataset == "digits"] == ["linf"] * 4 + ["l2"] * 4
    assert not any(entry.own for entry in board.entries)
    assert entries["mnist", EVIL, "linf", "0.3"].family == "not stated"  # the index doesn't say


def test_a_defense_is_only_shown_in_norms_in_which_it_was_attacked_or_if_in_none_everywhere(tmp_path):
    labels = [0] * 4
    rows = [cell(CLEAN, labels=labels, defense=name) for name in ("both", "one", "none")]
    rows += [cell("a", labels=labels, defense=name) for name in ("both", "one")]
    rows += [cell("a", labels=labels, defense="both", norm="l2")]
    report = Report(Results.load(write_run(tmp_path, run(*rows))))
    shown = {entry.norm: [] for entry in page.leaderboard(report).entries}
    for entry in page.leaderboard(report).entries:
        shown[entry.norm].append(entry.defense)
    assert shown == {"linf": ["both", "one"], "l2": ["both"]}
    maps = [page.heat_map(panel, Cells(report)) for panel in page.panels(report.summary)]
    assert [[name for name, _, _ in one.rows] for one in maps] == [["both", "none", "one"], ["both", "none"]]


def test_without_run_json_the_page_says_so(tmp_path):
    write_report(Results.load(write_run(tmp_path, run(*CELLS[:2]))))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "has no run.json" in text and "computes this cell again" not in text


@pytest.mark.parametrize("count", [3, 5])
def test_many_parts_that_were_skipped_are_folded_below_the_first(tmp_path, monkeypatch, count):
    lines = [f"skipped: data set number {number}" for number in range(count)]
    monkeypatch.setattr("manifold_bench.bench.report.contents.left_out_of", lambda results: lines)
    write_report(Results.load(write_run(tmp_path, run(*CELLS[:2]))))
    header = (tmp_path / "report.html").read_text(encoding="utf-8").partition("<header>")[2].partition("</header>")[0]
    seen, _, folded = header.partition("<details>")
    assert [line in seen for line in lines] == [number == 0 or count == 3 for number in range(count)]
    assert all(line in header for line in lines) and ("4 more parts" in folded) == (count == 5)


def test_names_in_backticks_are_code_in_the_assessment(tmp_path):
    rows = run(cell(CLEAN, labels=[0] * 10, defense=EVIL), cell("pgd", (0.1,), [0] * 10, adv=[1] * 10, defense=EVIL))
    write_report(Results.load(write_run(tmp_path, rows)))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assessment = text[text.index('<section id="assessment"') :].partition("</section>")[0]
    assert "<code>strong</code>" in assessment and "`" not in assessment and EVIL not in assessment


def test_intervals_stay_on_one_line(text):
    assert '<span class="interval">[' in text and "&lt;span" not in text


def test_an_option_of_a_command_is_never_broken_between_its_dashes(text):
    assert '<span class="nowrap">--dataset</span> ' in text and "<code>manifold-bench run --" not in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("foolbox:LinfPGDAttack(steps=3)", "foolbox:|Linf|PGDAttack(|steps=3)"),
        ("my_package.nets:Net@weights.pt", "my_|package.|nets:|Net@|weights.|pt"),
        ("pgd(steps=5)", "pgd(steps=5)"),
        ("right <b> in of&some_long_word", "right &lt;b&gt; in of&amp;some_|long_|word"),
    ],
)
def test_the_lines_of_a_long_name_break_between_its_parts(name, shown):
    assert page._parted(name).replace("<wbr>", "|") == shown


def test_a_page_without_an_assessment_names_its_first_section_after_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "assessments", lambda *given: [])
    cells = [one for one in CELLS if set(one["dataset"]) == {"digits"}]
    stored = write_run(tmp_path / "run", run(*cells), FAMILIES)
    for named, link in (({}, ""), ({"defenses": ["gmvae"]}, "Comparison")):
        (stored / "run.json").write_text(json.dumps(RUN | {"named": named}))
        write_report(Results.load(stored))
        found = re.findall(r'<a href="#assessment">(.*?)</a>', (stored / "report.html").read_text(encoding="utf-8"))
        assert found == [link] * bool(link)


def test_a_difference_by_hand():
    original, adversarial = np.array([[10, 10, 10]]) / 255, np.array([[61, 10, 0]]) / 255
    image, largest = difference(original, adversarial)
    assert largest == pytest.approx(51 / 255)
    assert image.tolist() == [[255, 128, 102]]
    assert difference(original, original)[1] == 0


def contrast(one: str, other: str) -> float:
    """Of two colours #rrggbb, by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return float(
            np.dot(
                [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts], (0.2126, 0.7152, 0.0722)
            )
        )

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_to_its_background():
    style = (Path(page.__file__).parent / "style.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 2
    for theme in themes:
        for ink in ("ink", "soft", "link", "pass", "warn", "fail"):
            for ground in ("paper", "wash"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground, theme)
    assert min(contrast(*shade(share)) for share in np.linspace(0, 1, 101)) >= 4.5


def test_a_matrix_of_ours_goes_by_its_name(text):
    shown = text.replace('<span class="nowrap">', "").replace("</span>", "")
    assert "--matrix smoke --dataset digits --defense undefended --attack &#39;pgd (b, c)&#39; --norm linf" in shown


def test_worst_cases_and_clean_passes_have_details_too(folder, text):
    assert f"× {WORST_CASE}, L∞</h4>" in text and f"× {CLEAN}</h4>" in text


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose command line named one of its two defenses."""
    cells = [one for one in CELLS if set(one["dataset"]) == {"digits"}]
    stored = write_run(tmp_path_factory.mktemp("named") / "run", run(*cells), FAMILIES)
    reused = [{"folder": "b", "code": "c", "started": "2026-01-01", "jobs": 7}]
    (stored / "run.json").write_text(json.dumps(RUN | {"named": {"defenses": ["gmvae"]}, "reused": reused}))
    write_report(Results.load(stored))
    return stored


def test_what_the_command_line_named_is_compared_below_its_assessment_and_marked(named):
    report, text = Report(Results.load(named)), (named / "report.html").read_text(encoding="utf-8")
    board = page.leaderboard(report)
    assert {entry.defense for entry in board.entries if entry.own} == {"gmvae"} == set(report.own)
    section = text[text.index('<section id="assessment"') :].partition("</section>")[0]
    (comparison,) = report.comparisons
    assert section.index("Assessment of gmvae") < section.index(comparison.title)
    assert all(str(escape(sentence)) in section.replace("<wbr>", "") for sentence in comparison.sentences)
    marked = re.findall(r'<th scope="row">([^<]*) <span class="own"', text)
    assert len(marked) == 7 and {name.split(" ")[0] for name in marked} == {"gmvae"}
    markdown = (named / "report.md").read_text(encoding="utf-8")
    assert f"## {comparison.title}\n" in markdown
    assert markdown.splitlines()[2].startswith("Run of 2026-01-02: matrix smoke, code abc+dirty. 8 jobs: ")
    for written in (text, markdown):
        assert "7 jobs from the baseline b" in written


def test_the_papers_of_registered_systems_are_linked(text):
    links = {a["href"] for tag, a in Elements(text).all if tag == "a" and a.get("href") in PAPERS}
    known = {name: papers()[describe(registered("defenses")[name]).paper].url for name in ("gmvae",)}
    assert set(known.values()) <= links


def test_of_equally_strong_attacks_the_images_of_the_one_with_most_passes_are_shown(tmp_path):
    labels = [0] * 4
    images = {i: IMAGES[i] for i in range(4)}
    attacks = [
        cell(name, (0.1,), labels, adv=[1] * 4, passes=passes, images=images)
        for name, passes in (("a", (1, 1)), ("b", (40, 40)), ("c", (50, 0)))
    ]
    report = Report(Results.load(write_run(tmp_path, run(cell(CLEAN, labels=labels), *attacks))))
    ((_, shown),) = page.galleries(report.summary, Cells(report))
    assert [one.attack for one in shown] == ["b"]
