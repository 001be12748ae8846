"Generation: the game, the networks, and whoever is frozen"
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np, pytest, torch
from fastai.optimizer import Adam
from hypothesis import given, settings, strategies as st
from torch import nn

from medlearn.foundations.judging import frechet, generate, signed, with_class
from medlearn.imaging.generation import Critic, Generator, GradientPenalty, Noise, play, train_wgan, walk, wgan
from medlearn.kit.cards import DataError
from test_judging import squares, weights


def near(x, group, within=1): return (abs(np.asarray(x) - group) <= within).mean()


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


def test_another_size_than_the_critic_was_built_for_is_refused():
    with pytest.raises(DataError, match='32 × 32 pixels, but this critic was built for 16 × 16'): Critic(16)(torch.zeros(1, 1, 32, 32))


def test_the_class_counts():
    torch.manual_seed(0)
    gen, critic = Generator(16, 1, 2, 4, 4), Critic(16, 1, 2, 4)
    a, b = (generate(gen, np.full(3, c)) for c in (0, 1))
    x = torch.randn(3, 1, 16, 16)
    s, t = (critic(with_class(x, torch.eye(2)[[c]*3])) for c in (0, 1))
    assert (a != b).any() and (s != t).all()
    with pytest.raises(DataError, match='class 2 is asked of a generator that knows 2'): generate(gen, [2])


def test_walk_keeps_its_length():
    a, b = torch.randn(2, 50)
    b = b*a.norm()/b.norm()
    w = walk(a, b, 9)
    assert torch.allclose(w[0], a, atol=1e-5) and torch.allclose(w[-1], b, atol=1e-5)
    assert torch.allclose(w.norm(dim=1), a.norm().expand(9), rtol=1e-4)


# The game

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
        return min(near(x, -2), near(x, 2)), (weights(gen) == before).all()
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


def test_noise_carries_the_class_on_both_sides():
    x, y = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([2, 0, 1])
    z, real = Noise(5, 3)((x, y))
    assert z.shape == (3, 8) and real.shape == (3, 4, 4, 4) and (real[:, 0] == 1).all()
    assert (z[:, 5:].argmax(1) == y).all() and (real[:, 1:, 2, 2].argmax(1) == y).all() and Noise(5, 0)((x, y))[1].shape == (3, 1, 4, 4)
