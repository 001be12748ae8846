"Every exported metric: what cannot be judged is refused and the case named, or has its documented value; never a plausible number"
import importlib, inspect, itertools, math
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn import metrics as sk

from medlearn.data.masks import MaskSet
from medlearn.foundations import evaluation as E
from medlearn.foundations import agreement as Agreement
from medlearn.foundations import calibration as Calibration
from medlearn.kit.cards import DataError

REFUSED = DataError, ValueError
N, K, B = 24, 3, 20
seeds = settings(max_examples=4, deadline=None), given(seed=st.integers(0, 2**20))


def tried(test):
    for mark in seeds[::-1]: test = mark(test)
    return test


# What an argument can hold, and what can be wrong with it

GOOD = {
    'truth': lambda rng: np.r_[True, False, True, False, rng.random(N - 4) < .5],
    'score': lambda rng: rng.normal(size=N),
    'prob': lambda rng: rng.random(N),
    'time': lambda rng: rng.exponential(size=N),
    'weights': lambda rng: E.resample(N, B),
    'truth, k': lambda rng: np.arange(N)[:, None] % K == np.arange(K),
    'called, k': lambda rng: rng.random((N, K)) < .5,
    'prob, k': lambda rng: rng.random((N, K)),
    'masks': lambda rng: rng.random((N, 6, 6)) < .5,
    'mask': lambda rng: np.pad(rng.random((N, 6)) < .5, 1, constant_values=True),
    'corners': lambda rng: (low := rng.random((N, 2)), np.c_[low, low + 1])[1],
}
NUMBER = {'nan', 'inf', '-inf'}
WRONG = {k: NUMBER for k in ('weights', 'corners')} | {k: NUMBER | {'short'} for k in ('score', 'prob', 'time', 'prob, k')} | {
    'masks': {'nan', 'short'}, 'truth': NUMBER | {'two', 'none', 'all', 'short'}} | {
    k: NUMBER | {'two', 'short'} for k in ('mask', 'called, k')} | {'truth, k': NUMBER | {'two', 'none', 'all', 'short'}}


def spoil(v, wrong, rng):
    "An argument with something wrong, and what the message has to say"
    at = int(rng.integers(len(v)))
    place = rf'\b(row|mask|image) {at}\b'
    if wrong == 'none': return v & False, 'no positive|0 positive|known order'
    if wrong == 'all': return v | True, 'no negative|0 negative'
    if wrong == 'short': return v[:-1], 'alike|as many|for|weights'
    if wrong == 'two':
        v = v*1
        v[at] = 2
        return v, place
    v = v.astype(float)
    v[at] = float(wrong)
    return v, place


# How each metric is called, and what it takes

S, P, TWO = dict(y='truth', score='score', w='weights'), dict(y='truth', p='prob', w='weights'), dict(y='truth', a='score', b='score')
BOXES = dict(truth='corners', boxes='corners', score='score')


def each(v): return list(np.asarray(v)[:, None])


def judged(y, p):
    data = SimpleNamespace(labels=y, classes=['mass', 'nodule', 'effusion'], groups=np.arange(len(y)), multilabel=True)
    return E.Judge(data, 5).report(p)


METRICS = dict(
    rates=(E.rates, {'y': 'truth, k', 'called': 'called, k', 'w': 'weights'}),
    auroc=(E.auroc, S), average_precision=(E.average_precision, S),
    plot_roc=(lambda y, score: E.plot_roc({'model': (y, score)}), dict(y='truth', score='score')),
    estimate=(lambda **a: E.estimate(E.auroc, **a), S),
    mean_interval=(E.mean_interval, dict(v='score')),
    difference=(lambda **a: E.difference(E.auroc, **a), TWO | dict(w='weights')),
    delong=(E.delong, TWO),
    cut_for=(E.cut_for, dict(y='truth', score='score')),
    Judge=(judged, {'y': 'truth, k', 'p': 'prob, k'}),
    brier=(Calibration.brier, P), ece=(Calibration.ece, P),
    plot_reliability=(lambda y, p, w: Calibration.plot_reliability({'model': (y, p)}, w), P),
    net_benefit=(lambda y, p, w: Calibration.net_benefit(y, p, [.2, .4], w), P),
    plot_decision=(lambda y, p: Calibration.plot_decision({'model': (y, p)}), dict(y='truth', p='prob')),
    dice=(Agreement.dice, dict(pred='masks', targ='masks')), iou=(Agreement.iou, dict(pred='masks', targ='masks')),
    hausdorff95=(Agreement.hausdorff95, dict(pred='mask', targ='mask')),
    limits_of_agreement=(Agreement.limits_of_agreement, dict(reference='score', found='score')),
    plot_bland_altman=(Agreement.plot_bland_altman, dict(reference='score', found='score')),
    box_iou=(Agreement.box_iou, dict(a='corners', b='corners')),
    box_ap=(lambda truth, boxes, score: Agreement.box_ap(each(truth), each(boxes), each(score)), BOXES),
    mean_ap=(lambda truth, boxes, score: Agreement.mean_ap([(t, [0]) for t in each(truth)], [(b, [0], s) for b,s in itertools.zip_longest(each(boxes), each(score), fillvalue=[])]), BOXES),
    concordance=(Calibration.concordance, dict(time='time', score='score', w='weights', event='truth')),
)
NO_METRICS = {'fit_suspicious', 'match_boxes', 'resample', 'interval_table', 'as_numbers', 'as_truth', 'as_weights', 'check_alike', 'check_scores'} # a model, matches (test_detection), patients, tables, and the checks themselves
VALUES = { # what is no fault, and has a value
    ('rates', 'y', 'none'): lambda v: np.isnan(v['sensitivity']).all() and np.isfinite(v['accuracy']).all(),
    ('rates', 'y', 'all'): lambda v: np.isnan(v['specificity']).all() and np.isfinite(v['accuracy']).all(),
    ('concordance', 'event', 'all'): lambda v: np.isfinite(v).all(),
    ('mean_interval', 'v', 'nan'): lambda v: np.isfinite(v).all(),
    ('mean_interval', 'v', 'short'): lambda v: np.isfinite(v).all(),
}


def test_no_exported_metric_is_forgotten():
    assert {*E.__all__, *Calibration.__all__, *Agreement.__all__} - NO_METRICS == set(METRICS)


@pytest.mark.parametrize('name', METRICS)
@tried
def test_valid_input_is_judged(name, seed):
    call, takes = METRICS[name]
    rng = np.random.default_rng(seed)
    got = call(**{n: GOOD[k](rng) for n,k in takes.items()})
    numbers = got.values() if isinstance(got, dict) else [got] if not hasattr(got, 'axes') or isinstance(got, pd.DataFrame) else []
    for v in numbers: assert np.isfinite(np.asarray(v, float)).all()


@pytest.mark.parametrize('name,arg,wrong', [(n, a, w) for n,(_,takes) in METRICS.items() for a,k in takes.items() for w in sorted(WRONG[k])])
@tried
def test_what_cannot_be_judged_is_refused_and_named(name, arg, wrong, seed):
    call, takes = METRICS[name]
    rng = np.random.default_rng(seed)
    args = {n: GOOD[k](rng) for n,k in takes.items()}
    args[arg], says = spoil(args[arg], wrong, rng)
    if takes[arg] == 'weights': says = 'weights'
    if (name, arg, wrong) in VALUES:
        assert VALUES[name, arg, wrong](call(**args))
        return
    with pytest.raises(REFUSED, match=says): call(**args)


@pytest.mark.parametrize('name', sorted(set(METRICS) - {'box_iou'}))
def test_an_empty_set_has_no_score(name):
    call, takes = METRICS[name]
    args = {n: GOOD[k](np.random.default_rng(0)) for n,k in takes.items()}
    with pytest.raises(REFUSED): call(**{n: v[..., :0] if n == 'w' else v[:0] for n,v in args.items()})


@pytest.mark.parametrize('shape', [(B, N - 1), (N + 1,), (2, B, N)])
@pytest.mark.parametrize('name', [n for n,(_,t) in METRICS.items() if 'w' in t])
def test_weights_fit_the_rows(name, shape):
    call, takes = METRICS[name]
    args = {n: GOOD[k](np.random.default_rng(0)) for n,k in takes.items()}
    with pytest.raises(REFUSED, match='weights'): call(**args | dict(w=np.ones(shape)))


def test_scores_of_every_type_are_ranked_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    y, s = rng.random(60) < .4, rng.integers(0, 9, 60)
    for t in (s, s.astype(np.uint8), s.astype(np.int8), s/8, (s/8).astype(np.float32), s.astype(object), s > 4, s.tolist(), pd.Series(s), pd.Series(s, dtype='Int64'), torch.tensor(s)):
        for truth in (y, y*1, y*1., y.tolist(), pd.Series(y), y.astype(object)):
            plain = np.asarray(t, dtype=float)
            assert E.auroc(truth, t)[0] == pytest.approx(sk.roc_auc_score(y, plain), abs=1e-12)
            assert E.average_precision(truth, t)[0] == pytest.approx(sk.average_precision_score(y, plain), abs=1e-12)
    assert E.cut_for((y*1).tolist(), s, 1) < s[y].min()


def test_decisions_of_0_and_1_are_counted_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    y, called = rng.integers(0, 2, (2, 60))
    for t in (int, float, np.uint8):
        r = E.rates(y[:, None].astype(t), called[:, None].astype(t))
        assert [r[k][0] for k in ('accuracy', 'sensitivity', 'precision', 'F1')] == pytest.approx(
            [f(y, called) for f in (sk.accuracy_score, sk.recall_score, sk.precision_score, sk.f1_score)], abs=1e-6)


@tried
def test_a_list_sorted_by_diagnosis_is_not_ranked_by_its_rows(seed):
    "The AUROC of the row number: what sorting makes of scores that are all nan"
    y = np.arange(40) >= np.random.default_rng(seed).integers(2, 38)
    for metric in (E.auroc, E.average_precision):
        with pytest.raises(DataError, match=r'row 0: score is nan.*40 of 40'): metric(y, np.full(40, np.nan))


# A judge

def split(labels, classes, **kw):
    return SimpleNamespace(**dict(labels=np.asarray(labels), classes=classes, groups=np.array([f'P{i//2}' for i in range(len(labels))]), multilabel=False) | kw)


def test_a_judge_names_patient_and_class():
    labels, p = np.arange(12) % 3, np.random.default_rng(0).dirichlet(np.ones(3), 12)
    judge = E.Judge(split(labels, ['cyst', 'mass', 'nodule']), 5)
    assert judge.auroc(p)[0] == pytest.approx(sk.roc_auc_score(labels, p, multi_class='ovr'), abs=1e-12)
    p[[7, 9], 1] = np.nan
    for ask in (judge.auroc, judge.report, judge.called, lambda p: judge.gain(p, p)):
        with pytest.raises(DataError, match=r"row 7, patient P3, class 'mass': score is nan.*2 of 36"): ask(p)


def test_a_judge_names_the_second_of_two_classes():
    labels, p = np.arange(12) % 2, np.linspace(0, 1, 12)
    judge = E.Judge(split(labels, ['well', 'ill']), 5)
    assert judge.report(p).index.name == judge.report(np.c_[1 - p, p]).index.name == 'positive: ill'
    assert judge.auroc(np.c_[1 - p, p]) == judge.auroc(p)
    assert E.Judge(split(np.arange(12) % 3, list('abc')), 5).report(np.eye(3)[np.arange(12) % 3]).index.name is None
    with pytest.raises(DataError, match="row 3, patient P1, class 'ill'"): judge.auroc(np.where(np.arange(12) == 3, np.inf, p))


@pytest.mark.parametrize('labels,classes,more,says', [
    ([0, 1, 0, 1], list('abc'), {}, "class 'c': no positive case among 4"),
    ([1, 1, 1, 1], list('ab'), {}, "class 'b': no negative case among 4"),
    ([0, 0, 0, 0], list('ab'), {}, "class 'b': no positive case among 4"),
    ([0, 1, 2, 1], list('ab'), {}, 'row 2, patient P1: label is 2, none of the 2 classes'),
    ([0, 1, np.nan, 1], list('ab'), {}, 'row 2, patient P1: label is nan'),
    ([[0, 1], [1, 0], [-1, 1], [1, 0]], list('ab'), dict(multilabel=True), "row 2, patient P1, class 'a': truth is -1"),
    ([[0, 1], [1, 0], [0, np.nan], [1, 0]], list('ab'), dict(multilabel=True), "row 2, patient P1, class 'b': truth is nan"),
    ([[0, 1], [0, 0], [0, 1], [0, 0]], list('ab'), dict(multilabel=True), "class 'a': no positive case"),
    ([0, 1, 0, 1], list('ab'), dict(groups=['P', 'P', None, 'Q']), 'row 2 names no patient'),
])
def test_a_split_that_cannot_be_judged_is_refused(labels, classes, more, says):
    with pytest.raises(DataError, match=says): E.Judge(split(labels, classes, **more), 5)


@pytest.mark.parametrize('shape', [(11,), (12, 2), (12, 4), (12, 3, 1)])
def test_a_judge_wants_a_score_for_each_class(shape):
    judge = E.Judge(split(np.arange(12) % 3, list('abc')), 5)
    for ask in (judge.auroc, judge.report, judge.called):
        with pytest.raises(ValueError, match='alike'): ask(np.zeros(shape))


@pytest.mark.parametrize('groups', [np.array([1., np.nan, 2]), ['a', None, 'b'], pd.Series(['a', pd.NA, 'b']), np.array(['a', np.nan, 'b'], object)])
def test_a_row_without_a_patient_is_not_drawn(groups):
    with pytest.raises(DataError, match='row 1 names no patient'): E.resample(groups, 5)
    with pytest.raises(DataError, match='no row'): E.resample(groups[:0], 5)


# Values that are documented

def test_a_mean_leaves_out_nan_and_refuses_what_is_infinite():
    v = np.r_[np.arange(9.), np.nan]
    assert E.mean_interval(v)[0] == np.nanmean(v)
    with pytest.raises(DataError, match='row 9, patient Z: value is inf'): E.mean_interval(np.r_[np.arange(9.), np.inf], list('abcdefghiZ'))
    with pytest.raises(DataError, match='0 patients with a value'): E.mean_interval(np.full(9, np.nan))
    with pytest.raises(ValueError, match='alike'): E.mean_interval(v, list('abc'))


def test_masks_that_are_not_known_are_no_empty_masks():
    a = np.zeros((3, 4, 4))
    for kind in (np.array, torch.tensor):
        bad = kind(a)
        assert (Agreement.dice(bad, bad) == 1).all() and (Agreement.iou(bad, bad) == 1).all()
        bad[1, 2, 2] = np.nan
        for f,x,z in itertools.product((Agreement.dice, Agreement.iou), (bad, kind(a)), (bad, kind(a))):
            if x is bad or z is bad:
                with pytest.raises(DataError, match='mask 1: 1 of 16 values are nan'): f(x, z)
    with pytest.raises(REFUSED, match='millimetres'): Agreement.hausdorff95(a[0], a[0], np.nan)
    with pytest.raises(DataError, match='nothing'): Agreement.dice(a[:, :0], a[:, :0])


def test_boxes_of_other_dimensions_are_no_boxes():
    "(n, 2) and (m, 4) broadcast to a number"
    with pytest.raises(ValueError, match='wanted'): Agreement.box_iou(np.array([[0., 1]]), np.array([[0., 0, 1, 1]]))
    with pytest.raises(ValueError, match='wanted'): Agreement.box_iou(np.zeros((1, 3)), np.zeros((1, 3)))
    t = [np.array([[0., 0, 4, 4]])]*3
    with pytest.raises(ValueError, match='3, 2, 3; they must be as many'): Agreement.box_ap(t, t[:2], [[.5]]*3)
    with pytest.raises(ValueError, match='image 1: boxes, scores: 1, 2'): Agreement.box_ap(t, t, [[.5], [.5, .4], [.5]])
    with pytest.raises(DataError, match='image 2: row 0: score is nan'): Agreement.box_ap(t, t, [[.5], [.5], [np.nan]])
    with pytest.raises(DataError, match='no true box'): Agreement.mean_ap([(np.zeros((0, 4)), [])], [(t[0], ['a'], [.5])])
    with pytest.raises(ValueError, match='image 0: boxes, labels, found: 1, 2'): Agreement.mean_ap([(t[0], ['a'])], [(t[0], ['a', 'b'], [.5])])


# The metrics of the chapters

CHAPTERS = ['imaging.segmentation', 'foundations.overlap', 'foundations.judging', 'imaging.quality', 'imaging.retrieval', 'imaging.followup', 'sequences.forecasting',
            'sequences.records', 'sequences.ecg', 'sequences.entities', 'data.events', 'foundations.censoring']
TAKE = {'y', 'score', 'scores', 'pred', 'targ', 'prob', 'hit', 'counts', 'ranking', 'reference', 'change', 'truth', 'event', 'weights', 'band'}


def masks(k=1):
    m = np.zeros((4, 8, 8, 8), np.uint8)
    m[:, 2:5, 2:5, 2:5] = k
    return MaskSet(m, m, split=np.repeat('test', 4), classes=['background', *'ab'[:k]], spacing=np.ones((4, 3)), name='toy', groups=np.arange(4))


def with_nan(v, *at):
    v = np.array(v, dtype=float)
    v[at] = np.nan
    return v


def windows():
    return SimpleNamespace(y=np.ones((6, 2, 1)), last=np.ones((6, 1)), patient=np.arange(6), variables=['hdl'])


def strips():
    from medlearn.data.signals import Signals
    return Signals([np.zeros((1, 40))], 10, ['II'], np.arange(1), peaks=[np.array([3, 20])], symbols=[np.array(['N', 'V'])])


nine, cloud = np.arange(9.), np.random.default_rng(0).normal(size=(30, 2))
CASES = [ # module, function, arguments with something wrong, what the message says
    ('foundations.overlap', 'score_masks', lambda: (with_nan(masks().masks, 2, 0, 0, 0), masks()), 'toy: row 2.*class is nan'),
    ('imaging.segmentation', 'decide', lambda: (with_nan(np.full((3, 2, 4, 4), .5), 1, 0, 2, 2),), 'row 1.*probability is nan'),
    ('imaging.segmentation', 'best_cut', lambda: (with_nan(np.full((4, 2, 8, 8, 8), .5), 3, 0, 2, 2, 2), masks()), 'row 3.*probability is nan'),
    ('foundations.overlap', 'found', lambda: (with_nan(masks().masks, 2, 0, 0, 0), masks()), 'row 2.*class is nan'),
    ('foundations.overlap', 'mean_dice', lambda: (pd.DataFrame({'a': [np.nan]*3}),), 'anything to find'),
    ('foundations.overlap', 'object_f1', lambda: (with_nan(np.ones((4, 3)), 2, 1),), 'row 2, column 1: score is nan'),
    ('foundations.overlap', 'measure_volume', lambda: ((d := masks(1)).masks, MaskSet(**vars(d) | dict(classes=['background', 'a', 'b']))), "no reference mask has 'b'"),
    ('foundations.overlap', 'measure_volume', lambda: (with_nan(masks().masks, 1, 0, 0, 0), masks()), 'row 1.*class is nan'),
    ('foundations.judging', 'frechet', lambda: (with_nan(cloud, 3, 1), cloud), 'row 3, column 1: feature is nan'),
    ('foundations.judging', 'manifold', lambda: (cloud, with_nan(cloud, 3, 1)), 'row 3, column 1: feature is nan'),
    ('foundations.judging', 'closeness', lambda: (with_nan(np.ones((3, 4, 4)), 1, 1, 1), np.ones((5, 4, 4))), 'row 1.*pixel is nan'),
    ('imaging.quality', 'cuts_for', lambda: (np.zeros((30, 2), bool), with_nan(np.zeros((30, 2)), 5, 1)), 'row 5, column 1: score is nan'),
    ('imaging.quality', 'share_interval', lambda: (with_nan(nine > 4, 6),), 'row 6: hit is nan'),
    ('imaging.followup', 'category', lambda: (with_nan(nine, 6),), 'row 6: change is nan'),
    ('imaging.followup', 'longest_diameter', lambda: (with_nan(np.eye(4), 2, 1),), 'row 2, column 1: mask is nan'),
    ('imaging.followup', 'changes', lambda: (a := pd.DataFrame(dict(patient=[1, 2], diameter_mm=[3., np.inf], volume_mm3=1.)), a), 'row 1, patient 2: diameter_mm is inf'),
    ('imaging.quality', 'knn_distance', lambda: (cloud, with_nan(cloud, 3, 1)), 'NaN'),
    ('imaging.quality', 'mahalanobis', lambda: (cloud, with_nan(cloud, 3, 1)), 'NaN'),
    ('imaging.retrieval', 'neighbours', lambda: (cloud, with_nan(cloud, 3, 1)), 'NaN'),
    ('sequences.forecasting', 'conformal', lambda: (with_nan(np.ones((6, 2, 1, 3)), 4, 1, 0, 2), windows()), 'row 4, patient 4.*band of an answer is nan'),
    ('foundations.censoring', 'censoring_weights', lambda: (nine, with_nan(nine > 3, 2), 5), 'row 2: event is nan'),
    ('foundations.censoring', 'kaplan_meier', lambda: (nine, with_nan(nine > 3, 2), 5), 'row 2: event is nan'),
    ('foundations.censoring', 'kaplan_meier', lambda: (with_nan(nine, 2), nine > 3, 5), 'row 2: time is nan'),
    ('foundations.censoring', 'aalen_johansen', lambda: (nine, with_nan(nine % 3, 2), 5), 'row 2: cause is nan'),
    ('foundations.censoring', 'intervals', lambda: (nine, with_nan(nine > 3, 2), [3, 6]), 'row 2: event is nan'),
    ('foundations.censoring', 'weighted', lambda: (E.auroc, with_nan(nine, 2)), None),
    ('sequences.ecg', 'attention_share', lambda: (strips(), [with_nan(nine, 2)], 4, 'V'), 'record 0: row 2: weight of a step is nan'),
    ('sequences.entities', 'sentence_f1', lambda: (None, np.c_[nine*0, nine, nine*0]), 'no true entity'),
    ('sequences.entities', 'sentence_f1', lambda: (None, with_nan(np.ones((9, 3)), 3, 1)), 'row 3, column 1: count is nan'),
]
NO_SCORES = { # take labels to learn from or pictures to show, whole numbers, or what another metric has checked
    'imaging.segmentation': set(), 'foundations.overlap': {'by_patient', 'show_outlines', 'matched', 'empty_conventions'}, 'imaging.retrieval': {'retrieval'},
    'foundations.censoring': {'tuned'}, 'sequences.records': {'plot_risk'},
    'sequences.ecg': {'plot_attention'}, 'sequences.entities': {'sentence_counts'}, 'data.events': {'landmark'},
}


@pytest.mark.parametrize('module', CHAPTERS)
def test_no_metric_of_a_chapter_is_forgotten(module):
    m = importlib.import_module(f'medlearn.{module}')
    metrics = {n for n in m.__all__ if inspect.isfunction(f := getattr(m, n)) and TAKE & {*inspect.signature(f).parameters}} - {'new_cases'} # asked with weights of a network
    assert metrics <= {n for where,n,*_ in CASES if where == module} | NO_SCORES.get(module, set())


@pytest.mark.parametrize('module,name,args,says', CASES, ids=[f'{m}-{n}-{i}' for i,(m,n,*_) in enumerate(CASES)])
def test_metrics_of_the_chapters_refuse_nan(module, name, args, says):
    f = getattr(importlib.import_module(f'medlearn.{module}'), name)
    if name == 'weighted':
        with pytest.raises(REFUSED, match='weights'): f(*args())(nine > 4, nine)
        return
    with pytest.raises(REFUSED, match=says): f(*args())


def test_forecasts_of_nan_have_no_skill():
    from medlearn.sequences.forecasting import Scores
    w = windows()
    w.y = w.y + np.arange(6)[:, None, None]
    judge = Scores(w, 10)
    assert judge.mean_skill(w.y)[0] == 1
    for ask in (judge.rmse, judge.skill, judge.mean_skill):
        with pytest.raises(DataError, match='row 2, patient 2.*error of an answer is nan'): ask(with_nan(w.y, 2, 0, 0))
