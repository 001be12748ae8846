"Measuring: what is put on record, what goes on after an interruption, and what leaves the record as it was"
import json, threading
from pathlib import Path

import pytest
from nbformat import v4

from medlearn.kit import measure as m
from medlearn.kit.figures import RecordError, read_record
from medlearn.kit.catalog import chapters,WrongUsage

PARAMS = 'profile = "smoke"\nseed = 42\ndataset = "lidc_nodules"\nsize = 3'
KEEP = '''import pandas as pd
from medlearn.kit.chapter import answers, begin, claim, keep
begin(profile, seed)
y = answers([0, 0, 1, 1, 2, 2, 3, 3])
keep("table", pd.DataFrame(dict(model=["a", "b"], value=[seed, size])))
claim("answers in order", sum(a == b for a, b in zip(y, sorted(y))), equals=8, source="definition: sorted")'''


def chapter(folder, *cells, name='imaging/01_toy', params=PARAMS):
    path = Path(folder)/f'{name}.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    first = v4.new_code_cell(params, metadata=dict(tags=['parameters']))
    path.write_text(json.dumps(v4.new_notebook(cells=[v4.new_markdown_cell('# Toy\n\n> A toy.'), first, *map(v4.new_code_cell, cells)])))
    return path


@pytest.fixture
def toy(tmp_path):
    nbs, records = tmp_path/'nbs', tmp_path/'figures'
    def go(*cells, seeds=(), params=None, kinds=(), **kw):
        if cells: chapter(nbs, *cells)
        jobs = m.to_measure('imaging/toy', seeds, params, nbs=nbs)
        told = []
        broken = m.measure(jobs, tmp_path/'runs', kinds, records, nbs=nbs, tell=lambda job, msg: told.append((job, msg)), **kw)
        return broken, [(j.seed, t if isinstance(t, str) else t['status']) for j, t in told if isinstance(t, str) or 'status' in t]
    return go, lambda: read_record('imaging/toy', records), nbs


def test_runs_claims_tables_and_sabotage_are_put_on_record(toy):
    go, record, _ = toy
    broken, told = go('measured = dict(seeds=(1, 2), runs=[dict(size=4)], why="a test")', KEEP, kinds=['answers'])
    assert not broken
    found = record()
    assert [(r['seed'], r['parameters']) for r in found['runs']] == [(1, dict(size=4)), (2, dict(size=4))]
    one = found['runs'][0]
    assert one['kept']['table']['rows'] == [['a', 1.0], ['b', 4.0]] and one['claims'][0]['passed'] is True
    assert one['threads'] and one['processor'] and one['versions']['torch'] and one['seconds'] > 0 and one['code']['chapter']
    assert found['sabotage'][0]['holds'] == {'answers in order': False}


def test_what_is_up_to_date_is_not_measured_again(toy):
    go, record, nbs = toy
    go(KEEP, seeds=[1])
    assert go(seeds=[1, 2])[1] == [(1, 'up to date'), (2, 'passed')]
    go(KEEP + '\n1 + 1', seeds=[2])
    assert len(record()['runs']) == 2 and m.state('imaging/toy', chapters(nbs)['imaging/toy'], nbs.parent/'figures')['since'] == ['chapter']


def test_a_run_that_breaks_leaves_the_old_record(toy):
    go, record, _ = toy
    go(KEEP, seeds=[1])
    before = record()
    broken, _ = go(KEEP, 'raise ValueError("no luck")', seeds=[1])
    assert 'no luck' in broken[0] and 'stays as it was' in broken[0] and record() == before


def test_two_tables_with_one_name(toy):
    go, record, _ = toy
    broken, _ = go(KEEP, 'keep("table", 1)', seeds=[1])
    assert "two results of this chapter have that name" in broken[0] and record() is None


def test_stopped_it_keeps_what_was_finished(toy):
    go, record, _ = toy
    stop = threading.Event()
    go(KEEP, seeds=[1])
    stop.set()
    go(KEEP + '\n2', seeds=[2], stop=stop)
    assert [r['seed'] for r in record()['runs']] == [1]


def test_what_cannot_be_measured(toy, tmp_path):
    _, _, nbs = toy
    chapter(nbs, KEEP)
    with pytest.raises(WrongUsage, match="no parameter 'sise'; nearest: size"): m.to_measure('imaging/toy', params=dict(sise='4'), nbs=nbs)
    chapter(nbs, 'measured = dict(seeds=(1,), runs=[{}])')
    with pytest.raises(RecordError, match='1 seeds: three, or why'): m.to_measure('imaging/toy', nbs=nbs)
    chapter(nbs, 'measured = dict(seeds=range(3))')
    with pytest.raises(RecordError, match='no literal'): m.to_measure('imaging/toy', nbs=nbs)
    with pytest.raises(WrongUsage, match='no chapter'): m.to_measure('imaging/tay', nbs=nbs)


def test_a_file_is_measured_under_the_name_of_its_set(toy, tmp_path):
    _, _, nbs = toy
    chapter(nbs, 'measured = dict(runs=[{}, dict(dataset="breastmnist", size=5)])', KEEP)
    (tmp_path/'breastmnist.npz').write_bytes(b'')
    jobs = m.to_measure('imaging/toy', params=dict(dataset=str(tmp_path/'breastmnist.npz')), nbs=nbs)
    assert {j.parameters['size'] for j in jobs} == {5} and [j.seed for j in jobs] == [1, 2, 3]
    assert m.short_parameters(jobs[0].parameters, dict(dataset='lidc_nodules', size=3)) == dict(dataset='breastmnist', size=5)


def test_a_sabotage_that_breaks_the_chapter_is_reported_and_not_recorded(toy):
    go, record, _ = toy
    broken, _ = go(KEEP, 'assert y == sorted(y), "out of order"', seeds=[1], kinds=['answers'])
    assert len(broken) == 1 and 'out of order' in broken[0] and record()['sabotage'] == []


def test_a_commit_names_the_code_if_only_other_files_differ(tmp_path, monkeypatch):
    import subprocess
    from types import SimpleNamespace
    git = lambda *a: subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', *a], check=True, capture_output=True, text=True).stdout
    files = {'nbs/01_a.ipynb': 'a', 'medlearn/__init__.py': '', 'medlearn/data/x.py': 'x', 'README.md': 'r'}
    for name, text in files.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(text)
    git('init', '-q'), git('add', '-A'), git('commit', '-qm', 'x')
    head = git('rev-parse', '--short=12', 'HEAD').strip()
    monkeypatch.setattr(m, 'medlearn', SimpleNamespace(__file__=str(tmp_path/'medlearn/__init__.py')))
    named = lambda commit=head + '+': m.named_commit(commit, tmp_path/'nbs/01_a.ipynb', {'chapter': '1', 'data/x': '2'})
    (tmp_path/'README.md').write_text('other')
    assert [named(), named(head), named(None), named('0'*12 + '+')] == [head, head, None, '0'*12 + '+']
    (tmp_path/'medlearn/data/x.py').write_text('other')
    assert named() == head + '+'


def test_code_that_changed_while_it_ran_is_not_put_on_record(toy):
    go, record, nbs = toy
    path = nbs/'imaging/01_toy.ipynb'
    edit = f'from pathlib import Path\np = Path({str(path)!r})\np.write_text(p.read_text().replace("1 + " + "1", "1 + 2"))'
    broken, told = go(KEEP, '1 + 1', edit, seeds=[1])
    assert broken == ['imaging/toy/full-seed1: chapter changed while it ran; the record stays as it was'] and record() is None
    assert not go(seeds=[1])[0] and len(record()['runs']) == 1
