"Risk from records: steps, hazards with censoring, networks that read them, and what is refused"
import os, sys
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import log_loss

from medlearn.data.cohorts import landmark,summaries,Vocabulary
from medlearn.data.events import nafld,pbc,Records,stream
from medlearn.data.hospital import read_mimic,read_records
from medlearn.foundations.evaluation import auroc
from medlearn.foundations.sequences import read_all
from medlearn.kit.cards import DataError
from medlearn.sequences import records as R

root = Path(__file__).parent.parent
MIMIC = root.parent/'shared'/'data'/'mimic3_demo'


def made(n=60, seed=0, longest=30):
    "Made-up records: the more `a`, the sooner the event `ill`"
    rng = np.random.default_rng(seed)
    rows, events, end = [], [], {}
    for i in range(n):
        level = rng.normal()
        for t in np.sort(rng.uniform(-50, 100, rng.integers(0, longest))): rows.append((i, t, rng.choice(['a', 'b']), level + .1*rng.normal()))
        when = 100 + rng.exponential(900*np.exp(-2*level))
        end[i] = 100 + rng.uniform(100, 900)
        if when < end[i]: events.append((i, when, 'ill'))
        if rng.random() < .5: events.append((i, rng.uniform(-50, 100), 'other'))
    m = pd.DataFrame(rows, columns=['id', 'time', 'variable', 'value']).sort_values(['id', 'time'], ignore_index=True)
    e = pd.DataFrame(events, columns=['id', 'time', 'event']).sort_values(['id', 'time'], ignore_index=True)
    return Records(m, e, pd.DataFrame(dict(age=rng.normal(50, 10, n)), index=range(n)), pd.Series(end), name='made up')


@pytest.fixture(scope='module')
def cohort(): return landmark(made(), 100, 500, 'ill')


@pytest.fixture(scope='module')
def book(cohort): return R.CodeBook.of(cohort)


EDGES = np.arange(1, 6)*100


# Steps

def test_every_entry_is_a_step(cohort, book):
    x, n = R.encode(cohort, book, 64)
    assert x.shape == (len(cohort), 64, 4) and x.dtype == np.float32 and np.isfinite(x).all()
    for k, i in enumerate(cohort.table.index):
        s, names = stream(cohort.history.take([i])), [book.names[int(c)] for c in x[k, :n[k], 0]]
        assert names == ['age', *s.variable, 'landmark']
        assert (x[k, n[k]:, 0] == 1).all() and not x[k, n[k]:, 1:].any()
        left = np.log1p((100 - s.time)/book.unit)
        assert np.allclose(x[k, 1:n[k] - 1, 3], left, atol=1e-5) and x[k, n[k] - 1, 3] == 0
        gap = np.log1p(s.time.diff().fillna(0)/book.unit)
        assert np.allclose(x[k, 1:n[k] - 1, 2], gap, atol=1e-5)


def test_values_have_mean_0_and_spread_1(cohort, book):
    x, n = R.encode(cohort, book, 64)
    for name in ('a', 'b', 'age'):
        v = x[..., 1][x[..., 0] == book.names.index(name)]
        assert abs(v.mean()) < .02 and abs(v.std() - 1) < .1
    assert not x[..., 1][x[..., 0] == book.names.index('other')].any()


def test_long_histories_lose_the_oldest(cohort, book):
    full, n = R.encode(cohort, book, 64)
    short, m = R.encode(cohort, book, 8)
    assert m.max() == 8 and (m == np.minimum(n, 8)).all()
    for a, b, i, j in zip(full, short, n, m): assert np.allclose(b[2:j], a[i - j + 2:i]) and np.allclose(b[0], a[0])


def test_order_of_the_people_is_kept(cohort, book):
    back = cohort.take(cohort.table.index[::-1])
    (a, n), (b, m) = R.encode(cohort, book), R.encode(back, book)
    assert np.array_equal(a[::-1], b) and (n[::-1] == m).all()


def test_what_training_had_not_seen(cohort, book):
    h = cohort.history
    other = replace(cohort, history=replace(h, measurements=h.measurements.replace(dict(variable=dict(b='B')))))
    with pytest.raises(DataError, match="id 0: variable 'B' is not known. Did you mean b"): R.encode(other, book)
    x, n = R.encode(other, book, unknown='drop')
    assert not (x[..., 0] == book.names.index('b')).any() and n.sum() < R.encode(cohort, book)[1].sum()
    event = replace(cohort, history=replace(h, events=h.events.replace(dict(event=dict(other='new')))))
    with pytest.raises(DataError, match="event 'new' is not known"): R.encode(event, book)
    with pytest.raises(DataError, match='no column age'): R.encode(replace(cohort, history=replace(h, people=h.people[[]])), book)


def test_a_step_after_the_landmark_is_refused(cohort, book):
    late = replace(cohort, at=cohort.at.where(cohort.at.index != cohort.table.index[3], -60.))
    with pytest.raises(DataError, match=rf'of {cohort.table.index[3]} at day .* is later than the landmark, day -60'): R.encode(late, book)


def test_nothing_measured(cohort, book):
    empty = replace(cohort, history=replace(cohort.history, measurements=cohort.history.measurements[:0], events=cohort.history.events[:0]))
    x, n = R.encode(empty, book)
    assert (n == 2).all() and len(R.CodeBook.of(empty)) == 3
    assert R.record_set(empty, book, EDGES).sizes.eq(2).all()


# Hazards

@given(st.lists(st.tuples(st.floats(.5, 700), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_intervals(rows):
    t, e = map(np.array, zip(*rows))
    c = type('C', (), {})()
    c.table = pd.DataFrame(dict(time=t, event=e, label=0))
    died, seen = R.intervals(c, EDGES)
    assert (died.sum(1) == (e & (t <= 500))).all() and (died <= seen).all()
    for ti, ei, d, s in zip(t, e, died, seen):
        assert s.sum() == (np.searchsorted(EDGES, ti, 'left') + 1 if ei and ti <= 500 else np.searchsorted(EDGES, ti, 'right'))
        assert (np.diff(s) <= 0).all() and (not d.any() or d.argmax() == np.searchsorted(EDGES, ti, 'left'))


def test_one_question_is_the_label(cohort):
    died, seen = R.intervals(cohort)
    assert (died[:, 0] == (cohort.table.label == 1)).all() and (seen[:, 0] == (cohort.table.label >= 0)).all()
    with pytest.raises(ValueError, match='they rise'): R.intervals(cohort, [100, 50])
    with pytest.raises(ValueError, match='above 0'): R.intervals(cohort, [0, 50])


def test_loss_is_the_likelihood_of_the_product(cohort):
    died, seen = R.intervals(cohort, EDGES)
    z = torch.randn(len(cohort), 5, generator=torch.Generator().manual_seed(0)) - 2
    h, ll = z.sigmoid().double().numpy(), 0
    for hi, d, s in zip(h, died, seen):
        k = int(s.sum())
        ll += np.log1p(-hi[:k - bool(d.any())]).sum() + (np.log(hi[k - 1]) if d.any() else 0)
    assert np.isclose(float(R.hazard_loss(z, torch.tensor(died), torch.tensor(seen))), -ll/seen.sum(), rtol=1e-5)
    assert np.allclose(R.survival(z.numpy()), (1 - h).cumprod(1), rtol=1e-5)
    assert float(R.hazard_loss(z, torch.zeros_like(z), torch.zeros_like(z))) == 0


def test_base_rates_are_kaplan_meier():
    c = landmark(made(400), 100, 500, 'ill')
    died, seen = R.intervals(c, EDGES)
    rate = died.sum(0)/seen.sum(0)
    from scipy.stats import CensoredData, ecdf
    km = ecdf(CensoredData.right_censored(c.table.time.to_numpy(), ~c.table.event.to_numpy(bool))).sf.evaluate(EDGES)
    assert np.abs((1 - rate).cumprod() - km).max() < .05


def test_person_period(cohort):
    died, seen = R.intervals(cohort, EDGES)
    x, y = R.person_period(np.arange(len(cohort))[:, None], died, seen)
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
    for models in R.baselines(len(X)).values():
        tuned = R.tuned(models[:1], X, y, X, y, w, w)
        assert abs(tuned.predict_proba(X)[:, 1]@w/w.sum() - y@w/w.sum()) < .01


def test_an_honest_mean_is_the_work_of_the_loss():
    from sklearn.linear_model import LogisticRegression
    x, truth, time, seen = study(20_000, 2)
    c = type('C', (), {})()
    c.table = pd.DataFrame(dict(time=time, event=seen, label=0))
    def mean_risk(K):
        died, at_risk = R.intervals(c, np.arange(1, K + 1)*5/K)
        hazards = LogisticRegression(C=1.).fit(*R.person_period(x[:, None], died, at_risk))
        return (1 - R.hazard_curves(hazards, x[:, None], K)[:, -1]).mean()
    wide, narrow = mean_risk(5), mean_risk(20)
    assert abs(narrow - truth.mean()) < .015 and truth.mean() < wide < truth.mean() + .04 and seen[seen | (time >= 5)].mean() - truth.mean() > .05


# Networks

@pytest.mark.parametrize('kind,pool', [('gru', 'last'), ('lstm', 'mean'), ('rnn', 'max'), ('transformer', 'last'), ('transformer', 'attend'), ('gru', 'all'), ('transformer', 'all')])
def test_alone_as_in_a_batch(cohort, book, kind, pool):
    torch.manual_seed(0)
    net = R.record_net(len(book), 5, kind, 32, 2, pool).eval()
    x, n = (torch.as_tensor(v) for v in R.encode(cohort, book))
    assert n.max() > 5*n.min()
    with torch.no_grad():
        together = net(x, n)
        alone = torch.cat([net(x[i:i + 1, :n[i]], n[i:i + 1]) for i in range(len(x))])
    assert (together - alone).abs().max() < 1e-5


def sets(people, book=None):
    c = landmark(made(people), 100, 500, 'ill')
    book = book or R.CodeBook.of(c)
    return c, book, R.record_set(c, book, EDGES)


def test_learns_and_gives_what_it_read(cohort, book):
    c, book, train = sets(300)
    valid = R.record_set(cohort, book, EDGES)
    torch.manual_seed(0)
    learn = R.fit_records(R.record_net(len(book), 5, width=16), train, valid, 6, 1e-2, 32, 'cpu')
    held = landmark(made(200, seed=9), 100, 500, 'ill')
    risk = 1 - R.survival(read_all(learn, R.record_set(held, book, EDGES)))[:, -1]
    known = held.table.label >= 0
    assert auroc(held.table.label[known] == 1, risk[known])[0] > .8
    h = R.states(learn, valid, bs=7)
    assert h.shape == (len(cohort), 48) and np.allclose(torch.as_tensor(h)@learn.model.head.weight.cpu().detach().T + learn.model.head.bias.cpu().detach(), read_all(learn, valid), atol=1e-5)


def test_starts_at_the_base_rate():
    c, book, train = sets(200)
    torch.manual_seed(0)
    net = R.record_net(len(book), 5, width=16)
    learn = R.fit_records(net, train, train, 1, 0., 256, 'cpu')
    died, seen = R.intervals(c, EDGES)
    mean = 1/(1 + np.exp(-read_all(learn, train).mean(0)))
    assert np.allclose(mean, died.sum(0)/seen.sum(0), rtol=.3)


def test_the_same_seed_gives_the_same_network():
    _, book, train = sets(80)
    def once():
        torch.manual_seed(3)
        return read_all(R.fit_records(R.record_net(len(book), 5, width=8), train, train, 1, device='cpu'), train)
    assert np.array_equal(once(), once())


# Baselines, priors, one person

def test_tuned_takes_the_best_on_validation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = x[:, 0] + rng.normal(size=300) > 0
    def loss(m): return log_loss(y[200:], m.predict_proba(x[200:]))
    for models in R.baselines(200).values():
        best = R.tuned(models, x[:200], y[:200], x[200:], y[200:])
        assert best in models and loss(best) == min(map(loss, models))
    gaps = np.where(rng.random(x.shape) < .3, np.nan, x)
    for models in R.baselines(200).values(): assert np.isfinite(R.tuned(models, gaps, y, gaps, y).predict_proba(gaps)).all()


@given(st.floats(.01, .99), st.floats(.02, .98), st.floats(.02, .98))
@settings(max_examples=60, deadline=None)
def test_prior(p, a, b):
    q = R.correct_prior(p, a, b)
    assert np.isclose(R.correct_prior(q, b, a), p) and np.isclose(R.correct_prior(p, a, a), p) and np.isclose(R.correct_prior(a, a, b), b)
    assert np.isclose(q/(1 - q)*(1 - p)/p, b/(1 - b)*(1 - a)/a)


def test_prior_by_bayes():
    rng = np.random.default_rng(0)
    y = rng.random(200_000) < .05
    x = rng.normal(size=len(y)) + 1.5*y
    true = 1/(1 + np.exp(-(1.5*x - 1.125 + np.log(.05/.95))))
    half = 1/(1 + np.exp(-(1.5*x - 1.125)))
    assert np.allclose(R.correct_prior(half, .5, .05), true) and abs(true.mean() - y.mean()) < .002
    assert (R.correct_prior([0, 1], .5, .05) == [0, 1]).all()
    with pytest.raises(ValueError, match='between 0 and 1'): R.correct_prior(.5, 0, .1)


def test_one_person_on_many_days(cohort, book):
    r = made()
    i = r.measurements.id.value_counts().index[0]
    days = [-60., 0, 50, 100]
    c = R.at_days(r, i, days)
    for k, d in enumerate(days):
        a, b = stream(c.history.take([k])).drop(columns='id'), stream(r.take([i]).until(d)).drop(columns='id')
        pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True))
    x, n = R.encode(replace(c, history=book.vocabulary.check(c.history, 'drop')), book)
    same = cohort.take([i])
    if i in cohort.table.index: assert np.allclose(x[3][:n[3]], R.encode(same, book)[0][0][:n[3]])
    assert R.plot_risk(r, i, days, dict(net=[.1, .2, .3, .2]), (120, 'ill'), 'made up').axes[0].get_ylabel() == 'risk, %'
    with pytest.raises(DataError, match='id 999 is not in people'): R.at_days(r, 999, days)
    with pytest.raises(DataError, match='0 days'): R.at_days(r, i, [])


# What is refused

def test_cohorts_that_cannot_be_judged(cohort):
    s = cohort.split()
    assert R.check_split(cohort, s, 1).to_numpy().sum() == (cohort.table.label >= 0).sum()
    with pytest.raises(DataError, match=r"made up: \d people with '(yes|no)' in the split '\w+', at least 50 are needed"): R.check_split(cohort, s, 50)
    few = cohort.take(pd.concat([cohort.table[cohort.table.label == 0], cohort.table[cohort.table.label == 1][:2]]).index)
    with pytest.raises(DataError, match=r'\(2 with .yes. in all\)'): R.check_split(few, few.split())
    for label, said in ((0, 'no'), (1, 'yes')):
        one = cohort.take(cohort.table.index[cohort.table.label == label])
        with pytest.raises(DataError, match=f"known answers are '{said}'"): R.check_split(one, ['train']*len(one))
    many = replace(cohort, classes=['a', 'b', 'c'])
    with pytest.raises(DataError, match='3 classes'): R.check_split(many, s)


def folder(path, n=80, outcomes=None, extra=''):
    "A made-up folder of two files"
    rng = np.random.default_rng(1)
    path.mkdir()
    rows, labels = ['id,time,variable,value'], ['id,label,age' + (',time' if outcomes == 'early' else '')]
    for i in range(n):
        y, k = i % 2, rng.integers(1, 12)
        rows += [f'p{i},{t:.1f},{v},{y + rng.normal():.2f}' for t, v in zip(np.sort(rng.uniform(0, 90, k)), rng.choice(['hr', 'map'], k))]
        labels.append(f'p{i},{"alike" if outcomes == "alike" else ["alive", "dead"][y]},{50 + 5*y + rng.integers(0, 20)}' + (',1' if outcomes == 'early' else ''))
    if outcomes == 'lost': labels.pop()
    if extra: rows.append(extra)
    (path/'measurements.csv').write_text('\n'.join(rows))
    (path/'outcomes.csv').write_text('\n'.join(labels))
    return path


def test_an_outcome_before_the_landmark(tmp_path):
    r = read_records(folder(tmp_path/'mine', outcomes='early'))
    with pytest.raises(DataError, match=r'the outcome of p\d+ is at day 1, the landmark at day .*the answer would be among the inputs'): landmark(r)


@pytest.mark.parametrize('kw,message', [(dict(extra='p1,3,hr,high'), r"measurements.csv: row \d+: value 'high' of p1 is not a number"),
                                        (dict(outcomes='lost'), 'p79 has no outcome in outcomes.csv'), (dict(outcomes='alike'), "all labels are 'alike'")])
def test_bad_folders(kw, message, tmp_path):
    with pytest.raises(DataError, match=message): read_records(folder(tmp_path/'mine', **kw))


def chapter(dataset, tmp_path, **kw):
    "Run the chapter on a folder, as a user does"
    from medlearn.kit import runner
    jobs = runner.plan(['sequences/records'], 'smoke', (), dict(dataset=str(dataset), **kw))
    return runner.run(jobs, tmp_path/'out')[0]


def test_a_users_folder_end_to_end(tmp_path):
    row = chapter(folder(tmp_path/'mine'), tmp_path)
    assert row['status'] == 'passed', row


@pytest.mark.skipif(not MIMIC.exists(), reason='the demonstration tables of MIMIC-III are not beside the checkout')
def test_mimic_end_to_end(tmp_path):
    row = chapter(MIMIC, tmp_path)
    assert row['status'] == 'passed', row


@pytest.mark.skipif(not MIMIC.exists(), reason='the demonstration tables of MIMIC-III are not beside the checkout')
def test_past_of_an_admission():
    plain = read_mimic(MIMIC)
    r = R.with_past(plain, MIMIC)
    new = r.events[r.events.event.str.startswith(('before ', 'drug '))]
    assert len(r.events) == len(plain.events) + len(new) and (new[new.event.str.startswith('before')].time < 0).all()
    again = r.people[r.people.patient.duplicated(keep='first')].index
    assert set(new.id[new.event.str.startswith('before')]) & set(again)
    assert new.event.str.startswith('drug').sum() > 1000
    ward = landmark(r, 1, event='death in hospital')
    assert not ward.history.events.event.str.startswith('discharge').any() and ward.history.events.event.str.startswith('drug').any()


def test_the_pbc_trial_has_312_patients_and_290_at_its_landmark():
    r = pbc()
    assert len(r) == 312 and len(landmark(r, at=365, horizon=2922, event='death')) == 290


def test_nafld_weights():
    from scipy.stats import CensoredData, ecdf
    c = landmark(nafld(), 730, 1826, 'diabetes')
    c = c.take(c.table.index[c.table.time > 0])
    t, e = c.table.time.to_numpy(), c.table.event.to_numpy(bool)
    w, known = R.censoring_weights(t, e, 1826), c.table.label.to_numpy() >= 0
    risk = 1 - ecdf(CensoredData.right_censored(t, ~e)).sf.evaluate(1826)
    assert np.array_equal(w > 0, known) and np.isclose((w*e).sum()/len(c), risk) and np.isclose(w.sum(), len(c))
    assert e[known].mean() > 1.3*risk


def test_nafld_cohort():
    r = nafld()
    c = landmark(r, 730, 1826, 'diabetes')
    book = R.CodeBook.of(c)
    assert book.names[:2] == ['landmark', 'padding'] and {'hdl', 'sbp', 'htn', 'age'} <= set(book.names) and 'chol' not in book.names and 'diabetes' not in book.names
    s = R.record_set(c.take(c.table.index[:500]), book, np.arange(1, 6)*1826/5)
    assert s.sizes.min() >= 2 and len(s) == 500
    assert summaries(c.take(c.table.index[:50]), Vocabulary.of(c.history)).shape[0] == 50
