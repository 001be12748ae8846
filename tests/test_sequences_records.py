"Risk from records: steps, networks that read them, and what is refused"
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

from medlearn.data.cohorts import landmark,summaries,Vocabulary
from medlearn.data.events import nafld,pbc,Records,stream
from medlearn.data.hospital import read_records
from medlearn.foundations.budget import Budget
from medlearn.foundations.censoring import intervals,survival
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


# Questions

def test_one_question_is_the_label(cohort, book):
    lengths, died, seen = R.record_set(cohort, book).y
    assert (died[:, 0].numpy() == (cohort.table.label == 1)).all() and (seen[:, 0].numpy() == (cohort.table.label >= 0)).all()
    died, seen = R.record_set(cohort, book, EDGES).y[1:]
    a, b = intervals(cohort.table.time, cohort.table.event, EDGES)
    assert (died.numpy() == a).all() and (seen.numpy() == b).all()


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
    learn = R.fit_records(R.record_net(len(book), 5, width=16), train, valid, Budget(60), 1e-2, 32, 'cpu')
    held = landmark(made(200, seed=9), 100, 500, 'ill')
    risk = 1 - survival(read_all(learn, R.record_set(held, book, EDGES)))[:, -1]
    known = held.table.label >= 0
    assert auroc(held.table.label[known] == 1, risk[known])[0] > .8


def test_starts_at_the_base_rate():
    c, book, train = sets(200)
    torch.manual_seed(0)
    net = R.record_net(len(book), 5, width=16)
    learn = R.fit_records(net, train, train, Budget(2), 0., 256, 'cpu')
    died, seen = intervals(c.table.time, c.table.event, EDGES)
    mean = 1/(1 + np.exp(-read_all(learn, train).mean(0)))
    assert np.allclose(mean, died.sum(0)/seen.sum(0), rtol=.3)


def test_the_same_seed_gives_the_same_network():
    _, book, train = sets(80)
    def once():
        torch.manual_seed(3)
        return read_all(R.fit_records(R.record_net(len(book), 5, width=8), train, train, Budget(4), device='cpu'), train)
    assert np.array_equal(once(), once())


# One person

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
    row = chapter(folder(tmp_path/'mine', 240), tmp_path)
    assert row['status'] == 'passed', row


@pytest.mark.skipif(not MIMIC.exists(), reason='the demonstration tables of MIMIC-III are not beside the checkout')
def test_mimic_end_to_end(tmp_path):
    row = chapter(MIMIC, tmp_path)
    assert row['status'] in ('passed', 'failed') and not row.get('error'), row # a hundred patients show nothing: claims may fall


def test_the_pbc_trial_has_312_patients_and_290_at_its_landmark():
    r = pbc()
    assert len(r) == 312 and len(landmark(r, at=365, horizon=2922, event='death')) == 290


def test_nafld_cohort():
    r = nafld()
    c = landmark(r, 730, 1826, 'diabetes')
    book = R.CodeBook.of(c)
    assert book.names[:2] == ['landmark', 'padding'] and {'hdl', 'sbp', 'htn', 'age'} <= set(book.names) and 'chol' not in book.names and 'diabetes' not in book.names
    s = R.record_set(c.take(c.table.index[:500]), book, np.arange(1, 6)*1826/5)
    assert s.sizes.min() >= 2 and len(s) == 500
    assert summaries(c.take(c.table.index[:50]), Vocabulary.of(c.history)).shape[0] == 50
