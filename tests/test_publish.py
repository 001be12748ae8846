"One address in settings, set-up cells, badges, README and citation; none that anybody could take"
import re, shutil
from pathlib import Path

import nbformat, pytest

from medlearn.kit.publish import address, publish, setup_cell
from medlearn.kit.readme import write_readme
from medlearn.kit.catalog import WrongUsage

root = Path(__file__).parent.parent


@pytest.fixture
def copy(tmp_path):
    for name in ('nbs', 'data/cards', 'data/figures'): shutil.copytree(root/name, tmp_path/name, ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for name in ('settings.ini', 'README.md', 'CITATION.cff'): shutil.copy(root/name, tmp_path)
    return tmp_path


def texts(folder):
    "Every text that may hold an address"
    for path in [*folder.glob('nbs/**/*.ipynb'), *(folder/n for n in ('settings.ini', 'README.md', 'CITATION.cff'))]:
        yield path.relative_to(folder).as_posix(), path.read_text(encoding='utf-8')


def addresses(folder):
    "Accounts and repositories that the texts name"
    found = {}
    for name, text in texts(folder):
        for host, user, repo in re.findall(r'(github\.com|research\.google\.com/github)/([\w%()-]+)/([\w%()-]+)', text):
            if user not in ('googlecolab', 'USER'): found.setdefault((user, repo), set()).add(name)
    return found


def setups(folder):
    cells = [c.source for p in folder.glob('nbs/*/*.ipynb') for c in nbformat.read(p, 4).cells if "find_spec('medlearn') is None:" in c.source]
    return [c for c in cells if c.startswith('#| hide')]


def test_until_published_nothing_installs_from_an_address_that_somebody_could_take():
    here = address(root)
    if here['published']: return
    assert '_' in here['user'] and len(setups(root)) >= 25
    for cell in setups(root): assert 'pip' in cell and 'run_line_magic' not in cell and 'checkout' in cell and 'wheel' in cell
    assert {user for user, _ in addresses(root)} <= {here['user'], '%(user)s'}


def test_without_a_checkout_there_is_no_address(tmp_path):
    with pytest.raises(WrongUsage, match='settings.ini is not there'): address(tmp_path)
    with pytest.raises(WrongUsage, match='checkout'): publish('some-one', root=tmp_path)


def test_published_every_place_has_the_same_address(copy):
    n = len(setups(copy))
    changed = publish('some-one', 'course.kit', 'stable', copy)
    assert {'settings.ini', 'README.md', 'CITATION.cff', 'nbs/index.ipynb', 'nbs/imaging/01_classification.ipynb'} <= set(changed)
    assert address(copy) == dict(user='some-one', repo='course.kit', branch='stable', published=True)
    assert not [name for name, text in texts(copy) if 'not_published' in text]
    assert len(setups(copy)) == n
    for cell in setups(copy): assert "'git+https://github.com/some-one/course.kit@stable'" in cell and 'torch' in cell
    badge = 'github/some-one/course.kit/blob/stable/nbs/imaging/01_classification.ipynb'
    for name in ('README.md', 'nbs/index.ipynb', 'nbs/imaging/01_classification.ipynb'): assert badge in (copy/name).read_text(encoding='utf-8')
    assert 'repository-code: https://github.com/some-one/course.kit' in (copy/'CITATION.cff').read_text()
    assert write_readme(copy/'nbs/index.ipynb').read_text(encoding='utf-8') == (copy/'README.md').read_text(encoding='utf-8')


def test_published_twice_moves_everything_again_and_keeps_extras(copy):
    extras = sorted(re.findall(r'\[[\w,]+\]', '\n'.join(setups(copy))))
    publish('first', root=copy)
    publish('second', 'kit', root=copy)
    assert 'first' not in ' '.join(u for u, _ in addresses(copy))
    again = sorted(re.findall(r'medlearn(\[[\w,]+\])', '\n'.join(setups(copy))))
    assert again and set(again) == set(extras)
    for path in copy.glob('nbs/*/*.ipynb'): nbformat.validate(nbformat.read(path, 4))
    assert not publish('second', 'kit', root=copy)


@pytest.mark.parametrize('names', [('under_score',), ('-start',), ('a/b',), ('',), ('x'*40,), ('good', 'a b'), ('good', '../x'),
                                   ('good', 'kit', 'a b'), ('good', 'kit', '../main'), ('good"; import os', 'kit')])
def test_a_name_that_cannot_be_one_changes_nothing(copy, names):
    before = dict(texts(copy))
    with pytest.raises(WrongUsage, match='--(user|repo|branch)'): publish(*names, root=copy)
    assert dict(texts(copy)) == before


def test_the_set_up_cell_says_in_one_sentence_what_to_do():
    with pytest.raises(ModuleNotFoundError, match=r'checkout, pip install "FOLDER\[formats\]", or from its wheel'):
        exec(setup_cell('[formats]').replace("'medlearn'", "'no_such_module'"))
