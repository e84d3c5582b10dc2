"""The ε ladder beside its plain cross product: every size against every input, on weights of the zoo."""

from __future__ import annotations

import pytest

from bench.job import run_job
from bench.matrix import parse_matrix
from bench.plan import Options, dataset_refs, defense_ref, make_jobs
from bench.store import Store

EPS = [0.05, 0.1, 0.2, 0.3]
ATTACKS = {"fgsm": {}, "pgd": {"steps": 10}, "apgd": {"steps": 10}, "square": {"queries": 30}}


@pytest.mark.parametrize("defense", ["undefended", "pgd-training", "gmvae", "magnet"])
def test_the_ladder_finds_all_that_the_cross_product_finds_in_fewer_passes(tmp_path, defense):
    attacks = [
        {"name": name, "label": f"{name}-{kind}", "norm": "linf", "eps": EPS, "ladder": kind == "ladder", **settings}
        for name, settings in ATTACKS.items()
        for kind in ("ladder", "crossed")
    ]
    matrix = parse_matrix(
        {"datasets": [{"name": "digits", "n": 40}], "defenses": [defense], "attacks": attacks}, "test.toml"
    )
    datasets = dataset_refs(matrix, Options())
    refs = {ref.name: [defense_ref(choice, ref.load()) for choice in matrix.defenses] for ref, _ in datasets}
    store, rows = Store(tmp_path), {}
    for job in make_jobs(matrix, Options(), datasets, refs):
        assert run_job(job, tmp_path) == "ok"
        rows[job.label] = store.read(store.path(job))[0].set_index(["eps", "sample"]).sort_index()
    for name in ATTACKS:
        ladder, crossed = rows[f"{name}-ladder"], rows[f"{name}-crossed"]
        assert (ladder["success"] | ~crossed["success"]).all()
        # what was beaten at no smaller ε has been attacked as in the cross product: the very same finding
        first = ~ladder["success"].groupby("sample").shift(fill_value=False)
        assert (ladder["success"] == crossed["success"])[first].all()
        assert ladder["forwards"].sum() < crossed["forwards"].sum()
