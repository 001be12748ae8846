"Volumes of a reader: how they lie, who belongs together, slices that become volumes, new cases as the chapter itself would draw them"
import itertools
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib, numpy as np, pandas as pd, pytest, torch

from medlearn.data.images import ImageSet
from medlearn.data.series import Case,cases_at,read_series,write_mask
from medlearn.data.volumes import nifti_pairs,scan_directions,stacked
from medlearn.foundations.augmentation import Augment,Normalise
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.overlap import measure_volume
from medlearn.foundations.training import predict,small_cnn
from medlearn.imaging import volumes as Classes
from medlearn.imaging import voxels as Voxels
from medlearn.kit.cards import DataError

sunnybrook = Path(__file__).parent.parent.parent/'shared'/'data'/'sunnybrook_cardiac'


def turned(degrees, axis):
    "A rotation"
    a, (i, j), R = np.deg2rad(degrees), [k for k in range(3) if k != axis], np.eye(3)
    R[[i, i, j, j], [i, j, i, j]] = np.cos(a), -np.sin(a), np.sin(a), np.cos(a)
    return R


def placed(ways, mm=(1.4, 1.4, 9)):
    A = np.eye(4)
    A[:3, :3], A[:3, 3] = ways*mm, (3, -20, 40)
    return A


def made(folder, cases, spacing=(1.4, 1.4, 9), shape=(24, 20, 5), ways=None, images='imagesTr', masks='labelsTr'):
    "Pairs of one bright block in noise, each case placed in the body in its own way"
    for i, name in enumerate(cases):
        rng = np.random.default_rng(i)
        m = np.zeros(shape, np.uint8)
        m[8:15, 6:12, 1:4] = 1
        if name.lower().endswith('es'): m[8:11] = 0
        x = rng.normal(100, 10, shape) + 200*m
        for where, v in ((images, x.astype(np.float32)), (masks, m)):
            (folder/where).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(v, placed(np.eye(3) if ways is None else ways[i], spacing)), folder/where/f'{name}.nii.gz')
    return folder


# How they lie

def test_oblique_hearts_lie_alike(tmp_path):
    "The same scan in five bodies that are turned otherwise: thick slices stay slices, rows stay rows"
    first = turned(25, 0) @ turned(50, 1)
    ways = [turned(d, 2) @ first for d in (0, -10, 25, 50, 70)]
    d = nifti_pairs(made(tmp_path, [f'P{i}' for i in range(5)], ways=ways))
    assert d.table.attrs['towards'] is not None and (d.spacing[:, 0] > 8).all() and d.images.shape[1:] == (5, *d.images.shape[2:])
    assert all((m == d.masks[0]).all() for m in d.masks)


def test_axial_scans_are_turned_to_the_body_as_ever(tmp_path):
    d = nifti_pairs(made(tmp_path, ['a', 'b', 'c', 'd']))
    assert d.table.attrs['towards'] is None and d.masks[0].shape == (5, 20, 24)
    assert scan_directions([np.diag([1, 1, 1, 1.]), np.diag([2, 2, 2, 1.])]) is None


def test_a_stack_goes_back():
    x, A = np.random.default_rng(0).normal(size=(6, 5, 4)), placed(turned(30, 0) @ turned(60, 2))
    for towards in (None, scan_directions([A, placed(turned(90, 1))])):
        s, mm, back = stacked(x, A, towards)
        assert (back(s) == x).all() and sorted(mm.round(3)) == [1.4, 1.4, 9]


def test_thick_slices_are_halved_late_and_bent_within():
    assert Voxels.strides_for(np.array([[9, 1.4, 1.4]])) == [[1, 2, 2], [1, 2, 2], [1, 2, 2]]
    assert Voxels.strides_for(np.array([[3, 1.4, 1.4]])) == [[1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert Voxels.strides_for(np.ones((4, 3))) == [[2, 2, 2]]*3
    torch.manual_seed(0)
    x = torch.zeros(2, 1, 6, 16, 16)
    x[:, :, 3] = 1
    assert torch.allclose(Augment(rotate=30, zoom=.3, crop=.2, elastic=.1, flat=True)(x), x, atol=1e-5)
    net = Voxels.unet3d(2, (4, 8, 16), [[1, 2, 2], [2, 2, 2]]).eval()
    with torch.inference_mode(): assert net(torch.zeros(1, 1, 5, 13, 22)).shape == (1, 2, 5, 13, 22)


# Who belongs together

def test_two_phases_of_a_heart_stay_together(tmp_path):
    names = [f'H{i}_{p}' for i in range(6) for p in ('ED', 'ES')]
    d = nifti_pairs(made(tmp_path, names))
    assert d.table.heart.tolist() == list(d.groups) and d.table.phase.tolist() == ['ED', 'ES']*6
    assert (pd.Series(d.split).groupby(d.groups).nunique() == 1).all()
    with pytest.raises(DataError, match='ends in none of the phases full, empty'): nifti_pairs(tmp_path, phases=['full', 'empty'])


def test_a_published_split_is_kept(tmp_path):
    d = nifti_pairs(made(tmp_path, [f'{i:02}' for i in range(10)]), test='^0[67]')
    assert d.table.file[d.split == 'test'].tolist() == ['06', '07'] and d.table.attrs['published']
    (tmp_path/'split.csv').write_text('file,split\n' + '\n'.join(f'{i:02}.nii.gz,{"test" if i > 7 else "train"}' for i in range(10)))
    listed = nifti_pairs(tmp_path)
    assert listed.table.file[listed.split == 'test'].tolist() == ['08', '09']
    (tmp_path/'split.csv').unlink()
    made(tmp_path, ['99', '98'], images='imagesTs', masks='labelsTs')
    d = nifti_pairs(tmp_path)
    assert sorted(d.table.file[d.split == 'test']) == ['98', '99'] and {'train', 'valid'} <= set(d.split[:10])
    made(tmp_path, ['01'], images='imagesTs', masks='labelsTs')
    with pytest.raises(DataError, match='01 is in .*imagesTr and in .*imagesTs'): nifti_pairs(tmp_path)


# Fractions that leave a heart

def test_ejection_fraction():
    rows = [dict(heart=h, phase=p, structure='cavity', ml=ml, ml_reference=ref)
            for h, p, ml, ref in (('A', 'ED', 100, 200), ('A', 'ES', 60, 150), ('B', 'ED', 0, 100), ('B', 'ES', 0, 40))]
    ef = Voxels.ejections(pd.DataFrame(rows), ['ED', 'ES'])
    a, b = (ef.loc[(h, 'cavity')] for h in 'AB')
    assert a['EF found'] == pytest.approx(.4) and a['EF in the reference'] == pytest.approx(.25) and a.error == pytest.approx(.15)
    assert np.isnan(b['EF found']) and b['EF in the reference'] == pytest.approx(.6)
    with pytest.raises(DataError, match='phases full, empty are wanted, there are ED, ES'): Voxels.ejections(pd.DataFrame(rows), ['full', 'empty'])


# A linear model as careful as the network

def test_the_linear_model_uses_place_only_where_it_helps(tmp_path):
    d = nifti_pairs(made(tmp_path, [f'{i}' for i in range(10)]))
    fitted, how = Voxels.best_linear(d, (None, 2))
    test = d.part('test')
    assert how['dice'] > .9 and measure_volume(Voxels.drawn_by(fitted, test), test).dice.mean() > .9


def test_a_region_holds_the_training_masks_with_a_margin(tmp_path):
    d = nifti_pairs(made(tmp_path, [f'{i}' for i in range(6)], shape=(60, 60, 8)))
    region = Voxels.region_of(d)
    inside = Voxels.cropped(d, region)
    assert inside.masks.sum() == d.masks.sum() and inside.images[0].size < d.images[0].size/2
    d.masks[:] = 0
    assert Voxels.region_of(d) == [[0, n] for n in d.images.shape[1:]], 'nothing drawn: nothing is cut off'


# New cases

def network(d, region):
    torch.manual_seed(0)
    net = Voxels.unet3d(2, (4, 8), [[1, 2, 2]]).eval()
    normalise = Normalise(torch.full((1, 1, 1, 1, 1), 90.), torch.full((1, 1, 1, 1, 1), 50.))
    shapes = d.table[['slices', 'rows', 'columns']].to_numpy()
    ends = lambda v: dict(low=v.min(0).tolist(), high=v.max(0).tolist())
    config = dict(classes=d.classes, widths=[4, 8], strides=[[1, 2, 2]], mean=[90.], std=[50.], tile=192, overlap=64,
                  box=list(d.images.shape[1:]), region=region, spacing=ends(d.spacing), extent=ends(shapes*d.spacing),
                  **{n: d.table.attrs[n] for n in ('towards', 'channel', 'level_width')})
    return net, config, SimpleNamespace(model=net, dls=SimpleNamespace(valid=SimpleNamespace(after_batch=[normalise])))


@pytest.mark.parametrize('oblique', [False, True])
def test_new_cases_are_drawn_as_the_chapter_draws_them(tmp_path, oblique):
    first = turned(25, 0) @ turned(50, 1)
    ways = [turned(d, 2) @ first for d in (0, -10, 25, 50, 70)] if oblique else [np.eye(3)]*4 + [np.diag([-1, 1, 1])]
    made(tmp_path, [f'P{i}' for i in range(5)], ways=ways)
    d = nifti_pairs(tmp_path)
    region = [[0, 5], [2, 18], [2, 22]]
    net, config, learn = network(d, region)
    found = Voxels.segment(learn, d, region=region)
    assert found.any() and not found[:, :, :2].any()
    table = Voxels.new_cases(net.state_dict(), config, tmp_path/'imagesTr', tmp_path/'out')
    assert table.index.tolist() == [f'P{i}' for i in range(5)] and table.columns.tolist() == ['label 1, ml']
    assert np.allclose(table['label 1, ml'], measure_volume(found, d).ml, rtol=1e-5)
    for i in range(5):
        scan, mask = (nib.load(tmp_path/f/f'P{i}.nii.gz') for f in ('imagesTr', 'out'))
        assert np.allclose(scan.affine, mask.affine) and scan.shape == mask.shape
        assert int(np.asarray(mask.dataobj).sum()) == int(found[i].sum())
    for i, (images, masks) in enumerate(((tmp_path/'imagesTr', tmp_path/'out'),)):
        again = nifti_pairs(images, masks)
        assert (again.masks == found).all(), 'masks lie where they were drawn'


def test_new_cases_refuse_what_was_not_trained(tmp_path):
    d = nifti_pairs(made(tmp_path, [f'P{i}' for i in range(5)]))
    net, config, _ = network(d, [[0, n] for n in d.images.shape[1:]])
    draw = lambda p: Voxels.new_cases(net.state_dict(), config, p)
    made(tmp_path/'thin', ['new'], spacing=(1.4, 1.4, 3))
    with pytest.raises(DataError, match='new: voxels of 3 × 1.4 × 1.4 mm.*trained on 9 × 1.4 × 1.4'): draw(tmp_path/'thin'/'imagesTr')
    made(tmp_path/'large', ['new'], shape=(64, 64, 5))
    with pytest.raises(DataError, match='new: the scan covers 45 × 89.6 × 89.6 mm'): draw(tmp_path/'large'/'imagesTr')
    with pytest.raises(DataError, match='is not there'): draw(tmp_path/'nowhere')
    (tmp_path/'text.txt').write_text('no scan')
    with pytest.raises(DataError, match='no NIfTI, no NRRD'): draw(tmp_path/'text.txt')


def test_new_volumes_get_the_probabilities_of_the_chapter(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (30, 8, 8, 8), dtype=np.uint8)
    d = ImageSet(x, np.arange(30) % 3, np.repeat(['train', 'valid', 'test'], 10), ['a', 'b', 'c'], 'made')
    torch.manual_seed(0)
    dls, net = tensor_loaders(d, bs=5, device='cpu'), small_cnn(1, 3, 3, (4, 8))
    first = dls.valid.after_batch[0]
    config = dict(classes=d.classes, shape=[8, 8, 8], widths=[4, 8], mirror=True, mean=first.mean.flatten().tolist(), std=first.std.flatten().tolist())
    wanted = predict(SimpleNamespace(model=net, dls=dls, loss_func=None), d.part('test').images)
    np.savez(tmp_path/'new.npz', images=d.part('test').images, ids=[f'N{i}' for i in range(10)])
    got = Classes.new_cases(net.state_dict(), config, tmp_path/'new.npz')
    assert got.index[3] == 'N3' and got.columns.tolist() == ['a', 'b', 'c'] and np.allclose(got, wanted, atol=1e-6)
    np.savez(tmp_path/'other.npz', images=x[:, :4])
    with pytest.raises(DataError, match=r'shape \(4, 8, 8\), but the network was trained on \(8, 8, 8\)'): Classes.new_cases(net.state_dict(), config, tmp_path/'other.npz')
    np.savez(tmp_path/'hu.npz', images=x.astype(np.int16))
    with pytest.raises(DataError, match='hold int16'): Classes.new_cases(net.state_dict(), config, tmp_path/'hu.npz')


# Slices

def test_masks_go_back_to_any_orientation(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(np.uint8)
    for k, (order, signs) in enumerate(itertools.product(([0, 1, 2], [2, 0, 1], [1, 0, 2]), ([1, 1, 1], [-1, 1, -1]))):
        A = np.eye(4)
        A[:3, :3] = (np.eye(3)*signs)[:, order]
        nib.save(nib.Nifti1Image(x, A), tmp_path/f'{k}.nii.gz')
        case = cases_at(tmp_path/f'{k}.nii.gz')[str(k)]
        write_mask(case.voxels.astype(np.uint8), case, tmp_path/'back'/f'{k}.nii.gz')
        assert (np.asarray(nib.load(tmp_path/'back'/f'{k}.nii.gz').dataobj) == x).all()


def test_slices_of_the_heart_become_the_volumes_that_were_made_of_them():
    if not sunnybrook.is_dir(): pytest.skip(f'{sunnybrook} is not there')
    read = read_series(sunnybrook/'dicom')
    assert len(read) == 10 and len({n[:10] for n in read}) == 5
    for name, case in read.items():
        ours = cases_at(sunnybrook/'volumes'/'imagesTr'/f'{name[:10]}_{dict(t1="ES", t2="ED")[name[11:]]}.nii.gz')
        made_of, = ours.values()
        assert (made_of.voxels == case.voxels).all() and abs(made_of.affine - case.affine).max() < .001


def test_the_five_hearts_lie_alike():
    "Turned to the body, slices of one patient lay where the columns of another are, and all were 256 x 256 x 256"
    if not sunnybrook.is_dir(): pytest.skip(f'{sunnybrook} is not there')
    d = nifti_pairs(sunnybrook/'volumes')
    assert d.images.shape == (10, 11, 256, 256) and len(set(d.groups)) == 5
    at = np.array([np.argwhere(m).mean(0) for m in d.masks])
    assert (at.max(0) - at.min(0) < (4, 50, 50)).all(), 'the cavity lies at about one place'
    ml = (d.masks == 1).sum((1, 2, 3))*d.spacing.prod(1)/1000
    ef = 1 - ml[1::2]/ml[::2]
    assert np.allclose(100*ef, [25, 25, 21, 32, 25], atol=.7)
