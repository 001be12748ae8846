"Objects: a watershed, counts by centres, pictures in blocks, the archive of nuclei"
import io, zipfile

import numpy as np, pytest
from PIL import Image

from medlearn.data.masks import MaskSet
from medlearn.foundations.overlap import matched
from medlearn.imaging import instances
from medlearn.imaging.instances import count_centres, in_blocks, nuclei_archive, nuclei_blocks, nuclei_picture, object_data, separate
from medlearn.kit.cards import DataError


def test_watershed_and_matching():
    y, x = np.mgrid[:48, :64]
    a, b = np.hypot(y - 24, x - 22) < 12, np.hypot(y - 24, x - 41) < 12
    truth = a + 2*(b & ~a)
    got = separate(a | b)
    assert got.max() == 2 and ((got > 0) == (a | b)).all() and matched(got, truth) == (2, 0, 0)
    assert separate(a*0).max() == 0 and matched(a*0, truth) == (0, 0, 2) and matched(truth, truth*0) == (0, 2, 0)


def test_blocks_tile_the_picture():
    x = np.arange(48).reshape(6, 8)
    b = in_blocks(x, 2)
    assert b.shape == (12, 2, 2) and (b[1] == x[:2, 2:4]).all() and sorted(b.ravel()) == [*range(48)]
    with pytest.raises(ValueError, match='blocks of 4'): in_blocks(x, 4)


def test_the_real_picture():
    image, objects = nuclei_picture()
    data = nuclei_blocks(seed=3)
    assert image.shape == objects.shape == (512, 512) and len(np.unique(objects)) == 126
    assert len(data) == 16 and [(data.split == s).sum() for s in ('train', 'valid', 'test')] == [8, 2, 6]
    assert ((data.instances > 0) == data.masks).all()


@pytest.mark.parametrize('side', [16, 40, 100, 128])
def test_each_object_is_counted_once_by_its_centre(side):
    rng = np.random.default_rng(0)
    objects, y, x = np.zeros((200, 150), int), *np.mgrid[:200, :150]
    for k, (a, b) in enumerate(np.stack([g.ravel() for g in np.mgrid[12:190:25, 12:140:25]], 1) + rng.integers(-3, 4, (48, 2)), 1):
        objects[np.hypot(y - a, x - b) < 8] = k
    assert count_centres(lambda r, c: objects[r, c], objects.shape, side, 20) == 48
    assert count_centres(lambda r, c: objects[r, c]*0, objects.shape, side, 20) == 0


def test_the_archive_is_read_as_it_is_packed(tmp_path, monkeypatch):
    "Folders train and test of images and masks, pictures of several sizes, some of 16 bits"
    def tif(a):
        out = io.BytesIO()
        Image.fromarray(a).save(out, 'TIFF')
        return out.getvalue()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path/'dsb2018.zip', 'w') as z:
        for i in range(12):
            side, part = (32, 48)[i % 4 == 3], 'test' if i > 8 else 'train'
            m = np.zeros((side, side), np.uint16)
            m[2:8, 2:8], m[10:20, 8:20] = 1, 300
            x = (m > 0)*1000 + rng.integers(0, 50, m.shape)
            z.writestr(f'dsb2018/{part}/images/{i:02}.tif', tif(x.astype(np.uint16) if i % 2 else (x//8).astype(np.uint8)))
            z.writestr(f'dsb2018/{part}/masks/{i:02}.tif', tif(m))
    monkeypatch.setattr(instances, 'fetch', lambda name: tmp_path/'dsb2018.zip')
    data = nuclei_archive(32, valid=.3)
    assert [(data.split == s).sum() for s in ('train', 'valid', 'test')] == [5, 2, 2]
    assert data.images.dtype == np.uint8 and data.instances.max() == 300 and data.masks.max() == 1
    assert data.images[data.masks > 0].min() > data.images[data.masks == 0].max()
    with pytest.raises(DataError, match='no picture of 31'): nuclei_archive(31)


def test_what_cannot_be_counted_is_refused(tmp_path):
    z = np.zeros((6, 16, 16), np.uint8)
    split = np.repeat(['train', 'valid', 'test'], 2)
    np.savez(tmp_path/'e.npz', images=z, masks=z, split=split)
    with pytest.raises(DataError, match='no training mask'): object_data(tmp_path/'e.npz')
    m = z.copy()
    m[:, :4, :4], m[:, 8:, 8:] = 1, 2
    np.savez(tmp_path/'k.npz', images=z, masks=m, split=split)
    with pytest.raises(DataError, match='objects of one'): object_data(tmp_path/'k.npz')
    np.savez(tmp_path/'v.npz', images=z[:, None].repeat(4, 1), masks=m[:, None].repeat(4, 1), split=split)
    with pytest.raises(DataError, match='imaging/voxels'): object_data(tmp_path/'v.npz')
