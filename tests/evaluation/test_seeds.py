import numpy as np
import pytest

from ppa_jax.evaluation.seeds import Difference, mean_and_spread


def test_a_difference_by_hand():
    found = Difference.of([7.0, 8.0, 9.0])  # 8 ± 4.303 / sqrt(3)
    assert found == pytest.approx((8, 8 - 4.303 / 3**0.5, 8 + 4.303 / 3**0.5), abs=1e-3)
    assert found.off_zero and found.text() == "**+8.0 [+5.5, +10.5]**"
    wide = Difference.of([-1.0, 3.0])
    assert not wide.off_zero and wide.text(digits=2) == "+1.00 [-24.41, +26.41]"  # ± 12.706 * 2


def test_one_seed_has_no_interval_and_none_no_value():
    one = Difference.of([4.0])
    assert one.mean == 4 and np.isnan(one.low) and not one.off_zero and one.text() == "+4.0"
    assert Difference.of([]).text() is None and mean_and_spread([]) is None


def test_mean_and_spread():
    assert mean_and_spread([1.0, 3.0]) == "2.0 ±1.4" and mean_and_spread([1.234], digits=2) == "1.23"
