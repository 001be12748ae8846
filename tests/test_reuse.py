"Unchanged work is recognised, and changed work is: each part of the key in turn, damage, limits, and a second run that finds everything"
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

import medlearn
from medlearn.kit import reuse as R
from medlearn.kit.catalog import chapters
from medlearn.kit.runner import plan,run
from test_cli import call
from test_runner import PARAMS, chapter, claim

LONG = 'profile = "smoke"\nseed = 42\ndataset = "lidc_nodules"\nlength = 3\n'


@pytest.fixture
def job(tmp_path, monkeypatch):
    "A chapter that reads a module and a data set, and its key"
    monkeypatch.delenv('PYTHONPATH', raising=False)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    write = lambda cell='from medlearn.kit.figures import reached', params=LONG: chapter(tmp_path/'nbs', 'imaging/01_c', cell, claim(True), params=params)
    write()
    make = lambda **kw: plan(folder=tmp_path/'nbs', **kw)[0]
    return write, make


def test_the_key_stays(job):
    _, make = job
    assert R.key_of(make()) == R.key_of(make()) and len(R.key_of(make())) == 16


def test_each_part_changes_the_key(job, tmp_path, monkeypatch):
    write, make = job
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/a.csv').write_text('1')
    own = dict(params=dict(dataset=str(tmp_path/'mine')))
    seen = dict(plain=R.key_of(make()), profile=R.key_of(make(profile='full')), seed=R.key_of(make(seeds=[1])),
                parameters=R.key_of(make(params=dict(length='4'))), sabotage=R.key_of(make(sabotage='answers')),
                threads=R.key_of(make(), 77), more_threads=R.key_of(make(), 78), data=R.key_of(make(**own)))
    (tmp_path/'mine/a.csv').write_text('2')
    seen['changed data'] = R.key_of(make(**own))
    (tmp_path/'mine/b.csv').write_text('')
    seen['more data'] = R.key_of(make(**own))
    (tmp_path/'disk').mkdir()
    (tmp_path/'mine/linked').symlink_to(tmp_path/'disk', target_is_directory=True)
    (tmp_path/'disk/c.csv').write_text('')
    seen['linked data'] = R.key_of(make(**own))
    (tmp_path/'one.npz').write_text('1')
    seen['one file'] = R.key_of(make(params=dict(dataset=str(tmp_path/'one.npz'))))
    (tmp_path/'one.toml').write_text('positive = "benign"')
    seen['its options'] = R.key_of(make(params=dict(dataset=str(tmp_path/'one.npz'))))
    write('from medlearn.kit.figures import reached # why')
    seen['cells'] = R.key_of(make())
    write('from medlearn.kit.chapter import says')
    seen['modules reached'] = R.key_of(make())
    write()
    def changed(name, patch):
        with monkeypatch.context() as m:
            patch(m)
            R._installed.cache_clear()
            seen[name] = R.key_of(make())
        R._installed.cache_clear()
    modules = R.code.all_code(make().path)[1]
    assert 'kit/figures' in modules
    changed('module', lambda m: m.setattr(R.code, 'all_code', lambda path: ([], modules | {'kit/figures': 'other'})))
    changed('processor', lambda m: m.setattr(R, 'processor', lambda: 'another'))
    changed('python', lambda m: m.setattr(R.sys, 'version', '3.99'))
    changed('device', lambda m: m.setattr(R, '_device', lambda device: 'gpu X'))
    changed('variable', lambda m: m.setenv('CUBLAS_WORKSPACE_CONFIG', ':16:8'))
    home = tmp_path/'home/medlearn'
    home.mkdir(parents=True)
    (home.parent/'requirements.lock').write_text('torch==1')
    changed('lock', lambda m: m.setattr(R, '_home', home))
    import importlib.metadata as meta
    changed('packages', lambda m: m.setattr(meta, 'distributions', lambda: iter([])))
    (tmp_path/'cards').mkdir()
    shutil.copy(next((Path(medlearn.__file__).parent.parent/'data/cards').glob('*.toml')), tmp_path/'cards/other.toml')
    text = (tmp_path/'cards/other.toml').read_text()
    changed('cards', lambda m: m.setattr(R, '_cards', lambda: R._sha(text)))
    figures = tmp_path/'figures'
    figures.mkdir()
    (figures/'published.toml').write_text('x = 1')
    changed('figures', lambda m: m.setattr('medlearn.kit.figures.data_folder', lambda: figures))
    twice = {k: v for k, v in seen.items() if list(seen.values()).count(v) > 1}
    assert not twice and all(seen.values()), twice
    assert R.key_of(make()) == seen['plain']


def test_parts_are_those_that_are_promised(job):
    parts = R.key_parts(job[1]())
    promised = 'cells parameters profile seed modules data cards packages python processor threads device'
    assert set(promised.split()) <= parts.keys()


def test_a_chapter_about_the_kit_depends_on_the_course(tmp_path, monkeypatch):
    monkeypatch.delenv('PYTHONPATH', raising=False)
    chapter(tmp_path/'nbs', 'kit/01_c', '1', params=None)
    first = R.key_of(plan(folder=tmp_path/'nbs')[0])
    monkeypatch.setattr(R, '_course', lambda: 'another')
    assert first != R.key_of(plan(folder=tmp_path/'nbs')[0])


def test_foreign_modules_are_not_kept(job, monkeypatch, tmp_path):
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert R.key_of(job[1]()) is None
    monkeypatch.setenv('PYTHONPATH', str(Path(medlearn.__file__).parent.parent))
    assert R.key_of(job[1]())


@pytest.fixture
def course(tmp_path, monkeypatch):
    "Two chapters that hold, one whose claim does not, one that breaks, and what runs them"
    monkeypatch.delenv('PYTHONPATH', raising=False)
    nbs = tmp_path/'nbs'
    chapter(nbs, 'foundations/01_holds', 'seed', claim(True), params=PARAMS + 'dataset = "lidc_nodules"')
    chapter(nbs, 'foundations/02_fails', claim(False))
    chapter(nbs, 'imaging/01_breaks', '1/0')
    chapter(nbs, 'imaging/02_plain', '"shown"')
    def go(out='out', **kw):
        kept = R.Kept(tmp_path/'kept', **kw)
        rows = run(plan(folder=nbs), tmp_path/out, jobs=1, warm=False, kept=kept)
        return kept, {r['chapter'].split('/')[1]: r for r in rows}
    return nbs, go


def test_a_second_run_finds_everything_that_is_complete(course, tmp_path):
    nbs, go = course
    kept, first = go()
    assert kept.hits == 0 and not kept.said
    kept, second = go('again')
    assert kept.hits == 3 and [k for k, r in second.items() if r.get('reused')] == ['holds', 'fails', 'plain']
    assert [r['status'] for r in second.values()] == ['passed', 'failed', 'error', 'passed']
    for name in ('holds', 'fails', 'plain'):
        same = {k: v for k, v in second[name].items() if k != 'reused'}
        assert same == first[name]
        on_disk = json.loads((tmp_path/'again'/second[name]['notebook']).with_suffix('.json').read_text())
        assert on_disk == second[name]
    assert "'shown'" in (tmp_path/'again'/second['plain']['notebook']).read_text()
    assert go('fresh', fresh=True)[0].hits == 0


def test_prose_may_change_and_is_shown_new(course, tmp_path):
    nbs, go = course
    go()
    path = nbs/'foundations/01_holds.ipynb'
    nb = json.loads(path.read_text())
    nb['cells'][0]['source'] = '# Another title\n\n> Another promise.'
    nb['cells'].append(dict(cell_type='markdown', id='last', metadata={}, source='The end.'))
    path.write_text(json.dumps(nb))
    kept, rows = go('again')
    assert kept.hits == 3
    shown = json.loads((tmp_path/'again'/rows['holds']['notebook']).read_text())
    text = json.dumps(shown)
    assert 'Another promise' in text and 'The end.' in text and 'A promise' not in text and 'injected-parameters' in text
    assert [c['outputs'] != [] for c in shown['cells'] if c['cell_type'] == 'code'] == [False, False, True, True]
    import nbformat
    nbformat.validate(nbformat.from_dict(shown))
    assert rows['holds']['sha256'] != '' and run(plan(['foundations'], folder=nbs), tmp_path/'again', jobs=1, resume=True)[0] == rows['holds']


def test_a_damaged_entry_is_a_miss_said_once(course, tmp_path):
    nbs, go = course
    go()
    for p in (tmp_path/'kept').glob('*.gz'): p.write_bytes(p.read_bytes()[:-20] + b'x'*20)
    kept, rows = go('again')
    assert kept.hits == 0 and len(kept.said) == 1 and 'damaged' in kept.said[0][1]
    assert go('third')[0].hits == 3


def test_half_an_entry_is_a_miss(course, tmp_path):
    nbs, go = course
    go()
    for p in (tmp_path/'kept').glob('*.gz'): p.write_bytes(b'')
    (tmp_path/'kept/needs.json').write_text('[')
    assert go('again')[0].hits == 0


def test_the_folder_stays_within_its_limit(tmp_path, course):
    nbs, go = course
    go()
    sizes = sorted(p.stat().st_size for p in (tmp_path/'kept').glob('*.gz'))
    oldest = tmp_path/'kept/0000.gz'
    oldest.write_bytes(b'x'*sizes[0])
    os.utime(oldest, (1, 1))
    go('again', limit=sum(sizes) + sizes[0]//2, fresh=True)
    left = [p.name for p in (tmp_path/'kept').glob('*.gz')]
    assert len(left) == 3 and oldest.name not in left
    go('small', limit=1, fresh=True)
    assert not list((tmp_path/'kept').glob('*.gz'))


def test_a_folder_that_cannot_be_written_is_said_once_and_the_run_goes_on(course, tmp_path):
    nbs, go = course
    (tmp_path/'kept').write_text('a file')
    kept, rows = go()
    assert [r['status'] for r in rows.values()] == ['passed', 'failed', 'error', 'passed']
    assert len(kept.said) == 1 and 'not kept' in kept.said[0][1] and str(tmp_path/'kept') in kept.said[0][1]


def test_what_a_chapter_needed_is_known_next_time(course, tmp_path):
    _, go = course
    go()
    needs = R.Kept(tmp_path/'kept').needs
    assert needs.keys() == {'foundations/holds/smoke', 'foundations/fails/smoke', 'imaging/plain/smoke'}
    assert all(0 < s < 60 and 20 < mb < 2000 for s, mb in needs.values())


def test_the_command_says_what_was_unchanged(tmp_path, monkeypatch):
    chapter(tmp_path/'nbs', 'imaging/01_c', claim(True))
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path/'cache'))
    for name in ('CI', 'PYTHONPATH'): monkeypatch.delenv(name, raising=False)
    args = ['run', '--nbs', str(tmp_path/'nbs'), '--out', str(tmp_path/'out')]
    said = [call(*args).stdout, call(*args).stdout, call(*args, '--fresh').stdout]
    monkeypatch.setenv('CI', 'true')
    said.append(call(*args).stdout)
    assert [f'{n} of 1 results came from the cache' in text for n, text in zip((0, 1, 0, 0), said)] == [True]*4, said
    assert 'passed   imaging/c/smoke-seed42  unchanged' in said[1] and 'Slowest' in said[0] and 'Slowest' not in said[1]


def test_every_chapter_of_the_course_has_a_key(monkeypatch):
    monkeypatch.delenv('PYTHONPATH', raising=False)
    began = time.process_time()
    keys = [R.key_of(job) for job in plan()]
    assert all(keys) and len(set(keys)) == len(chapters())
    assert keys == [R.key_of(replace(job)) for job in plan()]


def test_off_neither_takes_nor_keeps(course, tmp_path):
    _, go = course
    assert go(off=True)[0].hits == 0 and not (tmp_path/'kept').exists()
    go()
    assert go('again', off=True)[0].hits == 0


def test_what_changes_while_a_chapter_runs_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.delenv('PYTHONPATH', raising=False)
    data = tmp_path/'mine.csv'
    chapter(tmp_path/'nbs', 'imaging/01_c', 'open(dataset, "a").write("x")', claim(True), params=PARAMS + 'dataset = "lidc_nodules"')
    def hits():
        data.write_text('a')
        kept = R.Kept(tmp_path/'kept')
        run(plan(folder=tmp_path/'nbs', params=dict(dataset=str(data))), tmp_path/'out', jobs=1, kept=kept)
        return kept.hits
    assert [hits(), hits()] == [0, 0] and not list((tmp_path/'kept').glob('*.gz'))


def test_a_chapter_that_vanishes_is_its_own_error(tmp_path):
    path = chapter(tmp_path/'nbs', 'imaging/01_c', '1')
    work = plan(folder=tmp_path/'nbs')
    path.unlink()
    assert run(work, tmp_path/'out', jobs=1, kept=R.Kept(tmp_path/'kept'))[0]['status'] == 'error'
