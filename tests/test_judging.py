"Judging pictures: the numbers, the pictures they are about, and the way from networks to bytes"
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch import nn

from medlearn.data.images import ImageSet
from medlearn.foundations.judging import (Clusters, Yardstick, check_members, closeness, feature_network, frechet, gallery, generate,
                                          halvings, manifold, nearest_two, over_draws, picture_data, pixel_gaussian, plot_precision_recall,
                                          sets_table, signed, with_class)
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import features, small_cnn
from medlearn.kit.cards import DataError
from medlearn.kit.plots import lacks

pneumonia = Path(__file__).parents[2]/'shared'/'data'/'pneumoniamnist'/'pneumoniamnist.npz'


def squares(n=120, side=16, k=2, channels=None, seed=0, **kw):
    "A bright square on dark noise; the class is its place"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.integers(0, 60, (n, side, side) + ((channels,) if channels else ()))
    for img, c, j in zip(x, y, rng.integers(0, 3, n)): img[2+c*6:7+c*6, 3+j:9+j] += 170
    split = np.array(['train', 'train', 'valid', 'test'])[np.arange(n)//k % 4]
    return ImageSet(x.astype(np.uint8), y, split, [f'class {i}' for i in range(k)], 'squares', **kw)


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


class Drawer(nn.Module):
    "A generator of one layer"
    def __init__(self, side=16, c=1, classes=0, latent=6):
        super().__init__()
        self.side, self.c, self.classes, self.latent = side, c, classes, latent
        self.layer, self.norm = nn.Linear(latent + classes, c*side**2), nn.BatchNorm2d(c)
    def forward(self, z): return self.norm(self.layer(z).view(-1, self.c, self.side, self.side)).tanh()


# The numbers

@settings(max_examples=20, deadline=None)
@given(d=st.integers(1, 12), n=st.integers(30, 80), m=st.integers(30, 80), seed=st.integers(0, 99))
def test_frechet_equals_the_formula_with_scipys_root(d, n, m, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(1, 2, size=(m, d))@rng.normal(size=(d, d))
    s1, s2 = (np.atleast_2d(np.cov(v.T)) for v in (a, b))
    plain = ((a.mean(0) - b.mean(0))**2).sum() + np.trace(s1 + s2 - 2*sqrtm(s1@s2).real)
    assert np.isclose(frechet(a, b), plain, rtol=1e-5, atol=1e-6) and np.isclose(frechet(a, b), frechet(b, a), atol=1e-6)


def test_frechet_equals_torchmetrics():
    fid = pytest.importorskip('torchmetrics.image.fid')
    flat = nn.Flatten()
    flat.num_features = 12
    theirs = fid.FrechetInceptionDistance(feature=flat, normalize=True).set_dtype(torch.float64)
    rng = np.random.default_rng(0)
    a, b = rng.random((90, 3, 2, 2)), rng.random((70, 3, 2, 2))**2
    theirs.update(torch.tensor(a), real=True)
    theirs.update(torch.tensor(b), real=False)
    assert np.isclose(frechet(a.reshape(90, -1), b.reshape(70, -1)), float(theirs.compute()), rtol=1e-4)


def test_frechet_of_known_changes():
    a = np.random.default_rng(0).normal(size=(50, 5))
    assert abs(frechet(a, a)) < 1e-9 and np.isclose(frechet(a, a + 2), 20)
    flat = np.c_[a, np.zeros(50), a[:, 0]]
    assert abs(frechet(flat, flat)) < 1e-6
    for x, y in ((a[:5], a), (a, a[:5])):
        with pytest.raises(DataError, match='5 images for a Fréchet distance in 5 dimensions: at least 6'): frechet(x, y)
    assert np.isfinite(frechet(a[:6], a))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(5, 40), m=st.integers(1, 40), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_manifold_equals_the_definition(n, m, k, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, 3)), 2*rng.normal(size=(m, 3))
    radius = NearestNeighbors(n_neighbors=k).fit(a).kneighbors()[0][:, -1]
    assert (manifold(a, b, k) == (cdist(b, a) <= radius).any(1)).all() and manifold(a, a, k).all()


def test_manifold_needs_neighbours():
    with pytest.raises(DataError, match='3 images for a manifold of 3'): manifold(np.zeros((3, 2)), np.zeros((9, 2)))


@pytest.mark.parametrize('grouped', [False, True])
@pytest.mark.parametrize('m', [30, 300])
def test_closeness_equals_the_definition(grouped, m):
    rng = np.random.default_rng(0)
    train, x = rng.integers(0, 256, (m, 6, 6)).astype(np.uint8), rng.integers(0, 256, (20, 6, 6)).astype(np.uint8)
    who = np.array([f'p{i//3}' for i in range(m)]) if grouped else np.arange(m)
    d = cdist(x.reshape(20, -1).astype(float), train.reshape(m, -1).astype(float))
    want = [min(r)/min(r[who != who[r.argmin()]]) for r in d]
    assert np.allclose(closeness(x, train, who if grouped else None), want, atol=1e-3)


def test_closeness_catches_copies():
    data = squares(400)
    train, held = data.part('train').images, data.part('valid').images
    noisy = (train + np.random.default_rng(1).normal(0, 3, train.shape)).clip(0, 255).astype(np.uint8)
    limit = np.quantile(closeness(held, train), .05)
    assert (closeness(train, train) < .02).all() and (closeness(noisy, train) <= limit).mean() > .95
    twice = np.concatenate([train, train])
    assert (closeness(train[:9], twice) < 1e-2).all() or np.isfinite(closeness(train[:9], twice)).all()
    with pytest.raises(DataError, match='resize'): closeness(train[:, :8], train)


def test_a_collapsed_set_fails_recall_and_clusters():
    "Many copies of one picture: precise, and nothing else"
    x = squares(400).images
    flat, one = x.reshape(400, -1)[:, ::7].astype(float), np.repeat(x[:1], 100, 0)
    f = one.reshape(100, -1)[:, ::7] + np.random.default_rng(0).normal(0, .1, (100, flat.shape[1]))
    c = Clusters(x, 8)
    assert manifold(flat, f).mean() == 1 and manifold(f, flat).mean() < .02
    assert c.reached(x) == 8 and c.reached(one) == 1
    with pytest.raises(DataError, match='at least 40'): Clusters(x[:39], 8)


def test_the_nearest_of_another_patient_is_never_the_nearest():
    rng = np.random.default_rng(0)
    train, who = rng.integers(0, 256, (60, 6, 6)).astype(np.uint8), np.repeat(np.arange(20), 3)
    least, other, near = nearest_two(train[:9], train, who)
    assert (near == np.arange(9)).all() and (least < 1e-2).all() and (other > .1).all()


@pytest.fixture(scope='module')
def yard():
    torch.manual_seed(0)
    data = squares(800, groups=np.array([f'p{i//2}' for i in range(800)]))
    data.split = np.array(['train', 'train', 'valid', 'test'])[np.arange(800)//2 % 4]
    return Yardstick(feature_network(data, 2), data, n=90, seed=1)


def test_the_halves_share_no_patient_and_the_sets_are_equally_large(yard):
    a, b = yard.halves
    assert not set(a.groups) & set(b.groups) and len(a) + len(b) == len(yard.train) == 400
    assert yard.n == 90 == len(yard.ref) == len(yard.some(b, 3)) and abs(len(a) - len(b)) <= 2
    with_few = Yardstick(yard.learn, squares(800), n=9999)
    assert with_few.n == 200


def test_known_sets_get_the_numbers_they_deserve(yard):
    other = yard.some(yard.halves[1], 0)
    real, same, one = yard.numbers(other.images, other.labels), yard.numbers(yard.ref.images), yard.numbers(np.repeat(other.images[:1], 90, 0))
    assert abs(same['Fréchet']) < 1e-6 and same['precision'] == same['recall'] == same['too close'] == 1 and np.isnan(same['class agreement'])
    assert one['recall'] < .1 and one['clusters'] == 1 and one['Fréchet'] > real['Fréchet'] > 0 and real['class agreement'] > .9
    assert yard.numbers(other.images, 1 - other.labels)['class agreement'] < .1
    held = squares(400, seed=9)
    assert yard.too_close(held.images).mean() < .2 and yard.too_close(yard.train.images).all()


def test_sets_side_by_side_and_drawn():
    draws = [dict({'Fréchet': f, 'precision': .5}, recall=.1*f) for f in (2., 4.)]
    table = sets_table(dict(a=draws, b=draws[:1]))
    assert table.loc['a'].tolist() == [3, 2, 4, .5, pytest.approx(.3)] and table.columns[:3].tolist() == ['Fréchet', 'low', 'high']
    assert over_draws(draws, 'Fréchet', 2) == (1.5, 1, 2)
    assert not lacks(plot_precision_recall(table))


# From networks to pictures, and back

@settings(max_examples=10, deadline=None)
@given(side=st.sampled_from([12, 16, 28]), c=st.sampled_from([1, 3]), k=st.integers(0, 3), n=st.integers(2, 5))
def test_pictures_come_back_as_bytes(side, c, k, n):
    images = generate(Drawer(side, c, k), np.arange(n) % max(k, 1))
    assert images.shape == (n, side, side) + ((3,) if c == 3 else ()) and images.dtype == np.uint8
    assert torch.allclose(signed(images).movedim(1, -1), torch.tensor(images).view(n, side, side, c)/127.5 - 1)


def test_a_class_beyond_those_known_is_refused():
    with pytest.raises(DataError, match='class 2 is asked of a generator that knows 2'): generate(Drawer(classes=2), [2])


def test_generate_leaves_no_trace():
    gen = Drawer().train()
    before, state = weights(gen), torch.get_rng_state()
    stats = gen.norm.running_mean.clone()
    a = generate(gen, np.zeros(5, int), seed=3)
    assert (a == generate(gen, np.zeros(5, int), seed=3)).all() and (a != generate(gen, np.zeros(5, int), seed=4)).any()
    assert gen.training and (weights(gen) == before).all() and (gen.norm.running_mean == stats).all() and (torch.get_rng_state() == state).all()


@pytest.mark.parametrize('side', [1, 7, 8, 27, 50, 90])
def test_sides_that_cannot_be_halved(side):
    with pytest.raises(DataError, match=f'images of {side} pixels'): halvings(side)


def test_the_class_travels_as_channels():
    x = with_class(torch.zeros(2, 1, 4, 4), torch.eye(3)[[2, 0]])
    assert x.shape == (2, 4, 4, 4) and (x[0, 3] == 1).all() and (x[1, 1] == 1).all() and x.sum() == 32


def test_other_sizes_are_refused():
    data = squares()
    learn = SimpleNamespace(model=small_cnn(1, 2, widths=(8, 8)), dls=tensor_loaders(data, device='cpu'))
    assert features(learn, data.images[:5]).shape == (5, 8)
    with pytest.raises(DataError, match='was trained on'): features(learn, data.images[:, :12, :12])


def test_pixel_gaussian_has_the_means_of_its_classes():
    data = squares(200, channels=3).part('train')
    x = pixel_gaussian(data, np.repeat([0, 1], 300), parts=30)
    assert x.shape == (600, 16, 16, 3)
    for c in (0, 1): assert abs(x[300*c:300*(c+1)].mean(0) - data.images[data.labels == c].mean(0)).mean() < 4


# Data

def test_a_class_with_one_member_is_named():
    data = squares(40)
    data.labels[data.split == 'train'] = 0
    with pytest.raises(DataError, match="'class 1' has 0 training image"): check_members(data)
    data.labels[np.flatnonzero(data.split == 'train')[3]] = 1
    with pytest.raises(DataError, match="'class 1' has 1 training image"): check_members(data)
    assert check_members(squares(40)).name == 'squares'


def saved(path, images, labels):
    np.savez(path, **{f'{s}_{k}': v for s in ('train', 'val', 'test') for k, v in dict(images=images, labels=labels).items()})
    return path


def test_volumes_are_refused_and_findings_become_one_class(tmp_path):
    z = np.zeros((6, 8, 16, 16), np.uint8)
    with pytest.raises(DataError, match='volumes'): picture_data(saved(tmp_path/'v.npz', z, np.arange(6) % 2))
    many = np.array([[0, 0, 0], [1, 0, 1], [0, 1, 1]]*2)
    data = picture_data(saved(tmp_path/'m.npz', z[:, 0], many))
    assert data.labels[:3].tolist() == [0, 1, 1] and data.classes == ['no finding', 'any finding']


def test_pictures_are_made_smaller_and_training_alone_is_thinned(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    file = saved(tmp_path/'m.npz', x, np.arange(40) % 2)
    data = picture_data(file, largest=16)
    assert data.images.shape == (120, 14, 14) and abs(data.images[0, 0, 0] - x[0, :2, :2].mean()) <= .5
    few = picture_data(file, most=10)
    assert (few.split == 'train').sum() == 10 and (few.split == 'test').sum() == 40 and few.images.shape[1] == 28
    assert (picture_data(file, most=10, seed=1).images[:10] != few.images[:10]).any()


def test_gallery_names_its_rows():
    fig = gallery({'generated: a': np.zeros((3, 8, 8), np.uint8), 'real': np.zeros((2, 8, 8, 3), np.uint8)}, 'what to see')
    assert [ax.get_ylabel() for ax in fig.axes] == ['generated: a', 'real'] and fig.get_suptitle() == 'generated and real'


@pytest.mark.skipif(not pneumonia.exists(), reason='../shared/data/pneumoniamnist is not there')
def test_real_chests_are_nearer_to_each_other_than_to_noise():
    "A Gaussian may be as near as real images are: in pixels it has their mean and covariance by construction"
    train = picture_data(pneumonia).part('train')
    a, b, made = train.images[:1000], train.images[1000:2000], pixel_gaussian(train, train.labels[:1000])
    small = lambda x: x.reshape(len(x), 7, 4, 7, 4).mean((2, 4)).reshape(len(x), 49)
    torch.manual_seed(0)
    untrained = generate(Drawer(28), np.zeros(1000, int))
    near, far, further = (frechet(small(a), small(x)) for x in (b, made, untrained))
    assert max(near, far) < further/2 and manifold(small(b), small(a)).mean() > .5 > manifold(small(untrained), small(a)).mean()
