"The generated library beside newer fastai and fastcore than the lock and Colab have (tests/test_colab.py has Colab's)"
import json, os, re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
PINS = 'fastai==2.8.12 fastcore==2.2.39 fasttransform==0.0.5'.split()
TRAIN = '''
import importlib, json
from pathlib import Path
import numpy as np, fastai, fastcore, fasttransform
import medlearn
here = Path(medlearn.__file__).parent
names = ['.'.join(('medlearn', *p.relative_to(here).with_suffix('').parts)) for p in here.rglob('[a-z]*.py')]
missing = {}
for name in names:
    try: importlib.import_module(name)
    except ModuleNotFoundError as e: missing[name] = e.name
from medlearn.data.images import ImageSet
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import fit,predict
from medlearn.imaging.classification import classic_cnn
rng = np.random.default_rng(0)
labels = np.arange(60) % 2
images = (rng.integers(0, 80, (60, 16, 16)) + 100*labels[:, None, None]).astype(np.uint8)
data = ImageSet(images, labels, np.repeat(['train', 'valid', 'test'], 20), ['dark', 'bright'], 'tiny')
learn = fit(data, tensor_loaders(data, bs=10), classic_cnn(1, 2, widths=(4, 8)), epochs=1)
p = predict(learn, data.part('test').images)
losses = [float(v) for v in learn.recorder.values[-1]]
print(json.dumps(dict(versions=[m.__version__ for m in (fastai, fastcore)], names=names, missing=missing,
                      files=[m.__file__ for m in (fastai, fastcore, fasttransform)],
                      shape=p.shape, sums=p.sum(1).tolist(), losses=losses)))
'''


@pytest.fixture(scope='module')
def beside(tmp_path_factory):
    "A folder with other versions of fastai and its small companions; torch and the rest stay as they are"
    folder = tmp_path_factory.mktemp('newer')
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-deps',
           '--only-binary=:all:', '--retries', '1', '--timeout', '20', '--target', str(folder), *PINS]
    done = subprocess.run(pip, capture_output=True, text=True)
    offline = re.search('connection|resolve host|name resolution|timed out|proxy', done.stderr, re.I)
    if done.returncode and offline: pytest.skip(f'the package registry cannot be reached: {done.stderr[-200:]}')
    assert done.returncode == 0, done.stderr
    return folder, dict(p.split('==') for p in PINS)


def test_library_trains_beside_it(beside, tmp_path):
    folder, pins = beside
    env = {k: v for k, v in os.environ.items() if not k.startswith('MEDLEARN_')}
    env |= dict(PYTHONPATH=f'{folder}{os.pathsep}{root}', OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', TRAIN], capture_output=True, text=True, env=env,
                          cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told['versions'] == [pins['fastai'], pins['fastcore']]
    assert all(Path(f).is_relative_to(folder) for f in told['files'])
    assert told['shape'] == [20, 2] and all(abs(s - 1) < 1e-5 for s in told['sums'])
    assert told['losses'] and all(0 < v < 10 for v in told['losses'])
    assert 'medlearn.imaging.classification' in told['names'] and not told['missing'], told['missing']
