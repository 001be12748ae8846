"Decisions, weights and cuts of groups: against references, and what is refused"
import numpy as np, pandas as pd, pytest
from medlearn.foundations.calibration import net_benefit
from medlearn.kit.cards import DataError
from medlearn.trust import mitigation as M


def cases(n=1200, seed=0):
    "Truth, probability and group of simulated persons; base rates differ"
    rng = np.random.default_rng(seed)
    g = rng.choice(['a', 'b'], n)
    p = np.clip(rng.beta(2, 6, n) + .15*(g == 'b'), .01, .99)
    return rng.random(n) < p, p, g


def test_benefit_is_that_of_calibration():
    y,p,_ = cases()
    w = np.random.default_rng(1).integers(0, 3, (5, len(y))).astype(float)
    for t in (.1, .3):
        assert M.decision_benefit(y, p >= t, t)[0] == pytest.approx(1000*net_benefit(y, p, t)[0, 0])
        np.testing.assert_allclose(M.decision_benefit(y, p >= t, t, w), 1000*net_benefit(y, p, t, w)[:, 0])


def test_rates_are_those_of_scikit_learn_and_chances_are_their_mean():
    from sklearn.metrics import precision_score,recall_score
    y,p,_ = cases()
    one,two = p > .3,p > .4
    r = M.error_rates(y, one)
    assert r['sensitivity'][0] == pytest.approx(recall_score(y, one)) and r['false alarms'][0] == pytest.approx(recall_score(~y, one)) and r['precision'][0] == pytest.approx(precision_score(y, one))
    mixed,other = M.error_rates(y, (one*1. + two)/2),M.error_rates(y, two)
    assert mixed['sensitivity'][0] == pytest.approx((r['sensitivity'][0] + other['sensitivity'][0])/2)


def test_gaps_are_those_of_fairlearn():
    from fairlearn.metrics import equalized_odds_difference
    y,p,g = cases()
    t = M.trade_table(y, {'x': p > .3, 'none': np.zeros(len(y))}, g, 'b', 'a', .3, draws=100)
    want = equalized_odds_difference(y, p > .3, sensitive_features=g)
    assert t.loc['x', ['sensitivity apart', 'false alarms apart']].abs().max() == pytest.approx(want)
    assert (t.loc['none', ['net benefit', 'sensitivity apart', 'called']] == 0).all()
    assert (t['false alarms apart low'] <= t['false alarms apart']).all() and t.loc['x', 'false alarms apart low'] < t.loc['x', 'false alarms apart high']


def test_whole_persons_are_drawn():
    y,p,g = cases(300)
    many = [np.repeat(v, 5) for v in (y, p > .3, g, np.arange(300))]
    rows,persons = (M.trade_table(many[0], {'x': many[1]}, many[2], 'b', 'a', .3, who, draws=300) for who in (None, many[3]))
    width = lambda t: (t['false alarms apart high'] - t['false alarms apart low']).iloc[0]
    assert width(persons) > 1.6*width(rows)


def test_weights_make_answer_and_group_independent():
    y,_,g = cases()
    w = M.reweigh(y, g)
    rate = lambda m: (w*y)[m].sum()/w[m].sum()
    assert w.mean() == pytest.approx(1) and rate(g == 'a') == pytest.approx(rate(g == 'b')) == pytest.approx(y.mean())
    n = ((g == 'a') & y).sum()
    assert w[(g == 'a') & y][0] == pytest.approx((g == 'a').mean()*y.mean()/(n/len(y)))
    with pytest.raises(DataError, match="group 'a' has no case with the event"): M.reweigh(y[~y | (g == 'b')], g[~y | (g == 'b')])
    with pytest.raises(DataError, match="one group, 'a'"): M.reweigh(y[g == 'a'], g[g == 'a'])


@pytest.mark.parametrize('among', ['false alarms', 'sensitivity'])
def test_own_cuts_give_all_groups_one_rate(among):
    y,p,g = cases()
    cuts = M.group_cuts(y, p, g, .3, among)
    called = M.above_own_cut(p, g, cuts)
    for k in 'ab':
        m = (g == k) & (y if among == 'sensitivity' else ~y)
        assert abs(called[m].mean() - .3) <= 1/m.sum()
    assert cuts['b'] > cuts['a']


def test_cuts_are_refused_where_they_cannot_be_set_or_used():
    y,p,g = cases()
    g = g.astype(object)
    g[:5] = 'rare'
    with pytest.raises(DataError, match="group 'rare': .* are wanted to set a cut"): M.group_cuts(y, p, g, .3)
    with pytest.raises(DataError, match="group 'rare': .*too few for an interval"): M.trade_table(y, {'x': p > .3}, g, 'rare', 'a', .3)
    with pytest.raises(DataError, match="row 0: group 'rare' has no cut; there are a, b .5 such rows"): M.above_own_cut(p, g, dict(a=.2, b=.3))
    with pytest.raises(DataError, match='rate 1'): M.group_cuts(y, p, g, 1.)
    with pytest.raises(ValueError, match='among'): M.group_cuts(y, p, g, .3, 'both')


@pytest.mark.parametrize('call, says', [
    (lambda y, p, g: M.trade_table(y, {'x': p > .3}, g[1:], 'a', 'b', .3), '1200 cases and groups of shape'),
    (lambda y, p, g: M.reweigh(y, np.where(np.arange(1200) == 3, None, g)), 'row 3 has no group .1 of 1200'),
    (lambda y, p, g: M.decision_benefit(y, p*3, .3), 'Compare risks with a threshold first'),
    (lambda y, p, g: M.decision_benefit(y, p[1:], .3), 'one of each a case'), (lambda y, p, g: M.decision_benefit(y, p > .3, 1.2), 'threshold probability 1.2')])
def test_what_is_no_decision_is_refused(call, says):
    with pytest.raises(DataError, match=says): call(*cases())


@pytest.mark.parametrize('seed', range(3))
def test_three_rates_are_tied(seed):
    y,p,_ = cases(seed=seed)
    r = {k: v[0] for k,v in M.error_rates(y, p > .35).items()}
    assert M.tied_false_alarms(y.mean(), r['precision'], r['sensitivity']) == pytest.approx(r['false alarms'], abs=1e-12)


def test_rates_that_do_not_go_together_are_refused():
    with pytest.raises(DataError, match='do not go together'): M.tied_false_alarms(.5, .1, .9)
    with pytest.raises(DataError, match='base rate 1'): M.tied_false_alarms(1., .5, .5)
