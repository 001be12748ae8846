"Who left before the answer: curves, weights and hazards against scipy, scikit-survival, and a world whose truth is known"
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.stats import CensoredData, ecdf

from medlearn.data.cohorts import landmark
from medlearn.data.events import nafld, Records
from medlearn.foundations import censoring as R
from medlearn.foundations.evaluation import auroc, resample
from medlearn.kit.cards import DataError

EDGES = np.arange(1, 6)*100


def made(n=60, seed=0):
    "Made-up times: days to the event, or to the end of watching"
    rng = np.random.default_rng(seed)
    when, end = rng.exponential(900*np.exp(-rng.normal(size=n))), rng.uniform(100, 900, n)
    return np.minimum(np.minimum(when, end), 500), (when <= end) & (when <= 500)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_curves_are_those_of_the_libraries(rows):
    from sksurv import nonparametric as sksurv
    t, c = map(np.array, zip(*rows))
    days, S = sksurv.kaplan_meier_estimator(c == 1, t)
    assert np.allclose(R.kaplan_meier(t, c == 1, days)[0], S)
    assert np.isclose(R.kaplan_meier(t, c == 1, 8)[0, 0], ecdf(CensoredData.right_censored(t, c != 1)).sf.evaluate(8))
    F = R.aalen_johansen(t, c, days)[0]
    assert np.allclose(F.sum(0) + R.kaplan_meier(t, c > 0, days)[0], 1)
    if {1, 2} <= set(c): assert np.allclose(F, sksurv.cumulative_incidence_competing_risks(c, t)[1][1:])


def test_one_cause_is_kaplan_meier():
    t, e = made(200)
    assert np.allclose(R.aalen_johansen(t, e, EDGES)[0, 0], 1 - R.kaplan_meier(t, e, EDGES)[0])


def test_weights_are_copies():
    t, e = made(40)
    w = resample(40, 5)
    for row, S in zip(w, R.kaplan_meier(t, e, EDGES, w)):
        i = np.repeat(np.arange(40), row.astype(int))
        assert np.allclose(R.kaplan_meier(t[i], e[i], EDGES)[0], S)


def test_what_a_curve_refuses():
    with pytest.raises(DataError, match='times run from -1'): R.kaplan_meier([-1, 2], [True, False], 3)
    with pytest.raises(DataError, match='time is nan'): R.kaplan_meier([np.nan, 2], [True, False], 3)
    with pytest.raises(DataError, match='0 for censored'): R.aalen_johansen([1, 2], [-1, 2], 3)
    with pytest.raises(ValueError, match='must be alike'): R.kaplan_meier([1, 2, 3], [True, False], 3)


# Hazards

@given(st.lists(st.tuples(st.floats(.5, 700), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_intervals(rows):
    t, e = map(np.array, zip(*rows))
    died, seen = R.intervals(t, e, EDGES)
    assert (died.sum(1) == (e & (t <= 500))).all() and (died <= seen).all()
    for ti, ei, d, s in zip(t, e, died, seen):
        assert s.sum() == (np.searchsorted(EDGES, ti, 'left') + 1 if ei and ti <= 500 else np.searchsorted(EDGES, ti, 'right'))
        assert (np.diff(s) <= 0).all() and (not d.any() or d.argmax() == np.searchsorted(EDGES, ti, 'left'))


def test_edges_rise():
    with pytest.raises(ValueError, match='they rise'): R.intervals([1], [True], [100, 50])
    with pytest.raises(ValueError, match='above 0'): R.intervals([1], [True], [0, 50])


def test_loss_is_the_likelihood_of_the_product():
    died, seen = R.intervals(*made(), EDGES)
    z = torch.randn(len(died), 5, generator=torch.Generator().manual_seed(0)) - 2
    h, ll = z.sigmoid().double().numpy(), 0
    for hi, d, s in zip(h, died, seen):
        k = int(s.sum())
        ll += np.log1p(-hi[:k - bool(d.any())]).sum() + (np.log(hi[k - 1]) if d.any() else 0)
    assert np.isclose(float(R.hazard_loss(z, torch.tensor(died), torch.tensor(seen))), -ll/seen.sum(), rtol=1e-5)
    assert np.allclose(R.survival(z.numpy()), (1 - h).cumprod(1), rtol=1e-5)
    assert float(R.hazard_loss(z, torch.zeros_like(z), torch.zeros_like(z))) == 0


def test_base_rates_are_kaplan_meier():
    t, e = made(400)
    died, seen = R.intervals(t, e, EDGES)
    assert np.abs((1 - died.sum(0)/seen.sum(0)).cumprod() - R.kaplan_meier(t, e, EDGES)[0]).max() < .06


def test_person_period():
    died, seen = R.intervals(*made(), EDGES)
    x, y = R.person_period(np.arange(len(died))[:, None], died, seen)
    assert len(x) == seen.sum() and y.sum() == died.sum() and (x[:, 1:].sum(1) == 1).all() and x.shape[1] == 6
    class Half:
        def predict_proba(self, x): return np.full((len(x), 2), .5)
    assert np.allclose(R.hazard_curves(Half(), np.zeros((3, 2)), 4), [.5, .25, .125, .0625])


# The censored

def study(n, seed=0):
    "Made-up times with known truth: a score, whether the event comes within 5 years, and what a study with dropouts sees of it"
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    event, leave = rng.exponential(12*np.exp(-x)), rng.uniform(0, 8, n)
    time = np.minimum(np.minimum(event, leave), 5)
    return x, event <= 5, time, (event <= leave) & (event <= 5)


def test_weights_by_hand():
    assert np.allclose(R.censoring_weights([1, 2, 3, 3], [True, False, True, False], 3), [1, 0, 1.5, 1.5])
    assert np.allclose(R.censoring_weights([2, 2, 3], [True, False, False], 3), [1, 0, 2])
    assert np.allclose(R.censoring_weights([5, 5, 7], [False]*3, 5), 1)
    with pytest.raises(DataError, match='none of 2 people was followed up to day 9'): R.censoring_weights([1, 2], [False, False], 9)
    with pytest.raises(DataError, match='times run from'): R.censoring_weights([1, np.nan], [False, True], 9)


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=80, deadline=None)
def test_the_weighted_share_is_kaplan_meier(rows):
    from scipy.stats import CensoredData, ecdf
    t, e = map(np.array, zip(*[(min(t, 8), e and t <= 8) for t, e in rows]))
    if (~e & (t < 8)).all(): return
    w = R.censoring_weights(t, e, 8)
    assert (w[~e & (t < 8)] == 0).all() and (w[e | (t >= 8)] >= 1).all()
    risk = 1 - ecdf(CensoredData.right_censored(t, ~e)).sf.evaluate(8)
    assert np.isclose((w*e).sum()/len(t), risk)
    if t.max() >= 8: assert np.isclose(w.sum(), len(t))


def test_weights_recover_the_truth_and_dropping_does_not():
    from medlearn.foundations.calibration import brier
    x, truth, time, seen = study(60_000)
    w, known = R.censoring_weights(time, seen, 5), seen | (time >= 5)
    assert .3 < 1 - known.mean() < .6 and np.array_equal(w > 0, known) and (truth[known] == seen[known]).all()
    assert abs(np.average(seen, weights=w) - truth.mean()) < .01 and seen[known].mean() - truth.mean() > .05
    p = 1/(1 + np.exp(-x))
    for metric, least in ((auroc, .004), (brier, .004)):
        whole, some, left_out = (float(np.ravel(m)[0]) for m in (metric(truth, p), R.weighted(metric, w[known])(seen[known], p[known]), metric(seen[known], p[known])))
        assert abs(some - whole) < .006 and abs(left_out - whole) > least and abs(some - whole) < .5*abs(left_out - whole), metric


def test_weighted_scores_are_those_of_scikit_learn():
    from sklearn.metrics import brier_score_loss, roc_auc_score
    from medlearn.foundations.calibration import brier
    from medlearn.foundations.evaluation import estimate,resample
    x, _, time, seen = study(400, 3)
    w = R.censoring_weights(time, seen, 5)
    known, p = w > 0, 1/(1 + np.exp(-x))
    y, p, w = seen[known], p[known], w[known]
    assert np.isclose(R.weighted(auroc, w)(y, p)[0], roc_auc_score(y, p, sample_weight=w))
    assert np.isclose(R.weighted(brier, w)(y, p)[0], brier_score_loss(y, p, sample_weight=w))
    draws = resample(len(y), 3)
    assert np.allclose(R.weighted(auroc, w)(y, p, draws), [roc_auc_score(y, p, sample_weight=w*d) for d in draws])
    value, low, high = estimate(R.weighted(auroc, w), y, p, resample(len(y), 200))
    assert low < value < high


def test_an_honest_mean_is_the_work_of_the_loss():
    from sklearn.linear_model import LogisticRegression
    x, truth, time, seen = study(20_000, 2)
    def mean_risk(K):
        died, at_risk = R.intervals(time, seen, np.arange(1, K + 1)*5/K)
        hazards = LogisticRegression(C=1.).fit(*R.person_period(x[:, None], died, at_risk))
        return (1 - R.hazard_curves(hazards, x[:, None], K)[:, -1]).mean()
    wide, narrow = mean_risk(5), mean_risk(20)
    assert abs(narrow - truth.mean()) < .015 and truth.mean() < wide < truth.mean() + .04 and seen[seen | (time >= 5)].mean() - truth.mean() > .05


def test_weighted_training_is_scikit_learns_and_mends_the_mean():
    from sklearn.linear_model import LogisticRegression
    x, truth, time, seen = study(20_000, 1)
    w = R.censoring_weights(time, seen, 5)
    known = w > 0
    X, y, w = x[known, None], seen[known], w[known]
    model = [LogisticRegression(C=1.)]
    ours = R.tuned(model, X, y, X, y, w, w).predict_proba(x[:, None])[:, 1]
    assert np.allclose(ours, LogisticRegression(C=1.).fit(X, y, sample_weight=w).predict_proba(x[:, None])[:, 1])
    plain = R.tuned(model, X, y, X, y).predict_proba(x[:, None])[:, 1]
    assert abs(ours.mean() - truth.mean()) < .01 and plain.mean() - truth.mean() > .03


def test_tuned_takes_the_best_on_validation():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = x[:, 0] + rng.normal(size=300) > 0
    models = [make_pipeline(StandardScaler(), LogisticRegression(C=c)) for c in (.0001, .1, 10)]
    best = R.tuned(models, x[:200], y[:200], x[200:], y[200:], np.ones(200), np.ones(100))
    def loss(m): return log_loss(y[200:], m.predict_proba(x[200:]))
    assert best in models and loss(best) == min(map(loss, models))


def test_cohorts_that_cannot_be_judged():
    n, rng = 60, np.random.default_rng(0)
    t, e = made(n)
    r = Records(pd.DataFrame(columns=['id', 'time', 'variable', 'value']), pd.DataFrame(dict(id=np.flatnonzero(e), time=t[e], event='ill')),
                pd.DataFrame(index=range(n)), pd.Series(np.where(e, t + 1, t)), name='made up')
    cohort = landmark(r, 0, 500, 'ill')
    s = cohort.split()
    assert R.check_split(cohort, s, 1).to_numpy().sum() == (cohort.table.label >= 0).sum()
    with pytest.raises(DataError, match=r"made up: \d+ people with '(yes|no)' in the split '\w+', at least 50 are needed"): R.check_split(cohort, s, 50)
    few = cohort.take(pd.concat([cohort.table[cohort.table.label == 0], cohort.table[cohort.table.label == 1][:2]]).index)
    with pytest.raises(DataError, match=r'\(2 with .yes. in all\)'): R.check_split(few, few.split())
    for label, said in ((0, 'no'), (1, 'yes')):
        one = cohort.take(cohort.table.index[cohort.table.label == label])
        with pytest.raises(DataError, match=f"known answers are '{said}'"): R.check_split(one, ['train']*len(one))
    many = replace(cohort, classes=['a', 'b', 'c'])
    with pytest.raises(DataError, match='3 classes'): R.check_split(many, s)


def test_nafld_weights():
    c = landmark(nafld(), 730, 1826, 'diabetes')
    c = c.take(c.table.index[c.table.time > 0])
    t, e = c.table.time.to_numpy(), c.table.event.to_numpy(bool)
    w, known = R.censoring_weights(t, e, 1826), c.table.label.to_numpy() >= 0
    risk = 1 - ecdf(CensoredData.right_censored(t, ~e)).sf.evaluate(1826)
    assert np.array_equal(w > 0, known) and np.isclose((w*e).sum()/len(c), risk) and np.isclose(w.sum(), len(c))
    assert e[known].mean() > 1.3*risk
