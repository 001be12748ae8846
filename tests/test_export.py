"Export: the same answers from an ONNX file, other files refused, eight bits, and a card that promises no more than was measured"
import hashlib, json

import numpy as np, onnx, pytest, torch
from safetensors.torch import save

from medlearn.imaging.classification import classic_cnn, new_cases
from medlearn.kit.cards import DataError
from medlearn.trust.export import export_onnx, model_card, quantised, raced, Runner, whole


def write(folder, **changes):
    config = dict(classes=['benign', 'malignant', 'neither'], shape=[24, 24], mean=[60.], std=[90.], multilabel=False, shares=[.5, .3, .2],
                  temperature=1.7, mirror=True, grey_too=False, fit='crop', level_width=None) | changes
    torch.manual_seed(0)
    net = classic_cnn(3 if len(config['shape']) == 3 else 1, len(config['classes']))
    data = save({k: v.contiguous() for k, v in net.state_dict().items()})
    said = dict(format=1, by='medlearn.imaging.classification:new_cases', chapter='imaging/classification', status='passed', config=config,
                methods={'AUROC': [.8, .7, .9]}, sha256=hashlib.sha256(data).hexdigest())
    folder.mkdir(parents=True)
    (folder/'model.safetensors').write_bytes(data)
    (folder/'model.json').write_text(json.dumps(said))
    return folder


def noise(n, *shape, seed=0): return np.random.default_rng(seed).integers(0, 256, (n, *(shape or (24, 24)))).astype(np.uint8)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    write(folder/'model')
    return folder, export_onnx(folder/'model', folder/'model.onnx')


@pytest.mark.parametrize('changes', [{}, dict(mirror=False, temperature=.6), dict(shape=[24, 24, 3], mean=[50., 60., 70.], std=[80.]*3),
                                     dict(multilabel=True, shares=None)], ids=['grey', 'no mirror', 'colour', 'several findings'])
def test_the_whole_network_is_what_predict_says(tmp_path, changes):
    net, said = whole(write(tmp_path/'model', **changes))
    x = noise(9, *said['config']['shape'])
    np.savez(tmp_path/'x.npz', images=x)
    wanted = new_cases(net.net.state_dict(), said['config'], tmp_path/'x.npz').to_numpy()
    with torch.inference_mode(): assert abs(net(torch.as_tensor(x.astype(np.float32))).numpy() - wanted).max() < 1e-5


def test_parity_at_any_number_of_pictures_and_against_onnx_itself(exported):
    from onnx.reference import ReferenceEvaluator
    folder, path = exported
    run, (net, said), x = Runner(path), whole(folder/'model'), noise(17)
    with torch.inference_mode(): wanted = net(torch.as_tensor(x.astype(np.float32))).numpy()
    for n in (1, 2, 17): assert abs(run(x[:n]) - wanted[:n]).max() < 1e-4
    assert abs(ReferenceEvaluator(str(path)).run(None, {run.session.get_inputs()[0].name: x[:2].astype(np.float32)})[0] - wanted[:2]).max() < 1e-4
    assert run.classes == said['config']['classes'] and run.facts['notice'] == 'not for clinical use' and run.facts['weights'] == said['sha256']


def altered(path, out, change):
    model = onnx.load(path)
    change(model)
    out.write_bytes(model.SerializeToString())
    return out


def old(model): model.opset_import[0].version = 7
def new(model): model.opset_import[0].version = 99
def nameless(model): del model.metadata_props[:]


@pytest.mark.parametrize('change, why', [(old, 'opset'), (new, 'opset|whole ONNX'), (nameless, 'no classes')])
def test_other_files_are_refused(exported, tmp_path, change, why):
    with pytest.raises(DataError, match=why): Runner(altered(exported[1], tmp_path/'x.onnx', change))


@pytest.mark.parametrize('cut', [0, 1, 100, -1, -5000])
def test_a_file_that_is_cut_off_is_refused(exported, tmp_path, cut):
    (tmp_path/'x.onnx').write_bytes(exported[1].read_bytes()[:cut])
    with pytest.raises(DataError, match='x.onnx'): Runner(tmp_path/'x.onnx')


def test_other_pictures_and_places_are_refused(exported):
    run = Runner(exported[1])
    for x in (noise(2, 28, 28), noise(1, 24, 24, 3), noise(0), noise(1)[0]):
        with pytest.raises(DataError, match='this file takes'): run(x)
    for x in (noise(2)/255, noise(2) - 500.):
        with pytest.raises(DataError, match='0 to 255'): run(x)
    with pytest.raises(DataError, match='not there'): Runner('nowhere.onnx')
    with pytest.raises(DataError, match='Nowhere.*this machine has'): Runner(exported[1], providers=('NowhereExecutionProvider',))


def test_only_what_the_exporter_knows_is_exported(tmp_path):
    folder = write(tmp_path/'model')
    said = json.loads((folder/'model.json').read_text())
    (folder/'model.json').write_text(json.dumps(said | dict(by='medlearn.imaging.volumes:new_cases')))
    with pytest.raises(DataError, match='imaging.volumes'): export_onnx(folder, tmp_path/'x.onnx')


def test_eight_bits_stay_near_and_are_smaller(exported, tmp_path):
    small, x = quantised(exported[1], tmp_path/'small.onnx', noise(64, seed=1)), noise(40, seed=2)
    assert small.stat().st_size < .5*exported[1].stat().st_size
    assert np.abs(Runner(small)(x) - Runner(exported[1])(x)).mean() < .02
    assert {'QuantizeLinear', 'DequantizeLinear'} <= {n.op_type for n in onnx.load(small).graph.node}


def test_a_race_is_a_ratio():
    import time
    ratio, seconds = raced(lambda: time.sleep(.004), lambda: time.sleep(.001), rounds=6, calls=3)
    assert 1 < ratio[1] <= ratio[0] <= ratio[2] and seconds.shape == (6, 2)


def test_a_card_says_what_was_measured():
    said = dict(config=dict(classes=['a', 'b']), sha256='0'*64, methods=dict(patients=60))
    held = dict(claim='AUROC', value=.84, low=.79, high=.88, passed=True, source='definition: chance')
    text = model_card(said, [held, held | dict(claim='gain', passed=False)], 'students', 'patients')
    assert 'not for clinical use' in text and '| AUROC | 0.84' in text and '**does not hold**' in text and 'patients: 60' in text
    with pytest.raises(DataError, match='without evidence'): model_card(said, [], 'a', 'b')
    with pytest.raises(DataError, match='source'): model_card(said, [dict(claim='x', value=1, passed=True)], 'a', 'b')
