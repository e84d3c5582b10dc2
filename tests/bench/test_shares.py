"""Intervals and exact tests agree with those of scipy and statsmodels."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.proportion import proportion_confint

from manifold_bench.bench.metrics.paired import mcnemar
from manifold_bench.bench.metrics.shares import binomial_tail, wilson


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 64), (7, 64), (64, 64), (23.7, 64), (4999, 5000)])
def test_the_wilson_interval_is_that_of_statsmodels(count, n):
    assert wilson(count, n)[1:3] == pytest.approx(proportion_confint(count, n, method="wilson"), abs=1e-15)


@pytest.mark.parametrize(("k", "n", "p"), [(0, 0, 0.5), (0, 9, 0.5), (9, 9, 0.1), (3, 50, 0.01), (5100, 10_000, 0.5)])
def test_the_binomial_tail_is_the_one_sided_p_of_the_exact_test(k, n, p):
    expected = binomtest(k, n, p, alternative="greater").pvalue if n else 1.0
    assert binomial_tail(k, n, p) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 3), (2, 11), (40, 12)])
def test_mcnemar_is_that_of_statsmodels(lost, gained):
    expected = exact_mcnemar([[0, lost], [gained, 0]], exact=True).pvalue
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
