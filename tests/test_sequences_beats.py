"Beats sorted by their shape and by how early they came"
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch

from medlearn.data.rhythms import beat_windows, simulated_ecg
from medlearn.foundations.budget import Budget
from medlearn.kit.cards import DataError
from medlearn.kit.runner import plan, run
from medlearn.sequences import beats as B

mitdb = Path(__file__).parents[2]/'shared'/'data'/'mitdb_record100'


def lead_ii(s): return replace(s, mv=[x[[s.leads.index('II')]] for x in s.mv], leads=['II'])


@pytest.fixture(scope='module')
def strips(): return lead_ii(simulated_ecg(60, rate=100, kinds=['ventricular premature'], seed=2))


def test_windows_become_steps_of_samples(strips):
    w = beat_windows(strips)
    s = B.beat_set(w)
    assert s.x.shape == (len(w), 70, 3) and (s.sizes == 70).all() and s.vocab == ['N', 'V', 'A']
    assert np.allclose(s.x[5].T, w.mv[5]) and s.y[1].tolist() == w.labels.tolist()
    with pytest.raises(DataError, match='Cut them to one length'): B.beat_set(replace(w, mv=[w.mv[0][:, :30], *w.mv[1:]]))


@pytest.mark.parametrize('n', [1, 2, 5])
def test_a_beat_is_scored_for_itself(n):
    torch.manual_seed(0)
    net, x = B.BeatNet(3, 4, (8, 16)).eval(), torch.randn(5, 70, 3)
    with torch.inference_mode(): assert net(x).shape == (5, 4) and torch.allclose(net(x)[:n], net(x[:n]), atol=1e-6)


def test_wide_beats_are_learned_and_others_refused(strips):
    w = beat_windows(strips)
    keep = w.labels != 2
    w = replace(w.take(keep), classes=['N', 'V'])
    torch.manual_seed(0)
    learn, test = B.fit_beats(w, Budget(120), device='cpu'), w.part('test')
    p = B.beat_scores(learn, test, 100)
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert all((p.argmax(1) == test.labels)[test.labels == k].mean() > .9 for k in (0, 1))
    with pytest.raises(DataError, match='the model needs 100 Hz'): B.beat_scores(learn, replace(test, rate=250.), 100)
    with pytest.raises(DataError, match='has 1 channels .II., the network was trained on 3'): B.beat_scores(learn, beat_windows(strips, context=False), 100)


def test_nothing_to_learn_from(strips):
    w = beat_windows(strips)
    for lost in ('labels', 'split'):
        with pytest.raises(DataError, match='no labels or no split'): B.fit_beats(replace(w, **{lost: None}), device='cpu')


@pytest.mark.parametrize('folder', [False, True])
def test_chapter_reads_real_records(tmp_path, folder):
    if not mitdb.is_dir(): pytest.skip('MIT-BIH record 100 is not beside the project')
    part = tmp_path/'nbs'/'sequences'
    part.mkdir(parents=True)
    notebook = (Path(__file__).parents[1]/'nbs'/'sequences'/'05_beats.ipynb').read_text(encoding='utf-8')
    for now, small in {'patients=210, budget=Budget(120)': 'patients=120, budget=Budget(40)', 'resamples=500': 'resamples=50'}.items():
        assert now in notebook
        notebook = notebook.replace(now, small)
    (part/'05_beats.ipynb').write_text(notebook, encoding='utf-8')
    params = dict(external=str(mitdb if folder else mitdb/'100'))
    row, = run(plan(['sequences/beats'], params=params, folder=tmp_path/'nbs'), tmp_path/'out', timeout=300)
    assert row['error'] is None, row['error']
    assert sum(c['claim'].startswith('Real beats') for c in row['claims']) == 1
