"Formats with geometry, annotations of users, and the simulated CT: what is read is what was written, and faults are named"
import gzip,json,sys
from pathlib import Path
import numpy as np
import pytest
from medlearn.data import scans as S
from medlearn.kit import fetch as F
from medlearn.kit.fetch import DataError

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

def test_nothing_identifying_remains(ct, tmp_path):
    import pydicom
    hu,ds = S.read_dicom(ct)
    before = ds.to_json()
    ref = pydicom.Dataset()
    ref.ReferencedSOPClassUID,ref.ReferencedSOPInstanceUID = ds.SOPClassUID,ds.SOPInstanceUID
    ref.OperatorsName,ref.ContentDate = 'Nested^Operator','19991231'
    ds.ReferencedImageSequence,ds.BurnedInAnnotation,ds.OperatorsName = [ref],'NO',['Doe^Jane', 'Roe^Richard']
    clean = S.anonymise(ds, 'pepper')
    clean.save_as(tmp_path/'clean.dcm')
    raw = (tmp_path/'clean.dcm').read_bytes()
    for text in ('CompressedSamples', '1CT1', 'ABCD1234', '1234ABCD', 'JFK', 'CT01_OC0', 'CLUNIE1', '20040119', '19970430', '1.3.6.1.4.1.5962.1',
                 'Nested', '19991231', 'Doe', 'Roe', 'GEMS', 'Uncompressed'): assert text.encode() not in raw, text
    hu2,again = S.read_dicom(tmp_path/'clean.dcm')
    assert (hu2 == hu).all() and not any(e.tag.is_private for e in again)
    assert again.ReferencedImageSequence[0].ReferencedSOPInstanceUID == again.SOPInstanceUID == again.file_meta.MediaStorageSOPInstanceUID
    assert again.SOPClassUID == ds.SOPClassUID and again.PatientIdentityRemoved == 'YES'
    assert S.anonymise(ds, 'pepper').PatientID == clean.PatientID != S.anonymise(ds, 'salt').PatientID
    assert pydicom.dcmread(ct).to_json() == before and ds.PatientID == '1CT1'
    with pytest.raises(ValueError, match='salt'): S.anonymise(ds, '')

def test_burnt_in_text_is_warned_about(ct):
    _,ds = S.read_dicom(ct)
    ds.BurnedInAnnotation = 'YES'
    with pytest.warns(UserWarning, match='burnt'): S.anonymise(ds, 'x')
    del ds.BurnedInAnnotation
    ds.Modality = 'US'
    with pytest.warns(UserWarning, match='burnt'): S.anonymise(ds, 'x')

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
        with pytest.raises(ImportError, match=r'medlearn\[formats\]'): read(tmp_path/'any')

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

