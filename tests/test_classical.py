"Classical models: the folds keep patients together, the interval is the published one, the shapes are in mm"
import warnings
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from medlearn.foundations.classical import corrected_interval, models, nested_cv, shape_features
from medlearn.kit.cards import DataError


def rows(n=120, columns=5, signal=0, seed=0):
    "A table whose first column carries `signal`"
    rng = np.random.default_rng(seed)
    x,y = pd.DataFrame(rng.standard_normal((n, columns))).add_prefix('c'), rng.random(n) < .5
    return x.assign(c0=x.c0 + signal*y), y


def disc(radius, mm, side=80, centre=(0, 0)):
    "A disc of `radius` mm with grey rim pixels, by counting sixteen points in each"
    fine = (np.indices((side*4, side*4)) + .5)*mm/4 - side*mm/2 - np.array(centre).reshape(2, 1, 1)
    inside = (np.hypot(*fine) < radius).reshape(side, 4, side, 4).mean((1, 3))
    return np.rint(inside*255).astype(np.uint8)


class Memory(ClassifierMixin, BaseEstimator):
    "Knows the label of each patient it was trained on by the patient's number in column `patient`; else 0.5"
    def fit(self, x, y):
        self.classes_,self.known = np.array([False, True]),dict(zip(x.patient, y))
        return self
    def predict_proba(self, x): return np.array([[1 - p, p] for p in (float(self.known.get(i, .5)) for i in x.patient)])


def test_noise_is_chance_and_signal_is_found():
    six = {n: m for n,m in models(10).items() if n in ('best single column', 'logistic regression', 'decision tree')}
    for signal,low,high in ((0, .3, .7), (3, .9, 1)):
        folds,scores = nested_cv(six, *rows(signal=signal), folds=4)
        means = folds.groupby('model').outer.mean()
        assert means.between(low, high).all(), means
        assert all(s.shape == (1, 120) and np.isfinite(s).all() for s in scores.values())


def test_all_six_run_with_missing_values_and_repeat_bitwise():
    x,y = rows(80, signal=2)
    x = x.mask(np.random.default_rng(1).random(x.shape) < .1)
    a,b = (nested_cv(models(5), x, y, folds=2, repeats=2, inner=2, seed=3)[0] for _ in range(2))
    pd.testing.assert_frame_equal(a, b)
    assert len(a) == 6*2*2 and (a.groupby('model').outer.mean() > .7).all()


def test_shuffled_answers_reach_the_training_and_not_the_judging(monkeypatch, capsys):
    two = {n: m for n,m in models(10).items() if n in ('best single column', 'logistic regression')}
    x,y = rows(200, signal=3)
    honest,_ = nested_cv(two, x, y, folds=4)
    monkeypatch.setenv('MEDLEARN_SABOTAGE', 'answers')
    broken,scores = nested_cv(two, x, y, folds=4)
    assert 'answers were shuffled' in capsys.readouterr().out
    assert (honest.groupby('model').outer.mean() > .9).all()
    assert broken.inner.mean() < .75 and broken.outer.std() > .1 # luck decides which way the columns point


def test_a_constant_column_is_no_single_best_and_no_warning():
    x,y = rows(signal=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pipe = models()['best single column'][0].fit(x.assign(constant=1.), y)
    assert (pipe.predict(x.assign(constant=1.)) == y).mean() > .7


def test_patients_stay_on_one_side():
    patient = np.repeat(np.arange(40), 4)
    y,x = patient % 2 == 0, pd.DataFrame(dict(patient=patient))
    by_row,by_patient = (nested_cv({'memory': (Memory(), {})}, x, y, g, folds=4)[0] for g in (None, patient))
    assert (by_row.outer > .9).all()
    assert (by_patient.outer == .5).all() and (by_patient.inner == .5).all()


def test_too_few_patients_of_a_class():
    x,_ = rows(40)
    with pytest.raises(DataError, match='rarer class has 3 patients'): nested_cv(models(5), x, np.arange(40) < 3)
    with pytest.raises(DataError, match='rarer class has 1 patients'): nested_cv(models(5), x, np.arange(40) < 20, groups=np.where(np.arange(40) < 20, 0, np.arange(40)))


def test_corrected_interval_is_wider_than_the_naive_one():
    d = np.array([.01, .03, .02, .05, -.01])
    mean,low,high = corrected_interval(d, folds=5)
    assert mean == pytest.approx(.02)
    naive = 2.7764451*d.std(ddof=1)/np.sqrt(5) # t quantile for 4 degrees of freedom
    assert (high - low)/2 == pytest.approx(naive*np.sqrt((1/5 + 1/4)/(1/5)), rel=1e-6)


@given(radius=st.floats(4, 14), mm=st.sampled_from([.4, .5, .75]), shift=st.floats(-1, 1))
@settings(max_examples=25, deadline=None)
def test_a_disc_has_its_size_in_mm_at_any_resolution(radius, mm, shift):
    f = shape_features(disc(radius, mm, centre=(shift, -shift)), mm) # the smallest is eleven pixels across
    assert f['area_mm2'] == pytest.approx(np.pi*radius**2, rel=.01)
    assert f['perimeter_mm'] == pytest.approx(2*np.pi*radius, rel=.06)
    assert f['length_mm'] == pytest.approx(2*radius, rel=.05) == f['width_mm']
    assert f['eccentricity'] < .35 and f['solidity'] > .9 and f['roundness'] == pytest.approx(1, abs=.1)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**16 - 1))
@settings(max_examples=60, deadline=None)
def test_any_picture_has_finite_features_wherever_it_lies(i, j, bits):
    small = np.array([bits >> k & 1 for k in range(16)], np.uint8).reshape(4, 4)*255
    image = np.zeros((10, 10), np.uint8)
    image[i:i+4, j:j+4] = small
    if not small.any():
        with pytest.raises(DataError, match='something inside'): shape_features(image, 1)
    else:
        f = shape_features(image, 1.)
        assert all(np.isfinite(v) and v >= 0 for v in f.values()) and f['area_mm2'] == small.sum()/255
        assert f == shape_features(small, 1.)


@pytest.mark.parametrize('image', [np.zeros((4, 4), np.uint8), np.ones((4, 4)), np.ones((2, 4, 4), np.uint8), np.ones((4, 4), bool), np.zeros((0, 4), np.uint8)])
def test_what_is_not_an_outline_is_an_error(image):
    with pytest.raises(DataError, match='outline'): shape_features(image, 1)
