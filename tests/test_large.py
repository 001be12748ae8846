"Sets that do not fit into memory: mapped or read in pieces, equal to what is read at once, refused when damaged, and bounded"
import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlearn.data import large as L
from medlearn.data.folders import picture_folder
from medlearn.data.hospital import read_records
from medlearn.data.images import ImageSet, plain, read_npz
from medlearn.data.splits import duplicates, sampled
from medlearn.kit.cards import DataError
from medlearn.kit.machine import cost_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path/'cache'))


def arrays(shape=(12, 12), dtype=np.uint8, n=(60, 16, 24), patients=False, seed=0):
    rng, held = np.random.default_rng(seed), {}
    for s, k in zip(('train', 'val', 'test'), n):
        x = rng.integers(0, 256, (k, *shape))
        held[f'{s}_images'] = x > 127 if dtype is bool else (x/255).astype(dtype) if np.dtype(dtype).kind == 'f' else x.astype(dtype)
        held[f'{s}_labels'] = np.arange(k) % 2
        if patients: held[f'{s}_patients'] = np.array([f'{s}{i//2}' for i in range(k)])
    return held


def equal(a, b):
    assert (a.images == b.images).all() and (a.labels == b.labels).all() and (a.split == b.split).all() and a.classes == b.classes
    assert (a.groups is None) == (b.groups is None) and (a.groups is None or (a.groups == b.groups).all())


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('shape, dtype', [((12, 12), np.uint8), ((12, 12, 3), np.uint8), ((12, 12, 1), np.uint8), ((6, 8, 8), np.uint8),
                                          ((12, 12), bool), ((12, 12), np.float32), ((12, 12, 4), np.uint8)])
def test_mapped_is_equal_to_what_is_read_at_once(tmp_path, save, shape, dtype, recwarn):
    held = arrays(shape, dtype, patients=True)
    if shape[-1] == 4:
        for k in held: held[k][..., 3:] = 255 if k.endswith('images') else held[k][..., 3:]
    save(tmp_path/'a.npz', **held)
    inside, outside = read_npz(tmp_path/'a.npz', memory=1e6), read_npz(tmp_path/'a.npz', memory=0)
    equal(inside, outside)
    assert L.mapped(outside.images) and not L.mapped(inside.images) and outside.told and not inside.told
    assert L.mapped(outside.part('valid').images) and (outside.part('valid').images == inside.part('valid').images).all()
    assert [list(r) for r in duplicates(outside.images)] == [list(r) for r in duplicates(inside.images)]
    assert (plain(outside).images == plain(inside).images).all()


def test_what_is_unpacked_is_one_array_and_is_used_again(tmp_path):
    np.savez_compressed(tmp_path/'a.npz', **arrays())
    a = read_npz(tmp_path/'a.npz', memory=0)
    file, = (tmp_path/'cache/large').iterdir()
    assert a.images.filename == file and file.stat().st_size == 100*144
    before = file.stat().st_ino
    assert read_npz(tmp_path/'a.npz', memory=0).images.filename == file and file.stat().st_ino == before
    raw = bytearray(file.read_bytes())
    raw[500] ^= 1
    file.write_bytes(raw) # a damaged cache is made again
    equal(read_npz(tmp_path/'a.npz', memory=0), read_npz(tmp_path/'a.npz', memory=1e6))
    a.images[0] = 7 # a private view
    assert not (read_npz(tmp_path/'a.npz', memory=0).images[0] == 7).all()


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damage_is_refused_and_nothing_is_left(tmp_path, save):
    save(tmp_path/'a.npz', **arrays(n=(200, 40, 60)))
    raw = (tmp_path/'a.npz').read_bytes()
    for share in (.1, .3, .5):
        bad = bytearray(raw)
        bad[int(share*len(raw))] ^= 1
        (tmp_path/'b.npz').write_bytes(bad)
        with pytest.raises(DataError, match='whole .npz'): read_npz(tmp_path/'b.npz', memory=0)
    (tmp_path/'c.npz').write_bytes(raw[:len(raw)//2])
    with pytest.raises(DataError, match='whole .npz'): read_npz(tmp_path/'c.npz', memory=0)
    assert not list((tmp_path/'cache').rglob('*.part')) and not list((tmp_path/'cache').rglob('*.bin'))
    np.savez(tmp_path/'d.npz', train_images=arrays()['train_images'])
    with pytest.raises(DataError, match='lacks val_images, test_images'): read_npz(tmp_path/'d.npz', memory=0)


def test_a_wrong_pixel_is_named_with_its_row(tmp_path):
    held = arrays(dtype=np.float32)
    held['train_images'][41, 3, 3] = np.nan
    np.savez(tmp_path/'a.npz', **held)
    for memory in (0, 1e6):
        with pytest.raises(DataError, match='NaN or infinite pixels in row 41'): read_npz(tmp_path/'a.npz', memory=memory)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path/'a.npz', **arrays())
    monkeypatch.setattr(L.shutil, 'disk_usage', lambda p: type('U', (), dict(free=10)))
    with pytest.raises(DataError, match='MEDLEARN_CACHE'): read_npz(tmp_path/'a.npz', memory=0)


def test_rows_are_picked_in_the_file_or_copied(tmp_path):
    a = L.on_disk((50, 4, 4))
    a[:] = np.arange(50)[:, None, None]
    near, far, out = L.picked(a, np.arange(5, 9)), L.picked(a, np.array([9, 1, 30])), L.picked(a, np.array([9, 1, 30]), memory=0)
    assert L.mapped(near) and not L.mapped(far) and L.mapped(out)
    assert near[:, 0, 0].tolist() == [5, 6, 7, 8] and far[:, 0, 0].tolist() == out[:, 0, 0].tolist() == [9, 1, 30]
    both = L.joined_rows([near, far])
    assert L.mapped(both) and both[:, 0, 0].tolist() == [5, 6, 7, 8, 9, 1, 30]
    assert L.joined_rows([near[1:3]])[:, 0, 0].tolist() == [6, 7] and L.joined_rows([near], lambda x: x + 1)[0, 0, 0] == 6
    assert not list((tmp_path/'cache/large').iterdir())


def test_mapped_pictures_train_as_those_in_memory(tmp_path):
    from medlearn.foundations.loading import check_set, tensor_loaders
    np.savez_compressed(tmp_path/'a.npz', **arrays())
    seen = []
    for memory in (0, 1e6):
        data = check_set(read_npz(tmp_path/'a.npz', memory=memory))
        dls = tensor_loaders(data, 16, device='cpu')
        seen.append(np.concatenate([x.numpy() for x, _ in dls.valid]))
    assert (seen[0] == seen[1]).all()


def test_a_folder_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr('medlearn.data.folders.cheat', lambda data: (.5, .5)) # a forest is slow, and not asked about here
    rng = np.random.default_rng(0)
    for i in range(48):
        p = tmp_path/'f'/('ill' if i % 2 else 'well')/f'P{i//4}_{i}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3) if i % 5 == 0 else (20, 20), np.uint8)).save(p)
    for colour in (None, False, True):
        inside, outside = (picture_folder(tmp_path/'f', 16, colour=colour, patient=r'(P\d+)_', memory=m) for m in (1e6, 0))
        equal(inside, outside)
        assert L.mapped(outside.images) and inside.table.equals(outside.table) and 'not in memory' in outside.facts()


@pytest.fixture
def records(tmp_path):
    rng, n = np.random.default_rng(0), 3000
    rows = [f'P{p},{t/10},lab é {v},{x/7}' for p, t, v, x in zip(*(rng.integers(0, k, n) for k in (150, 100, 4, 1000)))]
    (tmp_path/'measurements.csv').write_text('\n'.join(['id,time,variable,value', *rows]) + '\n', encoding='utf-8')
    (tmp_path/'outcomes.csv').write_text('id,label\n' + ''.join(f'P{i},{"died" if i % 3 else "lived"}\n' for i in range(150)))
    return tmp_path


def told(folder, chunk):
    try: return read_records(folder, chunk=chunk).measurements
    except DataError as e: return str(e)


ROWS = dict(short=b'P1,2.0,x', long=b'P1,2.0,x,3,4', bytes=b'P1,2.0,x,\xff', word=b'P1,2.0,x,>7', quoted=b'P1,2.0,"lab ""a"" , 7",3', spaces=b'P1, 2.0 ,x , 3',
            nobody=b',2.0,x,3', empty=b'P1,2.0,x,', open=b'P1,2.0,"x,3', late=b'P1,99999,x,3', unknown=b'P999,1,x,3')


@pytest.mark.parametrize('row', ROWS)
def test_in_pieces_a_row_is_read_or_refused_as_at_once(records, row):
    file = records/'measurements.csv'
    lines = file.read_bytes().split(b'\n')
    lines[2000] = ROWS[row]
    file.write_bytes(b'\n'.join(lines))
    whole, pieces = told(records, None), told(records, .004)
    if isinstance(whole, str): assert whole == pieces and (row == 'open' or 'row 2001' in whole)
    else: pd.testing.assert_frame_equal(whole, pieces)
    assert isinstance(whole, str) == (row not in ('quoted', 'spaces'))


@pytest.mark.parametrize('change', [lambda b: b, lambda b: b.replace(b'\n', b'\r\n'), lambda b: b.replace(b'\n', b'\r'), lambda b: b'\xef\xbb\xbf' + b,
                                    lambda b: b.replace(b'\n', b'\n\n'), gzip.compress])
def test_in_pieces_a_file_is_read_as_at_once(records, change):
    file = records/'measurements.csv'
    before, raw = told(records, None), change(file.read_bytes())
    if raw.startswith(b'\x1f'): file.unlink()
    (records/('measurements.csv.gz' if raw.startswith(b'\x1f') else file.name)).write_bytes(raw)
    for chunk in (None, .004): pd.testing.assert_frame_equal(before, told(records, chunk))


def test_a_cut_file_is_told(records):
    raw = (records/'measurements.csv').read_bytes()
    (records/'measurements.csv').unlink()
    (records/'measurements.csv.gz').write_bytes(gzip.compress(raw)[:-2000])
    assert all('not a whole gzip file' in told(records, c) for c in (None, .004))


def test_a_sample_keeps_splits_patients_and_classes():
    rng, n = np.random.default_rng(0), 5000
    y = (rng.random(n) < .004).astype(int)
    split = np.repeat(['train', 'valid', 'test'], [3000, 800, 1200])
    data = ImageSet(np.zeros((n, 2, 2), np.uint8), y, split, ['no', 'yes'], 'many', np.array([f'{s}{i//3}' for i, s in enumerate(split)]))
    few, said = sampled(data, 300, seed=1)
    assert 290 < len(few) < 400 and '5,000' in said and 'seed 1' in said
    assert all((few.labels[few.split == s] == 1).any() for s in ('train', 'valid', 'test'))
    whole = pd.Series(data.groups).value_counts()
    assert pd.Series(few.groups).value_counts().to_dict() == whole[np.unique(few.groups)].to_dict()
    assert abs((few.split == 'train').mean() - .6) < .05
    same, nothing = sampled(data, None)
    assert same is data and not nothing and sampled(data, n)[0] is data
    assert (sampled(data, 300, seed=1)[0].groups == few.groups).all() and len(set(sampled(data, 300, 2)[0].groups) ^ set(few.groups)) > 50


def test_memory_stays_below_one_and_a_half_splits(tmp_path):
    np.savez(tmp_path/'a.npz', **arrays((28, 28), n=(60_000, 15_000, 25_000)))
    code = f'd = read_npz({str(tmp_path/"a.npz")!r}, memory=%s)\nsaid = len(d)'
    split = 60_000*784/1e6
    took = cost_of(code % 0, before='from medlearn.data.images import read_npz')
    assert took['said'] == 100_000 and took['mb'] < 1.5*split and took['seconds'] > 0
    assert 95 < cost_of('a = np.ones(12_500_000)', before='import numpy as np')['mb'] < 115


def test_the_bench_measures_data(monkeypatch):
    from medlearn.foundations import bench as B
    from medlearn.kit.console import show_bench
    sizes = []
    def cost(code, before):
        sizes.append(code)
        exec(before + '\n' + code, names := {})
        return dict(seconds=.1*len(sizes), mb=1., file_mb=2., said=names['said'])
    monkeypatch.setattr(B, 'cost_of', cost)
    result = B.bench(only='data', n=10_000)
    assert [(r['what'], r['n']) for r in result['data']] == [('pictures of 28 × 28', 1000), ('pictures of 28 × 28', 10_000), ('measurements', 10_000)]
    held = B.bounds(result)
    assert len(held) == 3 and held[0]['holds'] and held[0]['value'] == result['data'][1]['share'] == round(1/4.704, 2)
    show_bench(result, held)
