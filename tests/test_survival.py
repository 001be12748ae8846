"Curves from a network: competing hazards against Aalen-Johansen and the loss of one event, training, and a folder of one's own"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from medlearn.foundations.budget import Budget
from medlearn.foundations.calibration import concordance
from medlearn.foundations.censoring import aalen_johansen, hazard_loss, intervals, survival
from medlearn.kit.cards import DataError
from medlearn.sequences import survival as M

EDGES = np.arange(1, 6)*100


def study(n, seed=0):
    "Made-up people: one column that hastens the first event, the second whenever it comes"
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    one, two, left = rng.exponential(600*np.exp(-1.5*x[:, 0])), rng.exponential(1500, n), rng.uniform(50, 900, n)
    t = np.minimum.reduce([one, two, left, np.full(n, 500.)])
    return x, t, np.where(t == one, 1, np.where(t == two, 2, 0))


@given(st.lists(st.tuples(st.floats(.5, 700), st.integers(0, 2)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_questions(rows):
    t, c = map(np.array, zip(*rows))
    came, seen = M.cause_intervals(t, c, EDGES, 2)
    assert (came.sum((1, 2)) == ((c > 0) & (t <= 500))).all() and (came.max(-1) <= seen).all() and (np.diff(seen) <= 0).all()
    died, asked = intervals(t, c == 1, EDGES)
    one, through = M.cause_intervals(t, c, EDGES)
    assert np.array_equal(one[..., 0], died) and np.array_equal(through, asked)


def test_one_event_is_the_loss_and_the_curve_of_hazards():
    x, t, c = study(50)
    came, seen = (torch.tensor(a) for a in M.cause_intervals(t, c, EDGES))
    z = torch.randn(50, 5, 1, generator=torch.Generator().manual_seed(0))
    assert torch.isclose(M.cause_loss(z, came, seen), hazard_loss(z[..., 0], came[..., 0], seen))
    F, free = M.incidence(z.numpy())
    assert np.allclose(free, survival(z[..., 0].double().numpy())) and np.allclose(F[:, 0] + free, 1)


def test_shares_add_up_and_large_numbers_do_not_overflow():
    z = 300*np.random.default_rng(0).normal(size=(20, 4, 3))
    F, free = M.incidence(z)
    assert np.isfinite(F).all() and np.allclose(F.sum(1) + free, 1) and (np.diff(F, axis=-1) >= 0).all()


def test_base_rates_are_aalen_johansen():
    x, t, c = study(4000)
    edges = np.arange(1, 51)*10
    came, seen = M.cause_intervals(t, c, edges, 2)
    rate = came.sum(0)/seen.sum(0)[:, None]
    F, _ = M.incidence(np.log(rate/(1 - rate.sum(1, keepdims=True)))[None])
    assert np.abs(F[0] - aalen_johansen(t, c, edges)[0]).max() < .01


def test_learns_which_event_comes_to_whom():
    parts = [(x, *M.cause_intervals(t, c, EDGES, 2)) for x, t, c in (study(2000), study(500, 1))]
    torch.manual_seed(0)
    net = M.fit_hazards(M.HazardNet(3, 5, 2, 16), *parts, Budget(250))
    x, t, c = study(1000, 2)
    F, _ = M.incidence(M.log_odds(net, x))
    assert concordance(t, F[:, 0, -1], event=c == 1)[0] > .75
    assert abs(F[:, 0, -1].mean() - aalen_johansen(t, c, 500)[0, 0, 0]) < .05 and abs(F[:, 1, -1].mean() - aalen_johansen(t, c, 500)[0, 1, 0]) < .05
    torch.manual_seed(0)
    again = M.fit_hazards(M.HazardNet(3, 5, 2, 16), *parts, Budget(250))
    assert np.array_equal(M.log_odds(net, x), M.log_odds(again, x))


def test_untrained_it_says_the_base_rate():
    x, t, c = study(500)
    part = (x, *M.cause_intervals(t, c, EDGES, 2))
    torch.manual_seed(0)
    net = M.fit_hazards(M.HazardNet(3, 5, 2), part, part, Budget(2), lr=0.)
    came, seen = part[1:]
    rate = came.sum(0)/seen.sum(0)[:, None]
    assert np.allclose(M.log_odds(net, x).mean(0), np.log(rate/(1 - rate.sum(1, keepdims=True))), atol=.1)
    with pytest.raises(DataError, match='no row'): M.fit_hazards(net, tuple(a[:0] for a in part), part)


def test_a_folder_of_ones_own(tmp_path):
    from medlearn.kit import runner
    x, t, c = study(240)
    rows = ['id,time,variable,value'] + [f'p{i},{-d},{v},{x[i, j] + .1*d:.3f}' for i in range(240) for j, v in enumerate('ab') for d in (3, 0)]
    out = ['id,label,time'] + [f'p{i},{"ill" if c[i] == 1 else "a well"},{t[i] + 1:.1f}' for i in range(240)]
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'measurements.csv').write_text('\n'.join(rows) + '\n')
    (tmp_path/'mine'/'outcomes.csv').write_text('\n'.join(out) + '\n')
    row = runner.run(runner.plan(['sequences/survival'], 'smoke', (), dict(dataset=str(tmp_path/'mine'))), tmp_path/'out')[0]
    assert row['status'] == 'passed', row
