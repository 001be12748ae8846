"Prewarmed kernels: equal to cold ones bit for bit, forked only where that is safe, and none of them outlives its run"
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from medlearn.kit import kernels as K
from medlearn.kit import machine, runner
from medlearn.kit.machine import cores,environment,gpu_at_hand,threads_of
from medlearn.kit.runner import how_many,longest_first,plan,run
from test_runner import PARAMS, chapter, claim, gone, wait_for

linux = pytest.mark.skipif(sys.platform != 'linux', reason='kernels are forked on Linux only')

TRAIN = '''from medlearn.kit.chapter import begin
import numpy as np, torch
from fastai.vision.all import Learner, DataLoaders, TfmdDL, accuracy, nn
begin(profile, seed)
x = torch.randn(256, 3, 16, 16)
y = (x.mean((1, 2, 3)) > 0).long()
dls = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=32, device='cpu')
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), metrics=accuracy)
learn.fit(2, 1e-2)'''
STATE = '''import sys, hashlib, random
from fastprogress.core import IN_NOTEBOOK
from joblib import Parallel, delayed
weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
workers = sum(len(b[0]) for b in torch.utils.data.DataLoader(x, batch_size=64, num_workers=2))
(hashlib.sha256(weights).hexdigest(), random.random(), np.random.rand(), hash("a"), torch.get_num_threads(), IN_NOTEBOOK, sys.argv[0][-11:],
 sys.path[1:], workers, Parallel(2)(delayed(abs)(-i) for i in range(3)), os.environ.get("MPLBACKEND"), os.getcwd().endswith("work"))'''
DRAW = 'import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot(np.cumsum(x[0, 0, 0]))\nprint(plt.get_backend())'


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "Three chapters prewarmed, and the same cold"
    root = tmp_path_factory.mktemp('both')
    cells = [TRAIN, 'import os\n' + STATE, DRAW, claim(True)]
    for i in range(3): chapter(root/'nbs', f'imaging/0{i}_train{i}', *cells)
    work = plan(folder=root/'nbs')
    warm = run(work, root/'warm', jobs=1)
    cold = run(work[:1], root/'cold', jobs=1, warm=False)
    return root, warm, cold


def outputs(root, row, of):
    cells = json.loads((root/of/row['notebook']).read_text())['cells']
    text = json.dumps([[{k: v for k, v in o.items() if k != 'transient'} for o in c['outputs']] for c in cells if c['cell_type'] == 'code'])
    return re.sub(r'<td>\d\d:\d\d</td>|\d\d:\d\d|"commit": "\w+\+?"|commit \w{12}\+?', '', text) # how long an epoch took; a commit made meanwhile


@linux
def test_a_prewarmed_kernel_is_equal_to_a_cold_one(both):
    root, warm, cold = both
    assert [r['status'] for r in warm + cold] == ['passed']*4, [r['error'] for r in warm + cold]
    assert [r['kernel'] for r in warm + cold] == ['prewarmed']*3 + ['cold']
    texts = [outputs(root, r, 'warm') for r in warm] + [outputs(root, cold[0], 'cold')]
    assert 'image/png' in texts[0] and len(texts[0]) > 5000 and 'inline' in texts[0]
    assert len(set(texts)) == 1, [next((a[i - 200:i + 200], b[i - 200:i + 200]) for i, (p, q) in enumerate(zip(a, b)) if p != q)
                                  for a, b in [(texts[0], texts[-1])]]


@linux
def test_one_kernel_does_not_wait_for_the_nursery(tmp_path):
    for i in range(4): chapter(tmp_path/'nbs', f'imaging/0{i}_c{i}', 'import torch', claim(True))
    rows = run(plan(folder=tmp_path/'nbs'), tmp_path/'out', jobs=2)
    assert sorted(r['kernel'] for r in rows) == ['cold'] + ['prewarmed']*3, rows


@linux
def test_with_other_folders_on_the_path_kernels_start_cold(tmp_path, monkeypatch):
    (tmp_path/'more').mkdir()
    (tmp_path/'more/sitecustomize.py').write_text('import sys\nsys.seen = "ipykernel_launcher" in sys.orig_argv')
    for i in range(2): chapter(tmp_path/'nbs', f'imaging/0{i}_c{i}', 'import sys; assert sys.seen', claim(True))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path/'more'))
    rows = run(plan(folder=tmp_path/'nbs'), tmp_path/'out')
    assert [(r['status'], r['kernel']) for r in rows] == [('passed', 'cold')]*2, rows


@linux
def test_a_prewarmed_kernel_starts_sooner(both):
    _, warm, cold = both
    assert warm[2]['seconds'] < cold[0]['seconds'] - 2, (warm, cold)


class Kernel:
    "A kernel by way of the provisioner"
    def __init__(self, folder, address, env):
        K.describe_kernel(folder/'jupyter', address)
        os.environ['JUPYTER_PATH'] = str(folder/'jupyter')
        config = Config(KernelManager=dict(transport='ipc', connection_file=str(folder/f'k{time.monotonic_ns()}.json')))
        self.manager = KernelManager(kernel_name='python3', config=config)
        self.manager.start_kernel(env=env, cwd=str(folder))
        self.pid, self.forked = K.Provisioner.started[-1]
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(60)
    def run(self, code):
        "What the code printed"
        said = []
        self.client.execute_interactive(code, timeout=60, output_hook=lambda m: said.append(m['content'].get('text', '')))
        return ''.join(said)
    def end(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    "Start a nursery with extra modules, and kernels from it"
    monkeypatch.setenv('JUPYTER_PATH', '')
    (tmp_path/'more').mkdir()
    monkeypatch.setenv('PYTHONPATH', str(tmp_path/'more'))
    folder, open_ = tmp_path/'f', []
    folder.mkdir()
    def start(module='', modules=(), **other):
        (tmp_path/'more/extra.py').write_text(module)
        env = environment(folder, 1)
        nursery = K.nursery_for([*modules, 'extra'], env, folder)
        address = nursery.__enter__()
        open_.append(lambda: nursery.__exit__(None, None, None))
        def make(**more):
            k = Kernel(folder, address, env | more)
            open_.append(k.end)
            return k
        return make
    yield start
    for end in reversed(open_): end()


def nurseries(folder):
    "Nurseries that work in this folder"
    def here(p):
        try: return 'kernels import nursery' in ' '.join(p.cmdline()) and Path(folder) in Path(p.cwd()).parents
        except psutil.Error: return False
    return [p for p in psutil.process_iter() if here(p)]
def children(): return {c.pid for c in psutil.Process().children(recursive=True)}


@linux
def test_kernels_are_forked_from_what_was_imported_once(kernels):
    make = kernels('import os\nwhere = os.getpid()')
    a, b = make(), make(MEDLEARN_JOB='/x', IPYTHONDIR='/tmp/x', PYDEVD_USE_FRAME_EVAL='NO') # older ipykernel sets the last
    assert a.forked and b.forked and a.pid != b.pid
    told = [k.run('import extra, os; print(extra.where, os.getpid(), os.getsid(0), os.environ.get("MEDLEARN_JOB"))').split() for k in (a, b)]
    assert told[0][0] == told[1][0] != told[0][1]
    assert [t[1:] for t in told] == [[str(a.pid), str(a.pid), 'None'], [str(b.pid), str(b.pid), '/x']]


@linux
@pytest.mark.parametrize('module, env', [('', dict(OMP_NUM_THREADS='2')), ('', dict(PYTHONHASHSEED='7')), ('', dict(CUBLAS_WORKSPACE_CONFIG=':16:8'))])
def test_anotherenvironment_starts_cold(kernels, module, env):
    k = kernels(module)(**env)
    name, value = next(iter(env.items()))
    assert not k.forked and k.run(f'import os; print(os.environ[{name!r}])').strip() == value


@linux
def test_a_nursery_that_has_computed_forks_nothing(kernels):
    k = kernels('import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()')()
    assert not k.forked and k.run('print(6*7)').strip() == '42'


@linux
def test_where_cuda_is_in_use_nothing_is_forked(kernels):
    stub = 'import sys, types\nsys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: True))'
    assert not kernels(stub)().forked


@linux
def test_no_nursery_where_a_gpu_is_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(K, 'gpu_at_hand', lambda env=None: True)
    with K.nursery_for(['json'], dict(os.environ), tmp_path) as address: assert address == ''


@linux
def test_a_hidden_gpu_is_not_at_hand(monkeypatch):
    monkeypatch.setattr(K.Path, 'glob', lambda self, pattern: iter(['/dev/nvidia0']))
    assert gpu_at_hand({}) and not gpu_at_hand(dict(CUDA_VISIBLE_DEVICES=''))


@linux
def test_kernels_die_with_their_nursery(kernels):
    before = children()
    k = kernels()()
    nursery = psutil.Process(k.pid).parent()
    assert k.forked and nursery.pid in children() - before
    nursery.kill()
    wait_for(lambda: gone([k.pid]))


LEAVES = '''import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
if not (fork := os.fork()):
    os.setsid()
    time.sleep(600)
    os._exit(0)
open(pids, "w").write(f"{os.getpid()} {child.pid} {fork}")'''


@linux
@pytest.mark.parametrize('end', ['', 'os.kill(os.getpid(), 9)', 'os.kill(os.getppid(), 9); time.sleep(60)'], ids=['ends', 'killed', 'nursery killed'])
def test_no_process_outlives_its_chapter(tmp_path, end, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    for i in (1, 2): chapter(tmp_path/'nbs', f'imaging/0{i}_leaves{i}', LEAVES, end or '1', params=PARAMS + f'pids = {str(tmp_path/f"pids{i}")!r}')
    chapter(tmp_path/'nbs', 'imaging/03_after', 'import time', claim(True))
    rows = run(plan(folder=tmp_path/'nbs'), tmp_path/'out', jobs=1, warm=True)
    assert [r['status'] for r in rows] == (['error', 'error', 'passed'] if end else ['passed']*3), [r['error'] for r in rows]
    assert rows[0]['kernel'] == 'prewarmed' and rows[2]['kernel'] == ('cold' if 'getppid' in end else 'prewarmed')
    for i in (1, 2): assert gone(map(int, (tmp_path/f'pids{i}').read_text().split()))
    assert not nurseries(tmp_path)


@linux
def test_nothing_outlives_a_killed_run(tmp_path):
    for i in (1, 2): chapter(tmp_path/'nbs', f'imaging/0{i}_leaves{i}', LEAVES, 'time.sleep(600)', params=PARAMS + f'pids = {str(tmp_path/f"pids{i}")!r}')
    (tmp_path/'tmp').mkdir()
    code = f'from medlearn.kit.runner import plan, run; run(plan(folder={str(tmp_path/"nbs")!r}), {str(tmp_path/"out")!r}, jobs=2)'
    proc = subprocess.Popen([sys.executable, '-c', code], env=os.environ | dict(TMPDIR=str(tmp_path/'tmp')))
    pids = [tmp_path/'pids1', tmp_path/'pids2']
    wait_for(lambda: all(p.exists() and p.read_text().count(' ') == 2 for p in pids), 60)
    kernels = [int(p.read_text().split()[0]) for p in pids]
    assert any(psutil.Process(k).parent() in nurseries(tmp_path) for k in kernels)
    proc.send_signal(signal.SIGKILL)
    proc.wait()
    for p in pids: wait_for(lambda: gone(map(int, p.read_text().split())))
    wait_for(lambda: not list((tmp_path/'tmp').glob('medlearn-*')) and not nurseries(tmp_path))


def test_what_chapters_import():
    from medlearn.kit.catalog import chapters
    found = K.to_warm(chapters().values())
    assert {'torch', 'fastai.learner', 'matplotlib.pyplot', 'sklearn.linear_model'} <= set(found)
    assert not [n for n in found if n.startswith(('medlearn', 'papermill'))]


def test_jobs_fit_into_cores_and_memory(tmp_path, monkeypatch):
    monkeypatch.delenv('MEDLEARN_JOB', raising=False)
    for i in range(4): chapter(tmp_path, f'imaging/0{i}_c{i}', '1')
    work = plan(folder=tmp_path)
    needs = {f'imaging/c{i}/smoke': (10*i, 1000*(i + 1)) for i in range(4)}
    assert [j.chapter[-1] for j in longest_first(work, needs)] == ['3', '2', '1', '0']
    for room in (machine, runner): monkeypatch.setattr(room, 'cores', lambda: 3)
    assert [how_many(work, needs, mb) for mb in (100, 5000, 8749, 8751, 11251, 1e6)] == [1, 1, 1, 2, 3, 3]
    assert how_many(work[:2], needs, 1e6) == 2
    assert threads_of(work, 2) == threads_of(work, 1) == 1
    full = plan(folder=tmp_path, profile='full')
    assert [threads_of(full, n) for n in (1, 2, 3, 5)] == [3, 1, 1, 1]
    monkeypatch.setenv('MEDLEARN_JOB', '/x')
    assert how_many(work, needs, 1e6) == 1


def test_cores_are_those_at_hand(): assert 1 <= cores() <= os.cpu_count()


@pytest.mark.parametrize('dataset,said', [('mine.csv', 'Left out: this cell concerns nafld alone.'), ('nafld', '42')])
def test_an_open_notebook_leaves_out_what_concerns_other_data(monkeypatch, dataset, said):
    "JupyterLab sends the metadata of a cell with its code, and names the notebook in the environment of the kernel"
    from jupyter_client.manager import start_new_kernel
    monkeypatch.setenv('JPY_SESSION_NAME', '/home/me/work/sequences/02_records.ipynb')
    manager,client = start_new_kernel()
    def run(code, tags=()):
        heard = []
        msg = client.session.msg('execute_request', dict(code=code, silent=False, store_history=True, user_expressions={}, allow_stdin=False, stop_on_error=True), metadata=dict(tags=list(tags)))
        client.shell_channel.send(msg)
        while True:
            got = client.get_iopub_msg(timeout=60)
            if got['parent_header'].get('msg_id') != msg['header']['msg_id']: continue
            if got['msg_type'] == 'status' and got['content']['execution_state'] == 'idle': return heard
            c = got['content']
            heard += [c['text'].strip()] if 'text' in c else [c['data']['text/plain']] if 'data' in c else []
    try:
        run(f'import medlearn.kit.machine; dataset = {dataset!r}')
        assert run('6*7', ['default-data']) == [said] and run('6*7', ['other']) == ['42'] and run('6*7') == ['42']
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
