"CITATION.cff and codemeta.json are valid, and say what settings.ini says"
import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

root = Path(__file__).parent.parent
settings = ConfigParser()
settings.read(root/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']
LICENCES = dict(apache2='Apache-2.0')
STATUS = {'1': 'concept', '2': 'wip', '3': 'wip', '4': 'wip', '5': 'active', '6': 'active', '7': 'inactive'}


@pytest.fixture
def citation():
    class Texts(yaml.SafeLoader): "Dates and versions stay texts, as the schema wants them"
    Texts.yaml_implicit_resolvers = {k: [r for r in v if r[0] == 'tag:yaml.org,2002:bool'] for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    return yaml.load((root/'CITATION.cff').read_text(encoding='utf-8'), Texts)


@pytest.fixture
def codemeta(): return json.loads((root/'codemeta.json').read_text(encoding='utf-8'))


def wrong(said):
    "What the schema of the Citation File Format 1.2.0 finds"
    import jsonschema
    schema = json.loads((root/'tests/standards/cff-1.2.0-schema.json').read_text(encoding='utf-8'))
    return [e.message for e in jsonschema.Draft7Validator(schema).iter_errors(said)]


def test_the_citation_is_valid(citation):
    assert not wrong(citation)
    assert wrong(citation | dict(license='Apache2')) and wrong(citation | {'cff-version': '9'}) and wrong({k: v for k, v in citation.items() if k != 'authors'})


def test_the_citation_says_what_the_settings_say(citation):
    assert citation['version'] == settings['version'] and citation['license'] == LICENCES[settings['license']]
    assert citation['title'].partition(':')[0] == settings['title'] and citation['abstract'] == settings['description']
    assert citation['title'] == f'{settings["title"]}: {settings["description"].partition(":")[0].replace("The", "the", 1)}'
    assert citation['authors'] == [dict(name=settings['author'])] and citation['repository-code'] == settings['git_url']
    assert citation['keywords'] == settings['keywords'].split()


def test_codemeta_says_what_the_settings_say(codemeta):
    assert codemeta == {
        '@context': 'https://w3id.org/codemeta/3.0', '@type': 'SoftwareSourceCode', 'name': settings['lib_name'], 'description': settings['description'],
        'version': settings['version'], 'license': f'https://spdx.org/licenses/{LICENCES[settings["license"]]}',
        'author': [{'@type': 'Organization', 'name': settings['author']}], 'codeRepository': settings['git_url'], 'programmingLanguage': 'Python',
        'runtimePlatform': f'Python {settings["min_python"]} or newer', 'developmentStatus': STATUS[settings['status']],
        'keywords': settings['keywords'].split(), 'softwareRequirements': settings['requirements'].split()}


def test_codemeta_has_no_word_that_codemeta_does_not_know(codemeta):
    "As JSON-LD every word becomes an address: what the context does not know is lost, and would be missing here"
    import rdflib
    terms = json.loads((root/'tests/standards/codemeta-3.0-context.json').read_text(encoding='utf-8'))['@context']
    g = rdflib.Graph().parse(data=json.dumps(codemeta | {'@context': terms}), format='json-ld')
    said = next(g.subjects(rdflib.RDF.type, rdflib.URIRef('http://schema.org/SoftwareSourceCode')))
    found = {re.split('[/#]', str(p))[-1] for p in g.predicates(said)}
    assert found == {k for k in codemeta if not k.startswith('@')} | {'type'}
    assert str(g.value(said, rdflib.URIRef('http://schema.org/version'))) == settings['version']


def test_the_licence_is_the_one_that_lies_there():
    assert settings['license'] in LICENCES and 'Apache License' in (root/'LICENSE').read_text(encoding='utf-8')
    assert f'license="{LICENCES[settings["license"]]}"' in (root/'setup.py').read_text(encoding='utf-8')
