"A hundred JPEGs in class folders run a chapter, with no code written"
import json, subprocess, sys
from pathlib import Path

import numpy as np
from PIL import Image


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
    done = subprocess.run([medlearn, 'run', 'imaging/classification', '-p', f'dataset={tmp_path/"photos"}', '--out', tmp_path/'out', '--fresh'],
                          capture_output=True, text=True, timeout=600)
    run, = json.loads((tmp_path/'out'/'results.json').read_text())['runs']
    assert done.returncode == 0 and run['status'] == 'passed', done.stdout + done.stderr
    assert {d['name'] for d in run['data']} == {'photos', 'dataset.toml'}
    assert any(c['claim'] == 'Share of the test split whose patients are in training' and c['value'] == 0 for c in run['claims'])
