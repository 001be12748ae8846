"The bench: what it measures has the form and the order of size that it says"
import json
import math
import mmap
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medlearn.foundations import bench as B, throughput as T
from medlearn.kit.cli import app
from medlearn.kit.cards import DataError

WAYS = ['limit', 'medlearn', 'fastai', 'pytorch', 'pytorch_workers']


@pytest.fixture(scope='module')
def squares():
    "Dark ground with a square that is brighter in one class"
    data = T.noise(48, 16)
    data.images[:] = 40
    data.images[:, 9:19, 9:19] = (110 + 100*data.labels)[:, None, None]
    return data


def test_every_way_gives_each_image_once_with_its_label(squares, tmp_path):
    feeds = T.ways(squares, 16, 'cpu', tmp_path)
    assert list(feeds) == WAYS
    for name, batches in feeds.items():
        x, y = (torch.cat(t) for t in zip(*batches))
        assert type(x) is type(y) is torch.Tensor and x.shape == (48, 1, 28, 28) and x.dtype == torch.float32, name
        assert y.sum() == 24, name
        bright = x[:, 0, 11:17, 11:17].mean((1, 2))
        assert bright[y == 1].min() > bright[y == 0].max(), f'{name}: labels do not follow their images'


def test_every_way_augments_alike(tmp_path):
    "A single point of light moves about as far in each, and no image stays as it was"
    data = T.noise(256, 16)
    data.images[:] = 0
    data.images[:, 12:16, 20:24] = 255
    at = torch.arange(28.)
    for name, batches in T.ways(data, 64, 'cpu', tmp_path).items():
        x = torch.cat([x for x, _ in batches])[:, 0]
        x = (x - x.amin((1, 2), keepdim=True)).clamp_min(0)
        x = x*(x > .3*x.amax((1, 2), keepdim=True))
        row, col = (x.sum(2)*at).sum(1)/x.sum((1, 2)), (x.sum(1)*at).sum(1)/x.sum((1, 2))
        assert abs(row.mean() - 13.5) < .5 and abs(col.mean() - 21.5) < .6, name
        assert .3 < row.std() < 2 and .2 < col.std() < 2, f'{name}: rows spread {row.std():.2f}, columns {col.std():.2f}'


def test_sizes_and_counts():
    data = T.sized(T.noise(40, 10), 64, 20)
    assert data.images.shape == (30, 64, 64) and (data.split == 'train').sum() == 20 and data.images.dtype == np.uint8
    colour = T.noise(8, 8)
    colour.images = np.stack([colour.images]*3, -1)
    with pytest.raises(DataError, match='grey'): T.sized(colour)
    with pytest.raises(DataError, match='do not fill a batch'): T.throughput(data)


def test_the_published_network():
    "As many weights as the ResNet-18 of MedMNIST's benchmark; first weights within PyTorch's bound"
    model = B.small_stem_resnet18()
    assert sum(p.numel() for p in model.parameters()) == 11_168_706
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 2)
    assert model.conv1.weight.abs().max() <= 1/3


def test_the_clock_stops_at_the_mark_or_at_the_limit():
    watch = B.Stopwatch(.9)
    assert [watch(a) for a in (.5, .89, .9)] == [False, False, True] and watch.reached
    late = B.Stopwatch(.9, limit=0)
    assert late(.5) and not late.reached


def test_a_recipe_that_does_not_arrive_gives_a_lower_bound(squares):
    q = B.time_to_quality(squares, bar=1.01, seeds=[0], minutes=0)
    assert q['lower_bound'] and q['medlearn'] is None and q['published'] > 0
    q = B.time_to_quality(squares, bar=.4, seeds=[0, 1], minutes=0)
    assert q['medlearn'] > 0 and len(q['curves']['medlearn']) == 2 and math.isclose(q['ratio'], q['published']/q['medlearn'], abs_tol=.06)


def test_the_peak_counts_what_was_held():
    with B.Peak() as peak:
        fresh = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # np.ones might reuse memory that earlier tests left behind
        for i in range(0, 2**26, mmap.PAGESIZE): fresh[i] = 1
        time.sleep(.2)
    fresh.close()
    assert 60 < peak.mb < 80
    with B.Peak() as peak: sum(range(1000))
    assert peak.mb < 8


def test_memory_is_measured_and_near_what_is_expected():
    m = B.memory(T.sized(T.noise(), n=256))
    assert 5 < m['expected_mb'] < 100 and .5*m['expected_mb'] < m['peak_mb'] < 3*m['expected_mb']


def test_the_command_says_it_in_json(tmp_path, monkeypatch):
    monkeypatch.setattr(B, 'memory', lambda data, **kw: dict(peak_mb=11., expected_mb=10.))
    file = tmp_path/'bench.json'
    words = f'bench --json --size 28 --size 32 --images 128 --repeats 1 --only throughput --dataset no.npz --out {file}'
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said == json.loads(file.read_text()) and said['time_to_quality'] is None and 'no.npz' in said['reason']
    t = said['throughput']
    for s in (t, t['32x32']):
        assert all(s[w] > 0 for w in WAYS) and s['ratios']['medlearn/limit'] > .01
    assert said['peak_mb'] == t['32x32']['peak_mb'] == 11 and said['device']


def test_the_command_shows_tables_and_refuses_nonsense(squares, tmp_path):
    file = tmp_path/'squares.npz'
    part = {f'{s}_{k}': getattr(squares.part(p), k) for s, p in (('train', 'train'), ('val', 'valid'), ('test', 'valid'))
            for k in ('images', 'labels')}
    np.savez(file, **{k: v[:, None] if k.endswith('labels') else v for k, v in part.items()})
    done = CliRunner().invoke(app, f'bench --only quality --runs 1 --minutes 0 --dataset {file}'.split())
    assert done.exit_code == 0 and 'seconds to AUROC 0.995' in done.output, done.output
    assert CliRunner().invoke(app, ['bench', '--only', 'speed']).exit_code == 2
