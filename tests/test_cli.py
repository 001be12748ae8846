"The command: exit statuses, and how fast it says what it can do"
import json
import subprocess
import sys
import time
from pathlib import Path

import nbformat.v4 as v4
import pytest
from typer.testing import CliRunner

from medlearn.kit import cli
from medlearn.kit.cli import app
from medlearn.kit.doctor import requirements

MEDLEARN = [sys.executable, '-c', 'from medlearn.kit.cli import main; main()']


def call(*words): return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope='module')
def nbs(tmp_path_factory):
    "Two chapters: one reads a data set and holds, one claims too much"
    nbs = tmp_path_factory.mktemp('nbs')
    def chapter(name, passed, params, cell=''):
        bound = f'(.9, .8, .95), at_least={.75 if passed else .99}, source="definition: a [paper]"'
        last = f'from medlearn.kit.chapter import claim\nclaim("AUROC", {bound})'
        cells = [v4.new_markdown_cell('# A title\n\n> A promise.'), *map(v4.new_code_cell, (params, cell, last))]
        cells[1].metadata['tags'] = ['parameters']
        (nbs/name).parent.mkdir(exist_ok=True)
        (nbs/f'{name}.ipynb').write_text(json.dumps(v4.new_notebook(cells=cells)))
    params = 'profile = "smoke"\nseed = 42\ndataset = "toy"'
    chapter('imaging/01_reads', True, params, 'open(dataset).read() if profile == "full" else 0')
    chapter('imaging/02_boasts', False, 'profile = "smoke"')
    return nbs


def test_status_0_with_a_relative_dataset(nbs, tmp_path):
    (tmp_path/'mine.csv').write_text('a,b')
    words = ['run', 'imaging/reads', '--nbs', nbs, '--profile', 'full', '-p', 'dataset=mine.csv', '--seed', '7']
    done = subprocess.run([*MEDLEARN, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    results = next((tmp_path/'runs').glob('*/results.json'))
    row = json.loads(results.read_text())['runs'][0]
    assert row['status'] == 'passed'
    assert row['parameters'] == dict(profile='full', seed=7, dataset=str(tmp_path/'mine.csv'))
    shown = ('passed   imaging/reads/full-seed7', '0.9 [0.8, 0.95]', '[paper]', str(results))
    assert '\x1b' not in done.stdout and not [text for text in shown if text not in done.stdout]


def test_status_1_when_a_claim_fails(nbs, tmp_path):
    done = call('run', 'imaging/boasts', '--nbs', nbs, '--out', tmp_path/'out')
    assert done.exit_code == 1 and '0 of 1 claims hold' in done.output
    assert (tmp_path/'out/imaging/boasts/smoke.ipynb').exists()


@pytest.mark.parametrize('words, says', [
    (['imaging/raeds'], 'nearest: imaging/reads'), (['--profile', 'quick'], 'smoke or full'), (['--jobs', '0'], 'jobs'),
    (['--timeout', '-1'], 'more than 0'), (['--timeout', 'nan'], 'more than 0'), (['--seed', 'x'], 'seed'),
    (['-p', 'dataset'], 'KEY=VALUE'), (['-p', 'dateset=x'], 'nearest: dataset'), (['--colour'], 'colour'),
    (['imaging/reads', '-p', 'dataset=no.csv'], 'no.csv'), (['--out', __file__], 'cannot write'),
    (['imaging/reads', '-p', 'dataset=lidc_nodule'], 'lidc_nodules'), (['--resume'], 'nothing to resume'),
    (['--nbs', '/nonexistent'], 'nonexistent')])
def test_status_2_before_anything_runs(nbs, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    done = call('run', *words, *([] if '--nbs' in words else ['--nbs', nbs]))
    assert done.exit_code == 2 and says in done.stderr, done.output
    assert not list(tmp_path.rglob('results.json'))


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='no /proc, the one folder where nobody can write')
def test_status_2_for_a_folder_that_cannot_be_written(nbs):
    assert call('run', '--nbs', nbs, '--out', '/proc/x').exit_code == 2


def test_list(nbs):
    rows = json.loads(call('list', '--json', '--nbs', nbs).stdout)
    assert [r['name'] for r in rows] == ['imaging/reads', 'imaging/boasts'] and Path(rows[0]['path']).exists()
    assert rows[0]['title'] == 'A title' and rows[0]['parameters'] == dict(profile='smoke', seed=42, dataset='toy')
    assert 'A promise.' in call('list', '--nbs', nbs).stdout
    assert call('list').exit_code == 0


def test_data(tmp_path, monkeypatch):
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path))
    assert 'lidc_nodules' in call('data', 'list').stdout and 'LIDC' in call('data', 'card', 'lidc_nodules').stdout
    missing = call('data', 'verify', 'lidc_nodules')
    assert missing.exit_code == 0 and 'missing' in missing.stdout
    for what in ('card', 'fetch', 'verify'):
        unknown = call('data', what, 'lidc_nodule')
        assert unknown.exit_code == 2 and 'lidc_nodules' in unknown.stderr
    from medlearn.kit.fetch import cached_path
    path = cached_path('lidc_nodules')
    path.parent.mkdir(parents=True)
    path.write_bytes(b'not what the card says')
    bad = call('data', 'verify', 'lidc_nodules')
    assert bad.exit_code == 1 and 'bad' in bad.stdout


def test_data_that_cannot_be_had(tmp_path, monkeypatch):
    (tmp_path/'gone.toml').write_text('''name = "gone"
title = "Gone"
task = "none"
modality = "none"
licence = "CC0"
citation = "none"
intended_use = "tests"
known_biases = "none"
simulated = true
[[files]]
file = "gone.npz"
source = "url"
url = "http://127.0.0.1:9/gone.npz"
digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
size = 10
''')
    monkeypatch.setenv('MEDLEARN_CARDS', str(tmp_path))
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path/'cache'))
    done = call('data', 'fetch', 'gone')
    assert done.exit_code == 1 and done.stderr.startswith('medlearn: ') and 'gone' in done.stderr
    assert 'Traceback' not in done.output


def test_doctor(monkeypatch):
    monkeypatch.delenv('MEDLEARN_MIRROR', raising=False)
    done = call('doctor')
    assert done.exit_code == 0 and 'torch' in done.stdout, done.output
    monkeypatch.setenv('MEDLEARN_MIRROR', '/nonexistent')
    done = call('doctor')
    assert done.exit_code == 1 and 'unset MEDLEARN_MIRROR' in done.stdout


def test_doctor_names_the_command_that_mends(monkeypatch):
    gone = [dict(name='torch', spec='>=2.6', have=None, extra='', ok=False),
            dict(name='pydicom', spec='>=3.0', have=None, extra='formats', ok=False)]
    monkeypatch.setattr('medlearn.kit.doctor.requirements', lambda: gone)
    monkeypatch.setattr(cli, 'requirements', lambda: gone)
    done = call('doctor')
    assert done.exit_code == 1 and '-m pip install "torch>=2.6"' in done.stdout and 'pip install "pydicom>=3.0"' in done.stdout


def test_an_extra_of_an_extra_is_looked_for(monkeypatch):
    from importlib import metadata
    real = metadata.version
    def version(name):
        if name in ('distributed', 'pynrrd'): raise metadata.PackageNotFoundError(name)
        return real(name)
    monkeypatch.setattr(metadata, 'version', version)
    rows = [(r['name'], r['extra'], r['ok']) for r in requirements()]
    gone = {('distributed', 'scaling', False), ('distributed', 'cluster', False), ('pynrrd', 'formats', False)}
    assert gone == {r for r in rows if r[0] in ('distributed', 'pynrrd')} and ('dask', 'scaling', True) in rows


def best(command, n=5):
    def once():
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start
    return min(once() for _ in range(n))


def test_help_is_quick(): assert best([*MEDLEARN[:2], MEDLEARN[2], '--help']) < .5


def test_import_is_quick(): assert best([sys.executable, '-c', 'import medlearn']) < .3


def test_help_imports_nothing_heavy():
    code = 'import sys\nfrom medlearn.kit.cli import main\ntry: main()\nfinally: print("MODULES", *sys.modules)'
    out = subprocess.run([sys.executable, '-c', code, '--help'], capture_output=True, text=True, check=True).stdout
    modules = set(out.rpartition('MODULES')[2].split())
    assert 'typer' in modules
    assert not {'torch', 'pandas', 'papermill', 'fastai', 'numpy', 'nbformat', 'pooch', 'rich'} & modules


def test_everything_is_in_the_help():
    for words in ([], ['run'], ['list'], ['data'], ['doctor']): assert call(*words, '--help').exit_code == 0
    assert all(o in call('run', '--help').output for o in '--profile --seed --jobs --timeout --out --resume -p'.split())


def test_sabotage_reports_which_claims_fell(tmp_path):
    "Status 0 where a claim noticed, 1 where none did or no place for answers was named"
    nbs = tmp_path/'nbs/imaging'
    nbs.mkdir(parents=True)
    def chapter(name, cell):
        cells = [v4.new_markdown_cell('# A\n\n> A.'), v4.new_code_cell('profile = "smoke"\nseed = 42', metadata=dict(tags=['parameters'])),
                 v4.new_code_cell('from medlearn.kit.chapter import answers, claim\n' + cell)]
        (nbs/f'{name}.ipynb').write_text(json.dumps(v4.new_notebook(cells=cells)))
    kind = 'source="definition: a test"'
    chapter('01_notices', f'claim("order", sum(a != b for a, b in enumerate(answers(list(range(9))))), equals=0, {kind})')
    chapter('02_sleeps', f'answers([1, 2]); claim("one", 1, equals=1, {kind})')
    chapter('03_silent', f'claim("two", 2, equals=2, {kind})')
    done = call('run', 'imaging/notices', '--sabotage', 'answers', '--nbs', nbs.parent, '--out', tmp_path/'a')
    assert done.exit_code == 0 and 'fell' in done.output and (tmp_path/'a/imaging/notices/smoke-seed42-answers.ipynb').exists()
    done = call('run', '--sabotage', 'answers', '--nbs', nbs.parent, '--out', tmp_path/'b')
    assert done.exit_code == 1 and 'No place where answers enter is named in: imaging/silent' in done.output
    assert call('run', '--nbs', nbs.parent, '--out', tmp_path/'c').exit_code == 0
    assert call('run', '--sabotage', 'labels', '--nbs', nbs.parent).exit_code == 2


def test_measure_and_figures_are_refused_without_a_chapter_or_a_checkout(tmp_path):
    assert call('measure').exit_code == 2 and 'name chapters' in call('measure').output
    assert 'no chapter or part' in call('measure', 'imaging/clasification').output
    done = call('measure', 'imaging/classification', '-p', 'architecture=resnet18')
    assert done.exit_code == 2 and 'nearest: arch' in done.output
    done = call('figures', 'imaging')
    assert done.exit_code == 0 and 'imaging/classification' in done.output


def test_publish_refuses_what_cannot_be_an_account():
    done = call('publish', '--user', 'no_account')
    assert done.exit_code == 2 and 'an account has letters' in done.output


@pytest.mark.parametrize('words, says', [
    (['--jobs', '0'], 'greater than or equal to 1'), (['--device', 'gpu'], 'it is cpu or cuda'), (['--device', 'cuda'], 'shows no NVIDIA GPU'),
    (['--cluster', 'local:2', '--jobs', '2'], '--jobs and --cluster'), (['--cluster', 'local:0'], 'local:0'), (['--cluster', 'nowhere.yaml'], 'nowhere.yaml')])
def test_what_cannot_be_asked_for_is_said_before_anything_runs(nbs, tmp_path, words, says, monkeypatch):
    monkeypatch.setattr('medlearn.kit.machine.gpu_at_hand', lambda env=None: False)
    began = time.monotonic()
    done = call('run', 'imaging/reads', '--nbs', nbs, '--out', tmp_path/'out', *words)
    assert done.exit_code == 2 and says in done.output.replace('\n', ' '), done.output
    assert time.monotonic() - began < 10 and not list((tmp_path).rglob('*.ipynb'))


def test_the_processor_can_be_asked_for(nbs, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    from medlearn.kit.machine import environment
    assert environment(tmp_path, 1, 'cpu')['CUDA_VISIBLE_DEVICES'] == '' and environment(tmp_path, 1)['CUDA_VISIBLE_DEVICES'] == '0'
    assert call('run', 'imaging/reads', '--nbs', nbs, '--out', tmp_path/'out', '--device', 'cpu').exit_code == 0


def test_the_slowest_chapters_are_shown_with_what_they_spent(nbs, tmp_path):
    done = call('run', 'imaging', '--nbs', nbs, '--out', tmp_path/'out')
    lines = done.stdout[done.stdout.index('Slowest'):].splitlines()
    assert all(word in lines[1] for word in 'start imports data training drawing other'.split()) and 'imaging/' in lines[2]
