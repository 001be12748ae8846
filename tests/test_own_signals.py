"A reader's own ECGs: a folder of records read as it was meant, models of them handed over, and what does not fit refused"
import lzma, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

from medlearn.data import doors as D, studies as T
from medlearn.data.rhythms import aami_class, beat_windows, simulated_ecg
from medlearn.foundations.budget import Budget
from medlearn.kit.cards import DataError
from medlearn.sequences import beats as B, ecg as E

wfdb = pytest.importorskip('wfdb', reason='the wfdb package is not installed')
mitdb = Path(__file__).parents[2]/'shared'/'data'/'mitdb'
KINDS = ['sinus', 'ventricular premature', 'atrial premature']


@pytest.fixture(scope='module')
def made(): return simulated_ecg(15, seconds=20, rate=250, kinds=KINDS, seed=3)


def write(at, made, i, leads=('MLII', 'V1'), order=(0, 1), marks=True):
    x = made.mv[i][list(order)].T.astype(float)
    wfdb.wrsamp(f'r{i:02}', made.rate, ['mV']*2, [leads[k] for k in order], p_signal=x, fmt=['16']*2, write_dir=str(at))
    if not marks: return
    at_, kinds = np.r_[1, made.peaks[i]], ['+', *made.symbols[i]]
    note = ['(N' if made.table.rhythm[i] == 'sinus' else '(B'] + ['']*len(made.peaks[i])
    wfdb.wrann(f'r{i:02}', 'atr', at_, np.array(kinds), fs=made.rate, aux_note=note, write_dir=str(at))


@pytest.fixture(scope='module')
def study(tmp_path_factory, made):
    at = tmp_path_factory.mktemp('study')
    for i in range(len(made)): write(at, made, i, order=(1, 0) if i == 1 else (0, 1))
    return at


@pytest.fixture
def copy(study, tmp_path):
    for f in study.iterdir(): (tmp_path/f.name).write_bytes(f.read_bytes())
    return tmp_path


def lists(at, **named):
    for name, records in named.items(): (at/f'{name}.txt').write_text('\n'.join(records))


NAMES = [f'r{i:02}' for i in range(15)]


# Reading a folder

def test_leads_by_name_one_rate_and_patients(study, made):
    s = T.read_wfdb_folder(study, leads=['MLII'], rate=125, patients={'r01': 'A', 'r00': 'A'})
    assert s.leads == ['MLII'] and s.rate == 125 and len(s) == 15 and list(s.groups[:3]) == ['A', 'A', 'r02'] and set(s.split) == {'train', 'valid', 'test'}
    want = replace(made, mv=[x[:1] for x in made.mv], leads=['II']).at_rate(125, change=True)
    assert np.abs(s.mv[1][0] - want.mv[1][0]).max() < .01, 'the record whose leads changed places'
    assert (abs(s.peaks[3] - made.peaks[3]/2) <= 1).all() and T.read_wfdb_folder(study).leads == ['MLII', 'V1']
    assert len(set(s.split[s.groups == 'A'])) == 1


def test_what_is_left_out_is_told(copy):
    (copy/'r03.dat').unlink()
    (copy/'r04.atr').unlink()
    with pytest.warns(UserWarning, match='2 of 15 records are left out: r03 has no .dat file; r04 has no atr file'): s = T.read_wfdb_folder(copy)
    assert len(s) == 13 and not {'r03', 'r04'} & set(s.table.record)
    with pytest.raises(DataError, match='nothing makes 360 Hz of it'): T.read_wfdb_folder(copy, rate=360)
    with pytest.raises(DataError, match='no record has the lead V5. There are: MLII in 13, V1 in 13'):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            T.read_wfdb_folder(copy, leads=['V5'])
    (copy/'r05.dat').write_bytes((copy/'r05.dat').read_bytes()[:-2])
    with pytest.raises(DataError, match='r05.dat has'): T.read_wfdb_folder(copy)
    with pytest.warns(UserWarning, match='3 of 15'): assert len(T.read_wfdb_folder(copy, drop_bad=True)) == 12


def test_packed_numbers(copy):
    want = T.read_wfdb_folder(copy).mv[2]
    raw = (copy/'r02.dat').read_bytes()
    (copy/'r02.dat').unlink()
    (copy/'r02.dat.xz').write_bytes(lzma.compress(raw))
    assert (T.read_wfdb_folder(copy).mv[2] == want).all()
    (copy/'r02.dat.xz').write_bytes(lzma.compress(bytes(10**7)))
    with pytest.raises(DataError, match='more than the .* bytes that its header lets expect'): T.read_wfdb_folder(copy)
    (copy/'r02.dat.xz').write_bytes(lzma.compress(raw)[:-40])
    with pytest.raises(DataError, match='cut short|cannot be unpacked'): T.read_wfdb_folder(copy)


def test_a_published_split_is_kept(copy):
    lists(copy, ds1=NAMES[:9], ds2=[*NAMES[9:13], '# a comment'])
    with pytest.warns(UserWarning, match='2 records are in no list and left out, first r13'): s = T.read_wfdb_folder(copy)
    assert list(s.split[9:]) == ['test']*4 and set(s.split[:9]) == {'train', 'valid'} and (s.split == 'valid').sum() == 2
    assert set(beat_windows(s, kinds=aami_class).labels) == {0, 1, 2}
    lists(copy, ds2=NAMES[8:])
    with pytest.raises(DataError, match='record r08 is named for training and for test'): T.read_wfdb_folder(copy)
    lists(copy, ds2=NAMES[9:])
    with pytest.raises(DataError, match='patient A has records in training and in test: r00, r14'): T.read_wfdb_folder(copy, patients=dict(r00='A', r14='A'))
    (copy/'ds2.txt').unlink()
    with pytest.raises(DataError, match='the other is missing: test'): T.read_wfdb_folder(copy)
    with pytest.raises(DataError, match='mine.txt is not there'): T.read_wfdb_folder(copy, train='mine.txt')


def test_the_door_and_its_options(copy):
    lists(copy, one=NAMES[:9], two=NAMES[9:])
    (copy/'dataset.toml').write_text('train = "one.txt"\ntest = "two.txt"\nleads = ["MLII"]\npatients = {r00 = "A", r01 = "A"}\n')
    assert D.kind_of(copy) == 'wfdb_folder'
    s = D.signals_from(copy, seed=1)
    assert s.leads == ['MLII'] and (s.split[9:] == 'test').all() and list(s.groups[:2]) == ['A', 'A']
    found = D.check(copy)
    assert not isinstance(found, D.NotRead) and 'sequences/beats' in found['chapters that take it'] and 'sequences/ecg' in found['chapters that take it']
    (copy/'a.csv').write_text('id,text,label\n1,a,b\n')
    with pytest.raises(DataError, match='is reports with labels: sequences/text'): D.signals_from(copy/'a.csv', ('ptbxl', 'wfdb_folder'))


def test_labels_of_records(copy, made):
    rows = pd.DataFrame(dict(id=NAMES, label=made.table.rhythm, patient=[f'p{i//2}' for i in range(15)]))
    rows[1:].to_csv(copy/'labels.csv', index=False)
    for f in copy.glob('*.atr'): f.unlink()
    with pytest.warns(UserWarning, match='r00 has no row in labels.csv'): s = T.read_wfdb_folder(copy)
    assert s.classes == sorted(set(made.table.rhythm)) and [s.classes[k] for k in s.labels] == list(made.table.rhythm[1:]) and s.groups[0] == 'p0' and s.peaks is None
    for change, says in ((dict(split='dev'), 'it is train, valid or test'), (dict(label=None), 'row 2 has no label'), (dict(label='x'), 'one label alone'), (dict(id='r01'), 'stands in two rows')):
        rows.assign(**change).to_csv(copy/'labels.csv', index=False)
        with pytest.raises(DataError, match=says):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                T.read_wfdb_folder(copy)


def test_rhythms_that_hold_through_a_window(study, made):
    s = T.read_wfdb_folder(study, leads=['MLII'])
    w = T.rhythm_windows(s, study, seconds=5)
    simulated = made.table.rhythm.to_numpy()[w.table.record]
    assert len(w) == 60 and w.classes == ['B', 'N'] and ((w.labels == 1) == (simulated == 'sinus')).all()
    assert all(len(set(w.split[w.groups == g])) == 1 for g in set(w.groups))
    assert len(T.thinned(w, 4, test=7).part('train')) == 8 and len(T.thinned(w, 4, test=7).part('test')) == 7
    with pytest.raises(DataError, match='alone has 500 cases in each split'): T.kept_kinds(w, 500)


# Models handed over

@pytest.fixture(scope='module')
def read(study): return T.read_wfdb_folder(study, leads=['MLII'], seed=1)


def test_new_beats_get_what_the_chapter_gave(study, read):
    torch.manual_seed(0)
    some, _ = T.kept_kinds(beat_windows(B.ready_records(read), kinds=aami_class), 1)
    learn = B.fit_beats(some, Budget(30), device='cpu')
    config = dict(classes=some.classes, leads=read.leads, rate=100., filtered=True)
    test, weights = some.part('test'), learn.model.state_dict()
    want = pd.DataFrame(B.beat_scores(learn, test, 100), columns=some.classes)
    new = B.new_cases(weights, config, study)
    names = [f'{read.table.record[r]} at {t/100:.2f} s' for r, t in zip(test.table.record, test.table['sample'])]
    assert np.abs(new.loc[names].to_numpy() - want.to_numpy()).max() < 1e-5 and list(new) == some.classes and new.index.is_unique
    one = B.new_cases(weights, config, study/'r01')
    assert len(one) and np.abs(one - new.loc[one.index]).to_numpy().max() < 1e-6
    with pytest.raises(DataError, match='V5 is not there'): B.new_cases(weights, config | dict(leads=['V5']), study)
    with pytest.raises(DataError, match='nothing makes more of less'): B.new_cases(weights, config | dict(rate=360.), study)
    with pytest.raises(DataError, match='no WFDB record lies there'): B.new_cases(weights, config, study.parent)


def test_beats_are_found_where_nobody_marked_them(copy, read):
    for f in copy.glob('*.atr'): f.unlink()
    net = B.BeatNet(3, 3)
    new = B.new_cases(net.state_dict(), dict(classes=['N', 'S', 'V'], leads=['MLII'], rate=100., filtered=True), copy/'r02')
    assert abs(len(new) - len(read.peaks[2])) <= 3 and np.allclose(new.sum(1), 1, atol=1e-5)


def test_new_strips_get_what_the_chapter_gave(study, read):
    torch.manual_seed(0)
    w = replace(T.rhythm_windows(read, study, seconds=10), peaks=None, symbols=None)
    r = E.fit_ecg(w, 'cnn+attend', Budget(3), faulty='keep', device='cpu')
    config = dict(kind='cnn+attend', classes=w.classes, leads=w.leads, rate=100., multi=False, most=1000, seconds=10)
    test = w.part('test')
    new = E.new_cases(r.learn.model.state_dict(), config, study)
    names = [f'{read.table.record[k]} at {t:g} s' for k, t in zip(test.table.record, test.table['start, s'])]
    assert np.abs(new.loc[names].to_numpy() - r(test, 'keep')).max() < 1e-5
    whole = E.new_cases(r.learn.model.state_dict(), config | dict(seconds=None, most=500), study/'r03')
    assert list(whole.index) == ['r03'] and np.allclose(whole.sum(1), 1, atol=1e-5)
    with pytest.raises(DataError, match='the network was trained on V5'): E.new_cases(r.learn.model.state_dict(), config | dict(leads=['V5']), study)


# Shares over patients

def test_shares_by_hand():
    y, c, g = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 0, 0]), np.array(list('aabbcc'))
    assert B.mean_sensitivity(y, c, g)[0] == pytest.approx(2/3) and np.isnan(B.mean_sensitivity(y, c, g)[1])
    assert B.over_patients((y == 1) & (c == 1), y == 1, g)[0] == pytest.approx(2/3) and np.isnan(B.over_patients(y, y*0, g)).all()
    many = [np.tile(v, 6) for v in (y, c)]
    who = np.repeat(np.arange(12), 3)
    value, low, high = B.mean_sensitivity(*many, who)
    assert low <= value <= high and B.mean_sensitivity(*many, who, many[1])[0] == 0
    value, low, high = B.over_patients(many[1] == many[0], np.ones(36), who)
    assert value == pytest.approx(4/6) and low <= value + 1e-9 and value <= high + 1e-9


# The real database

def test_four_records_of_mitdb(tmp_path):
    if not mitdb.is_dir(): pytest.skip('MIT-BIH is not beside the project')
    for r in (100, 114, 201, 208):
        for end in ('hea', 'atr', 'dat.xz'): (tmp_path/f'{r}.{end}').write_bytes((mitdb/f'{r}.{end}').read_bytes())
    for n in ('ds1', 'ds2'): (tmp_path/f'{n}.txt').write_text((mitdb/f'{n}.txt').read_text())
    s = T.read_wfdb_folder(tmp_path)
    assert s.leads == ['MLII'] and list(s.table.record) == ['100', '114', '201', '208'] and s.split[0] == 'test' and (s.split == 'valid').sum() == 1
    w = beat_windows(s, kinds=aami_class)
    counts = pd.crosstab(w.groups, np.array(w.classes)[w.labels])
    assert counts.loc['208'].to_dict() == dict(F=372, N=1585, Q=2, S=2, V=992) and counts.loc['100', 'S'] == 33
