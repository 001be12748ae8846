"Generation: the game, the networks, and the numbers that judge them"
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch
from fastai.optimizer import Adam
from hypothesis import given, settings, strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch import nn

from medlearn.data.images import ImageSet
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import features,small_cnn
from medlearn.imaging.generation import (Clusters, Critic, Diffusion, Generator, GradientPenalty, LiveSamples, Noise, check_classes, closeness,
                                         frechet, gallery, generate, halvings, manifold, picture_data, pixel_gaussian, play, rarest, signed, train_diffusion, train_vae,
                                         train_wgan, two_toned, walk, wgan, with_class)
from medlearn.kit.cards import DataError

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


# The networks

@settings(max_examples=10, deadline=None)
@given(side=st.sampled_from([12, 16, 20, 28, 32]), c=st.sampled_from([1, 3]), k=st.integers(0, 3), n=st.integers(2, 5))
def test_generator_and_critic_fit_together(side, c, k, n):
    gen, critic = Generator(side, c, k, 6, 4), Critic(side, c, k, 4)
    z = torch.cat([torch.randn(n, 6), torch.eye(max(k, 1))[torch.arange(n) % max(k, 1)][:, :k]], 1)
    x = gen(z)
    assert x.shape == (n, c + k, side, side) and x[:, :c].abs().max() <= 1 and critic(x).shape == (n, 1)
    images = generate(gen, np.arange(n) % max(k, 1))
    assert images.shape == (n, side, side) + ((3,) if c == 3 else ()) and images.dtype == np.uint8
    assert torch.allclose(signed(images).movedim(1, -1), torch.tensor(images).view(n, side, side, c)/127.5 - 1)


@pytest.mark.parametrize('side', [1, 7, 8, 27, 50, 90])
def test_sides_that_cannot_be_halved(side):
    with pytest.raises(DataError, match=f'images of {side} pixels'): halvings(side)


def test_other_sizes_are_refused():
    with pytest.raises(DataError, match='32 × 32 pixels, but this critic was built for 16 × 16'): Critic(16)(torch.zeros(1, 1, 32, 32))
    data = squares()
    learn = SimpleNamespace(model=small_cnn(1, 2, widths=(8, 8)), dls=tensor_loaders(data, device='cpu'))
    assert features(learn, data.images[:5]).shape == (5, 8)
    with pytest.raises(DataError, match='was trained on'): features(learn, data.images[:, :12, :12])


def test_the_class_counts():
    torch.manual_seed(0)
    gen, critic = Generator(16, 1, 2, 4, 4), Critic(16, 1, 2, 4)
    a, b = (generate(gen, np.full(3, c)) for c in (0, 1))
    x = torch.randn(3, 1, 16, 16)
    s, t = (critic(with_class(x, torch.eye(2)[[c]*3])) for c in (0, 1))
    assert (a != b).any() and (s != t).all()
    with pytest.raises(DataError, match='class 2 is asked of a generator that knows 2'): generate(gen, [2])


def test_generate_leaves_no_trace():
    gen = Generator(16, width=4).train()
    before, state = weights(gen), torch.get_rng_state()
    stats = gen.net[2].running_mean.clone()
    a = generate(gen, np.zeros(5, int), seed=3)
    assert (a == generate(gen, np.zeros(5, int), seed=3)).all() and (a != generate(gen, np.zeros(5, int), seed=4)).any()
    assert gen.training and (weights(gen) == before).all() and (gen.net[2].running_mean == stats).all() and (torch.get_rng_state() == state).all()


def test_walk_keeps_its_length():
    a, b = torch.randn(2, 50)
    b = b*a.norm()/b.norm()
    w = walk(a, b, 9)
    assert torch.allclose(w[0], a, atol=1e-5) and torch.allclose(w[-1], b, atol=1e-5)
    assert torch.allclose(w.norm(dim=1), a.norm().expand(9), rtol=1e-4)


# The game

def test_collapse_between_the_groups_is_seen():
    "Always 0, and always one of the groups: both have lost a group; the real numbers have lost none"
    rng = np.random.default_rng(0)
    both = rng.choice([-2, 2], 1000) + .5*rng.normal(size=1000)
    assert rarest(np.zeros(9), (-2, 2)).mean() == 0 and rarest(np.full(9, -2), (-2, 2)).mean() == 0
    assert rarest(rng.normal(0, .3, 1000), (-2, 2)).mean() < .01 and .4 < rarest(both, (-2, 2)).mean() < .5


def test_play_finds_both_groups_and_collapses_when_told_to():
    torch.manual_seed(0)
    real = torch.where(torch.rand(2000, 1) < .5, -2., 2.) + .5*torch.randn(2000, 1)
    def player(i): return nn.Sequential(nn.Linear(i, 32), nn.LeakyReLU(.1), nn.Linear(32, 32), nn.LeakyReLU(.1), nn.Linear(32, 1))
    def smaller(**kw):
        torch.manual_seed(0)
        gen, disc = player(4), player(1)
        gen.latent = 4
        before = weights(gen)
        play(gen, disc, real, lr=2e-3, bs=64, **kw)
        x = gen(torch.randn(1000, 4)).detach()[:, 0].numpy()
        return rarest(x, (-2, 2)).mean(), (weights(gen) == before).all()
    assert smaller(steps=3, n_gen=0)[1] and not smaller(steps=1)[1]
    assert smaller(steps=300)[0] > .2 and smaller(steps=25, n_gen=20)[0] < .05


def test_penalty_of_a_known_slope():
    "A linear critic has the same slope everywhere"
    w = torch.randn(2, 8, 8)
    for norm in (1., 3.):
        critic = lambda x: (x[:, :2]*norm*w/w.norm()).flatten(1).sum(1)
        critic.c = 2
        cb = GradientPenalty()
        cb.learn = SimpleNamespace(model=SimpleNamespace(critic=critic))
        x = torch.randn(5, 2, 8, 8)
        assert np.isclose(float(cb.penalty(x, torch.randn_like(x))), (norm - 1)**2, atol=1e-5)


@pytest.mark.parametrize('mended', [True, False])
def test_whoever_is_frozen_stays(mended, monkeypatch):
    "With momentum a gradient of zero still moves the weights: the callback takes it away"
    if not mended: monkeypatch.delattr(GradientPenalty, 'before_step')
    torch.manual_seed(0)
    learn = wgan(squares().part('train'), 4, 4, bs=8)
    learn.opt_func, moved = partial(Adam, mom=.5, sqr_mom=.9, wd=0), []
    class Watch(type(learn.cbs[0]).__mro__[1]):
        order = 100
        def before_step(self):
            self.frozen = self.model.critic if self.gan_trainer.gen_mode else self.model.generator
            self.before = weights(self.frozen)
        def after_step(self): moved.append(bool((weights(self.frozen) != self.before).any()))
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(action='ignore'): learn.fit(1, 1e-3, cbs=Watch())
    assert len(moved) > 5 and any(moved) != mended


def trained(data, batches):
    torch.manual_seed(0)
    return generate(train_wgan(data, batches, lr=2e-3, latent=8, width=8, bs=32), np.arange(100) % 2)


def test_wgan_repeats():
    data = squares().part('train')
    assert (trained(data, 12) == trained(data, 12)).all()


def test_wgan_learns_its_classes():
    data = squares(400).part('train')
    made = trained(data, 150)
    upper, lower = (made[:, a:a+5, 5:9].mean((1, 2)) for a in (2, 8))
    assert ((upper > lower) == (np.arange(100) % 2 == 0)).mean() > .9
    torch.manual_seed(0)
    untrained = generate(Generator(16, 1, 2, 8, 8), np.arange(100) % 2)
    reduce = lambda x: x.reshape(len(x), 4, 4, 4, 4).mean((2, 4)).reshape(len(x), 16)
    assert frechet(reduce(data.images), reduce(made)) < frechet(reduce(data.images), reduce(untrained))/3


def test_live_samples_change_nothing_and_use_one_display(monkeypatch):
    import IPython, IPython.display
    data, calls, res = squares().part('train'), [], []
    handle = SimpleNamespace(update=lambda fig: calls.append('update'))
    def run(watch):
        torch.manual_seed(0)
        res.append(weights(train_wgan(data, 105, latent=2, width=2, bs=4, watch=watch)))
    run(None), run([0, 1])
    assert not calls
    monkeypatch.setattr('medlearn.imaging.generation.gallery', lambda *a: 'figure')
    monkeypatch.setattr(IPython, 'get_ipython', lambda: SimpleNamespace(kernel=1))
    monkeypatch.setattr(IPython.display, 'display', lambda fig, display_id: calls.append('display') or handle)
    run([0, 1])
    assert (res[0] == res[1]).all() and (res[0] == res[2]).all()
    assert calls.count('display') == 1 and calls.count('update') >= 1


def test_fewer_images_than_a_batch():
    gen = train_wgan(squares(24).part('train'), 3, latent=4, width=4, bs=64)
    assert generate(gen, [0, 1]).shape == (2, 16, 16)


def test_vae_learns_and_repeats():
    data, res = squares(200).part('train'), []
    for _ in range(2):
        torch.manual_seed(0)
        res.append(generate(train_vae(data, 60, 4, 8, bs=32), np.arange(60) % 2))
    assert (res[0] == res[1]).all()
    means = [res[0][c::2].astype(float).mean(0) for c in (0, 1)]
    real = [data.images[data.labels == c].astype(float).mean(0) for c in (0, 1)]
    assert abs(means[0] - real[0]).mean() < abs(means[0] - real[1]).mean() and abs(means[1] - real[1]).mean() < abs(means[1] - real[0]).mean()


def discs(n=600, side=16, seed=0):
    "Outlines whose class is told by their size, and not surely"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    r, at = rng.normal(2.5 + 1.5*y, .7), rng.uniform(6.5, 8.5, (n, 2))
    i, j = np.mgrid[:side, :side]
    x = np.hypot(i - at[:, 0, None, None], j - at[:, 1, None, None]) <= r[:, None, None]
    return ImageSet((255*x).astype(np.uint8), y, np.full(n, 'train'), ['small', 'large'], 'discs')


def test_vae_draws_the_class_that_is_asked_for():
    "The difference in size between the classes is drawn as well: an encoder that is not told the class takes it into the noise"
    data = discs()
    torch.manual_seed(0)
    made = generate(train_vae(data, 300, 8, 8, bs=32), np.arange(400) % 2)
    step = lambda x, y: np.subtract(*(x[y == c].astype(float).mean() for c in (1, 0)))
    assert step(made, np.arange(400) % 2) > .5*step(data.images, data.labels)


def test_outlines_are_told_from_grey_pictures():
    outlines = discs(20).images
    assert two_toned(signed(outlines)) and not two_toned(signed(90 + outlines//3)) and not two_toned(signed(squares(20).images))


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 30), c=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_with_the_true_velocity_noise_turns_into_the_image(steps, c, seed):
    torch.manual_seed(seed)
    goal, noise, net = torch.rand(2, c, 16, 16)*2 - 1, torch.randn(2, c, 16, 16), Diffusion(16, c, width=8, steps=steps)
    def true(x, angle, onehot):
        a = angle[:, None, None, None]
        assert torch.allclose(x, a.cos()*goal + a.sin()*noise, atol=1e-5)
        return a.cos()*noise - a.sin()*goal
    net.velocity = true
    assert torch.allclose(net(noise.flatten(1)), goal, atol=1e-5)


@pytest.mark.parametrize('side,c,k', [(16, 1, 0), (28, 3, 2), (64, 1, 2)])
def test_diffusion_of_any_side_is_the_same_alone_and_in_company(side, c, k):
    torch.manual_seed(0)
    net, y = Diffusion(side, c, k, width=8, steps=2).eval(), np.array([0, 1, 0])
    together = generate(net, y, bs=3)
    assert together.shape == (3, side, side) + (3,)*(c == 3) and abs(together.astype(int) - generate(net, y, bs=1)).max() <= 1


def diffused(batches):
    torch.manual_seed(0)
    return generate(train_diffusion(squares(200).part('train'), batches, 16, 8, 5e-3), np.arange(60) % 2)


def test_diffusion_repeats(): assert (diffused(5) == diffused(5)).all()


def test_diffusion_learns_its_classes():
    made, real = diffused(500), squares(200).part('train').images
    upper, lower = (made[:, a:a+5, 5:9].mean((1, 2)) for a in (2, 8))
    assert ((upper > lower) == (np.arange(60) % 2 == 0)).mean() > .9
    torch.manual_seed(0)
    untrained = generate(Diffusion(16, 1, 2, 16, 8), np.arange(60) % 2)
    reduce = lambda x: x.reshape(len(x), 4, 4, 4, 4).mean((2, 4)).reshape(len(x), 16)
    assert frechet(reduce(real), reduce(made)) < frechet(reduce(real), reduce(untrained))/3


@pytest.mark.parametrize('seed', [0, 1])
def test_the_best_velocity_draws_the_mean_in_one_step_and_images_in_many(seed):
    "Whatever the noise: where all is noise, the best guess is the mean of the class; a VAE draws another mean for each"
    torch.manual_seed(seed)
    known, net = torch.rand(2, 6, 1, 16, 16).round()*2 - 1, Diffusion(16, 1, 2, width=8, steps=1)
    def best(x, angle, onehot):
        cos, sin = (f(angle[0]) for f in (torch.cos, torch.sin))
        of = known[onehot.argmax(1)]
        near = -((x[:, None] - cos*of)**2).sum((2, 3, 4))/(2*sin**2)
        clean = (near.softmax(1)[..., None, None, None]*of).sum(1)
        return cos*(x - cos*clean)/sin - sin*clean
    net.velocity = best
    z = torch.cat([torch.randn(10, 256), torch.eye(2).repeat(5, 1)], 1)
    assert torch.allclose(net(z), known.mean(1).repeat(5, 1, 1, 1), atol=1e-4)
    net.steps = 60
    made = net(z)
    assert all(min((a - b).abs().max() for b in known[i % 2]) < .05 for i, a in enumerate(made))
    assert len({tuple(a.flatten().round().tolist()) for a in made}) > 2


def test_pixel_gaussian_has_the_means_of_its_classes():
    data = squares(200, channels=3).part('train')
    x = pixel_gaussian(data, np.repeat([0, 1], 300), parts=30)
    assert x.shape == (600, 16, 16, 3)
    for c in (0, 1): assert abs(x[300*c:300*(c+1)].mean(0) - data.images[data.labels == c].mean(0)).mean() < 4


# Data

def test_a_class_with_one_member_is_named():
    data = squares(40)
    data.labels[data.split == 'train'] = 0
    with pytest.raises(DataError, match="'class 1' has 0 training image"): check_classes(data)
    data.labels[np.flatnonzero(data.split == 'train')[3]] = 1
    with pytest.raises(DataError, match="'class 1' has 1 training image"): check_classes(data)
    assert check_classes(squares(40)).name == 'squares'


def saved(path, images, labels):
    np.savez(path, **{f'{s}_{k}': v for s in ('train', 'val', 'test') for k, v in dict(images=images, labels=labels).items()})
    return path


def test_volumes_are_refused_and_findings_become_one_class(tmp_path):
    z = np.zeros((6, 8, 16, 16), np.uint8)
    with pytest.raises(DataError, match='volumes'): picture_data(saved(tmp_path/'v.npz', z, np.arange(6) % 2))
    many = np.array([[0, 0, 0], [1, 0, 1], [0, 1, 1]]*2)
    data = picture_data(saved(tmp_path/'m.npz', z[:, 0], many))
    assert data.labels[:3].tolist() == [0, 1, 1] and data.classes == ['no finding', 'any finding']


def test_noise_carries_the_class_on_both_sides():
    x, y = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([2, 0, 1])
    z, real = Noise(5, 3)((x, y))
    assert z.shape == (3, 8) and real.shape == (3, 4, 4, 4) and (real[:, 0] == 1).all()
    assert (z[:, 5:].argmax(1) == y).all() and (real[:, 1:, 2, 2].argmax(1) == y).all() and Noise(5, 0)((x, y))[1].shape == (3, 1, 4, 4)


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
    untrained = generate(Generator(28), np.zeros(1000, int))
    near, far, further = (frechet(small(a), small(x)) for x in (b, made, untrained))
    assert max(near, far) < further/2 and manifold(small(b), small(a)).mean() > .5 > manifold(small(untrained), small(a)).mean()
