"A reader's plain table of signals: what is read, what is refused by row and column, and what a chapter makes of it"
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

from medlearn.data import doors as D, samples as S, traces as T
from medlearn.data.rhythms import aami_class, simulated_ecg
from medlearn.data.signals import beats
from medlearn.data.tracings import read_wfdb
from medlearn.foundations.budget import Budget
from medlearn.kit.cards import DataError
from medlearn.sequences import ecg as E

rng = np.random.default_rng(0)
N, LONG = 40, 100


def quiet(f, *a, **kw):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        return f(*a, **kw), ' '.join(str(w.message) for w in heard)


def table(n=N, long=LONG, leads=('',), **more):
    "Made-up records: label, patient, and waves"
    y = np.arange(n) % 2
    x = {f'{k}_{i}' if k else f'{i}': (np.sin(np.arange(n) + i/(3 + 3*y)) + .1*rng.normal(size=n)).round(3) for k in leads for i in range(long)}
    return pd.DataFrame(dict(id=[f'r{i}' for i in range(n)], label=np.array(['well', 'ill'])[y], patient=[f'p{i//2}' for i in range(n)]) | more | x)


def written(at, df, toml='rate = 100\nunit = "mV"\n', **kw):
    df.to_csv(at, **(dict(index=False) | kw))
    if toml: at.with_suffix('.toml').write_text(toml)
    return at


def refused(why, path, **kw):
    with pytest.raises(DataError, match=why), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        T.read_traces(path, **(dict(rate=100, unit='mV') | kw))


# A row a recording

def test_wide_one_lead(tmp_path):
    df = table()
    s, said = quiet(T.read_traces, written(tmp_path/'a.csv', df), rate=100, unit='mV')
    assert np.abs(np.stack(s.mv)[:, 0] - df.iloc[:, 3:].to_numpy()).max() < 1e-6 and s.rate == 100 and s.leads == ['signal']
    assert s.classes == ['well', 'ill'] and list(s.groups[:3]) == ['p0', 'p0', 'p1'] and set(s.split) == {'train', 'valid', 'test'} and said == ''
    assert all(len(set(s.split[s.groups == p])) == 1 for p in set(s.groups)) and list(s.table.record[:2]) == ['r0', 'r1'] and s.table.row[0] == 2
    assert quiet(T.read_traces, tmp_path/'a.csv', rate=100, unit='mV', positive='well')[0].classes == ['ill', 'well']


def test_leads_units_names_of_columns(tmp_path):
    df = table(leads=('II', 'V1')).rename(columns=dict(label='Diagnosis', patient='Patient'))
    at = written(tmp_path/'a.csv', df.assign(age=50))
    s, said = quiet(T.read_traces, at, rate=100, unit='uV', label='diagnosis')
    assert s.leads == ['II', 'V1'] and s.mv[0].shape == (2, LONG) and s.mv[3][1, 5] == pytest.approx(df['V1_5'][3]/1000)
    assert 'columns that are neither samples nor id' in said and 'age' in said and 'which no ECG does: is the unit uV?' in said
    s, _ = quiet(T.read_traces, at, rate=100, unit='counts', gain=200., label='Diagnosis', leads=['MLII', 'V5'])
    assert s.leads == ['MLII', 'V5'] and s.mv[3][1, 5] == pytest.approx(df['V1_5'][3]/200)
    refused('belong together', at, unit='counts', label='Diagnosis')
    refused("unit is 'mmHg'", at, unit='mmHg', label='Diagnosis')
    refused('has 2 leads, II, V1; leads = names 1', at, leads=['II'], label='Diagnosis')
    _, said = quiet(T.read_traces, at, rate=100, label='Diagnosis')
    assert 'no unit is said' in said


def test_the_end_is_no_gap(tmp_path):
    df = table()
    df.loc[3, '90':] = np.nan
    s, said = quiet(T.read_traces, written(tmp_path/'a.csv', df), rate=100, unit='mV')
    assert s.mv[3].shape == (1, 90) and 'records have 90 to 100 samples' in said
    df.loc[5, '7'] = np.nan
    refused('a.csv: row 7 has an empty cell inside, column 7', written(tmp_path/'a.csv', df))
    s, said = quiet(T.read_traces, tmp_path/'a.csv', rate=100, unit='mV', drop_bad=True)
    assert len(s) == N - 1 and 'row 7 has an empty cell inside' in said and 'r5' not in set(s.table.record)


@pytest.mark.parametrize('spoil,why', [
    (lambda d: d.drop(columns='label'), 'has no column label; it has id, patient, 0.*label = "NAME"'),
    (lambda d: d.assign(**{'8': ['0,5'] + ['1']*(N - 1)}), "row 2: column 8 is '0,5', no number.*Write 0.5, not 0,5"),
    (lambda d: d.assign(**{'8': ['low']*N}), "row 2: column 8 is 'low', no number .40 such rows"),
    (lambda d: d[[*d.columns[:4], '10', '11', *[c for c in d.columns[4:] if c not in ('10', '11')]]], 'column 10 stands after 0'),
    (lambda d: d.drop(columns='50'), 'column 51 stands after 49.*A sample is missing'),
    (lambda d: d.assign(label='well'), "all labels are 'well'. Two are needed"),
    (lambda d: d.assign(label=[f'{i}' for i in range(N)]), '40 different labels in 40 records'),
    (lambda d: d.assign(label=['?', *d.label[1:]]), "row 2 has no label: '.' .1 such rows"),
    (lambda d: d.assign(patient=['', *d.patient[1:]]), 'row 2 has no patient'),
    (lambda d: d.assign(**{str(i): [0.5, *d[str(i)][1:]] for i in range(LONG)}), 'row 2 is the same number, 0.5, from end to end'),
    (lambda d: d.assign(split=['train', 'test']*(N//2)), 'patient p0 is in train and test .20 such patients., rows 2 .train., 3 .test.'),
    (lambda d: d.assign(split='held out'), "row 2: split is 'held out'"),
    (lambda d: d.assign(split='train'), 'no row is in test'),
    (lambda d: d.assign(id='x').drop(columns='patient'), 'row 3: x is there twice'),
    (lambda d: d[['id', 'label', 'patient', '0', '1']], 'has no columns of samples'),
])
def test_what_is_refused(tmp_path, spoil, why): refused(why, written(tmp_path/'a.csv', spoil(table())))


def test_headings_and_commas(tmp_path):
    refused('has no heading: its first row holds numbers', written(tmp_path/'a.csv', table().iloc[:, 3:], header=False))
    refused('separated by semicolons', written(tmp_path/'a.csv', table(), sep=';', decimal=','))
    refused('is separated by tabs. Call it c.tsv', written(tmp_path/'c.txt', table(), sep='\t'))
    refused('is separated by commas. Call it c.csv', written(tmp_path/'c.tsv', table()))
    assert len(quiet(T.read_traces, written(tmp_path/'c.tsv', table(), sep='\t'), rate=100, unit='mV')[0]) == N
    refused('is not there', tmp_path/'b.csv')
    refused('All leads have the same number', written(tmp_path/'a.csv', table(leads=('II', 'V1')).drop(columns='V1_99')))


def test_what_is_told(tmp_path):
    df = table()
    df.loc[4, '0':] = df.loc[1, '0':].to_numpy()
    df.loc[6, '20':'80'] = 3.
    df = df.assign(split=['train']*20 + ['valid']*8 + ['test']*12, label=[*df.label[:28], *['well']*12]).drop(columns='patient')
    s, said = quiet(T.read_traces, written(tmp_path/'a.csv', df), rate=100, unit='mV')
    assert '2 records are equal to another that has another label, first r1 and r4' in said and 'no record of test is ill' in said
    assert 'first r6: signal is saturated for' in said and 'patients are not named' in said
    s, said = quiet(T.read_traces, written(tmp_path/'a.csv', table().assign(split=['train']*28 + ['test']*12)), rate=100, unit='mV')
    assert (s.split[28:] == 'test').all() and set(s.split[:28]) == {'train', 'valid'} and said == ''


def test_a_rate_is_never_assumed(tmp_path):
    at = written(tmp_path/'a.csv', table(), toml='')
    refused('does not say how many samples.*a.toml, or say -p rate=360', at, rate=None)
    (tmp_path/'dataset.toml').write_text('rate = 360\nunit = "mV"')
    assert D.signals_from(at, ('traces',)).rate == 360
    (tmp_path/'a.toml').write_text('rate = 250\nunit = "mV"')
    assert D.signals_from(at, ('traces',)).rate == 250
    (tmp_path/'a.toml').write_text('rat = 250')
    with pytest.raises(DataError, match='Did you mean rate'): D.signals_from(at, ('traces',))


# Two files

def test_the_published_halves(tmp_path):
    df = table()
    rows = df.drop(columns=['id', 'patient']).assign(label=df.label.map(dict(well='-1', ill='1')))
    for part, some in (('TRAIN', rows[:24]), ('TEST', rows[24:])): some.to_csv(tmp_path/f'Waves_{part}.tsv', sep='\t', header=False, index=False)
    s, said = quiet(T.read_traces, tmp_path, rate=100)
    assert len(s) == N and s.name == 'Waves' and s.classes == ['-1', '1'] and (s.split[24:] == 'test').all() and set(s.split[:24]) == {'train', 'valid'} and 'patients are not named' in said
    assert np.abs(s.mv[30][0] - df.iloc[30, 3:].to_numpy(float)).max() < 1e-6 and quiet(T.read_traces, tmp_path/'Waves_TEST.tsv', rate=100)[0].name == 'Waves'
    assert D.kind_of(tmp_path) == D.kind_of(tmp_path/'Waves_TRAIN.tsv') == 'traces'
    new, _ = quiet(T.new_traces, tmp_path/'Waves_TEST.tsv', ['signal'], 100, (LONG, LONG), dict(rate=100))
    assert len(new) == 16 and new.table.record[0] == 'test 1'
    text = '\n'.join('  '.join(f'{float(v):e}' for v in r) for r in rows[:24].to_numpy())
    (tmp_path/'Waves_TRAIN.tsv').write_text(text)
    assert quiet(T.read_traces, tmp_path, rate=100)[0].classes == ['-1', '1'], 'spaces, and labels such as -1.000000e+00'
    (tmp_path/'Waves_TEST.tsv').unlink()
    refused('Waves_TEST.tsv is not there', tmp_path/'Waves_TRAIN.tsv')


# A row a sample

def long_form(at, n=12, rate=250, digits=3, tall=False):
    y, t = np.arange(n) % 3, np.arange(LONG)/rate
    parts = [pd.DataFrame(dict(id=f'r{i}', time=t.round(digits), II=np.sin(i + t*20*(1 + y[i])).round(3), V1=np.cos(i + t*9).round(3))) for i in range(n)]
    df = pd.concat(parts, ignore_index=True)
    if tall: df = df.melt(['id', 'time'], var_name='lead')
    at.mkdir(exist_ok=True)
    df.to_csv(at/'signals.csv', index=False)
    pd.DataFrame(dict(id=[f'r{i}' for i in range(n)], label=[*'abc'*(n//3)], patient=[f'p{i}' for i in range(n)])).to_csv(at/'labels.csv', index=False)
    return df


@pytest.mark.parametrize('rate,digits,tall', [(250, 3, False), (250, 3, True), (360, 3, False), (360, 6, True), (1000, 3, False)])
def test_long(tmp_path, rate, digits, tall):
    df = long_form(tmp_path/'d', rate=rate, digits=digits, tall=tall)
    s, said = quiet(T.read_traces, tmp_path/'d', unit='mV', **(dict(rate=360) if digits == 3 and rate == 360 else {}))
    assert s.rate == rate and s.leads == ['II', 'V1'] and s.classes == ['a', 'b', 'c'] and s.mv[4].shape == (2, LONG) and said == '' and D.kind_of(tmp_path/'d') == 'traces'
    want = df[(df.id == 'r4') & (df.lead == 'V1')].value if tall else df[df.id == 'r4'].V1
    assert np.abs(s.mv[4][1] - want.to_numpy()).max() < 1e-6


def test_uneven_times_are_refused_by_row(tmp_path):
    df = long_form(tmp_path/'d')
    at = tmp_path/'d'/'signals.csv'
    df.drop(150).to_csv(at, index=False)
    refused('row 152: record r1 goes from 0.196 to 0.204 s, elsewhere in steps of 0.004', tmp_path/'d', rate=None)
    df.iloc[[*range(150), 150, *range(150, len(df))]].to_csv(at, index=False)
    refused('row 153: record r1 goes from 0.2 to 0.2 s', tmp_path/'d', rate=None)
    df.to_csv(at, index=False)
    refused('its times say 250 Hz, rate = 360', tmp_path/'d', rate=360)
    df.assign(time=df.time*np.where(df.id == 'r3', 2, 1)).to_csv(at, index=False)
    refused('record r3, from row 302, has 125 Hz, others 250 Hz', tmp_path/'d', rate=None)
    df.to_csv(at, index=False)
    lab = pd.read_csv(tmp_path/'d'/'labels.csv')
    lab.assign(label=[None, *lab.label[1:]]).to_csv(tmp_path/'d'/'labels.csv', index=False)
    refused('labels.csv: row 2 has no label', tmp_path/'d', rate=None)
    lab[1:].assign(id=lambda d: [*d.id[:-1], 'other']).to_csv(tmp_path/'d'/'labels.csv', index=False)
    s, said = quiet(T.read_traces, tmp_path/'d', unit='mV')
    assert len(s) == 10 and '2 records have no row in labels.csv, first r0' in said and '1 rows of labels.csv have no record, first other' in said
    lab.rename(columns=dict(label='x')).to_csv(tmp_path/'d'/'labels.csv', index=False)
    refused('labels.csv has no column label', tmp_path/'d', rate=None)


# Doors

def test_a_table_of_patients_stays_one(tmp_path):
    plain = pd.DataFrame(dict(id=range(20), label=[0, 1]*10) | {f'gene_{i}': rng.normal(size=20) for i in range(60)})
    assert D.kind_of(written(tmp_path/'a.csv', plain, toml='')) == 'table'
    assert D.kind_of(written(tmp_path/'a.csv', plain, toml='positive = "1"')) == 'table' and D.kind_of(written(tmp_path/'a.csv', plain, toml='rate = 100')) == 'traces'
    assert D.kind_of(written(tmp_path/'b.csv', table(long=20), toml='')) == 'table' and D.kind_of(written(tmp_path/'b.csv', table(long=32), toml='')) == 'traces'
    assert D.kind_of(written(tmp_path/'c.csv', table(leads=('aVL',)), toml='')) == 'traces' and not S.holds_traces(tmp_path)
    (tmp_path/'d.csv').write_text('id,text,label\n1,a,b\n')
    assert D.kind_of(tmp_path/'d.csv') == 'reports'
    found = D.check(written(tmp_path/'b.csv', table()))
    assert found['this is'] == D.kinds['traces'].what and 'sequences/ecg' in found['chapters that take it'] and 'well' in found['signals']
    (tmp_path/'b.toml').unlink()
    found = D.check(tmp_path/'b.csv')
    assert isinstance(found, D.NotRead) and 'Write rate = 360' in found['REFUSED']


# The chapter's reader

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    at = written(tmp_path_factory.mktemp('t')/'a.csv', table(60))
    s, _ = quiet(D.signals_from, at, ('traces',))
    torch.manual_seed(0)
    r = E.fit_ecg(s, 'cnn', Budget(3), faulty='keep', device='cpu')
    config = dict(kind='cnn', classes=s.classes, leads=s.leads, rate=100., multi=False, most=LONG, seconds=None, samples=[LONG, LONG])
    return at, s, r, config


def test_new_tables_get_what_the_chapter_gave(trained, tmp_path):
    at, s, r, config = trained
    test, w = s.part('test'), r.learn.model.state_dict()
    new = written(tmp_path/'new.csv', pd.read_csv(at).drop(columns=['label', 'patient']))
    p = E.new_cases(w, config, new)
    assert np.abs(p.loc[test.table.record].to_numpy() - r(test, 'keep')).max() < 1e-5 and list(p) == s.classes
    new.with_suffix('.toml').unlink()
    with pytest.raises(DataError, match='does not say how many samples'): E.new_cases(w, config, new)
    new.with_suffix('.toml').write_text('rate = 50')
    with pytest.raises(DataError, match='nothing makes more of less'): quiet(E.new_cases, w, config, new)
    new.with_suffix('.toml').write_text('rate = 200\nunit = "mV"')
    with pytest.raises(DataError, match='has 50 samples at 100 Hz; the network was trained on 100'): quiet(E.new_cases, w, config, new)
    fine = written(new, table(4, 2*LONG).drop(columns=['label', 'patient']), toml='rate = 200\nunit = "mV"')
    p, said = quiet(E.new_cases, w, config, fine)
    assert len(p) == 4 and 'brought from 200 to 100 Hz' in said
    with pytest.raises(DataError, match='trained on V9, and V9 is not there'): quiet(E.new_cases, w, config | dict(leads=['V9']), fine)

    rows = [pd.DataFrame(dict(id=f'n{i}', time=np.arange(LONG)/100, signal=rng.normal(size=LONG).round(3))) for i in range(3)]
    pd.concat(rows).to_csv(tmp_path/'monitor.csv', index=False)
    assert list(quiet(E.new_cases, w, config, tmp_path/'monitor.csv')[0].index) == ['n0', 'n1', 'n2'], 'a row a sample, and no toml'
    cut, _ = quiet(E.new_cases, w, config | dict(seconds=.5, samples=None), tmp_path/'monitor.csv')
    assert list(cut.index[:2]) == ['n0 at 0 s', 'n0 at 0.5 s'] and len(cut) == 6


def test_real_beats_through_the_table_and_through_wfdb_are_the_same(tmp_path):
    record = Path(__file__).parents[2]/'shared'/'data'/'mitdb_record100'
    if not record.is_dir(): pytest.skip('MIT-BIH record 100 is not beside the project')
    s = read_wfdb(record/'100')
    w, _, kind = beats(s, normalise=False)
    w, kind = w[::8], np.array([aami_class.get(k, '?') for k in kind])[::8]
    df = pd.DataFrame(w.reshape(len(w), -1), columns=[f'{n}_{i}' for n in s.leads for i in range(w.shape[2])])
    df.insert(0, 'label', kind)
    got, said = quiet(T.read_traces, written(tmp_path/'beats.csv', df[kind != '?']), rate=360, unit='mV')
    assert np.array_equal(np.stack(got.mv), w[kind != '?']) and got.leads == s.leads and (np.array(got.classes)[got.labels] == kind[kind != '?']).all() and 'patients are not named' in said


def test_the_ruler_of_single_beats():
    s = simulated_ecg(6, seconds=1, rate=100)
    f = T.trace_features(s, 100)
    assert len(f) == 6 and f['height, II'][0] == pytest.approx(np.ptp(s.mv[0][0])) and f['time of the highest, II'][0] == pytest.approx(s.mv[0][0].argmax()/100)
    short = T.trace_features(replace(s, mv=[x[:, :50] for x in s.mv], peaks=None, symbols=None), 100)
    assert short['samples 31, II'].isna().all() and short['samples 3, V1'].notna().all() and not f.isna().any(axis=None)
