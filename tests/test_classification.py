"The pieces that the classification chapter exports"
import numpy as np
import pytest
import torch
from fastai.learner import Learner
from medlearn.data.images import ImageSet
from medlearn.foundations.training import Augment, fit, predict, tensor_loaders
from medlearn.imaging.classification import classic_cnn, pixel_baseline, ready_made
from medlearn.kit.fetch import DataError


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
    learn = ready_made(data, arch, epochs=1)
    assert isinstance(learn, Learner) and predict(learn, data.images).shape == (24, 2)


def test_pretrained_weights_come_from_the_cache_or_say_how(tmp_path, monkeypatch):
    import torchvision
    data = squares(24)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    for scheme in ('http', 'https'): monkeypatch.setenv(f'{scheme}_proxy', 'http://127.0.0.1:9')
    with pytest.raises(DataError, match='pretrained=False'): ready_made(data, 'resnet18', pretrained=True)
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit('/', 1)[-1]
    weights = torchvision.models.resnet18().state_dict()
    (tmp_path/'checkpoints').mkdir(exist_ok=True)
    torch.save(weights, tmp_path/'checkpoints'/name)
    learn = ready_made(data, 'resnet18', pretrained=True, epochs=1, lr=1e-6)
    got = learn.model.state_dict()
    key = next(k for k in got if k.endswith('4.0.conv1.weight'))
    torch.testing.assert_close(got[key].cpu(), weights['layer1.0.conv1.weight'], atol=1e-3, rtol=0)


def test_an_unknown_architecture_names_the_known_ones():
    with pytest.raises(ValueError, match='vgg11_bn'): ready_made(squares(24), 'resnet81')


def test_baseline_sees_brightness():
    data = squares(k=3)
    assert (pixel_baseline(data)['test'].argmax(1) == data.part('test').labels).mean() > .9
