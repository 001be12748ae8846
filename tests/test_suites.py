"Suites: the course's own full runs beside what others have published"
import pytest
from medlearn.kit import suites as S
from medlearn.kit.catalog import WrongUsage
from medlearn.kit.figures import RecordError,write_record

RUN = dict(parameters=dict(dataset='breastmnist'), date='2026-12-01', commit='c', device='cpu', processor='p', threads=1, seconds=60, inputs=[], code={}, claims=[])

def table(auroc, low, high): return dict(kind='table', caption='', labels=1, columns=['model', 'AUROC', 'AUROC low', 'AUROC high', 'accuracy'], rows=[['network', auroc, low, high, .8]])

@pytest.fixture
def folder(tmp_path):
    runs = [RUN | dict(seed=s, kept=dict(networks=table(*v))) for s,v in ((1, (.9, .85, .95)), (2, (.8, .7, .9)))]
    write_record(dict(format=1, chapter='imaging/classification', runs=runs, sabotage=[]), tmp_path)
    return tmp_path


def test_ours_stand_beside_the_published(folder):
    t = S.suite_table('medmnist', folder)
    ours = t[t.model == 'network (ours)']
    assert ours.AUROC.tolist() == ['0.850 (0.800 to 0.900) [0.700, 0.950]'] and ours.accuracy.tolist() == ['0.800'] and ours.data.tolist() == ['breastmnist']
    assert t[(t.data == 'breastmnist') & (t.model == 'ResNet-18, 28 pixels')].AUROC.tolist() == ['0.901']
    assert any(line.startswith('pneumoniamnist: no full run') for line in t.attrs['lines'])
    assert any('changed since' in line and 'seeds 1 and 2' in line for line in t.attrs['lines'])


def test_every_suite_can_be_measured_and_shown():
    from medlearn.kit.cards import cards
    for name,suite in S.suites().items():
        jobs = S.suite_jobs(name, (1, 2))
        assert len(jobs) == 2*len(suite['tables']) and all(j.profile == 'full' for j in jobs)
        assert all(t['dataset'] in cards() for t in suite['tables'])
        t = S.suite_table(name)
        assert list(t.columns) == ['data', 'model', *suite['metrics']] and t.attrs['lines']
        ours = t[t.model.str.endswith('(ours)')]
        assert (ours[suite['metrics']] != '').any(axis=1).all(), f'{name}: rows without any figure'


def test_markdown_keeps_its_columns():
    page = S.suites_page()
    for block in page.split('\n\n'):
        if block.startswith('| '): assert len({line.replace('\\|', '').count('|') for line in block.splitlines()}) == 1


@pytest.mark.parametrize('text,said', [
    ('[a]\ntitle = "x"\nmetrics = []\n[[a.tables]]\nchapter = "imaging/classifcation"\nkept = "x"', 'imaging/classification'),
    ('[a]\ntitle = "x"\nmetrics = []\n[[a.tables]]\nchapter = "imaging/classification"\nkeep = "x"', 'a table has keep')])
def test_bad_suites_are_named(tmp_path, text, said):
    (tmp_path/'s.toml').write_text(text)
    with pytest.raises(RecordError, match=said): S.suites(tmp_path/'s.toml')


def test_unknown_suite():
    with pytest.raises(WrongUsage, match="no suite is called 'mednist'; there are medmnist"): S.suite('mednist')


def test_what_is_asked_for():
    assert S.to_fill(name='text', seeds=(1,)) == S.suite_jobs('text', (1,))
    assert {j.chapter for j in S.to_fill(['data/splits'], seeds=(1,))} == {'data/splits'}
    for asked in (dict(), dict(names=['data/splits'], name='text'), dict(name='text', stale=True)):
        with pytest.raises(WrongUsage): S.to_fill(**asked)


def test_command(monkeypatch):
    from typer.testing import CliRunner
    from medlearn.kit import measure as M
    from medlearn.kit.cli import app
    asked = []
    monkeypatch.setattr(M, 'measure', lambda jobs, *a, **kw: asked.extend(jobs) or [])
    end = CliRunner().invoke(app, ['measure', '--suite', 'genes', '--seed', '2'])
    assert end.exit_code == 0, end.output
    assert 'KBANN' in end.output and [(j.chapter, j.seed) for j in asked] == [('molecules/splicing', 2)]
    assert CliRunner().invoke(app, ['measure', '--suite', 'gens']).exit_code == 2
