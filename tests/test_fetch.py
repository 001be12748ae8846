"Every fault of `medlearn.kit.fetch` caused for real: a local server that misbehaves, a full disk, several processes"
import hashlib, io, json, os, re, shutil, subprocess, sys, tarfile, tempfile, threading, time, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from medlearn.kit import cards as C, download as D, fetch as F

root = Path(__file__).parent.parent
shared = root.parent/'shared'/'data'
body = np.random.default_rng(0).bytes(400_000)
sha = 'sha256:' + hashlib.sha256(body).hexdigest()


class Server:
    "Serves `body` at any path; `script` holds one fault per request, `log` what was asked"
    def __init__(self, script=(), body=body):
        outer, self.script, self.log, self.body = self, list(script), [], body
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args): pass
            def do_GET(self):
                fault = outer.script.pop(0) if outer.script else 'whole'
                asked = self.headers.get('Range')
                outer.log.append((self.path, fault, asked))
                have = int(asked[6:-1]) if asked else 0
                if fault == 'slow': time.sleep(1.5)
                if fault == 'busy': return self.send_error(503)
                if fault == 'absent': return self.send_error(404)
                if have >= len(outer.body): return self.send_error(416)
                if fault == 'norange': have = 0
                data = outer.body[have:]
                if fault == 'changed': data = data[:-1] + bytes([data[-1] ^ 1])
                if fault == 'login': data = b'<html>Please log in</html>'
                self.send_response(206 if have else 200)
                if have: self.send_header('Content-Range', f'bytes {have}-{len(outer.body) - 1}/{len(outer.body)}')
                if fault != 'nolength': self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                if fault == 'hold': time.sleep(.5)
                self.wfile.write(data[:len(data)//2] if fault in ('cut', 'stall') else data)
                if fault == 'stall': time.sleep(1.5)
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        self.url = f'http://127.0.0.1:{self.http.server_port}'
    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    servers = []
    def start(*script, **kw):
        servers.append(Server(script, **kw))
        return servers[-1]
    yield start
    for s in servers: s.close()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    "An empty cache, no mirror, no patience"
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path/'cache'))
    for k in ('MEDLEARN_MIRROR', 'MEDLEARN_CARDS'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(D, 'waits', (.01, .01))
    monkeypatch.setattr(F, 'seen', [])
    return tmp_path


def make(at, digest=sha, file='toy.bin', size=len(body), **kw):
    "A card with one file"
    f = dict(file=file, source='url', url=f'{at}/{file}', digest=digest, size=size) | kw
    return C.Card(name='toy', title='Toy', task='none', modality='computed', simulated=True, licence='CC0', citation='none', intended_use='tests',
                  known_biases='none', loader='medlearn.kit.fetch:load_npz', splits={'all': 1}, files=[f])


def kept(place): return sorted(p.name for p in (place/'cache').rglob('*') if p.is_file() and p.name != '.lock')


def error(card):
    with pytest.raises(C.DataError) as e: F.fetch(card)
    return str(e.value)


# ---------------------------------------------------------------- downloads

def test_whole_then_from_the_cache(serve, place):
    s = serve()
    c = make(s.url)
    assert F.fetch(c).read_bytes() == body and F.fetch(c).read_bytes() == body
    assert len(s.log) == 1 and kept(place) == ['toy.bin']


def test_cut_connection_resumes(serve):
    s = serve('cut')
    assert F.fetch(make(s.url)).read_bytes() == body
    assert [x[1] for x in s.log] == ['cut', 'whole'] and re.fullmatch(r'bytes=[1-9]\d*-', s.log[1][2])


@pytest.mark.parametrize('script', [('cut', 'norange'), ('busy', 'whole'), ('nolength',), ('cut', 'cut', 'whole')])
def test_awkward_servers(serve, script):
    assert F.fetch(make(serve(*script).url)).read_bytes() == body


def test_truncated_every_time_then_goes_on_at_the_next_fetch(serve, place):
    s = serve('cut', 'cut', 'cut')
    c = make(s.url)
    message = error(c)
    assert 'toy.bin' in message and 'truncated' in message and 'of 400,000 bytes' in message and 'Try again' in message
    assert kept(place) == ['toy.bin.part']
    assert F.fetch(c).read_bytes() == body and s.log[-1][2] and kept(place) == ['toy.bin']


def test_a_stale_part_restarts_once(serve, place):
    s = serve()
    c = make(s.url)
    path = F.cached_path(c)
    path.parent.mkdir(parents=True)
    (path.parent/'toy.bin.part').write_bytes(b'old' * 1000)
    assert F.fetch(c).read_bytes() == body
    assert [x[2] for x in s.log] == ['bytes=3000-', None]


def test_a_part_longer_than_the_file_restarts(serve):
    s = serve()
    c = make(s.url)
    path = F.cached_path(c)
    path.parent.mkdir(parents=True)
    (path.parent/'toy.bin.part').write_bytes(body + b'more')
    assert F.fetch(c).read_bytes() == body and s.log[-1][2] is None


@pytest.mark.parametrize('fault', ['changed', 'login'])
def test_wrong_bytes(serve, place, fault):
    message = error(make(serve(fault).url))
    assert 'toy.bin' in message and sha in message and 'proxy' in message and kept(place) == []


def test_absent_is_believed_at_once(serve, place):
    s = serve('absent')
    message = error(make(s.url))
    assert '404' in message and s.url in message and 'MEDLEARN_MIRROR' in message and len(s.log) == 1 and kept(place) == []


def test_silent_server_is_cut_off_and_resumed(serve, monkeypatch):
    monkeypatch.setattr(D, 'timeout', (.3, .3))
    s = serve('stall')
    assert F.fetch(make(s.url)).read_bytes() == body and s.log[1][2]


def test_slow_server(serve, place, monkeypatch):
    monkeypatch.setattr(D, 'timeout', (.3, .3))
    monkeypatch.setattr(D, 'waits', ())
    assert 'in time' in error(make(serve('slow').url))


def test_no_network(serve, place):
    s = serve()
    s.close()
    message = error(make(s.url))
    assert 'no connection' in message and f'{s.url}/toy.bin' in message and 'put it in any folder' in message and kept(place) == []
    s.close = lambda: None


def test_a_bad_file_in_the_cache_is_replaced_or_removed(serve, place):
    s = serve('whole', 'whole', 'absent')
    c = make(s.url)
    F.fetch(c).write_bytes(b'bad')
    assert F.verify(c)[0]['state'] == 'bad'
    assert F.fetch(c).read_bytes() == body and F.verify(c)[0]['state'] == 'ok'
    F.fetch(c).write_bytes(b'bad')
    error(c)
    assert kept(place) == [] and F.verify(c)[0]['state'] == 'missing'


def test_left_overs_of_a_killed_process_are_swept(serve, place):
    c = make(serve().url)
    folder = F.cached_path(c).parent
    (folder/'tmpdir').mkdir(parents=True)
    (folder/'tmpfile').write_bytes(b'x')
    F.fetch(c)
    assert kept(place) == ['toy.bin'] and not (folder/'tmpdir').exists()


script = '''
import sys
from pathlib import Path
from medlearn.kit import cards as C, fetch as F
C.cards = lambda: {c.name: c for c in [C._read_card(Path(sys.argv[1]))]}
print(F.fetch('toy').read_bytes()[:8].hex())
'''


def as_toml(place, url):
    path = place/'cards'/'toy.toml'
    path.parent.mkdir()
    path.write_text(f'name = "toy"\ntitle = "t"\ntask = "t"\nmodality = "m"\nsimulated = true\nlicence = "l"\ncitation = "c"\nintended_use = "i"\n'
                    f'known_biases = "k"\nloader = "a.b:c"\nsplits = {{all = 1}}\n[[files]]\nfile = "toy.bin"\nsource = "url"\n'
                    f'url = "{url}/toy.bin"\ndigest = "{sha}"\n')
    return path


def test_several_processes_ask_once(serve, place):
    s = serve('hold')
    toml = as_toml(place, s.url)
    jobs = [subprocess.Popen([sys.executable, '-c', script, str(toml)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [j.communicate(timeout=50)[0].strip() for j in jobs] == [body[:8].hex()] * 3
    assert len(s.log) == 1


def test_threads_ask_once(serve):
    s = serve('hold')
    c = make(s.url)
    threads = [threading.Thread(target=F.fetch, args=(c,)) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(s.log) == 1 and F.fetch(c).read_bytes() == body


def test_killed_in_the_middle_goes_on(serve, place):
    s = serve(body=np.random.default_rng(1).bytes(2_000_000))
    whole, slow = s.body, threading.Event()
    digest = 'sha256:' + hashlib.sha256(whole).hexdigest()
    handler = s.http.RequestHandlerClass
    plain = handler.do_GET
    def trickle(self):
        if slow.is_set(): return plain(self)
        self.send_response(200)
        self.send_header('Content-Length', str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[:1_000_000])
        slow.wait(20)
    handler.do_GET = trickle
    toml = as_toml(place, s.url)
    toml.write_text(toml.read_text().replace(sha, digest))
    job = subprocess.Popen([sys.executable, '-c', script, str(toml)])
    part = F.cached_path(C._read_card(toml)).with_name('toy.bin.part')
    until = time.time() + 20
    while not (part.exists() and part.stat().st_size > 100_000) and time.time() < until: time.sleep(.02)
    job.kill()
    job.wait()
    assert not part.with_name('toy.bin').exists()
    slow.set()
    assert F.fetch(C._read_card(toml)).read_bytes() == whole
    assert s.log[-1][2] and kept(place) == ['toy.bin']


# ---------------------------------------------------------------- disks

@pytest.fixture
def tiny():
    "A disk of 256 kB"
    folder = tempfile.mkdtemp(prefix='medlearn-tiny-')
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', folder], capture_output=True, text=True) if shutil.which('mount') else None
    if not done or done.returncode:
        os.rmdir(folder)
        pytest.skip('a small tmpfs cannot be mounted here (needs root)')
    yield Path(folder)
    subprocess.run(['umount', '-l', folder], check=True)
    os.rmdir(folder)


@pytest.mark.parametrize('fault', ['whole', 'nolength'])
def test_full_disk(serve, tiny, monkeypatch, fault):
    "Announced by the size, or met in the middle of writing"
    monkeypatch.setenv('MEDLEARN_CACHE', str(tiny))
    message = error(make(serve(fault).url, size=None if fault == 'nolength' else len(body)))
    assert 'disk is full' in message and 'toy.bin' in message and str(tiny) in message and 'MEDLEARN_CACHE' in message
    assert [p for p in tiny.rglob('*') if p.is_file() and p.name != '.lock'] == []


def test_full_disk_from_a_mirror(tiny, place, monkeypatch):
    monkeypatch.setenv('MEDLEARN_CACHE', str(tiny))
    monkeypatch.setenv('MEDLEARN_MIRROR', str(place))
    (place/'toy.bin').write_bytes(body)
    assert 'disk is full' in error(make('http://127.0.0.1:9'))
    assert [p for p in tiny.rglob('*') if p.is_file() and p.name != '.lock'] == []


def test_cache_that_is_a_file(serve, place, monkeypatch):
    (place/'file').write_text('')
    monkeypatch.setenv('MEDLEARN_CACHE', str(place/'file'))
    assert 'the cache cannot be used' in error(make(serve().url))


# ---------------------------------------------------------------- mirrors

def test_only_the_digest_decides(serve, place, monkeypatch):
    s = serve()
    monkeypatch.setenv('MEDLEARN_MIRROR', str(place/'mirror'))
    for d, content in (('a', body[::-1]), ('b/c', body)):
        (place/'mirror'/d).mkdir(parents=True)
        (place/'mirror'/d/'toy.bin').write_bytes(content)
    assert F.fetch(make(s.url)).read_bytes() == body and s.log == []


def test_a_wrong_mirror_is_named_and_passed_over(serve, place, monkeypatch):
    s = serve()
    (place/'toy.bin').write_bytes(b'something else')
    monkeypatch.setenv('MEDLEARN_MIRROR', str(place))
    assert F.fetch(make(s.url)).read_bytes() == body
    shutil.rmtree(place/'cache')
    s.script.append('absent')
    message = error(make(s.url))
    assert f'{place}/toy.bin is not the file on the card' in message and '404' in message
    monkeypatch.setenv('MEDLEARN_MIRROR', str(place/'nowhere'))
    s.script.append('absent')
    assert 'MEDLEARN_MIRROR is not a folder' in error(make(s.url))


def test_linked_folders_of_a_mirror_are_searched_and_loops_end(serve, place, monkeypatch):
    (place/'disk/deep').mkdir(parents=True)
    (place/'mirror').mkdir()
    (place/'disk/deep/toy.bin').write_bytes(body)
    (place/'mirror/linked').symlink_to(place/'disk', target_is_directory=True)
    (place/'disk/back').symlink_to(place/'mirror', target_is_directory=True)
    (place/'disk/self').symlink_to(place/'disk', target_is_directory=True)
    monkeypatch.setenv('MEDLEARN_MIRROR', str(place/'mirror'))
    assert [n for _, names in F.walk_folders(place/'mirror') for n in names] == ['toy.bin']
    s = serve()
    assert F.fetch(make(s.url)).read_bytes() == body and s.log == []
    (place/'disk/deep/toy.bin').write_bytes(body[::-1])
    shutil.rmtree(place/'cache')
    s.script.append('absent')
    assert 'toy.bin is not the file on the card' in error(make(s.url))


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read everything')
def test_a_mirror_that_cannot_be_read_is_passed_over(serve, place, monkeypatch):
    (place/'toy.bin').write_bytes(body)
    (place/'toy.bin').chmod(0)
    monkeypatch.setenv('MEDLEARN_MIRROR', str(place))
    assert F.fetch(make(serve().url)).read_bytes() == body


def test_mirror_over_http(serve, monkeypatch):
    mirror, origin = serve('cut', 'whole', 'changed', 'absent'), serve()
    monkeypatch.setenv('MEDLEARN_MIRROR', mirror.url + '/')
    c = make(origin.url)
    path = F.fetch(c)
    assert path.read_bytes() == body and origin.log == [] and mirror.log[0][0] == '/toy.bin'
    for n in (1, 2):
        path.unlink()
        assert F.fetch(c).read_bytes() == body and len(origin.log) == n


@pytest.mark.skipif(not (shared/'breastmnist').is_dir(), reason='no ../shared/data beside the checkout')
def test_real_breastmnist_from_a_mirror(monkeypatch):
    monkeypatch.setenv('MEDLEARN_MIRROR', str(shared))
    path = F.fetch('breastmnist')
    assert F.load_npz(path, needs=('train_images', 'test_labels'))['test_images'].shape == (156, 28, 28)
    assert path.stat().st_size == C.card('breastmnist').file().size and F.seen == [('breastmnist', 'md5:750601b1f35ba3300ea97c75c52ff8f6')]


# ---------------------------------------------------------------- packages

def a_wheel(folder, name='toyset', version='1.0'):
    file = folder/f'{name}-{version}-py3-none-any.whl'
    info = f'{name}-{version}.dist-info'
    with zipfile.ZipFile(file, 'w') as z:
        z.writestr(f'{name}/data.txt', 'real data')
        z.writestr(f'{name}/__init__.py', 'raise SystemExit("imported!")')
        z.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: no-such-dependency\n')
        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(f'{info}/RECORD', '')
    return file


@pytest.fixture
def own_index(place, monkeypatch):
    "pip as a user has configured it: no index, one folder of wheels"
    (place/'wheels').mkdir()
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(place/'wheels'))
    return place/'wheels'


def pypi_card(file, digest): return make('', file=file, digest=digest, size=None, source='pypi', url='', package='toyset', version='1.0', member='toyset/data.txt')


def test_package(own_index, place):
    wheel = a_wheel(own_index)
    c = pypi_card(wheel.name, C.digest_of(wheel))
    assert F.read_member(F.fetch(c), c.file().member) == b'real data'
    assert kept(place) == [wheel.name] and 'toyset' not in sys.modules
    wheel.unlink()
    assert F.fetch(c).exists()


def test_package_with_another_digest(own_index, place):
    message = error(pypi_card(a_wheel(own_index).name, sha))
    assert 'does not match' in message and kept(place) == []


def test_package_that_is_not_there(own_index, place):
    message = error(pypi_card('toyset-1.0-py3-none-any.whl', sha))
    assert 'No matching distribution found for toyset==1.0' in message and 'MEDLEARN_MIRROR' in message and kept(place) == []


def test_package_from_a_mirror_needs_no_pip(place, monkeypatch):
    wheel = a_wheel(place)
    monkeypatch.setenv('MEDLEARN_MIRROR', str(place))
    monkeypatch.setattr(D, 'from_pypi', None)
    assert F.fetch(pypi_card(wheel.name, C.digest_of(wheel))).exists()


def test_python_without_pip(place, monkeypatch):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(place/'bare')], check=True)
    monkeypatch.setattr(sys, 'executable', str(place/'bare'/'bin'/'python'))
    assert 'ensurepip' in error(pypi_card('toyset-1.0-py3-none-any.whl', sha))


# ---------------------------------------------------------------- source packages

def an_sdist():
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode='w:gz') as t:
        for name, text in {'toyset-1.0/setup.py': b'raise SystemExit("built!")', 'toyset-1.0/data.txt': b'real data'}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            t.addfile(info, io.BytesIO(text))
    return made.getvalue()


sdist = an_sdist()
sdist_card = lambda digest='sha256:' + hashlib.sha256(sdist).hexdigest(): pypi_card('toyset-1.0.tar.gz', digest)


@pytest.fixture
def index(monkeypatch):
    "An index that lists one source package; `form` is html, json, bad or none"
    class Handler(BaseHTTPRequestHandler):
        form, log = 'html', []
        def log_message(self, *args): pass
        def do_GET(self):
            self.log.append(self.path)
            links = ['../../f/toyset-0.9.tar.gz', '../../f/toyset-1.0.tar.gz#sha256=0']
            html = ''.join(f'<a data-x="1" href="{x}">x</a>' for x in links).encode()
            listed = dict(html=html, json=json.dumps(dict(files=[dict(url=x) for x in links])).encode(), bad=b'{"no": 1}', none=b'<html></html>')
            body = sdist if self.path == '/f/toyset-1.0.tar.gz' else listed[self.form]
            self.send_response(200 if self.path in ('/f/toyset-1.0.tar.gz', '/simple/toyset/') else 404)
            kind = 'application/vnd.pypi.simple.v1+json' if self.form in ('json', 'bad') else 'text/html'
            for k, v in {'Content-Type': kind, 'Content-Length': len(body)}.items(): self.send_header(k, str(v))
            self.end_headers()
            self.wfile.write(body)
    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    for k in ('PIP_NO_INDEX', 'PIP_EXTRA_INDEX_URL', 'PIP_FIND_LINKS'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('PIP_INDEX_URL', f'http://127.0.0.1:{http.server_port}/simple')
    yield Handler
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize('form', ['html', 'json'])
def test_source_package_is_not_built(index, place, form):
    index.form = form
    assert F.read_member(F.fetch(sdist_card()), 'toyset-1.0/data.txt') == b'real data'
    assert kept(place) == ['toyset-1.0.tar.gz'] and index.log == ['/simple/toyset/', '/f/toyset-1.0.tar.gz']


def test_source_package_faults(index, place):
    assert 'does not match' in error(sdist_card(sha)) and kept(place) == []
    index.form = 'none'
    assert 'no index or folder that pip knows has toyset-1.0.tar.gz' in error(sdist_card())
    index.form = 'bad'
    assert 'does not list packages as it should' in error(sdist_card())


def test_source_package_from_a_folder_of_pip(own_index, place):
    (own_index/'toyset-1.0.tar.gz').write_bytes(sdist)
    assert F.read_member(F.fetch(sdist_card()), 'toyset-1.0/data.txt') == b'real data'


# ---------------------------------------------------------------- reading

def test_members_are_read_never_unpacked(place):
    with zipfile.ZipFile(place/'a.zip', 'w') as z: z.writestr('../../evil.txt', 'evil')
    with tarfile.open(place/'a.tar.gz', 'w:gz') as t:
        info = tarfile.TarInfo('../../evil.txt')
        info.size = 4
        t.addfile(info, io.BytesIO(b'evil'))
    before = sorted(place.parent.rglob('evil*'))
    for a in ('a.zip', 'a.tar.gz'):
        assert F.read_member(place/a, '../../evil.txt') == b'evil'
        with pytest.raises(C.UnknownName, match='evil.txt'): F.read_member(place/a, '../evil.txt')
    assert sorted(place.parent.rglob('evil*')) == before == []


def test_archives_that_are_not(place):
    (place/'x.zip').write_bytes(b'PK\x03\x04 no')
    (place/'y.tar').write_bytes(b'')
    for name in ('x.zip', 'y.tar', 'absent.zip', '.'):
        with pytest.raises(C.DataError, match='not a whole zip|is not there'): F.read_member(place/name, 'a')


class Bomb:
    def __reduce__(self): return os.mkdir, (os.environ['MEDLEARN_CACHE'] + '-bomb',)


def test_pickles_are_refused(place):
    np.savez(place/'p.npz', a=np.array([Bomb()], dtype=object))
    with pytest.raises(C.DataError, match='p.npz is not a whole .npz file of plain arrays'): F.load_npz(place/'p.npz')
    assert not (place/'cache-bomb').exists()


def test_wrong_layout_names_what_is_missing(place):
    np.savez(place/'x.npz', images=np.zeros(3))
    with pytest.raises(C.DataError, match='wrong layout: it lacks train_images and has images'): F.load_npz(place/'x.npz', needs=('train_images',))
    np.save(place/'x.npy', np.zeros(3))
    for name in ('x.npy', 'none.npz'):
        with pytest.raises(C.DataError): F.load_npz(place/name)


whole_npz = io.BytesIO()
np.savez_compressed(whole_npz, a=np.arange(200), b=np.eye(5))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(whole_npz.getvalue()) - 1), st.integers(1, 255), st.booleans())
def test_damaged_npz_never_escapes_as_another_error(at, flip, cut):
    data = bytearray(whole_npz.getvalue())
    data[at] ^= flip
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/'d.npz'
        path.write_bytes(bytes(data[:at]) if cut else bytes(data))
        for read in (lambda: F.load_npz(path), lambda: F.read_member(path, 'a.npy')):
            try: read()
            except C.DataError as e: assert 'd.npz' in str(e)


# ---------------------------------------------------------------- cards

@pytest.mark.parametrize('name', sorted(p.stem for p in (root/'data'/'cards').glob('*.toml')))
def test_every_card(name):
    c = C.card(name)
    assert c.name == name and c.simulated == name.startswith('simulated_')
    assert all(isinstance(x, str) and x.strip() for x in (c.title, c.task, c.modality, c.licence, c.citation, c.intended_use, c.known_biases))
    assert re.fullmatch(r'medlearn(\.\w+)+:\w+', c.loader) and c.splits and all(isinstance(n, int) and n > 0 for n in c.splits.values())
    assert len({f.digest for f in c.files}) == len({f.file for f in c.files})
    assert len({(f.file, f.member) for f in c.files}) == len(c.files)
    html = c._repr_html_()
    assert f'data-medlearn-card="{name}"' in html and ('not simulated' in html) == ('not simulated' in repr(c)) == (not c.simulated)


def test_cards_of_medmnist_agree_with_their_names():
    for name, c in C.cards().items():
        if 'mnist' not in name: continue
        assert [f.id for f in c.files] == (['28', '64'] if name.endswith('3d') else ['28', '64', '128', '224'])
        assert all(f.file == name + ('' if f.id == '28' else f'_{f.id}') + '.npz' and f'/{f.file}?' in f.url for f in c.files)
        assert set(c.splits) == {'train', 'val', 'test'} and c.file(28) is c.file() and 'NC' in c.licence or name != 'dermamnist'
    assert len(C.cards()) >= 19


def test_simulated_is_said_plainly():
    assert 'SIMULATED' in make('http://x')._repr_html_() and 'SIMULATED' in repr(make('http://x'))


def test_names_that_are_not_known():
    with pytest.raises(C.UnknownName, match='Did you mean .*breastmnist'): F.fetch('BrestMNIST')
    with pytest.raises(C.UnknownName, match='breastmnist: file .*There are|Did you mean'): F.fetch('breastmnist', 32)
    with pytest.raises(C.UnknownName): F.fetch('../../etc/passwd')


@pytest.mark.parametrize('old,new,said', [
    ('name = "toy"', 'name = "other"', 'Rename'), ('task = "t"\n', '', 'task'), ('simulated = true', 'simulated = "no"', 'simulated'),
    ('"a.b:c"', '"a.b"', 'module:function'), ('toy.bin"\nsource', '../toy.bin"\nsource', 'plain file name'), ('"url"', '"ftp"', 'source'),
    ('http://', 'file:///', 'http'), ('splits = {all = 1}', 'splits = 3', 'splits is 3, not dict'), ('sha256:', 'sha1:', 'digest'), ('[[files]]', '[[files', 'Correct it'), ('title', 'titel', 'titel')])
def test_broken_cards_say_which_and_why(place, old, new, said):
    path = as_toml(place, 'http://x')
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(C.DataError, match=said) as e: C.cards(place/'cards')
    assert 'toy.toml' in str(e.value)


def test_cards_of_a_class(place, monkeypatch):
    as_toml(place, 'http://x')
    monkeypatch.setenv('MEDLEARN_CARDS', str(place/'cards'))
    assert 'toy' in C.cards() and 'breastmnist' in C.cards()


def test_load_passes_the_name_only_where_it_is_wanted(place, monkeypatch):
    np.savez(place/'x.npz', a=np.arange(3))
    c = make('http://x')
    assert F.load(c, path=place/'x.npz')['a'].sum() == 3
    monkeypatch.setattr(F, 'named', lambda name, size=28: (name, size), raising=False)
    c.loader = 'medlearn.kit.fetch:named'
    assert F.load(c, size=64) == ('toy', 64)
    c.loader = 'medlearn.no_such_module:x'
    with pytest.raises(C.DataError, match='cannot be imported'): F.load(c)


def test_users_hear_of_data_once(serve, monkeypatch):
    heard = []
    monkeypatch.setattr(F, 'on_use', [lambda *a: heard.append(a)])
    c = make(serve().url)
    F.fetch(c), F.fetch(c)
    assert heard == F.seen == [('toy', sha)]


def test_importing_is_light():
    code = 'import sys, medlearn.kit.fetch; print([m for m in ("numpy", "pooch", "requests", "torch", "tqdm", "pandas") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root).stdout.strip() == '[]'


# ---------------------------------------------------------------- arrays that are made once

def squares(): return dict(x=np.arange(5)**2, names=np.array(['a', 'b']))
def cubes(): return dict(x=np.arange(5)**3, names=np.array(['a', 'b']))


def test_arrays_are_made_once_and_verified(serve, place):
    c, calls = make(serve().url), []
    def got(by=squares):
        a = F.arrays('toy', c, [by], lambda: calls.append(1) or by())
        assert a['x'].tolist() == by()['x'].tolist() and a['x'].dtype == by()['x'].dtype and a['names'].tolist() == ['a', 'b']
        return len(calls)
    assert [got(), got()] == [1, 1]
    path, = (place/'cache/arrays').iterdir()
    for damage in (path.read_bytes()[:-3], b'', path.read_bytes()[:64] + b'x'*900):
        path.write_bytes(damage)
        before = len(calls)
        assert [got(), got()] == [before + 1]*2
    assert got(cubes) == len(calls) and len(list((place/'cache/arrays').iterdir())) == 1
    shutil.rmtree(place/'cache/arrays')
    (place/'cache/arrays').write_text('no folder')
    before = len(calls)
    assert [got(), got()] == [before + 1, before + 2]


def test_arrays_of_other_data_are_made_anew(serve, place):
    made = []
    for name in (body, body + b'!'):
        s = serve(body=name) if name != body else serve()
        c = make(s.url, digest='sha256:' + hashlib.sha256(name).hexdigest(), size=len(name))
        F.arrays('toy', c, [squares], lambda: made.append(1) or squares())
    assert len(made) == 2


def test_arrays_of_several_files_hear_of_each(serve, place, monkeypatch):
    s = serve()
    def two(second):
        c = make(s.url)
        c.files.append(C.File('other.bin', 'url', 'sha256:' + hashlib.sha256(second).hexdigest(), id='other', url=f'{s.url}/other.bin'))
        path = F.cached_path(c, 'other')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(second)
        return c
    made = []
    def got(second, **kw):
        F.arrays('toy', two(second), [squares], lambda: made.append(1) or squares(), **kw)
        return len(made)
    both = dict(ids=(None, 'other'))
    assert [got(b'x', **both), got(b'x', **both), got(b'y', **both), got(b'y', **both)] == [1, 1, 2, 2]
    assert [got(b'y'), got(b'z')] == [3, 3]
    assert {d for _, d in F.seen} >= {sha, 'sha256:' + hashlib.sha256(b'y').hexdigest()}
    asked = []
    fetch = F.fetch
    monkeypatch.setattr(F, 'fetch', lambda c, id=None: asked.append(id) or fetch(c, id))
    c = two(b'y')
    c.files.append(C.File('toy.bin', 'url', sha, id='again', url=f'{s.url}/toy.bin'))
    F.arrays('toy', c, [squares], squares, ids=(None, 'again', 'other'))
    assert len(asked) == 2 and 'other' in asked
    with pytest.raises(C.UnknownName, match='third'): got(b'x', ids=('third',))
