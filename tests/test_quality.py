"Quality: faults of known strength, cuts, sensitivity, strangers"
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist, mahalanobis as one_distance
from scipy.stats import binomtest

from medlearn.data.doors import images_from
from medlearn.data.images import ImageSet,plain
from medlearn.data.splits import check_leak
from medlearn.foundations.evaluation import auroc, mean_interval
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import features,fit,predict,small_cnn
from medlearn.imaging.quality import FAULTS, cuts_for, degrade, faulty, knn_distance, mahalanobis, quality_cnn, sensitivity, share_interval
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


def test_a_real_set_is_spoilt_and_learnt():
    if not pneumonia.is_file(): pytest.skip(f'{pneumonia} is not there: real chest X-rays were not tested')
    data = plain(images_from(str(pneumonia)))
    data = data.take(np.random.default_rng(0).permutation(len(data))[:120])
    spoilt = faulty(data, 1)
    assert spoilt.labels.any(0).all() and spoilt.images.shape == data.images.shape
    learn = fit(spoilt, tensor_loaders(spoilt, bs=32, device='cpu'), quality_cnn(6, widths=(8, 8, 8)), 1)
    assert predict(learn, spoilt.images[:5]).shape == (5, 6)
