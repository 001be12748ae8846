"A chapter imports nothing that medlearn's requirements and the extras of its set-up cell do not bring"
import ast, re, sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from colab_lane import extras_of, needs, plain
from packaging.requirements import Requirement

from medlearn.kit.code import all_code
from medlearn.kit.catalog import chapters

root = Path(__file__).parent.parent
CHAPTERS = chapters(root/'nbs')
GUARDED = { # imported inside functions, where `_import` or `_need` has said what to install
    'kit/cluster': {'distributed'},
    'data/scans': {'pydicom'},
    'kit/lab': {'jupyterlab', 'nbdev'}, # the command `medlearn lab` says so before
}
IMPORT_FAILS = {'ImportError', 'ModuleNotFoundError', 'Exception'}


def imports(tree):
    "Modules that code imports, as dotted names, except where it catches that they are missing"
    for n in ast.iter_child_nodes(tree):
        if isinstance(n, ast.Try):
            caught = {e.id for h in n.handlers for e in ast.walk(h.type or ast.Name('Exception')) if isinstance(e, ast.Name)}
            held = [] if caught & IMPORT_FAILS else n.body
            yield from imports(ast.Module([*held, *n.handlers, *n.orelse, *n.finalbody], []))
        elif isinstance(n, ast.Import): yield from (a.name for a in n.names)
        elif isinstance(n, ast.ImportFrom) and not n.level: yield from (f'{n.module}.{a.name}' for a in n.names)
        elif not isinstance(n, ast.expr): yield from imports(n)


@cache
def of_module(name): return {*imports(ast.parse((root/'medlearn'/f'{name}.py').read_text(encoding='utf-8')))}


@cache
def brought(extras):
    "Packages that come with medlearn and these extras, and what those require here"
    found, todo = set(), [Requirement(r) for r in needs(extras)]
    while todo:
        r = todo.pop()
        if (key := (plain(r.name), *sorted(r.extras))) in found: continue
        found.add(key)
        try: asked = [Requirement(t) for t in requires(r.name) or []]
        except PackageNotFoundError: continue
        todo += [t for t in asked if not t.marker or any(t.marker.evaluate(dict(extra=e)) for e in ('', *r.extras))]
    return {name for name, *_ in found}


@cache
def packages(): return {k: {plain(d) for d in v} for k, v in packages_distributions().items()}


def missing(names, have):
    "Of these imports, the ones that no package brings"
    tops = {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) - {'medlearn'}
    return {t for t in tops if not packages().get(t, {t}) & have}


@cache
def within(name):
    "What a part of a foreign package imports at its head; the packages themselves know what they need"
    top, *rest = name.split('.')
    if not rest or top in sys.stdlib_module_names or top == 'medlearn' or not (spec := find_spec(top)): return ()
    at = Path(spec.origin).parent.joinpath(*rest)
    files = [p for a in (at, at.parent) for p in (a/'__init__.py', Path(f'{a}.py')) if p.is_file()]
    if not files or files[0] == Path(spec.origin): return ()
    body = ast.parse(files[0].read_text(encoding='utf-8')).body
    return tuple(imports(ast.Module([n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))], [])))


@pytest.mark.parametrize('name', CHAPTERS)
def test_a_chapter_imports_what_its_set_up_brings(name):
    codes, modules = all_code(CHAPTERS[name])
    extras = extras_of(CHAPTERS[name])
    sources = {m: of_module(m) for m in modules} | {name: {n for c in codes for n in imports(ast.parse(c))}}
    lacking = {}
    for source, asked in sources.items():
        names = {n for n in asked if n.split('.')[0] not in GUARDED.get(source, ())}
        gone = missing(names, brought(extras))
        parts = {n: missing(within(n), brought(extras)) for n in names if n.split('.')[0] not in gone}
        found = sorted(gone) + [f'{", ".join(sorted(v))} for {k}' for k, v in parts.items() if v]
        if found: lacking[source] = found
    assert not lacking, f'neither medlearn nor its extras {extras} bring {lacking}'


def test_what_is_caught_or_at_hand_is_not_missing():
    code = """
import json, numpy.linalg, nowhere
try: import maybe.this
except (OSError, ImportError): from other import that
def f():
    from . import near
    try: import late
    except ValueError: pass
"""
    names = set(imports(ast.parse(code)))
    assert names == {'json', 'numpy.linalg', 'nowhere', 'other.that', 'late'}
    assert missing(names, brought(())) == {'nowhere', 'other', 'late'}
    assert 'pydicom' in brought(('formats',)) and 'pydicom' not in brought(()) and 'distributed' in brought(('scaling',))
    assert missing(within('nibabel.testing.data_path'), brought(('formats',))) == {'pytest'}
