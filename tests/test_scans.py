"Formats with geometry, annotations of users, and the simulated CT: what is read is what was written, and faults are named"
import gzip,json,sys,warnings
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from medlearn.data import doors,phantom as P,scans as S
from medlearn.data import boxes as Boxes
from medlearn.data import masks as Masks
from medlearn.data import volumes as Volumes
from medlearn.kit import fetch as F
from medlearn.kit import cards as Cards
from medlearn.kit.cards import DataError

SHARED = Path(__file__).parent.parent.parent/'shared'/'data'

# DICOM and NIfTI

@pytest.fixture
def ct():
    pytest.importorskip('pydicom')
    from pydicom.data import get_testdata_file
    return get_testdata_file('CT_small.dcm', download=False)

def test_hounsfield_units(ct):
    import pydicom
    hu,ds = S.read_dicom(ct)
    assert hu.dtype == np.float32 and (hu == pydicom.dcmread(ct).pixel_array.astype(int) - 1024).all()

def test_window():
    assert S.window([-2000, -160, 40, 240, 3000]).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match='width'): S.window([0], 0, 0)

def test_dicom_faults(ct, tmp_path):
    raw = Path(ct).read_bytes()
    (tmp_path/'text.dcm').write_text('not a scan')
    (tmp_path/'cut.dcm').write_bytes(raw[:len(raw)-9000])
    for name in ('text.dcm', 'cut.dcm', 'absent.dcm'):
        with pytest.raises(DataError, match=name): S.read_dicom(tmp_path/name)

def test_nifti_is_turned_to_ras(tmp_path):
    nib = pytest.importorskip('nibabel')
    x = np.arange(2*3*4, dtype=np.float32).reshape(2, 3, 4)
    affine = np.array([[0, 0, -2., 7], [1.5, 0, 0, 3], [0, -3., 0, 5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(x, affine), tmp_path/'a.nii.gz')
    got,new = S.read_nifti(tmp_path/'a.nii.gz')
    assert got.shape == (4, 2, 3) and got.dtype == np.float32 and nib.aff2axcodes(new) == ('R', 'A', 'S')
    assert np.allclose(S.spacing(new), [2, 1.5, 3])
    place = lambda arr,aff,v: aff @ [*np.argwhere(arr == v)[0], 1]
    for v in (0, 5, 23): assert np.allclose(place(got, new, v), place(x, affine, v))

def test_nifti_faults(tmp_path):
    nib = pytest.importorskip('nibabel')
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4)), tmp_path/'a.nii.gz')
    raw = (tmp_path/'a.nii.gz').read_bytes()
    (tmp_path/'cut.nii.gz').write_bytes(raw[:len(raw)//2])
    (tmp_path/'short.nii').write_bytes(gzip.decompress(raw)[:4000])
    (tmp_path/'text.nii').write_text('not a scan')
    for name in ('cut.nii.gz', 'short.nii', 'text.nii', 'absent.nii'):
        with pytest.raises(DataError, match=name): S.read_nifti(tmp_path/name)

def test_missing_extra_says_what_to_install(monkeypatch, tmp_path):
    for package,read in (('pydicom', S.read_dicom), ('nibabel', S.read_nifti), ('nrrd', S.read_nrrd)):
        monkeypatch.setitem(sys.modules, package, None)
        name = dict(nrrd='pynrrd').get(package, package)
        with pytest.raises(ImportError, match=f'pip install {name}$'): read(tmp_path/'any')

# NRRD and pairs

def nrrd_file(path, array, space='left-posterior-superior', directions=np.diag([.7, .7, 5.]), **more):
    nrrd = pytest.importorskip('nrrd')
    nrrd.write(str(path), array, {'space': space, 'space directions': directions, 'space origin': [-10., 20., 30.]} | more)
    return path

@pytest.mark.parametrize('space,signs', [('left-posterior-superior', (-1, -1, 1)), ('LPS', (-1, -1, 1)), ('RAS', (1, 1, 1)), ('left-anterior-superior', (-1, 1, 1))])
def test_nrrd_keeps_every_voxel_in_its_place(tmp_path, space, signs):
    x = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    directions = np.array([[0, .7, 0], [.8, 0, 0], [0, 0, 5.]])
    got,affine = S.read_nrrd(nrrd_file(tmp_path/'a.nrrd', x, space, directions))
    for v in (0, 5, 23):
        want = np.array(signs)*(np.argwhere(x == v)[0] @ directions + [-10, 20, 30])
        assert np.allclose((affine @ [*np.argwhere(got == v)[0], 1])[:3], want)
    assert (np.diag(affine)[:3] > 0).all()
    assert (S.read_nrrd((tmp_path/'a.nrrd').read_bytes(), 'a')[0] == got).all()

def test_nrrd_faults(tmp_path):
    nrrd = pytest.importorskip('nrrd')
    whole = nrrd_file(tmp_path/'a.nrrd', np.random.default_rng(0).normal(size=(9, 9, 9))).read_bytes()
    (tmp_path/'cut.nrrd').write_bytes(whole[:len(whole)//2])
    (tmp_path/'text.nrrd').write_text('not a scan')
    nrrd.write(str(tmp_path/'bare.nrrd'), np.zeros((2, 2, 2)))
    nrrd_file(tmp_path/'time.nrrd', np.zeros((2, 2, 2)), 'scanner-xyz')
    for name in ('cut.nrrd', 'text.nrrd', 'bare.nrrd', 'time.nrrd', 'absent.nrrd'):
        with pytest.raises(DataError, match=name): S.read_nrrd(tmp_path/name)

def test_nan_is_refused(tmp_path):
    nib = pytest.importorskip('nibabel')
    x = np.zeros((3, 4, 5), np.float32)
    x[1, 2, 3] = np.inf
    nib.save(nib.Nifti1Image(x, np.eye(4)), tmp_path/'a.nii.gz')
    with pytest.raises(DataError, match=r'a.nii.gz has NaN or infinite voxels, 1 of 60, first at \(1, 2, 3\)'): S.read_nifti(tmp_path/'a.nii.gz')
    with pytest.raises(DataError, match='b.nrrd has NaN'): S.read_nrrd(nrrd_file(tmp_path/'b.nrrd', x))

def test_pairs_must_fit():
    x,m = np.zeros((2, 3, 4), np.float32),np.ones((2, 3, 4))
    s = S.paired((x, np.diag([1, 2, 3, 1])), (m, np.diag([1, 2, 3, 1])), 'p')
    assert s.ml == pytest.approx(24*6/1000) and s.mask.dtype == np.uint8 and s.spacing.tolist() == [1, 2, 3]
    for mask,affine,said in [(m[:1], np.eye(4), 'p: the image has shape'), (m, 2*np.eye(4), 'p: image and mask have different affines'),
                             (m+.5, np.eye(4), r'label 1.5, which is outside'), (2*m, np.eye(4), r"label 2, which is outside the classes \['a', 'b'\]")]:
        with pytest.raises(DataError, match=said): S.paired((x, np.eye(4)), (mask, affine), 'p', ['a', 'b'])

def test_slices_show_left_on_the_left():
    x = np.zeros((2, 3, 4))
    x[0, 2, 3],x[1, 0, 0] = 1,2
    assert S.as_slices(x).shape == (4, 3, 2) and S.as_slices(x)[3, 0, 0] == 1 and S.as_slices(x)[0, 2, 1] == 2

def test_cases_are_real():
    try: s = S.cases(['breast1'])['breast1']
    except DataError as e: pytest.skip(f'the cases of pyradiomics cannot be had here: {e}')
    assert s.voxels.shape == s.mask.shape == (45, 120, 21) and np.allclose(s.spacing, [.664, .664, 2.1], atol=1e-3) and s.ml == pytest.approx(.13, abs=.01)
    inside,outside = s.voxels[s.mask > 0].mean(),s.voxels[s.mask == 0].mean()
    assert inside > 1.5*outside

def test_air_by_its_place_is_at_minus_1000():
    try: x = S.as_slices(S.cases(['lung1'])['lung1'].voxels)
    except DataError as e: pytest.skip(f'the cases of pyradiomics cannot be had here: {e}')
    front = x[:, :40]
    assert -1050 < front.min() and front.max() < -950, 'no patient and no padding in the front 40 rows'
    assert abs(front.mean() + 1000) < 10

# Valid files that mean something else

def frames(ct, tmp_path, shared=None, each=None, double=True):
    "The sample CT in two frames, its rescaling in functional groups"
    import pydicom
    def group(pair):
        g = pydicom.Dataset()
        if pair is None: return g
        v = pydicom.Dataset()
        v.RescaleSlope,v.RescaleIntercept,v.RescaleType = *pair,'HU'
        g.PixelValueTransformationSequence = [v]
        return g
    ds = pydicom.dcmread(ct)
    stored = ds.pixel_array
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.NumberOfFrames,ds.PixelData = 2,np.stack([stored, stored]).tobytes()
    ds.SharedFunctionalGroupsSequence = [group(shared)]
    if each: ds.PerFrameFunctionalGroupsSequence = [group(e) for e in each]
    ds.save_as(tmp_path/'enhanced.dcm')
    return tmp_path/'enhanced.dcm',stored.astype(float)

@pytest.mark.parametrize('shared,each,want', [
    ((1, -1024), None, [(1, -1024)]*2), ((1, -1024), [None, None], [(1, -1024)]*2), (None, [(1, -1024), (2, -1000)], [(1, -1024), (2, -1000)]),
    ((1, -1024), [None, (2, -1000)], [(1, -1024), (2, -1000)])])
def test_rescale_in_functional_groups(ct, tmp_path, shared, each, want):
    path,stored = frames(ct, tmp_path, shared, each)
    hu,_ = S.read_dicom(path)
    assert hu.shape == (2, 128, 128) and (hu == [stored*a + b for a,b in want]).all() and (hu[0].min(), hu[0].max()) == (-896, 1167)

def test_rescale_missing_in_one_frame(ct, tmp_path):
    with pytest.raises(DataError, match='enhanced.dcm .*frame 1 has no slope'): S.read_dicom(frames(ct, tmp_path, None, [(1, -1024), None])[0])
    with pytest.raises(DataError, match='enhanced.dcm .*2 frames and 3 rescalings'): S.read_dicom(frames(ct, tmp_path, None, [(1, -1024)]*3)[0])

@pytest.mark.parametrize('how', ['plain', 'rescaled', 'signed', 'shape', 'table'])
def test_low_values_white_are_turned_round(ct, tmp_path, how):
    import pydicom
    ds = pydicom.dcmread(ct)
    stored = np.random.default_rng(0).integers(0, 4096, (128, 128))
    ds.Modality,ds.BitsStored,ds.HighBit,ds.PixelRepresentation,ds.PhotometricInterpretation = 'DX',12,11,int(how == 'signed'),'MONOCHROME1'
    del ds.RescaleSlope, ds.RescaleIntercept
    if 'PixelPaddingValue' in ds: del ds.PixelPaddingValue
    want = 4095. - stored
    if how == 'signed': stored,want = stored-2048,want-2048
    if how == 'rescaled': ds.RescaleSlope,ds.RescaleIntercept,want = 2,100,2*want+100
    if how == 'shape': ds.PhotometricInterpretation,ds.PresentationLUTShape = 'MONOCHROME2','INVERSE'
    if how == 'table':
        lut = pydicom.Dataset()
        lut.add_new('LUTDescriptor', 'US', [4096, 0, 8])
        lut.add_new('LUTData', 'OW', (np.arange(4096)//16).astype('<u2').tobytes())
        lut.ModalityLUTType = 'US'
        ds.ModalityLUTSequence,want = [lut],255. - stored//16
    ds.PixelData = stored.astype('<i2').tobytes()
    ds.save_as(tmp_path/'chest.dcm')
    with pytest.warns(UserWarning, match='chest.dcm: low values are white'): x,_ = S.read_dicom(tmp_path/'chest.dcm')
    assert (x == want).all()

def test_quantities_are_not_turned_and_colour_numbers_are_refused(ct, tmp_path):
    import pydicom
    ds = pydicom.dcmread(ct)
    ds.PhotometricInterpretation = 'MONOCHROME1'
    ds.save_as(tmp_path/'ct.dcm')
    assert (S.read_dicom(tmp_path/'ct.dcm')[0] == ds.pixel_array.astype(int) - 1024).all()
    ds.PhotometricInterpretation = 'PALETTE COLOR'
    ds.save_as(tmp_path/'us.dcm')
    with pytest.raises(DataError, match='us.dcm holds numbers of colours'): S.read_dicom(tmp_path/'us.dcm')

@pytest.mark.parametrize('unit,scale', [('micron', .001), ('meter', 1000), ('mm', 1), ('unknown', 1)])
def test_nifti_units(tmp_path, unit, scale):
    nib = pytest.importorskip('nibabel')
    sides = np.array([2., 1, 1])/scale
    img = nib.Nifti1Image(np.ones((10, 10, 10), np.float32), np.diag([*sides, 1]))
    img.header.set_xyzt_units(unit)
    nib.save(img, tmp_path/'a.nii')
    x,affine = S.read_nifti(tmp_path/'a.nii')
    assert np.allclose(S.spacing(affine), [2, 1, 1]) and S.paired((x, affine), (x, affine)).ml == pytest.approx(2)

def test_no_unit_and_no_millimetres(tmp_path):
    nib = pytest.importorskip('nibabel')
    for side in (2000, .002):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([side, 1, 1, 1])), tmp_path/'a.nii')
        with pytest.raises(DataError, match='a.nii names no unit, and its voxels measure .*xyzt_units'): S.read_nifti(tmp_path/'a.nii')
    img = nib.load(tmp_path/'a.nii')
    img.header.set_xyzt_units('mm')
    nib.save(img, tmp_path/'b.nii')
    assert np.allclose(S.spacing(S.read_nifti(tmp_path/'b.nii')[1]), [.002, 1, 1])

@pytest.mark.parametrize('unit,scale', [('mm', 1), ('um', .001), ('microns', .001), ('cm', 10), ('m', 1000), ('Meters', 1000), ('', 1)])
def test_nrrd_units(tmp_path, unit, scale):
    path = nrrd_file(tmp_path/'a.nrrd', np.ones((2, 3, 4)), 'RAS', np.diag([2., 1, 1])/scale, **({'space units': [unit]*3} if unit else {}))
    _,affine = S.read_nrrd(path)
    assert np.allclose(S.spacing(affine), [2, 1, 1]) and np.allclose(affine[:3, 3], np.array([-10, 20, 30])*scale)

def test_nrrd_odd_units(tmp_path):
    with pytest.raises(DataError, match="a.nrrd measures in 'furlong'"): S.read_nrrd(nrrd_file(tmp_path/'a.nrrd', np.ones((2, 3, 4)), **{'space units': ['furlong']*3}))
    with pytest.raises(DataError, match='b.nrrd names no unit'): S.read_nrrd(nrrd_file(tmp_path/'b.nrrd', np.ones((2, 3, 4)), directions=np.diag([700, 700, 5000.])))

def test_labels_a_little_off_are_rounded():
    x,m,at = np.zeros((2, 3, 4), np.float32),np.ones((2, 3, 4), np.float32),np.eye(4)
    m[0],m[1, 0] = .996,1.00002
    s = S.paired((x, at), (m*2, at), 'p', ['a', 'b', 'c'])
    assert (s.mask == 2).all() and S.paired((x, at), (m, at)).mask.sum() == 24
    with pytest.raises(DataError, match='the label 0.8964'): S.paired((x, at), (m*.9, at), 'p')

# Sets with masks and boxes

def pictures(n=6, side=32):
    rng = np.random.default_rng(0)
    masks = np.zeros((n, side, side), np.uint8)
    masks[:, 8:20, 10:24] = 1
    return rng.integers(0, 200, (n, side, side)).astype(np.uint8),masks

def png(path, x):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path)
    return path

@pytest.fixture
def folder(tmp_path):
    for i,(x,m) in enumerate(zip(*pictures())):
        png(tmp_path/'set'/'images'/f'P{i//2}_{i}.png', x)
        png(tmp_path/'set'/'masks'/f'P{i//2}_{i}.png', m*255)
    return tmp_path/'set'

def test_mask_set_parts_and_faults():
    x,m = pictures()
    split = np.array(['train', 'train', 'valid', 'valid', 'test', 'test'])
    s = Masks.MaskSet(x, m, ['background', 'lesion'], split, 'toy', split, np.ones((6, 2)), [np.array([[10, 8, 24, 20.]])]*6, [np.ones(1, int)]*6, simulated=True)
    part = s.part('valid')
    assert len(part) == 2 and (part.images == x[2:4]).all() and len(part.boxes) == 2 and part.spacing.shape == (2, 2) and part.simulated
    assert s.summary().loc['test'].to_dict() == {'images': 2, 'patients': 1, 'lesion: images': 2, 'lesion: boxes': 2}
    fig = s.show(4)
    assert fig.get_suptitle() == 'simulated' and len(fig.axes) == 4 and 'simulated' in repr(s)
    volume = Masks.MaskSet(x[None], m[None], ['background', 'lesion'], np.array(['train']))
    assert volume.volumes and not volume.colour and volume.picture(0)[0].shape == (32, 32) and len(volume.show().axes) == 1
    for change,said in [(dict(masks=m[:, 1:]), 'own height'), (dict(masks=2*m), 'row 0 has the label 2, which is outside'), (dict(boxes=[]), '0 boxes for 6 images')]:
        with pytest.raises(DataError, match=said): replace(s, **change)
    with pytest.raises(DataError, match='train, valid, test'): s.part('val')

def test_mask_folder(folder):
    s = doors.scans_from(folder, patient=r'(P\d)_')
    assert (s.masks == pictures()[1]).all() and (s.images == pictures()[0]).all() and set(s.groups) == {'P0', 'P1', 'P2'}
    assert len({(g, p) for g,p in zip(s.groups, s.split)}) == 3 and (s.split == doors.scans_from(folder, patient=r'(P\d)_').split).all()
    assert F.seen[-1][0] == 'set'
    small = Masks.mask_folder(folder/'images', folder/'masks', shape=(16, 24), colour=True)
    assert small.images.shape == (6, 16, 24, 3) and not small.images[:, :, 16:].any() and small.masks.shape == (6, 16, 24) and small.masks.max() == 1

def test_mask_folder_faults(folder):
    x,m = pictures()
    read = lambda **kw: Masks.mask_folder(folder/'images', folder/'masks', **kw)
    for mask,said in [(m[0]*200, r'P0_0.png has the label 200, which is outside the classes'), (m[0, 1:], r'P0_0.png has shape \(32, 32\), its mask')]:
        png(folder/'masks'/'P0_0.png', mask)
        with pytest.raises(DataError, match=said): read()
    (folder/'masks'/'P0_0.png').unlink()
    with pytest.raises(DataError, match='P0_0 is in one of .* only'): read()
    png(folder/'masks'/'P0_0.png', m[0])
    png(folder/'images'/'P1_2.png', np.stack([x[0], x[1], x[2]], -1))
    with pytest.raises(DataError, match='P1_2.png is in colour where grey'): read(colour=False)
    assert read().colour
    png(folder/'images'/'P1_2.png', x[0, :, 1:])
    png(folder/'masks'/'P1_2.png', m[0, :, 1:])
    with pytest.raises(DataError, match='P1_2.png is 32×31, .*shape='): read()
    assert read(shape=(32, 32)).images.shape == (6, 32, 32)
    (folder/'images'/'P1_3.png').write_bytes(b'not a picture')
    with pytest.raises(DataError, match='P1_3.png cannot be read as a picture'): read(shape=(32, 32))
    (folder/'images'/'P1_3.png').unlink(), (folder/'masks'/'P1_3.png').unlink()
    with pytest.raises(DataError, match='finds no patient in P0_0'): read(shape=(32, 32), patient='(Q)')

@pytest.mark.parametrize('names', [('imagesTr', 'labelsTr'), ('images', 'labels')])
def test_nifti_pairs(tmp_path, names):
    nib = pytest.importorskip('nibabel')
    rng = np.random.default_rng(0)
    for d in names: (tmp_path/d).mkdir()
    for i,flip in enumerate((1, -1, 1)):
        x,m = rng.normal(0, 10, (8, 10+i, 6)),np.zeros((8, 10+i, 6), np.uint8)
        m[1:4, 2:5, 3:5],x[1:4, 2:5, 3:5] = 2,100
        if flip < 0: x,m = x[::-1],m[::-1]
        for d,v in zip(names, (x.astype(np.float32), m)): nib.save(nib.Nifti1Image(v, np.diag([flip, 1, 3., 1])), tmp_path/d/f'v{i}.nii.gz')
    s = doors.scans_from(tmp_path)
    assert s.images.shape == (3, 6, 12, 8) and s.classes == ['background', 'label 2'] and (s.spacing == [3, 1, 1]).all()
    assert [int((m == 1).sum()) for m in s.masks] == [18]*3 and s.table['rows'].tolist() == [10, 11, 12]
    assert (s.images[s.masks == 1] > 240).all()
    assert len({tuple(np.argwhere(m).min(0)[[0, 2]]) for m in s.masks}) == 1
    cropped = Volumes.nifti_pairs(tmp_path, shape=(6, 12, 4))
    assert cropped.images.shape == (3, 6, 12, 4)
    with pytest.raises(DataError, match='the label 2, which is outside'): doors.scans_from(tmp_path, classes=['background', 'tumour'])
    nib.save(nib.Nifti1Image(np.zeros((8, 12, 6), np.uint8), 2*np.eye(4)), tmp_path/names[1]/'v2.nii.gz')
    with pytest.raises(DataError, match='v2.*different affines'): doors.scans_from(tmp_path)
    (tmp_path/names[1]/'v2.nii.gz').unlink()
    with pytest.raises(DataError, match='v2 is in one of'): doors.scans_from(tmp_path)

def coco(folder, boxes, **more):
    d = dict(images=[dict(id=i, file_name=p.name) for i,p in enumerate(sorted((folder/'images').iterdir()))], categories=[dict(id=3, name='cell')],
             annotations=[dict(image_id=i, category_id=3, bbox=b) for i,b in enumerate(boxes)]) | more
    (folder/'coco.json').write_text(json.dumps(d))
    return folder/'coco.json'

def test_coco(folder):
    good = [[10, 8, 14, 12.]]*6
    s = doors.scans_from(coco(folder, good), images=folder/'images', shape=(64, 64))
    assert s.masks is None and s.classes == ['background', 'cell'] and s.boxes[0].tolist() == [[20, 16, 48, 40]] and s.labels[0].tolist() == [1]
    for bad,said in [([1, 2, 0, 5], 'box 0, .*zero area'), ([30, 2, 9, 5], r'P2_5.png: box 0, \[30.0, 2.0, 39.0, 7.0\], has pixels outside the image of 32×32')]:
        with pytest.raises(DataError, match=said): Boxes.coco_boxes(coco(folder, good[:5] + [bad]), folder/'images')
        with pytest.warns(UserWarning, match='1 of 6 boxes left out'): s = Boxes.coco_boxes(coco(folder, good[:5] + [bad]), folder/'images', drop_bad=True)
        assert s.dropped == 1 and s.boxes[5].shape == (0, 4)
    for change,said in [(dict(annotations=[dict(image_id=9, category_id=3, bbox=good[0])]), '9 is missing'), (dict(categories=3), 'cannot be read as COCO')]:
        with pytest.raises(DataError, match=said): Boxes.coco_boxes(coco(folder, good, **change), folder/'images')

def voc(folder, box, name='P0_0'):
    (folder/'Annotations').mkdir(exist_ok=True)
    if not (folder/'JPEGImages').exists(): (folder/'images').rename(folder/'JPEGImages')
    for p in (folder/'JPEGImages').iterdir():
        b = dict(zip(('xmin', 'ymin', 'xmax', 'ymax'), box if p.stem == name else (1, 1, 32, 32)))
        (folder/'Annotations'/f'{p.stem}.xml').write_text(f'<annotation><object><name>cell</name><bndbox>{"".join(f"<{k}>{v}</{k}>" for k,v in b.items())}</bndbox></object></annotation>')

def test_voc(folder):
    voc(folder, (11, 9, 24, 20))
    s = doors.scans_from(folder, drop_bad=True)
    assert s.boxes[0].tolist() == [[10, 8, 24, 20]] and s.boxes[1].tolist() == [[0, 0, 32, 32]] and s.dropped == 0
    voc(folder, (5, 5, 5, 5))
    with pytest.raises(DataError, match='P0_0.png: box 0, .*zero area'): doors.scans_from(folder)
    (folder/'Annotations'/'P0_1.xml').write_text('<annotation><object>')
    with pytest.raises(DataError, match='P0_1.xml cannot be read'): doors.scans_from(folder)

def test_voc_counted_from_zero_is_a_pixel_off(folder):
    voc(folder, (11, 9, 14, 12))
    (right,) = doors.scans_from(folder).boxes[0].astype(int)
    voc(folder, (10, 8, 13, 11))
    (moved,) = doors.scans_from(folder).boxes[0].astype(int)
    a,b = np.zeros((2, 32, 32), bool)
    for m,(x0,y0,x1,y1) in ((a, right), (b, moved)): m[y0:y1, x0:x1] = True
    assert (a & b).sum() == 9 and (a | b).sum() == 23, 'the IoU that exercise 2 of the chapter gives'

def test_npz(tmp_path):
    x,m = pictures()
    np.savez(tmp_path/'a.npz', images=x, masks=m, split=np.array(['train', 'test']*3))
    s = doors.scans_from(tmp_path/'a.npz', drop_bad=True)
    assert (s.split == ['train', 'test']*3).all() and s.classes == ['background', 'object']
    np.savez(tmp_path/'b.npz', images=x, labels=m.astype(np.uint16)*300)
    s = doors.scans_from(tmp_path/'b.npz')
    assert s.instances.max() == 300 and s.masks.max() == 1
    for bad,said in [(dict(images=x), 'lacks masks'), (dict(images=x, masks=m*1000.), 'masks hold float64'), (dict(images=x*1., masks=m), 'images hold float64'),
                     (dict(images=x, masks=m[:5]), 'own height')]:
        np.savez(tmp_path/'c.npz', **bad)
        with pytest.raises(DataError, match=said): doors.scans_from(tmp_path/'c.npz')

def sideways(path, shown, quality=95):
    "A picture stored on its side, with EXIF orientation 6: to be turned by a quarter, clockwise"
    from PIL import Image
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(np.rot90(shown))).save(path, exif=exif, quality=quality)

def lesions(n=6, h=48, w=64):
    "Pictures with a bright block, and where it is"
    x,m = np.full((n, h, w), 30, np.uint8),np.zeros((n, h, w), np.uint8)
    m[:, 8:24, 4:20] = 1
    x[m > 0] = 220
    x[:, 40:, 24:32] = 30 + 3*np.arange(n, dtype=np.uint8)[:, None, None] # no two are equal
    return x,m

@pytest.mark.parametrize('side', [48, 64])
def test_pictures_turned_by_exif_lie_under_their_masks(tmp_path, side):
    from PIL import Image,ImageOps
    x,m = lesions(w=side)
    for i in range(6): sideways(tmp_path/'images'/f'{i}.jpg', x[i]), png(tmp_path/'masks'/f'{i}.png', m[i]*255)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path/'images'/'0.jpg')))
    s = Masks.mask_folder(tmp_path/'images', tmp_path/'masks')
    assert (s.images[0] == seen).all() and abs(s.images[s.masks > 0].mean() - 220) < 3 and abs(s.images[s.masks == 0].mean() - 30) < 3

def test_masks_of_pictures_as_stored_and_masks_that_are_turned(tmp_path):
    x,m = lesions()
    for i in range(6): sideways(tmp_path/'images'/f'{i}.jpg', x[i]), png(tmp_path/'masks'/f'{i}.png', np.rot90(m[i])*255)
    s = Masks.mask_folder(tmp_path/'images', tmp_path/'masks')
    assert s.images.shape == (6, 64, 48) and abs(s.images[s.masks > 0].mean() - 220) < 3
    for i in range(6): sideways(tmp_path/'masks'/f'{i}.png', m[i]*255)
    s = Masks.mask_folder(tmp_path/'images', tmp_path/'masks')
    assert (s.masks == m).all() and abs(s.images[s.masks > 0].mean() - 220) < 3

@pytest.mark.parametrize('stored', [False, True])
def test_pictures_turned_by_exif_lie_under_their_boxes(tmp_path, stored):
    x,m = lesions()
    for i in range(6): sideways(tmp_path/'images'/f'{i}.jpg', x[i])
    rows,columns = np.nonzero(np.rot90(m[0]) if stored else m[0])
    box = [int(v) for v in (columns.min(), rows.min(), np.ptp(columns)+1, np.ptp(rows)+1)]
    h,w = (64, 48) if stored else (48, 64)
    s = Boxes.coco_boxes(coco(tmp_path, [box]*6, images=[dict(id=i, file_name=f'{i}.jpg', height=h, width=w) for i in range(6)]), tmp_path/'images')
    x0,y0,x1,y1 = s.boxes[0][0].astype(int)
    assert s.images.shape == (6, h, w) and abs(s.images[0, y0:y1, x0:x1].mean() - 220) < 3 and s.images[0].mean() < 60

def test_resized_after_annotation(folder):
    good = [[10, 8, 14, 12.]]*6
    def sized(h, w): return [dict(id=i, file_name=p.name, height=h, width=w) for i,p in enumerate(sorted((folder/'images').iterdir()))]
    assert len(Boxes.coco_boxes(coco(folder, good, images=sized(32, 32)), folder/'images')) == len(Boxes.coco_boxes(coco(folder, good, images=sized(0, 0)), folder/'images')) == 6
    with pytest.raises(DataError, match=r'P0_0.png has shape \(32, 32\), its annotations in coco.json say \(64, 16\)'): Boxes.coco_boxes(coco(folder, good, images=sized(64, 16)), folder/'images')
    voc(folder, (11, 9, 24, 20))
    path = folder/'Annotations'/'P1_2.xml'
    plain = path.read_text()
    for size,fits in [((32, 32), True), ((0, 0), True), ((64, 64), False)]:
        path.write_text(plain.replace('<annotation>', '<annotation><size><width>%d</width><height>%d</height><depth>1</depth></size>' % size))
        if fits: assert len(Boxes.voc_boxes(folder)) == 6
        else:
            with pytest.raises(DataError, match=r'P1_2.png has shape \(32, 32\), its annotations in set say \(64, 64\)'): Boxes.voc_boxes(folder)

def test_two_pictures_of_one_stem(folder):
    x,m = pictures()
    png(folder/'images'/'P0_0.jpg', x[1])
    with pytest.raises(DataError, match='P0_0.jpg and P0_0.png differ in their endings only'): Masks.mask_folder(folder/'images', folder/'masks')
    voc(folder, (11, 9, 24, 20))
    with pytest.raises(DataError, match='P0_0.jpg and P0_0.png differ'): Boxes.voc_boxes(folder)
    for n in ('v.nii', 'v.nii.gz'): (folder/n).touch()
    with pytest.raises(DataError, match='v.nii and v.nii.gz differ'): Volumes.nifti_pairs(folder, folder)

def test_one_picture_or_class_under_two_ids(folder):
    good,names = [[10, 8, 14, 12.]]*6,[p.name for p in sorted((folder/'images').iterdir())]
    rows = [dict(id=i, file_name=n) for i,n in enumerate(names)]
    for change,said in [(dict(images=rows + [dict(id=51, file_name='./P0_0.png')]), 'the picture P0_0.png stands twice, for 0 and 51'),
                        (dict(images=rows[:5] + [dict(id=4, file_name=names[5])], annotations=[]), 'the image id 4 stands twice, for P2_4.png and P2_5.png'),
                        (dict(categories=[dict(id=3, name='cell'), dict(id=3, name='egg')]), 'the category id 3 stands twice, for cell and egg')]:
        with pytest.raises(DataError, match=f'coco.json: {said}'): Boxes.coco_boxes(coco(folder, good, **change), folder/'images')

def test_linked_folders_and_files_are_read(folder, tmp_path):
    (tmp_path/'far').mkdir()
    for d in ('images', 'masks'):
        (folder/d).rename(tmp_path/'far'/d)
        (folder/d).symlink_to(tmp_path/'far'/d)
    (tmp_path/'link').symlink_to(folder)
    assert (doors.scans_from(tmp_path/'link').masks == pictures()[1]).all()

def palette(path, index, colours):
    from PIL import Image
    img = Image.frombytes('P', index.shape[::-1], np.ascontiguousarray(index).tobytes())
    img.putpalette([v for c in colours for v in c])
    img.save(path)

def test_masks_with_a_palette_give_its_indices(folder):
    from PIL import Image
    m = pictures()[1]
    m[:, 20:24] = 2
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    for p,v in zip(sorted((folder/'masks').iterdir()), m): palette(p, v, colours)
    assert Image.open(folder/'masks'/'P0_0.png').mode == 'P' and (np.asarray(Image.open(folder/'masks'/'P0_0.png')) == m[0]).all()
    read = lambda *classes: Masks.mask_folder(folder/'images', folder/'masks', [*classes])
    assert (read('background', 'rim', 'core').masks == m).all()
    with pytest.raises(DataError, match='P0_0.png has the label 2'): read('background', 'rim')
    for p,v in zip(sorted((folder/'masks').iterdir()), m): palette(p, v, [(0, 0, 0), (128, 128, 128), (255, 255, 255)])
    assert (read('background', 'rim', 'core').masks == m).all()
    for p,v in zip(sorted((folder/'masks').iterdir()), m): palette(p, (v == 0).astype(np.uint8), [(255, 255, 255), (0, 0, 0)])
    assert (read('background', 'white').masks == (m > 0)).all()

def test_masks_of_16_bits_and_of_colours(folder):
    m = pictures()[1]
    for p,v in zip(sorted((folder/'masks').iterdir()), m): png(p, v.astype(np.uint16))
    assert (doors.scans_from(folder).masks == m).all()
    png(folder/'masks'/'P1_2.png', np.stack([m[0]*255, m[0], m[0]], -1))
    with pytest.raises(DataError, match='P1_2.png holds colours, where a mask has one class number'): doors.scans_from(folder)

@pytest.mark.parametrize('which', ['images', 'masks'])
def test_stacks_of_pictures_are_refused(folder, which):
    from PIL import Image
    pages = [Image.fromarray(v) for v in pictures()[1][:3]]
    (folder/which/'P0_0.png').unlink()
    pages[0].save(folder/which/'P0_0.tif', save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match='P0_0.tif holds 3 pictures'): doors.scans_from(folder)

def test_pictures_without_annotations_are_told(folder):
    voc(folder, (11, 9, 24, 20))
    (folder/'Annotations'/'P1_3.xml').unlink()
    with pytest.warns(UserWarning, match='1 pictures have no file in Annotations and are left out, first P1_3'): assert len(Boxes.voc_boxes(folder)) == 5

def skipping(n=6):
    x,m = pictures(n)
    m[:, 20:24] = 4
    return x,m

def test_labels_that_skip_numbers(tmp_path, folder):
    nib = pytest.importorskip('nibabel')
    x,m = skipping()
    want = np.select([m == 1, m == 4], [1, 2])
    named = {0: 'background', 1: 'oedema', 4: 'enhancing'}
    for d,v in (('imagesTr', x), ('labelsTr', m)):
        (tmp_path/d).mkdir()
        for i in range(3): nib.save(nib.Nifti1Image(v[2*i:2*i+2].astype(np.float32), np.eye(4)), tmp_path/d/f'{i}.nii')
    np.savez(tmp_path/'a.npz', images=x, masks=m)
    for p,v in zip(sorted((folder/'masks').iterdir()), m): png(p, v)
    volumes = S.as_slices(want[:2].astype(np.uint8))
    s = Volumes.nifti_pairs(tmp_path)
    assert s.classes == ['background', 'label 1', 'label 4'] and (s.masks[0] == volumes).all() and 'label 2' not in str(s.summary())
    assert Volumes.nifti_pairs(tmp_path, classes=named).classes == [*named.values()]
    s = Masks.npz_masks(tmp_path/'a.npz')
    assert s.classes == ['background', 'object', 'label 4'] and (s.masks == want).all()
    for s in (Masks.npz_masks(tmp_path/'a.npz', named), Masks.mask_folder(folder/'images', folder/'masks', named)):
        assert s.classes == [*named.values()] and (s.masks == want).all()
    five = ['background', 'a', 'b', 'c', 'd']
    for read in (lambda: Masks.npz_masks(tmp_path/'a.npz', five), lambda: Volumes.nifti_pairs(tmp_path, classes=five), lambda: Masks.mask_folder(folder/'images', folder/'masks', five)):
        with pytest.warns(UserWarning, match='no mask has b, c'): assert read().classes == five
    with pytest.raises(DataError, match='a.npz: the mask in row 0 has the label 4'): Masks.npz_masks(tmp_path/'a.npz', ['background', 'a'])
    with pytest.raises(DataError, match='0.nii: the mask has the label 4'): Volumes.nifti_pairs(tmp_path, classes={0: 'background', 1: 'a', 2: 'b'})
    with pytest.raises(DataError, match='P0_0.png has the label 4'): Masks.mask_folder(folder/'images', folder/'masks', ['background', 'a'])

@pytest.fixture
def lists(tmp_path):
    "Twelve pictures of four patients in a VOC folder, and a way to write its lists"
    x,_ = pictures(12)
    names = [f'P{i//3} view {i}' for i in range(12)]
    for n,v in zip(names, x): png(tmp_path/'JPEGImages'/f'{n}.png', v)
    voc(tmp_path, (11, 9, 24, 20), names[0])
    def write(**lists):
        (tmp_path/'ImageSets'/'Main').mkdir(parents=True, exist_ok=True)
        for p in (tmp_path/'ImageSets'/'Main').iterdir(): p.unlink()
        for k,v in lists.items(): (tmp_path/'ImageSets'/'Main'/f'{k}.txt').write_text('\n'.join(v) + '\n')
        return tmp_path
    return names,write

@pytest.mark.parametrize('kept', ['val', 'test', None])
def test_voc_keeps_its_lists_and_takes_what_is_missing_from_train(lists, kept):
    names,write = lists
    folder = write(train=names[:9], **{kept: names[9:]}) if kept else write(trainval=names)
    s = Boxes.voc_boxes(folder, patient=r'(P\d)')
    split = dict(zip(sorted(names), s.split))
    mine = dict(val='valid', test='test').get(kept)
    assert len(s) == 12 and set(s.split) == {'train', 'valid', 'test'}
    if kept: assert {split[n] for n in names[9:]} == {mine} and mine not in {split[n] for n in names[:9]}
    assert all(len({split[n] for n in names[3*i:3*i+3]}) == 1 for i in range(4)) and set(s.groups) == {'P0', 'P1', 'P2', 'P3'}

def test_voc_lists_with_spaces_in_names(lists):
    names,write = lists
    s = Boxes.voc_boxes(write(train=names[:6], val=names[6:9], test=names[9:]))
    assert dict(zip(sorted(names), s.split)) == dict(zip(names, ['train']*6 + ['valid']*3 + ['test']*3)) and s.groups is None

def test_voc_lists_that_do_not_fit(lists):
    names,write = lists
    for change,said in [(dict(val=names[9:]), 'val.txt.* but no train.txt'), (dict(train=names[:9], val=names[8:]), 'P2 view 8 is listed twice, in train and valid'),
                        (dict(train=names[:9], val=['P7 view 0']), "val.txt lists 'P7 view 0', which has no file"), (dict(train=names[:10], val=names[10:]), 'patient P3 is in')]:
        with pytest.raises(DataError, match=said): Boxes.voc_boxes(write(**change), patient=r'(P\d)')
    with pytest.warns(UserWarning, match='3 annotated pictures are in no list'): assert len(Boxes.voc_boxes(write(train=names[:3], val=names[3:6], test=names[6:9]))) == 9

def test_doors_that_lead_nowhere(tmp_path):
    for what,said in [(tmp_path, 'holds nothing that a chapter reads'), (tmp_path/'no', 'is not there'), (tmp_path/'no.npz', 'is not there'), ('mni151', 'mni152')]:
        with pytest.raises(DataError, match=said): doors.scans_from(what)

def test_mni_tissue():
    try: s,v = Volumes.mni_tissue(),Volumes.mni_tissue(volumes=True)
    except DataError as e: pytest.skip(f'the MNI152 template cannot be had here: {e}')
    assert s.images.shape[1] % 32 == s.images.shape[2] % 32 == 0 and set(np.unique(s.masks)) == {0, 1, 2} and s.splits == ['train', 'valid', 'test']
    assert v.images.shape[1:] == (10, *s.images.shape[1:]) and (v.images.reshape(s.images.shape) == s.images).all() and len(set(v.groups)) == len(v)
    means = [s.images[s.masks == k].mean() for k in (1, 2)]
    assert 100 < means[0] < .9*means[1]

@pytest.mark.parametrize('path,said', [('dsb2018_nuclei/dsb2018_256_gray.npz', '334 masks and instances'), ('bccd/BCCD', '364 boxes'), ('msd_hippocampus', '260 masks')])
def test_sets_beside_the_project(path, said):
    if not (SHARED/path).exists(): pytest.skip(f'{SHARED/path} is absent')
    with warnings.catch_warnings(action='ignore'): s = doors.scans_from(SHARED/path, drop_bad=True)
    assert f'{len(s)} ' in said and s.splits == ['train', 'valid', 'test'] and said.split(' ', 1)[1] in repr(s)
    if s.boxes is not None:
        assert s.dropped == 2 and (s.split == 'test').sum() == 72 and s.classes == ['background', 'Platelets', 'RBC', 'WBC']
        assert np.bincount(np.concatenate(s.labels))[1:].tolist() == [361, 4153, 372]
    if s.volumes: assert [int((s.masks == k).sum()) for k in (1, 2)] == [445938, 410816]

# The simulated scanner

def test_projections_agree_with_scikit_image():
    from skimage.transform import iradon,radon
    rng = np.random.default_rng(0)
    for size,angles in ((33, 20), (64, 45)):
        x = rng.random((3, size, size)).astype(np.float32)
        y,c = np.mgrid[:size, :size] - size//2
        x[:, y*y + c*c >= (size//2-1)**2] = 0
        degrees = np.linspace(0, 180, angles, endpoint=False)
        ours = P.project(x, angles)
        theirs = np.stack([radon(v, degrees) for v in x])
        assert np.allclose(ours, theirs, atol=2e-3*theirs.max())
        back = P.backproject(theirs.astype(np.float32))
        assert np.allclose(back, [iradon(s, degrees, filter_name='ramp') for s in theirs], atol=1e-3)

def test_noise_follows_photons_and_values_hold():
    y,x = np.mgrid[:64, :64] - 32
    water = np.repeat(np.where(x*x + y*y < 25**2, 0., -1000.)[None], 40, 0)
    inside = x*x + y*y < 10**2
    sd = {(d, t): P.scanned(water, 3, d, t)[:, inside].std(0).mean() for d,t in ((.1, 2), (.4, 2), (.1, 8))}
    assert sd[.1, 2]/sd[.4, 2] == pytest.approx(2, rel=.06) and sd[.1, 8] == pytest.approx(sd[.4, 2], rel=.06)
    assert abs(P.scanned(water[:1], 3, 50)[0][inside].mean()) < 5
    for bad in (dict(dose=0), dict(thickness=-1)):
        with pytest.raises(DataError, match='above 0'): P.scanned(water[:1], 3, **bad)

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        try: F.fetch('lidc_nodules')
        except DataError as e: pytest.skip(f'the outlines of LIDC-IDRI cannot be had here: {e}')
        P.lidc_readings()
        m.setenv('MEDLEARN_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield P.simulated_ct(40, size=96, seed=3)

def test_simulated_ct(drawn, tmp_path, monkeypatch):
    assert drawn.simulated and 'simulated' in repr(drawn) and drawn.show(2).get_suptitle() == 'simulated' and Cards.card('simulated_ct').simulated
    for m,b,d in zip(drawn.masks, drawn.boxes, drawn.table.diameter_mm):
        assert len(b) == len(d) and bool(len(b)) == bool(m.any())
        for x0,y0,x1,y1 in b.astype(int): assert m[y0:y1, x0:x1].mean() > .3
        covered = np.zeros_like(m)
        for x0,y0,x1,y1 in b.astype(int): covered[y0:y1, x0:x1] = 1
        assert (m <= covered).all()
    inside,lung = drawn.images[drawn.masks > 0].mean(),np.median(drawn.images)
    assert inside > 60 and len(set(drawn.groups)) == 40
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path))
    again = P.simulated_ct(40, size=96, seed=3)
    assert (again.images == drawn.images).all() and (again.masks == drawn.masks).all() and (again.split == drawn.split).all()
    assert [p.suffix for p in (tmp_path/'simulated_ct').iterdir()] == ['.npz']
    path = next((tmp_path/'simulated_ct').iterdir())
    path.write_bytes(path.read_bytes()[:5000])
    monkeypatch.setattr(P, 'scanned', lambda hu, *a: hu)
    assert not (P.simulated_ct(40, size=96, seed=3).images == drawn.images).all(), 'a cut file in the cache is made anew'

def test_nodules_too_small_to_draw_are_passed_over_in_silence():
    try: df = P.lidc_readings()
    except DataError as e: pytest.skip(f'the outlines of LIDC-IDRI cannot be had here: {e}')
    with warnings.catch_warnings(action='error'): *_,patients,rows = P._drawn(64, 128, 2.5, 2., 1., 6., .2, 42)
    able = df[df.diameter_mm.between(6, 35)].patient
    assert set(patients) <= set(able) and able.nunique() < df.patient.nunique() == 875
    assert (rows[:, 2] >= 6).all()

def test_nodule_keeps_its_size_and_thick_slices_dilute():
    try: df = P.lidc_readings()
    except DataError as e: pytest.skip(f'the outlines of LIDC-IDRI cannot be had here: {e}')
    for r in df[df.diameter_mm.between(8, 30)].sample(30, random_state=0).itertuples():
        for turn in (0, 3, 6):
            share,truth = P.nodule(r.reading, .8, r.slice_spacing*.5, turn)
            assert share.sum()*.64 == pytest.approx(r.area_mm2, rel=.02) and truth.sum()*.64 == pytest.approx(r.area_mm2, rel=.15)
        assert P.nodule(r.reading, .8, 200.)[0].max() < .5
