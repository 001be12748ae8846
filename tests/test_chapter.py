"Repeatable runs and claims that can fail"
import json, math, random, subprocess, sys
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from medlearn.kit import chapter, fetch
from medlearn.kit.chapter import begin, claim, pick, seed_everything, seed_worker


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


@pytest.mark.parametrize('value,kw,passed', [
    (.9, dict(at_least=.8), True), (.7, dict(at_least=.8), False), (.8, dict(at_least=.8), True), (.1, dict(at_most=.2), True),
    (.3, dict(at_most=.2), False), (.5, dict(at_least=.4, at_most=.6), True), (.7, dict(at_least=.4, at_most=.6), False),
    (3, dict(equals=3), True), (3.1, dict(equals=3), False), (3.1, dict(equals=3, tol=.2), True),
    (math.nan, dict(at_least=0), False), (math.nan, dict(equals=0), False), (-math.inf, dict(at_most=1), True)])
def test_a_claim_holds_or_does_not(shown, value, kw, passed):
    assert claim('x', value, source='test', **kw) is passed
    kind,row = shown[0]
    assert kind == 'claim' and row['passed'] is passed
    assert row.keys() == {'claim', 'value', 'low', 'high', 'bound', 'direction', 'source', 'passed'}


def test_an_interval_travels_with_the_value(shown):
    claim('x', (np.float32(.5), .4, .6), at_least=.3, source='test')
    assert (shown[0][1]['value'], shown[0][1]['low'], shown[0][1]['high']) == (.5, .4, .6)


@pytest.mark.parametrize('kw,words', [(dict(source='s'), 'bound that can fail'), (dict(at_least=1), 'source'),
                                      (dict(at_least=1, equals=2, source='s'), 'not both')])
def test_a_claim_that_cannot_fail_is_refused(kw, words):
    with pytest.raises(ValueError, match=words): claim('x', 1, **kw)


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
    code = 'from medlearn.kit.chapter import claim; claim("AUROC", .9, at_least=.8, source="a test")'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == 'holds: AUROC: 0.9 (≥ 0.8) · a test'
