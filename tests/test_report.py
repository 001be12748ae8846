"One page a run: whole, safe, readable by everyone, and honest about what could not be read"
import errno
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat.v4 as v4
import pytest
from typer.testing import CliRunner

from medlearn.kit import figures, report, runs
from medlearn.kit.cards import cards
from medlearn.kit.catalog import WrongUsage
from medlearn.kit.cli import app
from medlearn.kit.report import bounds_of, draw_seeds, leave_report, locked_versions, report_page, seeds_in_words, write_report
from medlearn.kit.runs import finite, is_run, library_of, note_library, read_run, read_runs, sound_claim, sound_row

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>\'{{ 7*7 }}'
VOID = {'meta', 'br', 'img', 'link', 'hr', 'input'}


def call(*words): return CliRunner().invoke(app, list(map(str, words)))


def claim(name='AUROC', value=.84, low=.8, high=.88, **more):
    return dict(claim=name, value=value, low=low, high=high, bound=.5, direction='at_least', tol=None, margin=None, passed=True, source='definition: chance') | more


def record(chapter='imaging/tiny', **other):
    return dict(chapter=chapter, profile='smoke', seed=42, status='passed', seconds=4.2, peak_mb=900, started='2026-12-01T10:00:00+0000', device='cpu',
                processor='a processor', threads=2, commit='abc', versions=dict(torch='2.15.0', python='3.11.7'), parameters=dict(dataset='toy'),
                data=[], claims=[claim()], notebook=f'{chapter}/smoke-seed42.ipynb') | other


def leave(folder, row, stem='smoke-seed42'):
    at = Path(folder)/row['chapter']
    at.mkdir(parents=True, exist_ok=True)
    (at/f'{stem}.json').write_text(json.dumps(row))
    (at/f'{stem}.ipynb').write_text('{}')
    return Path(folder)


class Page(HTMLParser):
    "A page whose tags are balanced, with what a reader of the screen needs"
    def __init__(self, text):
        super().__init__()
        assert text.startswith('<!DOCTYPE html>')
        self.tags, self.open, self.text, self.said = [], [], '', {}
        self.feed(text)
        assert not self.open
    def handle_starttag(self, tag, attrs):
        assert len({k for k, _ in attrs}) == len(attrs), f'an attribute twice in <{tag}>'
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID: self.open.append(tag)
    def handle_startendtag(self, tag, attrs):
        assert 'svg' in self.open, f'<{tag}/> outside of a picture'
        self.tags.append((tag, dict(attrs), tuple(self.open)))
    def handle_endtag(self, tag): assert self.open.pop() == tag, f'</{tag}> closes something else'
    def handle_data(self, data):
        self.text += data
        for tag in self.open[-1:]: self.said[tag] = self.said.get(tag, '') + data
    def of(self, *names): return [a for t, a, _ in self.tags if t in names]


def accessible(text):
    "The rules of axe that a page of tables and pictures can break, by hand"
    page = Page(text)
    assert page.of('html')[0]['lang'] == 'en' and page.said['title'].strip() and len(page.of('main')) == len(page.of('h1')) == 1
    levels = [int(t[1]) for t, *_ in page.tags if re.fullmatch('h[1-6]', t)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:])), f'a level of headings is skipped: {levels}'
    ids = [a['id'] for _, a, _ in page.tags if 'id' in a]
    assert len(set(ids)) == len(ids) and all(a.get('scope') in ('col', 'row') for a in page.of('th'))
    assert len(page.of('caption')) == len(page.of('table')) and all(a.get('role') == 'img' and a.get('aria-label') for a in page.of('svg'))
    assert all(a.get('role') and a.get('aria-label') for _, a, _ in page.tags if 'tabindex' in a), 'a place that takes the keyboard has no name'
    assert all(a.get('alt') for a in page.of('img')) and 'width=device-width' in str(page.of('meta')) and 'user-scalable' not in text
    targets = [a['href'] for a in page.of('a')]
    assert all(t.startswith(('#', './', 'https://')) for t in targets), targets
    assert {unquote(t[1:]) for t in targets if t[0] == '#'} <= {unquote(i) for i in ids}
    return page


def luminance(colour):
    c = colour.lstrip('#')
    parts = [int(x, 16)/255 for x in ([2*x for x in c] if len(c) == 3 else re.findall('..', c))]
    return sum(w*(p/12.92 if p <= .04045 else ((p + .055)/1.055)**2.4) for w, p in zip((.2126, .7152, .0722), parts))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + .05)/(low + .05)


def test_texts_and_shapes_have_contrast():
    "4.5 for texts, 3 for what has to be seen of a picture (WCAG 2.2, 1.4.3 and 1.4.11)"
    style = report._style
    texts, shapes = ['#111', '#00458b', '#555'], ['#6b6b6b', '#111']
    assert all(c in style for c in texts + shapes) and contrast('#777', '#fff') == pytest.approx(4.48, abs=.01)
    assert min(contrast(c, back) for c in texts for back in ('#fff', '#eee')) >= 4.5
    assert min(contrast(c, '#e2e2e2') for c in shapes) >= 3
    used = set(re.findall('#[0-9a-f]{3,6}', style))
    assert used <= {*texts, *shapes, '#fff', '#eee', '#e2e2e2', '#767676'}, 'another colour: check its contrast, too'


# The page

def test_a_page_holds_everything(tmp_path):
    name, card = next((n, c) for n, c in cards().items() if not c.simulated)
    data = [dict(name=name, digest=card.files[0].digest), dict(name='mine', digest='sha256:12')]
    leave(tmp_path, record(data=data, claims=[claim(), claim('Dice', .4, .3, .45, passed=False)], status='failed', versions=dict(torch='1.0', numpy=locked_versions()['numpy'])))
    path, rows, problems = write_report(tmp_path)
    text = path.read_text(encoding='utf-8')
    page = accessible(text)
    assert path == tmp_path/'report.html' and len(rows) == 1 and not problems
    for word in ('0.84 [0.8, 0.88]', '≥ 0.5', 'definition: chance', 'holds', 'DOES NOT HOLD', '4.2', '900', 'cpu', card.title, 'as on the card', 'no card', 'sha256:12',
                 'torch 1.0 instead of', 'as in the lock', 'NOT ALL CLAIMS HOLD', '1 of 2 claims hold', 'not tried', 'Not for clinical use'): assert word in page.text, word
    assert './imaging/tiny/smoke-seed42.ipynb' in [a['href'] for a in page.of('a')]
    assert card.licence.split()[0] in page.text


def test_it_needs_no_network_and_runs_nothing(tmp_path):
    path, *_ = write_report(leave(tmp_path, record()))
    text = path.read_text(encoding='utf-8')
    page = Page(text)
    assert not re.search(r'(?i)<(script|link|img|iframe|object|embed|base|form)\b|url\(|@import|\bon\w+=', text)
    assert "default-src 'none'" in str(page.of('meta')) and '@media print' in text and 'max-width:45rem' in text
    assert 'http' not in text.replace('http-equiv', '')


def test_the_record_adds_seeds_and_sabotage(tmp_path):
    keep = dict(parameters={}, date='2026-12-01', code={}, kept={}, inputs=[])
    runs_ = [keep | dict(seed=i, claims=[claim(value=v, passed=v > .5), claim('Dice')]) for i, v in ((1, .81), (2, .86), (3, .47))]
    proof = dict(profile='smoke', seed=42, date='2026-12-01', code={})
    sabotage = [proof | dict(kind='answers', holds=dict(AUROC=False, Dice=True)), proof | dict(kind='leak', holds=dict(AUROC=True, Dice=True))]
    figures.write_record(dict(format=1, chapter='imaging/tiny', runs=runs_, sabotage=sabotage), tmp_path/'figures')
    text = report_page([sound_row(record())[0] | dict(at=None)], home=tmp_path, records=tmp_path/'figures')
    page = accessible(text)
    assert '2 of 3 hold, 0.47 to 0.86' in page.text and 'falls: answers; holds: leak' in page.text
    label = page.of('svg')[0]['aria-label']
    assert label == 'Bound ≥ 0.5. This run: 1 of 1 hold, 0.84. On record: 2 of 3 hold, 0.47 to 0.86.'
    first = text[text.index('<svg'):text.index('</svg>')]
    assert first.count('class="kept"') == 3 and first.count('class="here"') == 1 and 'class="span"' in first


def test_several_seeds_of_a_run_share_a_row(tmp_path):
    for seed, value, holds in ((1, .8, True), (2, .7, True), (3, .4, False)):
        leave(tmp_path, record(seed=seed, claims=[claim(value=value, low=None, high=None, passed=holds)]), f'smoke-seed{seed}')
    page = accessible(write_report(tmp_path)[0].read_text(encoding='utf-8'))
    assert 'HOLDS FOR 2 OF 3 SEEDS' in page.text and '0.4 to 0.8' in page.text and 'seed 1, 2, 3' in page.text


def test_a_broken_run_and_one_that_was_broken_on_purpose_say_so(tmp_path):
    leave(tmp_path, record(status='error', error='ValueError: no <scan>', claims=[]))
    leave(tmp_path, record('imaging/other', sabotage='leak'), 'smoke-seed42-leak')
    page = accessible(write_report(tmp_path)[0].read_text(encoding='utf-8'))
    assert 'IT BROKE: ValueError: no <scan>' in page.text and 'BROKEN ON PURPOSE (leak)' in page.text and '1 of them broke' in page.text


@pytest.mark.parametrize('bound, more, ends', [(.5, {}, (.5, None)), (.5, dict(direction='at_most', margin=.1), (None, .6)), (.5, dict(margin=.1), (.4, None)),
                                               (0., dict(direction='equals', tol=.02), (-.02, .02)), ([1., 2.], dict(direction='equals'), (1., 2.))])
def test_the_band_is_where_the_claim_holds(bound, more, ends):
    c = claim(bound=bound, **more)
    assert bounds_of(c) == pytest.approx(ends)
    svg = draw_seeds([c], [])
    x, width = (float(re.search(rf'class="band"[^>]* {k}="([\d.]+)"', svg)[1]) for k in ('x', 'width'))
    assert (x == 0) == (ends[0] is None) and (x + width == pytest.approx(180, abs=.1)) == (ends[1] is None)


@pytest.mark.parametrize('value', [0., -3., 1e299, 1e-300, 120., None])
def test_a_picture_stays_inside_its_frame(value):
    svg = draw_seeds([claim(value=value, low=None, high=None)], [claim(value=1.)])
    numbers = [float(x) for x in re.findall(r'(?:cx="|M|x=")(-?[\d.]+)', svg)]
    assert all(0 <= x <= 180 for x in numbers) and 'nan' not in svg and 'inf' not in svg
    assert seeds_in_words([]) == 'none' and draw_seeds([claim(value=None)], []) == ''


def test_the_whole_course_stays_small_and_quick(tmp_path):
    "Every record that is committed, as a run of three seeds each, and as many chapters again"
    folder, n = figures.data_folder()/'figures', 0
    for path in sorted(folder.glob('*.json')):
        found = json.loads(path.read_text(encoding='utf-8'))
        for copy in ('', 'x'):
            for r in found['runs']:
                row = record(found['chapter'] + copy, profile='full', seed=r['seed'], claims=r['claims'], versions=r['versions'], data=r['inputs'], parameters=r['parameters'])
                leave(tmp_path, row, f'full-seed{r["seed"]}-{n}')
                n += 1
    began = time.process_time()
    path, rows, problems = write_report(tmp_path)
    seconds = time.process_time() - began
    assert len(rows) == n > 150 and not problems and path.stat().st_size < 5_000_000, path.stat().st_size
    assert seconds < 10
    accessible(path.read_text(encoding='utf-8'))


# Bad input

def test_texts_of_others_are_shown_and_never_run(tmp_path):
    row = record(parameters={EVIL: EVIL}, commit=EVIL, processor=EVIL, device=EVIL, error=EVIL, started=EVIL, sabotage=EVIL, versions={EVIL: EVIL},
                 data=[dict(name=EVIL, digest=EVIL)], own_data={EVIL: EVIL}, claims=[claim(EVIL, source=EVIL, direction=EVIL)], notebook='javascript:alert(1)//.ipynb')
    leave(tmp_path, row)
    (tmp_path/'imaging/tiny/x.json').write_text(json.dumps(record() | dict(chapter=EVIL)))
    (tmp_path/'imaging/javascript:alert(1)').mkdir()
    (tmp_path/'imaging/javascript:alert(1)/<b>&"x.json').write_text('{')
    (tmp_path/'imaging/javascript:alert(1)/"onclick=alert(3) .json').write_text(json.dumps(record('a/b')))
    (tmp_path/'imaging/javascript:alert(1)/"onclick=alert(3) .ipynb').write_text('{}')
    path, rows, problems = write_report(tmp_path)
    page = accessible(path.read_text(encoding='utf-8'))
    assert len(rows) == 3 and len(problems) == 1
    assert not {t for t, *_ in page.tags} & {'script', 'img', 'iframe', 'b'} and not [k for _, a, _ in page.tags for k in a if k.startswith('on')]
    assert EVIL in page.text and '49' not in page.text and '<b>&"x.json is not JSON' in page.text
    assert not [a['href'] for a in page.of('a') if 'javascript' in unquote(a['href']).split('/')[0]]


def test_texts_that_no_page_can_hold_are_replaced(tmp_path):
    odd = record(claims=[claim('a\x00b\ud800c\u202ed\x1b[31m')], commit='\udcff')
    path = leave(tmp_path, record())/'imaging/tiny/smoke-seed42.json'
    path.write_text(json.dumps(odd))
    text = write_report(tmp_path)[0].read_bytes().decode('utf-8')
    assert 'a�b�c�d�[31m' in text and '\x00' not in text


@pytest.mark.parametrize('text, says', [
    ('', 'is not JSON'), ('{"chapter": "imaging/ti', 'is not JSON'), ('[' * 100_000, 'is not JSON'), ('[]', 'names no chapter'), ('null', 'names no chapter'), ('{"chapter": 3}', 'names no chapter'),
    ('{"chapter": "a/b", "status": "perfect", "claims": []}', 'damaged'), ('{"chapter": "a/b", "status": "passed", "claims": 3}', 'damaged'),
    ('{"chapter": "a/b", "status": "passed", "claims": [], "format": 2}', 'update medlearn'), ('{"chapter": "a/b", "status": "passed", "claims": [], "format": "x"}', 'update medlearn')])
def test_what_is_damaged_is_said_and_the_rest_reported(tmp_path, text, says):
    leave(tmp_path, record())
    (tmp_path/'imaging/tiny/torn.json').write_text(text)
    path, rows, problems = write_report(tmp_path)
    assert [r['chapter'] for r in rows] == ['imaging/tiny']
    page = accessible(path.read_text(encoding='utf-8'))
    assert 'imaging/tiny/torn.json' in page.text and says in page.text and 'What could not be read' in page.text
    done = call('report', tmp_path)
    assert done.exit_code == 0 and 'torn.json' in done.output and str(tmp_path/'report.html') in done.output


@pytest.mark.parametrize('c, kept', [
    (claim(), True), (claim(value=None), True), (claim(value='x'), True), (claim(value=float('nan')), True), (claim(value=10**400), True), (claim(bound=None), False),
    (claim(bound=True), False), (claim(bound=[1]), False), (claim(bound=[1, 'x']), False), (claim(bound=float('inf')), False), (claim(claim=3), False), ({}, False), (claim(direction=['x']), True),
    (claim(passed='yes'), True)])
def test_claims_are_checked_field_by_field(c, kept):
    found = sound_claim(c)
    assert (found is not None) == kept
    if kept: assert found['value'] is None or finite(found['value']) is not None
    if c.get('passed') == 'yes': assert found['passed'] is False
    row, lost = sound_row(record(claims=[claim(), c, 'x']))
    assert len(row['claims']) == 1 + kept and 'left out' in lost[0]
    report_page([row | dict(at=None)])


@pytest.mark.parametrize('key', ['seed', 'parameters', 'versions', 'data', 'own_data', 'seconds', 'peak_mb', 'threads', 'device', 'started', 'error', 'profile', 'commit', 'notebook', 'sabotage'])
@pytest.mark.parametrize('value', [None, 'x', 3, -1e308, [1], {'a': [1]}, [{'name': ['x']}], True])
def test_any_field_may_hold_anything(key, value):
    accessible(report_page([sound_row(record(**{key: value}))[0] | dict(at=None)]))


def test_a_lost_record_is_taken_from_the_results(tmp_path):
    leave(tmp_path, record())
    (tmp_path/'results.json').write_text(json.dumps(dict(runs=[record(), record('imaging/lost', notebook='imaging/lost/smoke-seed42.ipynb')])))
    rows, problems = read_run(tmp_path)
    assert [r['chapter'] for r in rows] == ['imaging/tiny', 'imaging/lost'] and 'whose own record is not there' in problems[0][1]
    (tmp_path/'imaging/tiny/smoke-seed1.ipynb').write_text('{}')
    (tmp_path/'results.json').write_text('{"runs": 3}')
    assert {what for _, what in read_run(tmp_path)[1]} == {'was executed, but has no record', 'holds no list of runs'}


def test_a_record_on_file_of_a_newer_format_is_said(tmp_path):
    (tmp_path/'imaging_tiny.json').write_text('{"format": 99, "chapter": "imaging/tiny", "runs": []}')
    page = accessible(report_page([sound_row(record())[0] | dict(at=None)], home=tmp_path, records=tmp_path))
    assert 'has format 99' in page.text and '0.84 [0.8, 0.88]' in page.text


def test_a_full_disk_leaves_the_old_page_and_no_half_one(tmp_path, monkeypatch):
    leave(tmp_path, record())
    old = write_report(tmp_path)[0].read_bytes()
    def full(self, data):
        with open(self, 'wb') as f: f.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(Path, 'write_bytes', full)
    done = call('report', tmp_path)
    assert done.exit_code == 1 and 'No space left' in done.output and 'Traceback' not in done.output
    assert 'could not be written' in leave_report(tmp_path)
    assert (tmp_path/'report.html').read_bytes() == old and sorted(p.name for p in tmp_path.iterdir()) == before


# Which runs

def test_of_many_folders_the_newest_of_each_chapter_counts(tmp_path, monkeypatch):
    leave(tmp_path/'runs/20261130-1', record(started='2026-11-30', commit='old'))
    leave(tmp_path/'runs/20261130-1', record('imaging/other', started='2026-11-30'))
    leave(tmp_path/'runs/20261201-1', record(started='2026-12-01', commit='new'))
    leave(tmp_path/'runs/20261202-1', record(started='2026-12-02', sabotage='leak'), 'smoke-seed42-leak')
    (tmp_path/'runs/empty').mkdir()
    rows, problems = read_runs(tmp_path/'runs')
    assert {(r['chapter'], r['commit']) for r in rows} == {('imaging/tiny', 'new'), ('imaging/other', 'abc')} and not problems
    monkeypatch.chdir(tmp_path)
    done = call('report')
    assert done.exit_code == 0 and '2 runs: runs/report.html' in done.output
    page = accessible((tmp_path/'runs/report.html').read_text(encoding='utf-8'))
    links = [unquote(a['href']) for a in page.of('a') if a['href'].startswith('./')]
    assert './20261201-1/imaging/tiny/smoke-seed42.ipynb' in links and all((tmp_path/'runs'/link).is_file() for link in links)
    done = call('report', 'runs/20261130-1', '--out', tmp_path/'elsewhere.html')
    assert done.exit_code == 0 and 'href="./runs/20261130-1/imaging' in (tmp_path/'elsewhere.html').read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(WrongUsage, match='is no folder'): read_runs(tmp_path/'nowhere')
    with pytest.raises(WrongUsage, match='holds no run'): read_runs(tmp_path)
    assert not is_run(tmp_path) and call('report', tmp_path).exit_code == 2


def test_a_run_ends_with_its_page(tmp_path):
    cells = [v4.new_markdown_cell('# A title\n\n> A promise.'), v4.new_code_cell('profile = "smoke"', metadata=dict(tags=['parameters'])),
             v4.new_code_cell('from medlearn.kit.chapter import claim\nclaim("AUROC", (.9, .8, .95), at_least=.75, source="definition: a [paper]")')]
    (tmp_path/'nbs/imaging').mkdir(parents=True)
    (tmp_path/'nbs/imaging/01_reads.ipynb').write_text(json.dumps(v4.new_notebook(cells=cells)))
    command = [sys.executable, '-c', 'from medlearn.kit.cli import main; main()', 'run', 'imaging', '--nbs', 'nbs', '--out', 'out']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f'Report: {tmp_path/"out/report.html"}' in done.stdout, done.stdout + done.stderr
    assert f'RO-Crate: {tmp_path/"out/ro-crate-metadata.json"}' in done.stdout and json.loads((tmp_path/'out/ro-crate-metadata.json').read_text())['@graph']
    page = accessible((tmp_path/'out/report.html').read_text(encoding='utf-8'))
    assert '0.9 [0.8, 0.95]' in page.text and './imaging/reads/smoke.ipynb' in [a['href'] for a in page.of('a')]
    row = json.loads((tmp_path/'out/imaging/reads/smoke.json').read_text())
    assert json.loads((tmp_path/'out/code.json').read_text())[row['library']]['kit/runs']


def test_code_is_noted_once_for_each_state_of_the_library(tmp_path, monkeypatch):
    digest, modules = library_of()
    assert note_library(tmp_path) == note_library(tmp_path) == digest and json.loads((tmp_path/'code.json').read_text()) == {digest: modules}
    monkeypatch.setattr(runs, 'library_of', lambda: ('other', {'a': 'b'}))
    note_library(tmp_path)
    assert json.loads((tmp_path/'code.json').read_text()) == {digest: modules, 'other': {'a': 'b'}}
    (tmp_path/'code.json').write_text('torn')
    assert note_library(tmp_path) == 'other' and note_library(tmp_path/'nowhere') == 'other'
