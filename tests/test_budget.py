"Budgets: any size of set, ended by validation or by what was allowed, and the reason told"
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from torch import nn

from medlearn.data.folders import picture_folder
from medlearn.data.images import read_npz
from medlearn.foundations.budget import Budget,batch_for,length_for,train_within
from medlearn.foundations.evaluation import auroc,difference,resample
from medlearn.foundations.loading import TensorLoader,TensorLoaders,TensorSet,tensor_loaders
from medlearn.foundations.training import predict,small_cnn
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


shared = Path(__file__).parent.parent.parent/'shared'/'data'

def medmnist(name): return read_npz(shared/name/f'{name}.npz')

def cells(): return picture_folder(shared/'pbc_blood_cells'/'images', side=28)

def made_large():
    "Pictures of pneumonia, each training picture twelve times and each time a little darker: fifty thousand"
    d = medmnist('pneumoniamnist')
    rows = np.r_[np.repeat(np.flatnonzero(d.split == 'train'), 12), np.flatnonzero(d.split != 'train')]
    big = d.take(rows)
    return replace(big, images=(big.images*np.random.default_rng(0).uniform(.9, 1, (len(rows), 1, 1))).astype(np.uint8))

@pytest.mark.parametrize('name,read', [('breastmnist', lambda: medmnist('breastmnist')), ('pneumoniamnist', lambda: medmnist('pneumoniamnist')),
                                       ('pbc_blood_cells', cells), ('pneumoniamnist', made_large)], ids=['few', 'some', 'folder', 'made large'])
def test_a_full_run_is_never_worse_than_a_smoke_run_beyond_its_interval(name, read):
    if not (shared/name).is_dir(): pytest.skip(f'{shared/name} is not there')
    data = read()
    test = data.take(data.split == 'test')
    y = np.eye(len(data.classes), dtype=bool)[test.labels]
    def scores(budget):
        torch.manual_seed(0)
        dls = tensor_loaders(data, bs=batch_for((data.split == 'train').sum()), share_patients=True, device='cpu')
        net = small_cnn(1 if data.images.ndim == 3 else 3, len(data.classes))
        learn = train_within(Learner(dls, net, loss_func=nn.CrossEntropyLoss()), budget, 5e-3)
        return predict(learn, test.images),learn.spent
    (smoke,short),(full,long) = scores(Budget(30)),scores(Budget(30, 2))
    assert long.steps > short.steps == 30
    less = difference(auroc, y, full, smoke, resample(len(test), 500))
    assert less[2] >= 0, f'full less smoke {less}'
