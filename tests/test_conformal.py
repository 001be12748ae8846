"Conformal prediction: the promise counted, the same as two libraries, and what is refused"
import numpy as np, pytest
from medlearn.foundations.conformal import (cases_needed, conformal_cut, conformal_intervals, conformal_rank, conformal_sets, control_risk,
                                            cover_table, coverage_law, covered_by, label_scores, missed_shares)
from medlearn.kit.cards import DataError


def made(n, seed=0, k=3):
    "Probabilities and labels drawn from them"
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(k), n)
    return p, (p.cumsum(1) > rng.random((n, 1))).argmax(1)


@pytest.mark.parametrize('alpha, n', [(.5, 1), (.2, 4), (.1, 9), (.05, 19), (.01, 99), (1/3, 2), (.3, 3)])
def test_cases_needed_is_exact(alpha, n):
    assert cases_needed(alpha) == n
    assert conformal_rank(n, alpha) <= n and (n == 1 or conformal_rank(n - 1, alpha) > n - 1)
    conformal_cut(np.arange(n), alpha)
    with pytest.raises(DataError, match=f'{n - 1} calibration cases are too few.*at least {n} are needed'): conformal_cut(np.arange(n - 1), alpha)


@pytest.mark.parametrize('alpha', [0, 1, -.1, 1.5, '0.1', None])
def test_alpha_outside_is_refused(alpha):
    with pytest.raises(DataError, match='alpha is'): conformal_cut(np.arange(50), alpha)


def test_cut_is_numpys_higher_quantile():
    s = np.random.default_rng(0).normal(size=83)
    assert conformal_cut(s, .1) == np.quantile(s, np.ceil(84*.9)/83, method='inverted_cdf') == np.sort(s)[75]


def test_coverage_follows_its_law():
    "Mean k/(n+1), and quantiles of the beta-binomial"
    rng, n, m, alpha = np.random.default_rng(1), 30, 100, .1
    hits = []
    for _ in range(4000):
        s = rng.exponential(size=n + m)
        hits.append((s[n:] <= conformal_cut(s[:n], alpha)).sum())
    law = coverage_law(n, alpha, m)
    assert abs(np.mean(hits)/m - 28/31) < .004 and abs(law.mean()/m - 28/31) < 1e-9
    for q in (.05, .5, .95): assert abs(np.quantile(hits, q) - law.ppf(q)) <= 1
    assert abs(coverage_law(n, alpha).mean() - 28/31) < 1e-9
    with pytest.raises(DataError, match='at least 9'): coverage_law(8, .1)


def test_adaptive_scores_by_hand():
    p = np.array([[.5, .3, .2], [.1, .1, .8]])
    assert np.allclose(label_scores(p, 'adaptive'), [[.5, .8, 1.], [.9, 1., .8]])
    u = np.random.default_rng(3).random((2, 1))
    assert np.allclose(label_scores(p, 'adaptive', 3), label_scores(p, 'adaptive') - u*p)
    with pytest.raises(ValueError, match='least'): label_scores(p, 'raps')


@pytest.mark.parametrize('kw', [dict(), dict(score='adaptive'), dict(score='adaptive', seed=0), dict(by='class')])
def test_sets_cover(kw):
    p, y = made(6000)
    a = conformal_sets(p[:3000], y[:3000], .1, **kw)
    got = covered_by(a.sets(p[3000:]), y[3000:])
    assert abs(got.mean() - .9) < .03 if kw.get('score') != 'adaptive' or 'seed' in kw else got.mean() > .88
    if kw.get('by'): assert all(abs(got[y[3000:] == c].mean() - .9) < .04 for c in range(3))


def test_same_as_mapie():
    from mapie.classification import SplitConformalClassifier
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    y = np.digitize(x[:, 0] + rng.normal(size=600), [-.5, .5])
    model = LogisticRegression().fit(x[:200], y[:200])
    p = model.predict_proba(x)
    theirs = SplitConformalClassifier(model, confidence_level=.9, conformity_score='lac').conformalize(x[200:400], y[200:400]).predict_set(x[400:])[1][..., 0]
    assert (theirs == conformal_sets(p[200:400], y[200:400], .1).sets(p[400:])).all()


def test_same_as_crepes():
    from crepes import ConformalClassifier, ConformalRegressor
    p, y = made(400)
    g = np.random.default_rng(5).integers(0, 2, 400)
    own = 1 - p[np.arange(400), y]
    theirs = ConformalClassifier().fit(own[:200], bins=g[:200]).predict_set(1 - p[200:], bins=g[200:], confidence=.9, smoothing=False) > 0
    assert (theirs == conformal_sets(p[:200], y[:200], .1, by=g[:200]).sets(p[200:], g[200:])).all()
    rng = np.random.default_rng(0)
    f, spread = rng.normal(size=300), rng.uniform(.5, 2, 300)
    truth = f + spread*rng.normal(size=300)
    theirs = ConformalRegressor().fit(truth[:150] - f[:150], sigmas=spread[:150]).predict_int(f[150:], sigmas=spread[150:], confidence=.9)
    ours = conformal_intervals(truth[:150], f[:150], .1, spread[:150]).bounds(f[150:], spread[150:])
    assert np.allclose(theirs, ours)


def test_risk_control_is_mapies():
    "The same threshold for the missed share as mapie's conformal risk control of recall"
    from mapie.risk_control import MultiLabelClassificationController
    rng = np.random.default_rng(2)
    y = rng.random((60, 30)) < .3
    p = np.clip(.5*y + .25 + .25*rng.normal(size=y.shape), 0, .999)
    cuts = np.linspace(0, .99, 100)
    model = MultiLabelClassificationController(lambda x: p[np.asarray(x)[:, 0].astype(int)], risk='recall', method='crc', target_level=.9, predict_params=cuts)
    model.calibrate(np.arange(60)[:, None], y.astype(int))
    losses = missed_shares(p, y, cuts[::-1] + 1e-12)
    assert np.isclose(cuts[::-1][control_risk(losses, .1)], np.ravel(model.best_predict_param)[0])


def test_intervals_by_group():
    rng = np.random.default_rng(0)
    g = rng.integers(0, 2, 2000)
    y = rng.normal(size=2000)*(1 + 3*g)
    b = conformal_intervals(y[:1000], np.zeros(1000), .1, by=g[:1000]).bounds(np.zeros(1000), by=g[1000:])
    hit = (b[:, 0] <= y[1000:]) & (y[1000:] <= b[:, 1])
    table = cover_table(hit, np.ptp(b, 1), g[1000:])
    assert (abs(table.coverage - .9) < .05).all() and table['mean size'][1] > 3*table['mean size'][0]


def test_risk_is_controlled():
    "On average over calibrations, from alpha - 2B/(n+1) to alpha (Angelopoulos et al. 2024, theorem 1 and 2)"
    rng, n, risks = np.random.default_rng(0), 40, []
    dials = np.linspace(0, 1, 400)
    for _ in range(600):
        losses = np.clip(rng.uniform(0, 1, (n + 200, 1)) - dials, 0, None)
        risks.append(losses[n:, control_risk(losses[:n], .1)].mean())
    assert .1 - 2/(n + 1) < np.mean(risks) <= .1


def test_missed_shares_by_hand():
    score = np.array([[[.9, .6], [.2, .1]]])
    mask = np.array([[[1, 1], [1, 0]]], bool)
    assert np.allclose(missed_shares(score, mask, [.95, .6, .15]), [[1, 1/3, 0]])


@pytest.mark.parametrize('call, said', [
    (lambda p, y: conformal_sets(p, y[1:]), 'must be of the same cases'),
    (lambda p, y: conformal_sets(p, y + 1), 'none of the 3 columns'),
    (lambda p, y: conformal_sets(p*2, y), 'sum 1'),
    (lambda p, y: conformal_sets(np.where(p > .9, np.nan, p), y), 'no finite number'),
    (lambda p, y: conformal_sets(p[:, 0], y), 'a column a class'),
    (lambda p, y: conformal_sets(p, y, by=np.array(['a']*5)), 'one group a row'),
    (lambda p, y: conformal_sets(p, y, by=np.array(['a']*195 + ['b']*5)), 'group b: 5 calibration cases are too few'),
    (lambda p, y: conformal_sets(p, y, by=np.array(['a']*200)).sets(p, np.array(['z']*200)), "group 'z' has no calibration case"),
    (lambda p, y: conformal_sets(p, y, by=np.array(['a']*200)).sets(p), 'say by='),
    (lambda p, y: conformal_sets(p, y, by=np.array(['a']*199 + [None], object)), 'row 199 has no group'),
    (lambda p, y: conformal_sets(p, np.minimum(y, 1), by='class'), 'class 2: 0 calibration cases'),
    (lambda p, y: conformal_sets(p, y, by='class').sets(p[:, :2]/p[:, :2].sum(1, keepdims=True)), 'calibrated were 3 classes'),
    (lambda p, y: conformal_intervals(y, p[1:, 0]), 'one of each a case'),
    (lambda p, y: conformal_intervals(y, p[:, 0], spread=np.zeros(200)), 'above 0'),
    (lambda p, y: conformal_intervals(y, p[:, 0]).bounds(p[:, 0], p[:, 0]), 'or to neither'),
    (lambda p, y: control_risk(p[:, ::-1].cumsum(1), .1), 'grows with caution'),
    (lambda p, y: control_risk(np.zeros((8, 3)), .1), 'at least 9 are needed'),
    (lambda p, y: control_risk(np.ones((80, 3)), .1), 'no dial reaches'),
    (lambda p, y: control_risk(2*np.ones((80, 3)), .1), 'run from 2'),
    (lambda p, y: missed_shares(np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool), [.5]), 'picture 0 has no lesion'),
    (lambda p, y: missed_shares(np.zeros((2, 3, 3)), np.zeros((2, 3, 4), bool), [.5]), 'must match'),
    (lambda p, y: missed_shares(np.zeros((2, 3, 3)), np.ones((2, 3, 3), bool), [.1, .5]), 'must fall'),
    (lambda p, y: cover_table(y > 0, p[1:, 0]), 'do not match')])
def test_bad_input_is_refused(call, said):
    with pytest.raises(DataError, match=said): call(*made(200))


def test_small_groups_have_no_interval():
    table = cover_table(np.ones(20), np.ones(20), np.array(['a']*17 + ['b']*3))
    assert np.isnan(table.low['b']) and not np.isnan(table.low['a'])
