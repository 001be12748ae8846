"Processes that agree, a sweep that survives, and costs that are counted right"
import os, pickle, signal, subprocess, sys, time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import numpy as np, psutil, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

pytest.importorskip('accelerate')
pytest.importorskip('distributed')
from medlearn.data.images import ImageSet
from medlearn.foundations import scaling as S
from medlearn.foundations.loading import tensor_loaders


def discs(n=90, side=16, seed=0):
    "Small and large discs"
    r = np.random.default_rng(seed)
    labels = r.integers(0, 2, n)
    radius = 2 + 3*labels + r.random(n)
    at = np.hypot(*np.meshgrid(*[np.arange(side) - side/2]*2))
    images = (at[None] < radius[:, None, None]).astype(np.uint8)*np.uint8(255)
    return ImageSet(images, labels, np.where(np.arange(n)%3 == 2, 'valid', 'train'), ['small', 'large'], 'discs', simulated=True)


# One training, several processes

def several(data, kinds): return {k: S.train_curve(data, **kw) for k, kw in kinds.items()}


def test_two_processes_train_as_one():
    data, kinds = discs(), dict(even=dict(bs=16), batch=dict(bs=16, norm='batch'), lr=dict(bs=16, lr=6e-3))
    one = S.one_thread(several, data, kinds)
    two = S.processes(lambda *args: (os.environ['RANK'], several(*args)), 2, data, kinds)
    assert [rank for rank,_ in two] == ['0', '1']
    two = [got for _,got in two]
    apart = lambda k, other='even': np.abs(two[0][k]['loss'] - one[other]['loss']).max()
    assert len(one['even']['loss']) == 2*(60//16), 'the incomplete batch is left out'
    assert apart('even') < 1e-5 and apart('batch', 'batch') > 1e-4 and apart('lr') > 1e-3
    assert abs(two[0]['even']['auroc'] - one['even']['auroc']) < 1e-6
    for k in kinds:
        for what in ('loss', 'weights'): assert np.array_equal(two[0][k][what], two[1][k][what])


class NoExchange(S.SharedBatches):
    "What each of two processes gets, without the other"
    def _broadcast(self, t, rank): return t


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 4), each=st.integers(1, 5), images=st.integers(20, 45))
def test_shares_of_a_step_are_the_batch_of_one_process(n, each, images):
    dls = tensor_loaders(discs(2*images), each, device='cpu')
    dl = dls.train
    dl.drop_last = True
    order = list(range(dl.n))
    dl.get_idxs = lambda: order
    shares = [NoExchange(dl, rank=r, world_size=n) for r in range(n)]
    got = [s.get_idxs() for s in shares]
    assert {len(g) for g in got} == {len(shares[0])*each} and len(shares[0]) == dl.n//(n*each)
    for k in range(len(shares[0])):
        step = sorted(sum((g[k*each:(k+1)*each] for g in got), []))
        assert step == order[k*n*each:(k+1)*n*each]


@settings(deadline=None)
@given(bs=st.integers(0, 1000), n=st.integers(1, 16))
def test_a_batch_divides_or_the_error_says_which_does(bs, n):
    if bs and bs % n == 0: assert S.share(bs, n)*n == bs
    else:
        with pytest.raises(ValueError, match='does not divide') as e: S.share(bs, n)
        assert all(int(w) % n == 0 and int(w) for w in str(e.value).split('take ')[1].split(' or '))


def one_fails():
    if os.environ['RANK'] == '1': raise ValueError('the second one stumbles')
    time.sleep(600)


def one_is_killed():
    if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def both_wait(): time.sleep(600)


def alive():
    "Copies of the fork server, or processes that were spawned, without those that are only entries in the table"
    found = set()
    for p in psutil.Process().children(recursive=True):
        try: said = ' '.join(p.cmdline()) if p.status() != psutil.STATUS_ZOMBIE else ''
        except (psutil.NoSuchProcess, psutil.ZombieProcess): continue
        if 'spawn_main' in said or 'forkserver' in said and p.pid != forkserver._forkserver._forkserver_pid: found.add(p)
    return found


@pytest.mark.parametrize('fn,limit,said', [(one_fails, 300, 'the second one stumbles'), (one_is_killed, 300, 'SIGKILL'),
                                           (both_wait, 2, 'had not finished after 2 s')], ids=lambda v: getattr(v, '__name__', ''))
def test_no_process_stays_behind(fn, limit, said):
    before, start = alive(), time.monotonic()
    with pytest.raises(Exception, match=said): S.processes(fn, 2, timeout=limit)
    assert not alive() - before and time.monotonic() - start < 250


def mark_and_wait(folder):
    (Path(folder)/str(os.getpid())).touch()
    time.sleep(600)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    work = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_scaling as t; t.S.processes(t.mark_and_wait, 2, {str(tmp_path)!r})'
    parent, end = subprocess.Popen([sys.executable, '-c', work]), time.monotonic() + 120
    def wait(until):
        while not until() and time.monotonic() < end: time.sleep(.2)
        return until()
    assert wait(lambda: len(list(tmp_path.iterdir())) == 2)
    started = [int(f.name) for f in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    assert wait(lambda: not any(map(psutil.pid_exists, started)))


# The sweep

def die():
    "Dask's nanny restarts a worker that dies, but not one that dies while it is still starting"
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)


def quadratic(lr, seed, folder=None):
    "Best at 0.1; fails, or takes its worker down, where it is told to"
    if lr < 0: raise ValueError('a step backwards')
    if folder and lr == 9:
        with open(Path(folder)/'tries', 'a') as f: f.write('x')
        die()
    mark = Path(folder or '')/f'{seed}'
    if folder and lr == 8 and not mark.exists():
        mark.touch()
        die()
    return dict(loss=(lr - .1)**2 + 1e-3*seed)


@pytest.fixture(scope='module')
def cluster():
    with S.local_cluster(2) as c: yield c


def test_sweep_at_an_address_equals_the_same_here(cluster):
    grid = dict(lr=[.01, .1, 1.], seed=[0, 1])
    found = S.sweep(quadratic, grid, cluster.scheduler_address)
    assert cluster.scheduler_address.startswith('tcp://127.0.0.1:')
    assert list(zip(found.lr, found.seed)) == [(lr, s) for lr in grid['lr'] for s in grid['seed']]
    assert [quadratic(r.lr, r.seed)['loss'] for r in found.itertuples()] == found.loss.tolist()
    assert (found.error == '').all() and os.getpid() not in set(found.worker)


def test_what_is_not_finished_in_time_says_so(cluster):
    found = S.sweep(lambda seconds: time.sleep(seconds) or dict(ok=1), dict(seconds=[0, 8]), cluster, timeout=4)
    assert found.ok.tolist()[:1] == [1] and 'not finished after 4 s' in found.error[1]


def test_a_failure_and_deaths_cost_no_other_row(cluster, tmp_path):
    found = S.sweep(partial(quadratic, folder=tmp_path), dict(lr=[8, -1, .1, 9, .2, .3], seed=[0, 1]), cluster, timeout=400)
    error = found.groupby('lr').error.agg(list)
    assert error[8] == error[.1] == error[.2] == error[.3] == ['', '']
    assert error[-1] == ['ValueError: a step backwards']*2
    assert all('KilledWorker' in e for e in error[9])
    assert len((tmp_path/'tries').read_text()) in (4, 5, 6), 'each is tried twice alone, and before that unless another took its worker down'
    assert found.loss.notna().sum() == 8


@pytest.mark.parametrize('address', ['tcp://127.0.0.1:9', 'nowhere', 'no host at all:1'])
def test_unknown_address_says_what_to_do_within_seconds(address):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match='no Dask scheduler answers at .* leave it out'):
        S.sweep(quadratic, dict(lr=[.1], seed=[0]), address)
    assert time.monotonic() - start < 15


# Costs

@settings(max_examples=15, deadline=None)
@given(c=st.integers(1, 4), k=st.integers(1, 4), side=st.integers(3, 9), n=st.integers(1, 3))
def test_operations_of_one_convolution(c, k, side, n):
    got = S.cost(nn.Conv2d(c, k, 3, padding=1), torch.randn(n, c, side, side))
    forward = 2*c*k*9*side**2
    assert got['forward'] == forward and got['step'] == 2*forward, 'the first layer has no gradient of its input'
    assert got['memory'] == 4*c*side**2 and got['parameters'] == 9*c*k + k


def test_cost_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    S.cost(model, torch.randn(3, 4))
    assert all(p.grad is None for p in model.parameters())


@settings(deadline=None)
@given(a=st.floats(-3, 3), c=st.floats(.1, 10))
def test_growth_of_a_power(a, c):
    x = np.array([1., 2, 4, 7])
    assert abs(S.growth(x, c*x**a) - a) < 1e-9


def test_by_value_outlives_its_name():
    f = pickle.dumps(S.ByValue(lambda x: x + 1))
    assert pickle.loads(f)(1) == 2
