"""A Colab runtime in small: Colab's packages at Colab's versions, medlearn added as the chapters' set-up cells add it,
then every chapter's smoke run there. Without arguments: all of that, in .colab; or name chapters.

`python tests/colab_lane.py pins FREEZE` writes colab.txt anew from the list of packages that Colab publishes."""
import os, re, shutil, subprocess, sys, time
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import nbformat

from medlearn.kit import publish
from medlearn.kit.catalog import chapters

root = Path(__file__).parent.parent
PINS = root/'tests'/'colab.txt'
PYTHONS = '3.13', '3.12', '3.11' # Colab's, then what may stand in for it
UV = shutil.which('uv', path=Path(sys.executable).parent) or 'uv'
plain = lambda name: re.sub(r'[-_.]+', '-', name).lower()


class NoRegistry(Exception): "The package registry cannot be reached"


def clean(**more):
    "The environment without what leads to another Python's packages"
    return {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')} | more


def call(*cmd, env=None, **kw):
    "Run a command: what it printed, or its error"
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, env=env or clean(), **kw)
    if not done.returncode: return done.stdout
    offline = re.search('resolve host|name resolution|dns error|sending request|timed out|proxy|connection', done.stderr, re.I)
    if offline: raise NoRegistry(done.stderr[-300:])
    raise RuntimeError(done.stdout + done.stderr)


@cache
def settings():
    conf = ConfigParser()
    conf.read(root/'settings.ini', encoding='utf-8')
    return conf['DEFAULT']


def extras_of(path):
    "Names of the extras that a chapter's set-up cell installs"
    code = '\n'.join(c.source for c in nbformat.read(path, 4).cells if "find_spec('medlearn')" in c.source)
    found = re.search(r'(?:medlearn|FOLDER)\[([\w,]+)\]', code)
    return tuple(found[1].split(',')) if found else ()


def largest(groups):
    "The groups that are part of no other"
    return sorted({g for g in groups if not any(set(g) < set(o) for o in groups)})


def needs(extras=()):
    "What medlearn asks for, with some extras"
    return [r for key in ('requirements', *(f'{e}_requirements' for e in extras)) for r in settings()[key].split()]


# Which versions

def pins(text):
    "Name -> version of a list of packages; libraries of CUDA differ between Colab's machines"
    found = (re.match(r'([\w.-]+)==([^\s+]+)', line) for line in text.splitlines())
    return {plain(m[1]): m[2] for m in found if m and not m[1].startswith('nvidia-')}


def write_pins(freeze):
    "Of Colab's list, what medlearn and its extras need, and what that needs"
    theirs, extras = pins(Path(freeze).read_text(encoding='utf-8')), {e for p in chapters().values() for e in extras_of(p)}
    held = '\n'.join(f'{k}=={v}' for k, v in theirs.items())
    (work := root/'.colab').mkdir(exist_ok=True)
    (work/'held.txt').write_text(held)
    told = call(UV, 'pip', 'compile', '--no-header', '--no-annotate', '--python-version', PYTHONS[0],
                '-c', work/'held.txt', '-', input='\n'.join(['pip', *needs(sorted(extras))]))
    used = [f'{k}=={v}' for k, v in sorted(theirs.items()) if k in pins(told)]
    first = PINS.read_text(encoding='utf-8').splitlines()[:1] if PINS.exists() else ['#']
    PINS.write_text('\n'.join([*first, *used]) + '\n', encoding='utf-8')


# The runtime

def runtime(folder):
    "An environment with Colab's packages: its bin folder, and names that this Python cannot have"
    for python in (*PYTHONS, sys.executable):
        venv = [UV, 'venv', '--clear', '--no-python-downloads', '--python', python, folder]
        try: call(*venv, env=clean(PYENV_VERSION=python))
        except RuntimeError: continue
        break
    bin = next(p for p in (folder/'bin', folder/'Scripts') if p.exists())
    wanted, without = pins(PINS.read_text(encoding='utf-8')), []
    while True:
        lines = '\n'.join(f'{k}=={v}' for k, v in wanted.items())
        try: call(UV, 'pip', 'install', '--python', bin/'python', '--only-binary', ':all:', '-r', '-', input=lines)
        except RuntimeError as e:
            newer = re.search(r'(\S+)==\S+ (?:depends on Python|has no wheels)', str(e))
            if not newer or not wanted.pop(newer[1], None): raise
            without.append(newer[1])
        else: return bin, without


def installed(bin):
    "Name -> version of what is there"
    return pins(call(UV, 'pip', 'freeze', '--python', bin/'python'))


def wheel(folder):
    "The checkout as a wheel"
    src = folder/'src'
    for name in ('medlearn', 'nbs', 'data'):
        shutil.copytree(root/name, src/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'cache'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(root/name, src)
    call(UV, 'build', '--wheel', '--no-build-isolation', '--python', sys.executable, '-o', folder, src)
    shutil.rmtree(src)
    return next(folder.glob('medlearn-*.whl'))


def set_up(bin, file, extras):
    "Run the set-up cell as a published chapter has it, with the wheel in place of the address"
    cell = publish.setup_cell(f'[{",".join(extras)}]' if extras else '', 'someone')
    cell, n = re.subn(r"'git\+\S+'", lambda m: repr(file.as_uri()), cell)
    assert n == 1, cell
    told = call(bin/'ipython', '--colors=NoColor', '-c', cell, cwd=file.parent)
    assert 'medlearn' in call(UV, 'pip', 'freeze', '--python', bin/'python'), told


def moved(before, after):
    "Name -> (version before, version after) of what did not stay"
    return {k: (v, after.get(k)) for k, v in before.items() if after.get(k) != v}


def build(folder):
    "Runtime and medlearn: dict of bin, without, new, moved (by the names of the extras), and seconds for each of the two"
    start = time.perf_counter()
    bin, without = runtime(folder/'env')
    before, ready, shifts = installed(bin), time.perf_counter(), {}
    file = wheel(folder)
    for extras in largest({extras_of(p) for p in chapters(root/'nbs').values()}):
        call(UV, 'pip', 'uninstall', '--python', bin/'python', 'medlearn')
        set_up(bin, file, extras)
        shifts[','.join(extras)] = moved(before, installed(bin))
    return dict(bin=bin, without=without, new={k: v for k, v in installed(bin).items() if k not in before}, moved=shifts,
                seconds=(ready - start, time.perf_counter() - ready))


def course(lane, out, *names):
    "Run chapters in smoke there: the command's exit status"
    cmd = [lane['bin']/'medlearn', 'run', *names, '--fresh', '--out', out]
    return subprocess.run(cmd, env=clean(), cwd=out.parent).returncode


def main(names):
    if names[:1] == ['pins']: return write_pins(*names[1:])
    folder = root/'.colab'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lane = build(folder)
    (first, second), listed = lane['seconds'], lambda found: ' '.join(f'{k}=={v}' for k, v in found.items())
    print(f'{call(lane["bin"]/"python", "-V").strip()}: Colab\'s packages in {first:.0f} s, medlearn in {second:.0f} s')
    print(f'New: {listed(lane["new"])}')
    if lane['without']: print(f'This Python cannot have Colab\'s version of {", ".join(lane["without"])}')
    for extras, found in lane['moved'].items():
        print(f'medlearn[{extras}] moves ' + (', '.join(f'{k} {a} to {b}' for k, (a, b) in found.items()) or 'none of them'))
    return course(lane, folder/'run', *names) or any(lane['moved'].values())


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
