"Segmentation of volumes: patches, the judge, networks for volumes and for slices, tiles"
import io, subprocess, sys, tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from medlearn.data import volumes as Volumes
from medlearn.data.volumes import nifti_pairs
from medlearn.foundations.budget import Budget
from medlearn.foundations.overlap import means,measure_volume
from medlearn.foundations.tiles import AnySize,tiled
from medlearn.imaging.voxels import *
from medlearn.kit.cards import DataError
from test_volumes import balls

hippocampus = Path(__file__).parent.parent.parent/'shared'/'data'/'msd_hippocampus'


# Patches and the judge

@settings(max_examples=20, deadline=None)
@given(size=st.tuples(*[st.integers(4, 24)]*3), n=st.integers(1, 4), seed=st.integers(0, 5))
def test_patches_are_pieces_of_their_volume(size, n, seed):
    d = balls(8)
    p = patches(d, size, n, seed)
    assert p.images.shape == (8*n, *size) and p.groups.tolist() == np.repeat(d.groups, n).tolist()
    again = patches(d, size, n, seed)
    assert (p.images == again.images).all() and (p.masks == again.masks).all()
    assert (p.images[p.masks > 0] > 100).all(), 'image and mask moved apart'


def test_patches_find_the_small_structure():
    d = balls(8)
    d.masks[:] = 0
    d.masks[:, 3, 3, 3] = 1
    p = patches(d, (4, 4, 4), 20)
    assert .4 < p.masks.any((1, 2, 3)).mean() < .7


def test_patch_size_is_the_median_volume():
    d = balls(8)
    assert patch_size(d) == (16, 16, 16) and patch_size(d, most=8) == (8, 8, 8) and patch_size(d, step=32) == (32, 32, 32)


def test_measure_counts_millimetres():
    d = balls(8, spacing=2.)
    table = measure_volume(d.masks, d)
    assert (table.dice == 1).all() and (table.hd95_mm == 0).all()
    assert np.allclose(table.ml, d.masks.sum((1, 2, 3))*8/1000) and (table.ml == table.ml_reference).all()
    missed = measure_volume(np.zeros_like(d.masks), d)
    assert (missed.dice == 0).all() and np.allclose(missed.hd95_mm, 32*3**.5) and (missed.ml == 0).all()
    moved = measure_volume(np.roll(d.masks, 1, 1), d)
    assert (moved.hd95_mm == 2).all()
    with pytest.raises(DataError, match='the reference'): measure_volume(d.masks[:, :4], d)
    with pytest.raises(DataError, match='no spacing'): measure_volume(d.masks, replace(d, spacing=None))


def test_means_draw_patients():
    d = balls(8)
    pred = d.masks.copy(); pred[0] = 0
    one = means(measure_volume(pred, d))
    assert one.loc['ball', 'dice'] == pytest.approx(7/8) and one.loc['ball', 'low'] < 7/8 < one.loc['ball', 'high'] <= 1
    same = means(measure_volume(pred, replace(d, groups=np.repeat('P', 8))))
    assert same.loc['ball', 'low'] == pytest.approx(same.loc['ball', 'high']), 'one patient has no spread'


# Networks and tiles

def test_a_slice_sees_its_neighbours_only():
    torch.manual_seed(0)
    net = unet25d(2, (4, 8)).eval()
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.inference_mode():
        a = net(x)
        x[:, :, 4] += 1
        changed = (net(x) != a).flatten(3).any(3)[0].any(0)
    assert a.shape == (1, 2, 8, 16, 16) and changed.tolist() == [False]*3 + [True]*3 + [False]*2


def test_half_resolution_gives_scores_for_every_voxel():
    seen = []
    class Net(nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return x.repeat(1, 3, 1, 1, 1)
    assert AtHalf(AnySize(Net(), 16))(torch.zeros(1, 1, 40, 56, 42)).shape == (1, 3, 40, 56, 42) and seen == [(32, 32, 32)]


def network(widths=(4, 8)):
    torch.manual_seed(0)
    return unet3d(3, widths).eval()


def called(x):
    with torch.inference_mode(): return network()(x).argmax(1, keepdim=True).byte()


@settings(max_examples=8, deadline=None)
@given(shape=st.tuples(*[st.integers(10, 70)]*3))
def test_tiles_equal_the_whole_where_the_margin_reaches(shape):
    v = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    whole = called(torch.tensor(v)[None])[0].numpy()
    assert (tiled(called, v, 64, 32, 16) != whole).mean() < 1e-4, 'more than ties of rounding'


def test_without_margin_only_the_rims_of_tiles_differ():
    v = np.random.default_rng(0).normal(size=(1, 64, 64, 64)).astype(np.float32)
    differs = (tiled(called, v, 32, 0, 16) != called(torch.tensor(v)[None])[0].numpy())[0]
    inner = np.r_[0:20, 44:64]
    assert differs.any() and not differs[np.ix_(inner, inner, inner)].any()


def test_tiles_write_into_a_file(tmp_path):
    v = np.random.default_rng(0).normal(size=(1, 40, 40, 40)).astype(np.float32)
    out = np.memmap(tmp_path/'classes', np.uint8, 'w+', shape=v.shape)
    assert tiled(called, v, 48, 32, 16, out=out) is out and (out == called(torch.tensor(v)[None])[0].numpy()).mean() > .999


def test_networks_take_any_size():
    for make in (unet3d, unet25d):
        with torch.inference_mode(): assert make(3, (4, 8, 16)).eval()(torch.zeros(1, 1, 9, 13, 22)).shape == (1, 3, 9, 13, 22)


def test_memory_of_a_large_ct_is_that_of_a_tile():
    "512 x 512 x 300: volume and classes take 79 MB each, scores in 32 bits would take 944 MB"
    code = '''
import resource,numpy as np,torch
from medlearn.foundations.tiles import tiled
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
see = lambda x: torch.cat([100 - x.float(), x.float() - 100, 0*x.float()], 1).argmax(1, keepdim=True).byte()
v = np.random.default_rng(0).integers(0, 255, (1, 300, 512, 512), dtype=np.uint8)
tiled(see, v[:, :96, :96, :96], 96, 0)
before = peak()
res = tiled(see, v, 96, 32)
print((peak() - before)/1e6, float((res[:, ::50] == (v[:, ::50] > 100)).mean()))'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    grew, right = map(float, done.stdout.split()[-2:])
    assert grew < 300 and right > .99, f'memory grew by {grew:.0f} MB'


def test_a_small_network_learns_balls_the_same_way_twice():
    d = balls(20)
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        learn = fit_volumes(d, unet3d(2, (8, 16)), Budget(42, checks=1), bs=2, lr=1e-2, ema=.8, device='cpu')
        runs.append(segment(learn, d.part('test'), 32, 16))
    table = measure_volume(runs[0], d.part('test'))
    assert (runs[0] == runs[1]).all() and means(table).loc['ball', 'dice'] > .7


# Real pairs

def test_real_hippocampus(tmp_path):
    if not hippocampus.is_dir(): pytest.skip(f'{hippocampus} is not there')
    for what in ('images', 'labels'):
        (tmp_path/what).mkdir()
        for p in sorted((hippocampus/what).iterdir())[:6]: (tmp_path/what/p.name).symlink_to(p)
    d = nifti_pairs(tmp_path, fractions=(.5, .2, .3))
    size = patch_size(d)
    assert all(s % 8 == 0 for s in size) and 1 < measure_volume(d.masks, d).groupby('patient').ml.sum().mean() < 6
    p = patches(d, size)
    assert p.masks.max() == 2 and len(p) == 6


def test_hippocampus_by_name_is_read_from_its_archive(tmp_path, monkeypatch):
    import nibabel as nib
    for i in range(5):
        x = np.random.default_rng(i).normal(size=(6, 7, 8)).astype(np.float32)
        for where, v in (('imagesTr', x), ('labelsTr', (x > 0) + (x > 1.).astype(np.uint8)), ('imagesTs', x)):
            (tmp_path/'T'/where).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(v.astype(np.float32), np.eye(4)), tmp_path/'T'/where/f'hippocampus_{i:03d}.nii.gz')
            (tmp_path/'T'/where/f'._hippocampus_{i:03d}.nii.gz').write_bytes(b'Mac')
    with tarfile.open(tmp_path/'Task04_Hippocampus.tar', 'w') as tar: tar.add(tmp_path/'T', 'Task04_Hippocampus')
    monkeypatch.setattr(Volumes, 'fetch', lambda name: tmp_path/'Task04_Hippocampus.tar')
    d = Volumes.hippocampus(fractions=(.4, .2, .4))
    assert len(d) == 5 and d.classes == ['background', 'anterior', 'posterior'] and d.volumes and (d.spacing == 1).all()
    assert len(Volumes.hippocampus()) == 5, 'the second time from what was unpacked'
