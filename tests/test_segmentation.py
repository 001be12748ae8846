"Segmentation: losses, networks, scores by patient, tiles that equal the whole, objects that touch"
import json, math, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from medlearn.data.masks import MaskSet
from medlearn.foundations.networks import dice_loss
from medlearn.foundations.augmentation import Augment
from medlearn.foundations.training import EMA,one_cycle
from medlearn.imaging.segmentation import (best_cut,by_patient,Crops,decide,found,mask_data,mask_learner,
                                           MaskLoss,matched,mean_dice,otsu_masks,Padded,pixel_masks,
                                           predict_masks,reach,score_masks,separate,show_outlines,tiled,UNet)
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


# Losses

def test_loss_knows_right_from_wrong():
    t = torch.randint(0, 3, (2, 8, 8))
    right = 30*nn.functional.one_hot(t, 3).movedim(-1, 1).float()
    assert MaskLoss()(right, t) < 1e-4 < .5 < MaskLoss()(-right, t)
    z = torch.randn(1, 1, 8, 8)
    assert torch.isclose(MaskLoss(ce=0)(torch.cat([0*z, z], 1), t[:1] % 2), dice_loss(z[:, 0], t[:1] % 2))


@pytest.mark.parametrize('empty', [True, False])
def test_loss_and_gradient_are_finite(empty):
    z = (torch.randn(2, 2, 8, 8)*50).requires_grad_()
    MaskLoss()(z, torch.zeros(2, 8, 8, dtype=torch.int64) if empty else torch.ones(2, 8, 8, dtype=torch.int64)).backward()
    assert z.grad.isfinite().all()


def test_loss_takes_volumes_and_refuses_other_shapes():
    assert MaskLoss()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.int64)).isfinite()
    with pytest.raises(ValueError, match='masks of shape'): MaskLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))


# Networks

@settings(max_examples=15, deadline=None)
@given(depth=st.integers(1, 4), fold=st.sampled_from([1, 2]), h=st.integers(1, 40), w=st.integers(1, 40), c=st.sampled_from([1, 3]))
def test_unet_of_any_depth_on_any_size(depth, fold, h, w, c):
    net = UNet(c, 3, tuple(4*2**k for k in range(depth)), fold)
    assert Padded(net, net.multiple).eval()(torch.randn(2, c, h, w)).shape == (2, 3, h, w)


@pytest.mark.parametrize('arch', ['unet', 'resnet_unet', 'deeplab'])
def test_each_network_trains_with_the_loaders(arch):
    data = discs()
    kw = dict(widths=(4, 8)) if arch == 'unet' else {}
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
        learn = mask_learner(data, widths=(8, 16), bs=8, device='cpu')
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
    learn = mask_learner(d, widths=(4, 8), bs=4, device='cpu')
    assert predict_masks(learn, d.images[:2]).shape == (2, 3, 32, 32)
    assert otsu_masks(d.part('test'), d.part('train')).shape == pixel_masks(d, 50).shape == d.part('test').masks.shape


def test_crops_keep_image_and_mask_together():
    x = torch.arange(2*20*24).view(2, 1, 20, 24)
    a, b = Crops(8)(x, x[:, 0])
    assert a.shape == (2, 1, 8, 8) and (a[:, 0] == b).all() and Crops(99)(x, x[:, 0])[0].shape == x.shape


def test_aimed_crops_hold_the_foreground():
    m = torch.zeros(50, 40, 40, dtype=torch.int64)
    m[:49, 0, 39] = 1
    crop = lambda aim: Crops(8, aim=aim)(m[:, None].float(), m)[1].flatten(1).any(1)
    assert crop(1).tolist() == [True]*49 + [False] and crop(0).sum() < 10


# Scores

def test_scores_in_millimetres_by_patient():
    masks = np.zeros((3, 20, 20), np.uint8)
    masks[:2, 5:10, 5:10] = 1
    data = MaskSet(masks*200, masks, ['other', 'disc'], np.array(['test']*3), 'squares', np.array(['a', 'a', 'b']), np.array([[2., .5]]*3))
    pred = np.roll(masks, 2, 1)
    pred[1] = 0
    s = score_masks(pred, data)
    assert s.dice.tolist() == [.6, 0, 1] and s.hd95[0] == 4 and s.hd95[1] == math.inf and s.hd95[2] == 0
    table = by_patient(s)
    assert table.loc['a', 'disc'] == 2*15/75 and math.isnan(table.loc['b', 'disc'])
    assert mean_dice(table)[0] == table.loc['a', 'disc'] and mean_dice(table, table) == (0, 0, 0)
    with pytest.raises(DataError, match='predictions of shape'): score_masks(pred[:2], data)
    with pytest.raises(DataError, match='nothing|anything'): mean_dice(table.loc[['b']])


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


def test_found_counts_objects():
    masks = np.zeros((1, 20, 20), np.uint8)
    masks[0, 2:6, 2:6], masks[0, 10:18, 10:18] = 1, 1
    pred = masks.copy()
    pred[0, :8, :8] = 0
    data = MaskSet(masks, masks, ['other', 'disc'], np.array(['test']), 'two', spacing=np.array([[2., 2.]]))
    f = found(pred, data)
    assert f.share.tolist() == [0, 1] and np.allclose(f.diameter, [2*2*math.sqrt(16/math.pi), 2*2*math.sqrt(64/math.pi)])
    assert f.moved.tolist() == [.75, .875]


def cells(kind):
    nb = json.loads((Path(__file__).parent.parent/'nbs/imaging/03_segmentation.ipynb').read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == kind]


def test_conventions_of_the_empty_mask_as_the_solution_says():
    "Slices without a nodule only: pooled pixels give 0 with an alarm, and 0 (for 0/0) without one"
    scope = {}
    exec(next(s for s in cells('code') if s.startswith('def conventions')).split('\npd.')[0], scope)
    masks = np.zeros((4, 8, 8), np.uint8)
    data, alarm = MaskSet(masks, masks, ['other', 'disc'], np.array(['test']*4), 'empty'), masks.copy()
    alarm[0, 2, 2] = 1
    quiet, one = (scope['conventions'](score_masks(m, data, distance=False)) for m in (masks, alarm))
    assert (quiet['both empty is 1'], one['both empty is 1']) == (1, .75)
    assert quiet['all pixels pooled'] == one['all pixels pooled'] == 0
    assert math.isnan(quiet['empty truth left out']) and math.isnan(one['empty truth left out'])


def test_the_story_does_not_say_again_what_is_wrong():
    text = '\n'.join(cells('markdown'))
    assert 'a new solid nodule below 6 mm' not in text and 'cannot, on average, agree' not in text
    assert 'goal' not in text.lower() and 'What was tried' not in text


def test_outlines_have_a_key_and_a_light_rim():
    data = discs()
    fig = show_outlines(data, np.roll(data.masks, 2, 1), [0, 1], zoom=2)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ['truth', 'prediction']
    lines = fig.axes[0].collections
    assert len(lines) == 2 and all(line.get_path_effects() for line in lines)


# Objects

def test_watershed_and_matching():
    y, x = np.mgrid[:48, :64]
    a, b = np.hypot(y - 24, x - 22) < 12, np.hypot(y - 24, x - 41) < 12
    truth = a + 2*(b & ~a)
    got = separate(a | b)
    assert got.max() == 2 and ((got > 0) == (a | b)).all() and matched(got, truth) == (2, 0, 0)
    assert separate(a*0).max() == 0 and matched(a*0, truth) == (0, 0, 2) and matched(truth, truth*0) == (0, 2, 0)


# Tiles

def stack(nd, k=2, pool=True):
    torch.manual_seed(0)
    conv, pools = ((nn.Conv2d, nn.AvgPool2d), (nn.Conv3d, nn.AvgPool3d))[nd-2]
    layers = [conv(1, 4, 3, padding=1), nn.ReLU(), pools(2), conv(4, 4, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), conv(4, k, 3, padding=1)]
    return nn.Sequential(*layers).eval()


@settings(max_examples=25, deadline=None)
@given(h=st.integers(2, 60), w=st.integers(2, 60), tile=st.sampled_from([20, 28, 36]))
def test_tiles_equal_the_whole(h, w, tile):
    f = Padded(stack(2), 2)
    x = torch.randn(1, h, w)
    with torch.no_grad(): whole = f(x[None])[0].numpy()
    assert np.allclose(tiled(f, x, tile, 12, 2), whole, atol=1e-5)


@pytest.mark.parametrize('size', [(20, 24, 30), (12, 12, 40)])
def test_tiles_of_volumes_equal_the_whole(size):
    f, x = stack(3), torch.randn(1, *size)
    with torch.no_grad(): whole = f(x[None])[0].numpy()
    assert np.allclose(tiled(f, x.numpy(), (16, 18, 20), 12, 2), whole, atol=1e-5)


@pytest.mark.parametrize('fold', [1, 2])
def test_unet_in_tiles_with_its_reach_as_margin(fold):
    torch.manual_seed(0)
    net = UNet(1, 2, (4, 8, 16), fold)
    far = reach(net, side=256, multiple=8)
    margin = math.ceil(far/8)*8
    x = torch.randn(1, 300, 210)
    f = Padded(net.eval(), 8)
    with torch.no_grad(): whole = f(x[None])[0].numpy()
    assert far < 70 and np.allclose(tiled(f, x, 2*margin + 32, 2*margin, 8), whole, atol=1e-4)
    assert not np.allclose(tiled(f, x, 64, 0, 8), whole, atol=1e-4)


def test_reach_is_exact_for_a_stack_of_convolutions():
    same = lambda k: nn.Conv2d(1, 1, k, padding=k//2)
    assert reach(nn.Sequential(same(3), same(5), same(3)), side=96, multiple=8) == 4
    assert reach(nn.Sequential(same(3), nn.InstanceNorm2d(1)), side=96, multiple=8) == math.inf


@pytest.mark.parametrize('tile,overlap', [(32, 32), (32, 5), (32, -2), (40, 20)])
def test_tiles_off_the_grid_are_refused(tile, overlap):
    with pytest.raises(ValueError, match='multiple of'): tiled(stack(2), torch.zeros(1, 64, 64), tile, overlap, 32)


def test_a_slide_from_disk_takes_little_memory(tmp_path):
    "4096 x 4096 from a memory map: the whole picture at once would take over 1 GB in this network"
    code = f'''
import numpy as np, resource, torch
from medlearn.imaging.segmentation import tiled
from torch import nn
torch.set_num_threads(1)
slide = np.lib.format.open_memmap(r"{tmp_path/'slide.npy'}", "w+", np.uint8, (1, 4096, 4096))
net, seen = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).eval(), []
def f(x):
    seen.append(tuple(x.shape))
    return net(x.float()).argmax(1, keepdim=True).byte()
f(torch.zeros(1, 1, 544, 544))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answer = tiled(f, slide, 544, 32)
print(answer.shape, answer.dtype, max(s[2] for s in seen), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)//1024)
'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shape, largest, extra = done.stdout.split()
    assert ' '.join(shape) == '(1, 4096, 4096) uint8' and int(largest) <= 544 and int(extra) < 150, done.stdout


# Data

def test_boxes_and_volumes_are_sent_to_their_chapters(tmp_path):
    z = np.zeros((3, 4, 16, 16), np.uint8)
    np.savez(tmp_path/'v.npz', images=z, masks=z, split=np.array(['train', 'valid', 'test']))
    with pytest.raises(DataError, match='04_volumes'): mask_data(tmp_path/'v.npz')
    np.savez(tmp_path/'e.npz', images=z[:, 0], masks=z[:, 0], split=np.array(['train', 'valid', 'test']))
    with pytest.raises(DataError, match='no training mask'): mask_data(tmp_path/'e.npz')
    with pytest.raises(ValueError, match='resnet_unet'): mask_learner(discs(), 'vnet')


@pytest.mark.skipif(not nuclei.exists(), reason='../shared/data/dsb2018_nuclei is not there')
def test_threshold_on_real_nuclei():
    data = mask_data(nuclei, fractions=(.7, .1, .2))
    test = data.part('test')
    assert abs(len(test) - len(data)/5) <= 1
    assert mean_dice(by_patient(score_masks(otsu_masks(test, data.part('train')), test)))[0] > .7
