"The service: what it answers, what it refuses, what it writes down, and that nobody is lost"
import base64, hashlib, io, json, socket, struct, threading, time, urllib.error, urllib.request, zlib
from urllib.parse import quote, unquote
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np, pytest, torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save
from typer.testing import CliRunner

from medlearn.imaging.classification import classic_cnn
from medlearn.kit.cards import DataError
from medlearn.kit.catalog import WrongUsage
from medlearn.kit.cli import app as command
from medlearn.kit.predict import answers_for
from medlearn.trust import service as room
from medlearn.trust.service import Limits, Ready, Refused, calibrate, checked_upload, drift, service

TOKEN, PLANTED = 'a-token_that.is~long+/=', 'ROSALIND^TESTPATIENT-4711'
PATIENT = Limits(seconds=300, per_minute=100_000) # a machine that does much else is slow


def spots(n, seed=0):
    "Round spots in the middle of 24 x 24 pixels: small ones are 0, large ones 1"
    rng = np.random.default_rng(seed)
    at = np.arange(24) - 11.5
    radius, y, x = rng.uniform(2, 9, n), *rng.uniform(-1, 1, (2, n))
    far = np.hypot(at[None, :, None] - y[:, None, None], at[None, None] - x[:, None, None])
    return np.uint8(255)*(far < radius[:, None, None]).astype(np.uint8), (radius > 5.5).astype(int)


def write(folder, **changes):
    torch.manual_seed(0)
    data = save({k: v.contiguous() for k, v in classic_cnn(1, 2).state_dict().items()})
    config = dict(classes=['small', 'large'], shape=[24, 24], mean=[60.], std=[100.], multilabel=False, shares=None, temperature=1.,
                  mirror=True, grey_too=False, fit='crop', level_width=None)
    said = dict(format=1, by='medlearn.imaging.classification:new_cases', chapter='imaging/classification', status='passed',
                config=config, sha256=hashlib.sha256(data).hexdigest()) | changes
    folder.mkdir(parents=True)
    (folder/'model.safetensors').write_bytes(data)
    (folder/'model.json').write_text(json.dumps(said))
    return folder


class Spots(SimpleNamespace):
    def __len__(self): return len(self.images)


def pictures(n, seed=0):
    x, y = spots(n, seed)
    return Spots(images=x, labels=y, classes=['small', 'large'], name='spots')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp('run')/'model')
    calibrate(folder, pictures(400))
    return folder


def png(x, text=''):
    info, out = PngInfo(), io.BytesIO()
    info.add_text('Comment', text)
    Image.fromarray(x).save(out, 'PNG', pnginfo=info)
    return out.getvalue()


def dicom(x, patient='nobody', syntax='1.2.840.10008.1.2.1', **header):
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.7'
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = '1.2.3'
    ds.PatientName, ds.PatientID, ds.Modality = patient, patient, 'OT'
    ds.Rows, ds.Columns = x.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, 'MONOCHROME2', 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = x.tobytes()
    for k, v in header.items(): setattr(ds, k, v)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def nifti(x, packed=True):
    import nibabel
    data = nibabel.Nifti1Image(np.ascontiguousarray(x[..., None] if x.ndim == 3 else x[::-1].T[..., None]), np.eye(4)).to_bytes()
    return zlib.compress(data, wbits=31) if packed else data


def claims_60000(x):
    data = png(x)
    return data[:16] + struct.pack('>II', 60_000, 60_000) + data[24:]


@contextmanager
def running(app):
    import uvicorn
    door = socket.create_server(('127.0.0.1', 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(app, log_level='warning', access_log=False))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[door]), daemon=True)
    thread.start()
    try: yield f'http://127.0.0.1:{door.getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join(60)
        door.close()


def ask(url, data=None, token=TOKEN, **headers):
    request = urllib.request.Request(url, data, {'Authorization': f'Bearer {token}'} | headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as r: return r.status, r.read(), dict(r.headers)
    except urllib.error.HTTPError as e: return e.code, e.read(), dict(e.headers)


@pytest.mark.parametrize('kind, form', [('png', png), ('dcm', dicom), ('nii', nifti)])
def test_says_what_predict_says(model, tmp_path, kind, form):
    x = spots(5, seed=7)[0][4]
    (tmp_path/'case.png').write_bytes(png(x))
    given, wanted = Ready(model).answer(form(x)), answers_for(model, [tmp_path/'case.png']).iloc[0]
    assert given['kind'] == kind and given['notice'] == 'not for clinical use'
    assert given['probability'] == pytest.approx(wanted.to_dict(), abs=1e-4)
    cut = json.loads((model/'service.json').read_text())['cut']
    assert given['set'] == [c for c, p in wanted.items() if 1 - p <= cut]
    assert Image.open(io.BytesIO(base64.b64decode(given['overlay'].partition(',')[2]))).size == (192, 192)


X = spots(1, seed=3)[0][0]
HOSTILE = {
    'bomb': (zlib.compress(bytes(64 << 20), wbits=31), 413, 'unpacks to more'), 'dicom 60000': (dicom(X, Rows=60_000, Columns=60_000), 413, '60000'),
    'png 60000': (claims_60000(X), 413, '60000'), 'dicom claims more': (dicom(X, Rows=400), 422, 'cut off'), 'frames': (dicom(X, NumberOfFrames=60_000), 413, '60000'),
    'dicom cut': (dicom(X)[:-300], 422, ''), 'png cut': (png(X)[:60], 422, ''), 'nifti cut': (nifti(X)[:-9], 422, 'cut off'),
    'nifti cut, unpacked': (nifti(X, False)[:-50], 422, 'cut off'), 'volume': (nifti(np.zeros((8, 8, 8), np.uint8)), 422, 'one slice'),
    'deflated dicom': (dicom(X).replace(b'1.2.840.10008.1.2.1\0', b'1.2.840.10008.1.2.99'[:19] + b'\0', 1), 415, 'compressed'),
    'header of nothing': (b'\0'*128 + b'DICM' + b'\xff'*400, 415, ''), 'too large': (bytes((8 << 20) + 1), 413, 'bytes are taken'), 'text': (b'hello', 415, 'no DICOM'),
    'pickle': (b'\x80\x04cos\nsystem\n.', 415, 'no DICOM'), 'empty': (b'', 422, 'more than none'), 'colour': (png(np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)), 422, 'colour'),
    'small': (png(X[:8, :8]), 422, '8×8'), 'black': (png(0*X), 422, 'one value'), 'noise': (png(np.random.default_rng(0).integers(0, 255, (24, 24)).astype(np.uint8)), 422, 'unlike'),
    'another part': (png(np.roll(255 - X, 7, 0)), 422, 'unlike')}


def test_hostile_uploads_are_refused_while_others_are_served(model, tmp_path):
    log, good = tmp_path/'log', spots(12, seed=1)[0]
    with running(service(model, TOKEN, PATIENT, log)) as url, ThreadPoolExecutor(6) as many:
        served = [many.submit(ask, url + '/predict', png(x)) for x in good]
        for name, (data, status, why) in HOSTILE.items():
            got, text, _ = ask(url + '/predict', data)
            assert got == status and why in json.loads(text)['why'], (name, got, text)
        assert [f.result()[0] for f in served] == [200]*len(good)
        assert ask(url + '/predict', png(good[0]))[0] == 200
    assert sorted(json.loads(l)['status'] for l in log.read_text().splitlines()) == sorted([200]*13 + [s for _, s, _ in HOSTILE.values()])


def test_mutated_files_are_answered_or_refused(model):
    "Whatever bytes come, the reader says no or answers; it raises nothing else"
    ready, rng, seen = Ready(model), np.random.default_rng(0), set()
    for start in (png(X), dicom(X), nifti(X, False)):
        for _ in range(20):
            data = bytearray(start)
            for at in rng.integers(0, len(data), rng.integers(1, 6)): data[at] = rng.integers(256)
            if rng.random() < .2: data = data[:rng.integers(1, len(data))]
            try: seen.add(ready.answer(bytes(data))['kind'])
            except Refused as e: seen.add(e.args[0])
    assert seen <= {'png', 'dcm', 'nii', 413, 415, 422} and 422 in seen


def test_fifty_at_once_and_none_is_lost(model):
    ready, x = Ready(model), spots(80, seed=2)[0]
    x = x[[ready.likeness(one) > .01 for one in x]][:50]
    with running(service(model, TOKEN, PATIENT)) as url, ThreadPoolExecutor(50) as many:
        start = threading.Barrier(50)
        def one(data):
            start.wait(60)
            return ask(url + '/predict', data)
        answers = list(many.map(one, map(png, x)))
    assert [a[0] for a in answers] == [200]*50
    direct = ready.probabilities(x)
    given = np.array([[*json.loads(a[1])['probability'].values()] for a in answers])
    assert abs(given - direct).max() < 1e-4, 'answers were mixed up'


def test_the_loop_goes_on_while_the_model_works(model, monkeypatch):
    "A slow picture keeps nobody from the page"
    go, begun = threading.Event(), threading.Event()
    def slow(self, data):
        begun.set()
        go.wait(120)
        raise Refused(422, 'slow')
    monkeypatch.setattr(Ready, 'answer', slow)
    with running(service(model, TOKEN, Limits(waiting=2, workers=1, seconds=120))) as url, ThreadPoolExecutor(3) as many:
        first = many.submit(ask, url + '/predict', b'x')
        assert begun.wait(60)
        rest = [many.submit(ask, url + '/predict', b'x') for _ in range(2)] # one of them waits, the other is told "later"
        refused, waiting = wait(rest, timeout=60, return_when=FIRST_COMPLETED)
        status, text, headers = refused.pop().result()
        assert status == 503 and headers['retry-after'] == '5' and b'try again' in text
        assert ask(url)[0] == 200 and not first.done() and not refused
        go.set()
        assert first.result()[0] == waiting.pop().result()[0] == 422


def test_limits_token_and_host(model):
    with running(service(model, TOKEN, Limits(per_minute=3, seconds=60))) as url:
        for token in ('', 'wrong', TOKEN + 'x'): assert ask(url + '/predict', png(X), token)[0] == 401
        assert ask(url + '/predict', png(X), Host='evil.example')[0] == 400
        assert [ask(url + '/predict', b'x')[0] for _ in range(4)] == [415]*3 + [429]
        status, page, headers = ask(url)
        assert status == 200 and b'not for clinical use' in page and TOKEN.encode() not in page
        assert "default-src 'none'" in headers['content-security-policy']
        assert [ask(url + p)[0] for p in ('/docs', '/openapi.json', '/model.json')] == [404]*3


@pytest.mark.parametrize('token', ['short', 'a b', 'sixteen and a space', 'sixteen_and_a_%20', 'sixteen_and_a_#here', 'sechzehn_ist_schön',
                                   'sixteen_and_end\n', '='*20, 'sixteen_in_=_midst'])
def test_a_token_that_can_be_guessed_or_does_not_arrive_is_refused(model, monkeypatch, token):
    monkeypatch.setattr('medlearn.kit.predict.tool', lambda name: room.serve)
    with pytest.raises(WrongUsage, match='16 at least.*letters, digits'): service(model, token)
    done = CliRunner().invoke(command, ['serve', str(model), '--token', token])
    assert done.exit_code == 2 and '16 at least' in done.output and 'http://' not in done.output


def test_a_token_of_ones_own_stands_in_the_address_as_it_is(model, monkeypatch):
    monkeypatch.setattr('uvicorn.run', lambda app, **kw: None)
    monkeypatch.setattr('medlearn.kit.predict.tool', lambda name: room.serve)
    done = CliRunner().invoke(command, ['serve', str(model), '--port', '8123', '--token', TOKEN])
    assert done.exit_code == 0 and f'http://127.0.0.1:8123/#{TOKEN} ' in done.output
    assert unquote(TOKEN) == quote(TOKEN, safe="/?:@!$&'()*+,;=-._~") == TOKEN # RFC 3986: what a fragment may hold


def test_a_slow_sender_is_let_go(model):
    with running(service(model, TOKEN, Limits(seconds=.2))) as url:
        host, port = url.removeprefix('http://').split(':')
        with socket.create_connection((host, int(port)), timeout=60) as s:
            s.sendall(f'POST /predict HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 999\r\n\r\nab'.encode())
            assert b'408' in s.recv(4000).split(b'\r\n')[0]


def test_nothing_planted_is_written_down(model, tmp_path, capfd):
    log = tmp_path/'log'
    broken = dicom(X, PLANTED)
    with running(service(model, TOKEN, PATIENT, log)) as url:
        uploads = [dicom(X, PLANTED), png(X, PLANTED), dicom(X, PLANTED, Rows=60_000), broken[:-100], broken[:200] + PLANTED.encode(), dicom(X, PLANTED, StudyDate='ROSALIND')]
        statuses = [ask(f'{url}/predict?patient={PLANTED}', d, **{'X-File-Name': PLANTED, 'User-Agent': PLANTED})[0] for d in uploads]
    written = log.read_text() + ''.join(capfd.readouterr())
    assert statuses[:2] == [200, 200] and len(log.read_text().splitlines()) == len(uploads)
    assert not [w for w in ('ROSALIND', 'TESTPATIENT', '4711', '127.0.0.1', TOKEN) if w in written]
    assert set().union(*map(json.loads, log.read_text().splitlines())) <= {'day', 'status', 'ms', 'kind', 'sure', 'set', 'likeness'}
    kept = json.loads((model/'service.json').read_text())
    assert set(kept) == {'sha256', 'pictures', 'miss', 'cut', 'strange', 'mean', 'whiten', 'far', 'sure'}


@pytest.mark.parametrize('changes, why', [
    (dict(status='failed', fell=['AUROC']), 'claims do not hold'), (dict(by='os:system'), 'not to be trusted'), (dict(sha256='0'), 'altered'),
    (dict(config=dict(classes=['a'])), 'one of several classes'), ({}, 'has no service.json')])
def test_a_model_that_does_not_fit_is_refused_at_the_start(tmp_path, changes, why):
    with pytest.raises(DataError, match=why): service(write(tmp_path/'model', **changes), TOKEN)


def test_calibration_that_does_not_fit_is_refused(tmp_path):
    folder = write(tmp_path/'model')
    with pytest.raises(DataError, match='too few'): calibrate(folder, pictures(30))
    with pytest.raises(DataError, match='classes'): calibrate(folder, Spots(**vars(pictures(300)) | dict(classes=['a', 'b'])))
    calibrate(folder, pictures(300))
    said = json.loads((folder/'service.json').read_text())
    (folder/'service.json').write_text(json.dumps(said | dict(sha256='of another')))
    with pytest.raises(DataError, match='another model'): service(folder, TOKEN)


def test_likeness_refuses_as_few_as_it_says(model):
    ready = Ready(model)
    assert np.mean([ready.likeness(x) <= .01 for x in spots(200, seed=5)[0]]) < .05


def test_drift_against_scipy_and_its_false_alarms(model, tmp_path):
    from scipy.stats import ks_2samp
    then, rng, log = np.array(json.loads((model/'service.json').read_text())['sure']), np.random.default_rng(0), tmp_path/'log'
    def told(values):
        log.write_text('\n'.join(json.dumps(dict(status=200, sure=float(v))) for v in values))
        return drift(log, model)
    alarms = 0
    for _ in range(60):
        now = rng.choice(then, 80)
        said = told(now)
        assert said['distance'] == pytest.approx(ks_2samp(now, then).statistic)
        alarms += said['alarm']
    assert alarms <= 3 and told(then[-80:])['alarm']
    log.write_text(json.dumps(dict(status=422)))
    with pytest.raises(DataError, match='no picture'): drift(log, model)


def test_the_command_listens_to_this_machine_alone(model, monkeypatch):
    called = {}
    monkeypatch.setattr('uvicorn.run', lambda app, **kw: called.update(kw, app=app))
    monkeypatch.setattr('medlearn.kit.predict.tool', lambda name: room.serve)
    done = CliRunner().invoke(command, ['serve', str(model), '--port', '8123'])
    assert done.exit_code == 0, done.output
    assert called['host'] == '127.0.0.1' and called['port'] == 8123 and not called['access_log']
    token = done.output.split('#')[1].split()[0]
    assert len(token) >= 32 and 'not for clinical use' in done.output
    assert 'guessed' in CliRunner().invoke(command, ['serve', str(model), '--token', 'short']).output
    gone = CliRunner().invoke(command, ['serve', str(model.parent/'nothing')])
    assert gone.exit_code == 2 and 'no such folder' in gone.output


def test_serve_is_offered_to_the_command_line():
    from configparser import ConfigParser
    from pathlib import Path
    conf = ConfigParser()
    conf.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    assert 'serve=medlearn.trust.service:serve' in conf['DEFAULT']['tools'].split()
    assert checked_upload(png(X))[0] == 'png'
