"JupyterLab: a copy that is the student's, a source that keeps no outputs, and how it begins"
import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest
from nbclient import NotebookClient
from typer.testing import CliRunner

from medlearn.kit import lab
from medlearn.kit.cli import app
from medlearn.kit.catalog import WrongUsage

root = Path(__file__).parent.parent


def write(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(v4.new_notebook(cells=[v4.new_markdown_cell(t) for t in texts])))


def text(path): return '\n'.join(c.source for c in nbformat.read(path, 4).cells)


@pytest.fixture
def course(tmp_path):
    write(tmp_path/'nbs/index.ipynb', '# Front')
    write(tmp_path/'nbs/imaging/01_first.ipynb', '# First')
    return tmp_path/'nbs'


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    "A copy of the whole course"
    folder = tmp_path_factory.mktemp('mine')
    lab.working_copy(folder)
    return folder


def test_a_copy_is_made_once(course, tmp_path):
    mine = tmp_path/'a/mine'
    assert lab.working_copy(mine, course) == (['index.ipynb', 'imaging/01_first.ipynb'], [])
    assert lab.working_copy(mine, course) == ([], [])
    own = mine/'imaging/01_first.ipynb'
    nb = nbformat.read(own, 4)
    nb.cells.append(v4.new_code_cell('6*7', outputs=[v4.new_output('stream', text='42')])) # a student's run and exercise
    nbformat.write(nb, own)
    before = own.read_bytes()
    write(course/'data/02_new.ipynb', '# New')
    assert lab.working_copy(mine, course) == (['data/02_new.ipynb'], [])
    assert own.read_bytes() == before


def test_older_copies_are_named_and_stay(course, tmp_path):
    mine = tmp_path/'mine'
    lab.working_copy(mine, course)
    own = mine/'imaging/01_first.ipynb'
    before = own.read_bytes()
    write(course/'imaging/01_first.ipynb', '# First, again')
    assert lab.working_copy(mine, course) == ([], ['imaging/01_first.ipynb'])
    assert own.read_bytes() == before
    own.rename(own.with_name('01_first of mine.ipynb'))
    assert lab.working_copy(mine, course) == (['imaging/01_first.ipynb'], [])
    assert text(own) == '# First, again' and own.with_name('01_first of mine.ipynb').read_bytes() == before


def test_outputs_and_metadata_of_the_course_do_not_make_a_copy_old(course, tmp_path):
    lab.working_copy(tmp_path/'mine', course)
    path = course/'imaging/01_first.ipynb'
    nb = nbformat.read(path, 4)
    nb.metadata['accelerator'], nb.cells[0]['id'] = 'GPU', 'other'
    nbformat.write(nb, path)
    assert lab.working_copy(tmp_path/'mine', course) == ([], [])


def test_what_left_the_course_stays(course, tmp_path):
    lab.working_copy(tmp_path/'mine', course)
    (course/'imaging/01_first.ipynb').rename(course/'imaging/03_renamed.ipynb')
    assert lab.working_copy(tmp_path/'mine', course) == (['imaging/03_renamed.ipynb'], [])
    assert (tmp_path/'mine/imaging/01_first.ipynb').exists()


@pytest.mark.parametrize('content', ['', '{', '[]', '{"metadata": 3}', '{"cells": []}', None])
def test_a_file_that_is_no_notebook_is_left_alone(course, tmp_path, content):
    own = tmp_path/'mine/imaging/01_first.ipynb'
    own.parent.mkdir(parents=True)
    own.symlink_to('nowhere') if content is None else own.write_text(content)
    assert lab.working_copy(tmp_path/'mine', course) == (['index.ipynb'], [])
    assert os.readlink(own) == 'nowhere' if content is None else own.read_text() == content


@pytest.mark.parametrize('where', ['', 'imaging', 'new/folder', '../linked'])
def test_the_course_is_no_place_for_copies(course, where):
    (course.parent/'linked').symlink_to(course)
    with pytest.raises(WrongUsage, match='holds the course itself'): lab.working_copy(course/where, course)
    assert text(course/'imaging/01_first.ipynb') == '# First' and not (course/'new').exists()


def test_the_copy_is_the_course_with_its_folded_cells(mine):
    source = {p.relative_to(root/'nbs').as_posix(): p for p in [root/'nbs/index.ipynb', *(root/'nbs').glob('*/[0-9][0-9]_*.ipynb')]}
    assert {p.relative_to(mine).as_posix() for p in mine.rglob('*.ipynb')} == source.keys() and len(source) > 40
    folded = 0
    for name, path in source.items():
        a, b = nbformat.read(path, 4), nbformat.read(mine/name, 4)
        nbformat.validate(b)
        code = lambda nb: [(c.source, c.metadata) for c in nb.cells if c.cell_type == 'code']
        assert code(a) == code(b) and len(a.cells) == len(b.cells), name
        folded += sum(m.get('jupyter', {}).get('source_hidden', False) for _, m in code(b))
    assert folded > 20


def test_links_and_pictures_stay_within_the_copy(mine):
    pictures, links = 0, 0
    for path in mine.rglob('*.ipynb'):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != 'markdown': continue
            for aim in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'(?s)```.*?```|`[^`\n]*`', '', cell.source)):
                if aim.startswith('attachment:'):
                    name = aim.removeprefix('attachment:')
                    data = base64.b64decode(cell.attachments[name]['image/png'])
                    assert data == (root/'data/figures'/name).read_bytes()
                    pictures += 1
                elif not re.match(r'[a-z]+:|#', aim):
                    to = (path.parent/aim.partition('#')[0]).resolve()
                    assert to.is_relative_to(mine.resolve()) and to.exists(), f'{path}: {aim}'
                    links += 1
    assert pictures and links > 10
    assert 'under the Apache License 2.0.' in text(mine/'index.ipynb')


def test_a_copied_chapter_runs_as_the_course_does(mine):
    "In a plain kernel, from its own folder: imports, the commit of `begin`, a claim, a record; and nothing on the error stream"
    nb = nbformat.read(mine/'data/10_masks.ipynb', 4)
    nb.cells.append(v4.new_code_cell('from medlearn.kit.figures import reached\nreached("networks", chapter="imaging/classification")'))
    env = {k: v for k, v in os.environ.items() if k not in ('CI', 'PYTHONPATH')} | dict(PYTHONPATH=str(root))
    NotebookClient(nb, timeout=120, resources=dict(metadata=dict(path=str(mine/'data')))).execute(env=env)
    outputs = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    kinds = [k for o in outputs for k in o.get('data', {})]
    run = next(o.data['application/vnd.medlearn.run+json'] for o in outputs if 'application/vnd.medlearn.run+json' in o.get('data', {}))
    head = subprocess.run(['git', '-C', str(root), 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip()
    if head: assert head.startswith(run['commit'].rstrip('+'))
    assert 'application/vnd.medlearn.claim+json' in kinds
    assert 'full profile' in outputs[-1].data['text/plain']
    assert not [o.text for o in outputs if o.get('name') == 'stderr']


def test_from_a_wheel(tmp_path):
    "Where the package holds notebooks and records itself"
    site = tmp_path/'site/medlearn'
    shutil.copytree(root/'medlearn', site, ignore=shutil.ignore_patterns('__pycache__'))
    for name, to in dict(nbs='_nbs', data='_data').items():
        shutil.copytree(root/name, site/to, ignore=shutil.ignore_patterns('cache', '.jupyter', '.ipynb_checkpoints'))
    code = 'from medlearn.kit import lab; new, old = lab.working_copy("mine"); print(lab.__file__, len(new), old)'
    code += '\ntry: lab.open_source()\nexcept Exception as e: print(e)'
    env = os.environ | dict(PYTHONPATH=str(site.parent))
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    n = len(list((root/'nbs').glob('*/[0-9][0-9]_*.ipynb'))) + 1
    assert done.stdout.splitlines()[0] == f'{site}/kit/lab.py {n} []' and 'checkout' in done.stdout, done.stdout + done.stderr
    assert any(c.get('attachments') for c in nbformat.read(tmp_path/'mine/index.ipynb', 4).cells)


@pytest.mark.parametrize('name', ['imaging/01_classification', 'kit/14_reuse', 'index'])
def test_what_is_saved_in_the_source_is_what_git_holds(tmp_path, name):
    "An executed chapter, as JupyterLab sends it, through Jupyter's contents manager with the hook by its name"
    from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
    from traitlets.config import Config
    source = root/f'nbs/{name}.ipynb'
    nb = nbformat.read(source, 4)
    for i, c in enumerate(c for c in nb.cells if c.cell_type == 'code'):
        c.execution_count, c.metadata['trusted'], c.metadata['execution'] = i, True, {'iopub.status.busy': 'now'}
        c.outputs = [v4.new_output('stream', text='42'), v4.new_output('display_data', {'text/plain': '<A at 0x12>'})]
    nb.metadata['language_info'] = dict(name='python', version='3.11')
    nb.metadata.setdefault('kernelspec', {})['display_name'] = 'Python 3 (ipykernel)'
    config = Config(ContentsManager=dict(pre_save_hook='medlearn.kit.lab.strip_on_save'))
    manager = AsyncLargeFileManager(root_dir=str(tmp_path), config=config)
    asyncio.run(manager.save(dict(type='notebook', format='json', content=nb), 'a.ipynb'))
    assert (tmp_path/'a.ipynb').read_bytes() == source.read_bytes()
    asyncio.run(manager.save(dict(type='file', format='text', content='42'), 'a.txt'))
    assert (tmp_path/'a.txt').read_text() == '42'


def test_how_it_was_left_stays(tmp_path):
    own = lab.lab_settings(tmp_path)
    space = next((own/'workspaces').iterdir())
    space.write_text('{"mine": 1}')
    lab.lab_settings(tmp_path)
    assert space.read_text() == '{"mine": 1}' and len(list((own/'workspaces').iterdir())) == 1


@pytest.mark.parametrize('words, left', [((), 'work'), (('--source',), 'nbs')])
def test_the_command_opens(tmp_path, words, left):
    "JupyterLab on this machine alone, behind a token, with our defaults, and the student's copy or the source in it"
    env = os.environ | dict(JUPYTER_RUNTIME_DIR=str(tmp_path/'runtime'), JUPYTER_CONFIG_DIR=str(tmp_path/'config'), PYTHONPATH=str(root))
    command = [sys.executable, '-c', 'from medlearn.kit.cli import main; main()', 'lab', *words, '--no-browser', '--allow-root', '--port', '0']
    if words: # the source: that of a course of its own, so that nothing is written here
        shutil.copytree(root/'medlearn', tmp_path/'medlearn', ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copytree(root/'data/figures', tmp_path/'data/figures')
        write(tmp_path/'nbs/imaging/01_first.ipynb', '# First')
        shutil.copy(root/'settings.ini', tmp_path)
        env['PYTHONPATH'] = str(tmp_path)
    with open(tmp_path/'log', 'w') as log: proc = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        end, found = time.time() + 60, None
        while not found and time.time() < end and proc.poll() is None:
            time.sleep(.2)
            found = re.search(r'(http://\S+)/lab\?token=(\w+)', (tmp_path/'log').read_text())
        assert found, (tmp_path/'log').read_text()
        end += 60
        server = json.loads(next((tmp_path/'runtime').glob('jpserver-*.json')).read_text())
        assert server['hostname'] in ('localhost', '127.0.0.1') and len(server['token']) > 20
        assert server['root_dir'] == str(tmp_path/left)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({})) # no proxy stands between this machine and itself
        def ask(path, token=server['token'], method='GET', data=None):
            data = data and json.dumps(data).encode()
            asked = urllib.request.Request(server['url'] + path, data, dict(Authorization=f'token {token}'), method=method)
            while True: # its address is written down a moment before it answers
                try: return json.load(direct.open(asked, timeout=20))
                except urllib.error.HTTPError: raise
                except urllib.error.URLError:
                    if time.time() > end or proc.poll() is not None: raise
                    time.sleep(.2)
        with pytest.raises(urllib.error.HTTPError, match='403'): ask('api/contents', 'wrong')
        news = ask('lab/api/settings/@jupyterlab/apputils-extension:notification')['schema']['properties']
        assert news['fetchNews']['default'] == 'false' and news['checkForUpdates']['default'] is False
        layout = ask('lab/api/workspaces/default')['data']['layout-restorer:data']
        assert layout['left']['current'] == '@jupyterlab/toc:plugin'
        assert '.jupyter' not in [m['name'] for m in ask('api/contents')['content']]
        nb = v4.new_notebook(cells=[v4.new_code_cell('6*7', outputs=[v4.new_output('stream', text='42')])])
        ask('api/contents/imaging/mine.ipynb', method='PUT', data=dict(type='notebook', format='json', content=nb))
        kept = nbformat.read(tmp_path/left/'imaging/mine.ipynb', 4).cells[0].outputs
        assert bool(kept) == (not words)
    finally:
        proc.terminate()
        proc.wait(20)


def test_the_command_says_what_is_missing_or_old(tmp_path, monkeypatch):
    import importlib.util
    opened = []
    monkeypatch.setattr(lab, 'open_lab', lambda folder, words=(): opened.append((folder, list(words))))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ['lab', '--folder', 'mine', '--port', '8889', '--no-browser'])
    assert done.exit_code == 0 and opened == [(Path('mine'), ['--port', '8889', '--no-browser'])]
    assert f'Copied to {tmp_path/"mine"}' in done.output and 'changed' not in done.output
    own = tmp_path/'mine/imaging/01_classification.ipynb'
    nb = json.loads(own.read_text())
    nb['metadata']['medlearn']['copied'] = 'older'
    own.write_text(json.dumps(nb))
    done = CliRunner().invoke(app, ['lab', '--folder', 'mine'])
    assert 'since you got imaging/01_classification.ipynb. Yours stay' in done.output and 'rename' in done.output
    (tmp_path/'file').write_text('')
    assert CliRunner().invoke(app, ['lab', '--folder', 'file']).exit_code == 2
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'jupyterlab' else there(name, *a))
    done = CliRunner().invoke(app, ['lab', '--folder', 'other'])
    assert done.exit_code == 2 and re.search(r'missing: \S+ -m pip install "jupyterlab>=[\d.]+"$', done.stderr.strip())
    assert not (tmp_path/'other').exists() and len(opened) == 2


def test_make_calls_the_command():
    env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE') and k != 'MFLAGS'} # not as a part of `make test`
    told = {t: subprocess.run(['make', '-n', '-o', '.venv/.ready', t], cwd=root, env=env, capture_output=True, text=True).stdout for t in ('lab', 'lab-source')}
    assert told == {'lab': '.venv/bin/medlearn lab\n', 'lab-source': '.venv/bin/medlearn lab --source\n'}
    ignored = subprocess.run(['git', '-C', str(root), 'check-ignore', 'work/imaging/01_a.ipynb', 'nbs/.jupyter/x'], capture_output=True, text=True)
    if (root/'.git').exists(): assert len(ignored.stdout.splitlines()) == 2


def test_kernels_of_the_lab_keep_quiet_about_fastai(tmp_path, monkeypatch):
    "What JupyterLab hands to its kernels: TorchScript's end is not the student's to mend"
    from jupyterlab.labapp import LabApp
    started = []
    monkeypatch.setattr(LabApp, 'launch_instance', lambda argv: started.append((argv, dict(os.environ))))
    monkeypatch.delenv('PYTHONWARNINGS', raising=False)
    monkeypatch.setenv('JUPYTER_CONFIG_PATH', '/theirs')
    lab.open_lab(tmp_path, ['--port', '8889'])
    argv, env = started[0]
    monkeypatch.delenv('PYTHONWARNINGS')
    assert argv[-2:] == ['--port', '8889'] and f'--ServerApp.root_dir={tmp_path}' in argv
    assert env['JUPYTER_CONFIG_PATH'].split(os.pathsep) == [str(tmp_path/'.jupyter'), '/theirs']
    done = subprocess.run([sys.executable, '-c', 'import fastai.layers'], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def test_kernels_of_a_run_keep_quiet_about_the_debugger(tmp_path, monkeypatch):
    "Older ipykernel, Colab's among them, imports it at the start, and it complains of Python's frozen modules"
    from medlearn.kit.kernels import describe_kernel
    describe_kernel(tmp_path)
    monkeypatch.delenv('PYDEVD_DISABLE_FILE_VALIDATION', raising=False)
    spec = json.loads((tmp_path/'kernels/python3/kernel.json').read_text())
    command = [spec['argv'][0], '-c', 'import debugpy._vendored.force_pydevd, pydevd_file_utils']
    said = [subprocess.run(command, env=os.environ | env, capture_output=True, text=True).stderr for env in ({}, spec['env'])]
    assert 'frozen' in said[0] and not said[1]
