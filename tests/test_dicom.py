"DICOM: a picture as its file means it, against pydicom's own functions"
import warnings
from pathlib import Path
import numpy as np
import pytest
from medlearn.data import scans as S
from medlearn.kit.cards import DataError

pydicom = pytest.importorskip('pydicom')
from pydicom import pixels as PX
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian,ExplicitVRLittleEndian,SecondaryCaptureImageStorage,generate_uid

def sample(name): return get_testdata_file(name, download=False)

def made(path, pixels, kind='MONOCHROME2', bits=None, big=False, **fields):
    "A small file with these pixels and header fields"
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.PixelRepresentation,ds.PhotometricInterpretation = int(pixels.dtype.kind == 'i'),kind
    ds.Rows,ds.Columns = pixels.shape[-3:-1] if pixels.shape[-1] == 3 and pixels.ndim > 2 else pixels.shape[-2:]
    ds.SamplesPerPixel = 3 if pixels.shape[-1] == 3 and pixels.ndim > 2 else 1
    if ds.SamplesPerPixel == 3: ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8*pixels.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    for k,v in fields.items(): setattr(ds, k, v)
    if ds.BitsAllocated > 8: ds.add_new('PixelData', 'OW', pixels.astype(pixels.dtype.newbyteorder('>' if big else '<')).tobytes())
    else: ds.add_new('PixelData', 'OB', pixels.tobytes())
    ds.save_as(path, enforce_file_format=True)
    return path

def item(**fields):
    ds = pydicom.Dataset()
    for k,v in fields.items(): setattr(ds, k, v)
    return ds

def table(values, first, bits, vr='US'):
    ds = pydicom.Dataset()
    ds.add_new('LUTDescriptor', 'SS' if first < 0 else 'US', [len(values), first, bits])
    ds.add_new('LUTData', vr, [int(v) for v in values] if vr == 'US' else values.astype('<u2' if vr == 'OW' else 'u1').tobytes())
    return ds

grey = np.random.default_rng(0).integers(-1000, 3000, (24, 32)).astype(np.int16)

def by_pydicom(path):
    "pydicom's own pipeline, from the range of its output to 0 to 255"
    ds = pydicom.dcmread(path)
    values = PX.apply_modality_lut(ds.pixel_array, ds)
    shown = PX.apply_voi_lut(values, ds).astype(float)
    if 'VOILUTSequence' in ds: return shown*255/(2**ds.VOILUTSequence[0].LUTDescriptor[2]-1)
    ends = np.array([0, 2**ds.BitsStored-1]) - (2**(ds.BitsStored-1) if ds.PixelRepresentation else 0)
    low,high = ends*float(ds.get('RescaleSlope', 1)) + float(ds.get('RescaleIntercept', 0))
    return (shown-low)/(high-low)*255

@pytest.mark.parametrize('fields', [dict(WindowCenter=40, WindowWidth=400), dict(WindowCenter=0, WindowWidth=1), dict(WindowCenter=[300, 40], WindowWidth=[1500, 400]),
    dict(WindowCenter=40, WindowWidth=.5, VOILUTFunction='LINEAR_EXACT'), dict(WindowCenter=40, WindowWidth=400, VOILUTFunction='LINEAR_EXACT'),
    dict(WindowCenter=40, WindowWidth=400, VOILUTFunction='SIGMOID'), dict(WindowCenter=40, WindowWidth=400, VOILUTFunction='')])
@pytest.mark.parametrize('more', [{}, dict(RescaleSlope=1, RescaleIntercept=-1024), dict(RescaleSlope=.5, RescaleIntercept=3)])
def test_the_files_own_window(tmp_path, fields, more):
    p = made(tmp_path/'a.dcm', grey, **fields, **more)
    x,ds = S.dicom_picture(p)
    if not fields.get('VOILUTFunction', 'LINEAR'): p = made(tmp_path/'b.dcm', grey, WindowCenter=40, WindowWidth=400, **more)
    assert x.dtype == np.uint8 and x.shape == grey.shape and ds.Rows == 24
    assert abs(x - by_pydicom(p)).max() <= .51 and 0 < x.mean() < 255

def test_a_window_of_linear_and_linear_exact_are_not_the_same(tmp_path):
    x = np.array([[0, 1, 2, 3, 4]], np.uint16)
    linear = S.dicom_picture(made(tmp_path/'a.dcm', x, WindowCenter=2, WindowWidth=4))[0]
    exact = S.dicom_picture(made(tmp_path/'b.dcm', x, WindowCenter=2, WindowWidth=4, VOILUTFunction='LINEAR_EXACT'))[0]
    assert linear.tolist() == [[0, 85, 170, 255, 255]] and exact.tolist() == [[0, 64, 128, 191, 255]]

curve = (1023*np.linspace(0, 1, 500)**2).astype(int)
@pytest.mark.parametrize('first', [0, 100, -300])
@pytest.mark.parametrize('vr', ['US', 'OW'])
def test_the_files_own_table(tmp_path, first, vr):
    p = made(tmp_path/'a.dcm', grey, VOILUTSequence=[table(curve, first, 10, vr)], WindowCenter=1, WindowWidth=9)
    assert abs(S.dicom_picture(p)[0] - by_pydicom(p)).max() <= .51

def test_tables_of_8_bits_with_many_entries(tmp_path):
    "pydicom counts their entries in 8 bits, and refuses packed ones"
    small = np.linspace(0, 255, 4096).astype(int)
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for vr in ('US', 'OW', 'OB'):
        p = made(tmp_path/'a.dcm', stored, bits=12, VOILUTSequence=[table(small, 0, 8, vr)])
        assert (S.dicom_picture(p)[0].ravel() == small).all(), vr
        p = made(tmp_path/'b.dcm', stored, bits=12, ModalityLUTSequence=[table(small, 0, 8, vr)])
        assert (S.read_dicom(p)[0].ravel() == small).all(), vr

def test_a_table_in_a_big_endian_file(tmp_path):
    ds = table(curve, 0, 10)
    ds['LUTData'].VR,ds['LUTData'].value = 'OW',curve.astype('>u2').tobytes()
    p = made(tmp_path/'a.dcm', grey, big=True, VOILUTSequence=[ds])
    assert (S.dicom_picture(p)[0] == np.rint(curve[np.clip(grey, 0, 499)]*255/1023)).all()

def test_a_modality_table_of_signed_pixels(tmp_path):
    "pydicom's index runs over in 16 bits where the table begins at the lowest value"
    stored = np.array([[-32768, -1, 0, 30000]], np.int16)
    full = np.arange(40000)//2
    p = made(tmp_path/'a.dcm', stored, ModalityLUTSequence=[table(full, -32768, 16)])
    assert S.read_dicom(p)[0].tolist() == [[0, 16383, 16384, 19999]]

def test_level_and_width_of_the_reader(tmp_path):
    p = made(tmp_path/'a.dcm', grey, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=1, WindowWidth=9)
    assert (S.dicom_picture(p, (40, 400))[0] == np.rint(255*np.clip((grey.astype(float)-1024-40)/400+.5, 0, 1))).all()
    for wrong in ((40, 0), (40, -3), (40, np.nan)):
        with pytest.raises(ValueError, match='width'): S.dicom_picture(p, wrong)

def test_without_a_window_quantiles_say_it(tmp_path):
    hu,_ = S.read_dicom(sample('CT_small.dcm'))
    low,high = np.quantile(hu, .005),np.quantile(hu, .995)
    assert (S.dicom_picture(sample('CT_small.dcm'))[0] == np.rint(255*np.clip((hu-low)/(high-low), 0, 1))).all()
    rare = np.zeros((64, 64), np.uint16)
    rare[3, 4] = 900
    assert S.dicom_picture(made(tmp_path/'a.dcm', rare))[0][3, 4] == 255
    assert not S.dicom_picture(made(tmp_path/'b.dcm', 0*rare + 7))[0].any()

def test_eight_bits_without_a_window_are_the_picture(tmp_path):
    dull = np.arange(60, 120, dtype=np.uint8).reshape(6, 10)
    assert (S.dicom_picture(made(tmp_path/'a.dcm', dull))[0] == dull).all()
    assert (S.dicom_picture(made(tmp_path/'a.dcm', dull, RescaleSlope=1, RescaleIntercept=0))[0] == dull).all()
    x = S.dicom_picture(made(tmp_path/'b.dcm', dull, RescaleSlope=2, RescaleIntercept=0))[0]
    assert (x.min(), x.max()) == (0, 255)

@pytest.mark.parametrize('inverse', [dict(kind='MONOCHROME1'), dict(PresentationLUTShape='INVERSE')])
def test_dense_is_bright(tmp_path, inverse):
    window = dict(WindowCenter=40, WindowWidth=400)
    same = S.dicom_picture(made(tmp_path/'a.dcm', grey, **window))[0].astype(int)
    p = made(tmp_path/'b.dcm', grey, **window, **inverse)
    with pytest.warns(UserWarning, match='b.dcm: low values are white') as said: x,ds = S.dicom_picture(p)
    assert len(said) == 1 and abs(x + same - 255).max() <= 1 and x.std() > 50
    with pytest.warns(UserWarning, match='low values'): assert (S.dicom_picture(p, (40, 400))[0][grey < -200] == 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for quantity in ('CT', 'PT', 'NM'):
            assert (S.dicom_picture(made(tmp_path/'c.dcm', grey, **window, **inverse, Modality=quantity))[0] == same).all()

@pytest.mark.parametrize('pad,more', [(-2000, {}), (63536, {}), (-2100, dict(PixelPaddingRangeLimit=-1950)), (-1950, dict(PixelPaddingRangeLimit=-2100))])
def test_padding_is_black_and_does_not_count(tmp_path, pad, more):
    x = grey.copy()
    x[:, :8] = -2000
    bare = S.dicom_picture(made(tmp_path/'a.dcm', grey[:, 8:]))[0]
    vr = 'US' if pad > 0 else 'SS'
    ds = pydicom.dcmread(made(tmp_path/'b.dcm', x))
    ds.add_new('PixelPaddingValue', vr, pad)
    for k,v in more.items(): ds.add_new(k, vr, v)
    ds.save_as(tmp_path/'b.dcm')
    got = S.dicom_picture(tmp_path/'b.dcm')[0]
    assert not got[:, :8].any() and (got[:, 8:] == bare).all()
    ds.PhotometricInterpretation = 'MONOCHROME1'
    ds.save_as(tmp_path/'b.dcm')
    with pytest.warns(UserWarning): got = S.dicom_picture(tmp_path/'b.dcm')[0]
    assert not got[:, :8].any() and (got[:, 8:] == 255-bare).mean() > .99

def test_windows_and_slopes_of_an_enhanced_file(tmp_path):
    shared = item(FrameVOILUTSequence=[item(WindowCenter=40, WindowWidth=400)],
                  PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024)])
    want = S.dicom_picture(made(tmp_path/'a.dcm', grey, WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-1024))[0]
    for name in ('Shared', 'PerFrame'):
        p = made(tmp_path/'b.dcm', grey, NumberOfFrames=1, **{f'{name}FunctionalGroupsSequence': [shared]})
        assert (S.dicom_picture(p)[0] == want).all()

# Colours

colours = np.random.default_rng(1).integers(0, 256, (6, 8, 3)).astype(np.uint8)

def test_colours_become_rgb(tmp_path):
    assert (S.dicom_picture(made(tmp_path/'a.dcm', colours, 'RGB'))[0] == colours).all()
    ybr = PX.convert_color_space(colours, 'RGB', 'YBR_FULL')
    x = S.dicom_picture(made(tmp_path/'b.dcm', ybr, 'YBR_FULL'))[0]
    assert (x == PX.convert_color_space(ybr, 'YBR_FULL', 'RGB')).all() and abs(x.astype(int)-colours).max() <= 2
    wide = made(tmp_path/'c.dcm', colours.astype(np.uint16)*257, 'RGB')
    assert (S.dicom_picture(wide)[0] == colours).all()
    with pytest.raises(DataError, match='c.dcm is in colour'): S.dicom_picture(wide, (40, 400))

def test_colours_of_real_files():
    plain = S.dicom_picture(sample('SC_rgb_rle.dcm'))[0]
    assert plain.shape == (100, 100, 3) and plain[5, 50].tolist() == [255, 0, 0]
    for name in ('SC_rgb_dcmtk_+eb+cr.dcm', 'SC_rgb_dcmtk_+eb+cy+n1.dcm', 'SC_rgb_dcmtk_+eb+cy+np.dcm', 'SC_rgb_jpeg_dcmtk.dcm',
                 'SC_ybr_full_422_uncompressed.dcm', 'SC_rgb_rle_16bit.dcm', 'SC_rgb_rle_32bit.dcm'):
        x = S.dicom_picture(sample(name))[0]
        assert abs(x.astype(int)-plain)[5:95:10].max() <= 6, name

def lut(ds, values, first, bits, dtype):
    for c,v in zip(('Red', 'Green', 'Blue'), values.T):
        ds.add_new(f'{c}PaletteColorLookupTableDescriptor', 'US', [len(v) % 2**16, first, bits])
        ds.add_new(f'{c}PaletteColorLookupTableData', 'OW', v.astype(dtype).tobytes())

@pytest.mark.parametrize('bits,dtype', [(16, '<u2'), (8, '<u2'), (8, 'u1')])
def test_palettes(tmp_path, bits, dtype):
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    names = np.random.default_rng(2).integers(0, 256, (200, 3))
    ds = pydicom.dcmread(made(tmp_path/'a.dcm', stored, 'PALETTE COLOR'))
    lut(ds, names*257 if bits == 16 else names, 20, bits, dtype)
    ds.save_as(tmp_path/'a.dcm')
    x = S.dicom_picture(tmp_path/'a.dcm')[0]
    assert (x.reshape(-1, 3) == names[np.clip(np.arange(256)-20, 0, 199)]).all()
    assert (x == (PX.apply_color_lut(stored, ds) >> (8 if bits == 16 else 0))).all()

def test_a_palette_of_8_bits_with_many_entries(tmp_path):
    stored,names = np.arange(1000, dtype=np.uint16).reshape(25, 40),np.random.default_rng(2).integers(0, 256, (1000, 3))
    ds = pydicom.dcmread(made(tmp_path/'a.dcm', stored, 'PALETTE COLOR'))
    lut(ds, names, 0, 8, 'u1')
    ds.save_as(tmp_path/'a.dcm')
    assert (S.dicom_picture(tmp_path/'a.dcm')[0].reshape(-1, 3) == names).all()

def test_a_real_palette():
    p = sample('examples_palette.dcm')
    ds = pydicom.dcmread(p)
    want = PX.apply_color_lut(ds.pixel_array, ds)
    assert want.dtype == np.uint16 and (S.dicom_picture(p)[0] == want >> 8).all()
    with pytest.raises(DataError, match='dicom_picture'): S.read_dicom(p)

# What is no single picture

def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path/'text.dcm').write_text('not a scan')
    for path,said in [(tmp_path/'text.dcm', 'text.dcm cannot be read'), (tmp_path/'none.dcm', 'none.dcm is not there'), (sample('test-SR.dcm'), 'test-SR.dcm cannot .* holds no picture'),
                      (sample('rtdose.dcm'), 'rtdose.dcm has 15 frames'), (sample('SC_rgb_rle_2frame.dcm'), '2 frames'), (sample('MR_truncated.dcm'), 'MR_truncated.dcm cannot'),
                      (made(tmp_path/'w.dcm', grey, WindowCenter=1, WindowWidth=0), r'w.dcm cannot .*Window Width'),
                      (made(tmp_path/'h.dcm', colours, 'HSV'), 'h.dcm cannot be read.*HSV')]:
        with pytest.raises(DataError, match=f'(?s){said}'): S.dicom_picture(path)

# Values that are not what they are taken for

def warned(f, *a):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        out = f(*a)
    return out,[str(w.message) for w in said]

@pytest.mark.parametrize('fields,kind', [(dict(RescaleSlope=1, RescaleIntercept=-1024, RescaleType='HU'), None), (dict(RescaleSlope=1, RescaleIntercept=-1024), None),
    ({}, 'stored values'), (dict(RescaleSlope=.01, RescaleIntercept=0, RescaleType='Z_EFF'), 'Z_EFF'), (dict(RescaleSlope=1, RescaleIntercept=0, RescaleType='HU_MOD'), 'HU_MOD')])
def test_a_ct_that_is_not_in_hu_is_named(tmp_path, fields, kind):
    grouped = dict(SharedFunctionalGroupsSequence=[item(PixelValueTransformationSequence=[item(**fields)])]) if fields else {}
    for more in (fields, grouped):
        (x,_),said = warned(S.read_dicom, made(tmp_path/'c.dcm', grey, Modality='CT', **more))
        assert np.allclose(x, grey*fields.get('RescaleSlope', 1.) + fields.get('RescaleIntercept', 0))
        assert not said if kind is None else len(said) == 1 and 'c.dcm: a CT that is not in HU' in said[0] and kind in said[0]
    assert not warned(S.read_dicom, made(tmp_path/'m.dcm', grey, Modality='MR'))[1]

def test_a_second_mapping_to_a_quantity_is_named(tmp_path):
    suv = item(RealWorldValueSlope=.0003, RealWorldValueIntercept=0., MeasurementUnitsCodeSequence=[item(CodeValue='{SUVbw}g/ml', CodeMeaning='Standardized Uptake Value body weight')])
    rescale = dict(RescaleSlope=2, RescaleIntercept=0, Modality='PT', Units='BQML')
    same = item(RealWorldValueSlope=2., RealWorldValueIntercept=0.)
    for more in (dict(RealWorldValueMappingSequence=[suv]), dict(PerFrameFunctionalGroupsSequence=[item(RealWorldValueMappingSequence=[suv])])):
        (x,_),said = warned(S.read_dicom, made(tmp_path/'p.dcm', grey, **rescale, **more))
        assert (x == 2*grey.astype(float)).all() and len(said) == 1 and 'p.dcm: its header also maps stored values to Standardized Uptake' in said[0]
    assert not warned(S.read_dicom, made(tmp_path/'p.dcm', grey, **rescale, RealWorldValueMappingSequence=[same]))[1]

def test_a_nifti_without_an_orientation_is_named(tmp_path):
    nib = pytest.importorskip('nibabel')
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for s,q in ((0, 0), (1, 0), (0, 1)):
        img = nib.Nifti1Image(x, np.diag([2, 2, 2, 1]))
        img.set_sform(img.affine, code=s), img.set_qform(img.affine, code=q)
        img.header.set_xyzt_units('mm')
        nib.save(img, tmp_path/'n.nii')
        said = warned(S.read_nifti, tmp_path/'n.nii')[1]
        assert (len(said) == 1 and 'n.nii names no orientation' in said[0]) if s == q == 0 else not said
