"Every run folder is an RO-Crate: of whole runs and broken ones, and of folders that somebody damaged"
import base64
import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from medlearn.kit import crate as room, workers
from medlearn.kit.cards import cards, DataError
from medlearn.kit.crate import crate_of, METADATA, write_crate
from medlearn.kit.runner import plan, run, to_json

root = Path(__file__).parent.parent
CONTEXT = json.loads((root/'tests/standards/ro-crate-1.1-context.json').read_text())['@context']
PNG = base64.b64encode(b'a picture').decode()
HELD = dict(claim='AUROC of <the> network', value=.84, low=.79, high=.88, bound=.5, direction='at_least', source='definition: chance', passed=True)
ROW = dict(chapter='imaging/tiny', profile='smoke', seed=42, status='passed', error=None, sabotage='', started='2026-12-01T03:00:00+0100', seconds=21.4,
           parameters=dict(dataset='/home/me/<b>mine & yours', seed=42, sides=[28, 64], mask=None), sha256='ab'*32, commit='12ab', device='cpu', gpu=None, threads=2,
           data=[dict(name='wdbc', digest=cards()['wdbc'].files[0].digest), dict(name='/home/me/x.csv', digest='md5:' + '0'*32)],
           own_data=dict(dataset='sha256:' + '1'*64), versions=dict(python='3.11.7', medlearn='0.0.1', torch='2.15.0'), claims=[HELD], kept=[], methods=[])


def write(folder, name, row, png=PNG):
    "A record and its notebook"
    path = Path(folder)/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix('.json').write_text(row if isinstance(row, str) else to_json(row), encoding='utf-8')
    outputs = [dict(data={'image/png': png}), dict(data={'text/plain': '1'})]
    path.with_suffix('.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='markdown', source='# A'), dict(cell_type='code', source='', outputs=outputs)])))
    return path


@pytest.fixture
def folder(tmp_path):
    "A run that holds, one that does not, one that broke; a model, a file with an odd name"
    out = tmp_path/'out'
    path = write(out, 'imaging/tiny/smoke-seed42', ROW)
    write(out, 'imaging/falls/full-seed1', ROW | dict(chapter='imaging/falls', seed=1, profile='full', status='failed', claims=[HELD, HELD | dict(claim='It is above', passed=False, value=None)]))
    write(out, 'trust/breaks/smoke-seed42', ROW | dict(chapter='trust/breaks', status='error', error='ValueError: the "scan"\nis torn', claims=[], data=[]))
    (path/'model').mkdir(parents=True)
    (path/'model/model.json').write_text('{"format": 1}')
    (path/'model/model.safetensors').write_bytes(b'numbers')
    (path/'RESULT <1> & more.html').write_text('<b>')
    (out/'.hidden').write_text('x')
    (out/'results.json').write_text('{"runs": []}')
    return out


def graph(crate): return {e['@id']: e for e in crate['@graph']}
def several(x): return x if isinstance(x, list) else [x]
def ids(x): return [v['@id'] for v in several(x)]
def of(crate, kind): return [e for e in crate['@graph'] if kind in several(e['@type'])]


def pointed(x):
    if isinstance(x, list): return [i for v in x for i in pointed(v)]
    if not isinstance(x, dict): return []
    return [x['@id']] if x.keys() == {'@id'} else [i for v in x.values() for i in pointed(v)]


def check(folder):
    "What RO-Crate 1.1 and Process Run Crate 0.5 demand, as far as it is said in `must`"
    crate = json.loads((Path(folder)/METADATA).read_text(encoding='utf-8'), parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    found = graph(crate)
    assert crate['@context'][0] == 'https://w3id.org/ro/crate/1.1/context' and len(found) == len(crate['@graph'])
    about, top = found[METADATA], found['./']
    assert about['@type'] == 'CreativeWork' and ids(about['about']) == ['./'] and ids(about['conformsTo']) == ['https://w3id.org/ro/crate/1.1']
    assert top['@type'] == 'Dataset' and all(top[k] for k in ('name', 'description', 'license', 'datePublished'))
    assert found[ids(top['conformsTo'])[0]]['@type'] == 'CreativeWork' and ids(top['conformsTo'])[0].startswith('https://w3id.org/ro/wfrun/process/')
    files = of(crate, 'File')
    assert sorted(ids(top['hasPart'])) == sorted(e['@id'] for e in files)
    for e in files:
        data = (Path(folder)/unquote(e['@id'])).read_bytes()
        assert (e['sha256'], e['contentSize']) == (hashlib.sha256(data).hexdigest(), str(len(data)))
    there = [p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file() and not p.is_symlink() and not p.name.startswith('.')]
    assert sorted(unquote(e['@id']) for e in files) == sorted(set(there) - {METADATA})
    lost = [i for i in pointed(crate['@graph']) if i not in found and i != 'https://w3id.org/ro/crate/1.1']
    assert not lost, lost
    known = CONTEXT.keys() | crate['@context'][1].keys() | {'@id', '@type'}
    assert not [k for e in crate['@graph'] for k in e if k not in known] and all(t in known for e in crate['@graph'] for t in several(e['@type']))
    for a in of(crate, 'CreateAction'):
        assert {found[i]['@type'] for i in ids(a['instrument'])} == {'SoftwareSourceCode'} and a['@id'] in ids(top['mentions'])
        assert (a['actionStatus'] == 'http://schema.org/FailedActionStatus') == ('error' in a) and a['startTime'][-6] == '+' and a['endTime'] >= a['startTime']
    return crate


def test_a_run_folder_becomes_a_crate(folder):
    path = write_crate(folder)
    crate = check(folder)
    assert path == folder/METADATA and str(folder) not in path.read_text() and '/home/me' not in path.read_text()
    actions = {a['name']: a for a in of(crate, 'CreateAction')}
    assert sorted(actions) == ['imaging/falls/full-seed1', 'imaging/tiny/smoke-seed42', 'trust/breaks/smoke-seed42']
    assert graph(crate)['./']['datePublished'] == '2026-12-01T03:00:21+01:00'
    assert '3 runs' in graph(crate)['./']['description']


def test_what_went_in(folder):
    write_crate(folder)
    crate = check(folder)
    a, found = next(a for a in of(crate, 'CreateAction') if 'tiny' in a['name']), graph(crate)
    went_in = {found[i]['name']: found[i] for i in ids(a['object'])}
    assert went_in['seed']['value'] == 42 and went_in['sides']['value'] == '[28, 64]' and went_in['mask']['value'] == 'none'
    wdbc, f = went_in['wdbc'], cards()['wdbc'].files[0]
    assert (wdbc['license'], wdbc['url'], wdbc['identifier']) == (cards()['wdbc'].licence, f'pkg:pypi/{f.package}@{f.version}', f.digest)
    assert went_in['x.csv']['identifier'] == 'md5:' + '0'*32 and 'sha256' not in went_in['x.csv']
    assert went_in['dataset']['value'] == '<b>mine & yours' and went_in['<b>mine & yours']['sha256'] == '1'*64
    chapter = found[ids(a['instrument'])[0]]
    assert (chapter['sha256'], chapter['version']) == ('ab'*32, '12ab')
    assert {(found[i]['name'], found[i]['softwareVersion']) for i in ids(chapter['softwareRequirements'])} == {*ROW['versions'].items()}
    assert {(found[i]['name'], found[i]['value']) for i in ids(a['environment'])} == {('device', 'cpu'), ('threads', 2)}


def test_what_came_out(folder):
    write_crate(folder)
    crate = check(folder)
    found, actions = graph(crate), {a['name'].split('/')[1]: a for a in of(crate, 'CreateAction')}
    results = {n: [found[i] for i in ids(a['result'])] for n, a in actions.items()}
    files = {r['@id'] for r in results['tiny'] if r['@type'] == 'File'}
    assert files == {'imaging/tiny/smoke-seed42' + s for s in ('.ipynb', '.json', '/model/model.json', '/model/model.safetensors', '/RESULT%20%3C1%3E%20%26%20more.html')}
    claim = next(r for r in results['tiny'] if r['name'] == HELD['claim'])
    assert (claim['value'], claim['minValue'], claim['maxValue']) == (.84, .79, .88) and claim['description'] == 'holds; bound ≥ 0.5; definition: chance'
    figure = next(r for r in results['tiny'] if 'ImageObject' in r['@type'])
    assert figure['sha256'] == hashlib.sha256(b'a picture').hexdigest() and ids(figure['isPartOf']) == ['imaging/tiny/smoke-seed42.ipynb']
    fallen = next(r for r in results['falls'] if r['name'] == 'It is above')
    assert 'value' not in fallen and fallen['description'].startswith('does not hold')
    assert {n: next(r['value'] for r in rs if r['name'] == 'exit status') for n, rs in results.items()} == dict(tiny=0, falls=1, breaks=1)


def test_how_it_ended(folder):
    write_crate(folder)
    ended = {a['name'].split('/')[1]: a for a in of(check(folder), 'CreateAction')}
    assert ended['tiny']['actionStatus'].endswith('/CompletedActionStatus') and 'error' not in ended['tiny']
    assert ended['falls']['error'] == 'Does not hold: It is above.' and 'the "scan"\nis torn' in ended['breaks']['error']
    assert 'Not for clinical use' in ended['breaks']['description']


def test_the_same_folder_gives_the_same_bytes(folder, monkeypatch):
    first = write_crate(folder).read_bytes()
    assert write_crate(folder).read_bytes() == first
    monkeypatch.setattr(room, 'cards', dict) # without a card, a data set keeps name and digest
    assert 'wdbc' in {e.get('name') for e in crate_of(folder)['@graph']}


@pytest.mark.parametrize('text', ['{"chapter": "imag', '[1, 2', '\x00\x01', '['*100_000])
def test_a_record_that_is_no_json_is_said(folder, text):
    write(folder, 'imaging/torn/smoke-seed42', text)
    write_crate(folder)
    crate = check(folder)
    assert 'imaging/torn/smoke-seed42.json cannot be read' in graph(crate)['./']['description'] and len(of(crate, 'CreateAction')) == 3


@pytest.mark.parametrize('wrong', [dict(claims=None), dict(claims=['x']), dict(claims=[{}]), dict(started='yesterday'), dict(seconds=None), dict(seconds=float('inf')),
                                   dict(parameters=[]), dict(data=[{}]), dict(status='?'), dict(versions=[1]), dict(own_data=3)])
def test_a_record_that_is_no_record_is_said(folder, wrong):
    row = ROW | wrong
    write(folder, 'imaging/torn/smoke-seed42', json.dumps(row))
    write_crate(folder)
    crate = check(folder)
    assert 'imaging/torn/smoke-seed42.json is no whole record' in graph(crate)['./']['description'] and len(of(crate, 'CreateAction')) == 3


def test_numbers_that_are_none(folder):
    "A number without an end is left out, so that every reader takes the file"
    row = json.dumps(ROW | dict(claims=[HELD | dict(value='huge', high=float('nan'))])).replace('"huge"', '1e999')
    write(folder, 'imaging/huge/smoke-seed42', row)
    write_crate(folder)
    claim = next(e for e in of(check(folder), 'PropertyValue') if 'huge' in e['@id'] and e['name'] == HELD['claim'])
    assert claim['minValue'] == .79 and not {'value', 'maxValue'} & claim.keys()


@pytest.mark.parametrize('text', [None, '{}', '{"cells": [{"outputs": [{"data": {"image/png": "?"}}]}]}'])
def test_a_notebook_that_is_missing_or_broken_is_said(folder, text):
    notebook = folder/'imaging/tiny/smoke-seed42.ipynb'
    notebook.unlink() if text is None else notebook.write_text(text)
    write_crate(folder)
    crate = check(folder)
    assert 'imaging/tiny/smoke-seed42.ipynb is missing or cannot be read' in graph(crate)['./']['description'] and len(of(crate, 'CreateAction')) == 3


def test_no_run_no_crate(tmp_path):
    with pytest.raises(DataError, match='is not there'): write_crate(tmp_path/'nowhere')
    with pytest.raises(DataError, match='holds no record'): write_crate(tmp_path)
    write(tmp_path, 'a/b/smoke', '{')
    with pytest.raises(DataError, match='a/b/smoke.json cannot be read'): write_crate(tmp_path)
    assert not (tmp_path/METADATA).exists()


def test_texts_of_somebody_else_stay_texts(tmp_path):
    evil = '"}], "@graph": [] <script>alert(1)</script> \ud800 \u202e'
    write(tmp_path, 'imaging/tiny/smoke-seed42', json.dumps(ROW | dict(claims=[HELD | dict(claim=evil, source=evil)], parameters={evil: evil, 'dataset': 'x'}, error=evil, status='error')))
    write_crate(tmp_path)
    crate = check(tmp_path)
    assert any('<script>alert(1)</script>' in str(e.get('name')) for e in crate['@graph'])
    assert all(c not in e['@id'] for e in crate['@graph'] for c in '<>" {}')


@pytest.mark.skipif(os.name == 'nt', reason='links need rights there')
def test_links_out_of_the_folder_are_left_alone(folder, tmp_path):
    (tmp_path/'secret').write_text('secret')
    (tmp_path/'others').mkdir()
    (tmp_path/'others/x.txt').write_text('x')
    (folder/'link.txt').symlink_to(tmp_path/'secret')
    (folder/'linked').symlink_to(tmp_path/'others')
    crate = crate_of(folder)
    assert not [e for e in of(crate, 'File') if 'link' in e['@id']]


def test_a_full_disk_leaves_the_older_crate(folder, monkeypatch):
    path = write_crate(folder)
    before, names = path.read_bytes(), sorted(p.name for p in folder.iterdir())
    (folder/'more.txt').write_text('x')
    def full(self, data):
        with open(self, 'wb') as f: f.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(workers.Path, 'write_bytes', full)
    with pytest.raises(DataError, match=r'ro-crate-metadata.json cannot be written: No space left.*Make room'): write_crate(folder)
    assert path.read_bytes() == before and sorted(p.name for p in folder.iterdir()) == sorted([*names, 'more.txt'])


def test_a_real_run(tmp_path):
    "What the runner leaves today is a crate, also with the result page and a model"
    from test_result import chapter
    chapter(tmp_path/'nbs', 'imaging/01_tiny')
    rows = run(plan(['imaging'], folder=tmp_path/'nbs', report=True), tmp_path/'out', jobs=1)
    write_crate(tmp_path/'out')
    crate = check(tmp_path/'out')
    a = of(crate, 'CreateAction')[0]
    assert rows[0]['status'] == 'passed' and a['actionStatus'].endswith('CompletedActionStatus')
    left = ids(a['result'])
    assert {f'imaging/tiny/smoke-seed42/{n}' for n in ('RESULT.html', 'methods.csv', 'model/model.json', 'model/model.safetensors')} <= {*left}
    assert len([i for i in left if i.startswith('#figure/')]) == 1


def test_as_triples(folder):
    "A reader of JSON-LD finds the runs by the words of schema.org"
    import rdflib
    crate = crate_of(folder) | {'@context': [CONTEXT, room._context[1], {'@base': 'file:///crate/'}]}
    g = rdflib.Graph().parse(data=json.dumps(crate), format='json-ld')
    found = g.query('''PREFIX s: <http://schema.org/> SELECT ?a ?digest WHERE {
        ?a a s:CreateAction; s:instrument ?chapter; s:actionStatus "http://schema.org/FailedActionStatus" . ?chapter s:sha256 ?digest }''')
    assert len(found) == 2 and {str(r.digest) for r in found} == {'ab'*32}


# The validator of the specification. It wants an older `rich` than the course has, and so an environment of its own

SEED = '''import io, sys, urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests_cache import CachedSession
class Local(BaseAdapter):
    def send(self, request, **kw):
        body = io.BytesIO(open(sys.argv[2], 'rb').read())
        raw = urllib3.HTTPResponse(body=body, status=200, headers={'Content-Type': 'application/ld+json'}, preload_content=False, request_url=request.url)
        return HTTPAdapter().build_response(request, raw)
    def close(self): pass
session = CachedSession(sys.argv[1], expire_after=-1)
session.mount('https://w3id.org/', Local())
session.get('https://w3id.org/ro/crate/1.1/context').raise_for_status()
'''


@pytest.fixture(scope='module')
def validator(tmp_path_factory):
    "Python of an environment with rocrate-validator, and its cache of pages with the context of RO-Crate in it"
    tmp, scripts = tmp_path_factory.mktemp('validator'), Path(sys.executable).parent
    home = root/'build'/'rocrate-validator'
    python = home/'bin'/'python'
    if not (home/'.ready').exists():
        if not (scripts/'uv').exists(): pytest.skip('no uv to make an environment with')
        for words in (['venv', '-q', '--allow-existing', '--python', sys.executable, home], ['pip', 'install', '-q', '--python', python, 'roc-validator==0.13.0']):
            done = subprocess.run([str(scripts/'uv'), *map(str, words)], capture_output=True, text=True, timeout=300)
            if done.returncode: pytest.skip(f'rocrate-validator cannot be had here: {done.stderr[-200:]}')
        (home/'.ready').touch()
    (tmp/'context.json').write_text(json.dumps({'@context': CONTEXT}))
    subprocess.run([python, '-c', SEED, tmp/'pages', tmp/'context.json'], check=True)
    return python.with_name('rocrate-validator'), tmp


def asked(validator, folder):
    "What the validator says of a crate, without a network"
    tool, tmp = validator
    subprocess.run([tool, '-y', '--disable-color', 'validate', '-p', 'process-run-crate', '--offline', '--cache-path', tmp/'pages', '--no-paging',
                    '-f', 'json', '-o', tmp/'said.json', folder], capture_output=True, timeout=240)
    return json.loads((tmp/'said.json').read_text())


def test_the_validator_agrees(validator, folder):
    write_crate(folder)
    said = asked(validator, folder)
    assert said['passed'] and not said['issues'] and said['statistics']['total_checks'] >= 42
    path = folder/METADATA
    path.write_text(path.read_text().replace('"instrument"', '"instruments"')) # it can also say no
    assert not asked(validator, folder)['passed']
