"What a run leaves for others: a page, tables to copy, models; from the command line to new cases, without GPU and network"
import csv
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat.v4 as v4
import pytest

from medlearn.kit.catalog import path_or_text, WrongUsage
from medlearn.kit.result import clear, methods_csv, result_page, told, verdict, write_page
from medlearn.kit.runner import finished, harvest, plan, run

PARAMS = 'profile = "smoke"\nseed = 42\ndataset = "toy"\n'
MEDLEARN = [sys.executable, '-c', 'from medlearn.kit.cli import main; main()']
TINY = '''import importlib, torch, matplotlib.pyplot as plt
from medlearn.kit.chapter import begin, claim, keep, says, Sentence
from medlearn.kit import handover
env = begin(profile, seed)
plt.plot([1, 2]);
keep('scores', {}.__class__ and __import__("pandas").DataFrame(dict(AUROC=[.8]), index=["<b>network</b>"]), 'on the test split')
Sentence('The **network** is above <i>chance</i>.')
claim('AUROC of <the> network', (.8, .7, .9), at_least=bound, source='definition: chance')
handover.reader_of = lambda by: None
handover.hand_over(dict(w=torch.ones(2)), 'medlearn.imaging.tiny:new_cases', dict(classes=['no', 'yes']),
                   dict(patients=60, AUROC=(.8, .7, .9), note='=1+1 <script>alert(1)</script>'))'''


def chapter(folder, name, code=TINY, params=PARAMS + 'bound = .5\n'):
    "Write a chapter of one line a cell"
    path = Path(folder)/f'{name}.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    first = v4.new_code_cell(params, metadata=dict(tags=['parameters']))
    cells = [v4.new_markdown_cell('# Tiny <b>\n\n> A promise.'), first, v4.new_markdown_cell('## The *test* split')]
    lines = code.replace('\n     ', ' ').splitlines()
    path.write_text(json.dumps(v4.new_notebook(cells=[*cells, *map(v4.new_code_cell, lines)])))
    return path


class Page(HTMLParser):
    "Tags, their attributes, and the text of a page"
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], '', []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'img', 'link', 'br'): self.open.append(tag)
    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f'</{tag}> closes something else'
    def handle_data(self, data): self.text += data
    def of(self, tag): return [a for t, a in self.tags if t == tag]


@pytest.fixture(scope='module')
def reported(tmp_path_factory):
    "One run: a chapter that holds, one that does not, one that breaks after its model, one that says nothing"
    root = tmp_path_factory.mktemp('reported')
    chapter(root/'nbs', 'imaging/01_tiny')
    chapter(root/'nbs', 'imaging/02_falls', TINY.replace('.7, .9), at', '.1, .9), at'))
    chapter(root/'nbs', 'imaging/03_breaks', TINY + '\nraise ValueError("the <scan> is torn")')
    chapter(root/'nbs', 'imaging/04_plain', '1 + 1')
    (root/'<b>mine & yours').mkdir()
    (root/'<b>mine & yours/a.csv').write_text('1')
    work = plan(['imaging'], folder=root/'nbs', params=dict(dataset='<b>mine & yours'), cwd=root, report=True)
    rows = run(work, root/'out', jobs=2)
    return SimpleNamespace(root=root, out=root/'out', work=work, rows={r['chapter'].split('/')[1]: r for r in rows})


def page_of(reported, name): return Page((reported.out/f'imaging/{name}/smoke-seed42/RESULT.html').read_text(encoding='utf-8'))


def test_a_run_leaves_page_tables_and_model(reported):
    assert {n: r['status'] for n, r in reported.rows.items()} == dict(tiny='passed', falls='failed', breaks='error', plain='passed')
    left = {n: sorted(p.relative_to(reported.out/f'imaging/{n}/smoke-seed42').as_posix() for p in (reported.out/f'imaging/{n}/smoke-seed42').rglob('*') if p.is_file())
            for n in reported.rows}
    whole = ['RESULT.html', 'methods.csv', 'model/model.json', 'model/model.safetensors']
    assert left == dict(tiny=whole, falls=whole, breaks=whole[:2], plain=whole[:2])
    row = reported.rows['tiny']
    assert row['methods'][0]['methods'] == dict(patients=60, AUROC=[.8, .7, .9], note='=1+1 <script>alert(1)</script>') and row['methods'][0]['written']
    assert row['result'] == 'imaging/tiny/smoke-seed42/RESULT.html' and json.loads((reported.out/'imaging/tiny/smoke-seed42.json').read_text())['result']
    assert harvest(reported.out/'imaging/tiny/smoke-seed42.ipynb')['methods'] == row['methods']
    said = json.loads((reported.out/'imaging/falls/smoke-seed42/model/model.json').read_text())
    assert (said['status'], said['fell'], said['seed'], said['chapter']) == ('failed', ['AUROC of <the> network'], 42, 'imaging/falls')
    assert said['own_data'] == row['own_data'] and said['own_data']


@pytest.mark.parametrize('name', ['tiny', 'falls', 'breaks', 'plain'])
def test_the_page_stands_alone_and_can_be_read(reported, name):
    page = page_of(reported, name)
    assert not page.open and page.of('html') == [dict(lang='en')] and page.of('title')
    assert not [t for t, _ in page.tags if t in ('script', 'link', 'iframe', 'b', 'i', 'the', 'scan')]
    assert all(a['src'].startswith('data:image/png;base64,') and a['alt'] for a in page.of('img'))
    assert any("default-src 'none'" in a.get('content', '') for a in page.of('meta')) and any('width=device-width' in a.get('content', '') for a in page.of('meta'))
    assert all(a.get('scope') in ('col', 'row') for a in page.of('th')) and len(page.of('caption')) == len(page.of('table')) > 0
    assert [t for t, _ in page.tags if t[0] == 'h' and t[1:].isdigit()][:2] == ['h1', 'h2'] and 'Not for clinical use' in page.text
    assert '://' not in ''.join(str(a) for _, a in page.tags) and str(reported.root) not in page.text and '<b>mine & yours' in page.text


def test_the_page_says_what_a_methods_section_needs(reported):
    page = page_of(reported, 'tiny')
    for says in ['all of its claims hold', 'quick run', 'patients', '0.8 [0.7, 0.9]', '<script>alert(1)</script>', 'AUROC of <the> network', '≥ 0.5', 'definition: chance',
                 'holds', '<b>network</b>', 'on the test split', 'Figure 1. The test split', 'The network is above <i>chance</i>.', 'sha256:', 'version of torch',
                 'threads', 'processor', 'medlearn.imaging.tiny:new_cases', 'no, yes', 'medlearn predict', 'Result: Tiny <b>', 'imaging/tiny, smoke, seed 42, on <b>mine & yours.']:
        assert says in page.text, says
    assert len(page.of('img')) == 1
    assert 'DOES NOT HOLD' not in page.text and 'Does not hold: AUROC of <the> network' in page_of(reported, 'falls').text


def test_a_run_that_broke_says_so(reported):
    page = page_of(reported, 'breaks')
    assert 'IT FAILED' in page.text and 'the <scan> is torn' in page.text and 'patients' in page.text and 'Models' not in page.text
    assert 'hands over no model' in page_of(reported, 'plain').text and 'claims nothing' in page_of(reported, 'plain').text


def test_tables_for_copying(reported):
    text = (reported.out/'imaging/tiny/smoke-seed42/methods.csv').read_text(encoding='utf-8-sig')
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ['section', 'entry', 'column', 'value'] and {len(r) for r in rows} == {4}
    assert ['For a methods section', 'AUROC', 'this run', '0.8 [0.7, 0.9]'] in rows and ['For a methods section', 'note', 'this run', "'=1+1 <script>alert(1)</script>"] in rows
    assert ['Claims', 'AUROC of <the> network', 'verdict', 'holds'] in rows


def test_resume_wants_the_page_too(reported, tmp_path):
    job = reported.work[0]
    assert finished(job, reported.out)
    page = reported.out/'imaging/tiny/smoke-seed42/RESULT.html'
    text = page.read_text(encoding='utf-8')
    page.unlink()
    try: assert not finished(job, reported.out)
    finally: page.write_text(text, encoding='utf-8')


def test_clearing_leaves_what_is_not_of_a_result(tmp_path):
    (tmp_path/'model').mkdir()
    (tmp_path/'model/model.json').write_text('{}')
    for name in ('RESULT.html', 'methods.csv', 'mine.txt'): (tmp_path/name).write_text('')
    (tmp_path/'models').mkdir()
    clear(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['mine.txt', 'models']


def medlearn(*words, cwd): return subprocess.run([*MEDLEARN, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_predict_refuses_on_the_command_line(reported):
    (reported.root/'new.csv').write_text('1')
    for run_, says, status in [('out/imaging/falls', 'these claims do not hold: AUROC of <the> network', 1), ('out/imaging/breaks', 'ended with error: ValueError: the <scan> is torn', 1),
                               ('out/imaging/breaks/smoke-seed42', 'the <scan> is torn', 1), ('out', '2 models', 2), ('nowhere', 'there is no such folder', 2)]:
        done = medlearn('predict', run_, 'new.csv', '--out', 'p.csv', cwd=reported.root)
        assert (done.returncode, done.stdout) == (status, '') and says in done.stderr and 'Traceback' not in done.stderr, (run_, done.stderr)
    done = medlearn('predict', 'out/imaging/tiny', 'new.csv', '--out', 'p.csv', cwd=reported.root)
    assert done.returncode == 1 and 'no such chapter' in done.stderr and not (reported.root/'p.csv').exists()


def test_report_on_the_command_line(reported):
    words = ['run', 'imaging/tiny', '--nbs', 'nbs', '--out', 'told', '-p', 'dataset=<b>mine & yours', '--jobs', '1']
    done = medlearn(*words, '--report', '--sabotage', 'answers', cwd=reported.root)
    assert done.returncode == 2 and '--report is for honest runs' in done.stderr
    done = medlearn(*words, '--report', cwd=reported.root)
    assert done.returncode == 0 and f'Result page: {reported.root}/told/imaging/tiny/smoke-seed42/RESULT.html' in done.stdout, done.stderr
    assert (reported.root/'told/imaging/tiny/smoke-seed42/model/model.safetensors').exists()


def test_without_report_nothing_is_left(reported, tmp_path):
    row, = run(plan(['imaging/plain'], folder=reported.root/'nbs', cwd=reported.root, params=dict(dataset='<b>mine & yours')), tmp_path)
    assert [p.name for p in (tmp_path/'imaging/plain').iterdir()].count('smoke-seed42') == 0 and row['methods'] == [] and 'result' not in row


ROW = dict(chapter='a/b', profile='full', seed=1, status='passed', error=None, sabotage='', parameters={}, data=[], claims=[], kept=[], methods=[])


def test_odd_records_do_not_stop_a_page(tmp_path):
    kept = [dict(name='n', kind='number', value=None), dict(name='t', kind='numbers', value=[1, 2, 3]), dict(name='p', kind='picture', png='"><script>')]
    cell = dict(cell_type='code', source='', outputs=[dict(data={'image/png': '"><script>', 'application/vnd.medlearn.kept+json': kept[2]})])
    page = Page(result_page(ROW | dict(kept=kept, methods=[dict(methods=None), {}], claims=[{}]), [cell]))
    assert not page.of('img') and not page.of('script') and 'not known' in page.text and '1 [2, 3]' in page.text
    job = SimpleNamespace(stem='a/b/c', path=tmp_path/'none.ipynb')
    assert write_page(job, ROW | dict(notebook=None), tmp_path)['error'].startswith('the result page could not be written')


def test_verdicts():
    assert 'BROKEN ON PURPOSE' in ' '.join(verdict(ROW | dict(sabotage='leak')))
    assert 'STOPPED' in verdict(ROW | dict(status='timeout', error='ran past its limit'))[0]
    assert told([1, 2]) == '1, 2' and told(dict(a=[.5, .25, .75])) == 'a: 0.5 [0.25, 0.75]' and told(True) == 'True'
    assert told([12841, 12841., .5]) == '12841 [12841, 0.5]' and told(7e-05) == '7e-05'
    assert methods_csv(ROW | dict(data=[dict(name='-cmd', digest='-1.5')])).count("'-") == 2
    kept = lambda text: next(r[3] for r in csv.reader(io.StringIO(methods_csv(ROW | dict(chapter=text)))) if r[1] == 'chapter')
    assert [kept(t) for t in ('-1+cmd|x', '=sum(1)', '@x')] == ["'-1+cmd|x", "'=sum(1)", "'@x"]
    assert [kept(t) for t in ('-1.5', '= 0 ± 0.02', '-0.1 [-0.3, 7.2e-05]', 'a')] == ['-1.5', '= 0 ± 0.02', '-0.1 [-0.3, 7.2e-05]', 'a']


# Parameters that name files

def test_a_text_that_names_a_file_is_its_path(tmp_path):
    (tmp_path/'table.csv').touch()
    (tmp_path/'folder').mkdir()
    (tmp_path/'100.hea').touch()
    got = lambda value, default='': path_or_text('external', value, default, tmp_path)
    here = lambda name: str(tmp_path/name)
    assert [got(v) for v in ('table.csv', './table.csv', 'folder', '100', '100.hea')] == [here(n) for n in ('table.csv', 'table.csv', 'folder', '100', '100.hea')]
    words = ['', 'resnet18', 'account/model-1.5', 'tcp://host:8786', 'Vgg.v2', 'died', 'a sentence. Another']
    assert [got(v) for v in words] == words
    assert got('folder', 'resnet18') == 'folder' and got('./folder', 'resnet18') == here('folder') and got('table.csv', None) == here('table.csv')
    for bad in ('tabel.csv', './x', '../x', 'folder/x', 'a/b/c', '/nowhere/x', '~/nowhere_at_all', 'x\\y', 'scan.nii.gz', 'X.CSV'):
        with pytest.raises(WrongUsage, match='there is no file or folder'): got(bad)


# A chapter of the course

def test_a_model_of_the_course_answers_for_new_pictures(tmp_path, monkeypatch, capsys):
    import numpy as np
    import torch
    from medlearn.imaging.classification import classic_cnn, new_cases
    from medlearn.kit.cards import DataError
    from medlearn.kit.handover import hand_over
    from medlearn.kit.predict import predict_new
    torch.manual_seed(0)
    net = classic_cnn(1, 2)
    config = dict(classes=['no', 'yes'], shape=[28, 28], mean=[100.], std=[50.], multilabel=False, shares=None, temperature=1., mirror=True,
                  grey_too=False, fit='crop', level_width=None)
    monkeypatch.setenv('MEDLEARN_MODEL', str(tmp_path/'run'))
    hand_over(net, 'medlearn.imaging.classification:new_cases', config, dict(n=0))
    x = np.random.default_rng(0).integers(0, 255, (3, 28, 28)).astype(np.uint8)
    np.savez(tmp_path/'new.npz', images=x)
    np.savez(tmp_path/'small.npz', images=x[:, :20, :20])
    refused = medlearn('predict', 'run', 'new.npz', cwd=tmp_path)
    assert refused.returncode == 1 and 'cut off' in refused.stderr
    said = json.loads((tmp_path/'run/model/model.json').read_text())
    (tmp_path/'run/model/model.json').write_text(json.dumps(said | dict(status='passed')))
    capsys.readouterr()
    predict_new(tmp_path/'run/model', [tmp_path/'new.npz'])
    shown = capsys.readouterr()
    assert shown.err == '3 cases; not for clinical use\n'
    rows = list(csv.reader(io.StringIO(shown.out)))
    assert rows[0] == ['id', 'no', 'yes']
    assert np.allclose(np.array(rows[1:])[:, 1:].astype(float), new_cases(net.state_dict(), config, tmp_path/'new.npz'), atol=1e-5)
    with pytest.raises(DataError, match='small.npz: images are .20, 20.'):
        predict_new(tmp_path/'run', [tmp_path/'new.npz', tmp_path/'small.npz'], out=tmp_path/'p.csv')
    assert not (tmp_path/'p.csv').exists()
