"What a chapter, the library and the checkout promise, as far as a machine can tell"
import ast, importlib.util, io, re, shlex, shutil, subprocess, sysconfig, tokenize, tomllib, warnings
from collections import Counter
from configparser import ConfigParser
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import nbformat, numpy as np, pytest, yaml
from IPython.core.inputtransformer2 import TransformerManager

from medlearn.kit import publish
from medlearn.kit.measure import wanted
from medlearn.kit.catalog import chapters,choose,describe,PARTS

root = Path(__file__).parent.parent
conf = ConfigParser()
conf.read(root/'settings.ini', encoding='utf-8')
conf = conf['DEFAULT']
CHAPTERS = chapters(root/'nbs')
LESSONS = {n: p for n, p in CHAPTERS.items() if not n.startswith('kit/')}
RANK = dict(kit=0, data=1, foundations=2, imaging=3, sequences=3, molecules=3, trust=4)
MODULES = {p.relative_to(root/'medlearn').with_suffix('').as_posix(): p
           for p in sorted((root/'medlearn').glob('*/*.py')) if not p.name.startswith('_')}
each_chapter = pytest.mark.parametrize('name', CHAPTERS)
each_lesson = pytest.mark.parametrize('name', LESSONS)
each_module = pytest.mark.parametrize('name', MODULES)


class Cell:
    "A cell's text, and for code its syntax tree, magics turned into Python"
    def __init__(self, i, cell):
        self.i, self.text, self.kind = i, cell['source'], cell['cell_type']
        self.tags = cell['metadata'].get('tags', [])
        self.hidden = bool(re.search(r'^#\|\s*hide\s*$', self.text, re.M))
        self.python = TransformerManager().transform_cell(self.text) if self.kind == 'code' else ''
        self.body = ast.parse(self.python).body
    def __repr__(self): return f'cell {self.i}: {self.text[:160]!r}'
    def calls(self, name):
        called = lambda f: f.attr if isinstance(f, ast.Attribute) else getattr(f, 'id', None)
        return [n for s in self.body for n in ast.walk(s) if isinstance(n, ast.Call) and called(n.func) == name]


@cache
def cells(name):
    return [Cell(i, c) for i, c in enumerate(nbformat.read(CHAPTERS[name], 4).cells)]


def code(name): return [c for c in cells(name) if c.kind == 'code']
def prose(name): return [c for c in cells(name) if c.kind == 'markdown']
def setup_cell(name): return [c for c in code(name) if c.hidden and "find_spec('medlearn')" in c.text.replace('"', "'")]


# A chapter

@each_chapter
def test_notebook_is_valid_and_without_outputs(name):
    nb = nbformat.read(CHAPTERS[name], as_version=nbformat.NO_CONVERT)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) >= (4, 5), 'save it as nbformat 4.5: cells have ids'
    assert len({c.id for c in nb.cells}) == len(nb.cells), 'two cells have the same id'
    dirty = [i for i, c in enumerate(nb.cells) if c.cell_type == 'code' and (c.outputs or c.execution_count)]
    assert not dirty, f'cells {dirty} carry outputs or a count: `make export` strips them'


@each_chapter
def test_exports_the_module_of_its_path(name):
    found = [m for c in code(name) for m in re.findall(r'^#\|\s*default_exp\s+(\S+)', c.text, re.M)]
    assert found == [name.replace('/', '.')], f'default_exp is {found}, the path says {name.replace("/", ".")}'


@each_chapter
def test_begins_with_title_and_promise(name):
    about, first = describe(CHAPTERS[name]), cells(name)[0]
    assert first.kind == 'markdown' and first.text.startswith('# '), 'the first cell is not the title'
    assert about['title'] and f'> {about["promise"]}' in first.text, \
        'the first cell needs a promise: a line that begins with >'


@each_chapter
def test_headings_stand_alone(name):
    def crowded(cell):
        lines = re.sub(r'(?s)```.*?```', '', cell.text).strip().splitlines()
        return len(lines) > 1 and any(re.match('#{1,6} ', line) for line in lines)
    bad = [c for c in prose(name)[1:] if crowded(c)]
    assert not bad, f'a heading shares its cell with text: {bad}'


@each_chapter
def test_import_cells_hold_imports_only(name):
    imports = lambda s: isinstance(s, (ast.Import, ast.ImportFrom))
    bad = [c for c in code(name) if not c.hidden and any(map(imports, c.body)) and not all(map(imports, c.body))]
    assert not bad, f'imports belong in a cell of their own: {bad}'


@each_chapter
def test_cells_do_not_end_in_an_assertion_or_a_print(name):
    def ends_badly(c):
        last = c.body[-1] if c.body else None
        called = getattr(getattr(last, 'value', None), 'func', None)
        return isinstance(last, ast.Assert) or getattr(called, 'id', '') == 'print'
    bad = [c for c in code(name) if ends_badly(c)]
    assert not bad, f'end on the value to look at: {bad}'


@each_lesson
def test_one_parameters_cell_of_literals(name):
    tagged = [c for c in code(name) if 'parameters' in c.tags]
    assert len(tagged) == 1, f'{len(tagged)} cells are tagged "parameters", wanted 1'
    value = {}
    for s in tagged[0].body:
        assert isinstance(s, ast.Assign) and len(s.targets) == 1 and isinstance(s.targets[0], ast.Name), \
            f'not a plain assignment: {ast.unparse(s)}'
        try: value[s.targets[0].id] = ast.literal_eval(s.value)
        except ValueError: pytest.fail(f'not a literal: {ast.unparse(s)}')
    assert value.get('profile') == 'smoke' and value.get('seed') == 42, \
        f'profile = "smoke" and seed = 42 are wanted, found {value}'


@each_lesson
@pytest.mark.parametrize('there', [True, False], ids=['medlearn is there', 'medlearn is missing'])
def test_setup_cell_installs_only_what_is_missing(name, there, monkeypatch):
    "Nothing where medlearn is there; else medlearn from its own address with torch pinned, or, without one, what to do"
    from importlib.metadata import version
    found, said, find = setup_cell(name), [], importlib.util.find_spec
    assert len(found) == 1, f'{len(found)} hidden cells ask find_spec("medlearn"), wanted 1'
    extras = re.search(r'(?:medlearn|FOLDER)(\[[\w,]+\])', found[0].text)
    wanted = publish.setup_cell(extras[1] if extras else '', conf['user'], conf['repo'], conf['branch'])
    assert found[0].text == wanted, 'another set-up cell than kit.publish writes'
    seen = lambda n, *a: (there or None) if n == 'medlearn' else find(n, *a)
    monkeypatch.setattr(importlib.util, 'find_spec', seen)
    for f in ('run', 'call', 'check_call', 'check_output'): monkeypatch.setattr(subprocess, f, lambda cmd, **kw: said.append(str(cmd)))
    shell = SimpleNamespace(run_line_magic=lambda magic, line, *a: said.append(f'{magic} {line}'), system=said.append)
    imported = {a.name for s in found[0].body for n in ast.walk(s) if isinstance(n, ast.Import) for a in n.names}
    assert not imported & {'torch', 'torchvision', 'fastai'}, 'the setup cell imports torch'
    go = lambda: exec(found[0].python, dict(get_ipython=lambda: shell))
    if not there and '_' in conf['user']:
        with pytest.raises(ModuleNotFoundError, match='checkout.*wheel'): go()
    else: go()
    if there or '_' in conf['user']: assert not said, f'it runs {said}'
    else:
        assert all(f'{p}=={version(p)}' in ' '.join(said) for p in ('torch', 'torchvision')), f'it may replace torch: {said}'
        assert f'git+{conf["git_url"]}@{conf["branch"]}' in ' '.join(said), f'medlearn comes from {conf["git_url"]}, not from {said}'


@each_lesson
def test_installs_nothing_by_a_name_that_the_project_does_not_own(name):
    installs = re.compile(r'(?m)^\s*[%!]\s*(?:pip|conda)\b.*|run_line_magic\(.pip.*|install\W+"?medlearn\b.*')
    bad = [m for c in code(name) if c.i not in {s.i for s in setup_cell(name)} for m in installs.findall(c.text)]
    assert not bad, bad


@each_lesson
def test_begins_and_picks_in_order(name):
    all_cells = code(name)
    at = lambda what: next((c.i for c in all_cells if c.calls(what)), None)
    args = lambda calls: [[getattr(a, 'id', None) for a in c.args] for c in calls]
    begins = [b for c in all_cells for b in c.calls('begin')]
    picks = [p for c in all_cells for p in c.calls('pick') if args([p])[0][:1] == ['profile']
             and {k.arg for k in p.keywords} >= {'smoke', 'full'}]
    assert args(begins) == [['profile', 'seed']], 'call begin(profile, seed) once'
    assert picks, 'no pick(profile, smoke=..., full=...)'
    parameters = next(c.i for c in all_cells if 'parameters' in c.tags)
    assert setup_cell(name)[0].i < parameters < at('begin') < at('pick'), 'wanted: setup, parameters, begin, pick'


@each_lesson
def test_shows_its_data_card(name):
    assert any(c.calls('card') for c in code(name) if not re.search(r'^#\|\s*export', c.text, re.M)), \
        'no cell calls card(...)'


# Numbers and wishes in the text

UNITS = r'(?:mm²|mm³|mm|cm|µm|nm|µV|mV|kV|V|Hz|kHz|T|HU|ml|mg|g|kg|mmol|Gy|pixels?)'
ALLOWED = [r'(?s)```.*?```', r'(?s)\$\$.*?\$\$', r'\$[^$\n]+\$', r'`[^`\n]+`', r'\]\([^)]*\)', r'<[^>]+>', r'https?:\S+', r'arXiv:\S+',
           r'(?:CC[ -]BY(?:-[A-Z]+)*|Apache|GPL|ODC-BY|ODbL)[- ]\d\.\d', rf'\d+\.\d+(?: × \d+\.\d+)*(?: ?{UNITS}\b| by )', r'(?i)\b(?:versions?|python|torch|pytorch|fastai|PS|table|section|figure) ?\d+\.\d+(?:\.\d+)*']
CITED = re.compile(r'\([^()]*\b(?:1[6-9]|20)\d\d\b[^()]*\)|, (?:1[89]|20)\d\d[.:;,]|\bdata card\b')
NUMBER = re.compile(r'(?<![\w.])[-+−]?\d*\.\d+\b|\b\d+(?:\.\d+)? ?(?:%|percent\b|per cent\b)')


def typed(name):
    "Decimals and percentages in a lesson's prose that are no quotation with its source, formula, code, unit, version or link"
    for c in prose(name):
        text = c.text
        for allowed in ALLOWED: text = re.sub(allowed, ' ', text)
        for line in text.splitlines():
            if not CITED.search(line): yield from ((c.i, m[0].strip(), line.strip()[:90]) for m in NUMBER.finditer(line))


@each_lesson
def test_no_number_is_typed_by_hand(name):
    found = list(typed(name))
    assert not found, f'keep them, and show them with reached(...): {found}'


@pytest.mark.parametrize('text, n', [
    ('AUROC 0.94 on the test split', 1), ('| network | 0.94 | .95 |', 2), ('reaches 83 % of all', 1), ('fifteen percent, or 15 percent', 1),
    ('in 15.3 % of patients (Wiener et al. 2011)', 0), ('The loss is $0.5 x^2$ and `lr=0.1`', 0), ('pixels of 0.75 mm', 0),
    ('see [it](a/0.5.png)', 0), ('Python 3.11, section 2.3', 0), ('In 2021 we had 1,010 patients', 0), ('Measured 2026-12-01', 0)])
def test_what_counts_as_typed(text, n, monkeypatch):
    cell = SimpleNamespace(i=0, text=text)
    monkeypatch.setitem(typed.__globals__, 'prose', lambda name: [cell])
    assert len(list(typed('x'))) == n


WISHES = re.compile(r'(?i)\b(?:the|our) (?:goal|aim) (?:was|is|of this)\b|\bthe aim of (?:this|the) course\b|\.\./shared\b')


@each_lesson
def test_no_wishes_and_no_folder_of_ours(name):
    nb = nbformat.read(CHAPTERS[name], 4)
    bad = [(i, m[0]) for i, c in enumerate(nb.cells) for m in WISHES.finditer(c.source)]
    assert not bad, bad


@each_lesson
def test_figures_are_kept_once_and_shown_only_if_kept(name):
    first = lambda calls: [k.args[0].value for k in calls if k.args and isinstance(k.args[0], ast.Constant)]
    kept = first(k for c in code(name) for k in c.calls('keep'))
    shown = first(k for c in code(name) for k in c.calls('reached'))
    assert len(set(kept)) == len(kept), f'kept twice: {[k for k, n in Counter(kept).items() if n > 1]}'
    assert set(shown) <= set(kept), f'shown, but never kept: {set(shown) - set(kept)}'


@each_lesson
def test_what_is_to_be_measured_is_a_literal(name):
    assert len(wanted(CHAPTERS[name])['seeds']) >= 1


# Sabotage

@each_lesson
def test_a_chapter_that_trains_names_where_answers_enter(name):
    "Where networks or models are fitted, `answers` marks what they are told"
    part = name.split('/')[0]
    if part in ('foundations', 'imaging', 'sequences', 'molecules'): assert any(c.calls('answers') for c in code(name)) or name in NO_ANSWERS, name


NO_ANSWERS = {'foundations/agreement', 'foundations/tiles'} # nothing is trained


# Cells that can be read

@each_chapter
def test_story_cells_are_narrow_and_short(name):
    shown = [c for c in code(name) if not re.search(r'^#\|\s*export', c.text, re.M) and not c.hidden]
    wide = [(c.i, line) for c in shown for line in c.text.splitlines() if len(line) > 100]
    assert not wide, f'wider than 100 characters: {wide}'
    folded = {i for i, c in enumerate(nbformat.read(CHAPTERS[name], 4).cells) if c.metadata.get('jupyter', {}).get('source_hidden')}
    tall = [(c.i, len(c.text.splitlines())) for c in shown if c.i not in folded and len(c.text.splitlines()) > 12]
    assert not tall, f'taller than 12 lines: {tall}'


LOOPS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp


@each_chapter
def test_story_cells_are_plain(name):
    "No comprehension inside a comprehension, and no lambda that needs a name"
    shown = [(c.i, n) for c in code(name) if not re.search(r'^#\|\s*export', c.text, re.M) and not c.hidden for s in c.body for n in ast.walk(s)]
    nested = [(i, ast.unparse(n)) for i, n in shown if isinstance(n, LOOPS) and any(isinstance(m, LOOPS) for m in ast.walk(n) if m is not n)]
    assert not nested, f'a comprehension inside another: give the inner one a name: {nested}'
    long = [(i, ast.unparse(n)) for i, n in shown if isinstance(n, ast.Lambda) and arguments(n) and len(ast.unparse(n)) > 60]
    assert not long, f'a lambda that needs a name: {long}'


@each_lesson
def test_machinery_is_folded(name):
    cells_ = nbformat.read(CHAPTERS[name], 4).cells
    machinery = [i for i, c in enumerate(cells_) if c.cell_type == 'code' and re.search(r'(?m)^(?:import |from \w+(?:\.\w+)* import |#\|\s*default_exp|env = begin)', c.source)]
    open_ = [i for i in machinery if not cells_[i].metadata.get('jupyter', {}).get('source_hidden') and i < 40]
    assert machinery and not open_, f'not folded: {open_}'
    assert '**You need**' in cells_[0].source and '**Afterwards you can**' in cells_[0].source


@each_lesson
def test_claims_have_bounds_and_sources(name):
    claims = [k for c in code(name) for k in c.calls('claim')]
    assert len(claims) >= 4, f'{len(claims)} claims, wanted 4 at least'
    for k in claims:
        given = {w.arg: w.value for w in k.keywords}
        assert given.keys() & {'at_least', 'at_most', 'equals'}, f'line {k.lineno}: no bound: {ast.unparse(k)}'
        assert 'source' in given and not (isinstance(given['source'], ast.Constant) and not given['source'].value), \
            f'no source: {ast.unparse(k)}'
    twice = [n for n, times in Counter(ast.unparse((k.args or [k])[0]) for k in claims).items() if times > 1]
    assert not twice, f'claims with the same name: {twice}'


@each_lesson
def test_exercises_limits_and_badges(name):
    texts = [c.text for c in prose(name)]
    where = f'{conf["user"]}/{conf["repo"]}/blob/{conf["branch"]}/{CHAPTERS[name].relative_to(root).as_posix()}'
    url = f'https://colab.research.google.com/github/{where}'
    assert f']({url})' in texts[0], f'the first cell has no badge to {url}'
    assert re.search(r'(second|minute)', texts[0]) and 'two CPU cores' in texts[0] and 'GPU' in texts[0], \
        'no badge of the time on two CPU cores and on a GPU'
    assert 'data:' in texts[0], 'the badge row does not say which data, under which licence'
    after = texts[next((i for i, t in enumerate(texts) if t.startswith('## Exercises')), len(texts)):]
    assert any('<details>' in t and '</details>' in t for t in after), \
        'no "## Exercises" with folded solutions (<details>)'
    assert any('not for clinical use' in t.lower() for t in texts), 'say "Not for clinical use" among the limits'


# The library

def arguments(f):
    a = f.args
    found = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [x for x in found if x.arg not in ('self', 'cls')]


@each_module
def test_exports_are_documented(name):
    "One line of docstring; where there is more than one parameter, each on its own line with its explanation"
    source = MODULES[name].read_text(encoding='utf-8')
    explained = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline)
                 if t.type == tokenize.COMMENT and len(t.string) > 3}
    defined = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    public = [n for n in ast.parse(source).body if isinstance(n, defined) and not n.name.startswith('_')]
    bare = [n.name for n in public if not (ast.get_docstring(n) or '').strip() or '\n' in ast.get_docstring(n)]
    assert not bare, f'no docstring of one line: {bare}'
    makers = {f'{n.name}': n for n in public if not isinstance(n, ast.ClassDef)}
    makers |= {f'{n.name}(...)': f for n in public if isinstance(n, ast.ClassDef) for f in n.body
               if getattr(f, 'name', '') == '__init__'}
    several = {k: arguments(f) for k, f in makers.items() if len(arguments(f)) > 1}
    bare = [f'{k}: {a.arg}' for k, args in several.items() for a in args if a.lineno not in explained]
    assert not bare, f'parameters without an explanation after #: {bare}'
    shared = [k for k, args in several.items() if len({a.lineno for a in args}) < len(args)]
    assert not shared, f'parameters that share a line: {shared}'


COMMANDS = {'run', 'measure', 'publish', 'bench', 'doctor', 'lab', 'figures'} # a command is called as what it does


@each_module
def test_module_is_one_room(name):
    "At most 300 lines, the generated ones included"
    lines = len(MODULES[name].read_text(encoding='utf-8').splitlines())
    assert lines <= 300, f'medlearn/{name}.py: {lines} lines are exported, 300 at most: more is two chapters'


def exported_names():
    "Exported name -> the modules that export it"
    found = {}
    for name, path in MODULES.items():
        for s in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(s, ast.Assign) and getattr(s.targets[0], 'id', '') == '__all__':
                for e in s.value.elts: found.setdefault(e.value, set()).add(name)
    return found


def test_one_name_has_one_meaning():
    "`new_cases` has one meaning too: each chapter's way to read them, which `medlearn predict` asks for by that name"
    twice = {k: v for k, v in exported_names().items() if len(v) > 1 and k != 'new_cases'}
    bad = {k: sorted(v) for k, v in twice.items() if not (k in COMMANDS and 'kit/cli' in v and len(v) == 2)}
    assert not bad, f'the same name in several rooms: {bad}'


@each_module
def test_no_private_name_is_taken_from_another_room(name):
    taken = [f'{n.module}: {a.name}' for n in ast.walk(ast.parse(MODULES[name].read_text(encoding='utf-8')))
             if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('medlearn')) for a in n.names
             if a.name.startswith('_')]
    assert not taken, taken


def imported(name):
    "Modules of the library that a module imports, anywhere in it"
    here = ('medlearn', *name.split('/'))
    for n in ast.walk(ast.parse(MODULES[name].read_text(encoding='utf-8'))):
        if isinstance(n, ast.Import): full = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join((*here[:-n.level], *filter(None, [n.module]))) if n.level else n.module
            full = [base, *(f'{base}.{a.name}' for a in n.names)]
        else: full = []
        names = [f.removeprefix('medlearn.').replace('.', '/') for f in full if f.startswith('medlearn.')]
        yield from (n for n in names if n in MODULES)


@each_module
def test_imports_flow_one_way(name):
    part = name.split('/')[0]
    assert part in RANK and set(RANK) == set(PARTS), f'{part} is not one of {list(RANK)}'
    up = [m for m in imported(name) if m.split('/')[0] != part and RANK[m.split('/')[0]] >= RANK[part]]
    assert not up, f'medlearn/{name} imports {up}: kit <- data <- foundations <- imaging, sequences, molecules <- trust'
    said = {m for n in ast.walk(ast.parse(MODULES[name].read_text(encoding='utf-8'))) if isinstance(n, ast.Constant)
            and isinstance(n.value, str) for m in re.findall(r'\bmedlearn[./](\w+)[./]', n.value) if m in RANK}
    up = [m for m in said if m != part and RANK[m] >= RANK[part]]
    assert not up, f'medlearn/{name} names modules of {up} in a text: they cannot be imported by it that way either'


def test_no_module_imports_itself_in_a_circle():
    try: list(TopologicalSorter({n: set(imported(n)) for n in MODULES}).static_order())
    except CycleError as e: pytest.fail(f'a circle of imports: {" -> ".join(e.args[1])}')


# The checkout

def committed():
    "Files in git, and those that would be added"
    done = subprocess.run(['git', '-C', str(root), 'ls-files', '-co', '--exclude-standard', '-z'], capture_output=True,
                          text=True)
    if done.returncode: pytest.skip('not a git checkout')
    return [p for p in done.stdout.split('\0') if p and (root/p).is_file()]


def test_no_large_file():
    large = {p: (root/p).stat().st_size for p in committed() if (root/p).stat().st_size > 1_000_000}
    assert not large, f'over 1 MB: {large}'


HOSTS = ['py' + 'pi.org', 'python' + 'hosted.org', 'py' + 'pi.python.org', 'registry.npm' + 'js.org',
         'conda.' + 'anaconda.org', 'download.py' + 'torch.org']
WORDS = [r'(?<![\w.)\]}])/wor' + r'k\b', r'(?i:\bsub-?ag' + r'ents?\b)',
         r'(?i:\b(?:this|my|our|last|previous|earlier|next) ses' + r'sions?\b)']


def test_no_word_of_this_machine_or_of_registries():
    needle = re.compile('|'.join([*map(re.escape, HOSTS), *WORDS]))
    text = {p: (root/p).read_bytes() for p in committed()}
    lines = [(p, i, line) for p, raw in text.items() if b'\0' not in raw
             for i, line in enumerate(raw.decode('utf-8').splitlines(), 1)]
    bad = [f'{p}:{i}: {m[0]!r} in {line.strip()[:120]}' for p, i, line in lines if (m := needle.search(line))]
    assert not bad, '\n'.join(bad)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the checkout in which everything was exported and cleaned anew"
    copy = tmp_path_factory.mktemp('export')
    for p in committed():
        (copy/p).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/p, copy/p)
    for command in ('nbdev_export', 'nbdev_clean'):
        done = subprocess.run([Path(sysconfig.get_path('scripts'))/command], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
    return copy


@pytest.mark.parametrize('folder,suffix', [('medlearn', 'py'), ('nbs', 'ipynb')])
def test_generated_files_are_in_step(exported, folder, suffix):
    "`make export` changes nothing"
    git = lambda *args: subprocess.run(['git', '-C', str(root), *args], capture_output=True, text=True)
    names = {p.relative_to(d).as_posix() for d in (root, exported) for p in (d/folder).rglob(f'*.{suffix}')
             if '.ipynb_checkpoints' not in p.parts}
    read = lambda p: p.read_bytes() if p.exists() else None
    out = [n for n in sorted(names) if read(root/n) != read(exported/n) and git('check-ignore', '-q', n).returncode]
    assert not out, f'run `make export` and commit: {out}'


# The front page

def blocks(language): return re.findall(rf'(?s)```{language}\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'))


def test_readme_is_in_step(tmp_path):
    from medlearn.kit.readme import write_readme
    shutil.copytree(root/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    index = tmp_path/'nbs/index.ipynb'
    assert write_readme(index).read_bytes() == (root/'README.md').read_bytes(), 'run `make export`'
    assert index.read_bytes() == (root/'nbs/index.ipynb').read_bytes(), 'run `make export`'


@pytest.mark.parametrize('page', ['README.md', 'nbs/index.ipynb'])
def test_links_lead_somewhere(page):
    path = root/page
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.ipynb': text = '\n'.join(c.source for c in nbformat.reads(text, 4).cells)
    found = re.findall(r'\]\(([^)\s]+)\)', re.sub(r'(?s)```.*?```', '', text))
    links = [link for link in found if not re.match(r'\w+:', link)]
    colab = re.findall(rf'/blob/{conf["branch"]}/([^)\s]+)', text)
    aims = [path.parent/link.partition('#')[0] for link in links] + [root/link for link in colab]
    lost = [aim for aim in aims if not aim.exists()]
    assert len(links) > 2 and colab and not lost, f'{page}: {lost} of {aims}'


def test_commands_of_the_readme_exist():
    from typer.main import get_command
    from medlearn.kit.cli import app
    lines = [shlex.split(line, comments=True) for b in blocks('sh') for line in b.splitlines()]
    targets = re.findall(r'(?m)^(\w+):', (root/'Makefile').read_text(encoding='utf-8'))
    made = [words[1] for words in lines if words[:1] == ['make']]
    assert {'course', 'test'} <= set(made) <= set(targets)
    ran = [words[1:] for words in lines if words[:1] == ['medlearn']]
    for words in ran:
        group = get_command(app)
        while hasattr(group, 'commands'): words, group = words[1:], group.commands[words[0]]
        params = group.make_context(group.name, words).params
        if 'chapter' in params: assert choose(params['chapter'] or [], CHAPTERS)
    assert len(ran) > 3


def test_own_data_as_the_readme_says(tmp_path, monkeypatch):
    from medlearn.data.images import read_npz
    monkeypatch.chdir(tmp_path)
    labels, patients = np.arange(60) % 3, np.arange(60)//2
    images = np.random.default_rng(0).integers(0, 255, (60, 28, 28, 3)).astype(np.uint8)
    for block in blocks('python'): exec(block, dict(images=images, labels=labels, patients=patients))
    data = read_npz('my.npz')
    assert data.splits == ['train', 'valid', 'test'] and data.images.shape == (60, 28, 28, 3) and len(data.classes) == 3
    assert len(set(data.groups)) == 30 and data.facts()['patients'].startswith('30')


def test_options_of_the_readme_exist():
    from medlearn.data.doors import options
    said = [tomllib.loads(b) for b in blocks('toml')]
    assert said and all(set(d) <= set(options('pictures').index) for d in said)


def test_environment_for_conda_has_the_pins_of_the_lock():
    env = yaml.safe_load((root/'environment.yml').read_text(encoding='utf-8'))
    python = next(d for d in env['dependencies'] if str(d).startswith('python='))
    pip = next(d['pip'] for d in env['dependencies'] if isinstance(d, dict))
    least = tuple(map(int, conf['min_python'].split('.')))
    assert env['name'] == conf['lib_name'] and 'pip' in env['dependencies']
    assert tuple(map(int, python.split('=')[1].split('.'))) >= least
    assert pip == ['-r requirements.lock'] and '--hash=sha256:' in (root/'requirements.lock').read_text()
