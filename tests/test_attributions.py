"foundations/attributions: every method against a linear model, Shapley values by their definition, hand-made references, and bad input"
from itertools import combinations
from math import comb
from types import SimpleNamespace

import numpy as np, pytest, torch
from torch import nn

from medlearn.data.images import ImageSet
from medlearn.foundations.attributions import METHODS,box_score,explain,mask_score,rank_agreement,removal_curve
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.sequences import sequence_net
from medlearn.foundations.training import small_cnn
from medlearn.kit.cards import DataError

torch.manual_seed(0)
LINEAR,X,BASE = nn.Linear(5, 3),torch.randn(4, 5),torch.randn(5)
NET = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
CNN = small_cnn(1, 2, widths=(4, 8)).eval()
PIXELS = torch.randn(3, 1, 12, 12)


@pytest.mark.parametrize('method, tol', [('gradients x input', 1e-5), ('integrated gradients', 1e-5), ('occlusion', 1e-5),
                                         ('gradient shap', 1e-5), ('kernel shap', 1e-3), ('lime', 1e-2)])
def test_a_linear_model_is_explained_exactly(method, tol):
    "With one output, or several that each stand for themselves, the parts are w (x - b)"
    one = nn.Linear(5, 1)
    want = (one.weight*(X - BASE)).detach().numpy()
    assert np.allclose(explain(one, X, method, baseline=BASE), want, atol=tol)
    want = (LINEAR.weight[2]*(X - BASE)).detach().numpy()
    assert np.allclose(explain(LINEAR, X, method, target=2, baseline=BASE, several=True), want, atol=tol)


def test_of_two_classes_the_log_odds_are_explained():
    "What is added to both outputs changes no probability, and no attribution"
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = nn.Linear(5, 2)
        def forward(self, x, shift=100.): return self.two(x) + shift*x[:, :1]
    net = Shifted()
    want = ((net.two.weight[1] - net.two.weight[0])*X).detach().numpy()
    assert np.allclose(explain(net, X, target=1), want, atol=1e-3)


def test_kernel_shap_and_shapley_values_by_definition():
    case,d = X[0],5
    def z(s): return float(NET(torch.where(torch.tensor([j in s for j in range(d)]), case, 0.)[None]))
    want = [sum((z({*s, j}) - z(set(s)))/(d*comb(d - 1, k)) for k in range(d) for s in combinations([i for i in range(d) if i != j], k)) for j in range(d)]
    assert np.allclose(explain(NET, X[:1], 'kernel shap', samples=3000)[0], want, atol=.03)


def test_integrated_gradients_are_complete_and_equal_a_sum_by_hand():
    got = explain(NET, X, baseline=BASE, samples=200)
    rise = (NET(X) - NET(BASE[None])).detach().numpy()[:, 0]
    assert np.allclose(got.sum(1), rise, atol=1e-3)
    by_hand = 0
    for a in (np.arange(400) + .5)/400:
        z = (BASE + float(a)*(X - BASE)).requires_grad_()
        by_hand = by_hand + torch.autograd.grad(NET(z).sum(), z)[0]/400
    assert np.allclose(got, (by_hand*(X - BASE)).numpy(), atol=1e-3)


def test_grad_cam_by_hand():
    maps = {}
    CNN[0].register_forward_hook(lambda m, i, o: maps.update(a=o))
    out = CNN(PIXELS)
    g, = torch.autograd.grad((out[:, 1] - out[:, 0]).sum(), maps['a'])
    cam = (g.mean((2, 3), keepdim=True)*maps['a']).sum(1, keepdim=True).relu()
    want = nn.functional.interpolate(cam, (12, 12), mode='bilinear')
    assert np.allclose(explain(CNN, PIXELS, 'grad-cam', target=1, layer='0'), want.detach().numpy(), atol=1e-5)


def test_every_method_returns_what_it_was_given_and_leaves_the_model_alone():
    CNN.train()
    state,weights = torch.get_rng_state(),{k: v.clone() for k,v in CNN.state_dict().items()}
    for m in METHODS:
        if m not in ('tree shap', 'attention'): assert explain(CNN, PIXELS, m, samples=20).shape == PIXELS.shape, m
    assert CNN.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k,v in CNN.state_dict().items())
    assert np.array_equal(explain(CNN, PIXELS, 'lime', samples=20), explain(CNN, PIXELS, 'lime', samples=20))
    CNN.eval()


@pytest.mark.parametrize('shape', [(8, 8), (8, 8, 3), (6, 8, 8)], ids=['grey', 'colour', 'volume'])
def test_raw_pixels_of_a_learner(shape):
    "Pixels as `predict` takes them; parts add up between the mean training pixel and the picture; classes by name"
    rng,n = np.random.default_rng(0),12
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    data = ImageSet(images, np.arange(n)%2, np.repeat(['train', 'valid', 'test'], 4), ['calm', 'ill'], 'made up')
    dls = tensor_loaders(data, 4)
    from fastai.learner import Learner
    c = dls.train.x.shape[1]
    learn = Learner(dls, small_cnn(c, 2, 3 if len(shape) == 3 and shape[-1] != 3 else 2, widths=(4, 4)), loss_func=nn.CrossEntropyLoss())
    got = explain(learn, images[:3], target='ill', samples=200)
    assert got.shape == images[:3].shape
    net,look = learn.model.eval(),dls.valid.prepare
    from medlearn.foundations.loading import channels_first
    with torch.no_grad():
        z = net(look(channels_first(images[:3])))
        at = net(torch.zeros_like(look(channels_first(images[:3]))))
    rise = (z[:, 1] - z[:, 0] - at[:, 1] + at[:, 0]).numpy()
    assert np.allclose(got.reshape(3, -1).sum(1), rise, atol=.02)
    black = explain(learn, images[:3], target=1, baseline=0)
    assert not np.allclose(black, got)
    assert explain(learn, images[:2], 'occlusion', patch=4).shape == images[:2].shape
    assert removal_curve(learn, images[:3], got, target=1, steps=4).shape == (3, 5)


@pytest.mark.parametrize('kw', [dict(kind='gru'), dict(kind='transformer', pool='mean')])
def test_words_add_up_and_padding_gets_nothing(kw):
    net = sequence_net(20, 3, words=True, width=8, drop=0, **kw)
    x,n = torch.randint(2, 20, (3, 7)),torch.tensor([7, 5, 4])
    for row,k in zip(x, n): row[k:] = 1
    got = explain(net, x, more=(n,), target=2, samples=300)
    assert got.shape == x.shape and np.abs(got[1, 5:]).max() < 1e-6 and np.abs(got[2, 4:]).max() < 1e-6
    net.eval()
    def odds(z): return (z[:, 2] - z[:, :2].logsumexp(1)).detach().numpy()
    handle = net.first.register_forward_hook(lambda m, i, o: torch.zeros_like(o))
    empty = odds(net(x, n))
    handle.remove()
    assert np.allclose(got.sum(1), odds(net(x, n)) - empty, atol=.01)


def test_one_word_hidden_is_one_fall():
    net = sequence_net(20, 2, 'gru', words=True, width=8, drop=0).eval()
    x,n = torch.randint(2, 20, (1, 6)),torch.tensor([6])
    got = explain(net, x, 'occlusion', more=(n,), target=1, baseline=0)
    def odds(x): return float((z := net(x, n))[0, 1] - z[0, 0])
    for k in range(6):
        other = x.clone()
        other[0, k] = 0
        assert got[0, k] == pytest.approx(odds(x) - odds(other), abs=1e-5)


def test_attention_is_what_the_model_computed():
    net = sequence_net(20, 2, 'gru', words=True, width=8, pool='attend')
    x,n = torch.randint(2, 20, (2, 6)),torch.tensor([6, 3])
    got = explain(net, x, 'attention', more=(n,))
    assert np.allclose(got, net.pool.weights, atol=1e-6) and np.allclose(got.sum(1), 1, atol=1e-5)
    deep = sequence_net(20, 2, 'transformer', words=True, width=8, pool='mean')
    assert np.allclose(explain(deep, x, 'attention', more=(n,)).sum(1), 1, atol=1e-5)
    assert all(not b.keep for b in deep.body.blocks)


def test_a_case_whose_rows_are_its_parts():
    class Atoms(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Linear(4, 1)
        def forward(self, atoms, owner): return torch.zeros(2, 1).index_add(0, owner, self.w(atoms))[:1]
    net,atoms = Atoms(),torch.randn(6, 4)
    want = (atoms@net.w.weight.T)[:, 0].detach().numpy()
    for m in ('integrated gradients', 'occlusion', 'kernel shap'):
        got = explain(net, atoms, m, more=(torch.zeros(6, dtype=torch.long),), whole=True)
        assert got.shape == (6, 4) and np.allclose(got.sum(1), want, atol=1e-3), m
    curve = removal_curve(net, atoms, got, more=(torch.zeros(6, dtype=torch.long),), whole=True, steps=6)
    bias = float(net.w.bias)*6
    assert np.allclose(curve[0], [np.sort(want)[::-1][k:].sum() + bias for k in range(7)], atol=1e-3)


def test_trees_add_up_and_equal_shap():
    import shap
    from sklearn.ensemble import GradientBoostingClassifier,RandomForestClassifier
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    y = x[:, 0] + x[:, 1]*x[:, 2] > 0
    boosted = GradientBoostingClassifier(n_estimators=10, random_state=0).fit(x, y)
    got = explain(boosted, x[:5], 'tree shap', target=1)
    assert np.allclose(got.sum(1) + shap.TreeExplainer(boosted).expected_value, boosted.decision_function(x[:5]), atol=1e-4)
    assert np.allclose(explain(boosted, x[:5], 'tree shap', target=0), -got)
    forest = RandomForestClassifier(10, random_state=0).fit(x, y)
    got = explain(forest, x[:5], 'tree shap', target=1)
    base = shap.TreeExplainer(forest).expected_value[1]
    assert np.allclose(got.sum(1) + base, forest.predict_proba(x[:5])[:, 1], atol=1e-4)
    assert explain(forest, x[:5], 'occlusion', target=1).shape == (5, 4)


def test_removal_by_hand_and_put_back():
    one = nn.Linear(3, 1, bias=False)
    with torch.no_grad(): one.weight[:] = torch.tensor([[1., 2., 3.]])
    x = torch.ones(1, 3)
    worth = explain(one, x)
    assert np.allclose(removal_curve(one, x, worth, steps=3), [[6, 3, 1, 0]])
    assert np.allclose(removal_curve(one, x, worth, insert=True, steps=3), [[0, 3, 5, 6]])


def test_masks_and_boxes_become_one_number():
    net = nn.Conv2d(1, 2, 1)
    mask = np.zeros((12, 12), bool)
    mask[3:5, 3:5] = True
    got = explain(net, PIXELS, target=mask_score(mask))[:, 0]
    assert (got[:, ~mask] == 0).all() and (got[:, mask] != 0).all()
    each = [mask_score(np.roll(mask, k, 0)) for k in range(3)]
    assert (explain(net, PIXELS, target=each)[2, 0][mask] == 0)[:2].all()
    heat = torch.arange(16.).view(1, 1, 4, 4)
    assert float(box_score((4, 8, 12, 16))((heat, None))[0]) == 14 and float(box_score((8, 4, 12, 8))(heat)[0]) == 6


def test_rank_agreement_is_spearmans():
    from scipy.stats import spearmanr
    a,b = np.random.default_rng(0).normal(size=(2, 5, 4, 4))
    want = [spearmanr(p.ravel(), q.ravel())[0] for p,q in zip(a, b)]
    assert np.allclose(rank_agreement(a, b), want) and np.allclose(rank_agreement(a, np.exp(a)), 1)
    assert np.isnan(rank_agreement(a, np.zeros_like(a))).all()


@pytest.mark.parametrize('call, error, text', [
    (lambda: explain(NET, X, 'saliency'), ValueError, "method 'saliency': it is one of gradients"),
    (lambda: explain(NET, X, 'grad-cam'), ValueError, 'has no convolution'),
    (lambda: explain(CNN, PIXELS, 'grad-cam', layer='body.9'), ValueError, r"no layer 'body.9'. Its convolutions are 0.0, 1.0"),
    (lambda: explain(CNN, PIXELS, 'grad-cam', layer='5'), ValueError, 'has no maps'),
    (lambda: explain(LINEAR, X, target=3), ValueError, 'answers with 3 numbers: 0, 1, 2'),
    (lambda: explain(LINEAR, X, target=-1), ValueError, 'target -1'),
    (lambda: explain(LINEAR, X, target='ill'), ValueError, "target 'ill'"),
    (lambda: explain(LINEAR, X, target=[0, 1]), ValueError, '2 targets for 4 cases'),
    (lambda: explain(LINEAR, X, target=lambda z: z), ValueError, 'one number for each'),
    (lambda: explain(nn.Conv2d(1, 2, 1), PIXELS), ValueError, 'mask_score'),
    (lambda: explain(NET, X[:, :4]), DataError, r'cannot read x of shape \(4, 4\)'),
    (lambda: explain(NET, X[0]), DataError, r'x\[None\]'),
    (lambda: explain(NET, X[:0]), DataError, 'one at least'),
    (lambda: explain(NET, torch.where(X > 9, X, torch.nan)), DataError, 'case 0 holds NaN'),
    (lambda: explain(NET, X, baseline=torch.zeros(7)), DataError, r'baseline of shape \(7,\)'),
    (lambda: explain(NET, X.long()), DataError, 'cannot read|codes'),
    (lambda: explain(CNN, PIXELS, 'occlusion', patch=13), ValueError, 'patch=13: from 1 to 12'),
    (lambda: explain(NET, X, 'attention'), ValueError, 'no attention'),
    (lambda: explain(NET, X, 'guided backpropagation'), ValueError, 'nn.ReLU'),
    (lambda: explain(NET, X, 'tree shap'), ValueError, 'kernel shap takes any model'),
    (lambda: removal_curve(NET, X, np.zeros((4, 3))), ValueError, r'worth of shape \(4, 3\)'),
    (lambda: rank_agreement(np.zeros((2, 3)), np.zeros((2, 4))), ValueError, 'must be alike'),
    (lambda: mask_score(np.zeros((4, 4))), DataError, 'empty'),
    (lambda: box_score((90, 90, 99, 99))(torch.zeros(1, 1, 4, 4)), ValueError, 'outside a map'),
])
def test_bad_input_is_refused_with_advice(call, error, text):
    with pytest.raises(error, match=text): call()


def test_a_network_is_needed_where_slopes_are():
    from sklearn.linear_model import LogisticRegression
    model = LogisticRegression().fit(X.numpy(), [0, 1, 0, 1])
    with pytest.raises(ValueError, match='gradients needs a network: for LogisticRegression take tree shap'): explain(model, X.numpy(), 'gradients')
    with pytest.raises(ValueError, match='tree shap cannot read a LogisticRegression'): explain(model, X.numpy(), 'tree shap')
    got = explain(model, X.numpy(), 'kernel shap', target=1)
    assert np.allclose(got, model.coef_*X.numpy(), atol=1e-3)
