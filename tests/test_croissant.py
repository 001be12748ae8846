"Every data card is a Croissant record that the project's own checker takes, and a card that lacks something is named"
import errno
import json
import os
import socket
import tomllib
from dataclasses import replace
from pathlib import Path

import mlcroissant as mlc
import pytest
from typer import Typer
from typer.testing import CliRunner

from medlearn.kit import workers
from medlearn.kit.cards import card, cards, DataError, UnknownName
from medlearn.kit.croissant import croissant_of, data_croissant

root = Path(__file__).parent.parent
CARDS = cards()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def no(*args): raise OSError('no network')
    monkeypatch.setattr(socket.socket, 'connect', no)


@pytest.mark.parametrize('name', CARDS)
def test_the_checker_takes_every_card(name):
    record = croissant_of(name)
    data = mlc.Dataset(jsonld=json.loads(json.dumps(record)))
    wished = [w for w in data.metadata.ctx.issues.warnings if not w.endswith('is recommended, but does not exist.')]
    assert not data.metadata.ctx.issues.errors and not wished
    splits = {r['splits/split']: r['splits/cases'] for r in data.records('splits')}
    assert splits == CARDS[name].splits
    if CARDS[name].labels:
        told = {r['labels/label']: r['labels/meaning'] for r in data.records('labels')}
        assert told == CARDS[name].labels
    about = data.metadata
    assert about.ctx.conforms_to.value == record['conformsTo'][0] and about.license
    assert about.cite_as == CARDS[name].citation and about.data_biases == [CARDS[name].known_biases.strip()] and about.data_use_cases == [CARDS[name].intended_use]


@pytest.mark.parametrize('name', CARDS)
def test_every_file_of_the_card_with_its_digest(name):
    "Also against the text of the card, without the code that reads it"
    said = tomllib.loads((root/f'data/cards/{name}.toml').read_text(encoding='utf-8'))
    found = {f['@id']: f for f in croissant_of(name)['distribution']}
    for f in said['files']:
        algo, digest = f['digest'].split(':')
        record = found[f['file']]
        assert record[algo] == digest and record['encodingFormat']
        assert record['contentUrl'] == f.get('url', f'pkg:pypi/{f.get("package")}@{f.get("version")}?file_name={f["file"]}')
        assert ('contentSize' in record) == ('size' in f) and record.get('contentSize', f'{f.get("size")} B') == f'{f.get("size")} B'
        if 'member' in f:
            inside = next(r for r in found.values() if r['name'] == f['member'])
            assert inside['containedIn'] == {'@id': f['file']}
    assert len(found) == len({f['file'] for f in said['files']} | {f['member'] for f in said['files'] if 'member' in f})


def test_what_a_record_says():
    r = croissant_of('breastmnist')
    assert r['license'] == 'https://spdx.org/licenses/CC-BY-4.0' and r['datePublished'] == '2023' and r['creator'][0]['name'] == 'Yang J'
    assert 'Label 0 is malignant' in r['rai:dataBiases'] and 'Real, not simulated' in r['description']
    assert croissant_of('simulated_ct')['description'].count('SIMULATED') and 'simulated' in croissant_of('simulated_ct')['keywords']
    assert croissant_of(card('wdbc')) == croissant_of('wdbc') and croissant_of('wdbc')['version'] == '0.2.10'
    assert isinstance(croissant_of('wdbc')['license'], list) and len(croissant_of('wdbc')['license']) == 3


def test_the_words_are_those_of_the_specification():
    "Held against the list that the checker carries"
    from mlcroissant._src.core.rdf import make_context
    ours = croissant_of('wdbc')['@context']
    assert ours == make_context() and not mlc.Dataset(jsonld=croissant_of('wdbc')).metadata.ctx.issues.errors


def test_the_checker_can_say_no():
    r = croissant_of('wdbc')
    del r['distribution'][0]['sha256']
    with pytest.raises(mlc.ValidationError, match='md5|sha256'): mlc.Dataset(jsonld=r)


@pytest.mark.parametrize('what', ['title', 'licence', 'citation', 'known_biases', 'intended_use'])
def test_a_card_that_lacks_something_is_named(what):
    with pytest.raises(DataError, match=f'The card wdbc has no {what}.*data/cards/wdbc.toml'): croissant_of(replace(card('wdbc'), **{what: ' \n'}))


def test_a_file_without_a_digest_is_named(tmp_path, monkeypatch):
    text = (root/'data/cards/wdbc.toml').read_text(encoding='utf-8').replace('name = "wdbc"', 'name = "mine"')
    monkeypatch.setenv('MEDLEARN_CARDS', str(tmp_path))
    (tmp_path/'mine.toml').write_text(text, encoding='utf-8')
    assert croissant_of('mine')['name'] == 'mine'
    (tmp_path/'mine.toml').write_text('\n'.join(line for line in text.splitlines() if not line.startswith('digest')), encoding='utf-8')
    with pytest.raises(DataError, match='mine.toml.*digest'): croissant_of('mine')
    monkeypatch.delenv('MEDLEARN_CARDS')
    c = card('pima')
    object.__setattr__(c.files[0], 'digest', '')
    with pytest.raises(DataError, match=f'The card pima has no digest of {c.files[0].file}'): croissant_of(c)


def test_a_name_that_no_card_has():
    with pytest.raises(UnknownName, match='Did you mean wdbc'): croissant_of('wdcb')


def test_texts_with_markup_and_credits_that_cannot_be_read():
    c = replace(card('wdbc'), title='</script><b>"x"', citation='The <institute>, unknown year', labels={'<M>': '"quoted"'})
    r = croissant_of(c)
    data = mlc.Dataset(jsonld=json.loads(json.dumps(r)))
    assert r['alternateName'] == '</script><b>"x"' and 'creator' not in r and 'datePublished' not in r
    assert [x['labels/meaning'] for x in data.records('labels')] == ['"quoted"']


def command(*words):
    app = Typer()
    app.callback()(lambda: None)
    app.command('croissant')(data_croissant)
    return CliRunner().invoke(app, ['croissant', *map(str, words)])


def test_the_command(tmp_path):
    told = command('wdbc')
    assert told.exit_code == 0 and json.loads(told.stdout) == croissant_of('wdbc')
    assert command('wdbc', '--out', tmp_path/'wdbc.json').exit_code == 0
    assert json.loads((tmp_path/'wdbc.json').read_text(encoding='utf-8')) == croissant_of('wdbc')
    assert isinstance(command('wdcb').exception, UnknownName)


def test_a_full_disk_leaves_the_older_record(tmp_path, monkeypatch):
    file = tmp_path/'wdbc.json'
    file.write_text('older')
    def full(self, data): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(workers.Path, 'write_bytes', full)
    with pytest.raises(DataError, match='wdbc.json cannot be written: No space left'): data_croissant('wdbc', file)
    assert file.read_text() == 'older' and os.listdir(tmp_path) == ['wdbc.json']
