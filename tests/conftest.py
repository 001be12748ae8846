"Tests share the machine: one thread each, and what takes longest begins first"
import os

# Before anything imports a library that reads them
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

LONGEST = ['test_chapters', 'test_wheel', 'test_kernels', 'test_cluster', 'test_newest', 'test_device']


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
