"Follow-up: rigid motions, registration, growth by subtraction, categories"
import math

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from medlearn.imaging.followup import (MotionNet, Turned, category, changes, longest_diameter, motion_error, register, residual, rigid,
                                       volume_ratio, warp)
from medlearn.kit.cards import DataError


# Motion

motions = st.lists(st.floats(-80, 80), min_size=6, max_size=6).map(lambda v: torch.tensor([v], dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(motions, motions)
def test_motions_against_scipy(v, w):
    M, N = rigid(v), rigid(w)
    R = Rotation.from_euler('xyz', v[0, :3].numpy(), degrees=True)
    assert np.allclose(M[0, :3, :3], R.as_matrix()) and np.allclose(M[0, :3, 3], v[0, 3:])
    left = residual(M, N.inverse(), torch.tensor([[5., 0, -3]])).iloc[0]
    both = (M @ N.inverse())[0].numpy()
    assert left.degrees == pytest.approx(math.degrees((Rotation.from_matrix(both[:3, :3])).magnitude()), abs=1e-4)
    p = np.array([5., 0, -3])
    assert left.mm == pytest.approx(np.linalg.norm(both[:3, :3]@p + both[:3, 3] - p), abs=1e-6)
    assert residual(M, M.inverse()).to_numpy().max() < 1e-5 and float(motion_error(v.float(), rigid(v.float()))) < 1e-4


def scans(n=3, side=16, seed=0):
    "Smooth random volumes"
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.randn(n, 1, 5, 5, 5, generator=g), (side,)*3, mode='trilinear')


def test_warp_shifts_by_whole_voxels():
    x = scans()
    y = warp(x, rigid(torch.tensor([[0., 0, 0, 4, 0, -2]]*3)), 2.)
    assert torch.allclose(y[:, :, 1:, :, :-2], x[:, :, :-1, :, 2:], atol=1e-5)


def test_registration_undoes_a_known_motion_and_none_does_not():
    x = scans(side=24, seed=1)
    v = torch.tensor([[8., -6, 5, 3, -2, 1], [0, 0, 0, 0, 0, 0], [-5, 9, 0, -3, 3, 2]])
    y = warp(x, rigid(v), 2.)
    found, again = (register(x, y, 2., steps=60) for _ in range(2))
    left, none = residual(rigid(v), rigid(found)), residual(rigid(v), torch.eye(4).repeat(3, 1, 1))
    assert torch.equal(found, again)
    assert left.mm.mean() < none.mm.mean()/2 and left.degrees.mean() < none.degrees.mean()/2, left
    assert residual(rigid(v), rigid(-2*found)).mm.mean() > none.mm.mean()/2, 'a wrong motion must not pass'
    with pytest.raises(DataError, match='one grid'): register(x, y[..., :-1], 2.)


def test_cubes_laid_down_anew_keep_their_motion():
    x = scans(4)
    M = rigid(torch.tensor([[10., -20, 5, 2, 3, -4]]*4))
    y = warp(x, M.inverse(), 2.)
    batch, changed = torch.cat([x, y], 1), set()
    error = lambda b, T: float(((warp(b[:, 1:], T, 2.) - b[:, :1])**2).mean())
    cb = Turned()
    for k in range(12):
        torch.manual_seed(k)
        class learn: training, xb, yb = True, (batch,), (M,)
        learn.x, learn.y = batch, M
        cb.learn = learn
        Turned.before_batch(cb)
        changed.add(round(float(learn.xb[0][0, 0, 0, 0, 0]), 5))
        assert error(learn.xb[0], learn.yb[0]) == pytest.approx(error(batch, M), rel=1e-3)
        assert torch.allclose(torch.linalg.det(learn.yb[0]), torch.ones(4), atol=1e-4)
    assert len(changed) > 3


def test_motion_net_begins_small_and_takes_pairs():
    torch.manual_seed(0)
    v = MotionNet(16)(torch.randn(3, 2, 16, 16, 16))
    assert v.shape == (3, 6) and v.abs().max() < 30


# Follow-up

def ball(r, side=24, mm=1., seed=0):
    a = (torch.arange(side) + .5 - side/2)*mm
    d = (a[:, None, None]**2 + a[:, None]**2 + a**2).sqrt()
    return (.5 - (d - r)/mm).clamp(0, 1)[None]


@pytest.mark.parametrize('growth', [.5, 1, 1.7])
def test_growth_by_subtraction(growth):
    a, b = ball(6.), ball(6*growth**(1/3))
    wall = torch.zeros_like(a)
    wall[..., :2] = 1
    assert volume_ratio((a + wall)[:, None], (b + wall)[:, None], a)[0] == pytest.approx(growth, rel=.04)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_longest_diameter_against_all_pairs_of_corners(seed):
    m = np.random.default_rng(seed).random((7, 9)) < .4
    m[3, 4] = True
    corners = np.concatenate([np.argwhere(m) + [a, b] for a in (0, 1) for b in (0, 1)])
    assert longest_diameter(m, .7, 720) == pytest.approx(.7*pdist(corners).max(), rel=1e-3)
    assert longest_diameter(m & False) == 0


def test_categories_at_their_limits():
    assert category([-.31, -.3, -.29, 0, .19, .2, .5]).tolist() == ['response']*2 + ['stable']*3 + ['progression']*2


def test_changes_and_the_wrong_patient():
    a = pd.DataFrame(dict(patient=['A', 'B', 'C'], diameter_mm=[10., 20, 30], volume_mm3=[1., 2, 4]))
    b = a.assign(diameter_mm=[12., 10, 30])
    assert changes(a, b).diameter_mm.round(6).tolist() == [.2, -.5, 0] and (changes(a, b).volume_mm3 == 0).all()
    with pytest.raises(DataError, match='row 1: before is of patient B, after of patient X'): changes(a, b.assign(patient=['A', 'X', 'C']))
    with pytest.raises(DataError, match='3 lesions before and 2 after'): changes(a, b[:2])
    with pytest.raises(DataError, match='row 2, patient C: volume_mm3 is 4.0 before and 0.0'): changes(a, b.assign(volume_mm3=[1., 2, 0]))
