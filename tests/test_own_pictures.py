"A reader's pictures: a hundred JPEGs in class folders run a chapter, and its network reads new ones"
import json, re, subprocess, sys
from pathlib import Path

import nbformat, numpy as np, pytest, torch
from PIL import Image

from medlearn.data.images import ImageSet
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations.training import fit, predict
from medlearn.imaging.classification import classic_cnn, config_for, new_cases, tempered
from medlearn.kit.cards import DataError


def test_a_hundred_photographs_run_imaging_classification(tmp_path):
    rng = np.random.default_rng(0)
    for k, c in enumerate(('mole', 'naevus')):
        (tmp_path/'photos'/c).mkdir(parents=True)
        for i in range(50):
            y, x = np.mgrid[:60, :80 + i % 3]
            spot = ((x - rng.uniform(30, 50))**2/(1 + k) + (y - 30)**2 < rng.uniform(100, 300))[..., None]
            skin = rng.normal((210, 170, 150), 6, (*spot.shape[:2], 3))
            Image.fromarray(np.where(spot, skin*(.2, .8)[k], skin).clip(0, 255).astype(np.uint8)).save(tmp_path/'photos'/c/f'P{k}{i//2}_{i}.jpg')
    (tmp_path/'photos'/'dataset.toml').write_text(r"patient = '(P\d+)_'")
    medlearn = Path(sys.executable).with_name('medlearn')
    done = subprocess.run([medlearn, 'run', 'imaging/classification', '-p', f'dataset={tmp_path/"photos"}', '-p', 'budget=60', '--out', tmp_path/'out', '--report'],
                          capture_output=True, text=True, timeout=600)
    run, = json.loads((tmp_path/'out'/'results.json').read_text())['runs']
    assert done.returncode == 0 and run['status'] == 'passed', done.stdout + done.stderr
    assert {d['name'] for d in run['data']} == {'photos', 'dataset.toml'}
    assert any(c['claim'] == 'Share of the test split whose patients are in training' and c['value'] == 0 for c in run['claims'])
    said = [o['text/plain'] for c in nbformat.read(next((tmp_path/'out').glob('**/smoke-seed42.ipynb')), 4).cells for o in
            (x.get('data', {}) for x in c.get('outputs', [])) if 'text/plain' in o]
    text = '\n'.join(said)
    assert 'digest noted' in text and 'verified' not in text and not re.search('nodule|chest|lung', text)
    claims = {c['claim'] for c in run['claims']}
    assert {'AUROC of the network, test', 'AUROC of the network, validation', 'Classes that a split lacks'} <= claims
    model, = (tmp_path/'out').glob('**/model.json')
    handed = json.loads(model.read_text())
    assert handed['by'] == 'medlearn.imaging.classification:new_cases' and handed['config']['classes'] == ['mole', 'naevus']
    assert 'steps' in handed['methods']['training'] and handed['methods']['baseline'].startswith('logistic')


# The network of imaging/classification, handed over

def spots(side=28, channels=None, n=120, seed=0):
    "A bright square that is large or small"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.integers(0, 60, (n, side, side) + ((channels,) if channels else ()), dtype=np.uint8)
    for i in range(n): x[i, 4:10 + 10*y[i], 4:10 + 10*y[i]] += 120
    return ImageSet(x, y, np.repeat(['train', 'valid', 'test'], [n//2, n//4, n - n//2 - n//4]), ['small', 'large'], 'spots')


def taught(data):
    torch.manual_seed(0)
    dls = tensor_loaders(data, bs=16)
    return fit(data, dls, classic_cnn(dls.train.x.shape[1], 2), 2)


def as_folder(at, images, names=None):
    at.mkdir()
    for i, x in enumerate(images): Image.fromarray(x).save(at/(names[i] if names else f'p{i:03}.png'))
    return at


def test_a_network_handed_over_says_what_it_said_in_the_chapter(tmp_path):
    for channels in (None, 3):
        data = spots(channels=channels)
        learn, test = taught(data), data.part('test')
        shares = [.7, .3]
        config = json.loads(json.dumps(config_for(data, learn, shares, 1.7)))
        own = tempered(predict(learn, test.images), shares, 1.7)
        weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
        np.savez(tmp_path/f'new{channels}.npz', images=test.images)
        told = new_cases(weights, config, tmp_path/f'new{channels}.npz')
        np.testing.assert_allclose(told.to_numpy(), own, atol=1e-5)
        assert list(told) == ['small', 'large'] and told.index.name == 'case'
        folder = as_folder(tmp_path/f'folder{channels}', test.images)
        told = new_cases(weights, config, folder)
        np.testing.assert_allclose(told.to_numpy(), own, atol=1e-5)
        assert told.index[0] == 'p000.png' and len(new_cases(weights, config, folder/'p003.png')) == 1
        np.savez(tmp_path/f'layout{channels}.npz', test_images=test.images, val_images=test.images[:2])
        assert list(new_cases(weights, config, tmp_path/f'layout{channels}.npz').index[-2:]) == ['val 0', 'val 1']


def test_pictures_that_the_network_was_not_taught_are_refused(tmp_path):
    data = spots()
    learn = taught(data)
    config, weights = config_for(data, learn, [.5, .5]), learn.model.state_dict()
    def refused(path, match):
        with pytest.raises(DataError, match=match): new_cases(weights, config, path)
    refused(tmp_path/'nowhere', 'not there')
    refused(as_folder(tmp_path/'colour', np.random.default_rng(0).integers(0, 255, (1, 40, 40, 3), dtype=np.uint8)), 'p000.png is in colour')
    refused(as_folder(tmp_path/'small', np.zeros((1, 9, 9), np.uint8)), 'p000.png has 9×9 pixels')
    (tmp_path/'empty').mkdir()
    refused(tmp_path/'empty', 'holds no pictures')
    np.savez(tmp_path/'other.npz', images=np.zeros((3, 64, 64), np.uint8))
    refused(tmp_path/'other.npz', r'trained on \(28, 28\)')
    np.savez(tmp_path/'floats.npz', images=np.zeros((3, 28, 28)))
    refused(tmp_path/'floats.npz', 'float64')
    np.savez(tmp_path/'table.npz', x=np.zeros(3))
    refused(tmp_path/'table.npz', 'called images')


def test_a_dicom_file_is_read_as_the_network_was_taught(tmp_path):
    data = spots()
    learn = taught(data)
    config, weights = config_for(data, learn, [.5, .5]), learn.model.state_dict()
    pydicom = pytest.importorskip('pydicom')
    from pydicom.data import get_testdata_file
    at = Path(get_testdata_file('CT_small.dcm'))
    told = new_cases(weights, config, at)
    assert list(told.index) == ['CT_small.dcm'] and np.allclose(told.sum(1), 1)


# The detector of imaging/detection, handed over

def test_a_detector_handed_over_finds_the_same_boxes_in_pixels_of_the_picture(tmp_path):
    from medlearn.data.masks import MaskSet
    from medlearn.foundations.augmentation import moments
    from medlearn.foundations.loading import channels_first
    from medlearn.imaging import detection as D
    rng = np.random.default_rng(0)
    images, boxes = rng.integers(0, 40, (24, 48, 64), dtype=np.uint8), []
    for x in images:
        r, c = rng.integers(2, 34), rng.integers(2, 50)
        x[r:r+12, c:c+12] += 180
        boxes.append(np.array([[c, r, c + 12, r + 12]], float))
    split = np.repeat(['train', 'valid', 'test'], 8)
    data = MaskSet(images, None, ['background', 'block'], split=split, name='blocks', boxes=boxes, labels=[np.ones(1, int)]*24)
    torch.manual_seed(0)
    dls = tensor_loaders(data, bs=4, kind='boxes')
    net = D.PointDetector(D.Pyramid(1, 4, (8, 16), 16), 1)
    learn = D.Learner(dls, net, loss_func=D.PointLoss(4))
    with learn.no_bar(), learn.no_logging(): learn.fit(8, 1e-2)
    scale = dls.valid.after_batch[0]
    config = json.loads(json.dumps(dict(classes=['block'], shape=[48, 64], colour=False, scaled=True, stride=4, widths=[8, 16], out=16,
                                        mean=scale.mean.flatten().tolist(), std=scale.std.flatten().tolist(), cut=.05)))
    weights = net.state_dict()
    folder = as_folder(tmp_path/'new', images[:4])
    told, own = D.new_cases(weights, config, folder), D.detect(learn, images[:4])
    kept = [(b, s) for b, _, score in own for b, s in zip(b, score) if (s >= .05)]
    some = told.dropna()
    assert len(some) == len(kept) > 0 and set(told.index) == {f'p{i:03}' for i in range(4)}
    np.testing.assert_allclose(some[['x0', 'y0', 'x1', 'y1']].to_numpy(float), np.stack([b for b, _ in kept]), atol=1e-3)
    double = as_folder(tmp_path/'double', images[:4].repeat(2, 1).repeat(2, 2))
    large = D.new_cases(weights, config | dict(cut=.3), double).dropna()
    near = D.new_cases(weights, config | dict(cut=.3), folder).dropna()
    if len(large) == len(near): np.testing.assert_allclose(large[['x0', 'x1']].to_numpy(float)/2, near[['x0', 'x1']].to_numpy(float), atol=3)
    nothing = D.new_cases(weights, config | dict(cut=2.), folder)
    assert len(nothing) == 4 and nothing['class'].isna().all()
    with pytest.raises(DataError, match='in colour'): D.new_cases(weights, config, as_folder(tmp_path/'colour', rng.integers(0, 255, (1, 48, 64, 3), dtype=np.uint8)))
    with pytest.raises(DataError, match='so small'): D.new_cases(weights, config, as_folder(tmp_path/'small', images[:1, :20, :20].copy()))
    with pytest.raises(DataError, match='Bring it to that'): D.new_cases(weights, config | dict(scaled=False), double)


def test_a_readers_file_is_noted_and_a_cards_file_verified(capsys):
    from medlearn.kit import cards, chapter
    file = cards.card('breastmnist').files[0]
    chapter._data_used('breastmnist', file.digest)
    chapter._data_used('breastmnist', 'sha256:' + '0'*64)
    chapter._data_used('mine.npz', file.digest)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(', ')[2] for line in lines] == ['verified', 'digest noted', 'digest noted']
