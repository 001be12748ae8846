"Diffusion: with the true velocity noise becomes the picture; and a VAE that listens"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from medlearn.data.images import ImageSet
from medlearn.foundations.judging import frechet, generate, signed
from medlearn.imaging.diffusion import VAE, Diffusion, train_diffusion, train_vae, two_toned
from test_judging import squares


# The variational autoencoder

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


def step(x, y): return np.subtract(*(x[y == c].astype(float).mean() for c in (1, 0)))


@pytest.mark.parametrize('told', [True, False])
def test_vae_draws_the_class_that_is_asked_for_only_if_its_encoder_is_told(told):
    "The difference in size between the classes is drawn as well: an encoder that is not told the class takes it into the noise"
    data = discs()
    torch.manual_seed(0)
    made = generate(train_vae(data, 300, 8, 8, bs=32, told=told), np.arange(400) % 2)
    assert (step(made, np.arange(400) % 2) > .5*step(data.images, data.labels)) == told


@settings(max_examples=8, deadline=None)
@given(side=st.sampled_from([12, 16, 28]), c=st.sampled_from([1, 3]), k=st.integers(1, 3))
def test_encoder_and_decoder_fit_together(side, c, k):
    vae, yes = VAE(side, c, k, 5, 4), torch.eye(k)[[0, k - 1]]
    mu, logvar = vae.encode(torch.zeros(2, c, side, side), yes)
    x = vae(torch.cat([mu, yes], 1))
    assert mu.shape == logvar.shape == (2, 5) and x.shape == (2, c, side, side) and x.abs().max() <= 1


def test_outlines_are_told_from_grey_pictures():
    outlines = discs(20).images
    assert two_toned(signed(outlines)) and not two_toned(signed(90 + outlines//3)) and not two_toned(signed(squares(20).images))


# Diffusion

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


def test_its_losses_are_kept_and_fall():
    torch.manual_seed(0)
    losses = train_diffusion(squares(200).part('train'), 200, 8, 2, 5e-3).losses
    assert len(losses) == 200 and losses[-50:].mean() < losses[:20].mean()/2
