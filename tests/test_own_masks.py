"Somebody's own pictures and masks: whose they are, which split, what may be counted, and new pictures for a trained network"
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from medlearn.data.doors import scans_from
from medlearn.data.masks import mask_folder, MaskSet, no_objects, save_mask
from medlearn.data.pictures import new_pictures
from medlearn.data.splits import people, published_split
from medlearn.foundations.budget import Budget, train_within
from medlearn.foundations.overlap import by_patient, score_masks
from medlearn.imaging import instances, segmentation as seg
from medlearn.kit.cards import DataError

SHARED = Path(__file__).parents[2]/'shared'/'data'


def discs(n=18, side=32, seed=0, colour=False):
    "Bright discs on noise, and their masks"
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    m = np.stack([np.hypot(y - a, x - b) < r for a, b, r in zip(*rng.uniform(side/4, side*3/4, (2, n)), rng.uniform(side/10, side/5, n))]).astype(np.uint8)
    pics = (rng.normal(60, 15, m.shape) + 90*m).clip(0, 255).astype(np.uint8)
    return (np.repeat(pics[..., None], 3, -1)//np.array([1, 2, 3], np.uint8) if colour else pics), m


def masks_of(n=18, side=32, **kw):
    x, m = discs(n, side)
    split = np.array(['train']*(n*2//3) + ['valid']*(n//6) + ['test']*(n - n*2//3 - n//6))
    return MaskSet(x, m, ['background', 'disc'], split, 'discs', **kw)


def folder(at, names, marks=None, ends=None, **kw):
    "Two folders of pictures and masks"
    x, m = discs(len(names), **kw)
    for d in ('images', 'masks'): (at/d).mkdir(parents=True, exist_ok=True)
    for i, n in enumerate(names):
        Image.fromarray(x[i]).save(at/'images'/f'{n}{ends[i % len(ends)] if ends else ".png"}')
        Image.fromarray(m[i]*255).save(at/'masks'/f'{(marks or names)[i]}.png')
    return at


# ---------------------------------------------------------------- who is who, and which split

def test_nobody_is_named_where_nobody_named_them(tmp_path):
    at = folder(tmp_path, [f'SCD{i//6}_{i:02}' for i in range(18)])
    data = scans_from(at)
    assert data.groups is None and data.table.file[0] == 'SCD0_00.png'
    said = people(data)
    assert 'No patients are named' in said and "patient = '" in said
    (at/'dataset.toml').write_text(r"patient = '^(SCD\d+)'")
    data = scans_from(at)
    assert len(set(data.groups)) == 3 and '3 patients are named, and none is in two splits' in people(data) and 'which has 1: values stand without one' in people(data)


def test_slices_of_one_volume_are_noticed():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(0, 1, (40, 16, 16)), 0)
    x = (128 + 8*walk.repeat(2, 1).repeat(2, 2)).clip(0, 255).astype(np.uint8)
    m = (x > 128).astype(np.uint8)
    split = np.resize(['train', 'train', 'valid', 'test'], 40)
    assert 'slices of one volume' in people(MaskSet(x, m, ['a', 'b'], split, 'x'))
    assert 'slices of one volume' not in people(MaskSet(x[rng.permutation(40)], m, ['a', 'b'], split, 'x'))


def test_a_published_split_is_kept_to(tmp_path):
    names = [f'{i:02}_{"training" if i > 9 else "test"}' for i in range(20)]
    at = folder(tmp_path, names, [f'{i:02}_manual1' for i in range(20)], ['.gif', '.ppm', '.pgm', '.tif'])
    with pytest.raises(DataError, match='in one of'): scans_from(at)
    (at/'dataset.toml').write_text('pair = "^([0-9]+)_"\ntest = "_test$"\n')
    data = scans_from(at)
    held = np.array(['_test' in f for f in data.table.file])
    assert ((data.split == 'test') == held).all() and held.sum() == 10 and {'train', 'valid'} == set(data.split[~held])
    x, m = discs(20)
    assert (data.images == x).all() and (data.masks == m).all()
    for pair, what in (('^([0-9])', 'finds 0 in'), ('^([0-9]+', 'is no pattern'), ('(manual)', 'finds nothing in')):
        with pytest.raises(DataError, match=what): mask_folder(at/'images', at/'masks', pair=pair)
    with pytest.raises(DataError, match='finds 0 of 20'): mask_folder(at/'images', at/'masks', pair='^([0-9]+)_', test='nobody')


def test_a_list_of_splits_is_kept_to_and_checked(tmp_path):
    names = [f'P{i//2}_{i}' for i in range(12)]
    at = folder(tmp_path, names)
    def listed(rows): (at/'split.csv').write_text('\n'.join(rows))
    full = ['file,split,patient'] + [f'{n}.png,{"test" if i < 4 else "training"},H{i//2}' for i, n in enumerate(names)]
    listed(full)
    data = scans_from(at)
    assert (data.split[:4] == 'test').all() and data.groups[0] == 'H0' and 'valid' in data.split and 'none is in two' in people(data)
    for rows, what in ((full[:-1], 'P5_11 is not in the list'), (full + ['who.png,test,H9'], 'line 14, who.png: no such file'),
                       (full + [full[1]], 'stands twice'), (full[:1] + [full[1].replace('test', 'later')] + full[2:], 'another name than'),
                       (full[:1] + [full[1].replace('test', 'training')] + full[2:], 'patient H0 is in')):
        listed(rows)
        with pytest.raises(DataError, match=what): scans_from(at)


def test_fewer_than_three_patients_are_told_of():
    with pytest.raises(DataError, match='2 patients cannot fill three splits'): published_split([f'P{i//4}_{i}' for i in range(8)], r'^(P\d)', (.6, .2, .2), 0)


# ---------------------------------------------------------------- what counts

def test_a_tree_of_vessels_is_no_heap_of_objects():
    tree = np.zeros((2, 96, 96), np.uint8)
    tree[:, 10:86, 47:49] = 1
    for k in range(12, 84, 12): tree[:, k:k+2, 12:84] = 1
    assert 'convex hull' in no_objects(tree) and no_objects(discs(8, 64)[1]) == ''
    cut = np.zeros((2, 64, 64), np.uint8)
    cut[:, :20, :20], cut[:, 40:, 40:] = 1, 1
    assert 'border' in no_objects(cut) and no_objects(cut*0) == ''


def test_everything_and_the_usual_place_are_answers_too():
    data = masks_of()
    data.masks[:] = 1
    data.masks[:, :4] = 0
    blind = seg.blind_masks(data)
    test = data.part('test')
    dice = {n: by_patient(score_masks(p, test, False)).mean(axis=None) for n, p in blind.items()}
    assert dice['nothing'] == 0 and dice['all disc'] > .9 and dice['the usual place'] > .95


# ---------------------------------------------------------------- large pictures, new pictures

def handed(data, **net):
    "A network, trained for two steps, and its description as the chapter hands it over"
    torch.manual_seed(0)
    learn = seg.mask_learner(data, net=net, bs=2, device='cpu')
    train_within(learn, Budget(2, checks=1), 1e-2)
    look = learn.dls.valid.after_batch[0]
    mean, std = (v.flatten().tolist() for v in (look.mean, look.std))
    config = dict(network=dict(arch='unet', c_in=len(mean), n_out=len(data.classes), **net), classes=data.classes, mean=mean, std=std,
                  mirrors=[[], [-1]], cut=-2.9, colour=data.colour, spacing=None if data.spacing is None else data.spacing[0].tolist(), shape=None)
    return learn, config


@pytest.mark.parametrize('side', [512, 1024])
def test_large_pictures_go_all_the_way(side, tmp_path):
    data = masks_of(6, side)
    learn, config = handed(data, widths=(4, 4, 8, 8, 8), space_to_depth=4 if side > 512 else 2)
    test = data.part('test')
    pred = seg.decide(seg.predict_masks(learn, test.images), config['cut'])
    np.savez(tmp_path/'new.npz', images=test.images)
    new = seg.new_cases(learn.model.state_dict(), config, tmp_path/'new.npz')
    assert len(score_masks(pred, test, False)) == len(test) and new['disc, pixels'].tolist() == (pred == 1).sum((1, 2)).tolist()


def test_new_pictures_are_measured_and_what_is_of_another_kind_is_refused(tmp_path):
    data = masks_of(spacing=np.full((18, 2), .5))
    learn, config = handed(data, widths=(4, 8))
    at = folder(tmp_path/'new', [f'c{i}' for i in range(3)], seed=5)
    (at/'dataset.toml').write_text('spacing = [0.5, 0.52]')
    got = seg.new_cases(learn.model.state_dict(), config, at, tmp_path/'out')
    pred = seg.decide(seg.predict_masks(learn, discs(3, seed=5)[0]), config['cut'])
    assert 0 < pred.mean() < 1 and got.index.tolist() == ['c0', 'c1', 'c2'] and got['disc, pixels'].tolist() == (pred == 1).sum((1, 2)).tolist()
    assert np.allclose(got['disc, mm²'], got['disc, pixels']*.26)
    back = mask_folder(at/'images', tmp_path/'out', fractions=(.4, .3, .3))
    assert (back.masks == pred).all()
    (at/'dataset.toml').write_text('spacing = [0.5, 0.6]')
    with pytest.raises(DataError, match='measure 0.5 × 0.6 mm'): seg.new_cases(learn.model.state_dict(), config, at)
    folder(tmp_path/'red', ['r'], colour=True)
    with pytest.raises(DataError, match='r is in colour'): seg.new_cases(learn.model.state_dict(), config, tmp_path/'red'/'images'/'r.png')
    with pytest.raises(DataError, match='is grey, and the network has learned from pictures that are in colour'): new_pictures(at/'images', True)
    with pytest.raises(DataError, match='not there'): new_pictures(at/'nowhere', False)


def test_pictures_that_were_scaled_in_training_are_scaled_again(tmp_path):
    learn, config = handed(masks_of(), widths=(4, 8))
    at = folder(tmp_path/'new', ['a', 'b'], side=64)
    got = seg.new_cases(learn.model.state_dict(), config | dict(shape=[32, 32]), at, tmp_path/'out')
    assert np.asarray(Image.open(tmp_path/'out/a.png')).shape == (64, 64) and (got['disc, pixels'] % 4 == 0).all()


def test_objects_in_new_pictures_are_counted_and_written(tmp_path):
    data = masks_of()
    torch.manual_seed(0)
    net = instances.object_network((4, 8)).eval()
    config = dict(widths=(4, 8), classes=data.classes, mean=[60.], std=[40.], odds=0., apart=3, colour=False, spacing=None, shape=None)
    np.savez(tmp_path/'new.npz', images=data.images[:3], spacing=np.full((3, 2), 2.), ids=['x', 'y', 'z'])
    got = instances.new_cases(net.state_dict(), config, tmp_path/'new.npz', tmp_path/'out')
    written = [np.asarray(Image.open(tmp_path/'out'/f'{n}.png')) for n in got.index]
    assert got.index.tolist() == ['x', 'y', 'z'] and got.objects.tolist() == [len(np.unique(w)) - 1 for w in written]
    assert np.allclose(got['mm²'], 4*got.pixels) and got.pixels.tolist() == [(w > 0).sum() for w in written]
    many = np.arange(400).reshape(20, 20)
    save_mask(many, tmp_path/'many.png')
    assert (np.asarray(Image.open(tmp_path/'many.png')) == many).all()


@pytest.mark.skipif(not (SHARED/'sunnybrook_cardiac').is_dir(), reason='../shared/data/sunnybrook_cardiac is not there')
def test_five_hearts():
    at = SHARED/'sunnybrook_cardiac'
    data = mask_folder(at/'images', at/'masks', patient=r'^(SCD\d+)')
    assert len(set(data.groups)) == 5 and 'values stand without one' in people(data) and no_objects(data.masks) == ''
    assert 'patient = ' in people(mask_folder(at/'images', at/'masks'))
    few = data.at_most(0, test=3*256**2)
    assert (few.split == 'test').sum() == 3 and (few.split == 'train').sum() == (data.split == 'train').sum()


def test_the_same_picture_twice_stays_on_one_side(tmp_path):
    at = folder(tmp_path, [f'p{i:02}' for i in range(16)])
    for i in range(8):
        for d in ('images', 'masks'): (at/d/f'p{i + 8:02}.png').write_bytes((at/d/f'p{i:02}.png').read_bytes())
    data = scans_from(at)
    assert (data.split[:8] == data.split[8:]).all() and 'two splits, pixel' not in people(data)
    np.savez(tmp_path/'two.npz', images=data.images, masks=data.masks)
    data = scans_from(tmp_path/'two.npz')
    assert (data.split[:8] == data.split[8:]).all()
    data.split[:8], data.split[8:] = 'train', 'test'
    assert '8 pictures stand in two splits' in people(data)
