"A reader's own records and tables: which answer is asked about, what is read, what is refused, what is handed over"
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from medlearn.data import records as T
from medlearn.data.cohorts import landmark,summaries,Vocabulary
from medlearn.data.hospital import read_records
from medlearn.foundations import classical as C
from medlearn.foundations.budget import Budget
from medlearn.foundations.censoring import survival
from medlearn.foundations.sequences import read_all
from medlearn.kit.cards import DataError
from medlearn.sequences import records as R

ICU = Path(__file__).parent.parent.parent/'shared'/'data'/'icu2012_a'

def folder(path, n=40, labels=('lived', 'died'), variables=('hr', 'map'), extra='', days=(0., 1, 2), more=''):
    "A made-up folder of records"
    rng = np.random.default_rng(0)
    path.mkdir(exist_ok=True)
    rows = [f'p{i},{d},{v},{70 + 8*(i % 2) + rng.normal():.2f}' for i in range(n) for d in days for v in variables]
    (path/'measurements.csv').write_text('\n'.join(['id,time,variable,value', *rows, '']) )
    (path/'outcomes.csv').write_text('\n'.join(['id,label,age' + extra, *(f'p{i},{labels[i % 2]},{50 + i}' + more*bool(extra) for i in range(n)), '']))
    return path

# Which answer is asked about

def test_died_is_the_risk_and_another_can_be_named(tmp_path):
    r = read_records(folder(tmp_path/'a'))
    c = landmark(r)
    assert c.classes == ['lived', 'died'] and c.table.label.mean() == .5 and c.table.label['p1'] == 1 and 'died' in c.question
    assert landmark(r, positive='lived').classes == ['died', 'lived'] and landmark(r, positive='lived').table.label['p0'] == 1
    assert landmark(read_records(tmp_path/'a', positive='lived')).classes == ['died', 'lived']
    with pytest.raises(DataError, match="positive is 'dead', the classes are died, lived"): read_records(tmp_path/'a', positive='dead')

@pytest.mark.parametrize('classes,positive,want', [(['0', '1'], None, '1'), (['0', '1'], '0', '0'), (['alive', 'dead'], None, 'dead'), (['death', 'survival'], None, 'death'), (['a', 'b'], None, 'b'),
                                                   (['benign', 'malignant'], None, 'malignant'), (['pneumonia', 'normal'], None, 'pneumonia'), (['a', 'b', 'c'], 'b', 'b')])
def test_the_calm_word_is_not_the_risk(classes, positive, want):
    said,why = T.which_is_yes(classes, positive)
    assert said[-1] == want and len(said) == 2 and why

# What stopped other people's folders

def test_one_variable_only(tmp_path):
    c = landmark(read_records(folder(tmp_path/'a', variables=('hr',))))
    assert summaries(c, extremes=True).shape == (40, 7) and R.encode(c, R.CodeBook.of(c))[1].max() == 5

def test_a_name_both_measured_and_in_the_table(tmp_path):
    r = read_records(folder(tmp_path/'a', variables=('hr', 'age')))
    assert list(r.people) == ['age from the start'] and r.counts['names both measured and in outcomes.csv'] == 1
    c = landmark(r)
    assert summaries(c).columns.is_unique and R.encode(c, R.CodeBook.of(c))[0].shape[0] == 40

def test_all_on_one_day(tmp_path):
    c = landmark(read_records(folder(tmp_path/'a', days=(0.,))))
    b = R.CodeBook.of(c)
    assert b.unit == 1 and np.isfinite(R.encode(c, b)[0]).all() and np.isfinite(R.encode(c, b, days=1.)[0]).all()

def test_a_question_mark_is_told_how_to_be_named(tmp_path):
    at = folder(tmp_path/'a')
    text = (at/'outcomes.csv').read_text()
    (at/'outcomes.csv').write_text(text.replace('p3,died,53', 'p3,died,?'))
    with pytest.raises(DataError, match=r"row 5: age '\?' of p3 is not a number .1 such rows.. If it says that nothing is known, say missing = \[\"\?\"\] in dataset.toml"): read_records(at)
    assert np.isnan(read_records(at, missing=('?',)).people.age['p3'])

def test_an_outcome_that_is_missing(tmp_path):
    at = folder(tmp_path/'a')
    text = (at/'outcomes.csv').read_text()
    (at/'outcomes.csv').write_text(text.replace('p3,died', 'p3,').replace('p4,lived,54\n', ''))
    with pytest.raises(DataError, match='unknown = "leave out"|has no label'): read_records(at)
    r = read_records(at, unknown='leave out')
    assert len(r) == 38 and r.counts['outcomes not known'] == 2 and not r.measurements.id.isin(['p3', 'p4']).any()

def test_a_large_file_is_read_at_once_and_alike(tmp_path):
    at = folder(tmp_path/'a', n=10000)
    whole = read_records(at)
    raw = (at/'measurements.csv').read_text()
    assert len(raw) > 1_000_000
    (at/'measurements.csv').write_text(raw.replace('p0,0.0,hr', '"p0",0.0,hr', 1))
    assert read_records(at).measurements.equals(whole.measurements)
    (at/'measurements.csv').write_text(raw + 'p1,3,hr,81,5\n')
    with pytest.raises(DataError, match='row 60002 has 5 values for 4 columns'): read_records(at)

# Long records

def test_entries_of_one_hour_are_one_step_and_none_is_lost(tmp_path):
    c = landmark(read_records(folder(tmp_path/'a', days=tuple(np.arange(200)/100))))
    days = R.steps_for(c)
    assert days == pytest.approx(1/24) and R.steps_for(landmark(read_records(tmp_path/'a'), at=.1)) == 0
    b = R.CodeBook.of(c)
    x,n = R.encode(c, b, 128, days=days)
    assert (n == 2*200 + 2).all() and x[..., 4].max() + 1 <= 50
    assert (x[0, :n[0], 4] == np.maximum.accumulate(x[0, :n[0], 4])).all()
    net = R.record_net(len(b), 1, 'lstm', 16).eval()
    with torch.no_grad():
        lengths = torch.as_tensor(n)
        z = net(torch.as_tensor(x), lengths)
        alone = net(torch.as_tensor(x[5:6, :n[5]]), lengths[5:6])
    assert net.steps(torch.as_tensor(x), lengths).max() == x[..., 4].max() + 1 and abs(z[5] - alone[0]).max() < 1e-5
    y,m = R.encode(c, b, 10, days=days)
    assert y[..., 4].max() == 9 and (m < n).all() and (y[:, 0, 0] == x[:, 0, 0]).all()

def test_risks_of_new_cases_are_the_chapters(tmp_path):
    c = landmark(read_records(folder(tmp_path/'a')))
    b,(train,test) = R.CodeBook.of(c),(c.take(c.table.index[:30]), c.take(c.table.index[30:]))
    torch.manual_seed(0)
    for days in (0., .5):
        sets = [R.record_set(p, b, most=16, days=days) for p in (train, test)]
        learn = R.fit_records(R.record_net(len(b), 1), *sets, Budget(3), device='cpu')
        config = R.handed_config(b, kind='gru', n_out=1, most=16, days=days, unknown='drop', classes=c.classes, at=None, event=None, horizon=None)
        got = R.new_cases(learn.model.state_dict(), config, tmp_path/'a')
        assert list(got) == ['lived', 'died'] and np.allclose(got.died[test.table.index], 1 - survival(read_all(learn, sets[1]))[:, -1], atol=1e-5)
    far = folder(tmp_path/'b')
    (far/'measurements.csv').write_text((far/'measurements.csv').read_text().replace(',hr,', ',hr,1'))
    with pytest.raises(DataError, match='hr is 17.* another unit'): R.new_cases(learn.model.state_dict(), config, far)
    with pytest.raises(DataError, match="variable 'pulse' is not known"): R.new_cases(learn.model.state_dict(), config | dict(unknown='refuse'), folder(tmp_path/'c', variables=('pulse',)))

# Tables

def table(path, n=60, **columns):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    df = pd.DataFrame(dict(id=[f'p{i:02}' for i in rng.permutation(n)], age=rng.integers(30, 90, n), crp=(y + rng.normal(size=n)).round(3), ward=rng.choice(['A', 'B'], n), label=np.where(y, 'died', 'lived')))
    df.assign(**columns).to_csv(path, index=False)
    return path

def test_a_table_is_read_and_told(tmp_path):
    df = T.read_table(table(tmp_path/'t.csv', site='one', notes=[f'free text {i}' for i in range(60)], row=range(60)))
    x,y = T.xy(df)
    told = df.attrs['told']
    assert list(x) == ['age', 'crp', 'ward_A', 'ward_B'] and y.sum() == 30 and df.attrs['positive'] == 'died' and 'word for healthy or alive' in told['asked about']
    assert told['left out'] == 'site: the same in all rows; notes: names or free text; row: counts the rows' and told['answers'] == 'died 30 (50.0%), lived 30 (50.0%)'
    assert list(df[df.index == 'p07'].pipe(T.xy)[0]) == list(x)

def test_what_gives_the_answer_away(tmp_path):
    y = np.arange(60) % 2
    told = T.read_table(table(tmp_path/'t.csv', cause=np.where(y, 'shock', 'none'), stay=10 + y*5 + np.arange(60)/100)).attrs['told']
    assert told['gives the answer away'].startswith('cause, stay: is it known before')
    assert 'gives the answer away' not in T.read_table(tmp_path/'t.csv', drop=['cause', 'stay']).attrs['told']

def test_rows_that_contradict_each_other(tmp_path):
    told = T.read_table(table(tmp_path/'t.csv', age=np.arange(60)//6, crp=1, ward='A')).attrs['told']
    assert '60 of them to one with the other answer: no model can be right in more than 50.0% of the rows' in told['equal rows']

def test_equal_rows_and_patients_stay_together(tmp_path):
    df = T.read_table(table(tmp_path/'t.csv', patient=[f'q{i//3}' for i in range(60)]))
    assert df.groupby('patient').split.nunique().max() == 1 and 'patient' not in T.xy(df)[0] and df.attrs['told']['patients'] == '20'

@pytest.mark.parametrize('columns,kw,message', [
    (dict(age=['31']*59 + ['>90']), {}, r"row 61: age is '>90', no number as the others are"), (dict(age=[31 + i for i in range(59)] + [-999]), {}, 'age is -999, apart from all others'),
    (dict(label=['a', 'b', 'c']*20), {}, 'label has 3 values .a, b, c.. Two are wanted'), (dict(label='x'), {}, "all answers are 'x'"), (dict(label=[None] + ['a', 'b']*29 + ['a']), {}, 'row 2: label is .*not known'),
    (dict(id='p1'), {}, 'row 3: id p1 is there twice. Name the patient'), ({}, dict(label='outcome'), 'no column outcome; it has id, age'), ({}, dict(positive='ill'), "positive is 'ill', the classes are died, lived"),
    (dict(split='later'), {}, "split is 'later': it is train, valid or test")])
def test_a_table_that_is_refused(tmp_path, columns, kw, message):
    with pytest.raises(DataError, match=message): T.read_table(table(tmp_path/'t.csv', **columns), **kw)

def test_a_linear_model_as_numbers(tmp_path):
    df = T.read_table(table(tmp_path/'t.csv', age=[None] + list(range(30, 89))))
    x,y = T.xy(df)
    pipe = C.models()['logistic regression'][0].fit(x, y)
    config = C.column_config(df, x) | dict(classes=['lived', 'died'], id='id')
    pd.read_csv(tmp_path/'t.csv').drop(columns='label').to_csv(tmp_path/'new.csv', index=False)
    got = C.new_cases(C.linear_tensors(pipe), config, tmp_path/'new.csv')
    assert np.allclose(got.died[df.index], pipe.predict_proba(x)[:, 1]) and list(got.index) == list(df.index)
    table(tmp_path/'other.csv', ward='C')
    with pytest.raises(DataError, match="row 2: ward is 'C', in training it was one of A, B"): C.new_cases(C.linear_tensors(pipe), config, tmp_path/'other.csv')
    table(tmp_path/'unit.csv', crp=500)
    with pytest.raises(DataError, match='crp is 500 in the middle.* another unit'): C.new_cases(C.linear_tensors(pipe), config, tmp_path/'unit.csv')

# Real stays

@pytest.mark.skipif(not ICU.exists(), reason='the stays of the Challenge 2012 are not beside the checkout')
def test_scores_of_real_stays_as_a_table(tmp_path):
    pd.read_csv(ICU/'scores.csv').merge(pd.read_csv(ICU/'outcomes.csv'), on='id').to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(DataError, match='saps1 is -1, apart from all others'): T.read_table(tmp_path/'t.csv')
    x,y = T.xy(T.read_table(tmp_path/'t.csv', missing=(-1,)))
    assert x.shape == (3996, 3) and y.sum() == 554 and x.isna().any(axis=None)
