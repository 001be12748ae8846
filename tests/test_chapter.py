"Repeatable runs and claims that can fail"
import json, math, random, subprocess, sys
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from medlearn.kit import chapter, fetch
from medlearn.kit.cards import DataError
from medlearn.kit.chapter import begin,claim,pick,seed_everything,seed_worker


@pytest.fixture
def shown(monkeypatch):
    rows = []
    monkeypatch.setattr(chapter, 'record', lambda kind,payload,*rest: rows.append((kind, json.loads(json.dumps(payload, allow_nan=False)))))
    return rows


def test_pick_chooses_and_refuses():
    assert pick('full', smoke=1, full=2) == 2 and pick('smoke', smoke=dict(a=3), full=dict(a=4)).a == 3
    with pytest.raises(ValueError, match='"smoke" or "full"'): pick('fast', 1, 2)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**40))
def test_one_seed_one_sequence(seed):
    def draw():
        seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()
    assert draw() == draw()


def test_workers_draw_different_numbers():
    class Draw(torch.utils.data.Dataset):
        def __len__(self): return 4
        def __getitem__(self, i): return random.random() + np.random.rand()
    def epoch():
        torch.manual_seed(0)
        return [float(x) for x in torch.utils.data.DataLoader(Draw(), num_workers=2, worker_init_fn=seed_worker, batch_size=None)]
    first = epoch()
    assert first == epoch() and len(set(first)) == 4


HERE = dict(source='definition: a test')
ALONE = dict(by='value', why='a test')


@pytest.mark.parametrize('value,kw,passed', [
    ((.9, .8, 1), dict(at_least=.8), True), ((.9, .79, 1), dict(at_least=.8), False), ((.1, 0, .2), dict(at_most=.2), True),
    ((.1, 0, .21), dict(at_most=.2), False), ((.5, .4, .6), dict(at_least=.4, at_most=.6), True),
    ((.5, .3, .6), dict(at_least=.4, at_most=.6), False), ((.5, .4, .7), dict(at_least=.4, at_most=.6), False),
    ((0, -.01, .01), dict(equals=0, tol=.02), True), ((0, -.03, .01), dict(equals=0, tol=.02), False),
    ((-.01, -.02, .01), dict(at_least=0, margin=.03, why='small'), True), ((-.01, -.04, .01), dict(at_least=0, margin=.03, why='small'), False),
    ((.01, -.02, .04), dict(at_most=0, margin=.03, why='small'), False), ((.01, -.02, .03), dict(at_most=0, margin=.03, why='small'), True),
    ((.9, .7, 1), dict(at_least=.8, **ALONE), True), ((.7, .6, .9), dict(at_least=.8, **ALONE), False),
    (3, dict(equals=3), True), (3.1, dict(equals=3), False), (3.1, dict(equals=3, tol=.2), True), (1e-9, dict(at_most=1e-6), True),
    ((math.nan,)*3, dict(at_least=0), False), (math.nan, dict(equals=0), False), ((.5, math.nan, math.nan), dict(at_least=0), False),
    (-math.inf, dict(at_most=1), True)])
def test_a_claim_holds_or_does_not(shown, value, kw, passed):
    assert claim('x', value, **HERE, **kw) is passed
    kind,row = shown[0]
    assert kind == 'claim' and row['passed'] is passed and row['by'] == ('value' if 'by' in kw or not isinstance(value, tuple) else 'interval')
    assert row.keys() == {'claim', 'value', 'low', 'high', 'bound', 'direction', 'tol', 'margin', 'by', 'why', 'source', 'passed'}


@settings(max_examples=200, deadline=None)
@given(st.floats(-2, 2), st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1))
def test_a_claim_by_its_interval_is_never_easier_than_by_its_value(value, below, above, bound):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, 'record', lambda *a: None)
        for kw in (dict(at_least=bound), dict(at_most=bound), dict(equals=bound, tol=.5)):
            whole = claim('x', (value, value - below, value + above), **HERE, **kw)
            assert not whole or claim('x', value, **HERE, **kw, **ALONE)


def test_an_interval_travels_with_the_value(shown):
    claim('x', (np.float32(.5), .4, .6), at_least=.3, **HERE)
    assert (shown[0][1]['value'], shown[0][1]['low'], shown[0][1]['high']) == (.5, .4, .6)


@pytest.mark.parametrize('kw,words', [
    (dict(source='definition'), 'bound that can fail'), (dict(at_least=1), 'where the bound comes from'),
    (dict(at_least=1, equals=2, **HERE), 'not both'), (dict(at_least=1, **HERE), 'why the point is enough'),
    (dict(at_least=1, by='value', **HERE), 'needs its reason'), (dict(at_least=1, margin=.1, **HERE), 'a margin needs its reason'),
    (dict(at_least=1, margin=-.1, why='w', **HERE), '0 or more'), (dict(equals=1, margin=.1, why='w', **HERE), 'one bound'),
    (dict(at_least=1, by='point', why='w', **HERE), 'say "value"')])
def test_a_claim_that_cannot_fail_is_refused(kw, words):
    with pytest.raises(ValueError, match=words): claim('x', 1, **kw)


@pytest.mark.parametrize('source', ['the aim of this course', 'our goal', 'chance with a margin', 'above', 'this chapter', 'Yang et al. 2023',
                                    'card: no_such_card', 'here: never kept', '', None, 'a number of 2021'])
def test_a_source_that_is_none(source):
    chapter._named.clear()
    with pytest.raises(ValueError, match="claim 'x'"): claim('x', 1, equals=1, source=source)


@pytest.mark.parametrize('source', ['definition', 'definition: a count', 'card: lidc_nodules', 'Wiener et al., Annals 155:137, 2011',
                                    'Yang et al., Table 3, 2023', 'He et al., Proceedings of CVPR, 2016', 'Smith, arXiv:1803.09820, 2018'])
def test_a_source_that_is_one(shown, source): assert claim('x', (1, 1, 1), equals=1, source=source)


def test_a_value_of_this_chapter_is_named_before_it_is_a_source(shown):
    import pandas as pd
    chapter._named.clear()
    with pytest.raises(ValueError, match='nearest: nothing'): claim('x', (1, 1, 1), at_least=0, source='here: area alone')
    chapter.keep('models', pd.DataFrame(dict(AUROC=[.8, .9]), index=['area alone', 'network']))
    assert claim('gain', (1, 1, 1), at_least=0, source='here: area alone')
    assert claim('y', (1, 1, 1), at_least=0, source='here: gain, plus nothing')
    with pytest.raises(ValueError, match='nearest: area alone'): claim('x', (1, 1, 1), at_least=0, source='here: area aloan')


# Kept results

def kept(shown, value, **kw):
    chapter.keep('x', value, **kw)
    return shown[-1][1]


def test_tables_numbers_and_pictures_are_kept(shown):
    import matplotlib.pyplot as plt, pandas as pd
    t = kept(shown, pd.DataFrame(dict(a=[1, None], b=['x', 'y']), index=pd.Index([3, 4], name='k')))
    assert (t['labels'], t['columns'], t['rows']) == (1, ['k', 'a', 'b'], [[3, 1, 'x'], [4, None, 'y']])
    assert kept(shown, pd.DataFrame(dict(a=[1.])))['labels'] == 0
    two = pd.DataFrame(dict(a=[1, 2]), index=pd.MultiIndex.from_tuples([('p', 1), ('q', 2)], names=['s', 't']))
    assert kept(shown, two)['rows'] == [['p', 1, 1], ['q', 2, 2]] and kept(shown, two)['labels'] == 2
    assert kept(shown, pd.Series([1., 2.], index=['a', 'b']))['columns'] == ['', 'value']
    assert kept(shown, (.5, .4, np.float32(.6)))['value'] == [.5, .4, .6] and kept(shown, 1/3)['value'] == .333333
    fig, ax = plt.subplots(figsize=(1, 1))
    assert kept(shown, fig)['png'].startswith('iVBOR')
    plt.close(fig)


@pytest.mark.parametrize('value,words', [([1], 'list is no number'), (object(), 'object is no number'), (1j, 'complex'), ({'a': 1}, 'dict')])
def test_what_is_no_number_and_no_text_is_not_kept(value, words):
    import pandas as pd
    with pytest.raises(ValueError, match=f"keep 'x'.*{words}"): chapter.keep('x', value)
    with pytest.raises(ValueError, match="row ., column 'a'"): chapter.keep('x', pd.DataFrame(dict(a=[1, value])))


def test_two_results_with_one_name(shown, monkeypatch):
    chapter._kept.clear()
    chapter.keep('twice', 1)
    chapter.keep('twice', 2)
    monkeypatch.setenv('MEDLEARN_JOB', '/x')
    with pytest.raises(ValueError, match="'twice': two results"): chapter.keep('twice', 3)


# Sentences

def test_the_sentence_that_the_interval_supports():
    told = lambda d,**kw: str(chapter.says(d, 'better {d}', 'worse {d}', 'open', 'cannot', **kw))
    assert told((.1, .01, .2)) == 'better +0.100 [+0.010, +0.200]' and told((-.1, -.2, -.01)).startswith('worse')
    assert told((.1, -.01, .2)) == 'open' == told((.1, 0, .2)) and told((.6, .55, .7), than=.5).startswith('better')
    assert told(None) == told((math.nan, 0, 1)) == 'cannot'


# Sabotage

def test_an_honest_run_keeps_its_answers():
    y = np.arange(5)
    assert chapter.answers(y) is y and chapter.sabotage() == ''


@pytest.mark.parametrize('kind', ['array', 'two columns', 'tensor', 'list', 'column', 'frame'])
def test_sabotage_shuffles_the_answers_of_the_rows_that_train(shown, monkeypatch, kind):
    import pandas as pd
    monkeypatch.setenv('MEDLEARN_SABOTAGE', 'answers')
    y = np.arange(100)
    made = dict(zip(['array', 'two columns', 'tensor', 'list', 'column', 'frame'],
                    [y, np.c_[y, y], torch.arange(100), list(y), pd.Series(y, index=y + 7), pd.DataFrame(dict(a=y, b=y))]))[kind]
    rows = y < 80
    got = chapter.answers(made, at=rows)
    assert type(got) is type(made) and len(got) == 100
    flat = np.asarray(got).reshape(100, -1)
    assert (flat[80:, 0] == y[80:]).all() and sorted(flat[:80, 0]) == list(y[:80]) and (flat[:80, 0] != y[:80]).mean() > .8
    assert (flat == flat[:, :1]).all() and shown[-1] == ('sabotage', dict(kind='answers', rows=80))
    if kind in ('column', 'frame'): assert list(got.index) == list(made.index)


def test_an_unknown_sabotage(monkeypatch):
    monkeypatch.setenv('MEDLEARN_SABOTAGE', 'labels')
    with pytest.raises(ValueError, match='answers, untrained, leak'): begin('smoke', 1)


def test_untrained_no_optimiser_takes_a_step():
    code = """
import torch
from medlearn.kit.chapter import begin
begin('smoke', 1)
from fastai.optimizer import Adam
p = torch.nn.Parameter(torch.ones(3))
for opt in (torch.optim.SGD([p], lr=1.), torch.optim.AdamW([p], lr=1.), Adam([p], lr=1.)):
    p.sum().backward()
    opt.step()
print(p.tolist())"""
    import os
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(MEDLEARN_SABOTAGE='untrained'))
    assert done.stdout.splitlines()[-1] == '[1.0, 1.0, 1.0]', done.stderr


def test_leak_the_split_ignores_patients(monkeypatch):
    from medlearn.data.splits import check_leak,split_by_group
    groups = np.repeat(np.arange(30), 4)
    honest = split_by_group(groups, groups % 2)
    monkeypatch.setenv('MEDLEARN_SABOTAGE', 'leak')
    torn = split_by_group(groups, groups % 2)
    assert check_leak(torn, groups) == 30
    monkeypatch.delenv('MEDLEARN_SABOTAGE')
    assert check_leak(honest, groups) == 30
    with pytest.raises(DataError, match='is in'): check_leak(torn, groups)


def test_begin_records_the_run_and_the_data_read_after_it(shown, monkeypatch):
    monkeypatch.setattr(fetch, 'seen', [])
    monkeypatch.setattr(fetch, 'on_use', [])
    env = begin('smoke', seed=5)
    begin('smoke', seed=5)
    fetch.used('mine.npz', 'sha256:' + 'a'*64)
    kinds = [kind for kind,_ in shown]
    assert kinds == ['run', 'run', 'data'] and shown[2][1] == dict(name='mine.npz', digest='sha256:' + 'a'*64)
    assert env.device in ('cpu', 'cuda', 'mps') and shown[0][1]['seed'] == 5 and 'torch' in shown[0][1]['versions']
    assert torch.are_deterministic_algorithms_enabled()


def test_outside_a_notebook_a_claim_is_a_line_of_text():
    code = 'from medlearn.kit.chapter import claim; claim("AUROC", (.9, .85, .95), at_least=.8, source="definition: a test")'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == 'holds: AUROC: 0.9 [0.85, 0.95] (≥ 0.8) · definition: a test'
