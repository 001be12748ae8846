"The front page: what it says of the chapters is what they say of themselves; the paths can be walked; no word of the glossary is dead"
import json, re, shutil, tomllib
from pathlib import Path

import nbformat, pytest
from typer.testing import CliRunner

from medlearn.kit import readme as R
from medlearn.kit.cli import app
from medlearn.kit.catalog import chapters

root = Path(__file__).parent.parent
CHAPTERS = chapters(root/'nbs')
LESSONS = [n for n in CHAPTERS if not n.startswith('kit/')]
TERMS = tomllib.loads((root/'data/glossary.toml').read_text(encoding='utf-8'))
page = (root/'README.md').read_text(encoding='utf-8')


def cells(name): return nbformat.read(CHAPTERS[name], 4).cells
def link(name): return f'](nbs/{CHAPTERS[name].relative_to(root/"nbs").as_posix()})'
def section(title): return re.search(rf'(?ms)^## {title}\n(.*?)(?=^## |\Z)', page)[1]


@pytest.fixture
def course(tmp_path):
    "Three chapters, written by hand"
    def write(name, text):
        path = tmp_path/f'nbs/{name}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = text if isinstance(text, list) else [text]
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(t) for t in texts]), path)
        return path
    badge = '[![Open in Colab](https://c/colab-badge.svg)](https://c/nbs/x.ipynb)'
    write('kit/01_tools', '# Tools\n\n> They run.')
    write('imaging/02_late', [f'# Late | last\n\n> Second.\n\n{badge} · smoke: a quarter of a minute on two CPU cores · full: up to a quarter of an hour there; on a GPU where '
          'there is one · data: *simulated* CT (see the card), CC BY 3.0\n\n**Your own data** `-p dataset=`: pictures; `-p masks=`: mask folder\n\n**You need** [images](../data/01_images.ipynb) (the first half) and\n[early](01_early.ipynb).\n\n'
          '**Afterwards you can**\n- see it;\n- doubt it.', 'word '*4000])
    write('imaging/01_early', f'# Early\n\n> First, see [late](02_late.ipynb).\n\n{badge}\n· smoke and full: about two minutes on two CPU cores, no GPU needed · data: outlines')
    write('data/01_images', f'# Images\n\n> Look.\n\n{badge} · seconds on two CPU cores, no GPU needed · data: pictures')
    return write, tmp_path/'nbs'


# What a chapter says of itself

def test_about_reads_the_first_cell(course):
    _, nbs = course
    late = R.about(nbs/'imaging/02_late.ipynb')
    assert late == dict(title='Late | last', takes=dict(pictures='dataset', mask_folder='masks'), promise='Second.', smoke='a quarter of a minute', full='up to a quarter of an hour', data='*simulated* CT, CC BY 3.0',
                        needs='[images](../data/01_images.ipynb) (the first half) and [early](01_early.ipynb).', afterwards='see it; doubt it.')
    early = R.about(nbs/'imaging/01_early.ipynb')
    assert (early['smoke'], early['full'], early['data'], early['needs'], early['afterwards']) == ('about two minutes', '', 'outlines', '', '')
    assert R.about(nbs/'kit/01_tools.ipynb') == dict(title='Tools', promise='They run.', takes={}, smoke='', full='', data='', needs='', afterwards='')


@pytest.mark.parametrize('name', LESSONS)
def test_every_lesson_says_time_and_data(name):
    said = R.about(CHAPTERS[name])
    assert 0 < R.minutes(said['smoke']) <= 2, said
    assert said['data'] and not {'(', ')'} & set(said['data']), said
    first = cells(name)[0].source
    for what, mark in dict(needs='**You need', afterwards='**Afterwards you can').items(): assert bool(said[what]) == (mark in first), said


@pytest.mark.parametrize('words,most', {'half a minute': .5, 'about half a minute': .5, 'a quarter of a minute': .25, 'under a minute': 1, 'one minute': 1, 'seconds': .5,
    'thirty seconds': .5, '30 seconds': .5, 'five to ten minutes': 10, 'up to 15 minutes': 15, 'up to a quarter of an hour': 15, 'an hour': 60, 'two hours': 120}.items())
def test_minutes(words, most): assert R.minutes(words) == pytest.approx(most)


@pytest.mark.parametrize('words', ['', 'not measured yet', 'long', 'several minutes', 'forty-one minutes'])
def test_no_minutes_are_made_up(words):
    with pytest.raises(ValueError, match='is no time'): R.minutes(words)


# The table of contents

def test_contents_of_a_course(course):
    write, nbs = course
    rows = [line for line in R.contents(nbs).splitlines() if line.startswith('| **')]
    assert [re.search(r'\]\((.*?)\)', r)[1] for r in rows] == ['data/01_images.ipynb', 'imaging/01_early.ipynb', 'imaging/02_late.ipynb']
    assert [r.removesuffix('|').rsplit('|', 1)[1].strip() for r in rows[1:]] == ['', 'pictures, mask folder']
    assert 'Late &#124; last' in rows[2] and '*You need* [images](data/01_images.ipynb), [early](imaging/01_early.ipynb).' in rows[2]
    assert '| a quarter of a minute; full: up to a quarter of an hour |' in rows[2] and '[late](imaging/02_late.ipynb)' in rows[1]
    assert R.contents(nbs).rstrip().endswith('- [Tools](kit/01_tools.ipynb): They run.')
    for name in ('kit/01_tools', 'data/01_images'): (nbs/f'{name}.ipynb').unlink()
    assert 'Appendix' not in R.contents(nbs) and R.parts['data'] not in R.contents(nbs)


def test_contents_are_whole_and_in_reading_order():
    told = section('Contents')
    titles = {n: f'[{cells(n)[0].source.splitlines()[0].removeprefix("# ")}{link(n)}' for n in [*LESSONS, *(n for n in CHAPTERS if n not in LESSONS)]}
    at = [told.index(t) for t in titles.values()]
    assert at == sorted(at), 'the appendix stands last'
    for name, title in titles.items():
        row, promise = next(line for line in told.splitlines() if title in line), R.about(CHAPTERS[name])['promise']
        assert promise.split('[')[0] in row
        if name in LESSONS:
            mine = row.removesuffix('|').rsplit('|', 1)[1].strip()
            assert mine == ', '.join(R.about(CHAPTERS[name])['takes']).replace('_', ' ')


def test_parts_that_are_not_there_are_not_named():
    assert set(R.parts) == {n.split('/')[0] for n in LESSONS}


def test_list_ends_with_the_appendix():
    names = [row['name'] for row in json.loads(CliRunner().invoke(app, ['list', '--json']).stdout)]
    assert names == LESSONS + [n for n in CHAPTERS if n.startswith('kit/')] and names[0].startswith('data/')


# Reading paths

def test_minutes_of_a_path_come_from_its_chapters(course, monkeypatch):
    _, nbs = course
    monkeypatch.setattr(R, 'paths', {'A reader': (('imaging/early', 'imaging/late'), 'see')})
    said = R.reading_paths(nbs)
    assert '[imaging/early](imaging/01_early.ipynb) → [imaging/late](imaging/02_late.ipynb)' in said
    assert 'About 0.5 hours to read and 3 minutes to run' in said, '4,000 words at 150 a minute, 2 and a quarter minutes'
    monkeypatch.setattr(R, 'paths', {'A reader': (('imaging/lost',), 'see')})
    with pytest.raises(ValueError, match='path "A reader" names the chapter imaging/lost, which is not there'): R.reading_paths(nbs)


@pytest.mark.parametrize('who', R.paths)
def test_what_a_chapter_needs_comes_before_it(who):
    names, _ = R.paths[who]
    assert 3 <= len(names) == len(set(names)) and set(names) <= set(LESSONS)
    number = {p.resolve(): n for n, p in CHAPTERS.items()}
    for i, name in enumerate(names):
        needs = re.search(r'(?s)\*\*You need\*\*(.*?)\n\n', cells(name)[0].source + '\n\n')
        needs = [number[(CHAPTERS[name].parent/at).resolve()] for at in re.findall(r'\]\((\S+?\.ipynb)\)', needs[1])] if needs else []
        assert not set(needs) & set(names[i:]), f'{name} needs {needs}'


def test_first_ten_minutes_name_places_of_the_chapter():
    told = section('Your first ten minutes')
    opened = re.search(r'\]\(nbs/(\S+?)\)', told)[1]
    name = next(n for n, p in CHAPTERS.items() if p == root/'nbs'/opened)
    heads = {c.source.lstrip('#').strip() for c in cells(name) if c.source.startswith('## ')}
    places = set(re.findall(r'\*([^*]+)\*', told)) - {'Run', 'Run All Cells'}
    assert len(places) == 4 and places <= heads, places - heads


# The glossary

def spoken(name):
    "What a chapter says, in prose and code, without marks"
    return re.sub(r'\s+', ' ', re.sub(r'[*_`]', '', ' '.join(c.source for c in cells(name)))).replace('–', '-')


@pytest.mark.parametrize('name', sorted({t['chapter'] for t in TERMS.values()}))
def test_terms_stand_in_the_chapter_that_explains_them(name):
    assert name in CHAPTERS
    text = spoken(name)
    dead = [t for t, v in TERMS.items() if v['chapter'] == name and not re.search(rf'(?i)(?<!\w){re.escape(t)}(?:e?s)?(?!\w)', text)]
    assert not dead, f'{name} does not say {dead}'


def test_terms_are_complete_and_unique():
    assert len(TERMS) >= 150 and len({t.casefold() for t in TERMS}) == len(TERMS)
    for term, t in TERMS.items():
        assert set(t) == {'zh', 'chapter', 'means'}, term
        assert re.search('[\u4e00-\u9fff]', t['zh']), term
        assert re.fullmatch(r'[A-Z0-9][^\n]{10,180}[.")]+', t['means']), term


def test_a_term_of_a_lost_chapter_is_refused(course, tmp_path):
    _, nbs = course
    file = tmp_path/'words.toml'
    file.write_text('"b | c" = {zh = "乙", chapter = "data/images", means = "Two."}\nA = {zh = "甲", chapter = "imaging/early", means = "One."}\n', encoding='utf-8')
    rows = R.glossary(file, nbs).splitlines()
    assert rows[-2:] == ['| <a id="term-a"></a>A | 甲 | One. | [imaging/early](imaging/01_early.ipynb) |',
                         '| <a id="term-b-c"></a>b &#124; c | 乙 | Two. | [data/images](data/01_images.ipynb) |']
    file.write_text('A = {zh = "甲", chapter = "imaging/lost", means = "One."}', encoding='utf-8')
    with pytest.raises(ValueError, match='A names the chapter imaging/lost, which is not there'): R.glossary(file, nbs)


def test_glossary_is_in_step_and_its_links_lead_somewhere(tmp_path):
    shutil.copytree(root/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (tmp_path/'data').mkdir()
    shutil.copy(root/'data/glossary.toml', tmp_path/'data')
    R.write_readme(tmp_path/'nbs/index.ipynb')
    text = (root/'nbs/GLOSSARY.md').read_text(encoding='utf-8')
    assert (tmp_path/'nbs/GLOSSARY.md').read_text(encoding='utf-8') == text, 'run `make export`'
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    assert len(links) == len(TERMS) and all((root/'nbs'/at).is_file() for at in links)
    assert '](nbs/GLOSSARY.md)' in page
    marks = re.findall(r'<a id="(.*?)">', text)
    assert len(set(marks)) == len(TERMS)


@pytest.mark.parametrize('name', sorted({t['chapter'] for t in TERMS.values()}))
def test_terms_are_linked_where_they_are_explained(name):
    linked = {a for c in cells(name) if c.cell_type == 'markdown' for a in re.findall(r'\]\(\.\./GLOSSARY\.md#([\w-]+)\)', c.source)}
    missing = [f'[{t}](../GLOSSARY.md#{R.anchor(t)})' for t, v in TERMS.items() if v['chapter'] == name and R.anchor(t) not in linked]
    assert not missing, f'{name} does not link {missing} where it first uses them'


@pytest.mark.parametrize('name', CHAPTERS)
def test_links_to_the_glossary_lead_to_a_term(name):
    linked = {a for c in cells(name) for a in re.findall(r'GLOSSARY\.md#([\w-]+)\)', c.source)}
    assert linked <= {R.anchor(t) for t in TERMS}, f'{name} links what is not there: {linked}'


def test_without_a_glossary_the_page_is_written_all_the_same(course):
    write, nbs = course
    index = write('index', ['# Home', '<!-- made from the chapters: contents -->\n\nformer rows', 'kept'])
    before = json.loads(index.read_text(encoding='utf-8'))
    text = R.write_readme(index).read_text(encoding='utf-8')
    assert 'former' not in text and '](nbs/imaging/01_early.ipynb)' in text and text.rstrip().endswith('kept') and not (nbs/'GLOSSARY.md').exists()
    after = json.loads(index.read_text(encoding='utf-8'))
    assert [c['id'] for c in after['cells']] == [c['id'] for c in before['cells']] and '](imaging/01_early.ipynb)' in ''.join(after['cells'][1]['source'])
    once = index.read_bytes()
    R.write_readme(index)
    assert index.read_bytes() == once
