"Chapters as tasks of a Dask cluster: real workers, real deaths"
import hashlib, io, json, os, signal, socket, subprocess, sys, tarfile, threading, time, types
from dataclasses import replace
from pathlib import Path

import psutil, pytest

dask = pytest.importorskip('dask')
pytest.importorskip('distributed')

from medlearn.kit import cluster
from medlearn.kit.cluster import run_on
from medlearn.kit.parcel import order_in,pack,read_where,unpack,versions_here
from medlearn.kit.reuse import Kept
from medlearn.kit.catalog import WrongUsage
from medlearn.kit.runner import plan,run
from test_runner import PARAMS, SLEEPS, chapter, claim, gone, posix, results, wait_for

WORKER = '''import os, psutil
worker = next(p for p in psutil.Process().parents() if "multiprocessing.spawn" in " ".join(p.cmdline()))'''
DATA = PARAMS + 'dataset = ""\nother = None\n'


def starts(path): return f'with open({str(path)!r}, "a") as f: f.write("started\\n")'


def test_rows_are_those_of_one_machine_and_data_travel(tmp_path, monkeypatch):
    nbs, mine, other = tmp_path/'nbs', tmp_path/'mine.csv', tmp_path/'folder'
    mine.write_text('age,nodule\n63,1\n')
    (other/'deep').mkdir(parents=True)
    (other/'deep/a.txt').write_text('α')
    read = 'from pathlib import Path; dataset, Path(dataset).read_text(), [p.read_text() for p in Path(other).rglob("*.txt")]'
    chapter(nbs, 'foundations/01_reads', read, claim(True), params=DATA)
    chapter(nbs, 'imaging/01_fails', claim(False, 'float("nan")'), params=DATA)
    chapter(nbs, 'imaging/02_raises', claim(True), 'raise ValueError("bad [thing]")', params=DATA)
    chapter(nbs, 'imaging/03_endless', 'import time; time.sleep(600)', params=DATA)
    work = plan(params=dict(dataset=str(mine), other=str(other)), seeds=[3], folder=nbs)
    same = lambda rows: [{k: v for k, v in r.items() if k not in ('seconds', 'peak_mb', 'started', 'kernel', 'commit')} for r in rows]
    here = run(work, tmp_path/'here', jobs=2, timeout=10)
    packed, told = [], []
    def pack_and_hide(job, **order):
        packed.append(pack(job, **order))
        if len(packed) == len(work): mine.rename(tmp_path/'hidden'), other.rename(tmp_path/'away')
        return packed[-1]
    monkeypatch.setattr(cluster, 'pack', pack_and_hide)
    monkeypatch.setattr(cluster._Course, 'slots', lambda course: len(work))
    there = run_on(work, tmp_path/'there', 'local:2', timeout=10, tell=lambda job, row: told.append((job.stem, row['status'])))
    assert len(packed) == len(work) and not mine.exists()
    assert [r['status'] for r in there] == ['passed', 'failed', 'error', 'timeout'] and same(there) == same(here)
    assert same(results(tmp_path/'there')) == same(results(tmp_path/'here'))
    assert sorted(told) == sorted((j.stem, r['status']) for j, r in zip(work, there))
    outputs = [[c['outputs'] for c in json.loads((tmp_path/at/there[0]['notebook']).read_text())['cells'] if 'outputs' in c] for at in ('here', 'there')]
    assert outputs[0] == outputs[1] and 'α' in str(outputs)
    assert there[0]['kernel'] == ('prewarmed' if sys.platform == 'linux' else 'cold')


@pytest.mark.parametrize('allowed', [0, 3])
def test_a_chapter_that_kills_its_workers_is_given_up_and_innocents_are_not(tmp_path, allowed, monkeypatch):
    "Also if Dask allows no death and innocents wait on the worker that dies"
    nbs, count, seen = tmp_path/'nbs', tmp_path/'count', tmp_path/'seen'
    chapter(nbs, 'imaging/01_always', starts(count), WORKER, 'worker.kill()')
    for i in range(2): chapter(nbs, f'imaging/1{i}_innocent{i}', 'import time; time.sleep(.2)', claim(True))
    if allowed: chapter(nbs, 'imaging/02_once', WORKER, f'if not os.path.exists({str(seen)!r}): open({str(seen)!r}, "w").close(), worker.kill()', claim(True))
    if not allowed: monkeypatch.setattr(cluster._Course, 'slots', lambda course: 3)
    with dask.config.set({'distributed.scheduler.allowed-failures': allowed}):
        rows = {r['chapter']: r for r in run_on(plan(folder=nbs), tmp_path/'out', 'local:1')}
    always = rows.pop('imaging/always')
    assert always['status'] == 'error' and '3 times' in always['error'] and len(count.read_text().splitlines()) == 3
    assert {r['status'] for r in rows.values()} == {'passed'} and seen.exists() == bool(allowed)
    kinds = {k: type(v) for k, v in rows['imaging/innocent0'].items()}
    assert always.keys() == kinds.keys() and len(results(tmp_path/'out')) == len(rows) + 1


@pytest.fixture
def dask_scheduler(tmp_path):
    "A scheduler and a worker, each a process, and the scheduler's address"
    env, at, procs = os.environ | dict(DASK_DISTRIBUTED__LOGGING__DISTRIBUTED='critical'), tmp_path/'scheduler.json', []
    def start(*words): procs.append(subprocess.Popen([sys.executable, '-m', *words], cwd=tmp_path, env=env))
    start('distributed.cli.dask_scheduler', '--host', '127.0.0.1', '--port', '0', '--no-dashboard', '--scheduler-file', str(at))
    wait_for(lambda: at.exists() and at.read_text().strip().endswith('}'), 60)
    address = json.loads(at.read_text())['address']
    start('distributed.cli.dask_worker', address, '--nthreads', '1', '--no-dashboard', '--local-directory', str(tmp_path/'scratch'))
    yield address, procs[0]
    for p in procs:
        for q in [*psutil.Process(p.pid).children(recursive=True), p] if p.poll() is None else []: q.kill()
        p.wait()


@posix
def test_scheduler_killed_and_resumed(tmp_path, dask_scheduler, monkeypatch):
    address, scheduler = dask_scheduler
    nbs, out, pids = tmp_path/'nbs', tmp_path/'out', tmp_path/'pids'
    chapter(nbs, 'foundations/01_first', '1', claim(True))
    chapter(nbs, 'foundations/02_long', f'pids = {str(pids)!r}', SLEEPS)
    chapter(nbs, 'foundations/03_last', '1', claim(True))
    work = plan(folder=nbs)
    def kill_it():
        wait_for(lambda: pids.exists() and pids.read_text().strip(), 60)
        scheduler.kill()
    threading.Thread(target=kill_it, daemon=True).start()
    with pytest.raises(OSError, match=f'1 of 3 .*--resume --out {out}'): run_on(work, out, address)
    assert [r['chapter'] for r in results(out)] == ['foundations/first']
    wait_for(lambda: gone(map(int, pids.read_text().split())), 60)
    chapter(nbs, 'foundations/02_long', '1', claim(True))
    before = results(out)[0]['started']
    rows = run_on(plan(folder=nbs), out, 'local:1', resume=True)
    assert [r['status'] for r in rows] == ['passed']*3 and rows[0]['started'] == before and len(results(out)) == 3


def test_versions_are_compared_on_arrival(tmp_path, dask_scheduler, monkeypatch):
    address, _ = dask_scheduler
    chapter(tmp_path/'nbs', 'imaging/01_a', '1', claim(True))
    work, mine = plan(folder=tmp_path/'nbs'), versions_here()
    monkeypatch.setattr(cluster, 'versions_here', lambda: mine | dict(medlearn='9.9', torch='1.0'))
    with pytest.raises(WrongUsage, match=rf'tcp://.* has medlearn {mine["medlearn"]} instead of 9.9, torch .* instead of 1.0; --allow-versions'):
        run_on(work, tmp_path/'out', address)
    assert not list((tmp_path/'out').rglob('*.json'))
    assert run_on(work, tmp_path/'out', address, allow_versions=True)[0]['status'] == 'passed'


@posix
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_ended_from_outside_nothing_is_left(tmp_path, how):
    nbs, out, pids = tmp_path/'nbs', tmp_path/'out', tmp_path/'pids'
    chapter(nbs, 'foundations/01_first', '1', claim(True))
    chapter(nbs, 'foundations/02_long', f'pids = {str(pids)!r}', SLEEPS)
    code = f'''from medlearn.kit.cluster import run_on
from medlearn.kit.runner import plan
if __name__ == '__main__': run_on(plan(folder={str(nbs)!r}), {str(out)!r}, 'local:1')'''
    script, tmp = tmp_path/'script.py', tmp_path/'tmp'
    script.write_text(code)
    tmp.mkdir()
    env = os.environ | dict(TMPDIR=str(tmp), PYTHONPATH=str(Path(cluster.__file__).parents[2]))
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # a shell's background job ignores it, and so would its children
    proc = subprocess.Popen([sys.executable, str(script)], start_new_session=True, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    wait_for(lambda: pids.exists() and pids.read_text().strip() and (out/'results.json').exists(), 120)
    started = psutil.Process(proc.pid).children(recursive=True)
    if how == signal.SIGINT: os.killpg(proc.pid, how)
    else: proc.kill()
    said = proc.communicate(timeout=60)[1]
    assert proc.returncode == -how or 'KeyboardInterrupt' in said
    wait_for(lambda: gone([*map(int, pids.read_text().split()), *(p.pid for p in started)]), 60)
    assert [r['chapter'] for r in results(out)] == ['foundations/first']
    wait_for(lambda: not [p for p in tmp.glob('medlearn-*/*') if how == signal.SIGINT or 'data' in str(p)])


def test_what_is_unchanged_is_taken_and_what_this_machine_did_is_kept(tmp_path, monkeypatch):
    chapter(tmp_path/'nbs', 'imaging/01_a', '1', claim(True))
    work = plan(folder=tmp_path/'nbs')
    monkeypatch.delenv('PYTHONPATH', raising=False)
    run_on(work, tmp_path/'one', 'local:1', kept=Kept(tmp_path/'kept'))
    monkeypatch.setattr(cluster, '_connected', lambda asked: pytest.fail('a cluster for nothing'))
    assert run_on(work, tmp_path/'two', 'tcp://127.0.0.1:1', kept=Kept(tmp_path/'kept'))[0]['reused']


@pytest.mark.parametrize('listens', [False, True])
def test_nobody_answers(tmp_path, listens):
    chapter(tmp_path/'nbs', 'imaging/01_a', '1')
    began = time.monotonic()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        if listens: s.listen()
        address = f'tcp://127.0.0.1:{s.getsockname()[1]}'
        with pytest.raises(WrongUsage, match=f'no scheduler answers at {address}'): run_on(plan(folder=tmp_path/'nbs'), tmp_path/'out', address)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize('text, says', [
    ('schedulr: local', "no key 'schedulr'; nearest: scheduler"), ('scheduler: slrum', "no scheduler 'slrum'; nearest: slurm"),
    ('workers: 2', 'no scheduler'), ('scheduler: local\nworkers: 0', 'from 1 on'), ('scheduler: local\nworkers: true', 'from 1 on'),
    ('scheduler: address\noptions: somewhere', 'tcp://HOST:PORT'), ('scheduler: local\noptions: 3', 'names with values'),
    ('- a', 'wanted the keys'), ('a: [', 'mine.yaml'), (None, 'No such file')])
def test_bad_files_are_refused(tmp_path, text, says):
    path = tmp_path/'mine.yaml'
    if text is not None: path.write_text(text)
    with pytest.raises(WrongUsage) as e: read_where(path)
    assert says in str(e.value) and 'mine.yaml' in str(e.value)


@pytest.mark.parametrize('where', ['local', 'local:', 'local:0', 'local:-1', 'local:two', 'http://a:1', 'mine.json', ''])
def test_bad_names_are_refused(where):
    with pytest.raises(WrongUsage, match='local:4'): read_where(where)


def test_good_names():
    assert read_where('local:3') == dict(scheduler='local', options={}, workers=3)
    assert read_where('tls://h:1') == dict(scheduler='address', options='tls://h:1', workers=None)


BATCH = { # what a login node has, as far as dask-jobqueue uses it: a job is a script that runs here
    'sbatch': 'n=1; while ! mkdir job$n 2>/dev/null; do n=$((n + 1)); done\ncp "${!#}" script$n\n'
              'setsid bash script$n >log$n 2>&1 </dev/null &\necho $! >pid$n\necho Submitted batch job $n',
    'scancel': 'for n in "$@"; do kill -- -$(cat pid$n); done'}


@posix
def test_batch_systems(tmp_path, monkeypatch):
    chapter(tmp_path/'nbs', 'imaging/01_a', '1')
    path, work = tmp_path/'mine.yaml', plan(folder=tmp_path/'nbs')
    path.write_text('scheduler: slurm\nworkers: 2\noptions: {queue: short, cores: 1, memory: 2GB, interface: lo}')
    monkeypatch.setitem(sys.modules, 'dask_jobqueue', None)
    with pytest.raises(WrongUsage, match='pip install dask-jobqueue'): run_on(work, tmp_path/'out', path)
    monkeypatch.undo()
    bin = tmp_path/'bin'
    bin.mkdir()
    monkeypatch.setenv('CI', 'true')
    monkeypatch.setenv('PATH', str(bin))
    with pytest.raises(WrongUsage, match='no command sbatch'): run_on(work, tmp_path/'out', path)
    for name, does in BATCH.items():
        (bin/name).write_text(f'#!/bin/bash\ncd {tmp_path}\n{does}')
        (bin/name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{bin}{os.pathsep}{os.environ["PATH"]}{os.pathsep}/usr/bin{os.pathsep}/bin')
    assert run_on(work, tmp_path/'out', path)[0]['status'] == 'passed'
    scripts = [(tmp_path/f'script{n}').read_text() for n in (1, 2)]
    assert all('#SBATCH -p short' in text and '--nthreads 1' in text for text in scripts)
    wait_for(lambda: gone(int(p.read_text()) for p in tmp_path.glob('pid*')))
    path.write_text('scheduler: slurm\noptions: {quue: short}')
    with pytest.raises(WrongUsage, match='quue'): run_on(work, tmp_path/'out', path)


def test_a_folder_travels_whole_and_only_into_its_place(tmp_path):
    mine = tmp_path/'mine'
    (mine/'empty').mkdir(parents=True)
    (mine/'a b.bin').write_bytes(os.urandom(100))
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'elsewhere/c').write_text('c')
    for name, to in dict(link=tmp_path/'elsewhere', loop=mine, hard='a b.bin').items(): (mine/name).symlink_to(to)
    chapter(tmp_path/'nbs', 'imaging/01_a', params=DATA)
    job = plan(params=dict(dataset=str(mine)), folder=tmp_path/'nbs')[0]
    archive, to = pack(job, more=[1]), tmp_path/'to'
    there, names = unpack(archive, to)
    arrived = Path(there.given['dataset'])
    assert arrived.name == 'mine' and to in arrived.parents and names == {str(arrived): str(mine)} and order_in(archive)['more'] == [1]
    assert (arrived/'empty').is_dir() and (arrived/'link/c').read_text() == 'c' and not (arrived/'loop').exists()
    assert (arrived/'hard').read_bytes() == (arrived/'a b.bin').read_bytes() == (mine/'a b.bin').read_bytes()
    assert not any(p.is_symlink() for p in arrived.rglob('*')) and there.parameters['other'] is None and job.given['dataset'] == str(mine)
    file = io.BytesIO(archive)
    with tarfile.open(fileobj=file, mode='a') as tar: tar.addfile(tarfile.TarInfo('../evil'), io.BytesIO())
    with pytest.raises(tarfile.FilterError): unpack(file.getvalue(), tmp_path/'again')
    assert not (tmp_path/'evil').exists()
    assert hashlib.sha256(Path(there.path).read_bytes()).hexdigest() == hashlib.sha256(Path(job.path).read_bytes()).hexdigest()


def test_options_and_all_files_of_a_record_travel(tmp_path):
    at = tmp_path/'here'
    at.mkdir()
    for name in ('mine.npz', 'mine.toml', 'other.toml', 'r1.hea', 'r1.dat', 'r1.atr', 'r2.dat'): (at/name).write_text(name)
    params = dict(dataset=str(at/'mine.npz'), external=str(at/'r1'))
    job = replace(plan(['data/images'])[0], parameters=params, given=params)
    there = tmp_path/'there'
    there.mkdir()
    got, _ = unpack(pack(job), there)
    assert {p.name for p in Path(got.given['dataset']).parent.iterdir()} == {'mine.npz', 'mine.toml'}
    assert {p.name for p in Path(got.given['external']).parent.iterdir()} == {'r1.hea', 'r1.dat', 'r1.atr'}
