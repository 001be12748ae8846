"Beside Colab's packages: what the set-up cells install moves none of them, and chapters run there"
import json, shutil
from pathlib import Path

import pytest
from colab_lane import PINS, NoRegistry, build, course, extras_of, installed, needs, pins, plain
from packaging.requirements import Requirement

from medlearn.kit.catalog import chapters

root = Path(__file__).parent.parent
COLAB = root.parent/'shared/data/colab'
CHAPTERS = ['imaging/classification', 'data/scans', 'sequences/records'] # `make colab-lane` runs all
EXTRAS = sorted({e for p in chapters(root/'nbs').values() for e in extras_of(p)})
ASKED = [Requirement(r) for r in needs(EXTRAS)]
PINNED = dict(line.split('==') for line in PINS.read_text(encoding='utf-8').splitlines() if not line.startswith('#'))


def test_colabs_versions_are_enough():
    have = [(r, PINNED[plain(r.name)]) for r in ASKED if plain(r.name) in PINNED]
    few = {str(r): version for r, version in have if version not in r.specifier}
    assert not few and {'torch', 'ipywidgets', 'dask', 'ipykernel'} <= set(PINNED)


@pytest.mark.parametrize('file', ['pip-freeze.txt', 'pip-freeze.gpu.txt'])
def test_versions_are_those_that_colab_publishes(file):
    if not (COLAB/file).exists(): pytest.skip(f'../shared/data/colab/{file} is not there')
    lines = [line.split('+')[0].split('==') for line in (COLAB/file).read_text().split('\n') if '==' in line]
    theirs = {name.lower().replace('_', '-').replace('.', '-'): version for name, version in lines}
    if file == 'pip-freeze.txt': assert PINNED.items() <= theirs.items()
    asked = {plain(r.name): r for r in ASKED if plain(r.name) in theirs}
    assert set(asked) <= set(PINNED) and len(asked) > 15
    assert all(theirs[name] in r.specifier for name, r in asked.items())


@pytest.fixture(scope='module')
def lane(tmp_path_factory):
    "A runtime with Colab's packages and medlearn, three chapters run in it"
    folder = tmp_path_factory.mktemp('colab')
    try: found = build(folder)
    except NoRegistry as e: pytest.skip(f'the package registry cannot be reached: {e}')
    course(found, folder/'run', *CHAPTERS)
    yield found | dict(rows={r['chapter']: r for r in json.loads((folder/'run/results.json').read_text())['runs']})
    shutil.rmtree(folder/'env') # gigabytes


def test_set_up_moves_none_of_colabs_packages(lane):
    assert set(lane['moved']) == {'trust,molecules,imaging,formats', 'scaling', 'sequences'} and not any(lane['moved'].values()), lane['moved']
    there = {k: v for k, v in installed(lane['bin']).items() if k in PINNED and k not in lane['without']}
    assert there == {k: v for k, v in PINNED.items() if k not in lane['without']}
    assert {'papermill', 'pydicom', 'monai', 'distributed'} <= set(lane['new'])


@pytest.mark.parametrize('name', CHAPTERS)
def test_a_chapter_runs_there(lane, name):
    row = lane['rows'][name]
    assert row['status'] == 'passed', row['error'] or [c for c in row['claims'] if not c['passed']]
    ours = {k: v for k, v in row['versions'].items() if plain(k) in PINNED and plain(k) not in lane['without']}
    assert len(ours) > 3 and all(v.split('+')[0] == PINNED[plain(k)] for k, v in ours.items()), ours
