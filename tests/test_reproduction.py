"Two arms and their difference; the best of several tries; Dice of slices"
import numpy as np, pandas as pd, pytest
from medlearn.data.outlines import Mask, overlap
from medlearn.kit.cards import DataError
from medlearn.trust.bookkeeping import best_of, slicewise_dice
from medlearn.trust.reproduction import inflation, inflation_row, plot_inflation


def test_inflation_is_the_mean_difference_with_its_interval():
    noise = np.random.default_rng(0).normal(0, .01, 4000)
    rows = inflation(lambda s: (.8 + noise[s % 4000], .7), 40, seed=1)
    assert rows.shape == (40, 2) and list(rows) == ['flawed', 'repaired']
    r = inflation_row(rows)
    assert r['inflation'] == pytest.approx(rows.flawed.mean() - rows.repaired.mean())
    assert r['low'] < r['inflation'] < r['high'] and r['high'] - r['low'] == pytest.approx(2*1.96*.01/np.sqrt(40), rel=.3)


def test_the_same_seed_gives_the_same_repeats_and_another_gives_others():
    trial = lambda s: (s, 0)
    assert inflation(trial, 3, 7).equals(inflation(trial, 3, 7)) and not set(inflation(trial, 3, 7).flawed) & set(inflation(trial, 3, 8).flawed)


def test_a_repeat_without_a_score_is_named_and_too_few_are_refused():
    with pytest.raises(DataError, match='repeat 2'): inflation(lambda s: (.5, np.nan if s == 2 else .5), 6)
    with pytest.raises(DataError, match='at least 5'): inflation_row(inflation(lambda s: (.5, .4), 3))


def test_the_figure_names_each_flaw():
    t = pd.DataFrame(dict(a=inflation_row(inflation(lambda s: (.6 + .001*s, .5), 6)))).T
    fig = plot_inflation(t)
    assert [x.get_text() for x in fig.axes[0].get_yticklabels()] == ['a']


def test_best_of_agrees_with_counting_by_hand():
    v = np.array([0., 1.])
    assert best_of(v, 2, draws=10).tolist() == [.5]*10
    one = best_of(v, 1, 3, draws=4000)
    assert set(one) == {0., 1.} and one.mean() == pytest.approx(1 - .5**3, abs=.03)
    assert best_of(np.arange(9.), 2, 5, draws=3000).mean() > best_of(np.arange(9.), 2, 1, draws=3000).mean() + 1


@pytest.mark.parametrize('n', [0, 4])
def test_best_of_refuses_impossible_draws(n):
    with pytest.raises(DataError, match='draw one at least'): best_of(np.arange(3.), n)


def test_best_of_names_a_case_without_a_value():
    with pytest.raises(DataError, match='case 1'): best_of([.1, np.nan, .3], 1)


def mask(z, corner=(0, 0), fill=1):
    v = np.zeros((len(z), 4, 4), np.uint8)
    v[:, 1:3, 1:3] = fill
    return Mask(v, np.array(z, float), corner, (1., 1., 1.))


def test_dice_over_slices_by_hand():
    a, b = mask([0, 1, 2]), mask([0, 1, 2])
    assert slicewise_dice(a, b) == overlap(a, b) == 1
    c = mask([1, 2, 3]) # two slices agree, two stand alone
    assert slicewise_dice(a, c) == pytest.approx(2/4) and overlap(a, c) == pytest.approx(2/3)
    assert slicewise_dice(a, c, empty=4) == pytest.approx((2 + 4)/8)
    with pytest.raises(DataError, match='empty slices'): slicewise_dice(a, b, -1)
