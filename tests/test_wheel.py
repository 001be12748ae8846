"The wheel, installed in a clean environment, finds its cards and notebooks without the checkout"
import os, shutil, subprocess, sys, sysconfig
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
ask = '''
import json, medlearn
from pathlib import Path
from medlearn.kit.cards import cards
here = Path(medlearn.__file__).parent
print(json.dumps(dict(package=str(here), cards={n: repr(c) for n, c in cards().items()},
                      files=sorted(p.name for p in (here/'_cards').iterdir()),
                      chapters=sorted(p.relative_to(here/'_nbs').as_posix() for p in (here/'_nbs').rglob('[0-9][0-9]_*.ipynb')))))
'''


def run(*cmd, **kw):
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    "Python of an environment with the wheel in it; the dependencies come from this one, its editable install does not"
    tmp = tmp_path_factory.mktemp('wheel')
    leave = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'cache')
    for name in ('medlearn', 'nbs', 'data'): shutil.copytree(root/name, tmp/'src'/name, ignore=leave)
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(root/name, tmp/'src')
    env = {k: v for k, v in os.environ.items() if not k.startswith('MEDLEARN_')}
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-index', '--no-build-isolation', '-w', tmp, tmp/'src', env=env)
    run(sys.executable, '-m', 'venv', '--without-pip', tmp/'env')
    python = next(p for p in (tmp/'env'/'bin'/'python', tmp/'env'/'Scripts'/'python.exe') if p.exists())
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', next(tmp.glob('*.whl')), env=env)
    site = next((tmp/'env').rglob('site-packages'))
    (site/'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return python, env, tmp


@pytest.fixture(scope='module')
def told(clean):
    import json
    python, env, tmp = clean
    return json.loads(run(python, '-I', '-c', ask, cwd=tmp, env=env)), tmp


def test_it_is_the_wheel_and_not_the_checkout(told):
    found, tmp = told
    assert Path(found['package']).is_relative_to(tmp/'env')


def test_all_cards_are_there(told):
    found, _ = told
    names = sorted(p.name for p in (root/'data'/'cards').glob('*.toml'))
    assert [n for n in found['files'] if n.endswith('.toml')] == names and sorted(f'{n}.toml' for n in found['cards']) == names
    assert 'Label 0 is malignant' in found['cards']['breastmnist']


def test_all_chapters_are_there(told):
    found, _ = told
    chapters = sorted(p.relative_to(root/'nbs').as_posix() for p in (root/'nbs').rglob('[0-9][0-9]_*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    assert found['chapters'] == chapters and 'kit/01_cards.ipynb' in chapters


def test_every_module_of_the_checkout_is_packed(told):
    found, _ = told
    modules = {p.relative_to(root/'medlearn').as_posix() for p in (root/'medlearn').rglob('*.py')}
    assert modules <= {p.relative_to(found['package']).as_posix() for p in Path(found['package']).rglob('*.py')}


def test_wheel_holds_no_strangers(clean):
    "Nothing but the package, its cards, its notebooks and its metadata"
    import zipfile
    names = zipfile.ZipFile(next(clean[2].glob('*.whl'))).namelist()
    assert {n.split('/')[0].split('-')[0] for n in names} == {'medlearn'} and not [n for n in names if '__pycache__' in n or '/cache/' in n]


def test_records_travel_with_the_wheel(clean):
    python, env, tmp = clean
    show = 'from medlearn.kit.figures import reached, published; print(reached("networks", chapter="imaging/classification")); print(published("medmnist", "breastmnist"))'
    told = run(python, '-I', '-c', show, cwd=tmp, env=env)
    here = subprocess.run([sys.executable, '-c', show], capture_output=True, text=True, check=True).stdout
    assert 'area alone' in told and 'full profile' in told and 'AutoKeras' in told and ('other code' in told) == ('other code' in here)
