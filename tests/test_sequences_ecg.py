"ECG networks: no answer depends on neighbours, what a model was not made for is refused, beats and windows keep their place"
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from torch import nn

from medlearn.data import signals as S
from medlearn.data import rhythms as Rhythms
from medlearn.data import tracings as Tracings
from medlearn.data.splits import check_leak
from medlearn.foundations.sequences import real_steps
from medlearn.kit.cards import DataError
from medlearn.kit.runner import plan, run
from medlearn.foundations.budget import Budget
from medlearn.sequences import ecg as E

mitdb = Path(__file__).parents[2]/'shared'/'data'/'mitdb_record100'
KINDS = ['cnn', 'lstm', 'cnn+lstm', 'cnn+attend']


def lead_ii(s): return replace(s, mv=[x[[s.leads.index('II')]] for x in s.mv], leads=['II'])


@pytest.fixture(scope='module')
def sim(): return Rhythms.simulated_ecg(48, rate=100, seed=3)


@pytest.fixture(scope='module')
def uneven(sim):
    "Records of 0.4 to 10 s"
    long = np.random.default_rng(0).integers(40, 1000, len(sim))
    return replace(sim, mv=[x[:, :n] for x, n in zip(sim.mv, long)], peaks=None, symbols=None)


@pytest.fixture(scope='module')
def reader(sim):
    torch.manual_seed(0)
    return E.fit_ecg(sim, 'cnn+lstm', Budget(5), device='cpu', widths=(8, 8, 8), state=8)


# Lengths

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('blocks', [1, 2])
def test_alone_as_in_company(kind, blocks):
    torch.manual_seed(0)
    net, sizes = E.ecg_net(kind, 2, 3, (8, 16, 8), blocks, 8), torch.tensor([300, 299, 131, 64, 33, 17, 2, 1])
    for p in net.parameters(): nn.init.normal_(p, std=.3)
    for _ in range(3): net(torch.randn(8, 300, 2), sizes)
    x = torch.randn(8, 300, 2)
    net.eval()
    with torch.inference_mode():
        alone = torch.cat([net(v[None, :n], n[None]) for v, n in zip(x, sizes)])
        garbage = torch.where(real_steps(sizes, 300)[..., None], x, 7.)
        assert (net(x, sizes) - alone).abs().max() < 1e-5 < alone.std(0).min() and (net(garbage, sizes) - alone).abs().max() < 1e-5


def test_records_of_a_set_alone_as_in_company(reader, uneven):
    together, w = reader(uneven), reader.attention(uneven)[0]
    alone = np.concatenate([reader(uneven.take([i])) for i in range(12)])
    assert np.abs(together[:12] - alone).max() < 1e-5 and np.allclose(together.sum(1), 1, atol=1e-5)
    assert [len(v) for v in w] == [-(-x.shape[1]//16) for x in uneven.mv] and all(abs(v.sum() - 1) < 1e-5 for v in w)
    assert all(np.abs(reader.attention(uneven.take([i]))[0][0] - w[i]).max() < 1e-5 for i in range(5))


@pytest.mark.parametrize('front', [E.XResNet1d(1, (4, 4, 4)), E.XResNet1d(1, (4, 4), 2), E.Patches(1, 8), E.Patches(1, 5)])
def test_steps_that_are_told_are_the_steps_that_come(front):
    front.eval()
    for n in range(1, 70):
        h, m = front(torch.randn(1, n, 1), torch.tensor([n]))
        assert h.shape == (1, m[0], front.width) and m[0] == -(-n//front.stride)


def test_statistics_of_training_count_real_steps():
    torch.manual_seed(0)
    layer, x, n = E.ConvNorm(3, 4), torch.randn(2, 3, 50), torch.tensor([50, 20])
    x[1, :, 20:] = 0
    layer(x, n)
    h = layer.conv(x)
    real = torch.cat([h[0], h[1, :, :20]], 1)
    assert torch.allclose(layer.norm.running_mean, .1*real.mean(1), atol=1e-6)
    assert torch.allclose(layer.norm.running_var, .9 + .1*real.var(1), atol=1e-5)
    assert (layer(x, n)[0][1, :, 20:] == 0).all() and (layer.eval()(x, n)[0][1, :, 20:] == 0).all()


def test_a_new_block_is_its_shortcut():
    x, n = torch.rand(1, 4, 9), torch.tensor([9])
    y, m = E.ResBlock(4, 4, 2).eval()(x, n)
    assert torch.allclose(y[..., :4], (x[..., :8:2] + x[..., 1::2])/2, atol=1e-6) and torch.allclose(y[..., 4], x[..., 8], atol=1e-6) and m[0] == 5


def test_patches_hold_the_samples():
    h, n = E.Patches(2, 4)(torch.arange(12.).view(1, 6, 2), torch.tensor([5]))
    assert n[0] == 2 and h[0, 0].tolist() == list(range(8)) and h[0, 1].tolist() == [8, 9] + [0]*6


def test_unknown_kind():
    with pytest.raises(ValueError, match="'gru': it is one of cnn"): E.ecg_net('gru', 1, 2)


# What is refused

def test_other_rates_and_leads_are_refused(reader, sim):
    for other in (Rhythms.simulated_ecg(12, rate=250), replace(sim, rate=360)):
        with pytest.raises(DataError, match='Hz, the model needs 100 Hz'): reader(other)
    with pytest.raises(DataError, match='has the leads II; the model was trained on II, V1, and V1 is not there'): reader(lead_ii(sim))
    with pytest.raises(DataError, match='V1 is not there'): reader(replace(sim, leads=['II', 'V5']))


def test_leads_are_taken_by_name(reader, sim):
    turned = replace(sim, mv=[np.stack([x[1], -x[0], x[0]]) for x in sim.mv], leads=['V1', 'aVF', 'II'])
    assert np.allclose(reader(turned), reader(sim), atol=1e-6)


@pytest.mark.parametrize('spoil,says', [(lambda x: x.__setitem__((1, slice(100, 200)), .2), 'lead V1 is flat for 1 s from 1 s'),
                                        (lambda x: np.clip(x, None, np.quantile(x[0], .8), out=x), 'lead II is saturated'),
                                        (lambda x: x.__setitem__((1, slice(None)), 0), 'lead V1 is flat'),
                                        (lambda x: x.__setitem__((0, 7), np.nan), 'lead II has missing samples'),
                                        (lambda x: x.__setitem__((0, slice(None)), 1e-5*np.arange(1000) % 1e-4), 'less than 1 µV')])
def test_bad_leads_are_refused_by_record_and_patient(reader, sim, spoil, says):
    x = sim.mv[5].copy()
    spoil(x)
    bad = replace(sim, mv=sim.mv[:5] + [x] + sim.mv[6:])
    with pytest.raises(DataError, match=rf'record 5 \(patient S0005\).*{says}'): reader(bad)
    with pytest.raises(DataError, match='patient S0005'): E.fit_ecg(bad, budget=Budget(1), device='cpu')
    if 'missing' in says:
        with pytest.raises(DataError, match='missing'): reader(bad, faulty='keep')
    else: assert np.isfinite(reader(bad, faulty='keep')).all()


def test_records_of_different_lengths(uneven, sim):
    with pytest.raises(DataError, match='Cut them to one length'): uneven.array()
    s = E.ecg_set(uneven)
    assert s.sizes.tolist() == [x.shape[1] for x in uneven.mv] and s.x.shape[1] == s.sizes.max()
    assert np.allclose(s.x[3, :s.sizes[3]].T, S.normalised(uneven.mv[3])) and (s.x[3, s.sizes[3]:] == 0).all()
    with pytest.raises(DataError, match=r'record 1 \(patient S0001\) is empty'): E.checked(replace(sim, mv=[sim.mv[0], sim.mv[1][:, :0], *sim.mv[2:]]), 100, ['II'])


def test_nothing_to_learn_from(sim):
    for lost in ('labels', 'split'):
        with pytest.raises(DataError, match='no labels or no split'): E.fit_ecg(replace(sim, **{lost: None}), device='cpu')


def test_only_some_networks_attend(sim):
    torch.manual_seed(0)
    r = E.fit_ecg(sim, 'cnn', Budget(5), device='cpu', widths=(8, 8))
    with pytest.raises(ValueError, match='does not attend'): r.attention(sim)


# Learning

def test_slow_from_fast():
    s = lead_ii(Rhythms.simulated_ecg(90, rate=100, kinds=['bradycardia', 'tachycardia'], seed=5))
    torch.manual_seed(0)
    p = E.fit_ecg(s, 'cnn', Budget(60), bs=16, device='cpu', widths=(16, 16, 16))(s.part('test'))
    assert (p.argmax(1) == s.part('test').labels).mean() > .8


def ptb_folder(path, sim):
    "PTB-XL's layout around simulated strips: fast hearts are called MI, some of them HYP as well"
    (path/'records100').mkdir(parents=True)
    rows = []
    for i, (x, k) in enumerate(zip(sim.mv, sim.labels)):
        steps = np.rint(x*1000).astype('<i2')
        (path/f'records100/{i}_lr.dat').write_bytes(steps.T.tobytes())
        lines = [f'{i}_lr.dat 16 1000(0)/mV 16 0 {v[0]} {(v.sum(dtype=int) + 2**15) % 2**16 - 2**15} 0 {n}' for v, n in zip(steps, sim.leads)]
        (path/f'records100/{i}_lr.hea').write_text('\n'.join([f'{i}_lr 2 100 {x.shape[1]}', *lines]) + '\n')
        codes = {'NORM': 100.} if k == 0 else {'IMI': 100.} | ({'LVH': 50.} if i % 3 == 0 else {})
        rows.append(dict(ecg_id=i, patient_id=i//2, scp_codes=str(codes), strat_fold=i//2 % 10 + 1, filename_lr=f'records100/{i}_lr'))
    pd.DataFrame(rows).to_csv(path/'ptbxl_database.csv', index=False)
    pd.DataFrame(dict(diagnostic=1, diagnostic_class=['NORM', 'MI', 'HYP']), index=['NORM', 'IMI', 'LVH']).to_csv(path/'scp_statements.csv')
    return path


def test_ptbxl_is_learned_on_its_published_folds(tmp_path):
    made = Rhythms.simulated_ecg(80, rate=100, kinds=['bradycardia', 'tachycardia'], seed=1)
    data = Tracings.ptbxl(ptb_folder(tmp_path/'ptb', made))
    assert check_leak(data.split, data.groups) == 40 and data.multilabel
    assert [(data.split == s).sum() for s in ('train', 'valid', 'test')] == [64, 8, 8] and set(data.table.strat_fold[data.split == 'test']) == {10}
    torch.manual_seed(0)
    r = E.fit_ecg(data, 'cnn+lstm', Budget(60), bs=16, faulty='keep', device='cpu', widths=(8, 16, 16), state=16)
    test = data.part('test')
    p = r(test, 'keep')
    assert p.shape == (8, 5) and ((p > 0) & (p < 1)).all() and not np.allclose(p.sum(1), 1, atol=.01)
    assert ((p[:, 1] > p[:, 0]) == test.labels[:, 1]).mean() >= .75 and p[:, [2, 3]].max() < .4
    w, stride = r.attention(test)
    assert stride == 16 and all(len(v) == 63 and abs(v.sum() - 1) < 1e-5 for v in w)


# Features, beats, windows

def test_features_of_a_rhythm(sim):
    s = lead_ii(sim)
    f = E.rhythm_features(replace(s, mv=[*s.mv[:12], np.zeros((1, 1000), np.float32), *s.mv[13:]]))
    assert f.shape == (48, 8) and f.iloc[12].isna().all() and f.drop(12).notna().all().all()
    by = f.groupby(np.array(s.classes)[s.labels]).median()
    assert by.loc['ventricular premature', 'least steep/median'] < .8 < by.loc['atrial premature', 'least steep/median']


def test_beats_keep_their_patient_and_their_context():
    x = np.random.default_rng(0).normal(size=(2, 1, 1000)).astype(np.float32)
    s = S.Signals([*x], 100, ['II'], np.array(['a', 'b']), 'two', peaks=[np.array([10, 110, 160, 310, 410]), np.array([500])], split=np.array(['train', 'test']),
                  symbols=[np.array(list('NNaNV')), np.array(['/'])])
    b = Rhythms.beat_windows(s)
    assert [b.classes[k] for k in b.labels] == list('NANV') and b.groups.tolist() == ['a']*4 and b.split.tolist() == ['train']*4
    assert b.table['RR before'].tolist() == [1, .5, 1.5, 1] and b.table['RR after'].tolist() == [.5, 1.5, 1, 1]
    assert b.leads == ['II', 'RR before', 'RR after'] and b.mv[1].shape == (3, 70) and (b.mv[1][1] == -.5).all() and (b.mv[1][2] == .5).all()
    plain = Rhythms.beat_windows(s, context=False)
    assert np.allclose(plain.mv[2][0], S.normalised(x[0])[0, 310-25:310+45]) and np.allclose(b.mv[2][:1], plain.mv[2])
    with pytest.raises(DataError, match='no symbols of beats'): Rhythms.beat_windows(replace(s, symbols=None))
    with pytest.raises(DataError, match='no beat is one of'): Rhythms.beat_windows(s.take([1]))


def test_windows_keep_their_beats():
    s = S.Signals([np.arange(250, dtype=np.float32)[None], np.zeros((1, 90), np.float32)], 10, ['II'], np.array(['a', 'b']), 's',
                  peaks=[np.array([0, 99, 100, 240]), np.array([3])], symbols=[np.array(list('NVAN')), np.array(['N'])])
    w = Rhythms.cut_windows(s, 10)
    assert len(w) == 2 and w.mv[1][0, 0] == 100 and [p.tolist() for p in w.peaks] == [[0, 99], [0]] and [''.join(k) for k in w.symbols] == ['NV', 'A']
    assert w.table['start, s'].tolist() == [0, 10] and w.groups.tolist() == ['a', 'a']
    assert len(Rhythms.cut_windows(replace(s, peaks=None, symbols=None), 9)) == 3
    with pytest.raises(DataError, match='no record is 60 s long'): Rhythms.cut_windows(s, 60)


@pytest.mark.parametrize('gap,symbols,name', [(100, 'NNNN', 'sinus'), (100, 'NLAa', 'atrial premature'), (100, 'NVAN', 'ventricular premature'), (110, 'NNNN', 'bradycardia'),
                                              (50, 'NRNN', 'tachycardia'), (60, 'NNNN', 'sinus'), (100, '//Q/', None)])
def test_name_of_a_rhythm(gap, symbols, name):
    assert Rhythms.rhythm_of(np.arange(4)*gap, list(symbols), 100) == name and Rhythms.rhythm_of(np.array([5]), ['N'], 100) is None


# Attention

def test_share_of_attention_by_hand():
    s = S.Signals([np.zeros((1, 1000), np.float32)]*3, 100, ['II'], np.array(list('abc')), peaks=[np.array([100, 480, 900])]*3,
                  symbols=[np.array(list('NVN'))]*2 + [np.array(list('NNN'))])
    even, at = np.full(63, 1/63), np.zeros(63)
    at[30] = 1
    v = E.attention_share(s, [even, at, even], 16, 'V', within=.3)
    assert v[0] == pytest.approx([3/63, 3/63]) and v[1] == pytest.approx([1, 3/63]) and np.isnan(v[2]).all()
    assert E.attention_share(s, [even]*3, 16, 'NV', within=20)[:, 1].tolist() == [1]*3
    n = E.attention_share(s, [even, at, even], 16, 'N', within=.3, away=3.7)
    assert n[0] == pytest.approx([8/63, 8/63]) and n[1, 0] == 0 and n[2] == pytest.approx([11/63, 11/63])
    assert np.isnan(E.attention_share(s, [even]*3, 16, 'N', away=5)[0]).all()


def test_attention_is_drawn_and_the_figure_closed(reader, sim):
    two, before = sim.take([0, 1]), plt.get_fignums()
    for s in (two, replace(two, peaks=None, symbols=None)):
        fig = E.plot_attention(s, *reader.attention(s), ['a (simulated)', 'b (simulated)'])
        assert len(fig.axes) == 2 and [a.get_title() for a in fig.axes] == ['a (simulated)', 'b (simulated)'] and plt.get_fignums() == before


# A real record

def test_record_100():
    if not mitdb.is_dir(): pytest.skip('MIT-BIH record 100 is not beside the project')
    raw = Tracings.read_wfdb(mitdb/'100')
    v, a = ({p//3600 for p, k in zip(raw.peaks[0], raw.symbols[0]) if k == kind} for kind in 'VA')
    rec = raw.at_rate(100, change=True)
    w = Rhythms.cut_windows(replace(rec, mv=[x[:1] for x in rec.mv], leads=['II']))
    names = [Rhythms.rhythm_of(p, k, 100) for p, k in zip(w.peaks, w.symbols)]
    assert len(w) == 180 and {i for i, n in enumerate(names) if n == 'ventricular premature'} == v
    assert {i for i, n in enumerate(names) if n == 'atrial premature'} == a - v and names.count('sinus') == 180 - len(v | a)
    b = Rhythms.beat_windows(w)
    early = b.table['RR before'].to_numpy()
    assert len(b) > 2000 and np.bincount(b.labels)[1] == 1
    assert np.median(early[b.labels == 2]) < .9 < np.median(early[b.labels == 0])
    assert E.rhythm_features(w.take(range(20)))['heart rate'].between(60, 100).all()


# The chapter

def test_a_reader_is_told_where_the_record_comes_from():
    text = (Path(__file__).parents[1]/'nbs'/'sequences'/'04_ecg.ipynb').read_text(encoding='utf-8')
    assert 'shared/' not in text and 'PhysioNet gives the database away as `mitdb`' in text


def test_chapter_reads_a_real_record(tmp_path):
    if not mitdb.is_dir(): pytest.skip('MIT-BIH record 100 is not beside the project')
    part = tmp_path/'nbs'/'sequences'
    part.mkdir(parents=True)
    notebook = (Path(__file__).parents[1]/'nbs'/'sequences'/'04_ecg.ipynb').read_text(encoding='utf-8')
    for now, small in {'patients=240': 'patients=144', 'budget=Budget(75)': 'budget=Budget(10)',
                       'leak_strips=6, leak=Budget(70), resamples=500': 'leak_strips=2, leak=Budget(5), resamples=50'}.items():
        assert now in notebook
        notebook = notebook.replace(now, small)
    (part/'04_ecg.ipynb').write_text(notebook, encoding='utf-8')
    row, = run(plan(['sequences/ecg'], params=dict(external=str(mitdb/'100')), folder=tmp_path/'nbs'), tmp_path/'out', timeout=300)
    assert row['error'] is None, row['error']
    assert sum(c['claim'].startswith('Real record') for c in row['claims']) == 1
