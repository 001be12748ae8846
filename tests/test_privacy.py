"Attacks held against references, noise against its formula, and wishes that cannot be met"
import math, warnings

import numpy as np, pandas as pd, pytest, torch
from scipy.stats import norm
from sklearn.metrics import roc_curve

from medlearn.kit.cards import DataError
from medlearn.trust.membership import anonymity, attack_report, coarsened, found_at, likelihood_ratio, random_halves, train_side_by_side, truth_logits
from medlearn.trust.private import (clipped, gaussian_delta, gaussian_epsilon, looped_gradients, noise_for, private_net, private_scores,
                                    spent_epsilon, train_private)


def test_halves():
    m = random_halves(41, 6)
    assert (m.sum(1) == 3).all() and (m[:, 0] ^ m[:, 1]).all()
    with pytest.raises(DataError, match='even number'): random_halves(40, 5)
    with pytest.raises(DataError, match='at least 20'): random_halves(10, 4)


def test_found_at_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, s = rng.random(400) < .4, rng.normal(size=400).round(1)
    s[y] += .8
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    for most in (.01, .05, .2): assert found_at(y, s, fpr=most)[0] == pytest.approx(tpr[fpr <= most].max())
    with pytest.raises(DataError, match='nothing to tell apart'): found_at(np.ones(5, bool), np.arange(5.))


def test_likelihood_ratio_is_that_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    m = random_halves(60, 8)
    c = rng.normal(size=(60, 8)) + 2*m
    s, j = likelihood_ratio(c, m), 3
    o = np.arange(8) != j
    mean = lambda mask: np.array([c[i, o][mask[i, o]].mean() for i in range(60)])
    a, b = mean(m), mean(~m)
    sd = lambda mask, at: np.sqrt(np.concatenate([(c[i, o][mask[i, o]] - at[i])**2 for i in range(60)]).mean())
    want = norm.logpdf(c[:, j], a, sd(m, a)) - norm.logpdf(c[:, j], b, sd(~m, b))
    np.testing.assert_allclose(s[:, j], want, rtol=1e-9)
    with pytest.raises(DataError, match='more models'): likelihood_ratio(c[:, :2], m[:, :2])
    with pytest.raises(DataError): attack_report(np.arange(12) < 6, {'loss': np.arange(12.)})


def test_networks_side_by_side_learn_their_own_members():
    rng = np.random.default_rng(0)
    x, y, m = rng.normal(size=(60, 40)).astype(np.float32), rng.random(60) < .5, random_halves(60, 4)
    sure = truth_logits(train_side_by_side(x, y, m, steps=40), x, y)
    assert ((sure > 0)[m]).mean() > .95 > .75 > ((sure > 0)[~m]).mean()
    with pytest.raises(DataError, match='one each'): train_side_by_side(x, y[:9], m)


def test_anonymity_counts():
    df = pd.DataFrame(dict(age=[50, 50, 51, np.nan, np.nan], male=[1, 1, 1, 0, 0]))
    assert anonymity(df, ['age', 'male']).tolist() == [2, 2, 1, 2, 2]
    assert len(coarsened(df.dropna(), dict(age=10, male=1), 3)) == 3 and not len(coarsened(df.dropna(), dict(age=10, male=1), 4))
    with pytest.raises(DataError, match="no column 'zip'"): anonymity(df, ['zip'])
    with pytest.raises(DataError, match='no band'): coarsened(df, dict(age=0))


def test_gaussian_mechanism_against_integration():
    for noise, eps in ((.7, 1.), (1., .5), (3., .2)):
        t = np.linspace(-12*noise, 12*noise + 1, 400_001)
        gap = norm.pdf(t, 1, noise) - math.exp(eps)*norm.pdf(t, 0, noise)
        assert gaussian_delta(eps, noise) == pytest.approx(np.trapezoid(gap.clip(0), t), abs=1e-6)
    assert gaussian_delta(gaussian_epsilon(1.3, 1e-5), 1.3) == pytest.approx(1e-5, rel=1e-3)
    assert gaussian_epsilon(0, 1e-5) == math.inf == spent_epsilon(0, 1e-5, 100, 10, 5) and gaussian_delta(3, 0) == 1
    for noise in (.5, 1, 4): assert spent_epsilon(noise, 1e-5, 1, 1, 1) >= gaussian_epsilon(noise, 1e-5)


def test_noise_meets_epsilon_or_says_what_can_be_met():
    noise = noise_for(1, 1e-5, 4000, 256, 50)
    assert .9 < spent_epsilon(noise, 1e-5, 4000, 256, 50) <= 1
    with pytest.raises(DataError, match='cannot be met') as e: noise_for(.01, 1e-5, 4000, 256, 50)
    can = float(str(e.value).split('epsilon ')[-1].split(' or more')[0])
    assert noise_for(can, 1e-5, 4000, 256, 50) <= 200
    for bad, said in ((0, 'above 0'), (-1, 'above 0'), (math.inf, 'finite'), (math.nan, 'finite')):
        with pytest.raises(DataError, match=said): noise_for(bad, 1e-5, 4000, 256, 50)
    with pytest.raises(DataError, match='below 1/n'): noise_for(1, .01, 4000, 256, 50)
    with pytest.raises(DataError, match='from 1 to 4000'): noise_for(1, 1e-5, 4000, 5000, 50)
    with pytest.raises(DataError, match='1 or more'): noise_for(1, 1e-5, 4000, 256, 0)


def test_one_clipped_step_is_the_one_computed_by_hand():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 5)).astype(np.float32), rng.random(32) < .5
    net = private_net(5, 8)
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    g = clipped(looped_gradients(net, torch.as_tensor(x), torch.as_tensor(y).float()), .3)
    assert (g.norm(dim=1) <= .3 + 1e-5).all()
    train_private(net, x, y, 0., clip=.3, batch=32, steps=1, lr=.5)
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(after, before - .5*g.mean(0), atol=1e-6, rtol=1e-4)


def test_batch_normalisation_is_refused_and_the_automatic_repair_says_nothing():
    from opacus.validators import ModuleValidator
    x, y = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32), np.arange(40) % 2 == 0
    with pytest.raises(DataError, match='GroupNorm'): train_private(private_net(5, norm='batch'), x, y, 1., batch=10, steps=2)
    fixed = ModuleValidator.fix(private_net(5, norm='batch')).eval()
    assert np.ptp(private_scores(fixed, x)) < 1e-4 < np.ptp(private_scores(private_net(5), x))
    with pytest.raises(DataError, match='noise is -1'): train_private(private_net(5), x, y, -1., batch=10)
    with pytest.raises(DataError, match='one each'): train_private(private_net(5), x, y[:3], None, batch=10)
    with pytest.raises(DataError, match='clipping norm'): clipped(torch.ones(2, 2), 0)
