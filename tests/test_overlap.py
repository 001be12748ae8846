"Masks compared: losses, scores by patient, empty masks, objects, outlines, millilitres"
import math
from dataclasses import replace

import numpy as np, pytest, torch
from torch import nn

from medlearn.data.masks import MaskSet
from medlearn.foundations.networks import dice_loss
from medlearn.foundations.overlap import (by_patient, empty_conventions, found, MaskLoss, matched, mean_dice, means,
                                          measure_volume, object_f1, score_masks, show_outlines)
from medlearn.kit.cards import DataError


def discs(n=4, side=32, seed=0, **kw):
    "Bright discs"
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = np.stack([np.hypot(y - a, x - b) < r for a, b, r in zip(*rng.uniform(10, side-10, (2, n)), rng.uniform(3, 7, n))]).astype(np.uint8)
    return MaskSet(70*masks, masks, ['background', 'disc'], np.array(['test']*n), 'discs', **kw)


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


def test_found_counts_objects():
    masks = np.zeros((1, 20, 20), np.uint8)
    masks[0, 2:6, 2:6], masks[0, 10:18, 10:18] = 1, 1
    pred = masks.copy()
    pred[0, :8, :8] = 0
    data = MaskSet(masks, masks, ['other', 'disc'], np.array(['test']), 'two', spacing=np.array([[2., 2.]]))
    f = found(pred, data)
    assert f.share.tolist() == [0, 1] and np.allclose(f.diameter, [2*2*math.sqrt(16/math.pi), 2*2*math.sqrt(64/math.pi)])
    assert f.moved.tolist() == [.75, .875]


def test_conventions_of_the_empty_mask():
    "Slices without a nodule only: pooled pixels give 0 with an alarm, and 0 (for 0/0) without one"
    masks = np.zeros((4, 8, 8), np.uint8)
    data, alarm = MaskSet(masks, masks, ['other', 'disc'], np.array(['test']*4), 'empty'), masks.copy()
    alarm[0, 2, 2] = 1
    quiet, one = (empty_conventions(score_masks(m, data, distance=False)) for m in (masks, alarm))
    assert (quiet['both empty is 1'], one['both empty is 1']) == (1, .75)
    assert quiet['all pixels pooled'] == one['all pixels pooled'] == 0
    assert math.isnan(quiet['empty truth left out']) and math.isnan(one['empty truth left out'])


def test_outlines_can_be_told_apart_in_grey():
    "The first a light line with a dark rim; the second black dashes on a light line; a key for each that has a name"
    data = discs()
    fig = show_outlines(data, np.roll(data.masks, 2, 1), [0, 1], zoom=2)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ['truth', 'prediction']
    rimmed, light, dashed = fig.axes[0].collections
    assert rimmed.get_path_effects() and not light.get_path_effects()
    assert rimmed.get_edgecolor()[0, :3].min() == 1 and dashed.get_edgecolor()[0, :3].max() == 0
    assert dashed.get_linestyle()[0][1] is not None and light.get_linestyle()[0][1] is None
    one = show_outlines(data, data.masks*0, [0], names=('nucleus', ''))
    assert [t.get_text() for t in one.legends[0].get_texts()] == ['nucleus']


def test_objects_are_counted_over_all_images():
    counts, worse = [(2, 0, 0), (1, 1, 2)], [(1, 1, 1), (1, 1, 2)]
    assert object_f1(counts)[0] == 6/9 and object_f1(counts, counts) == (0, 0, 0)
    assert object_f1(counts, worse)[0] == pytest.approx(6/9 - 4/9)
    truth = np.zeros((8, 8), int)
    truth[:3, :3], truth[4:, 4:] = 1, 2
    assert matched(truth, truth) == (2, 0, 0) and matched((truth > 0)*1, truth) == (1, 0, 1)


def test_what_is_missed_gets_the_diagonal():
    m = np.zeros((2, 4, 8, 8), np.uint8)
    m[:, 1:3, 2:5, 2:5] = 1
    data = MaskSet(m, m, ['background', 'cyst'], np.array(['test']*2), 'cysts', spacing=np.array([[5., 1, 1]]*2))
    pred = m.copy()
    pred[1] = 0
    t = measure_volume(pred, data)
    assert t.hd95_mm.tolist() == [0, math.sqrt(20**2 + 8**2 + 8**2)] and t.ml.tolist() == [18*5/1000, 0]
    assert means(t).loc['cyst', 'dice'] == .5
    with pytest.raises(DataError, match='no spacing'): measure_volume(pred, replace(data, spacing=None))
