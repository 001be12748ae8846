"The runner: every way a chapter can end, and nothing left behind"
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat.v4 as v4
import psutil
import pytest
from hypothesis import given, strategies as st

from medlearn.kit.catalog import chapters,parse,WrongUsage
from medlearn.kit.runner import finished,harvest,plan,run,run_one,to_json

PARAMS = 'profile = "smoke"\nseed = 42\n'
MEDLEARN = [sys.executable, '-c', 'from medlearn.kit.cli import main; main()']
posix = pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')


def chapter(folder, name, *cells, params=PARAMS):
    "Write a chapter of code cells"
    path = Path(folder)/f'{name}.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    first = [v4.new_code_cell(params, metadata=dict(tags=['parameters']))] if params else []
    title = v4.new_markdown_cell(f'# {name}\n\n> A promise.')
    path.write_text(json.dumps(v4.new_notebook(cells=[title, *first, *map(v4.new_code_cell, cells)])))
    return path


def claim(passed, value='1.0'):
    payload = (f'dict(claim="c", value={value}, low=None, high=None, bound=1, direction="at_least", source="s", '
               f'passed={passed})')
    return f'display({{"application/vnd.medlearn.claim+json": {payload}, "text/plain": "c"}}, raw=True)'


SLEEPS = '''import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(pids, "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)'''


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if got := condition(): return got
        time.sleep(.05)
    raise AssertionError(f'nothing after {seconds} s')


def gone(pids):
    def dead(p):
        try: return psutil.Process(p).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess: return True
    return all(map(dead, pids))


def results(out):
    text = (out/'results.json').read_text(encoding='utf-8')
    return json.loads(text, parse_constant=lambda c: pytest.fail(f'{c} in results.json'))['runs']


@pytest.fixture(scope='session')
def course(tmp_path_factory):
    "One run of chapters that end in every way but by time, three at once"
    root = tmp_path_factory.mktemp('course')
    nbs, out = root/'nbs', root/'out {with} braces'
    look = '[seed, length, sys.executable, env["PYTHONHASHSEED"], env.get("OMP_WAIT_POLICY"), os.listdir()]'
    look = f'import os, sys; env = os.environ; {look}'
    chapter(nbs, 'trust/01_holds', look, claim(True), params=PARAMS + 'length = 30.0')
    chapter(nbs, 'foundations/02_fails', claim(False, 'float("nan")'), claim(True))
    chapter(nbs, 'foundations/10_raises', claim(True), 'raise ValueError("bad [thing]")', claim(True))
    chapter(nbs, 'imaging/01_killed', 'import os, signal, time; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)')
    chapter(nbs, 'imaging/02_leaves', claim(True), 'import sys; sys.exit(0)', claim(False))
    chapter(nbs, 'kit/01_plain', '1 + 1', params=None)
    chapter(nbs, 'labs/01_lab', '1')
    chapter(nbs, '.ipynb_checkpoints/01_old', '1')
    told = []
    seeded = plan(['trust'], seeds=[1, 2, 1], params=dict(length='2'), folder=nbs)
    work = plan(['foundations', 'imaging', 'kit'], folder=nbs) + seeded
    rows = run(work, out, jobs=3, tell=lambda job, m: told.append((job.stem, m)))
    return dict(nbs=nbs, out=out, rows={(r['chapter'], r['seed']): r for r in rows}, told=told)


def test_statuses(course):
    assert {k: r['status'] for k, r in course['rows'].items()} == {
        ('kit/plain', None): 'passed', ('foundations/fails', 42): 'failed', ('foundations/raises', 42): 'error',
        ('imaging/killed', 42): 'error', ('imaging/leaves', 42): 'error',
        ('trust/holds', 1): 'passed', ('trust/holds', 2): 'passed'}


def test_errors_say_what_and_where(course):
    errors = {c: r['error'] for (c, _), r in course['rows'].items()}
    assert errors['foundations/raises'] == 'ValueError: bad [thing] (cell In [4])'
    assert 'killed (perhaps out of memory)' in errors['imaging/killed'] and 'In [3]' in errors['imaging/killed']
    assert 'SystemExit' in errors['imaging/leaves']
    assert errors['trust/holds'] is None


def test_claims_survive_an_error_and_nan_is_null(course):
    rows = {r['chapter']: r for r in results(course['out'])}
    assert len(rows['foundations/raises']['claims']) == 1
    assert [c['value'] for c in rows['foundations/fails']['claims']] == [None, 1.0]


def test_results_are_ordered_and_complete(course):
    rows = results(course['out'])
    parts = [r['chapter'].split('/')[0] for r in rows]
    assert parts == 'kit foundations foundations imaging imaging trust trust'.split()
    fields = 'chapter profile seed parameters status seconds peak_mb device data versions claims'
    assert all({*fields.split(), 'commit', 'sha256', 'notebook', 'error'} <= r.keys() for r in rows)
    assert all(r['peak_mb'] is None or 20 < r['peak_mb'] < 2000 for r in rows)
    for r in rows: json.loads((course['out']/r['notebook']).read_text())


def test_kernel_is_this_python_in_an_empty_folder(course):
    row = course['rows']['trust/holds', 2]
    nb = json.loads((course['out']/row['notebook']).read_text())
    outputs = [o['data'] for c in nb['cells'] for o in c.get('outputs', []) if 'data' in o]
    shown = ''.join(outputs[0]['text/plain'])
    assert eval(shown) == [2, 2.0, sys.executable, '0', 'PASSIVE', []]
    assert row['parameters'] == dict(profile='smoke', seed=2, length=2.0)


def test_every_cell_is_told(course):
    cells = [m['cell'] for stem, m in course['told'] if stem == 'kit/plain/smoke' and 'cell' in m]
    assert cells == [1, 2]
    assert sum('status' in m for _, m in course['told']) == len(course['rows'])


def test_order_and_names(course):
    names = 'kit/plain foundations/fails foundations/raises imaging/killed imaging/leaves trust/holds'
    assert list(chapters(course['nbs'])) == names.split()


def test_finished_needs_same_text_and_parameters(course, tmp_path):
    nbs, out = course['nbs'], course['out']
    job = lambda name, **kw: plan([name], folder=nbs, **kw)[0]
    assert finished(job('trust/holds', seeds=[1], params=dict(length='2')), out)
    assert finished(job('foundations/fails'), out)
    assert not finished(job('trust/holds', seeds=[1]), out)
    assert not finished(job('trust/holds', seeds=[3], params=dict(length='2')), out)
    assert not finished(job('foundations/fails', profile='full'), out)
    assert not finished(job('foundations/raises'), out)
    changed = chapter(tmp_path, 'foundations/02_fails', 'changed')
    assert not finished(plan(folder=tmp_path)[0], out) and changed.exists()


def test_resumed_on_the_same_data_only(tmp_path):
    (tmp_path/'disk').mkdir()
    (tmp_path/'many').mkdir()
    one, many, linked = tmp_path/'one.npz', tmp_path/'many', tmp_path/'disk/b.txt'
    for p in (one, many/'a.txt', linked): p.write_text('1')
    (many/'more').symlink_to(tmp_path/'disk', target_is_directory=True)
    (many/'more/again').symlink_to(many, target_is_directory=True)
    chapter(tmp_path/'nbs', 'imaging/01_data', claim(True), params=PARAMS + 'dataset = "toy"\nother = None')
    work = lambda: plan(params=dict(dataset=str(one), other=str(many)), folder=tmp_path/'nbs')
    def again():
        row, = run(work(), tmp_path/'out', resume=True, warm=False)
        assert row['status'] == 'passed' and row['own_data'].keys() == {'dataset', 'other'}
        return row['started'], row['own_data']
    seen = [again()]
    def kept():
        seen.append(again())
        return seen[-1] == seen[-2]
    assert kept()
    for change in (lambda: one.write_text('2'), lambda: (tmp_path/'one.toml').write_text('positive = "benign"'), lambda: linked.write_text('2'),
                   lambda: (many/'dataset.toml').write_text(''), lambda: (many/'a.txt').rename(many/'c.txt'), linked.unlink):
        change()
        assert (kept(), kept()) == (False, True)
    assert len({json.dumps(d) for _, d in seen}) == 7
    record, = (tmp_path/'out').glob('imaging/data/*.json')
    row = json.loads(record.read_text())
    for old in ({k: v for k, v in row.items() if k != 'own_data'}, row | dict(own_data=None)):
        record.write_text(json.dumps(old))
        assert not finished(work()[0], tmp_path/'out')


@pytest.mark.parametrize('name', ['100', '100.hea'])
def test_all_files_of_a_wfdb_record_are_its_data(tmp_path, name):
    from medlearn.kit.runner import own_data
    for end in ('hea', 'dat', 'atr'): (tmp_path/f'100.{end}').write_text('1')
    (tmp_path/'1001.dat').write_text('1')
    chapter(tmp_path/'nbs', 'imaging/01_data', params=PARAMS + 'external = ""')
    def digest(): return own_data(plan(params=dict(external=f'./{name}'), folder=tmp_path/'nbs', cwd=tmp_path)[0])['external']
    seen = [digest()]
    for end in ('dat', 'atr', 'hea'):
        (tmp_path/f'100.{end}').write_text('2')
        seen.append(digest())
    (tmp_path/'1001.dat').write_text('2')
    assert len({*seen}) == 4 and digest() == seen[-1]
    with pytest.raises(WrongUsage, match='no file or folder'): plan(params=dict(external='./none'), folder=tmp_path/'nbs', cwd=tmp_path)


def test_data_that_change_during_a_run_are_not_recorded(tmp_path):
    (tmp_path/'mine.csv').write_text('1')
    chapter(tmp_path/'nbs', 'imaging/01_data', 'open(dataset, "a").write("2")', claim(True), params=PARAMS + 'dataset = "toy"')
    job, = plan(params=dict(dataset=str(tmp_path/'mine.csv')), folder=tmp_path/'nbs')
    assert run_one(job, tmp_path/'out')['own_data'] is None and not finished(job, tmp_path/'out')


def test_time_limit_ends_the_whole_tree(tmp_path):
    chapter(tmp_path/'nbs', 'imaging/01_endless', '"kept"', SLEEPS, params=PARAMS + f'pids = {str(tmp_path/"pids")!r}')
    row = run_one(plan(folder=tmp_path/'nbs')[0], tmp_path/'out', timeout=6)
    assert row['status'] == 'timeout' and 'limit of 6 s in cell 5 of 5' in row['error'] and row['seconds'] < 15
    assert gone(map(int, (tmp_path/'pids').read_text().split()))
    nb = json.loads((tmp_path/'out'/row['notebook']).read_text())
    assert "'kept'" in str(nb['cells'][3]['outputs'])
    assert [p.name for p in (tmp_path/'out/imaging/endless').iterdir() if p.name.startswith('.')] == []


@posix
@pytest.mark.parametrize('sig', ['SIGKILL', 'SIGTERM', 'SIGINT'])
def test_a_run_cut_short_is_resumed(tmp_path, sig):
    nbs, out, tmp = tmp_path/'nbs', tmp_path/'out', tmp_path/'tmp'
    tmp.mkdir()
    params = PARAMS + f'pids = {str(tmp_path/"pids")!r}'
    chapter(nbs, 'imaging/01_short', claim(True))
    chapter(nbs, 'imaging/02_endless', SLEEPS, params=params)
    command = [*MEDLEARN, 'run', '--nbs', str(nbs), '--out', str(out), '--jobs', '2']
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # a shell's background job ignores it, and so would its children
    proc = subprocess.Popen(command, env=os.environ | dict(TMPDIR=str(tmp)), start_new_session=True, preexec_fn=heard,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    pids = tmp_path/'pids'
    wait_for(lambda: (out/'results.json').exists() and pids.exists() and pids.read_text().count(' '))
    proc.send_signal(getattr(signal, sig))
    said = proc.communicate(timeout=60)[0].decode()
    assert proc.returncode == (-9 if sig == 'SIGKILL' else 130) and ('--resume' in said or sig == 'SIGKILL')
    wait_for(lambda: gone(map(int, pids.read_text().split())))
    wait_for(lambda: not list(tmp.glob('medlearn-*')))
    before = results(out)
    assert [(r['chapter'], r['status']) for r in before] == [('imaging/short', 'passed')]
    if sig == 'SIGINT': return
    chapter(nbs, 'imaging/02_endless', claim(True), params=params)
    again = subprocess.run([*command, '--resume'], capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and again.stdout.count('kept from the earlier run') == 1, again.stdout + again.stderr
    after = results(out)
    assert {r['chapter']: r['status'] for r in after} == {'imaging/endless': 'passed', 'imaging/short': 'passed'}
    assert after[1] == before[0]


@posix
def test_a_worker_killed_takes_its_kernel_along(tmp_path):
    cell = """import os, signal, time
with open(pids, "w") as f: f.write(str(os.getpid()))
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(60)"""
    chapter(tmp_path/'nbs', 'imaging/01_parricide', cell, params=PARAMS + f'pids = {str(tmp_path/"pids")!r}')
    row = run_one(plan(folder=tmp_path/'nbs')[0], tmp_path/'out')
    assert row['status'] == 'error' and 'worker ended early (killed, perhaps out of memory)' in row['error']
    assert gone([int((tmp_path/'pids').read_text())])


def test_a_full_disk_is_an_error_of_the_chapter(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(disk)], capture_output=True).returncode:
        pytest.skip('a small tmpfs cannot be mounted here')
    try:
        chapter(tmp_path/'nbs', 'imaging/01_big', 'print("x" * 200_000)')
        row = run(plan(folder=tmp_path/'nbs'), disk/'out')[0]
        assert row['status'] == 'error' and 'No space left' in row['error']
    finally: subprocess.run(['umount', str(disk)])


def test_a_chapter_that_vanishes_is_its_own_error(tmp_path):
    path = chapter(tmp_path/'nbs', 'imaging/01_here', '1')
    work = plan(folder=tmp_path/'nbs')
    path.unlink()
    row = run(work, tmp_path/'out')[0]
    assert row['status'] == 'error' and 'FileNotFoundError' in row['error']
    assert results(tmp_path/'out')[0]['status'] == 'error'


@pytest.mark.parametrize('kw, says', [
    (dict(names=['trust/hold']), 'nearest: trust/holds'), (dict(names=['kit', '']), "no chapter or part is called ''"),
    (dict(profile='quick'), 'smoke or full'), (dict(params=dict(lenght='2')), "no parameter 'lenght'"),
    (dict(names=['trust'], params=dict(lenght='2')), 'nearest: length'),
    (dict(names=['trust'], params=dict(length='nan')), 'expects float'),
    (dict(names=['trust'], params=dict(seed='2')), '--seed 2')])
def test_wrong_usage(course, kw, says):
    with pytest.raises(WrongUsage) as e: plan(folder=course['nbs'], **kw)
    assert says in str(e.value)


@pytest.mark.parametrize('text', ['not json', '[]', '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}'])
def test_a_file_that_is_no_notebook(tmp_path, text):
    (tmp_path/'kit').mkdir()
    (tmp_path/'kit/01_bad.ipynb').write_text(text)
    with pytest.raises(WrongUsage, match='01_bad.ipynb'): plan(folder=tmp_path)
    assert harvest(tmp_path/'kit/01_bad.ipynb')['claims'] == []


def test_a_dataset_is_a_card_or_an_absolute_path(tmp_path):
    from medlearn.kit.cards import cards
    name = next(iter(cards()))
    chapter(tmp_path/'nbs', 'imaging/01_data', params=PARAMS + 'dataset = "toy"')
    (tmp_path/'mine').mkdir()
    got = lambda value: plan(params=dict(dataset=value), folder=tmp_path/'nbs', cwd=tmp_path)[0].parameters['dataset']
    mine, yours = str(tmp_path/'mine'), str(tmp_path/'yours.csv')
    assert [got(name), got('toy'), got('mine'), got('./mine')] == [name, 'toy', mine, mine]
    assert [got('pathmnist_64'), got('pathmnist@224')] == ['pathmnist_64', 'pathmnist@224']
    bad = [('pathmnist_32', 'pathmnist has no size 32; there are 28, 64, 128, 224'), ('organmnist3d@128', 'there are 28, 64'),
           ('nafld_1', 'no data card'), ('pathmist_64', 'nearest: pathmnist'), (name + 'x', f'nearest: {name}'), ('yours.csv', f'no file or folder {yours}'), ('', 'no data card')]
    for value, says in bad:
        with pytest.raises(WrongUsage) as e: got(value)
        assert says in str(e.value)


def test_other_paths_count_from_where_the_command_was_typed(tmp_path, monkeypatch):
    chapter(tmp_path/'nbs', 'imaging/01_data', params=PARAMS + 'external = ""')
    got = lambda value: plan(params=dict(external=value), folder=tmp_path/'nbs', cwd=tmp_path/'here')[0].given['external']
    for name in ('ecg', 'here'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'100.hea').touch()
    monkeypatch.setenv('HOME', str(tmp_path))
    there,here = str(tmp_path/'ecg/100'),str(tmp_path/'here/100')
    assert [got(v) for v in ('../ecg/100', '~/ecg/100', './100', '100', 'resnet18', 'a/b', '')] == [there, there, here, here, 'resnet18', 'a/b', '']
    with pytest.raises(WrongUsage, match='no file or folder .*nowhere.csv'): got('nowhere.csv')


number = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.booleans() | number | st.text() | st.lists(number) | st.dictionaries(st.text(), st.none()))
def test_parse_reads_back_what_python_writes(value):
    text = value if isinstance(value, str) else repr(value)
    got = parse(text, value)
    assert got == value and type(got) is type(value)


@given(st.text(), st.sampled_from([True, 1, 1., [1], {}]))
def test_parse_gives_the_type_or_refuses(text, default):
    try: got = parse(text, default)
    except (ValueError, KeyError, SyntaxError): return
    assert type(got) is type(default)


@given(st.recursive(st.floats() | st.text() | st.none(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_json_is_strict(o):
    json.loads(to_json(o), parse_constant=lambda c: pytest.fail(c))
