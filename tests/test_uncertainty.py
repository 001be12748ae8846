"Uncertainty, coverage and drift: measures against references, and what is refused"
import numpy as np, pytest, torch
from scipy.stats import ks_2samp
from sklearn.metrics import log_loss
from medlearn.data.masks import MaskSet
from medlearn.kit.cards import DataError
from medlearn.trust.coverage import crops_around, usual_place
from medlearn.trust.drift import kernel_width, ks_distance, mmd, told_apart_by
from medlearn.trust.uncertainty import disagreement, entropy, kept_error, mc_dropout, nll


def test_nll_is_scikit_learns():
    rng = np.random.default_rng(0)
    y, p = rng.random(200) < .4, rng.random(200)
    assert np.isclose(nll(y, p)[0], log_loss(y, p))
    w = rng.integers(0, 3, (2, 200)).astype(float)
    assert np.allclose(nll(y, p, w), [log_loss(y, p, sample_weight=v) for v in w])
    assert np.isfinite(nll(np.array([True]), np.array([0.]))[0])


def test_entropy_and_disagreement():
    assert np.isclose(entropy(np.array([.5, .5])), np.log(2)) and np.isclose(entropy(np.array([1., 0.])), 0)
    alike, apart = np.tile([[[.8, .2]]], (3, 1, 1)), np.array([[[1., 0.]], [[0., 1.]]])
    assert np.isclose(disagreement(alike), 0) and np.isclose(disagreement(apart), np.log(2))
    with pytest.raises(DataError, match='two members or more'): disagreement(alike[0])


def test_kept_error_by_hand():
    wrong, unsure = np.array([0, 1, 0, 1]), np.array([.1, .2, .3, .4])
    assert np.allclose([kept_error(wrong, unsure, keep=k)[0] for k in (.25, .5, .75, 1)], [0, .5, 1/3, .5])
    assert np.isclose(kept_error(wrong, unsure, np.array([[1, 0, 1, 2.]]), .5)[0], 0)
    with pytest.raises(ValueError, match='share'): kept_error(wrong, unsure, keep=0)


def learner(drop):
    from fastai.learner import Learner
    from torch import nn
    from medlearn.data.images import ImageSet
    from medlearn.foundations.loading import tensor_loaders
    from medlearn.foundations.training import small_cnn
    rng = np.random.default_rng(0)
    split = np.repeat(['train', 'valid', 'test'], 20)
    data = ImageSet(rng.integers(0, 255, (60, 16, 16)).astype(np.uint8), np.arange(60) % 2, split, ['a', 'b'], 'made', np.arange(60))
    torch.manual_seed(0)
    return Learner(tensor_loaders(data, 8), small_cnn(1, 2, widths=(8, 8), drop=drop), loss_func=nn.CrossEntropyLoss()), data


def test_dropout_is_left_on_and_switched_off_again():
    from medlearn.foundations.training import predict
    learn, data = learner(.5)
    p = mc_dropout(learn, data.images[:6], 8, seed=1)
    assert p.shape == (8, 6, 2) and p.std(0).max() > 0 and np.allclose(p.sum(-1), 1, atol=1e-5)
    assert (p == mc_dropout(learn, data.images[:6], 8, seed=1)).all()
    assert (predict(learn, data.images[:6], False) == predict(learn, data.images[:6], False)).all()
    assert not any(m.training for m in learn.model.modules())
    with pytest.raises(DataError, match='at least 2'): mc_dropout(learn, data.images[:6], 1)
    with pytest.raises(DataError, match='no dropout layer'): mc_dropout(learner(0)[0], data.images[:6])


def test_ks_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 9, 40), rng.integers(0, 12, 55)
        assert np.isclose(ks_distance(a, b), ks_2samp(a, b).statistic)


def test_mmd_is_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 3)), rng.normal(size=(9, 3)) + 1
    k = lambda x, y: np.exp(-((x - y)**2).sum()/(2*1.5**2))
    xx = np.mean([k(a[i], a[j]) for i in range(12) for j in range(12) if i != j])
    yy = np.mean([k(b[i], b[j]) for i in range(9) for j in range(9) if i != j])
    xy = np.mean([k(x, y) for x in a for y in b])
    assert np.isclose(mmd(a, b, 1.5), xx + yy - 2*xy)
    from scipy.spatial.distance import pdist
    assert np.isclose(kernel_width(a), np.median(pdist(a)))


def test_statistics_know_equal_from_apart():
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(150, 4)), rng.normal(size=(60, 4))) for _ in range(40)]
    assert abs(np.mean([mmd(a, b) for a, b in draws])) < .004
    assert abs(np.mean([told_apart_by(a, b) for a, b in draws]) - .5) < .03
    assert np.mean([told_apart_by(a, b + 1) for a, b in draws[:5]]) > .85 and mmd(draws[0][0], draws[0][1] + 1) > .05


@pytest.mark.parametrize('f', [ks_distance, mmd, told_apart_by])
def test_months_that_cannot_be_compared(f):
    a = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(DataError, match='same columns'): f(a, a[:, :2])
    with pytest.raises(DataError, match='at least'): f(a, a[:4])
    with pytest.raises(DataError, match='no finite number'): f(a, np.where(a > 1, np.nan, a))


def mask_set(boxes, n=3):
    images = np.arange(n*40*40).reshape(n, 40, 40).astype(np.uint8)
    return MaskSet(images, (images > 100).astype(np.uint8), ['other', 'lesion'], np.array(['train', 'valid', 'test'][:n]), 'made', np.arange(n).astype(str), boxes=boxes,
                   labels=[np.ones(len(b), int) for b in boxes])


def test_crops_are_where_the_box_is():
    data = mask_set([np.array([[10., 12, 14, 16]]), np.zeros((0, 4)), np.array([[36., 36, 40, 40]])])
    crops = crops_around(data, 8)
    assert crops.images.shape == (2, 8, 8) and list(crops.split) == ['train', 'test']
    assert (crops.images[0] == data.images[0, 10:18, 8:16]).all() and (crops.images[1] == data.images[2, 32:, 32:]).all()
    assert (crops.masks[0] == data.masks[0, 10:18, 8:16]).all()
    with pytest.raises(DataError, match='take smaller'): crops_around(data, 64)
    with pytest.raises(DataError, match='no picture has a box'): crops_around(mask_set([np.zeros((0, 4))]*3), 8)


def test_usual_place_is_a_share():
    m = np.zeros((4, 9, 9), bool)
    m[:, 3:6, 3:6] = True
    assert usual_place(m).max() <= 1 and usual_place(m).argmax() == 40
