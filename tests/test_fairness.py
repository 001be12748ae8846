"Performance by group: against fairlearn and scikit-learn, intervals over persons, and what is refused"
import numpy as np, pandas as pd, pytest
from medlearn.kit.cards import DataError
from medlearn.trust import fairness as F


def cases(n=800, seed=0, k=3):
    "Truth, score and group of simulated persons; the score knows something"
    rng = np.random.default_rng(seed)
    y = rng.random(n) < .3
    p = np.clip(.3 + .25*y + rng.normal(0, .15, n), .01, .99)
    return y, p, rng.integers(0, k, n).astype(str)


@pytest.mark.parametrize('seed', range(4))
def test_gap_is_that_of_fairlearn(seed):
    from fairlearn.metrics import equalized_odds_difference
    y,p,g = cases(seed=seed, k=2 + seed)
    value,low,high = F.odds_gap(y, p > .4, g, draws=100)
    assert value == pytest.approx(equalized_odds_difference(y, p > .4, sensitive_features=g), abs=1e-12)
    assert 0 < low <= high


def test_rates_are_those_of_fairlearn_also_weighted():
    from fairlearn.metrics import MetricFrame,false_positive_rate,true_positive_rate
    y,p,g = cases()
    w = np.random.default_rng(1).integers(0, 3, (1, len(y))).astype(float)
    names,sens,alarms = F.group_rates(y, p > .4, g, w)
    both = dict(tpr=true_positive_rate, fpr=false_positive_rate)
    frame = MetricFrame(metrics=both, y_true=y, y_pred=p > .4, sensitive_features=g, sample_params={k: dict(sample_weight=w[0]) for k in both}).by_group
    assert list(names) == list(frame.index)
    np.testing.assert_allclose(sens[0], frame.tpr), np.testing.assert_allclose(alarms[0], frame.fpr)


def test_figures_by_group_are_those_of_scikit_learn():
    from sklearn.metrics import precision_score,recall_score,roc_auc_score
    y,p,g = cases()
    t = F.by_group(y, p, g, .4, what=('AUROC', 'sensitivity', 'false alarms', 'precision', 'observed - expected'), draws=200)
    for k,at in [(k, g == k) for k in '012'] + [('everyone', g != '')]:
        a,s,c = y[at],p[at],p[at] > .4
        want = roc_auc_score(a, s), recall_score(a, c), recall_score(~a, c), precision_score(a, c), a.mean() - s.mean()
        np.testing.assert_allclose(t.loc[k, ['AUROC', 'sensitivity', 'false alarms', 'precision', 'observed - expected']].astype(float), want, atol=1e-6)
        assert t.persons[k] == at.sum() and t['with the event'][k] == a.sum() and not t.note[k]
        assert t['sensitivity low'][k] < t.sensitivity[k] < t['sensitivity high'][k]


def test_all_found_has_the_exact_bound():
    from scipy.stats import binomtest
    y,p,g = cases()
    at = (g == '0') & y
    p = np.where(at, .99, p)
    t = F.by_group(y, p, g, .4, what=('sensitivity',), draws=100)
    want = binomtest(int(at.sum()), int(at.sum())).proportion_ci()
    assert t.sensitivity['0'] == 1 and t['sensitivity low']['0'] == pytest.approx(want.low) and t['sensitivity high']['0'] == 1


def test_persons_are_drawn_and_counted_not_rows():
    y,p,g = cases(300)
    five = [np.repeat(v, 5) for v in (y, p, g, np.arange(300))]
    rows,persons,plain = (F.by_group(*a, .4, pt, ('sensitivity',), draws=400) for a,pt in ((five[:3], None), (five[:3], five[3]), ((y, p, g), None)))
    width = lambda t: t['sensitivity high'] - t['sensitivity low']
    assert (width(persons) > 1.6*width(rows)).all() and (persons.persons == plain.persons).all()
    np.testing.assert_allclose(width(persons).astype(float), width(plain).astype(float), rtol=.15)


def test_a_small_group_gets_a_sentence_and_no_figure():
    y,p,g = cases()
    g[:12] = 'rare'
    t = F.by_group(y, p, g, .4, draws=50)
    assert np.isnan(t.AUROC['rare']) and np.isnan(t['sensitivity low']['rare']) and t.persons['rare'] == 12
    assert f'{y[:12].sum()} persons with the event' in t.note['rare'] and (t.note.drop('rare') == '').all()
    for f in (F.odds_gap, lambda *a: F.rate_differences(*a, 'rare', '0')):
        with pytest.raises(DataError, match="group 'rare'.*too few for a figure.*Join groups"): f(y, p > .4, g)
    with pytest.raises(DataError, match='no group is large enough'): F.by_group(y, p, g, .4, least=500)


@pytest.mark.parametrize('change, says', [
    (lambda g: g[1:], '800 cases and groups of shape'), (lambda g: np.full(800, 'a'), "all 800 cases are of one group, 'a'"),
    (lambda g: np.where(np.arange(800) == 7, None, g), 'row 7 has no group .1 of 800'), (lambda g: np.where(np.arange(800) < 2, ' ', g), 'row 0 has no group .2 of 800'),
    (lambda g: pd.Series(g).where(np.arange(800) != 3), 'row 3 has no group'), (lambda g: np.arange(800)/7, '800 groups among 800 cases.*Make bands')])
def test_groups_that_cannot_be_compared_are_refused(change, says):
    y,p,g = cases()
    for f in (lambda v: F.by_group(y, p, v), lambda v: F.odds_gap(y, p > .4, v), lambda v: F.who_pays(y, p, v, {'a': .4})):
        with pytest.raises(DataError, match=says): f(change(g))


def test_whole_numbers_name_groups_as_text_does():
    y,p,g = cases()
    assert F.odds_gap(y, p > .4, g.astype(float), draws=20) == F.odds_gap(y, p > .4, g, draws=20)


def test_dealt_anew_there_is_no_difference_but_a_gap():
    y,p,g = cases(2000)
    few = F.gaps_by_chance(y, p > .4, np.where(g == '0', 'a', 'b'), draws=200)
    many = F.gaps_by_chance(y, p > .4, (np.arange(2000) % 8).astype(str), draws=200)
    assert few.min() >= 0 and many.mean() > 1.5*few.mean()
    planted = F.odds_gap(y, (p > .4) & ((g != '0') | (np.arange(2000) % 2 == 0)), g, draws=50)[0]
    assert planted > F.gaps_by_chance(y, (p > .4) & ((g != '0') | (np.arange(2000) % 2 == 0)), g, draws=200).max()
    real = F.odds_gap(y, p > .4, g, draws=50)[0] # groups that mean nothing: the gap is one of those by chance
    assert (F.gaps_by_chance(y, p > .4, g, draws=400) >= real).mean() > .01


def test_groups_are_dealt_among_persons():
    y,p,_ = cases(300)
    who,g = np.repeat(np.arange(150), 2),np.repeat(np.random.default_rng(0).integers(0, 2, 150), 2).astype(str)
    assert np.isfinite(F.gaps_by_chance(y, p > .4, g, who, 50)).all()
    g[1] = '1' if g[0] == '0' else '0'
    with pytest.raises(DataError, match="patient 0 is in '[01]' and in '[01]'"): F.gaps_by_chance(y, p > .4, g, who, 5)


def test_differences_have_a_sign_and_their_intervals_hold_zero_as_often_as_promised():
    held = 0
    for seed in range(100):
        y,p,g = cases(600, seed, 2)
        d = F.rate_differences(y, p > .4, g, '0', '1', draws=200).loc['false alarms']
        held += d.low <= 0 <= d.high
    assert held >= 87 # 95 in the long run
    back = F.rate_differences(y, p > .4, g, '1', '0', draws=200)
    assert back.difference['false alarms'] == pytest.approx(-d.difference)
    with pytest.raises(DataError, match="no case of group 'x'"): F.rate_differences(y, p > .4, g, 'x', '0')


def test_who_pays_counts():
    y,p,g = np.array([1, 1, 0, 0]*5),np.array([.9, .1, .9, .1]*5),np.array(['a']*8 + ['b']*12)
    t = F.who_pays(y, p, g, {'half': .5})
    values = t[['missed', 'called in vain', 'in vain for each found']]
    assert values.loc[('half', 'a')].tolist() == [250, 250, 1] and values.loc[('half', 'b')].tolist() == [250, 250, 1]
    assert (t['missed low'] < 250).all() and (t['missed high'] > 250).all()


@pytest.fixture
def file(tmp_path):
    "A table of one's own with groups"
    rng = np.random.default_rng(0)
    y = rng.random(300) < .4
    t = pd.DataFrame(dict(age=rng.integers(20, 80, 300), lab=y + rng.normal(0, 1, 300), site=rng.choice(['north', 'south'], 300), label=np.where(y, 'ill', 'well')))
    path = tmp_path/'mine.csv'
    t.to_csv(path, index=False)
    return path, t


def test_own_table(file):
    path,t = file
    x,y,who,split,g = F.grouped_table(str(path), 'site')
    assert (y == (t.label == 'ill')).all() and (g == t.site).all() and len({*who}) == 300 and {*split} == {'train', 'valid', 'test'} and 'lab' in x
    with pytest.raises(DataError, match="no column 'ward'; it has age, lab, site, label"): F.grouped_table(path, 'ward')
    with pytest.raises(DataError, match='is the answer'): F.grouped_table(path, 'label')
    with pytest.raises(DataError, match="column 'lab': 300 groups"): F.grouped_table(path, 'lab')


def test_own_table_whose_answers_or_groups_lack(file):
    path,t = file
    t.loc[5, 'label'],t.loc[9, 'site'] = 'unknown',None
    t.to_csv(path, index=False)
    path.with_suffix('.toml').write_text('unknown = "leave out"\n')
    with pytest.raises(DataError, match="column 'site': row 8 has no group"): F.grouped_table(str(path), 'site')
    t.loc[9, 'site'] = 'not recorded'
    t.to_csv(path, index=False)
    *_,g = F.grouped_table(str(path), 'site')
    assert (g == t.site.drop(5)).all()
    t.assign(site='north').to_csv(path, index=False)
    with pytest.raises(DataError, match="one group, 'north'"): F.grouped_table(str(path), 'site')


def test_large_groups():
    y,p,g = cases()
    g[:12] = 'rare'
    at = F.large_groups(y, g)
    assert (at == (g != 'rare')).all() and F.odds_gap(y[at], p[at] > .4, g[at], draws=20)[0] > 0
