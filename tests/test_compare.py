"Two runs beside each other: what moved, and which of the things that were changed on purpose is named first"
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat.v4 as v4
import pytest
from typer.testing import CliRunner

from medlearn.kit import figures, runs
from medlearn.kit.catalog import WrongUsage
from medlearn.kit.cli import app
from medlearn.kit.compare import compare_runs, differing, in_sentences, likeliest, moves, spread_of
from medlearn.kit.runner import plan, run_one, write_results
from medlearn.kit.runs import sound_row
from medlearn.kit.workers import Crew

PARAMS = 'profile = "smoke"\nseed = 42\ndataset = "toy"\nnoise = 0.4\n'
STORY = '''import numpy as np
from medlearn.kit.chapter import answers, claim
rng = np.random.default_rng(seed)
truth = rng.integers(0, 2, 4000 if profile == "smoke" else 40000)
told = answers(truth)
shift = float(open(dataset).read()) if dataset.endswith("csv") else 0.
x = truth + shift + rng.normal(0, noise, len(truth))
cut = (x[told == 1].mean() + x[told == 0].mean())/2 if abs(x[told == 1].mean() - x[told == 0].mean()) > .2 else 9.
right = ((x > cut + shift) == truth).mean()
claim("accuracy", (right, right - .0002, right + .0002), at_least=.6, source="definition: chance")'''


def chapter(folder, story=STORY):
    "Write the chapter that is run again and again"
    path = Path(folder)/'imaging/01_tiny.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [v4.new_markdown_cell('# Tiny\n\n> A promise.'), v4.new_code_cell(PARAMS, metadata=dict(tags=['parameters'])), v4.new_code_cell(story)]
    for i, c in enumerate(cells): c['id'] = f'cell{i}'
    path.write_text(json.dumps(v4.new_notebook(cells=cells)))


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    "Real runs of one small chapter, each with one thing changed on purpose"
    root = tmp_path_factory.mktemp('real')
    for name, shift in (('mine.csv', '0.1'), ('yours.csv', '0.3')): (root/name).write_text(shift)
    with Crew(1, ['ipykernel.kernelapp', 'numpy', 'medlearn.kit.chapter']) as crew:
        def go(name, dataset='mine.csv', **options):
            params = dict(dataset=dataset) | options.pop('params', {})
            job, = plan(['imaging/tiny'], folder=root/'nbs', params=params, cwd=root, **options)
            row = run_one(job, root/name, timeout=60, crew=crew)
            assert row['status'] in ('passed', 'failed'), row['error']
            write_results(root/name)
        chapter(root/'nbs')
        for name in ('base', 'again'): go(name)
        go('seed', seeds=[7])
        go('profile', profile='full')
        go('parameters', params=dict(noise='0.6'))
        go('dataset', dataset='yours.csv')
        go('sabotage', sabotage='answers')
        (root/'mine.csv').write_text('0.2')
        go('data')
        (root/'mine.csv').write_text('0.1')
        chapter(root/'nbs', STORY.replace('x > cut', 'x > .2 + cut'))
        go('code')
        chapter(root/'nbs', STORY.replace('"accuracy"', '"share of right answers"'))
        go('words')
    return root


def edited(root, name, other, a=None, b=None):
    "A pair of run folders in which a real run reads as if it had been made with these; the claim moved"
    folders = root/f'{name}-a', root/f'{name}-b'
    for folder, fields, value in ((folders[0], a or {}, 0), (folders[1], b | other if b else other, .03)):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root/'base', folder)
        path = folder/'imaging/tiny/smoke-seed42.json'
        row = json.loads(path.read_text())
        row |= dict(device='cpu', gpu=None, processor='CPU A', threads=2, commit='aaaa') | {k: v for k, v in fields.items() if k not in ('modules', 'versions', 'claim')}
        row['versions'] |= fields.get('versions', {})
        for c in row['claims']:
            c |= dict(claim=fields.get('claim', c['claim']))
            for k in ('value', 'low', 'high'): c[k] -= value
        if 'modules' in fields:
            row['library'] = fields['modules']
            (folder/'code.json').write_text(json.dumps({fields['modules']: {'imaging/tiny': fields['modules'], 'kit/chapter': 'same'}}))
        path.write_text(json.dumps(row))
        write_results(folder)
    return folders


OTHER_MACHINE = dict(processor='CPU B', threads=16)
CASES = dict( # what was changed on purpose -> (cause that has to be named first, how the two runs come about)
    seed=('seed', None), profile=('profile', None), parameters=('parameters', None), dataset=('parameters', None), data=('data', None),
    code=('code', None), words=('code', None), sabotage=('sabotage', None),
    module=('code', dict(a=dict(modules='one'), other=dict(modules='two', commit='bbbb'))),
    versions=('versions', dict(other=dict(versions=dict(torch='2.16.0'), commit='bbbb'), a=dict(modules='one'), b=dict(modules='one'))),
    device=('device', dict(other=dict(device='cuda', gpu='a GPU', **OTHER_MACHINE, versions=dict(papermill='2.6.0')))),
    threads=('threads', dict(other=dict(threads=16, commit='bbbb'))),
    processor=('processor', dict(other=dict(processor='CPU B'))),
    clock=('processor', dict(a=dict(claim='seconds an epoch'), other=dict(processor='CPU B', claim='seconds an epoch', versions=dict(papermill='2.6.0')))))


def first_cause(real, name):
    "The cause that is named first"
    how = CASES[name][1]
    a, b = (real/'base', real/name) if how is None else edited(real, name, **how)
    pair, = compare_runs(a, b)['pairs']
    assert any(m['state'] not in ('same', 'within') for m in pair['claims']), f'{name}: nothing moved'
    return pair['causes'][0]['cause']


@pytest.mark.parametrize('name', CASES)
def test_what_was_changed_on_purpose_is_named_first(real, name):
    assert first_cause(real, name) == CASES[name][0]


def test_nine_of_ten_are_right(real):
    right = [first_cause(real, name) == CASES[name][0] for name in CASES]
    assert len(right) >= 10 and sum(right) >= .9*len(right)


def test_the_same_run_twice_is_the_same(real):
    found = compare_runs(real/'base', real/'again')
    assert found['pairs'][0]['causes'] == [] and [m['state'] for m in found['pairs'][0]['claims']] == ['same']
    assert '1 the same to six digits' in in_sentences(found)[0] and 'No claim moved' in in_sentences(found)[1]


def test_real_runs_leave_which_code_they_ran(real):
    row = json.loads((real/'base/imaging/tiny/smoke-seed42.json').read_text())
    kept = json.loads((real/'base/code.json').read_text())
    assert kept == {row['library']: runs.library_of()[1]} or row['library'] in kept
    assert {'kit/chapter', 'kit/runs'} <= kept[row['library']].keys()


# What has moved

def claim(name='AUROC', value=.8, low=None, high=None, **more):
    return dict(claim=name, value=value, low=low, high=high, bound=.5, direction='at_least', tol=None, margin=None, passed=True, source='') | more


@pytest.mark.parametrize('a, b, spread, state', [
    (claim(), claim(), 0, 'same'), (claim(value=.8), claim(value=.8 + 1e-9), 0, 'same'), (claim(), claim(value=.81), 0, 'moved'), (claim(), claim(value=.81), .02, 'within'),
    (claim(low=.7, high=.9), claim(value=.88), 0, 'within'), (claim(), claim(value=.85, low=.75, high=.95), 0, 'within'),
    (claim(low=.7, high=.9), claim(value=.95, low=.92, high=.97), .02, 'moved'), (claim(low=.7, high=.9), claim(value=.95, low=.92, high=.97), .2, 'within'),
    (claim(), claim(value=None), 9, 'moved'), (claim(value=None), claim(value=None), 0, 'same'), (claim(), claim(bound=.6), 0, 'other bound'),
    (claim(), claim(margin=.1), 0, 'other bound'), (claim(bound=.5), claim(bound=.5 + 1e-9), 0, 'same'), (claim(), claim(direction='at_most'), 0, 'other bound'),
    (claim(source='here: area alone'), claim(source='here: area alone', bound=.6), 0, 'same'), (claim(), claim(value=.9, bound=.6), 0, 'other bound')])
def test_moved_or_within_the_spread(a, b, spread, state):
    assert [m['state'] for m in moves([a], [b], dict(AUROC=spread))] == [state]
    back = moves([b], [a], dict(AUROC=spread))
    assert [m['state'] for m in back] == [state], 'it depends on which run is named first'


def test_claims_are_paired_by_name():
    found = moves([claim('a'), claim('b')], [claim('b'), claim('c')])
    assert [(m['claim'], m['state']) for m in found] == [('a', 'only in A'), ('b', 'same'), ('c', 'only in B')]


def row(**other): return sound_row(dict(chapter='imaging/tiny', profile='smoke', seed=1, status='passed', claims=[], versions=dict(torch='2.15.0', numpy='2.4.6')) | other)[0]


def test_seeds_on_record_speak_against_the_seed():
    found = differing(row(), row(seed=2, versions=dict(torch='2.16.0', numpy='2.4.6')))
    seen = moves([claim()], [claim(value=.9)], dict(AUROC=.01))
    assert [f['cause'] for f in likeliest(found, seen, dict(AUROC=.01))] == ['versions', 'seed']
    assert [f['cause'] for f in likeliest(found, seen)] == ['seed', 'versions']


def test_what_follows_from_something_else_is_no_cause_of_its_own():
    gpu = dict(device='cuda', gpu='a GPU', threads=16, processor='another')
    found = differing(row(device='cpu', threads=2, processor='one'), row(**gpu))
    assert [f['cause'] for f in found] == ['device'] and 'the threads and the processor' in found[0]['what']
    data = lambda n: dict(parameters=dict(dataset=n), data=[dict(name=n, digest=n)])
    assert [f['cause'] for f in differing(row(**data('a')), row(**data('b')))] == ['parameters']


def test_a_commit_that_changed_nothing_that_is_reached_comes_last():
    pair = [row(library=x, commit=x, sha256='1') | dict(modules={'data/images': '1', 'kit/cli': x}, reached={'data/images'}) for x in 'ab']
    found = differing(pair[0], pair[1] | dict(seed=2))
    assert [f['cause'] for f in found] == ['seed', 'commit'] and 'kit/cli' in found[1]['what']
    pair[1]['modules'] = {'data/images': '2', 'kit/cli': 'b'}
    assert [f['cause'] for f in differing(*pair)] == ['code'] and differing(*pair)[0]['what'] == 'data/images'


def test_if_nothing_differs_chance_is_named():
    seen = moves([claim()], [claim(value=.9)])
    assert [f['cause'] for f in likeliest(differing(row(), row()), seen)] == ['not recorded']
    assert likeliest([], moves([claim()], [claim()])) == []


def test_paths_of_the_reader_are_shortened():
    found = differing(row(parameters=dict(dataset='/home/me/a.csv')), row(parameters=dict(dataset='/home/me/b.csv')))
    assert found == [dict(cause='parameters', what='dataset: a.csv and b.csv')]


# Folders, the record, and what is refused

def call(*words): return CliRunner().invoke(app, list(map(str, words)))


def test_the_command_names_what_moved_and_why(real, tmp_path):
    done = call('report', real/'base', real/'data', '--out', tmp_path/'two.html')
    assert done.exit_code == 1 and 'imaging/tiny: likeliest cause: data: own data, dataset has another digest' in done.output
    assert 'accuracy' in done.output and '0.2.html' not in done.output
    page = (tmp_path/'two.html').read_text()
    assert '<html lang="en">' in page and page.count('scope="col"') >= 8 and [p.name for p in tmp_path.iterdir()] == ['two.html']
    assert call('report', real/'base', real/'again').exit_code == 0


def test_markup_of_others_is_shown_as_text(real, tmp_path):
    evil = '<script>alert(1)</script>'
    a, b = edited(real, 'markup', dict(claim=evil, parameters=dict(dataset=evil), commit=evil, processor=evil), dict(claim=evil))
    call('report', a, b, '--out', tmp_path/'two.html')
    page, tags = (tmp_path/'two.html').read_text(), []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)
    parser.feed(page)
    assert 'script' not in tags and page.count('&lt;script&gt;') > 2


def test_runs_of_different_chapters_are_refused_by_name(real, tmp_path):
    for folder, name in ((tmp_path/'a', 'imaging/one'), (tmp_path/'b', 'data/two')):
        (folder/name).mkdir(parents=True)
        (folder/name/'smoke.json').write_text(json.dumps(dict(chapter=name, profile='smoke', seed=None, status='passed', claims=[])))
    done = call('report', tmp_path/'a', tmp_path/'b')
    assert done.exit_code == 2 and 'imaging/one' in done.output and 'data/two' in done.output and 'no chapter is in both' in done.output
    assert call('report', tmp_path/'a', tmp_path/'b', tmp_path/'a').exit_code == 2
    assert 'is no folder' in call('report', tmp_path/'a', tmp_path/'nowhere').output


def test_what_is_damaged_is_said_and_the_rest_compared(real, tmp_path):
    shutil.copytree(real/'base', tmp_path/'torn')
    (tmp_path/'torn/imaging/tiny/smoke-seed43.json').write_text('{"chapter": "imaging/ti')
    done = call('report', tmp_path/'torn', real/'again')
    assert done.exit_code == 0 and 'smoke-seed43.json is not JSON' in done.output and '1 the same' in done.output
    for p in (tmp_path/'torn/imaging/tiny').glob('*.json'): p.write_text('[')
    (tmp_path/'torn/results.json').write_text('')
    done = call('report', tmp_path/'torn', real/'again')
    assert done.exit_code == 2 and 'holds no whole record' in done.output and 'Traceback' not in done.output


def test_one_file_can_be_named_instead_of_a_folder(real):
    one = real/'seed/imaging/tiny/smoke-seed7.json'
    for other in (one, real/'seed/results.json'):
        assert compare_runs(real/'base', other)['pairs'][0]['causes'][0]['cause'] == 'seed'
    (real/'torn.json').write_text('{')
    with pytest.raises(WrongUsage, match='is not JSON'): compare_runs(real/'base', real/'torn.json')


@pytest.fixture
def record(tmp_path, monkeypatch):
    "A record of three seeds in a folder of its own"
    home = tmp_path/'data'
    (home/'figures').mkdir(parents=True)
    monkeypatch.setattr(figures, 'data_folder', lambda: home)
    def put(values, **more):
        keep = dict(parameters={}, date='2026-12-01', commit='aaaa', device='cpu', threads=1, processor='CPU A', seconds=9, versions={}, inputs=[], kept={},
                    code=dict(chapter='1')) | more
        all_runs = [keep | dict(seed=i, claims=[claim('accuracy', v, bound=.6)]) for i, v in enumerate(values, 1)]
        figures.write_record(dict(format=1, chapter='imaging/tiny', runs=all_runs, sabotage=[]))
    return SimpleNamespace(put=put, home=home)


def test_a_run_beside_the_record(real, record):
    record.put([.88, .90, .89])
    assert spread_of('imaging/tiny') == {'accuracy': pytest.approx(.02)}
    for order in ((real/'base', 'record'), ('record', real/'base')):
        pair, = compare_runs(*order)['pairs']
        assert pair['causes'][0]['cause'] == 'profile' and {pair['a']['profile'], pair['b']['profile']} == {'smoke', 'full'}
    by_file = compare_runs(real/'base', record.home/'figures/imaging_tiny.json')
    assert by_file['pairs'][0]['b']['seed'] == 1


def test_a_chapter_without_record_and_a_record_of_a_newer_format(real, record):
    with pytest.raises(WrongUsage, match='medlearn measure imaging/tiny'): compare_runs(real/'base', 'record')
    (record.home/'figures/imaging_tiny.json').write_text('{"format": 99, "chapter": "imaging/tiny", "runs": []}')
    done = call('report', real/'base', 'record')
    assert done.exit_code == 1 and 'format 99' in done.output and 'Traceback' not in done.output
    found = compare_runs(real/'base', real/'seed')
    assert 'format 99' in found['problems'][0] and len(found['pairs']) == 1
