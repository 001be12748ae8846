"Retrieval: any set made grey and smaller, neighbours of other patients, rankings, contrastive learning, votes"
import math
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist

from medlearn.data.doors import images_from
from medlearn.data.images import ImageSet, plain, some_patients, without_rare
from medlearn.imaging.retrieval import NTXent, TwoViews, neighbours, retrieval, vote
from medlearn.kit.cards import DataError

pneumonia = Path(__file__).parents[2]/'shared'/'data'/'pneumoniamnist'/'pneumoniamnist.npz'


# Any set

def test_plain_takes_colour_volumes_and_many_findings():
    x = np.arange(2*6*6*3, dtype=np.uint8).reshape(2, 6, 6, 3)
    data = ImageSet(x, np.array([[0, 0], [1, 0]]), np.array(['train', 'test']), ['a', 'b'])
    res = plain(data)
    assert np.array_equal(res.images, np.rint(x.mean(-1))) and res.labels.tolist() == [0, 1] and len(res.classes) == 2
    v = np.random.default_rng(0).integers(0, 255, (2, 5, 6, 7), dtype=np.uint8)
    assert np.array_equal(plain(ImageSet(v, np.array([0, 1]), data.split, ['a', 'b'])).images, v[:, 2])


@settings(max_examples=20, deadline=None)
@given(people=st.integers(2, 9), n=st.integers(1, 40), seed=st.integers(0, 9), named=st.booleans())
def test_some_patients_come_whole(people, n, seed, named):
    who = np.random.default_rng(seed).integers(people, size=40)
    data = ImageSet(np.zeros((40, 4, 4), np.uint8), np.arange(40) % 2, np.repeat('train', 40), ['a', 'b'], groups=who if named else None)
    some = some_patients(data, n, seed)
    if not named: assert len(some) == n
    else:
        assert 0 < len(some) <= max(n, np.bincount(who).max())
        assert all((some.groups == p).sum() in (0, (who == p).sum()) for p in np.unique(who))
    assert len(some_patients(data, None)) == len(some_patients(data, 99)) == 40


def test_rare_classes_are_left_out_and_renumbered():
    split = np.array(['train']*9 + ['test']*3)
    labels = np.array([0]*4 + [1] + [2]*4 + [0, 1, 2])
    data = without_rare(ImageSet(np.zeros((12, 4, 4), np.uint8), labels, split, ['a', 'b', 'c']), 2)
    assert data.classes == ['a', 'c'] and data.labels.tolist() == [0]*4 + [1]*4 + [0, 1]
    assert without_rare(data, 2) is data


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


def test_two_views_stand_one_below_the_other():
    cb = TwoViews(lambda x: x + 1)
    class learn: xb, x = None, torch.arange(6.).view(3, 2)
    cb.learn = learn
    TwoViews.before_batch(cb)
    assert torch.equal(learn.xb[0], torch.cat([learn.x + 1]*2))


def test_a_real_set_is_searched():
    if not pneumonia.is_file(): pytest.skip(f'{pneumonia} is not there: real chest X-rays were not tested')
    data = some_patients(plain(images_from(str(pneumonia))), 120)
    x = data.images.reshape(len(data), -1)
    rank = neighbours(x, x, None, np.arange(len(x)), np.arange(len(x)))
    assert (rank[:, :-1] != np.arange(len(x))[:, None]).all() and retrieval(rank, data.labels, data.labels, 5, data.classes).ap.mean() > .5
