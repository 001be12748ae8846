"Budgets: any size of set, ended by validation or by what was allowed, and the reason told"
import numpy as np
import pytest
import torch
from fastai.learner import Learner
from torch import nn

from medlearn.foundations.budget import Budget,batch_for,length_for,train_within
from medlearn.foundations.loading import TensorLoader,TensorLoaders,TensorSet
from medlearn.kit.cards import DataError


def learner(n, noise=False, bs=8):
    torch.manual_seed(0)
    x = torch.randn(n + 64, 4)
    y = torch.randint(0, 2, (len(x),)) if noise else (x[:, 0] > 0).long()
    class Rows(TensorSet):
        "Rows of numbers as they are"
    train,valid = TensorSet(x[:n], y[:n], split_idx=0),TensorSet(x[n:], y[n:])
    dls = TensorLoaders(TensorLoader(train, bs, True), TensorLoader(valid, 64), device='cpu')
    return Learner(dls, nn.Linear(4, 2), loss_func=nn.CrossEntropyLoss())


@pytest.mark.parametrize('n', [9, 64, 3000])
def test_steps_do_not_depend_on_the_size(n):
    learn = train_within(learner(n), Budget(steps=30, checks=3), 1e-2)
    assert learn.spent.steps == 30 and [c['step'] for c in learn.spent.checks] == [10, 20, 30]
    assert len(learn.recorder.losses) == 30
    with learn.no_bar(): assert learn.validate()[0] == pytest.approx(min(c['validation'] for c in learn.spent.checks), abs=1e-6)


def test_the_schedule_goes_up_and_down_over_the_steps():
    learn = train_within(learner(50), Budget(steps=40), 1e-2)
    lrs = learn.recorder.lrs
    assert np.argmax(lrs) == pytest.approx(10, abs=1) and lrs[-1] < lrs[0] < max(lrs) == pytest.approx(1e-2, rel=1e-3)


def test_validation_ends_what_brings_nothing():
    spent = train_within(learner(64, noise=True), Budget(steps=40, cycles=7), 5e-2).spent
    assert spent.finished and spent.steps < Budget(40, 7).most and 'brought nothing' in spent.why
    assert spent.at < spent.steps


def test_a_small_budget_ends_unfinished_and_says_so():
    spent = train_within(learner(500), Budget(steps=20, cycles=2), 1e-2).spent
    assert not spent.finished and spent.steps == 60 and 'unfinished' in spent.why and '60 steps' in spent.why


def test_a_longer_budget_is_never_worse_on_validation():
    one,four = (train_within(learner(40), Budget(steps=30, cycles=k), 1e-1) for k in (1, 4))
    with one.no_bar(), four.no_bar(): assert four.validate()[0] <= one.validate()[0] + 1e-6


def test_seconds_end_a_training():
    spent = train_within(learner(64), Budget(steps=10**7, seconds=.5), 1e-2).spent
    assert spent.steps < 10**6 and 'seconds' in spent.why and not spent.finished


@pytest.mark.parametrize('kw', [dict(steps=0), dict(steps=2.5), dict(steps=5, cycles=0), dict(steps=5, seconds=0), dict(steps=5, seconds=float('nan'))])
def test_a_budget_of_nothing_is_refused(kw):
    with pytest.raises(DataError, match='trains nothing'): Budget(**kw)


@pytest.mark.parametrize('steps', [1, 30, 40, 100, 1000, 12345])
def test_a_reader_sets_the_steps(steps):
    plan = Budget(40, cycles=2).limited(steps)
    assert plan.most == pytest.approx(steps, rel=.05, abs=2)
    assert Budget(40).limited(None) == Budget(40)


@pytest.mark.parametrize('steps', [0, -3, 'many', 1.5])
def test_what_is_no_number_of_steps_is_refused(steps):
    with pytest.raises(DataError, match='whole number'): Budget(40).limited(steps)


def test_no_number_is_told():
    learn = learner(64)
    learn.loss_func = lambda p, y: (p*float('nan')).mean()
    with pytest.raises(DataError, match='never a number'): train_within(learn, Budget(10), 1e-2)


def test_batches_and_lengths_follow_the_set():
    assert [batch_for(n) for n in (3, 200, 400, 1600, 4000, 10**6)] == [8, 8, 8, 32, 64, 128]
    assert length_for([5]*99 + [900]) == 8 and length_for([426]*10) == 432 and length_for([4000]*3) == 512
    with pytest.raises(DataError, match='no sequence'): length_for([])
