"Tests share the machine: one thread each, and what takes longest begins first"
import os

import pytest

# Before anything imports a library that reads them
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

LONGEST = ['test_chapters', 'test_colab', 'test_wheel', 'test_kernels', 'test_cluster', 'test_newest', 'test_device']


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def no_kept_results(request, monkeypatch):
    "Tests run what they run, and leave nothing in the cache; only those of the cache and of the whole course use it"
    monkeypatch.delenv('COLUMNS', raising=False) # tables are as wide as in a log
    if request.path.stem not in ('test_chapters', 'test_reuse'): monkeypatch.setenv('CI', 'true')
