"Thresholds from costs, alarms with silent windows, and when a model is switched off"
import numpy as np, pytest
from scipy.stats import chi2

from medlearn.foundations.calibration import net_benefit
from medlearn.kit.cards import DataError
from medlearn.trust.oversight import alarms, burden, clinic_sheet, cut_from_harm, rules, watch


def test_a_threshold_balances_the_harms():
    for m in (.5, 1, 9, 50): assert cut_from_harm(m)*m == pytest.approx(1 - cut_from_harm(m))
    for m in (0, -1, np.inf):
        with pytest.raises(DataError, match='above 0'): cut_from_harm(m)


def by_hand(patient, day, p, cut, silent):
    rings = np.zeros(len(p), bool)
    for one in set(patient):
        last = -np.inf
        for i in sorted(np.flatnonzero(patient == one), key=lambda i: day[i]):
            if p[i] > cut and day[i] - last > silent: rings[i], last = True, day[i]
    return rings


@pytest.mark.parametrize('silent', [0, 30, 200, 10_000])
def test_alarms_against_a_count_by_hand(silent):
    rng = np.random.default_rng(0)
    patient, day, p = rng.integers(0, 20, 300), rng.permutation(3000)[:300], rng.random(300)
    rings = alarms(patient, day, p, .4, silent)
    assert (rings == by_hand(patient, day, p, .4, silent)).all() and not rings[p <= .4].any()
    if silent == 0: assert (rings == (p > .4)).all()
    if silent == 10_000: assert rings.sum() == len(set(patient[p > .4]))


def test_the_burden_is_counted():
    patient, day = np.array(['a', 'a', 'b', 'b']), np.array([0, 365.25 - 365 + 365, 0, 100])
    y, rings = np.array([True, True, False, True]), np.array([True, True, True, False])
    told = burden(patient, day, y, rings)
    assert told['bells'] == 3 and told['right'] == pytest.approx(2/3) and told['again for the same patient'] == 1
    assert told['people with the event'] == 2 and told['of whom it rang for'] == 1
    years = (np.ptp(day[:2]) + 365 + 100 + 365)/365.25
    assert told['a day, 1,000 patients'] == pytest.approx(3/years*1000/365.25)
    assert np.isnan(burden(patient, day, y, np.zeros(4, bool))['right'])


def test_what_is_no_alarm_is_refused():
    with pytest.raises(DataError, match='silent'): alarms([1], [0], [.5], .1, -1)
    with pytest.raises(DataError, match='risk'): alarms([1, 2], [0, 1], [.5, np.nan], .1)
    with pytest.raises(ValueError): alarms([1, 2], [0], [.5, .5], .1)
    with pytest.raises(DataError, match='probabilities'): watch([0, 1], [2., .5], [1, 2], .1, .5)


def cases(n=2000, factor=1., seed=0):
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 6, n)
    return rng.random(n) < np.clip(factor*p, 0, 1), p, np.arange(n)


def test_watch_is_quiet_where_all_is_well_and_counts_its_false_alarms():
    stopped = [bool(watch(*cases(400, seed=s), .1, .6)['switch off']) for s in range(40)]
    assert sum(stopped) <= 2


def test_watch_says_why():
    y, p, who = cases()
    assert 'events came' in watch(*cases(factor=3), .1, .6)['switch off']
    assert 'rings at' in watch(y, p, who, .1, .1)['switch off']
    assert 'net benefit' in watch(y, 1 - p, who, .5, 1.)['switch off']
    told = watch(y, p, who, .1, .6)
    n = y.sum()
    assert (told['low'], told['high']) == pytest.approx((chi2.ppf(.005, 2*n)/2/p.sum(), chi2.ppf(.995, 2*n + 2)/2/p.sum()))
    best = max(0, net_benefit(y, np.ones(len(y)), .1)[0, 0])
    assert told['net benefit gained'] == pytest.approx(net_benefit(y, p, .1)[0, 0] - best)
    assert watch(np.r_[np.ones(3), np.zeros(30)], np.full(33, .9), np.arange(33), .1, 1.)['switch off'] == ''


def test_a_clinic_gets_a_page_with_an_end():
    text = clinic_sheet('a', 'b', 'c', .1, 9, dict(bells=3, right=float('nan')), ['it errs'])
    assert 'Not for clinical use' in text and 'it errs' in text and 'not known' in text and 'nobody was named' in text
    with pytest.raises(DataError, match='its end'): clinic_sheet('a', 'b', 'c', .1, 9, {}, [])


def test_each_rule_has_its_source_and_date():
    assert rules()['source and date'].str.contains(r'\b20\d\d\b').all() and len(rules()) >= 5
