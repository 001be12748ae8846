"Pairs of pictures and masks as people name and sort them: sub-folders, endings on both sides, channels"
import json
import re

import numpy as np
import pytest
from PIL import Image

from medlearn.data import boxes as Boxes
from medlearn.data import masks as Masks
from medlearn.data import volumes as Volumes
from medlearn.kit.cards import DataError

LETTERS = 'abcdef'


def drawn(n=6, side=32):
    rng = np.random.default_rng(0)
    masks = np.zeros((n, side, side), np.uint8)
    for i, m in enumerate(masks): m[8:20 + i, 10:24] = 1
    return rng.integers(0, 200, (n, side, side)).astype(np.uint8), masks


def save(path, x):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path)


def coco(folder, names):
    x, _ = drawn(len(names))
    for n, v in zip(names, x): save(folder/n, v)
    d = dict(images=[dict(id=i, file_name=n) for i, n in enumerate(names)], categories=[dict(id=3, name='cell')],
             annotations=[dict(image_id=i, category_id=3, bbox=[2, 3, 4 + i, 5]) for i in range(len(names))])
    (folder/'coco.json').write_text(json.dumps(d))
    return folder/'coco.json'


# ---------------------------------------------------------------- who is who

def test_equal_names_in_folders_are_different_pictures(tmp_path):
    file = coco(tmp_path, [f'{c}/image.png' for c in LETTERS])
    s = Boxes.coco_boxes(file)
    assert s.groups is None and set(s.split) == {'train', 'valid', 'test'}
    assert list(Boxes.coco_boxes(file, patient=r'^(\w)/').groups) == list(LETTERS)
    assert (s.images == drawn()[0]).all() and [b[0, 2] for b in s.boxes] == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize('names, pattern, want', [
    ([f'set2/P{i}_{k}.png' for i in range(3) for k in range(2)], r'^(P\d)_', ['P0', 'P0', 'P1', 'P1', 'P2', 'P2']),
    ([f'set2/{i}_{k}.png' for i in (7, 8, 9) for k in 'xy'], r'(\d+)', list('778899')),
    ([f'{p}/P{i}_{p}.png' for i in range(3) for p in ('old', 'new')], r'^(P\d)_', ['P0', 'P0', 'P1', 'P1', 'P2', 'P2']),
    ([f'{i}/slice_{k}.png' for i in range(3) for k in range(2)], r'(\d+)', list('001122'))])
def test_patterns_see_the_path_and_else_the_name(tmp_path, names, pattern, want):
    assert list(Boxes.coco_boxes(coco(tmp_path, names), patient=pattern).groups) == want


@pytest.mark.parametrize('names', [[f'{c}/image.png' for c in LETTERS], [f'P{i}_image.png' for i in range(6)], [f'image-{i}.png' for i in range(6)],
                                   [f'pic{c}.png' for c in LETTERS]])
def test_the_example_in_the_refusal_works(tmp_path, names):
    file = coco(tmp_path, names)
    with pytest.raises(DataError, match='1 patients cannot fill three splits') as e: Boxes.coco_boxes(file, patient=r'(i)')
    said = str(e.value)
    assert 'path' in said
    shown = re.search(r'patient=r"(.+?)" finds (\S+) in (\S+)[.;]', said)
    if shown is None: assert 'Leave patient= out' in said and Boxes.coco_boxes(file).groups is None
    else:
        s = Boxes.coco_boxes(file, patient=shown[1])
        assert len(set(s.groups)) >= 3 and s.groups[0] == shown[2] and shown[3] == names[0].rpartition('.')[0]


def test_too_few_pictures_and_patterns_that_are_none(tmp_path):
    with pytest.raises(DataError, match='2 patients cannot fill .*Add'): Boxes.coco_boxes(coco(tmp_path, ['a.png', 'b.png']))
    file = coco(tmp_path, [f'{c}.png' for c in LETTERS])
    with pytest.raises(DataError, match=r"'\(a' is no pattern"): Boxes.coco_boxes(file, patient='(a')
    for pattern in ('a', '(q)', '(q)?', '(q*)'):
        with pytest.raises(DataError, match='finds no patient in a.*brackets'): Boxes.coco_boxes(file, patient=pattern)
    (tmp_path/'coco.json').write_text(json.dumps(dict(images=[], categories=[], annotations=[])))
    with pytest.raises(DataError, match='coco.json names no pictures'): Boxes.coco_boxes(file)


def test_folders_in_folders_of_masks_and_boxes(tmp_path):
    x, m = drawn()
    for c, v, k in zip(LETTERS, x, m):
        save(tmp_path/'images'/c/'image.png', v), save(tmp_path/'masks'/c/'image.png', k*255)
    for d in ('.hidden', 'a/.hidden'): save(tmp_path/'images'/d/'thumb.png', x[0])
    s = Masks.mask_folder(tmp_path/'images', tmp_path/'masks', patient=r'^(\w)/')
    assert (s.images == x).all() and (s.masks == m).all() and list(s.groups) == list(LETTERS)
    (tmp_path/'masks/f/image.png').unlink()
    with pytest.raises(DataError, match='f/image is in one of'): Masks.mask_folder(tmp_path/'images', tmp_path/'masks')
    (tmp_path/'images').rename(tmp_path/'JPEGImages')
    for i, c in enumerate(LETTERS):
        (tmp_path/'Annotations'/c).mkdir(parents=True)
        corners = ''.join(f'<{k}>{v}</{k}>' for k, v in dict(xmin=3, ymin=4, xmax=6 + i, ymax=8).items())
        (tmp_path/'Annotations'/c/'image.xml').write_text(f'<annotation><object><name>cell</name><bndbox>{corners}</bndbox></object></annotation>')
    s = Boxes.voc_boxes(tmp_path)
    assert (s.images == x).all() and [b[0].tolist() for b in s.boxes] == [[2, 3, 6 + i, 8] for i in range(6)] and s.groups is None


# ---------------------------------------------------------------- names of both sides

def test_endings_on_both_sides_and_the_formats_of_retinal_sets(tmp_path):
    from PIL import Image
    x, m = drawn()
    kinds = ['.tif', '.ppm', '.pgm', '.bmp', '.png', '.gif']
    for i, end in enumerate(kinds):
        save(tmp_path/'images'/f'{21 + i}_training{end}', x[i]), save(tmp_path/'masks'/f'{21 + i}_manual1.gif', m[i]*255)
    assert Image.open(tmp_path/'masks/21_manual1.gif').format == 'GIF'
    both = dict(image_ending='_training', ending='_manual1')
    s = Masks.mask_folder(tmp_path/'images', tmp_path/'masks', **both)
    assert (s.masks == m).all() and s.groups is None and s.table.file[0] == '21_training.tif' and (s.images == x).all()
    save(tmp_path/'images/27.png', x[0])
    with pytest.raises(DataError, match="27 is in one of .*1 such.*'_training' after it.*'_manual1' after it"): Masks.mask_folder(tmp_path/'images', tmp_path/'masks', **both)
    (tmp_path/'images/27.png').unlink()
    for p in (tmp_path/'masks').iterdir(): p.rename(tmp_path/'images'/p.name)
    assert (Masks.mask_folder(tmp_path/'images', tmp_path/'images', **both).masks == m).all()
    (tmp_path/'images/22_manual1.gif').unlink()
    with pytest.raises(DataError, match='22 is in one of'): Masks.mask_folder(tmp_path/'images', tmp_path/'images', **both)


def test_a_gif_of_several_pictures_is_refused(tmp_path):
    from PIL import Image
    x, m = drawn(3)
    for i in range(3): save(tmp_path/'images'/f'{i}.png', x[i]), save(tmp_path/'masks'/f'{i}.gif', m[i]*255)
    pages = [Image.fromarray(v) for v in m*255]
    pages[0].save(tmp_path/'masks/1.gif', save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match='1.gif holds 3 pictures'): Masks.mask_folder(tmp_path/'images', tmp_path/'masks')


# ---------------------------------------------------------------- axes and channels of volumes

@pytest.fixture
def volumes(tmp_path):
    nib = pytest.importorskip('nibabel')
    rng = np.random.default_rng(0)
    x, m = rng.normal(0, 10, (3, 4, 8, 10, 6)), np.zeros((3, 8, 10, 6), np.uint8)
    m[:, 1:4, 2:5, 3:5] = 1
    for k in range(4): x[:, k][m > 0] = 100*(k + 1)

    def write(name, v):
        path = tmp_path/f'{name}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(v.astype(np.float32), np.diag([1, 2, 3., 1])), path)

    def plain(k=0):
        for i in range(3): write(f'plain/imagesTr/c{i}', x[i, k]), write(f'plain/labelsTr/c{i}', m[i])
        return Volumes.nifti_pairs(tmp_path/'plain')
    return tmp_path, x, m, write, plain


def same(a, b): return (a.images == b.images).all() and (a.masks == b.masks).all() and (a.spacing == b.spacing).all()


@pytest.mark.parametrize('image, mask', [((1,), ()), ((), (1,)), ((1,), (1,)), ((1, 1), ())])
def test_a_last_axis_of_one_is_dropped(volumes, image, mask):
    root, x, m, write, plain = volumes
    for i in range(3): write(f's/imagesTr/c{i}', x[i, 0].reshape(8, 10, 6, *image)), write(f's/labelsTr/c{i}', m[i].reshape(8, 10, 6, *mask))
    assert same(Volumes.nifti_pairs(root/'s'), plain()) and same(Volumes.nifti_pairs(root/'s', channel=0), plain())
    with pytest.raises(DataError, match=r'c0.nii.gz has 1 channel, so channel=1'): Volumes.nifti_pairs(root/'s', channel=1)


def test_channels_are_named_and_one_is_picked(volumes):
    root, x, m, write, plain = volumes
    for i in range(3): write(f's/imagesTr/c{i}', np.moveaxis(x[i], 0, -1)), write(f's/labelsTr/c{i}', m[i])
    with pytest.raises(DataError, match=r'c0.nii.gz has 4 channels.*one channel a file, or .*channel=0 to 3'): Volumes.nifti_pairs(root/'s')
    for k in range(4): assert same(Volumes.nifti_pairs(root/'s', channel=k), plain(k))
    for bad in (4, -1):
        with pytest.raises(DataError, match=f'has 4 channels, so channel={bad}'): Volumes.nifti_pairs(root/'s', channel=bad)
    write('s/labelsTr/c1', np.stack([m[1]]*2, -1))
    with pytest.raises(DataError, match='labelsTr/c1.nii.gz has 2 channels, where a mask has one class number a voxel'): Volumes.nifti_pairs(root/'s', channel=0)


def test_names_as_nnunet_wants_them(volumes):
    root, x, m, write, plain = volumes
    for i in range(3): write(f's/imagesTr/case_00{i}_0000', x[i, 0]), write(f's/labelsTr/case_00{i}', m[i])
    s = Volumes.nifti_pairs(root/'s')
    assert same(s, plain()) and s.table.file.tolist() == ['case_000', 'case_001', 'case_002'] == list(s.groups) and same(Volumes.nifti_pairs(root/'s', channel=0), s)
    with pytest.raises(DataError, match='case_000 has no channel 1: there is case_000_0000.nii.gz'): Volumes.nifti_pairs(root/'s', channel=1)
    for i in range(3): write(f's/imagesTr/case_00{i}_0001', x[i, 1])
    with pytest.raises(DataError, match='case_000 has 2 channels, case_000_0000.nii.gz, case_000_0001.nii.gz.*channel=0'): Volumes.nifti_pairs(root/'s')
    for k in range(2): assert same(Volumes.nifti_pairs(root/'s', channel=k), plain(k))
    (root/'s/imagesTr/case_001_0001.nii.gz').unlink()
    with pytest.raises(DataError, match='case_001 has no channel 1'): Volumes.nifti_pairs(root/'s', channel=1)
    write('s/imagesTr/case_002', x[2, 0])
    with pytest.raises(DataError, match='case_002.nii.gz, case_002_0000.nii.gz'): Volumes.nifti_pairs(root/'s', channel=0)


def test_four_digits_that_are_no_channel(volumes):
    root, x, m, write, plain = volumes
    for i in range(3): write(f's/imagesTr/case_000{i}', x[i, 0]), write(f's/labelsTr/case_000{i}', m[i])
    assert same(Volumes.nifti_pairs(root/'s'), plain())
    (root/'s/labelsTr/case_0001.nii.gz').unlink()
    with pytest.raises(DataError, match='case_0001 is in one of'): Volumes.nifti_pairs(root/'s')


def test_endings_of_volumes_in_one_folder_a_case(volumes):
    root, x, m, write, plain = volumes
    for i in range(3):
        for k, kind in enumerate(('t1', 't2', 'flair')): write(f's/B{i}/B{i}_{kind}', x[i, k])
        write(f's/B{i}/B{i}_seg', m[i])
    for k, kind in enumerate(('t1', 't2', 'flair')):
        s = Volumes.nifti_pairs(root/'s', root/'s', image_ending=f'_{kind}', ending='_seg')
        assert same(s, plain(k)) and list(s.groups) == ['B0/B0', 'B1/B1', 'B2/B2']


def test_spacing_that_the_files_do_not_say(tmp_path):
    for d in ('images', 'masks'): (tmp_path/d).mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        size = (20, 40) if i % 2 else (10, 20)
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(tmp_path/'images'/f'P{i}.png')
        Image.fromarray(rng.integers(0, 2, size, np.uint8)).save(tmp_path/'masks'/f'P{i}.png')
    s = Masks.mask_folder(tmp_path/'images', tmp_path/'masks', shape=(20, 40), spacing=(.5, .25))
    assert s.spacing.tolist() == [[.25, .125] if i % 2 == 0 else [.5, .25] for i in range(6)] # the small ones were enlarged twofold
    with pytest.raises(DataError, match='spacing is .0.5,.: it is 2 lengths above 0'): Masks.mask_folder(tmp_path/'images', tmp_path/'masks', shape=(20, 40), spacing=(.5,))
    x = rng.integers(0, 255, (6, 4, 8, 8), np.uint8)
    np.savez(tmp_path/'v.npz', images=x, masks=(x > 128).astype(np.uint8))
    assert (Masks.npz_masks(tmp_path/'v.npz', spacing=[3, 1, 1]).spacing == [3, 1, 1]).all() and Masks.npz_masks(tmp_path/'v.npz').spacing is None
