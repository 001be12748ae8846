"Every chapter's smoke run passes; three notice shuffled answers; classification repeats itself and reads other data"
import os, re, shutil, warnings
from pathlib import Path

import nbformat, numpy as np, pytest

from medlearn.kit.reuse import Kept
from medlearn.kit.catalog import chapters
from medlearn.kit.lesson import solutions, with_solutions
from medlearn.kit.runner import plan, run

root = Path(__file__).parent.parent
CHAPTERS = chapters(root/'nbs')
TEACHING = [n for n in CHAPTERS if n.split('/')[0] not in ('kit', 'data')]
TIMED = ('foundations/loading', 'foundations/throughput', 'foundations/bench') # they keep seconds, which no run repeats
FIGURE = 'application/vnd.medlearn.figure+json'
BREAST = root.parent/'shared/data/breastmnist/breastmnist.npz'
SABOTAGED = ['imaging/classification', 'foundations/sequences', 'sequences/records'] # `make prove` does it to all


def colour(rng):
    "Four classes told apart by their colour"
    y = np.arange(160) % 4
    mean = np.array([[150, 0, 0], [0, 150, 0], [0, 0, 150], [110, 110, 110]])[y]
    return rng.integers(0, 90, (160, 28, 28, 3)) + mean[:, None, None], y


def findings(rng):
    "Three findings, each a bar at its own height, in any combination"
    y = rng.integers(0, 2, (160, 3))
    x = rng.integers(0, 90, (160, 28, 28))
    for j in range(3): x[:, 3 + 9*j:7 + 9*j] += 150*y[:, j, None, None]
    return x, y


def npz(path, make):
    x, y = make(np.random.default_rng(0))
    ends = dict(train=slice(96), val=slice(96, 128), test=slice(128, None))
    np.savez_compressed(path, **{f'{s}_images': x[at].astype(np.uint8) for s, at in ends.items()},
                        **{f'{s}_labels': y[at] for s, at in ends.items()})
    return str(path)


LISTEN = """from medlearn.kit.plots import audit
from medlearn.kit import chapter as _again_chapter
import time as _again_time
audit()
_again_heard, _again_record, _again_began = [], _again_chapter.record, _again_time.process_time()
def _again_listen(kind, payload, *shown):
    if kind in ('claim', 'kept'): _again_heard.append(payload)
    return _again_record(kind, payload, *shown)
_again_chapter.record = _again_listen"""

AGAIN = """# Once more, each cell twice, where that is cheap: results must not depend on what ran before
import os as _again_os
from IPython.utils.capture import capture_output as _again_quiet
if _again_time.process_time() - _again_began < 5:
    _again_first, _again_second, _again_went = [*_again_heard], [], []
    _again_chapter.record = lambda kind, payload, *shown: _again_second.append(payload) if kind in ('claim', 'kept') else None
    _again_job = _again_os.environ.pop('MEDLEARN_JOB', None)
    for _again_cell in {cells!r}:
        _again_second.clear()
        for _ in range(2):
            with _again_quiet(): _again_ran = get_ipython().run_cell(_again_cell)
            assert _again_ran.success, f'a second run of this cell fails with {{_again_ran.error_in_exec!r}}: {{_again_cell[:200]}}'
        _again_half = len(_again_second)//2
        assert _again_second[:_again_half] == _again_second[_again_half:], f'this cell gives another result when it is run again: {{_again_cell[:200]}}'
        _again_went += _again_second[:_again_half]
    if _again_job: _again_os.environ['MEDLEARN_JOB'] = _again_job
    _again_off = [_again_a for _again_a, _again_b in zip(_again_first, _again_went, strict=True) if _again_a != _again_b]
    assert not _again_off, f'other results when the cells are run again: {{_again_off[:3]}}'"""


def audited(folder):
    "The course with an ear at its figures; at the end of a lesson its cells once more, if quick, and its solutions"
    shutil.copytree(root/'nbs', folder, ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for name, path in chapters(folder).items():
        nb = nbformat.read(path, 4)
        at = next((i for i, c in enumerate(nb.cells) if c.cell_type == 'code' and re.search(r'(?m)^(?:env = )?begin\(', c.source)), None)
        if name.split('/')[0] == 'kit' or at is None: continue
        nb = with_solutions(nb)
        told = [c.source for c in nb.cells[at:] if c.cell_type == 'code' and 'solution' not in c.metadata.get('tags', [])]
        end = next((i for i, c in enumerate(nb.cells) if 'solution' in c.metadata.get('tags', [])), len(nb.cells))
        if name not in TIMED: nb.cells.insert(end, nbformat.v4.new_code_cell(AGAIN.format(cells=told)))
        nb.cells.insert(at + 1, nbformat.v4.new_code_cell(LISTEN))
        nbformat.write(nb, path)
    return folder


def variants(folder):
    "The classification chapter under other names: a job each, so that all can run side by side with the course"
    jobs = {}
    datasets = dict(again=None, colour=colour, findings=findings)
    if BREAST.exists(): datasets['breastmnist'] = BREAST
    for i, (name, dataset) in enumerate(datasets.items()):
        path = folder/'imaging'/f'{i:02}_{name}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHAPTERS['imaging/classification'], path)
        if callable(dataset): dataset = npz(folder/f'{name}.npz', dataset)
        params = dict(dataset=str(dataset)) if dataset else {}
        jobs |= {j.chapter: j for j in plan([f'imaging/{name}'], params=params, folder=folder)}
    return jobs


@pytest.fixture(scope='session')
def records(request, tmp_path_factory):
    "What the chosen tests need: run once, or taken from a run of the course on the same code"
    asked = [n for item in request.session.items if Path(item.path) == Path(__file__)
             for n in item.callspec.params['names']]
    jobs = variants(tmp_path_factory.mktemp('variants')) | {j.chapter: j for j in plan(folder=audited(tmp_path_factory.mktemp('course')/'nbs'))}
    jobs |= {f'{j.chapter} sabotaged': j for j in plan(SABOTAGED, folder=root/'nbs', sabotage='answers')}
    kept = Kept(off=bool(os.environ.get('CI')))
    out = tmp_path_factory.mktemp('run')
    rows = run([j for n, j in jobs.items() if n in asked], out, timeout=900, kept=kept)
    return {r['chapter'] + ' sabotaged'*bool(r['sabotage']): r | dict(path=out/r['notebook']) for r in rows}


def needs(*names): return pytest.mark.parametrize('names', [names], ids=[names[-1]])
def each(names): return pytest.mark.parametrize('names', [(n,) for n in names], ids=names)
def missed(row): return [c for c in row['claims'] if not c['passed']]


def passed(row):
    assert row['status'] == 'passed', f'{row["status"]}: {row["error"] or missed(row)}'
    assert not missed(row)


@each(CHAPTERS)
def test_smoke_passes(records, names):
    row = records[names[0]]
    passed(row)
    least = 4 if names[0] in TEACHING else 0
    assert len(row['claims']) >= least and len({c['claim'] for c in row['claims']}) == len(row['claims'])
    slow = f'{names[0]} took {row["seconds"]:.0f} s; smoke is meant to end within 30 s on two quiet cores'
    if row['seconds'] > 45: warnings.warn(slow)
    if names[0].startswith('kit/'): return
    nb = nbformat.read(row['path'], 4)
    outputs = [(i, o) for i, c in enumerate(nb.cells) if c.cell_type == 'code' for o in c.outputs]
    said = [(i, o.text[:200]) for i, o in outputs if o.output_type == 'stream' and o.name == 'stderr']
    assert not said, f'on the error stream: {said}'
    lacks = [(i, nb.cells[i].source[:80], o.data[FIGURE]['lacks']) for i, o in outputs if FIGURE in o.get('data', {})]
    assert not lacks, f'figures lack something: {lacks}'


@needs('imaging/classification', 'imaging/again')
def test_same_seed_gives_the_same_bits(records, names):
    once, again = (records[n] for n in names)
    assert once['claims'] and again['claims'] == once['claims'] and again['data'] == once['data']


@each([f'{n} sabotaged' for n in SABOTAGED])
def test_a_chapter_notices_shuffled_answers(records, names):
    row = records[names[0]]
    assert row['status'] == 'failed' and row['error'] is None, f'{row["status"]}: {row["error"]}'
    assert row['sabotage'] == 'answers' and row['shuffled'] > 0 and len(missed(row)) >= 4, missed(row)


@each(['imaging/colour', 'imaging/findings', 'imaging/breastmnist'])
def test_other_data(records, names):
    if names[0] not in records: pytest.skip('../shared/data/breastmnist/breastmnist.npz is not there')
    row = records[names[0]]
    passed(row)
    read = [Path(d['name']).name for d in row['data']]
    assert len(row['claims']) >= 2 and read == [Path(row['parameters']['dataset']).name]
