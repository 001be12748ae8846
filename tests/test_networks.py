"Losses, scales and gradients of the chapter on networks, on whatever hypothesis thinks of"
import json,warnings
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch,torch.nn.functional as F
from hypothesis import given,settings,strategies as st
from torch import nn
from medlearn.foundations import networks as N

seeds = st.integers(0, 10**6)
@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)

def quiet(n): return settings(max_examples=n, deadline=None)

@quiet(50)
@given(seed=seeds, gamma=st.floats(0, 5))
def test_focal_loss_is_its_formula(seed, gamma):
    g = torch.Generator().manual_seed(seed)
    z,t = 3*torch.randn(20, generator=g),torch.randint(0, 2, (20,), generator=g).double()
    p = torch.where(t == 1, z.sigmoid(), 1 - z.sigmoid())
    assert torch.allclose(N.focal_loss(z, t, gamma), (-(1 - p)**gamma*p.log()).mean())
    assert torch.allclose(N.focal_loss(z, t, 0), F.binary_cross_entropy_with_logits(z, t))
    assert torch.allclose(N.focal_loss(z, t, gamma, .25), (-(.25*t + .75*(1 - t))*(1 - p)**gamma*p.log()).mean())

@pytest.mark.parametrize('gamma', [0., .5, 1., 2.])
def test_focal_loss_has_a_finite_gradient_at_the_extremes(gamma):
    z = torch.tensor([-800., -40, 0, 40, 800], requires_grad=True)
    loss = N.focal_loss(z, torch.ones(5), gamma)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()

@quiet(40)
@given(seed=seeds, dims=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_dice_loss_of_sure_masks_is_dice(seed, dims):
    g = torch.Generator().manual_seed(seed)
    a,b = (torch.rand(4, *dims, generator=g) < .4 for _ in range(2))
    loss = N.dice_loss(a*2000. - 1000, b, eps=1e-12)
    inter,total = (a & b).flatten(1).sum(1),(a.flatten(1).sum(1) + b.flatten(1).sum(1))
    want = torch.where(total == 0, 1., 2*inter/total.clamp_min(1)).mean()
    assert torch.allclose(loss, 1 - want)
    assert 0 <= N.dice_loss(torch.randn(4, *dims, generator=g), b) <= 1

def test_dice_loss_refuses_another_shape():
    with pytest.raises(ValueError, match=r'\(2, 1, 4, 4\).*\(2, 4, 4\)'): N.dice_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))

def test_standardise_knows_the_training_rows_only():
    x = torch.randn(50, 3)*5 + 7
    x[:, 2] = 4
    z = N.standardise(x.numpy(), range(30))
    assert torch.allclose(z[:30].mean(0), torch.zeros(3), atol=1e-12) and torch.allclose(z[:30, :2].std(0), torch.ones(2)) and (z[:, 2] == 0).all()
    x[30:] *= 100
    assert torch.equal(z[:30], N.standardise(x, list(range(30)))[:30])

def test_standardise_takes_a_table_that_must_not_be_written_to():
    frame = pd.DataFrame(np.arange(12.).reshape(4, 3))
    before = frame.copy()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        N.standardise(frame, range(3))
    assert frame.equals(before)

def test_the_bare_loss_of_wdbc_has_no_minimum_and_the_penalised_one_has():
    from scipy.optimize import linprog
    from scipy.special import expit
    from medlearn.data.records import table,xy
    x,y = xy(table('wdbc'))
    x,sign = N.standardise(x, range(len(y))).numpy(),np.where(y, 1., -1.)
    plane = linprog(np.zeros(31), -sign[:, None]*np.c_[x, np.ones(len(x))], -np.ones(len(x)), bounds=(None, None))
    assert plane.status == 0 # it parts the masses, so that longer weights always lower the loss
    z = np.c_[x, np.ones(len(x))]@plane.x*sign
    loss = lambda k: np.logaddexp(0, -k*z).mean()
    assert (z > 0).all() and loss(1) > loss(2) > loss(4) > loss(8)
    p = expit(x@plane.x[:30])
    curvature = x.T@(x*(p*(1 - p))[:, None])/len(x) + .01*np.eye(30)
    assert np.linalg.eigvalsh(curvature).min() >= .01 - 1e-9

def test_the_suggested_learning_rate_is_used():
    nb = json.loads((Path(__file__).parent.parent/'nbs/foundations/01_networks.ipynb').read_text())
    code = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code')
    assert 'suggested = learn.lr_find()' in code and 'fit_one_cycle(cfg.epochs, suggested.valley)' in code

def test_loaders_bring_each_row_once():
    x,y = torch.arange(20.)[:, None],torch.arange(20.)[:, None]
    dls = N.table_loaders(x, y, range(15), range(15, 20), bs=4)
    got = torch.cat([b[0] for b in dls.train])[:, 0]
    assert sorted(got.tolist()) == list(range(15)) and torch.cat([b[1] for b in dls.valid])[:, 0].tolist() == list(range(15, 20))

def test_grad_norms_in_order():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    assert N.grad_norms(net) == {}
    net(torch.randn(4, 2)).sum().backward()
    assert list(N.grad_norms(net)) == ['0', '2'] and N.grad_norms(net)['2'] == net[2].weight.grad.norm().item()
