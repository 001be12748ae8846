"Volumes in millimetres: spacing, cubes, patches, tiles, the judge and the viewer"
import io, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn

from medlearn.data.masks import MaskSet
from medlearn.data.volumes import nifti_pairs
from medlearn.data.outlines import lidc_nodules,Mask
from medlearn.imaging.segmentation import Padded,tiled
from medlearn.imaging.volumes import *
from medlearn.kit.cards import DataError

hippocampus = Path(__file__).parent.parent.parent/'shared'/'data'/'msd_hippocampus'


def ball(shape, radius, spacing=(1, 1, 1), centre=None):
    "Voxels within `radius` mm"
    at = np.indices(shape).T - (np.array(shape)/2 - .5 if centre is None else np.array(centre))
    return np.linalg.norm(at*spacing, axis=-1).T <= radius


def balls(n=12, side=16, spacing=2.):
    "Bright balls in noise, all splits"
    rng = np.random.default_rng(0)
    masks = np.stack([ball((side,)*3, 4.5, centre=rng.uniform(6, side-7, 3)) for _ in range(n)]).astype(np.uint8)
    images = (60 + 120*masks + rng.normal(0, 10, masks.shape)).clip(0, 255).astype(np.uint8)
    split = np.array(['train']*(n-6) + ['valid']*2 + ['test']*4)
    return MaskSet(images, masks, ['background', 'ball'], split, 'balls', np.array([f'P{i}' for i in range(n)]), np.full((n, 3), spacing))


# Spacing

@settings(max_examples=25, deadline=None)
@given(spacing=st.tuples(*[st.floats(.5, 4)]*3), to=st.floats(.7, 3))
def test_respace_keeps_the_extent_and_the_millilitres(spacing, to):
    shape = [max(4, round(40/s)) for s in spacing]
    m = ball(shape, 14, spacing).astype(np.uint8)
    res, mm = respace(m, spacing, to, labels=True)
    assert np.allclose(np.multiply(res.shape, mm), np.multiply(shape, spacing)) and set(np.unique(res)) <= {0, 1}
    assert res.sum()*mm.prod() == pytest.approx(m.sum()*np.prod(spacing), rel=.25)


def test_respace_interpolates_greys_and_not_labels():
    ramp = np.broadcast_to(np.arange(0, 200, 20, dtype=np.uint8), (4, 4, 10))
    up, mm = respace(ramp, (1, 1, 1), (1, 1, .5))
    assert up.shape == (4, 4, 20) and up.dtype == np.uint8 and len(np.unique(up)) > 10 and mm.tolist() == [1, 1, .5]
    assert set(np.unique(respace(ramp, (1, 1, 1), (1, 1, .5), labels=True)[0])) == set(np.unique(ramp))


@pytest.mark.parametrize('volume,spacing,words', [
    (np.zeros((4, 4, 4)), (0, 1, 1), 'above 0'), (np.zeros((4, 4, 4)), (1, 1), 'three lengths'),
    (np.zeros((4, 4, 4)), (np.nan, 1, 1), 'above 0'), (np.full((4, 4, 4), np.nan), (1, 1, 1), 'NaN'),
    (np.zeros((4, 4, 4, 3)), (1, 1, 1), 'one grey volume')])
def test_respace_refuses(volume, spacing, words):
    with pytest.raises(DataError, match=words): respace(volume, spacing, 1)


# Classification

@settings(max_examples=25, deadline=None)
@given(dz=st.floats(.5, 5), px=st.floats(.45, .98), radius=st.floats(3, 14))
def test_cube_holds_the_volume_at_the_centre(dz, px, radius):
    shape = [int(2*radius/s) + 3 for s in (dz, px, px)]
    voxels = ball(shape, radius, (dz, px, px)).astype(np.uint8)
    cube = to_cube(Mask(voxels, 100 + dz*np.arange(len(voxels)), (30, 40), (dz, px, px)), 24, 1.5)
    assert cube.sum()/255*1.5**3 == pytest.approx(voxels.sum()*dz*px*px, rel=.02)
    assert np.allclose([(cube.sum(tuple({0, 1, 2} - {i}))*np.arange(24)).sum()/cube.sum() for i in range(3)], 11.5, atol=.1)


def test_lidc_volumes_are_the_nodules_of_the_pictures():
    v, p = lidc_volumes(12, 3), lidc_nodules(size=8, mm=6)
    assert v.images.shape == (len(p), 12, 12, 12) and (v.split == p.split).all() and (v.labels == p.labels).all()
    fits = v.table.diameter_mm < 12
    held = v.images[fits].sum((1, 2, 3))/255*27
    assert np.corrcoef(held, v.table.volume_mm3[fits])[0, 1] > .99


def test_three_planes_are_the_middle_slices():
    x = np.random.default_rng(0).integers(0, 255, (2, 6, 6, 6), dtype=np.uint8)
    got = three_planes(x)
    assert all((got[..., i] == np.take(x, 3, i+1)).all() for i in range(3))
    assert three_planes(np.ones((1, 5, 9, 7), np.uint8)).shape == (1, 9, 9, 3)
    with pytest.raises(DataError, match='grey volumes'): three_planes(np.zeros((2, 28, 28, 3)))


def test_coronal_and_sagittal_slices_have_the_head_above():
    v = np.zeros((3, 4, 5)); v[-1] = 1
    assert slice_of(v, 'coronal')[0].all() and slice_of(v, 'sagittal')[0].all() and slice_of(v, 'axial', 2).all()


def test_limits_of_agreement():
    bias, low, high = agreement([1, 2, 3, 4], [2, 3, 4, 7])
    assert bias == 1.5 and high - bias == pytest.approx(1.96*1) and bias - low == pytest.approx(high - bias)
    with pytest.raises(DataError, match='two at least'): agreement([1], [1])
    assert 'bias' in ' '.join(t.get_text() for t in plot_bland_altman([1, 2, 3], [1, 2, 4]).axes[0].texts)


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
    table = measure(d.masks, d)
    assert (table.dice == 1).all() and (table.hd95_mm == 0).all()
    assert np.allclose(table.ml, d.masks.sum((1, 2, 3))*8/1000) and (table.ml == table.ml_reference).all()
    missed = measure(np.zeros_like(d.masks), d)
    assert (missed.dice == 0).all() and np.allclose(missed.hd95_mm, 32*3**.5) and (missed.ml == 0).all()
    moved = measure(np.roll(d.masks, 1, 1), d)
    assert (moved.hd95_mm == 2).all()
    with pytest.raises(DataError, match='the reference'): measure(d.masks[:, :4], d)
    with pytest.raises(DataError, match='no spacing'): measure(d.masks, replace(d, spacing=None))


def test_means_draw_patients():
    d = balls(8)
    pred = d.masks.copy(); pred[0] = 0
    one = means(measure(pred, d))
    assert one.loc['ball', 'dice'] == pytest.approx(7/8) and one.loc['ball', 'low'] < 7/8 < one.loc['ball', 'high'] <= 1
    same = means(measure(pred, replace(d, groups=np.repeat('P', 8))))
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
    assert AtHalf(Padded(Net(), 16))(torch.zeros(1, 1, 40, 56, 42)).shape == (1, 3, 40, 56, 42) and seen == [(32, 32, 32)]


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
from medlearn.imaging.segmentation import tiled
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
        learn = fit_volumes(d, unet3d(2, (8, 16)), epochs=6, bs=2, lr=1e-2, ema=.8, device='cpu')
        runs.append(segment(learn, d.part('test'), 32, 16))
    table = measure(runs[0], d.part('test'))
    assert (runs[0] == runs[1]).all() and means(table).loc['ball', 'dice'] > .7


# The viewer

def test_viewer_turns_pages():
    d = balls(8)
    box = slice_viewer(d.images[0], [d.masks[0]], (4, 1, 1), side=100)
    def png(): return bytes(box.picture.value)
    seen = [png()]
    assert seen[0].startswith(b'\x89PNG')
    box.slice.value = 2; seen.append(png())
    box.plane.value = 'coronal'; seen.append(png())
    box.window.value = (0, 100); seen.append(png())
    box.outlines.value = False; seen.append(png())
    assert len(set(seen)) == 5 and box.slice.max == 15
    assert Image.open(io.BytesIO(seen[2])).size == (25, 100), 'in millimetres: 64 high, 16 wide'
    with pytest.raises(DataError, match='alike'): slice_viewer(d.images[0], [d.masks[0, :4]])


def test_planes_are_drawn_in_millimetres():
    fig = show_planes(balls(8).images[0], balls(8).masks[0], (4, 1, 1))
    assert [tuple(a.get_images()[0].get_extent()) for a in fig.axes] == [(0, 16, 16, 0), (0, 16, 64, 0), (0, 16, 64, 0)]


# Real pairs

def test_real_hippocampus(tmp_path):
    if not hippocampus.is_dir(): pytest.skip(f'{hippocampus} is not there')
    for what in ('images', 'labels'):
        (tmp_path/what).mkdir()
        for p in sorted((hippocampus/what).iterdir())[:6]: (tmp_path/what/p.name).symlink_to(p)
    d = nifti_pairs(tmp_path, fractions=(.5, .2, .3))
    size = patch_size(d)
    assert all(s % 8 == 0 for s in size) and 1 < measure(d.masks, d).groupby('patient').ml.sum().mean() < 6
    p = patches(d, size)
    assert p.masks.max() == 2 and len(p) == 6
