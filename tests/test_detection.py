"The pieces that the detection chapter exports: boxes, anchors, suppression, metrics, and detectors that learn"
from pathlib import Path

import numpy as np, pytest, torch, torchvision
from fastai.learner import Learner
from hypothesis import given, settings, strategies as st

from medlearn.data.boxes import nih_boxes,voc_boxes,with_boxes
from medlearn.data.masks import MaskSet
from medlearn.foundations.agreement import match_boxes,mean_ap
from medlearn.foundations.augmentation import Augment
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import EMA,one_cycle
from medlearn.imaging import detection as D
from medlearn.kit.cards import DataError

root = Path(__file__).parent.parent
BCCD = root.parent/'shared/data/bccd/BCCD'


def squares(n=96, size=32, seed=0, most=2):
    "Bright squares on a dark ground: easy, and quick to learn"
    rng = np.random.default_rng(seed)
    x, m = rng.integers(0, 60, (n, size, size), dtype=np.uint8), np.zeros((n, size, size), np.uint8)
    boxes, objects = [], m.copy()
    for i in range(n):
        boxes.append([])
        for k in range(rng.integers(0, most + 1)):
            s = rng.integers(6, 11)
            c, r = rng.integers(1 + 16*k, 17 + 16*k - s), rng.integers(1, size - s)
            x[i, r:r+s, c:c+s] += 150
            m[i, r:r+s, c:c+s], objects[i, r:r+s, c:c+s] = 1, k + 1
            boxes[-1].append((c, r, c+s, r+s))
    boxes = [np.array(b, float).reshape(-1, 4) for b in boxes]
    split = np.repeat(['train', 'valid', 'test'], [n//2, n//4, n - n//2 - n//4])
    return MaskSet(x, m, ['ground', 'square'], split, 'squares', boxes=boxes, labels=[np.ones(len(b), int) for b in boxes],
                   instances=objects)


def random_boxes(rng, n, size=60):
    xy = rng.uniform(0, size, (n, 2))
    return np.hstack([xy, xy + rng.uniform(1, size/2, (n, 2))])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60), st.floats(.05, .95), st.integers(0, 10**6))
def test_nms_agrees_with_torchvision(n, at, seed):
    rng = np.random.default_rng(seed)
    b, s = random_boxes(rng, n), rng.permutation(n)/max(n, 1)
    theirs = torchvision.ops.nms(torch.tensor(b).view(-1, 4), torch.tensor(s), at).numpy()
    np.testing.assert_array_equal(D.nms(b, s, at), theirs)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.sampled_from([.3, .5, .75]), st.integers(0, 10**6))
def test_matching_and_ap_agree_with_foundations(n, at, seed):
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(n):
        t = random_boxes(rng, rng.integers(0, 5))
        f = np.vstack([t + rng.normal(0, 2, t.shape), random_boxes(rng, rng.integers(0, 5))])
        f[:, 2:] = np.maximum(f[:, 2:], f[:, :2] + .5)
        truth.append((t, rng.integers(1, 3, len(t))))
        found.append((f, rng.integers(1, 3, len(f)), rng.uniform(size=len(f)).round(1)))
    if not sum(len(t) for t, _ in truth): return
    data = MaskSet(np.zeros((n, 4, 4), np.uint8), None, ['none', 'a', 'b'], np.repeat('test', n), 'x', boxes=[t for t, _ in truth],
                   labels=[l for _, l in truth])
    ours, theirs = D.BoxJudge(data, 5).ap(found, at), mean_ap(truth, found, (at,))[at]
    np.testing.assert_allclose(ours.value.to_numpy()[:-1], theirs.to_numpy(), atol=1e-9)
    np.testing.assert_allclose(ours.value['mAP'], theirs.mean(), atol=1e-9)
    got, real = match_boxes(truth, found, at)
    assert got.hit.sum() == np.isfinite(real.score).sum()


def toy(boxes, groups=None):
    return MaskSet(np.zeros((len(boxes), 8, 8), np.uint8), None, ['none', 'a'], np.repeat('test', len(boxes)), 'toy',
                   np.array(groups) if groups else None, boxes=[np.reshape(b, (-1, 4)).astype(float) for b in boxes],
                   labels=[np.ones(len(b), int) for b in boxes])


def as_found(boxes, score): return np.reshape(boxes, (-1, 4)).astype(float), np.ones(len(score), int), np.array(score, float)


def test_froc_by_hand():
    data = toy([[(0, 0, 10, 10), (20, 20, 30, 30)], [(5, 5, 9, 9)]])
    found = [as_found([(0, 0, 10, 10), (1, 0, 10, 10), (40, 40, 50, 50)], [.9, .8, .2]), as_found([(5, 5, 9, 9)], [.5])]
    judge = D.BoxJudge(data, 20)
    assert judge.sensitivity(found, 0)[0] == pytest.approx(1/3)       # the double on the first box comes next
    assert judge.sensitivity(found, .5)[0] == pytest.approx(2/3)      # one false positive in two images
    assert judge.sensitivity(found, 8)[0] == pytest.approx(2/3)       # the third is never found
    froc = judge.froc(found)
    assert (froc.value.diff().dropna() >= 0).all() and (froc.low <= froc.value).all() and (froc.value <= froc.high + 1e-9).all()
    sizes = judge.by_size(found, [6.], .5)
    assert sizes.boxes.tolist() == [1, 2] and sizes.sensitivity.tolist() == [1, .5]


def test_nothing_found_is_no_error():
    judge, none = D.BoxJudge(toy([[(0, 0, 4, 4)], []]), 10), [as_found([], [])]*2
    assert judge.sensitivity(none)[0] == 0 and judge.ap(none).value['mAP'] == 0
    assert judge.by_size(none, [2.]).sensitivity.tolist()[1] == 0


def test_a_centre_may_hit_where_the_overlap_is_small():
    judge, found = D.BoxJudge(toy([[(10, 10, 14, 14)]]), 10), [as_found([(11, 11, 15, 15)], [.9])]
    assert judge.sensitivity(found)[0] == 0 and judge.sensitivity(found, at=0)[0] == 1
    assert judge.sensitivity([as_found([(14.5, 10, 18, 14)], [.9])], at=0)[0] == 0


def test_intervals_draw_patients():
    boxes, rng = [[(0, 0, 4, 4)]]*40, np.random.default_rng(0)
    hit = np.repeat(rng.integers(0, 2, 8), 5)
    found = [as_found([(0, 0, 4, 4)] if h else [], [.9]*h) for h in hit]
    wide = lambda groups: np.ptp(D.BoxJudge(toy(boxes, groups), 400).sensitivity(found)[1:])
    assert wide([str(i//5) for i in range(40)]) > 1.5*wide(None)


def test_the_gain_over_oneself_is_zero():
    data = toy([[(0, 0, 4, 4)]]*4)
    found = [as_found([(0, 0, 4, 4)], [.9])]*4
    assert D.BoxJudge(data, 10).gain(found, found) == (0, 0, 0)


def test_anchors_cover_the_boxes_they_come_from():
    rng = np.random.default_rng(0)
    wh = np.vstack([rng.normal(m, 1, (40, 2)) for m in ([10, 10], [40, 20], [20, 60])])
    a = D.box_anchors(wh, 3)
    np.testing.assert_allclose(a, [[10, 10], [40, 20], [20, 60]], atol=1)
    assert D.anchor_overlap(wh, a).max(1).mean() > .85 > .6 > D.anchor_overlap(wh, D.box_anchors(wh, 1)).max(1).mean()
    np.testing.assert_array_equal(a, D.box_anchors(wh, 3))
    with pytest.raises(DataError, match='ask for fewer'): D.box_anchors(wh[:2], 3)


def test_boxes_from_masks_and_numbered_objects():
    data = squares()
    from dataclasses import replace
    again = with_boxes(replace(data, boxes=None, labels=None))
    for a, b in zip(data.boxes, again.boxes): assert sorted(map(tuple, a)) == sorted(map(tuple, b))
    with pytest.raises(DataError, match='neither boxes nor masks'): with_boxes(replace(data, masks=None, instances=None, boxes=None, labels=None))
    with pytest.raises(DataError, match='volumes'):
        with_boxes(MaskSet(np.zeros((2, 8, 8, 8), np.uint8), np.zeros((2, 8, 8, 8), np.uint8), ['a', 'b'], np.array(['train', 'test'])))


def test_touching_objects_stay_apart_where_they_are_numbered():
    from dataclasses import replace
    pair = np.zeros((1, 8, 12), np.uint8)
    pair[0, 2:6, 1:5], pair[0, 2:6, 5:9] = 1, 2
    data = MaskSet((pair > 0).astype(np.uint8)*200, (pair > 0).astype(np.uint8), ['ground', 'cell'], np.array(['test']), 'pair')
    assert with_boxes(data).boxes[0].tolist() == [[1, 2, 9, 6]]
    apart = with_boxes(replace(data, instances=pair))
    assert apart.boxes[0].tolist() == [[1, 2, 5, 6], [5, 2, 9, 6]] and apart.labels[0].tolist() == [1, 1]


def test_boxes_of_nih():
    nih = nih_boxes()
    assert len(nih) == 984 and nih.finding.nunique() == 8 and nih.image.nunique() == 880
    assert (nih.image.str[:8] == nih.patient).all() and (nih[['w', 'h']] > 0).all(axis=None)


def test_the_loss_is_least_at_the_truth():
    boxes, labels, loss = torch.tensor([[[4., 4, 12, 12], [0, 0, 0, 0]]]), torch.tensor([[1, 0]]), D.PointLoss(4)
    heat, xy = torch.full((1, 1, 8, 8), -8.), D.cell_centres(8, 8, 4)
    heat[0, 0, 2, 2] = 8.
    sides = torch.cat([xy - boxes[0, 0, :2], boxes[0, 0, 2:] - xy], -1).permute(2, 0, 1)[None]
    right = loss((heat, sides), boxes, labels)
    assert right < .02
    assert loss((heat.roll(3, -1), sides), boxes, labels) > right + 1 and loss((heat, sides + 3), boxes, labels) > right + .5
    nothing = loss((torch.full_like(heat, -8.), sides), torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64))
    assert torch.isfinite(nothing) and nothing < .02


def learned(model, data, loss, epochs, lr, kind='boxes', **kw):
    torch.manual_seed(1)
    dls = tensor_loaders(data, bs=8, augment=Augment(flip=.5), kind=kind, device='cpu')
    return one_cycle(Learner(dls, model, loss_func=loss, **kw), epochs, lr, validate=True, cbs=EMA())


def small():
    torch.manual_seed(0)
    return D.Pyramid(1, 4, (8, 16, 16), 16)


def test_one_stage_learns_and_repeats_itself():
    data = squares()
    once = lambda: D.detect(learned(D.PointDetector(small()), data, D.PointLoss(4), 12, 1e-2), data.part('test').images)
    found = once()
    assert D.BoxJudge(data.part('test'), 10).sensitivity(found)[0] > .8
    for a, b in zip(found, once()): np.testing.assert_array_equal(a[0], b[0])


def test_two_stages_learn_and_validate_without_learning():
    data = squares()
    model = D.two_stage(small(), 1, np.array([[8., 8]]), (32, 32), hidden=32)
    learn = learned(model, data, D.sum_losses, 8, 5e-3, cbs=D.GiveTargets())
    assert D.BoxJudge(data.part('test'), 10).sensitivity(D.detect(learn, data.part('test').images))[0] > .7
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): assert np.isfinite(learn.validate()[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.skipif(not BCCD.is_dir(), reason='shared/data/bccd is not beside the repository')
def test_blood_cells_name_their_bad_boxes():
    with pytest.raises(DataError, match='BloodImage_003(38|43).*zero area'): voc_boxes(BCCD, shape=(24, 32))


def test_boxes_without_a_number_for_a_score_are_refused():
    box = np.array([[0, 0, 5, 5.]])
    with pytest.raises(DataError, match='picture 1: box 0 has the score nan'):
        match_boxes([(box, [1])]*2, [(box, [1], [.5]), (box, [1], [np.nan])])
