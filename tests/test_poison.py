"Robust rules against plain references, their refusals, and attacks that do what they say"
import numpy as np, pytest
from scipy.stats import trim_mean

from medlearn.foundations.federation import first_weights, local_training
from medlearn.kit.cards import DataError
from medlearn.trust.poison import (clipped_mean, combined_by, coordinate_median, flat_weights, krum, krum_scores, near_the_middle, picture_from, sent_instead,
                                   shaped_weights, trimmed_mean, with_backdoor, with_mark)

rng = np.random.default_rng(0)
u = rng.normal(size=(11, 30))


def test_rules_are_their_definitions():
    np.testing.assert_allclose(coordinate_median(u), [sorted(c)[5] for c in u.T])
    for f in (0, 1, 3): np.testing.assert_allclose(trimmed_mean(u, f), trim_mean(u, f/11 + 1e-9, axis=0))
    length = np.linalg.norm(u, axis=1)
    np.testing.assert_allclose(clipped_mean(u, .5), (u/length[:, None]*.5).mean(0))
    np.testing.assert_allclose(clipped_mean(u, 1e6), u.mean(0))
    assert np.linalg.norm(clipped_mean(np.vstack([u, 1e9*u[:1]]))) <= np.median(length)*1.2
    assert (clipped_mean(np.zeros((3, 4))) == 0).all()


def test_krum_is_its_definition():
    f, n = 3, len(u)
    want = [sum(sorted(((u[i] - u[j])**2).sum() for j in range(n) if j != i)[:n - f - 2]) for i in range(n)]
    np.testing.assert_allclose(krum_scores(u, f), want)
    assert (krum(u, f) == u[int(np.argmin(want))]).all()
    np.testing.assert_allclose(krum(u, f, 4), u[np.argsort(want)[:4]].mean(0))


def test_outliers_do_not_move_robust_rules():
    bad = np.vstack([u[:9], 1e6*np.ones((2, 30))])
    for rule in (coordinate_median, lambda v: trimmed_mean(v, 2), lambda v: krum(v, 2), lambda v: krum(v, 2, 9)):
        assert np.abs(rule(bad)).max() <= np.abs(u).max()
    assert np.abs(bad.mean(0)).min() > 1e5


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(DataError, match='4 updates and f=1.*5 updates at least'): krum_scores(u[:4], 1)
    with pytest.raises(DataError, match='m is 9: of 11 updates, 3 hostile, 1 to 8'): krum(u, 3, 9)
    with pytest.raises(DataError, match='5 at least'): trimmed_mean(u[:4], 2)
    with pytest.raises(DataError, match='f is -1'): trimmed_mean(u, -1)
    with pytest.raises(DataError, match='update 2 holds numbers that are NaN'): coordinate_median(np.where(np.arange(11)[:, None] == 2, np.nan, u))
    with pytest.raises(DataError, match='a row a hospital'): clipped_mean(u[0])
    with pytest.raises(DataError, match='a limit of -1'): clipped_mean(u, -1)


def test_weights_as_a_vector_and_back():
    net = first_weights(9, 4)
    back = shaped_weights(flat_weights(net), net)
    assert all((back[k] == v).all() and back[k].dtype == v.dtype for k, v in net.items())
    others = [shaped_weights(flat_weights(net) + k, net) for k in (1, 2, 9)]
    np.testing.assert_allclose(flat_weights(combined_by(coordinate_median)(net, others, None)) - flat_weights(net), 2, atol=1e-6)


def test_attacks():
    x, y = rng.random((40, 16)), (np.arange(40) % 2).astype(float)
    marked = with_mark(x)
    assert (marked.reshape(-1, 4, 4)[:, :2, :2] == 1).all() and (marked != x).sum() == 160 and x.max() < 1
    a, b = with_backdoor(x, y)
    assert len(a) == 60 and (b[40:] == 0).all() and (a[40:] == with_mark(x[y > 0])).all()
    with pytest.raises(DataError, match='square pictures'): with_mark(x[:, :15])
    net = first_weights(16, 4)
    new = [shaped_weights(flat_weights(net) + k, net) for k in (1, 1, 1)]
    sent = [flat_weights(n) - flat_weights(net) for n in sent_instead([1], -5)(0, net, new)]
    np.testing.assert_allclose([v.mean() for v in sent], [1, -5, 1], atol=1e-6)


def test_attack_made_for_krum_is_taken_by_krum():
    x, y, chosen = rng.random((40, 16)), (np.arange(40) % 2).astype(float), []
    net = first_weights(16, 4, dtype=np.float64)
    nets = [local_training(net, x, y, 3, .5, 8, seed=s) for s in range(9)]
    new = near_the_middle([0, 1], x, y, 5, 2, 0, chosen, lr=.5, bs=8)(0, net, nets)
    taken = krum(np.stack([flat_weights(n) for n in new]), 2)
    assert chosen == [True] and (taken == flat_weights(new[0])).all() and all((new[i]['w1'] == nets[i]['w1']).all() or np.allclose(new[i]['w1'], nets[i]['w1']) for i in range(2, 9))


def test_picture_is_read_from_one_step():
    x, y = rng.random((5, 16)), np.array([1., 0, 1, 0, 1])
    net = first_weights(16, 4, dtype=np.float64)
    for i in range(5): np.testing.assert_allclose(picture_from(net, local_training(net, x[i:i + 1], y[i:i + 1], 1)), x[i], atol=1e-9)
    assert (picture_from(net, net) == 0).all()
