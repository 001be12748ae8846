"Codes of profiles and their groups: held against scikit-learn, exact sums and planted truths"
from dataclasses import replace
from itertools import product

import numpy as np, pandas as pd, pytest, torch
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.neural_network import BernoulliRBM

from medlearn.data.profiles import labelled_profiles
from medlearn.foundations.budget import Budget
from medlearn.foundations.evaluation import resample
from medlearn.kit.cards import DataError
from medlearn.molecules import clusters as C, expression as E


def blobs(n=120, d=30, k=3, seed=0):
    "Profiles around k centres"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.normal(0, 3, (k, d))[y] + rng.normal(0, 1, (n, d)) + 20
    return labelled_profiles('blobs', pd.DataFrame(x, columns=[f'G{j}' for j in range(d)]), [f'c{v}' for v in y]).divided()


def test_the_machine_is_that_of_scikit_learn():
    torch.manual_seed(0)
    m = E.BoltzmannMachine(7, 4)
    with torch.no_grad():
        for p in m.parameters(): p.copy_(torch.randn(p.shape))
    v = (torch.rand(9, 7) > .5).float()
    ref = BernoulliRBM(4)
    ref.components_, ref.intercept_hidden_, ref.intercept_visible_ = m.W.detach().numpy().T, m.b.detach().numpy(), m.a.detach().numpy()
    assert np.allclose(m.hidden(v).detach(), ref.transform(v.numpy()), atol=1e-6)
    assert np.allclose(m.free_energy(v).detach(), ref._free_energy(v.numpy()), atol=1e-5)


def test_many_steps_of_dreaming_give_the_true_slope():
    "Contrastive divergence against the derivative of the exact log-likelihood"
    torch.manual_seed(1)
    m = E.BoltzmannMachine(4, 3)
    with torch.no_grad(): m.W.copy_(torch.randn(4, 3)*.7)
    v, every = torch.tensor([[1., 0, 1, 0], [0, 1, 1, 1]]), torch.tensor(list(product((0., 1), repeat=4)))
    loss = m.free_energy(v).mean() + torch.logsumexp(-m.free_energy(every), 0)
    true = torch.autograd.grad(loss, [m.W, m.a, m.b])
    with torch.no_grad(): m.contrast(v.repeat(15000, 1), steps=30, on_off=True)
    for p, t in zip((m.W, m.a, m.b), true): assert (p.grad - t).abs().max() < .05*t.abs().max() + .01


def test_a_stack_becomes_the_lower_layers():
    v = {s: torch.rand(20, 6) for s in ('train', 'valid', 'test')}
    machines, top = E.stack_machines(v, (5, 3), passes=2)
    net = E.belief_network(machines, 4)
    assert net(v['test']).shape == (20, 4) and torch.allclose(net[:4](v['test']), top['test'], atol=1e-6)
    again, _ = E.stack_machines(v, (5, 3), passes=2)
    assert torch.equal(machines[1].W, again[1].W)


@pytest.mark.parametrize('kind', [E.Autoencoder, E.RecurrentAutoencoder])
@pytest.mark.parametrize('d', [30, 31])
def test_autoencoders_learn_and_keep_the_shape(kind, d):
    data = blobs(d=d)
    scales = E.Scales(data.part('train'))
    x = {s: scales.centred(data.part(s)) for s in data.splits}
    torch.manual_seed(0)
    z, drawn, learn = E.fit_codes(kind(d, 2), x, Budget(150), 5e-3)
    w = resample(len(x['test']), 50)
    value, low, high = E.explained(x['test'], drawn, w)
    best = E.explained(x['test'], PCA(2).fit(x['train']).inverse_transform(PCA(2).fit(x['train']).transform(x['test'])), w)[0]
    assert z['test'].shape == (len(x['test']), 2) and low <= value <= high and .25 < value < best + .05


def test_share_of_variance():
    x, w = np.random.default_rng(0).normal(size=(30, 5)), resample(30, 40)
    assert E.explained(x, x, w)[0] == 1 and E.explained(x, 0*x, w)[0] == 0 and np.allclose(E.explained(x, x, w, x), 0)
    assert np.isclose(E.explained(x, x/2, w)[0], .75)


def test_scales_know_the_training_split_only_and_lead_back():
    data = blobs()
    data.x.loc[data.split == 'test'] += 100
    train = data.part('train')
    s = E.Scales(train)
    assert np.allclose(s.mean, train.x.mean(), atol=1e-4) and abs(float(s.centred(train).std()) - 1) < .01
    assert np.allclose(s.from_shares(s.shares(train)), s.centred(train), atol=1e-4)
    assert float(s.shares(data.part('test')).max()) == 1
    flat = replace(train, x=train.x.assign(G0=3.))
    assert np.isfinite(E.Scales(flat).shares(flat)).all()


def test_a_class_too_small_is_named():
    data = blobs()
    with pytest.raises(DataError, match='class c1 has 4 samples, at least 5'): E.check_classes(data.take(np.r_[np.flatnonzero(data.labels != 1), np.flatnonzero(data.labels == 1)[:4]]))
    assert E.check_classes(data) is data


def test_readout_finds_blobs_and_copes_with_a_class_that_training_lacks():
    data = blobs()
    z = {s: data.part(s).x.to_numpy() for s in data.splits}
    y = {s: data.part(s).labels for s in data.splits}
    assert (E.readout(z, y, 3).argmax(1) == y['test']).mean() > .9
    assert E.readout(z, y, 4).shape == (len(y['test']), 4)


def test_adjusted_rand_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for n in (20, 200):
        for k in (2, 5):
            a, b = rng.integers(0, k, n), rng.integers(0, 3, n)
            assert np.isclose(C.adjusted_rand(a, b)[0], adjusted_rand_score(a, b))
    a = rng.integers(0, 3, 50)
    assert C.adjusted_rand(a, 7 - a)[0] == 1 and C.adjusted_rand(0*a, 0*a)[0] == 1


def test_copies_of_a_row_do_not_count_as_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    w = resample(60, 3)
    for row, v in zip(w, C.adjusted_rand(a, b, w)):
        i = np.repeat(np.arange(60), row.astype(int))
        p, q = np.triu_indices(len(i), 1)
        keep = i[p] != i[q]
        one, other = (a[i[p]] == a[i[q]])[keep], (b[i[p]] == b[i[q]])[keep]
        chance = one.sum()*other.sum()/keep.sum()
        assert np.isclose(v, ((one & other).sum() - chance)/((one.sum() + other.sum())/2 - chance))
    assert abs(C.adjusted_rand(a, rng.permutation(a), resample(60, 400)).mean()) < .05


def test_leiden_finds_blobs_and_a_batch_is_planted_and_taken_away():
    data = blobs()
    x = data.x.to_numpy(float)
    g = C.leiden_groups(x, resolution=.5)
    assert adjusted_rand_score(data.labels, g) > .9 and (g == C.leiden_groups(x, resolution=.5)).all()
    second = np.arange(len(x)) % 2 == 1
    planted = C.plant_batch(x, second, strength=3)
    assert (planted[~second] == x[~second]).all() and np.ptp(planted[second] - x[second], 0).max() < 1e-9
    centred = C.centre_batches(planted, second.astype(int))
    assert np.allclose(centred[second].mean(0), centred[~second].mean(0)) and np.allclose(centred.mean(0), planted.mean(0))
    with pytest.raises(DataError, match='10 profiles have no 15 neighbours'): C.leiden_groups(x[:10])
    assert C.over_seeds([g, g, g]) == 1
