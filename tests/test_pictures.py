"Folders of pictures: every file as it is meant, every label where it belongs, and what gives the answer away"
import warnings
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from medlearn.data import pictures as P
from medlearn.data.folders import picture_folder,SPLITS
from medlearn.data.shortcuts import cheat,further,giveaways
from medlearn.data.splits import duplicates
from medlearn.kit import fetch as F
from medlearn.kit.cards import DataError

SHARED = Path(__file__).parent.parent.parent/'shared'/'data'
rng = np.random.default_rng(0)

def noise(h=20, w=20, c=3): return rng.integers(0, 256, (h, w, c) if c else (h, w), np.uint8)

@pytest.fixture
def folder(tmp_path):
    "Two class folders of twelve pictures, two of each of six people: PERSON_n.png"
    for k,c in enumerate(('healthy', 'ill')):
        (tmp_path/'data'/c).mkdir(parents=True)
        for i in range(12): Image.fromarray(noise()).save(tmp_path/'data'/c/f'P{k}{i//2}_{i}.png')
    return tmp_path/'data'

@pytest.fixture
def listed(tmp_path):
    "Twelve pictures of six people and a table"
    at = tmp_path/'listed'
    at.mkdir()
    for i in range(12): Image.fromarray(noise()).save(at/f'x{i}.png')
    rows = pd.DataFrame(dict(file=[f'x{i}.png' for i in range(12)], label=['well', 'sick']*6, patient=[f'p{i//2}' for i in range(12)]))
    rows.to_csv(at/'labels.csv', index=False)
    return at,rows

# Single pictures

def test_pictures_are_turned_as_exif_says(tmp_path):
    x,exif = noise(10, 30),Image.Exif()
    exif[274] = 6
    Image.fromarray(x).save(tmp_path/'a.png', exif=exif)
    got,how = P.read_picture(tmp_path/'a.png')
    assert (got == np.rot90(x, -1)).all() and how['turned']

def test_sixteen_bits_are_windowed(tmp_path):
    x = rng.integers(0, 4096, (40, 40)).astype(np.uint16)
    Image.fromarray(x).save(tmp_path/'a.png')
    Image.fromarray(x).save(tmp_path/'a.tif')
    Image.fromarray(x.astype(np.float32)/4096).save(tmp_path/'f.tif')
    low,high = np.quantile(x, (.005, .995))
    want = np.clip((x - low)/(high - low), 0, 1)*255
    for name in ('a.png', 'a.tif', 'f.tif'):
        got,how = P.read_picture(tmp_path/name)
        assert abs(got - want).max() <= 1 and how['windowed'] and got.dtype == np.uint8
    got,_ = P.read_picture(tmp_path/'a.png', (1000, 500))
    assert abs(got - np.clip((x - 750.)/500, 0, 1)*255).max() <= 1

@pytest.mark.parametrize('mode,colour', [('L', False), ('RGB', True), ('RGBA', True), ('P', True), ('LA', False), ('1', False), ('CMYK', True)])
def test_modes(tmp_path, mode, colour):
    img = Image.fromarray(noise()).convert(mode)
    img.save(tmp_path/'a.tif')
    got,how = P.read_picture(tmp_path/'a.tif')
    want = np.asarray(Image.open(tmp_path/'a.tif').convert('RGB'))
    assert got.ndim == (3 if colour else 2) and (got == (want if colour else want[..., 0])).all() and not how['opacity']

def test_opacity_is_told(folder):
    Image.fromarray(noise(c=4)).save(folder/'ill'/'P19_x.png')
    assert picture_folder(folder, side=16).told['with opacity'].startswith('1')

def test_photographs_of_phones_bring_previews_along(tmp_path):
    "Many phones write MPO: a JPEG with further pictures behind it"
    x = np.full((20, 20, 3), (200, 120, 60), np.uint8)
    Image.fromarray(x).save(tmp_path/'a.jpg', 'MPO', save_all=True, append_images=[Image.fromarray(255 - x)], quality=95)
    with Image.open(tmp_path/'a.jpg') as img: assert img.format == 'MPO' and img.n_frames == 2
    assert abs(P.read_picture(tmp_path/'a.jpg')[0].astype(int) - x).max() < 8

def test_stacks_and_halves_are_refused(tmp_path):
    Image.fromarray(noise()).save(tmp_path/'a.tif', save_all=True, append_images=[Image.fromarray(noise())])
    with pytest.raises(DataError, match='a.tif holds 2 pictures'): P.read_picture(tmp_path/'a.tif')
    Image.fromarray(noise(99, 99)).save(tmp_path/'b.jpg')
    (tmp_path/'b.jpg').write_bytes((tmp_path/'b.jpg').read_bytes()[:2000])
    with pytest.raises(DataError, match='b.jpg cannot be read'): P.read_picture(tmp_path/'b.jpg')
    Image.fromarray(np.full((5, 5), np.nan, np.float32)).save(tmp_path/'c.tif')
    with pytest.raises(DataError, match='c.tif has NaN'): P.read_picture(tmp_path/'c.tif')

def test_dicom_low_white_is_turned_round(tmp_path, folder):
    pydicom = pytest.importorskip('pydicom')
    from pydicom.data import get_testdata_file
    ds = pydicom.dcmread(get_testdata_file('CT_small.dcm'))
    ds.PhotometricInterpretation,ds.Modality = 'MONOCHROME1','DX'
    stored = ds.pixel_array.astype(float)
    for i in range(6): # five without an ending
        ds.PixelData = np.roll(stored, 20*i, 1).astype(np.int16).tobytes()
        ds.save_as(folder/'ill'/(f'P1{i}_d{i}' if i else 'P10_d.dcm'))
    got,how = P.read_picture(folder/'ill'/'P10_d.dcm')
    assert how['inverted'] and np.corrcoef(got.ravel(), stored.ravel())[0, 1] < -.5
    data = picture_folder(folder, side=16, patient=r'(P\d+)_')
    assert data.told['stored with low values white'] == '6, turned round' and data.told['with more than 8 bits'].startswith('6')
    assert len(data) == 30 and data.images.shape == (30, 16, 16, 3) and '6 grey ones became colour' in data.told['colour']

# Folders of classes

def test_class_folders(folder):
    data = picture_folder(folder, side=20)
    want = {f.relative_to(folder).as_posix(): np.asarray(Image.open(f)) for f in folder.rglob('*.png')}
    assert data.classes == ['healthy', 'ill'] and list(data.table.file) == sorted(want) and data.groups is None
    assert all((x == want[f]).all() for x,f in zip(data.images, data.table.file)) # 20 pixels stay 20
    assert [data.classes[y] for y in data.labels] == [f.split('/')[0] for f in data.table.file]
    assert data.told['which is positive'] == 'ill, healthy is a word for healthy or alive' and data.facts()['counts as positive'] == 'ill'
    assert {n for n,_ in F.seen} >= {'data'}

def test_people_by_a_pattern_of_the_path(folder):
    data = picture_folder(folder, side=16, patient=r'(P\d+)_')
    assert len(set(data.groups)) == 12 and pd.Series(data.split).groupby(data.groups).nunique().max() == 1
    assert (data.groups == [f.split('/')[1].split('_')[0] for f in data.table.file]).all()
    with pytest.raises(DataError, match=r"finds no patient in healthy/P00_0.png. Put brackets around"): picture_folder(folder, patient=r'(Q\d+)')
    assert (picture_folder(folder, side=16, patient=r'^(P\d+)_').groups == data.groups).all() # a name is enough
    for f in list(folder.rglob('*.png')): # one folder a person below the class
        (f.parent/f.stem.split('_')[0]).mkdir(exist_ok=True)
        f.rename(f.parent/f.stem.split('_')[0]/'image.png' if f.stem.endswith(('0', '2', '4', '6', '8')) else f.parent/f.stem.split('_')[0]/'other.png')
    again = picture_folder(folder, side=16, patient='([^/]+)/[^/]+$')
    assert len(set(again.groups)) == 12 and again.classes == ['healthy', 'ill']

def test_people_above_their_classes_are_not_taken_for_classes(tmp_path):
    for who in range(6):
        for c in ('naevus', 'melanoma'):
            (tmp_path/f'P{who}'/c).mkdir(parents=True)
            for i in range(2): Image.fromarray(noise()).save(tmp_path/f'P{who}'/c/f'{i}.png')
    with pytest.raises(DataError, match='P0, P1, P2 lie above melanoma, naevus again and again: which of the two is the class.*level = 1'): picture_folder(tmp_path)
    data = picture_folder(tmp_path, side=16, level=1, patient='^([^/]+)/')
    assert data.classes == ['melanoma', 'naevus'] and len(set(data.groups)) == 6
    assert [data.classes[y] for y in data.labels] == [f.split('/')[1] for f in data.table.file]
    assert len(picture_folder(tmp_path, side=16, level=0).classes) == 6

@pytest.mark.parametrize('names', [('train', 'val', 'test'), ('Training', 'validation', 'testing'), ('train', 'test')])
def test_splits_by_folder_are_kept(folder, names, tmp_path):
    for i,f in enumerate(sorted(folder.rglob('*.png'))):
        to = tmp_path/'split'/names[(i%4 > 1) + (i%4 > 2)*(len(names) > 2)]/f.parent.name/f.name
        to.parent.mkdir(parents=True, exist_ok=True)
        f.rename(to)
    data = picture_folder(tmp_path/'split', side=16)
    given = np.array([SPLITS[f.split('/')[0].lower()] for f in data.table.file])
    assert data.classes == ['healthy', 'ill'] and data.splits == ['train', 'valid', 'test']
    if len(names) == 3: assert (data.split == given).all() and data.told['split'] == 'as given'
    else: assert (data.split[given == 'test'] == 'test').all() and (data.split[given == 'train'] != 'test').all() and 'valid from train' in data.told['split']

def test_equal_pictures_stay_together(folder):
    x = noise()
    for c in ('healthy', 'ill'):
        for i in range(3): Image.fromarray(x).save(folder/c/f'P9{i}_t.png')
    data = picture_folder(folder, side=20)
    (rows,) = duplicates(data.images)
    assert len(rows) == 6 and len(set(data.split[rows])) == 1 and 'with two labels, so that no model can be right on both: 1' in data.facts()['the same picture twice']
    data = picture_folder(folder, side=20, patient=r'(P\d+)_')
    assert len(set(data.split[duplicates(data.images)[0]])) == 1 and pd.Series(data.split).groupby(data.groups).nunique().max() == 1

def test_one_patient_in_two_splits_is_refused(folder, tmp_path):
    for i,f in enumerate(sorted(folder.rglob('*.png'))):
        to = tmp_path/'split'/('train', 'val', 'test')[i%3]/f.parent.name/f.name
        to.parent.mkdir(parents=True, exist_ok=True)
        f.rename(to)
    with pytest.raises(DataError, match='is in .* and .*such patients'): picture_folder(tmp_path/'split', patient=r'(P\d+)_')

def test_what_lies_about_is_named(folder, tmp_path):
    (folder/'Thumbs.db').write_bytes(b'x')
    (folder/'ill'/'notes.txt').write_text('x')
    assert picture_folder(folder, side=16).told['no pictures'] in ('Thumbs.db (1), notes.txt (1)', 'notes.txt (1), Thumbs.db (1)')
    Image.fromarray(noise()).save(folder/'lost.png')
    with pytest.raises(DataError, match='lost.png lies beside the folders of the classes'): picture_folder(folder)
    with pytest.raises(DataError, match='holds no pictures: none of its 1 files'):
        (tmp_path/'e').mkdir(), (tmp_path/'e'/'a.doc').write_text('x'), picture_folder(tmp_path/'e')
    with pytest.raises(DataError, match='12 pictures and no labels'): picture_folder(folder/'healthy')

def test_a_broken_picture_is_refused_or_left_out(folder):
    (folder/'ill'/'P15_z.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='P15_z.png cannot be read.*1 of 25 pictures.*drop_bad'): picture_folder(folder)
    data = picture_folder(folder, side=16, drop_bad=True)
    assert len(data) == 24 and 'P15_z.png' in data.told['not read'] and not data.table.file.str.contains('P15_z').any()

def test_links_are_followed_once(folder, tmp_path):
    (tmp_path/'real').mkdir()
    for f in (folder/'ill').iterdir(): f.rename(tmp_path/'real'/f.name)
    (folder/'ill').rmdir(), (folder/'ill').symlink_to(tmp_path/'real'), (tmp_path/'real'/'round').symlink_to(tmp_path/'real')
    assert len(picture_folder(folder, side=16)) == 24

# Sizes

def test_fits(folder):
    for i,f in enumerate(folder.rglob('*.png')):
        x = np.concatenate([np.zeros((20, 10), np.uint8), np.full((20, 20), 200, np.uint8), np.full((20, 10), 100, np.uint8)], 1)
        x[19, 20] = i # none is the same as another
        Image.fromarray(x).save(f)
    crop,pad,squash = (picture_folder(folder, side=20, fit=f).images[0] for f in ('crop', 'pad', 'squash'))
    assert (crop[:15] == 200).all() and (pad[:4] == 0).all() and abs(pad[10, 6:13] - 200.).max() < 5 and (squash[:, 0] < 60).all() and (squash[:15, 10] == 200).all()
    assert '50 % of the longer side is cut away' in picture_folder(folder, side=20).told['brought to']
    with pytest.raises(ValueError, match='crop, pad, squash'): picture_folder(folder, fit='stretch')

def test_pictures_of_many_sizes(folder):
    for i,f in enumerate(folder.rglob('*.png')): Image.fromarray(noise(20 + i, 40 - i)).save(f)
    data = picture_folder(folder, side=16)
    assert data.images.shape == (24, 16, 16, 3) and 'and 21 more' in data.told['stored as']

# Tables

def test_table(listed):
    at,rows = listed
    data = picture_folder(at, side=20)
    assert data.classes == ['well', 'sick'] and data.told['which is positive'] == 'sick, well is a word for healthy or alive'
    order = {f: i for i,f in enumerate(rows.file)}
    at_row = [order[f] for f in data.table.file]
    assert [data.classes[y] for y in data.labels] == list(rows.label.iloc[at_row]) and list(data.groups) == list(rows.patient.iloc[at_row])
    assert picture_folder(at, side=16, positive='well').classes == ['sick', 'well']
    with pytest.raises(DataError, match='the classes are'): picture_folder(at, positive='ill')

@pytest.mark.parametrize('text', ['file;label;patient\n', 'file\tlabel\tpatient\n', '\ufefffile,label,patient\r\n'])
def test_tables_as_spreadsheets_write_them(listed, text):
    at,rows = listed
    mark = next(m for m in ';\t,' if m in text)
    (at/'labels.csv').write_text(text + ''.join(f'{mark.join(r)}\n' for r in rows.to_numpy()), encoding='utf-8')
    assert len(set(picture_folder(at, side=16).groups)) == 6

def test_several_findings(listed):
    at,rows = listed
    many = rows.drop(columns=['label', 'patient']).assign(edema=[1, 0, 1, 0]*3, effusion=[0, 0, 1, 1]*3)
    many.to_csv(at/'labels.csv', index=False)
    wide = picture_folder(at, side=16)
    assert wide.multilabel and wide.classes == ['edema', 'effusion'] and wide.labels.sum(0).tolist() == [6, 6]
    words = [' | '.join(c for c in ('edema', 'effusion') if r[c]) or 'No Finding' for _,r in many.iterrows()]
    rows.drop(columns='patient').assign(label=words).to_csv(at/'labels.csv', index=False)
    long = picture_folder(at, side=16, nothing='No Finding')
    assert long.classes == wide.classes and (long.labels == wide.labels).all()
    assert picture_folder(at, side=16).classes == ['No Finding', 'edema', 'effusion']

def test_a_column_that_happens_to_hold_0_and_1_is_no_label(listed):
    at,rows = listed
    rows.rename(columns=dict(label='dx')).assign(smoker=[0, 1]*6).to_csv(at/'labels.csv', index=False)
    with pytest.raises(DataError, match='has no column label; it has dx, smoker.*label = "COLUMN"'): picture_folder(at)
    assert picture_folder(at, side=16, label='dx').classes == ['well', 'sick']

def test_other_columns(listed):
    at,rows = listed
    rows.rename(columns=dict(file='img', label='dx', patient='mrn')).assign(age=range(40, 52)).to_csv(at/'labels.csv', index=False)
    data = picture_folder(at, side=16, file='img', label='dx', patient='mrn')
    assert len(set(data.groups)) == 6 and sorted(data.table.age.astype(int)) == list(range(40, 52)) and further(data) == ['age']
    with pytest.raises(DataError, match='no column file; it has img, dx, mrn'): picture_folder(at)
    with pytest.raises(DataError, match='no column .dxx.; .*label = "dx"'): picture_folder(at, file='img', label='dxx')
    with pytest.raises(DataError, match='no column label'): picture_folder(at, file='img')

faults = {
    'row 3: there is no picture .gone.png.': lambda r: r.replace(dict(file={'x2.png': 'gone.png'})),
    'row 3: .x1.png. stands twice': lambda r: r.replace(dict(file={'x2.png': 'x1.png'})),
    'row 2: label is .NA., which is not known .1 such rows..*unknown = "leave out"': lambda r: r.assign(label=['well', 'NA', *r.label[2:]]),
    'row 1: the patient is not known': lambda r: r.assign(patient=['', *r.patient[1:]]),
    "row 4: the split is .tset.": lambda r: r.assign(split=['train']*3 + ['tset'] + ['train']*8),
    'two columns .patient.': lambda r: r.assign(again=r.patient).rename(columns=dict(again='patient')),
    'has one class, well': lambda r: r.assign(label='well'),
    'row 5: edema is .2., neither 0 nor 1': None,
}

@pytest.mark.parametrize('said', faults)
def test_faults_of_tables_are_named(listed, said):
    at,rows = listed
    many = rows.assign(edema=[0, 1, 0, 1, 2] + [0]*7, effusion=[0, 1]*6)
    (faults[said](rows) if faults[said] else many).to_csv(at/'labels.csv', index=False)
    with pytest.raises(DataError, match=said): picture_folder(at, label=None if faults[said] else ['edema', 'effusion'])

def test_a_table_that_was_cut_is_refused(listed):
    at,_ = listed
    text = (at/'labels.csv').read_text()
    (at/'labels.csv').write_text(text[:-10])
    with pytest.raises(DataError, match='row 12 has .* the file was cut'): picture_folder(at)
    (at/'labels.csv').write_bytes(text.encode('utf-16'))
    with pytest.raises(DataError, match='labels.csv is not UTF-8'): picture_folder(at)

def test_unknown_labels_are_left_out_as_asked(listed):
    at,rows = listed
    rows.assign(label=['NA', *rows.label[1:]]).to_csv(at/'labels.csv', index=False)
    data = picture_folder(at, side=16, unknown='leave out')
    assert len(data) == 11 and '1 rows are not known' in data.told['labels from']

def test_pictures_outside_the_table_are_told(listed):
    at,_ = listed
    Image.fromarray(noise()).save(at/'extra.png')
    data = picture_folder(at, side=16)
    assert len(data) == 12 and data.told['not in the table'] == '1 pictures, left out, such as extra.png'

def test_names_that_two_pictures_have(listed):
    at,rows = listed
    for d in 'ab': (at/d).mkdir(), Image.fromarray(noise()).save(at/d/'x0.png')
    assert len(picture_folder(at, side=16)) == 12 # x0.png is a path from the folder on
    rows.replace(dict(file={'x0.png': 'x0'})).to_csv(at/'labels.csv', index=False)
    with pytest.raises(DataError, match="row 1: 'x0' is the name of 3 pictures"): picture_folder(at)

# What gives the class away

def test_size_and_tint_are_noticed(folder):
    for i,f in enumerate(sorted((folder/'ill').iterdir())):
        x = np.full((30 if i < 5 else 20, 20, 3), (40, 90, 200) if i < 5 else (200, 90, 40), np.uint8)
        Image.fromarray(x + noise(*x.shape)//64).save(f)
    for f in (folder/'healthy').iterdir(): Image.fromarray(np.full((20, 20, 3), (200, 90, 40), np.uint8) + noise()//64).save(f)
    data = picture_folder(folder, side=16)
    table = giveaways(data)
    assert table.loc['size 30×20'].tolist() == [0, 5] and table.loc['another tint at the rim'].tolist() == [0, 5]
    right,common = cheat(data)
    assert common == .5 and right > .6
    assert 'size 30×20: ill 5' in data.told['may give the class away']

def test_without_a_cue_a_forest_guesses(folder):
    for f in folder.rglob('*.png'): Image.fromarray(np.pad(noise(16, 16), ((2, 2), (2, 2), (0, 0)))).save(f)
    data = picture_folder(folder, side=16)
    assert list(giveaways(data).index) == ['all'] and abs(cheat(data)[0] - .5) < .35

def test_blood_cells_as_they_lie():
    at = SHARED/'pbc_blood_cells'
    if not at.is_dir(): pytest.skip(f'{at} is absent')
    data = picture_folder(at, side=28)
    assert len(data) == 1360 and len(data.classes) == 8 and data.groups is None and data.images.shape[1:] == (28, 28, 3)
    first = np.asarray(Image.open(at/data.table.file[0]).convert('RGB').crop((0, 1, 254, 255)).resize((28, 28), Image.Resampling.BICUBIC))
    assert abs(first.astype(int) - data.images[0]).max() <= 6
    table = giveaways(data)
    assert table.loc['size 256×256', ['erythroblast', 'ig']].tolist() == [4, 5] and table.loc['size 256×256'].sum() == 9
    cameras = dict(basophil=10, monocyte=9, lymphocyte=5, ig=5, erythroblast=4, neutrophil=4, eosinophil=2, platelet=0) # of the set's README
    assert table.loc['another tint at the rim'].to_dict() == cameras


def test_survival_is_no_risk_in_a_folder_of_pictures(tmp_path):
    "The words for *nothing happened* are the same for pictures as for records"
    for c in ('died', 'lived'):
        (tmp_path/c).mkdir()
        for i in range(9): Image.fromarray(np.random.default_rng([i, len(c)]).integers(0, 255, (32, 32), np.uint8)).save(tmp_path/c/f'{c}{i}.png')
    data = picture_folder(tmp_path, side=32)
    assert data.classes == ['lived', 'died'] and data.told['which is positive'] == 'died, lived is a word for healthy or alive'
