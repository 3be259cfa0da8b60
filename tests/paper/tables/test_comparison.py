"""Differences are paired by seed, their intervals are Student's."""

import pytest
from scipy import stats

from evomoe.paper.tables.comparison import paired_difference


def test_differences_are_paired_by_seed():
    mean, half = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 * 1.0 / 3**0.5)  # s = 1, t(2) = 4.303
    assert paired_difference([5.0], [3.0]) == (2.0, float("inf"))
    for n in (*range(2, 17), 31, 61):
        _, half = paired_difference(range(n), [0.0] * n)
        assert half == pytest.approx(stats.sem(range(n)) * stats.t.ppf(0.975, n - 1), rel=5e-4)
