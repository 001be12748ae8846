"Quality, retrieval, follow-up: faults of known strength, strangers, neighbours of other patients, rigid motions, categories"
import math
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist, mahalanobis as one_distance, pdist
from scipy.spatial.transform import Rotation
from scipy.stats import binomtest

from medlearn.data.doors import images_from
from medlearn.data.images import ImageSet
from medlearn.data.splits import check_leak
from medlearn.foundations.evaluation import auroc, mean_interval
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import features,fit,predict,small_cnn
from medlearn.imaging.quality import (FAULTS, MotionNet, NTXent, Turned, category, changes, cuts_for, degrade, faulty,
                                                    knn_distance, longest_diameter, mahalanobis, motion_error, neighbours, plain,
                                                    quality_cnn, register, residual, retrieval, rigid, sensitivity, share_interval, volume_ratio, vote, warp)
from medlearn.kit.cards import DataError

pneumonia = Path(__file__).parents[2]/'shared'/'data'/'pneumoniamnist'/'pneumoniamnist.npz'


def pictures(n=24, side=32, seed=0, patients=True):
    "Bright discs of two sizes on a dim, bent ground, off the centre"
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:side, :side]/side
    labels = np.arange(n) % 2
    discs = np.stack([np.hypot(y - a, x - b) < .12 + .1*k for (a, b), k in zip(rng.uniform(.35, .6, (n, 2)), labels)])
    images = (70 + 40*np.sin(5*x + 2*y) + 90*discs + rng.normal(0, 4, discs.shape)).clip(0, 255).astype(np.uint8)
    split = np.array(['train']*(n//2) + ['valid']*(n//4) + ['test']*(n - n//2 - n//4))
    groups = np.array([f'p{i}' for i in range(n)]) if patients else None
    return ImageSet(images, labels, split, ['small', 'large'], 'discs', groups)


# Faults

@pytest.mark.parametrize('kind', FAULTS)
def test_a_fault_grows_with_its_strength_and_is_the_same_again(kind):
    x = pictures(8).images
    assert np.array_equal(degrade(x, kind, 0), x)
    far = [abs(degrade(x, kind, s, seed=1).astype(float) - x).mean() for s in (.2, .5, 1)]
    assert 0 < far[0] < far[1] < far[2], far
    a, b = (degrade(x, kind, .5, seed=s) for s in (1, 1))
    assert a.dtype == np.uint8 and a.shape == x.shape and np.array_equal(a, b)


def test_faults_have_the_strength_they_name():
    x = np.full((200, 40, 40), 128, np.uint8)
    assert (degrade(x, 'noise', .5)/255 - 128/255).std() == pytest.approx(.125, rel=.05)
    assert set((degrade(x, 'clipped', .5) == 0).all(1).sum(1)) == {7}
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 256, 1))
    assert np.isin(degrade(ramp, 'window', 1), (0, 255)).mean() == pytest.approx(.7, abs=.02)
    from skimage.transform import rotate
    one = pictures(1, 40).images
    turned = degrade(one, 'rotation', .5)[0]
    ways = [np.rint(255*rotate(one[0]/255, a, mode='edge')) for a in (-30, 30)]
    assert min(abs(turned - w).max() for w in ways) <= 1


def test_metal_streaks_where_no_metal_is():
    x = np.zeros((1, 64, 64), np.uint8)
    x[:, 12:52, 12:52] = 100
    y = degrade(x, 'metal', 1, seed=2)[0].astype(float)
    assert (y == 255).sum() > 10 and abs(y - x[0])[y < 255].max() > 40


def test_degrade_refuses():
    x = pictures(2).images
    with pytest.raises(ValueError, match='the faults are'): degrade(x, 'blur', .5)
    with pytest.raises(ValueError, match='from 0 to 1'): degrade(x, 'noise', 1.5)
    with pytest.raises(DataError, match='grey'): degrade(x[..., None], 'noise', .5)


@settings(max_examples=10, deadline=None)
@given(copies=st.integers(1, 3), odds=st.floats(0, 1), weakest=st.floats(0.05, .9), patients=st.booleans())
def test_faulty_labels_are_its_strengths_and_copies_stay_together(copies, odds, weakest, patients):
    data = pictures(12, 16, patients=patients)
    res = faulty(data, copies, weakest, odds, kinds=('noise', 'clipped'))
    s = res.table.to_numpy()
    assert len(res) == 12*copies and np.array_equal(res.labels, s > 0) and ((s == 0) | (s >= weakest)).all()
    assert check_leak(res.split, res.groups) == 12
    none = ~res.labels.any(1)
    assert np.array_equal(res.images[none], np.repeat(data.images, copies, 0)[none])


def test_plain_takes_colour_volumes_and_many_findings():
    x = np.arange(2*6*6*3, dtype=np.uint8).reshape(2, 6, 6, 3)
    data = ImageSet(x, np.array([[0, 0], [1, 0]]), np.array(['train', 'test']), ['a', 'b'])
    res = plain(data)
    assert np.array_equal(res.images, np.rint(x.mean(-1))) and res.labels.tolist() == [0, 1] and len(res.classes) == 2
    v = np.random.default_rng(0).integers(0, 255, (2, 5, 6, 7), dtype=np.uint8)
    assert np.array_equal(plain(ImageSet(v, np.array([0, 1]), data.split, ['a', 'b'])).images, v[:, 2])


# Statistics

def test_intervals_against_scipy_and_refusals():
    for k, n in ((0, 9), (4, 9), (9, 9)):
        ci = binomtest(k, n).proportion_ci(.95, 'exact')
        assert share_interval(np.arange(n) < k) == pytest.approx((k/n, ci.low, ci.high))
    v = np.random.default_rng(0).normal(size=400)
    m, low, high = mean_interval(np.r_[v, np.nan], draws=2000)
    assert m == pytest.approx(v.mean()) and (high - low)/2 == pytest.approx(1.96*v.std()/20, rel=.1)
    twice = mean_interval(np.repeat(v, 4), np.repeat(np.arange(400), 4), 2000)
    assert twice[2] - twice[1] == pytest.approx(high - low, rel=.1), 'four pictures of one patient are one patient'
    for f in (mean_interval, share_interval):
        with pytest.raises(DataError, match='at least 5'): f(np.ones(20), np.repeat(np.arange(4), 5))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), specificity=st.sampled_from([.5, .8, .9]))
def test_cuts_leave_the_healthy_alone(seed, specificity):
    rng = np.random.default_rng(seed)
    y, p = rng.random((80, 2)) < .3, rng.random((80, 2))
    cuts = cuts_for(y, p, specificity)
    assert all((v[~c] <= t).mean() >= specificity - 1e-9 for c, v, t in zip(y.T, p.T, cuts))
    with pytest.raises(DataError, match='fault 1: 9 images'): cuts_for(np.c_[y[:20, 0]*0, np.arange(20) >= 9], p[:20], .9)


def test_sensitivity_of_those_who_see_and_those_who_do_not():
    data = pictures(16, 16, patients=False)
    says = lambda x: np.tile(abs(x - data.images.astype(float)).mean((1, 2)) > 1, (6, 1)).T.astype(float)
    seen, blind = (sensitivity(f, data, np.full(6, .5), (1.,)) for f in (says, lambda x: np.zeros((len(x), 6))))
    assert (seen.value == 1).all() and (seen.low > .7).all() and (blind.value == 0).all() and list(seen.kind) == list(FAULTS)


# Networks and strangers

@pytest.fixture(scope='module')
def trained():
    data = pictures(96, seed=1)
    def once():
        torch.manual_seed(0)
        return fit(data, tensor_loaders(data, bs=16, device='cpu'), small_cnn(1, 2, widths=(8, 16)), 4, 1e-2)
    return data, once(), once()


def test_detector_finds_clipped_pictures():
    data = faulty(pictures(90, 16), 2, .8, .5, kinds=('clipped',))
    torch.manual_seed(0)
    learn = fit(data, tensor_loaders(data, bs=16, device='cpu'), quality_cnn(1, widths=(8, 16)), 6, 1e-2)
    test = data.part('test')
    assert auroc(test.labels[:, 0].astype(bool), predict(learn, test.images)[:, 0])[0] > .9
    assert quality_cnn(3, 2)(torch.zeros(2, 2, 28, 31)).shape == (2, 3)


def test_features_are_what_the_last_layer_sees_and_repeat(trained):
    data, a, b = trained
    z, last = features(a, data.images[:10]), a.model[-1]
    p = (torch.as_tensor(z) @ last.weight.T + last.bias).softmax(1)
    assert np.allclose(p.detach().numpy(), predict(a, data.images[:10], mirror=False), atol=1e-5)
    assert np.array_equal(z, features(b, data.images[:10])), 'same seed, same network'
    with pytest.raises(DataError, match=r'20×32 pixels .* trained on 32×32'): features(a, data.images[:, :20])
    with pytest.raises(DataError, match='3 channels'): features(a, np.stack([data.images]*3, -1))


def test_strangers_are_far_and_a_broken_score_is_not(trained):
    data, learn, _ = trained
    known, usual = (features(learn, data.part(s).images) for s in ('train', 'test'))
    odd = features(learn, 255 - data.part('test').images)
    y = np.arange(2*len(usual)) >= len(usual)
    for score in (knn_distance, mahalanobis): assert auroc(y, score(known, np.r_[usual, odd]))[0] > .9
    assert auroc(y, np.random.default_rng(0).random(len(y)))[0] < .9 and auroc(y, np.zeros(len(y)))[0] == .5


def test_distances_against_references():
    from sklearn.covariance import LedoitWolf
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(7, 4))
    unit = lambda z: z/np.linalg.norm(z, axis=1, keepdims=True)
    assert np.allclose(knn_distance(a, b, 3), np.sort(cdist(unit(b), unit(a)), 1)[:, 2])
    fitted = LedoitWolf().fit(a)
    assert np.allclose(mahalanobis(a, b), [one_distance(v, fitted.location_, fitted.precision_) for v in b])
    with pytest.raises(DataError, match='at least 5'): knn_distance(a[:4], b)
    with pytest.raises(DataError, match='more images than features'): mahalanobis(a[:4], b)


# Retrieval

@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 30), m=st.integers(1, 8), people=st.integers(2, 6), seed=st.integers(0, 99))
def test_neighbours_against_brute_force_and_never_the_same_patient(n, m, people, seed):
    rng = np.random.default_rng(seed)
    a, q, ga, gq = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)), rng.integers(people, size=n), rng.integers(people, size=m)
    away = np.where(ga == gq[:, None], np.inf, cdist(q, a))
    full = neighbours(a, q, None, ga, gq)
    for row, d in zip(full, away):
        free = np.isfinite(d).sum()
        assert row[:free].tolist() == np.argsort(d)[:free].tolist() and (row[free:] == -1).all()
    own = max((ga == g).sum() for g in gq)
    if own < n: assert np.array_equal(neighbours(a, q, n - own, ga, gq), full[:, :n-own])
    with pytest.raises(DataError, match='at most'): neighbours(a, q, n - own + 1, ga, gq)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(6, 30), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_retrieval_against_sklearn_and_torchmetrics(n, k, seed):
    from sklearn.metrics import average_precision_score
    from torchmetrics.functional.retrieval import retrieval_precision, retrieval_recall
    rng = np.random.default_rng(seed)
    y, score = np.r_[0, 1, rng.integers(2, size=n-2)], rng.permutation(n)/n
    row = retrieval(np.argsort(-score)[None], y, [1], k).iloc[0]
    s, t = torch.tensor(score), torch.tensor(y == 1)
    assert row.ap == pytest.approx(average_precision_score(y == 1, score))
    assert row.precision == pytest.approx(float(retrieval_precision(s, t, top_k=k))) and row.recall == pytest.approx(float(retrieval_recall(s, t, top_k=k)))


def test_retrieval_refuses_a_class_with_one_member_by_name():
    x, who, y = np.arange(5.)[:, None], np.array(list('aabbc')), np.array([0, 0, 0, 0, 1])
    with pytest.raises(DataError, match="query 4: .* class 'rare'"): retrieval(neighbours(x, x, None, who, who), y, y, 1, ['usual', 'rare'])
    with pytest.raises(DataError, match='ask for fewer'): retrieval(neighbours(x[:4], x[:4], None, who[:4], who[:4]), y[:4], y[:4], 3)


def test_random_order_gains_nothing():
    rng = np.random.default_rng(0)
    y, q = rng.integers(2, size=200), rng.integers(2, size=60)
    a, b = (retrieval(rng.permuted(np.tile(np.arange(200), (60, 1)), axis=1), y, q).ap for _ in range(2))
    best = retrieval(np.argsort(y[None] != q[:, None], 1, kind='stable'), y, q).ap
    assert abs((a - b).mean()) < .02 < (best - b).mean() and (best == 1).all()


def test_contrastive_loss_against_its_formula():
    z, t = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), .3
    u = z/z.norm(dim=1, keepdim=True)
    terms = [-math.log(math.exp(u[i]@u[(i+4) % 8]/t)/sum(math.exp(u[i]@u[k]/t) for k in range(8) if k != i)) for i in range(8)]
    assert float(NTXent(t)(z)) == pytest.approx(np.mean(terms), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6))
def test_vote_is_a_most_frequent_label_and_the_nearest_of_those(rows):
    for row, v in zip(rows, vote(rows, 4)):
        top = max(map(row.count, row))
        assert v == next(c for c in row if row.count(c) == top)


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


def test_a_real_set_goes_through_both_halves():
    if not pneumonia.is_file(): pytest.skip(f'{pneumonia} is not there: real chest X-rays were not tested')
    data = plain(images_from(str(pneumonia)))
    data = data.take(np.random.default_rng(0).permutation(len(data))[:120])
    spoilt = faulty(data, 1)
    assert spoilt.labels.any(0).all() and spoilt.images.shape == data.images.shape
    learn = fit(spoilt, tensor_loaders(spoilt, bs=32, device='cpu'), quality_cnn(6, widths=(8, 8, 8)), 1)
    assert predict(learn, spoilt.images[:5]).shape == (5, 6)
    x = data.images.reshape(len(data), -1)
    rank = neighbours(x, x, None, np.arange(len(x)), np.arange(len(x)))
    assert (rank[:, :-1] != np.arange(len(x))[:, None]).all() and retrieval(rank, data.labels, data.labels, 5, data.classes).ap.mean() > .5
