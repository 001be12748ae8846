"The pieces that the classification chapter exports"
import numpy as np
import pytest
import torch
from fastai.learner import Learner
from medlearn.data.images import ImageSet
from medlearn.foundations.augmentation import Augment
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import fit,predict
from medlearn.foundations.evaluation import auroc, Judge
from medlearn.foundations.budget import Budget
from medlearn.imaging.classification import (accuracy, baselines, brier_gain, classic_cnn, harmless, known_as, largest_losses,
                                             ready_made, regression, score_table, shrunk, pixel_summaries, temperature, tempered, youden)
from medlearn.kit.cards import DataError


def squares(n=240, k=2, side=28, channels=None, multilabel=False, seed=0):
    "A square whose brightness is the class: easy, and quick to learn"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.integers(0, 40, (n, side, side) + ((channels,) if channels else ()), dtype=np.uint8)
    x[:, 8:20, 8:20] += (y*(200//k)).astype(np.uint8).reshape(-1, *[1]*(x.ndim - 1))
    labels = (y[:, None] == np.arange(k)).astype(int) if multilabel else y
    split = np.repeat(['train', 'valid', 'test'], [n//2, n//4, n - n//2 - n//4])
    return ImageSet(x, labels, split, [str(i) for i in range(k)], 'squares')


@pytest.mark.parametrize('kw', [dict(), dict(k=4), dict(channels=3), dict(k=3, multilabel=True)])
def test_a_network_learns_what_is_plain_to_see(kw):
    data = squares(**kw)
    torch.manual_seed(0)
    dls = tensor_loaders(data, bs=16)
    learn = fit(data, dls, classic_cnn(kw.get('channels') or 1, len(data.classes)), epochs=8)
    p = predict(learn, data.part('test').images)
    truth = data.part('test').labels
    assert p.shape == (60, len(data.classes)) and p.dtype == np.float32
    assert ((p > .5) == truth).mean() > .9 if data.multilabel else (p.argmax(1) == truth).mean() > .9
    if not data.multilabel: np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)


def test_one_seed_one_result():
    data = squares()
    def once():
        torch.manual_seed(3)
        dls = tensor_loaders(data, bs=16, augment=Augment(rotate=20, crop=.1, flip=.5, light=.2))
        return predict(fit(data, dls, classic_cnn(1, 2), 1), data.images)
    np.testing.assert_array_equal(once(), once())


@pytest.mark.parametrize('arch', ['resnet18', 'vgg11_bn', 'alexnet'])
def test_ready_made_networks_train(arch):
    data = squares(24)
    learn = ready_made(data, arch, budget=Budget(1))
    assert isinstance(learn, Learner) and predict(learn, data.images).shape == (24, 2)


def test_pretrained_weights_come_from_the_cache_or_say_how(tmp_path, monkeypatch):
    import torchvision
    data = squares(24)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    monkeypatch.setattr('urllib.request._opener', None) # the next opener reads the proxies, and is forgotten afterwards
    for scheme in ('http', 'https'): monkeypatch.setenv(f'{scheme}_proxy', 'http://127.0.0.1:9')
    with pytest.raises(DataError, match='pretrained=False'): ready_made(data, 'resnet18', pretrained=True)
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit('/', 1)[-1]
    weights = torchvision.models.resnet18().state_dict()
    (tmp_path/'checkpoints').mkdir(exist_ok=True)
    torch.save(weights, tmp_path/'checkpoints'/name)
    learn = ready_made(data, 'resnet18', pretrained=True, budget=Budget(1), lr=1e-6)
    got = learn.model.state_dict()
    key = next(k for k in got if k.endswith('4.0.conv1.weight'))
    torch.testing.assert_close(got[key].cpu(), weights['layer1.0.conv1.weight'], atol=1e-3, rtol=0)


def test_an_unknown_architecture_names_the_known_ones():
    with pytest.raises(ValueError, match='vgg11_bn'): ready_made(squares(24), 'resnet81')


@pytest.mark.parametrize('kw', [dict(k=3), dict(k=3, channels=3), dict(k=3, multilabel=True)])
def test_baselines_see_brightness(kw):
    data = squares(**kw)
    for x in (shrunk(data.images), pixel_summaries(data.images)):
        p, y = regression(data, x)['test'], data.part('test').labels
        assert x.dtype == np.float32 and np.isfinite(x).all() and p.shape == (60, 3)
        assert (p.argmax(1) == (y.argmax(1) if y.ndim == 2 else y)).mean() > .9


def test_a_baseline_is_chosen_among_classes_that_are_there():
    "Forty classes, of which the sample of training and the validation split lack some: no NaN among which max chooses"
    rng, k = np.random.default_rng(0), 40
    y = np.r_[np.arange(k), rng.integers(0, k - 5, 560)]
    x = rng.normal(y[:, None]*np.ones(4), 2).astype(np.float32)
    split = np.repeat(['train', 'valid', 'test'], [400, 100, 100])
    data = ImageSet(np.zeros((600, 2, 2), np.uint8), y, split, [str(i) for i in range(k)], 'many')
    p = regression(data, x, n=200)
    assert all(np.isfinite(v).all() and v.shape == (100, k) for v in p.values())
    close = abs(p['test'].argmax(1) - y[500:])
    assert np.median(close) < 5


def test_probabilities_are_brought_to_the_shares_of_the_classes():
    rng = np.random.default_rng(0)
    y = (rng.random(4000) < .1).astype(int)
    z = rng.normal(2*y - 1, 1) # balanced, its log odds are 2z
    balanced = 1/(1 + np.exp(-6*z)) # three times too sure
    p = np.c_[1 - balanced, balanced]
    shares = np.array([.9, .1])
    t = temperature(p, y, shares)
    q = tempered(p, shares, t)
    assert t == pytest.approx(3, rel=.2) and q[:, 1].mean() == pytest.approx(.1, abs=.015)
    assert auroc(y == 1, q[:, 1])[0] == pytest.approx(auroc(y == 1, balanced)[0], abs=1e-4)
    data = ImageSet(np.zeros((4000, 2, 2), np.uint8), y, np.repeat('test', 4000), ['no', 'yes'], 'some')
    judge = Judge(data, 100)
    value, low, high = brier_gain(judge, q, shares)
    assert high < 0 and value == pytest.approx(((q[:, 1] - y)**2).mean() - ((.1 - y)**2).mean(), abs=1e-6)
    both = np.c_[p[:, 1], p[:, 1]]
    assert temperature(both, np.c_[y, y]) > 1 and tempered(both, None, 1.) == pytest.approx(both, abs=1e-6)


def test_models_beside_each_other():
    from sklearn.metrics import accuracy_score, roc_auc_score
    data = squares(400).part('test')
    rng, judge = np.random.default_rng(0), Judge(data, 200)
    p = np.clip(data.labels*.2 + rng.random(100)*.8, 0, 1)
    p, plain = np.c_[1 - p, p], rng.random(100)
    table = score_table(judge, dict(plain=plain, network=p), against='plain')
    row = table.loc['network']
    assert row.AUROC == pytest.approx(roc_auc_score(data.labels, p[:, 1])) and row['AUROC low'] < row.AUROC < row['AUROC high']
    assert row.accuracy == pytest.approx(accuracy_score(data.labels, p.argmax(1))) == accuracy(judge, p)[0]
    assert np.isnan(table.loc['plain', 'accuracy']) and table.loc['plain', 'gain'] == 0
    assert row.gain == pytest.approx(row.AUROC - roc_auc_score(data.labels, plain))
    assert list(table) == [c for w in ('AUROC', 'accuracy', 'gain') for c in (w, f'{w} low', f'{w} high')]


def test_youden_is_sensitivity_and_specificity_less_one():
    data = squares(400).part('test')
    judge, p = Judge(data, 200), np.random.default_rng(0).random(100)
    p = np.c_[1 - p, p]
    report = judge.report(p, .4)
    assert youden(judge, p, .4)[0] == pytest.approx(report.value.sensitivity + report.value.specificity - 1)
    perfect = np.eye(2)[data.labels]
    assert youden(judge, perfect, .5) == (1, 1, 1)


def test_the_largest_losses_come_first():
    data = squares(400, k=4).part('test')
    p = np.full((100, 4), .1) + .6*np.eye(4)[data.labels]
    p[7], p[3] = [.97, .01, .01, .01] if data.labels[7] else [.01, .97, .01, .01], .25
    assert list(largest_losses(Judge(data, 10), p, 2)) == [7, 3]


def test_sets_are_known_without_their_size_and_changed_as_they_may():
    import dataclasses
    named = lambda n: known_as(dataclasses.replace(squares(24), name=n))
    assert [named(n) for n in ('pathmnist_64', 'mine.npz', 'lidc_nodules')] == ['pathmnist', 'mine', 'lidc_nodules']
    assert harmless('organamnist').flip == 0 and harmless('pneumoniamnist').flip > 0 and harmless('lidc_nodules').zoom == 0
    base = baselines(squares())
    assert all('logistic' in name for name in base) and all(b['test'].shape == (60, 2) for b in base.values())
