"What counts as the code that decides a result, and what does not"
import json, shutil
from pathlib import Path

import nbformat, pytest
from nbformat import v4

from medlearn.kit.code import code_of, only_draws, plain_code
from medlearn.kit.catalog import chapters

root = Path(__file__).parent.parent
CLASSIFICATION = chapters(root/'nbs')['imaging/classification']


@pytest.mark.parametrize('a, b', [
    ('x = 1 # one', 'x = 1 # the first'), ('x = 1', '\n\nx = 1\n# end'), ("x = '#1'", "x = '#1' # a colour"),
    ('def f(x):\n    "Half"\n    return x/2', 'def f(x): # number\n    """A half.\n\n    Of x."""\n    return x/2'),
    ('__all__ = ["f"]\nx = 1', '__all__ = ["f", "g"]\nx = 1'), ('class A:\n    "An A"\n    x = 1', 'class A:\n    "Ä B"\n    x = 1')])
def test_words_do_not_count(a, b): assert plain_code(a) == plain_code(b)


@pytest.mark.parametrize('a, b', [
    ('x = .1', 'x = .2'), ("x = '#1'", "x = '#2'"), ('x = "text"', 'x = "other"'), ('def f(x): return x', 'def f(y): return y'),
    ('def f(): "only text"', 'def f(): "other text"')])
def test_code_counts(a, b): assert plain_code(a) != plain_code(b)


@pytest.mark.parametrize('code, others, drawn', [
    ('fig,ax = plt.subplots()\nax.plot(x)', (), True), ('show_images(x)', (), True), ('reached("a")', (), True),
    ('plot_roc(curves)\nplt.title("t")', (), True), ('for ax in axs: ax.scatter(x, y)', (), True),
    ('table.round(3)', (), True), ('keep("a", table.round(3))', (), False), ('claim("a", 1); plt.plot(x)', (), False),
    ('learn.fit(1)\nplt.plot(x)', (), False), ('y = x + 1\nplt.plot(y)', ('y',), False), ('y = x + 1\nplt.plot(y)', ('z',), True),
    ('x[0] = 1\nplt.plot(x)', (), False), ('torch.manual_seed(1)\nplt.plot(x)', (), False), ('1 + 1', (), False),
    ('x = x + 1\nplt.plot(x)', ('x',), False), ('def f(): pass\nplt.plot(f())', ('f',), False), ('learn.lr = .1; show(learn)', (), False)])
def test_cells_that_only_draw(code, others, drawn): assert only_draws(code, set(others)) is drawn


@pytest.fixture
def copy(tmp_path):
    "The chapter and the package, to be changed"
    shutil.copytree(root/'medlearn', tmp_path/'medlearn', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(CLASSIFICATION, tmp_path/'chapter.ipynb')
    def digest(name='chapter'): return code_of(tmp_path/f'{name}.ipynb', tmp_path/'medlearn')
    return tmp_path, digest


def replaced(path, old, new):
    text = path.read_text(encoding='utf-8')
    assert old in text
    path.write_text(text.replace(old, new), encoding='utf-8')


def test_a_learning_rate_in_a_reached_module_counts_and_a_sentence_does_not(copy):
    tmp, digest = copy
    before = digest()
    assert {'chapter', 'foundations/training', 'foundations/evaluation', 'data/images', 'kit/chapter', 'kit/fetch'} <= before.keys()
    assert not before.keys() & {'kit/figures', 'kit/runner', 'imaging/classification', 'sequences/text'}
    nb = nbformat.read(tmp/'chapter.ipynb', 4)
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source += '\n\nAnother sentence.'
        elif c.source.startswith('data.show(16)'): c.source = 'data.show(12)'
        else: c.source += ' # a comment' if c.source and not c.source.rstrip().endswith(("'''", '\\')) else ''
    nbformat.write(nb, tmp/'words.ipynb')
    assert digest('words') == before
    replaced(tmp/'medlearn/foundations/budget.py', 'budget.steps*2**c', 'budget.steps*3**c')
    changed = digest_of_changed(digest, tmp)
    assert {k for k in before if changed[k] != before[k]} == {'foundations/budget'}


def digest_of_changed(digest, tmp):
    "Read anew: the digests of modules are kept for a folder"
    shutil.copytree(tmp/'medlearn', tmp/'later')
    return code_of(tmp/'chapter.ipynb', tmp/'later')


def test_a_changed_cell_counts(copy):
    tmp, digest = copy
    before = digest()
    replaced(tmp/'chapter.ipynb', 'resamples=2000', 'resamples=2001')
    assert [k for k, v in digest().items() if v != before[k]] == ['chapter']


def test_imports_inside_functions_and_magics_are_read(tmp_path):
    cells = ['%matplotlib inline\n!ls', 'def f():\n    from medlearn.sequences import text\n    return text', 'f()']
    (tmp_path/'a.ipynb').write_text(json.dumps(v4.new_notebook(cells=[*map(v4.new_code_cell, cells)])))
    assert 'sequences/text' in code_of(tmp_path/'a.ipynb') and 'foundations/sequences' in code_of(tmp_path/'a.ipynb')


@pytest.mark.parametrize('reader, counts', [('a = a + 1\na', True), ('a = 2\na', False), ('[a for a in x]', False), ('print(a)', True)])
def test_a_name_counts_where_another_cell_needs_it(tmp_path, reader, counts):
    digests = []
    for value in '12':
        cells = [f'a = {value}\nplt.plot(a)', reader]
        (tmp_path/'a.ipynb').write_text(json.dumps(v4.new_notebook(cells=[*map(v4.new_code_cell, cells)])))
        digests.append(code_of(tmp_path/'a.ipynb')['chapter'])
    assert (digests[0] != digests[1]) is counts


def test_exercises_decide_nothing(copy):
    tmp, digest = copy
    before = digest()
    replaced(tmp/'chapter.ipynb', 'max_depth=3', 'max_depth=4')
    assert digest() == before


def test_time_goes_to_what_a_cell_does(tmp_path):
    import json
    from medlearn.kit.code import spent
    cells = [('import time', 1), ('from medlearn.data.images import images_from', 2), ('x = images_from("a")', 4), ('def learn():\n    fit(x)', 8),
             ('learn()', 16), ('plt.subplots()\nplt.imshow(x)', 32), ('y = x + 1', 64), ('model.fit(x)\nplt.plot(x)', 128), ('%matplotlib inline', 256),
             ('from medlearn.foundations.training import one_cycle as once', 512), ('once(x)', 1024)]
    code = [dict(cell_type='code', source=s, metadata=dict(papermill=dict(duration=d)), outputs=[]) for s, d in cells]
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='markdown', source='# A', metadata={}), *code])))
    assert spent(tmp_path/'a.ipynb', 2100) == dict(start=53, imports=515, data=4, training=1168, drawing=32, other=328)


def test_a_module_that_is_edited_meanwhile_is_read_anew(tmp_path):
    import json
    from medlearn.kit.code import all_code
    (tmp_path/'nb.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='code', source='import medlearn.data.x', metadata={})])))
    (tmp_path/'data').mkdir()
    seen = []
    for text in ('a = 1', 'a = 22', 'a = 333'):
        (tmp_path/'data/x.py').write_text(text)
        seen.append(all_code(tmp_path/'nb.ipynb', tmp_path)[1]['data/x'])
    assert len(set(seen)) == 3


def test_only_what_is_reached_of_a_module_counts(copy):
    tmp, digest = copy
    before, module = digest(), tmp/'medlearn/foundations/evaluation.py'
    text = module.read_text(encoding='utf-8')
    def changed(old, new, later):
        assert text.count(old) == 1
        module.write_text(text.replace(old, new), encoding='utf-8')
        shutil.copytree(tmp/'medlearn', tmp/later)
        after = code_of(tmp/'chapter.ipynb', tmp/later)
        return {k for k in before if after[k] != before[k]}
    assert changed('def delong(', 'def delong_(', 'a') == set() # not used by the chapter
    assert changed('def resample(', 'def resample( ', 'b') == {'foundations/evaluation'} # used by what it uses
    assert changed('\ndef delong(', '\nprint(1)\ndef delong(', 'c') == {'foundations/evaluation'} # done on import
