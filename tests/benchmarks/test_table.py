"""The page of benchmarks, from a JSON small enough to check by hand."""

from __future__ import annotations

import json
import math

from table import main, page

RESULTS = {
    "machine_info": {"cpu": {"brand_raw": "A CPU"}, "python_version": "3.11.7"},
    "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        {"extra_info": {}},
        {"extra_info": {"table": {"title": "T", "text": "Of two.", "columns": ["a", "b"], "rows": [["1", "2 s"]]}}},
        {"extra_info": {"table": {"title": "U", "text": "Of two.", "columns": ["a", "b"], "rows": [["3", "4 s"]]}}},
        {
            "extra_info": {
                "attack": {
                    "name": "PGD-40",
                    "defense": "undefended",
                    "n": 8,
                    "eps": 0.1,
                    "norm": "linf",
                    "rounds": 3,
                    "minimal": False,
                    "passes_alone": 0.8,
                    "lacking": ["Foolbox does not have this attack"],
                    "contestants": [
                        {
                            "name": "ours",
                            "seconds": 1.0,
                            "robust": 0.25,
                            "distance": 0.1,
                            "forwards": 4,
                            "backwards": 3,
                            "n": 8,
                        },
                        {
                            "name": "ART",
                            "seconds": 4.0,
                            "robust": 0.5,
                            "distance": math.inf,
                            "forwards": 41,
                            "backwards": 40,
                            "n": 2,
                        },
                    ],
                }
            }
        },
    ],
}


def test_ratios_are_ours_over_theirs():
    text = page(RESULTS)
    assert "A CPU, Python 3.11.7" in text and "2026-01-02" in text
    assert "8 inputs, L∞, ε = 0.1, 3 rounds." in text
    assert "| ours | 1.00 s |  | 0.250 |  | 4.0 | 3.0 |" in text
    assert "| ART, 2 inputs | 4.00 s | 0.06 | 0.500 |  | 41.0 | 40.0 |" in text
    assert "take 0.80 s alone; the whole job takes 1.25 times that." in text
    assert "## T\nOf two.\n\n| a | b |\n| --- | --- |\n| 1 | 2 s |" in text
    assert "## U\n\n| a | b |\n| --- | --- |\n| 3 | 4 s |" in text  # the same text is not repeated
    assert text.count("## ") == 3 and "Foolbox does not have this attack." in text


def test_the_page_is_written_and_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert main([str(tmp_path / "results.json"), str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == page(RESULTS)
    (tmp_path / "bad.json").write_text("{")
    capsys.readouterr()
    assert main([str(tmp_path / "bad.json")]) == 2 and main([]) == 2 and main([str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 3
