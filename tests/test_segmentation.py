"Segmentation: networks, baselines, the threshold chosen on the validation split, what is refused"
import json, math
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from medlearn.data.masks import MaskSet
from medlearn.foundations.augmentation import Augment
from medlearn.foundations.overlap import by_patient, mean_dice, score_masks
from medlearn.foundations.tiles import AnySize, Crops
from medlearn.foundations.training import EMA, one_cycle
from medlearn.imaging.segmentation import (best_cut, decide, mask_data, mask_learner, mask_network, otsu_masks,
                                           pixel_masks, pixel_models, predict_masks, UNet)
from medlearn.kit.cards import DataError

nuclei = Path(__file__).parent.parent.parent/'shared/data/dsb2018_nuclei/dsb2018_256_gray.npz'


def discs(n=24, side=32, seed=0, **kw):
    "Bright discs on noise"
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = np.stack([np.hypot(y - a, x - b) < r for a, b, r in zip(*rng.uniform(10, side-10, (2, n)), rng.uniform(3, 7, n))]).astype(np.uint8)
    images = (rng.normal(60, 15, masks.shape) + 70*masks).clip(0, 255).astype(np.uint8)
    split = np.array(['train']*(n*2//3) + ['valid']*(n//6) + ['test']*(n - n*2//3 - n//6))
    return MaskSet(images, masks, ['background', 'disc'], split, 'discs', **kw)


def cells(kind):
    nb = json.loads((Path(__file__).parent.parent/'nbs/imaging/03_segmentation.ipynb').read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == kind]


@settings(max_examples=15, deadline=None)
@given(depth=st.integers(1, 4), square=st.sampled_from([1, 2]), h=st.integers(1, 40), w=st.integers(1, 40), c=st.sampled_from([1, 3]))
def test_unet_of_any_depth_on_any_size(depth, square, h, w, c):
    net = UNet(c, 3, tuple(4*2**k for k in range(depth)), square)
    assert AnySize(net, net.multiple).eval()(torch.randn(2, c, h, w)).shape == (2, 3, h, w)


@pytest.mark.parametrize('arch', ['unet', 'resnet_unet', 'deeplab'])
def test_each_network_trains_with_the_loaders(arch):
    data = discs()
    kw = dict(net=dict(widths=(4, 8))) if arch == 'unet' else {}
    learn = mask_learner(data, arch, augment=Crops(32, Augment(flip=.5)), n=8, bs=4, device='cpu', **kw)
    before = [p.detach().clone() for p in learn.model.parameters()]
    one_cycle(learn, 1, 1e-3, cbs=[EMA(.9)])
    assert any((a != b).any() for a, b in zip(before, learn.model.parameters()))
    p = predict_masks(learn, data.images[:3])
    assert p.shape == (3, 2, 32, 32) and np.allclose(p.sum(1), 1, atol=1e-5)


def test_unet_learns_and_repeats():
    data, res = discs(96), []
    for _ in range(2):
        torch.manual_seed(0)
        learn = mask_learner(data, net=dict(widths=(8, 16)), bs=8, device='cpu')
        one_cycle(learn, 6, 1e-2, cbs=[EMA(.9)])
        res.append(predict_masks(learn, data.part('test').images))
    assert (res[0] == res[1]).all()
    test = data.part('test')
    assert mean_dice(by_patient(score_masks(res[0].argmax(1), test)))[0] > .85


def test_colour_images_and_several_classes():
    d = discs()
    masks = d.masks.copy()
    masks[:, :4] = 2
    d = MaskSet(np.repeat(d.images[..., None], 3, -1), masks, ['background', 'disc', 'top'], d.split, 'colour')
    learn = mask_learner(d, net=dict(widths=(4, 8)), bs=4, device='cpu')
    assert predict_masks(learn, d.images[:2]).shape == (2, 3, 32, 32)
    assert otsu_masks(d.part('test'), d.part('train')).shape == d.part('test').masks.shape
    for models in pixel_models().values(): assert pixel_masks(d, models, 50).shape == d.part('test').masks.shape


def test_the_cut_finds_the_prior_again():
    data = discs().part('valid')
    inside = np.where(data.masks > 0, .6, .3 + .25*np.random.default_rng(0).random(data.masks.shape))
    prob = np.stack([1-inside, inside], 1).astype(np.float32)
    assert (decide(prob) == prob.argmax(1)).all()
    for odds in (-1, 0, 3):
        z = np.log(inside/(1-inside)) + odds
        moved = np.stack([1/(1+np.exp(z)), 1/(1+np.exp(-z))], 1)
        cut = best_cut(moved, data)
        assert abs(cut - odds) <= .5 and mean_dice(by_patient(score_masks(decide(moved, cut), data)))[0] > mean_dice(by_patient(score_masks(decide(moved, cut - 1), data)))[0]
    with pytest.raises(DataError, match='no mask of the validation split'): best_cut(prob, replace(data, masks=data.masks*0))


def test_the_story_does_not_say_again_what_is_wrong():
    text = '\n'.join(cells('markdown'))
    assert 'a new solid nodule below 6 mm' not in text and 'cannot, on average, agree' not in text
    assert 'goal' not in text.lower() and 'What was tried' not in text


def test_boxes_and_volumes_are_sent_to_their_chapters(tmp_path):
    z = np.zeros((3, 4, 16, 16), np.uint8)
    np.savez(tmp_path/'v.npz', images=z, masks=z, split=np.array(['train', 'valid', 'test']))
    with pytest.raises(DataError, match='imaging/voxels'): mask_data(tmp_path/'v.npz')
    np.savez(tmp_path/'e.npz', images=z[:, 0], masks=z[:, 0], split=np.array(['train', 'valid', 'test']))
    with pytest.raises(DataError, match='no training mask'): mask_data(tmp_path/'e.npz')
    with pytest.raises(ValueError, match='resnet_unet'): mask_learner(discs(), 'vnet')
    with pytest.raises(ValueError, match='resnet_unet'): mask_network('vnet', 1, 2)


@pytest.mark.skipif(not nuclei.exists(), reason='../shared/data/dsb2018_nuclei is not there')
def test_threshold_on_real_nuclei():
    data = mask_data(nuclei, fractions=(.7, .1, .2))
    test = data.part('test')
    assert abs(len(test) - len(data)/5) <= 1
    assert mean_dice(by_patient(score_masks(otsu_masks(test, data.part('train')), test)))[0] > .7
