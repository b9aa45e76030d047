"""Rank correlation: by hand, and an interval that widens when points belong together."""

import numpy as np
import pytest
import scipy.stats

from ppa_jax.studies.correlation import spearman


def test_by_hand():
    """Ranks 1..8 against the same with neighbours swapped: 1 - 6 * sum(d^2) / (n (n^2 - 1)) = 1 - 48 / 504."""
    x = np.arange(8.0)
    y = np.exp([1, 0, 3, 2, 5, 4, 7, 6])  # only the order counts
    found = spearman(x, y, {"points": list(range(8))})
    assert found is not None and found.rho == pytest.approx(1 - 6 * 8 / (8 * 63))
    assert found.rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found.points == found.groups["points"] == 8 and found.low < found.rho < found.high <= 1


def test_dependent_points_widen_the_interval():
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(6, 2))  # each point ten times, nearly
    points = np.repeat(groups, 10, axis=0) + rng.normal(size=(60, 2)) * 1e-3
    names = np.repeat(range(6), 10)
    together, apart = (spearman(*points.T, {"x": x}) for x in (names.tolist(), list(range(60))))
    assert together is not None and apart is not None and together.rho == apart.rho
    assert together.high - together.low > 2 * (apart.high - apart.low)
    both = spearman(*points.T, {"groups": names.tolist(), "points": list(range(60))})
    assert both is not None and both.high - both.low > 0.9 * (together.high - together.low)


def test_the_interval_of_a_true_zero_contains_it():
    """What varies comes from the set of blocks that the points share; languages alone would promise too much."""
    missed = 0
    for trial in range(8):
        rng = np.random.default_rng(trial)
        sets, languages = np.repeat(range(10), 15), np.tile(np.repeat(range(5), 3), 10)
        x, y = (rng.normal(size=10)[sets] + 0.3 * rng.normal(size=150) for _ in range(2))
        found = spearman(x, y, {"languages": languages.tolist(), "sets": sets.tolist()})
        assert found is not None
        missed += not found.low < 0 < found.high
    assert missed <= 2, "by languages alone it was two thirds"


def test_few_groups_have_no_interval():
    points = np.random.default_rng(0).normal(size=(2, 40))
    four, five = (spearman(*points, {"languages": (list(range(n)) * 40)[:40]}) for n in (4, 5))
    assert four is not None and np.isnan(four.low) and five is not None and np.isfinite(five.low)


def test_no_coefficient_of_few_points_or_of_a_constant():
    assert spearman(range(7), range(7), {"x": range(7)}) is None
    assert spearman(range(9), [1.0] * 9, {"x": range(9)}) is None
    found = spearman(range(8), range(8), {"x": [0] * 4 + [1] * 4})
    assert found is not None and np.isnan(found.low) and "[" not in str(found)
