"Volumes in millimetres: spacing, cubes, planes, the viewer"
import io

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from medlearn.data.masks import MaskSet
from medlearn.data.volumes import show_planes,slice_of,slice_viewer
from medlearn.foundations.agreement import limits_of_agreement,plot_bland_altman
from medlearn.data.outlines import lidc_nodules,Mask
from medlearn.imaging.volumes import *
from medlearn.kit.cards import DataError


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
    bias, low, high = limits_of_agreement([1, 2, 3, 4], [2, 3, 4, 7])
    assert bias == 1.5 and high - bias == pytest.approx(1.96*1) and bias - low == pytest.approx(high - bias)
    with pytest.raises(DataError, match='two at least'): limits_of_agreement([1], [1])
    assert 'bias' in ' '.join(t.get_text() for t in plot_bland_altman([1, 2, 3], [1, 2, 4]).axes[0].texts)


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
