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
    done = subprocess.run([medlearn, 'run', 'imaging/classification', '-p', f'dataset={tmp_path/"photos"}', '--out', tmp_path/'out', '--report'],
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
