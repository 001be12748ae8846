"Masks in millimetres, splits that do not leak, files that are refused, and the formats a reader meets"
import subprocess,sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given,settings,strategies as st
from medlearn.data import doors,images as I,outlines as O
from medlearn.data.splits import check_leak,duplicates,split_by_group
from medlearn.kit import fetch as F
from medlearn.kit import cards as Cards
from medlearn.kit.cards import DataError

SHARED = Path(__file__).parent.parent.parent/'shared'/'data'

@pytest.fixture(scope='module')
def lidc():
    try: return O.lidc_nodules()
    except DataError as e: pytest.skip(f'the LIDC-IDRI annotations cannot be had here: {e}')

def disc(radius, pad=2):
    r = int(np.ceil(radius)) + pad
    y,x = np.mgrid[-r:r+1, -r:r+1]
    return (x*x + y*y <= radius**2).astype(np.uint8)

def ring(mask):
    "Pixels just outside a disc, in order: what a reader would have drawn"
    from scipy.ndimage import binary_dilation
    y,x = np.nonzero(binary_dilation(mask) & ~mask.astype(bool))
    c = (len(mask)-1)/2
    return np.c_[x, y][np.argsort(np.arctan2(y-c, x-c))]

# Masks

@settings(max_examples=60, deadline=None)
@given(radius=st.floats(2, 40), every=st.integers(1, 3))
def test_a_contour_gives_back_its_disc(radius, every):
    mask = disc(radius, 4)
    xy = ring(mask)
    if every == 1: xy = np.r_[xy, xy[:1]]
    got = O.fill(xy, [len(xy)], [0], [len(mask)], mask.size).reshape(mask.shape)
    assert (got == mask).all()

@settings(max_examples=60, deadline=None)
@given(radius_mm=st.floats(2, 14), spacing=st.floats(.4, 1.))
def test_area_in_mm2_does_not_depend_on_the_scanner(radius_mm, spacing):
    mask = disc(radius_mm/spacing)
    mm = .75
    area = O.to_grid(mask, spacing, 64, mm).sum()/255*mm**2
    assert area == pytest.approx(mask.sum()*spacing**2, rel=.01)
    assert area == pytest.approx(np.pi*radius_mm**2, rel=max(.05, spacing/radius_mm))

def test_two_contours_and_a_hole_share_a_picture():
    xy = np.array([[0,0],[6,0],[6,6],[0,6], [2,2],[4,2],[4,4],[2,4], [8,0],[12,0],[12,6],[8,6]])
    got = O.fill(xy, [4, 4, 4], [0, 0, 0], [13]*3, 7*13).reshape(7, 13)
    assert got.sum() == 25-9 + 15 and not got[2:5, 2:5].any()

@settings(max_examples=40, deadline=None)
@given(radius=st.floats(5, 40), scale=st.integers(2, 5))
def test_normalised_pictures_have_one_size(radius, scale):
    mask = disc(radius)
    a,b = O.same_size(mask),O.same_size(np.kron(mask, np.ones((scale, scale), np.uint8)))
    assert abs(a.sum(dtype=float)/b.sum(dtype=float) - 1) < .06
    for p in (a, b): assert abs(np.ptp(np.flatnonzero((p > 127).any(0))) + 1 - 48) <= 2

def test_nodules_are_found_in_any_order():
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.uniform(0, 400, (30, 3)), 3, axis=0) + rng.normal(0, .5, (90, 3))
    scan,radius = np.repeat(np.arange(30)//5, 3),np.full(90, 4.)
    a = O.same_nodule(centre, radius, scan)
    p = rng.permutation(90)
    b = O.same_nodule(centre[p], radius[p], scan[p])
    assert len(set(a)) == 30 and len(set(zip(a[p], b))) == 30

def test_no_nodule_has_more_than_four_readings():
    line = np.c_[np.arange(9)*1., np.zeros((9, 2))]
    assert np.bincount(O.same_nodule(line, np.full(9, 3.), np.zeros(9, int))).max() <= 4
    assert np.bincount(O.same_nodule(np.zeros((3, 3)), np.ones(3), np.array(['a', 'b', 'a']))).tolist() == [2, 1]

def test_agreement_of_readers_is_no_ceiling():
    "What learned the mean of many readers is nearer to one of them than another reader is"
    def outline(r):
        y,x = np.mgrid[-20:21, -20:21]
        return O.Mask((x*x + y*y <= r*r).astype(np.uint8)[None], np.zeros(1), (0, 0), (1, 1, 1))
    radii = np.random.default_rng(0).normal(10, 1.2, 60)
    readers,mean = [outline(r) for r in radii],outline(radii.mean())
    between = np.mean([O.overlap(a, b) for i,a in enumerate(readers) for b in readers[:i]])
    assert np.mean([O.overlap(mean, r) for r in readers]) > between + .02

# LIDC-IDRI

def test_a_majority_is_nearer_to_a_reader_than_another_reader(lidc):
    "Nodules with four outlines: three against the fourth, on one slice that all have"
    df,masks,one,three = O.lidc_readings(),O.lidc_masks(),[],[]
    for _,g in df[df.groupby('nodule').reading.transform('size') == 4].groupby('nodule').head(4).groupby('nodule'):
        some = [masks[r] for r in g.reading]
        z = max(some[0].z, key=lambda at: sum(at in m.z for m in some))
        box = np.zeros((4, 120, 120), bool)
        low = np.min([m.corner for m in some], 0)
        for b,m in zip(box, some):
            if z not in m.z: continue
            v = m.voxels[list(m.z).index(z)]
            y,x = np.subtract(m.corner, low)
            b[y:y+v.shape[0], x:x+v.shape[1]] = v
        dice = lambda a,b: 2*(a & b).sum()/(a.sum() + b.sum())
        if not box.any((1, 2)).all(): continue
        for k in range(4):
            others = np.delete(box, k, 0)
            one.append(np.mean([dice(o, box[k]) for o in others])), three.append(dice(others.sum(0) >= 2, box[k]))
        if len(one) == 800: break
    gain = np.subtract(three, one)
    assert gain.mean() > 3*gain.std()/200**.5

def test_readings_agree_with_the_database(lidc):
    df = O.lidc_readings()
    assert len(df) == 6859 and df.patient.nunique() == 875 and df.scan.nunique() == 883
    assert df.malignancy.value_counts().sort_index().tolist() == [1020, 1580, 2606, 962, 691]
    assert df.groupby('nodule').reader.agg(lambda r: sorted(r) == list(range(1, len(r)+1))).all() and df.reader.max() <= 4
    assert df.groupby('nodule').scan.nunique().max() == 1 and df.notna().all().all()
    assert (df.area_mm2 > 0).all() and df.pixel_spacing.between(.4, 1).all()

def test_columns_come_first(lidc):
    _,_,contours = O._lidc_tables()
    x,y = np.array([c.split('\n', 1)[0].split(',') for c in contours.coords], dtype=int).T
    assert (abs(x-256) < 26).mean() < .3*(abs(y-256) < 26).mean()

def test_masks_agree_with_another_way_to_fill(lidc):
    from PIL import Image,ImageDraw
    _,_,contours = O._lidc_tables()
    masks,wrong,total = O.lidc_masks(),0,0
    for r in np.random.default_rng(1).choice(6859, 100, replace=False)+1:
        rows,m = contours[contours.reading == r],masks[r]
        if rows.z.duplicated().any(): continue
        for c,v in zip(rows.coords, m.voxels):
            xy = np.array([p.split(',') for p in c.split('\n')], dtype=int) - m.corner[::-1]
            img = Image.new('1', v.shape[::-1])
            ImageDraw.Draw(img).polygon(xy.ravel().tolist(), fill=1, outline=0)
            wrong,total = wrong + (np.array(img) != v).sum(),total + v.sum()
    assert wrong < 1e-4*total

def test_two_calls_are_equal(lidc):
    again = O.lidc_nodules()
    assert (again.images == lidc.images).all() and (again.split == lidc.split).all() and again.table.equals(lidc.table)
    assert lidc.images.dtype == np.uint8 and lidc.images.shape == (4253, 64, 64) and np.bincount(lidc.labels).tolist() == [2600, 1653]
    O.lidc_masks.cache_clear(), O._readings.cache_clear(), O._lidc_tables.cache_clear()
    assert (O.lidc_nodules().images == lidc.images).all()

def test_what_is_kept_is_what_is_made(lidc):
    made,kept = O._mask_arrays(),O.lidc_masks()
    assert sum(m.voxels.size for m in kept.values()) == made['flat'].size and made['whole'][:, 0].tolist() == list(kept)
    assert (np.concatenate([m.voxels.ravel() for m in kept.values()]) == made['flat']).all()
    pd.testing.assert_frame_equal(O._measured(), O.lidc_readings())
    for i in (0, 1000, 4000):
        m = kept[int(lidc.table.reading[i])]
        largest = m.voxels[m.voxels.sum((1, 2), dtype=int).argmax()]
        assert (O.to_grid(largest, m.spacing[1], 64, .75) == lidc.images[i]).all()

def test_a_patient_keeps_the_split(lidc):
    more = O.lidc_nodules(size=32, keep_indeterminate=True)
    assert len(more) == 6859 and set(more.labels) == {0, 1, 2}
    assert check_leak(np.r_[lidc.split, more.split], np.r_[lidc.groups, more.groups]) == 875
    shapes = O.lidc_nodules(normalise=True)
    assert (shapes.labels == lidc.labels).all() and shapes.mm is None
    area = lambda s: s.images.sum((1, 2), dtype=float)
    assert pd.Series(area(shapes)).corr(lidc.table.area_mm2, 'spearman') < .3

def test_image_set_parts(lidc):
    part = lidc.part('valid')
    assert len(part) == len(part.table) == len(part.groups) and set(part.split) == {'valid'}
    assert lidc.summary()[lidc.classes].sum().tolist() == [2600, 1653]
    assert len(lidc.part('train').show(5).axes) == 5
    with pytest.raises(DataError, match='train, valid, test'): lidc.part('val')

# Splits

rows = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=30, max_size=200)

@settings(max_examples=100, deadline=None)
@given(rows=rows, seed=st.integers(0, 99))
def test_splits_never_leak(rows, seed):
    groups,labels = np.array(rows).T
    if len(set(groups)) < 3:
        with pytest.raises(DataError, match='patients'): split_by_group(groups, labels)
        return
    split = split_by_group(groups, labels, seed=seed)
    assert check_leak(split, groups) == len(set(groups))
    assert set(split) == {'train', 'valid', 'test'}
    assert (split == split_by_group(groups, labels, seed=seed)).all()

def test_splits_are_balanced():
    rng = np.random.default_rng(0)
    groups,labels = rng.integers(0, 400, 3000),rng.integers(0, 3, 3000)
    split = split_by_group(groups, labels)
    shares = pd.crosstab(labels, split, normalize='index')[['train', 'valid', 'test']]
    assert abs(shares - [.6, .15, .25]).to_numpy().max() < .02
    many = split_by_group(groups, np.eye(3, dtype=int)[labels])
    assert abs(pd.Series(many).value_counts(normalize=True)['train'] - .6) < .02

def test_a_leak_is_named():
    with pytest.raises(DataError, match='patient p2 is in train and test'): check_leak(['train', 'train', 'test', 'valid'], ['p1', 'p2', 'p2', 'p3'])

@pytest.mark.parametrize('fractions', [(.5, .5), (.5, .5, .5), (1, 0, 0), (1.2, -.1, -.1)])
def test_fractions_are_checked(fractions):
    with pytest.raises(DataError, match='sum to 1'): split_by_group(range(10), [0]*10, fractions)

# .npz files

def arrays(n=6, shape=(8, 8)):
    rng = np.random.default_rng(0)
    return {f'{s}_{k}': rng.integers(0, 256, (n, *shape)).astype(np.uint8) if k == 'images' else np.arange(n)[:, None]%2
            for s in ('train', 'val', 'test') for k in ('images', 'labels')}

@pytest.fixture
def saved(tmp_path):
    def save(name='mine.npz', **change):
        np.savez(tmp_path/name, **{k: v for k,v in (arrays() | change).items() if v is not None})
        return tmp_path/name
    return save

def test_npz_is_read_and_recorded(saved):
    p = saved()
    data = doors.images_from(str(p))
    assert repr(data) == 'mine.npz: 6 train, 6 valid, 6 test; 8×8; 2 classes' and data.classes == ['0', '1'] and data.groups is None
    assert ('mine.npz', Cards.digest_of(p)) in F.seen
    assert (data.part('test').images == arrays()['test_images']).all() and data.labels.shape == (18,)

def test_npz_shapes(tmp_path):
    for shape,want in [((8, 8, 3), (8, 8, 3)), ((8, 8, 1), (8, 8)), ((5, 8, 8), (5, 8, 8))]:
        np.savez(tmp_path/'a.npz', **arrays(shape=shape))
        data = I.read_npz(tmp_path/'a.npz')
        assert data.images.shape[1:] == want and len(data.show(4).axes) == 4

def test_npz_multilabel(saved):
    y = np.array([[1,0,0], [0,1,1]]*3)
    data = I.read_npz(saved('chestmnist.npz', train_labels=y, val_labels=y, test_labels=y))
    assert data.multilabel and data.labels.shape == (18, 3) and data.summary().loc['train', 'atelectasis'] == 3
    assert data.label_names()[1] == 'cardiomegaly, effusion'
    with pytest.raises(DataError, match='label 2 in row 1'): I.read_npz(saved(train_labels=y + (np.arange(6) == 1)[:, None], val_labels=y, test_labels=y))

def test_npz_class_names_come_from_the_card(saved):
    assert I.read_npz(saved('pneumoniamnist_64.npz')).classes == ['normal', 'pneumonia']
    y = np.arange(6)
    assert I.read_npz(saved('pneumoniamnist.npz', train_labels=y, val_labels=y, test_labels=y)).classes == list('012345')

def test_npz_floats_are_scaled(saved):
    x = np.linspace(0, 1, 6*64).reshape(6, 8, 8)
    with pytest.warns(UserWarning, match='times 255'): data = I.read_npz(saved(train_images=x, val_images=x, test_images=x))
    assert data.images.max() == 255 and data.images.min() == 0
    assert I.read_npz(saved(train_images=x*200, val_images=x*255, test_images=x*255)).images.max() == 255
    assert I.read_npz(saved(train_images=x > .5)).images.max() == 255

a = arrays()
nan,inf,big,low,mixed = (a['train_images'].astype(float) for _ in range(5))
nan[3, 1, 1],inf[2, 0, 0],big[4, 2, 2],low[1, 0, 0] = np.nan,np.inf,4000,-1000
cases = {
    'lacks val_labels': dict(val_labels=None),
    'lacks train_images, train_labels': dict(train_images=None, train_labels=None),
    'test_labels has 5 rows for 6 images': dict(test_labels=a['test_labels'][:5]),
    'train_images has NaN or infinite pixels in row 3': dict(train_images=nan),
    'train_images has NaN or infinite pixels in row 2': dict(train_images=inf),
    'train_images has pixels outside 0 to 255 in row 4': dict(train_images=big),
    'train_images has pixels outside 0 to 255 in row 1': dict(train_images=low),
    'test_images has pixels outside 0 to 255 in row 0': dict(test_images=np.full((6, 8, 8), 3000, np.int16)),
    'pixels run from 0 to 1 in some': dict(train_images=mixed/255, val_images=mixed, test_images=mixed),
    'not a whole .npz file of plain arrays': dict(train_labels=np.array([None]*6, dtype=object)),
    'such as 0.5 in row 0': dict(val_labels=np.full(6, .5)),
    'not integers': dict(val_labels=np.array(['cat', 'dog']*3)),
    'holds <U3, not numbers': dict(val_images=np.full((6, 8, 8), 'cat')),
    'label -1 in row 2': dict(train_labels=np.array([0, 1, -1, 0, 1, 0])),
    'train_labels are the same': dict(train_labels=np.zeros((6, 1), int)),
    'val_images is empty': dict(val_images=a['val_images'][:0], val_labels=a['val_labels'][:0]),
    r'train_images has shape \(6, 64\)': dict(train_images=a['train_images'].reshape(6, 64)),
    'test_labels has shape': dict(test_labels=np.zeros((6, 1, 2), int)),
    'shapes differ': dict(test_images=np.zeros((6, 9, 9), np.uint8)),
}

@pytest.mark.parametrize('message', cases)
def test_npz_faults_are_named(saved, message):
    p = saved(**cases[message])
    with pytest.raises(DataError, match=message) as e: I.read_npz(p)
    assert str(p) in str(e.value) and str(e.value).endswith('.')

@pytest.mark.parametrize('move,said', [
    (lambda x: np.moveaxis(x, -1, 1), r'3 channels before rows and columns. Colour is .*np.moveaxis\(images, 1, -1\)'),
    (lambda x: np.concatenate([x, x[..., :1]], -1), r'4 channels after rows and columns. .*images\[..., :3\]'),
    (lambda x: np.moveaxis(np.concatenate([x, x[..., :1]], -1), -1, 1), r'4 channels before .*np.moveaxis\(images, 1, -1\)\[..., :3\]'),
    (lambda x: x[..., :2], r'2 channels after rows and columns. Save one of them: images\[..., 0\]')])
def test_channels_are_not_taken_for_slices(saved, move, said):
    a = arrays(shape=(8, 8, 3))
    with pytest.raises(DataError, match=said): I.read_npz(saved(**{k: move(v) if 'images' in k else v for k,v in a.items()}))

def test_opacity_that_is_full_is_left_out(saved):
    a = arrays(shape=(8, 8, 3))
    with pytest.warns(UserWarning, match='fourth channel, opacity'):
        data = I.read_npz(saved(**{k: np.concatenate([v, np.full_like(v[..., :1], 255)], -1) if 'images' in k else v for k,v in a.items()}))
    assert (data.images == np.concatenate([a[f'{s}_images'] for s in ('train', 'val', 'test')])).all()

@pytest.mark.parametrize('labels,said', [
    (dict(val_labels=np.zeros(6, int)), "valid has no image of '1'"), (dict(test_labels=np.ones(6, int)), "test has no image of '0'"),
    ({f'{s}_labels': np.arange(6)%2 + 1 for s in ('train', 'val', 'test')}, 'no label is 0, the lowest is 1'),
    ({f'{s}_labels': np.c_[np.arange(6)%2, np.ones(6, int)] for s in ('train', 'val', 'test')}, "train has no image without '1'")])
def test_a_class_that_a_split_lacks_is_named_at_once(saved, labels, said):
    with pytest.raises(DataError, match=said): I.read_npz(saved(**labels))

def test_npz_may_name_patients_and_classes(saved):
    who = {f'{s}_patients': np.array([f'{s}{i//2}' for i in range(6)]) for s in ('train', 'val', 'test')}
    data = I.read_npz(saved(classes=np.array(['well', 'ill']), **who))
    assert data.classes == ['well', 'ill'] and len(set(data.groups)) == 9 and data.facts()['patients'].startswith('9,')
    with pytest.raises(DataError, match='patient train0 is in'): I.read_npz(saved(**who | dict(test_patients=who['train_patients'])))
    with pytest.raises(DataError, match='val_patients is missing'): I.read_npz(saved(**who | dict(val_patients=None)))

def test_the_positive_class_can_be_named(saved):
    plain,turned = I.read_npz(saved()),I.read_npz(saved(), positive='0')
    assert turned.classes == ['1', '0'] and (turned.labels == 1 - plain.labels).all() and turned.facts()['counts as positive'] == '0'
    with pytest.raises(DataError, match="no class 'ill'"): I.read_npz(saved(), positive='ill')

def test_facts_count_what_pandas_counts(saved):
    x = arrays()['train_images']
    data = I.read_npz(saved(test_images=np.concatenate([x[:2], arrays()['test_images'][2:]]), test_labels=np.array([1, 1, 0, 1, 0, 1])))
    table = pd.DataFrame(dict(key=[i.tobytes() for i in data.images], split=data.split, label=data.labels)).groupby('key').agg(['nunique', 'size'])
    many = table[table[('split', 'size')] > 1]
    said = data.facts()['the same picture twice']
    torn,odd = ((many[(c, 'nunique')] > 1).sum() for c in ('split', 'label'))
    assert said.startswith(f'{len(many)} pictures, {many[("split", "size")].sum()} rows; in two splits: {torn}, first in rows 0 and 12')
    assert f'can be right on both: {odd}, first in rows 0 and 12' in said and (torn, odd) == (2, 1)
    assert data.facts()['splits'] == 'train 6, valid 6, test 6' and '<th' in data.facts()._repr_html_()

def test_equal_pictures_are_found():
    images = np.random.default_rng(0).integers(0, 255, (6, 4, 4), dtype=np.uint8)
    images[[4, 5]] = images[[1, 1]]
    assert [r.tolist() for r in duplicates(images)] == [[1, 4, 5]] and duplicates(images[:4]) == []

def test_npz_that_is_no_npz(tmp_path, saved):
    (tmp_path/'text.npz').write_text('not a zip')
    whole = saved().read_bytes()
    (tmp_path/'cut.npz').write_bytes(whole[:len(whole)//2])
    for name in ('text.npz', 'cut.npz', 'absent.npz'):
        with pytest.raises(DataError, match=name): doors.images_from(tmp_path/name)

def test_names(monkeypatch):
    asked = []
    monkeypatch.setattr(doors, 'medmnist', lambda *a, **k: asked.append((*a, k.get('size'))))
    for name in ('pathmnist', 'pathmnist_64', 'pathmnist@224', 'organmnist3d_64'): doors.images_from(name)
    doors.images_from('pathmnist', size=128)
    assert asked == [('pathmnist', None), ('pathmnist', 64), ('pathmnist', 224), ('organmnist3d', 64), ('pathmnist', 128)]

def test_unknown_names_list_the_nearest():
    with pytest.raises(DataError, match='breastmnist'): doors.images_from('brestmnist')
    with pytest.raises(DataError, match='28'): doors.images_from('breastmnist_29')

def test_breastmnist_from_a_mirror(monkeypatch, tmp_path):
    if not SHARED.is_dir(): pytest.skip(f'{SHARED} is absent: BreastMNIST is not here to serve as a mirror')
    monkeypatch.setenv('MEDLEARN_MIRROR', str(SHARED))
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path))
    data = F.load('breastmnist')
    assert repr(data) == 'breastmnist: 546 train, 78 valid, 156 test; 28×28; 2 classes'
    assert data.summary()[data.classes].to_numpy().tolist() == [[147, 399], [21, 57], [42, 114]] and 'malignant' in data.classes[0]

def test_import_is_light():
    code = "import sys,medlearn.data.images; print([m for m in ('torch','matplotlib','skimage','sklearn','scipy','pydicom','nibabel') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
