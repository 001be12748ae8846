"Metrics against reference implementations, plain loops and known truths; intervals that keep their promise"
import math,warnings
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given,settings,strategies as st
from scipy.stats import norm,somersd
from types import SimpleNamespace
from sklearn import metrics as sk
from medlearn.data import images as I
from medlearn.foundations import evaluation as E
from medlearn.foundations import agreement as Agreement
from medlearn.foundations import calibration as Calibration
from medlearn.kit.cards import DataError

seeds = st.integers(0, 10**6)
quick = settings(max_examples=30, deadline=None)

def case(seed, n=80, levels=7):
    "Truth of both kinds, probabilities with ties, whole weights with zeros"
    rng = np.random.default_rng(seed)
    y = rng.random(n) < rng.uniform(.1, .9)
    y[:2] = True,False
    w = rng.integers(0, 4, n).astype(float)
    w[:2] = 1
    return y, rng.integers(0, levels, n)/(levels - 1), w

def close(a, b): np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)

# Against scikit-learn

@quick
@given(seed=seeds)
def test_ranking_agrees_with_sklearn(seed):
    y,s,w = case(seed)
    for ours,theirs in ((E.auroc, sk.roc_auc_score), (E.average_precision, sk.average_precision_score)):
        close(ours(y, s), theirs(y, s))
        close(ours(y, s, np.stack([w, w*0 + 1])), [theirs(y, s, sample_weight=w), theirs(y, s)])
        close(ours(y, s, w), ours(np.repeat(y, w.astype(int)), np.repeat(s, w.astype(int))))
        close(ours(np.c_[y, ~y], np.c_[s, 1 - s]), theirs(np.c_[y, ~y], np.c_[s, 1 - s]))

@quick
@given(seed=seeds)
def test_brier_and_rates_agree_with_sklearn(seed):
    y,s,w = case(seed)
    close(Calibration.brier(y, s, w), sk.brier_score_loss(y, s, sample_weight=w))
    called = s > .4
    names = dict(accuracy=sk.accuracy_score(y, called, sample_weight=w), sensitivity=sk.recall_score(y, called, sample_weight=w),
                 specificity=sk.recall_score(~y, ~called, sample_weight=w), F1=sk.f1_score(y, called, sample_weight=w))
    if called@w: names['precision'] = sk.precision_score(y, called, sample_weight=w)
    ours = E.rates(y[:, None], called[:, None], w)
    for k,v in names.items(): close(ours[k], v)

@quick
@given(seed=seeds)
def test_rates_of_several_classes_are_means_over_classes(seed):
    rng = np.random.default_rng(seed)
    y,c = rng.integers(0, 3, 60),rng.integers(0, 3, 60)
    y[:3] = c[:3] = range(3)
    ours = E.rates(y[:, None] == np.arange(3), c[:, None] == np.arange(3))
    close(ours['accuracy'], sk.accuracy_score(y, c))
    close([ours[k][0] for k in ('sensitivity', 'precision', 'F1')], sk.precision_recall_fscore_support(y, c, average='macro')[1::-1] + (sk.f1_score(y, c, average='macro'),))

@quick
@given(seed=seeds)
def test_ece_and_net_benefit_agree_with_loops(seed):
    y,_,w = case(seed)
    p = np.random.default_rng(seed).random(len(y))
    gaps = []
    for b in range(10):
        at = (p >= b/10) & (p < (b+1)/10)
        if at.any(): gaps.append(at.mean()*abs(p[at].mean() - y[at].mean()))
    close(Calibration.ece(y, p), sum(gaps))
    close(Calibration.ece(y, p, w), Calibration.ece(np.repeat(y, w.astype(int)), np.repeat(p, w.astype(int))))
    for t in (.1, .37, .5):
        tp,fp = (y & (p >= t)).sum(),(~y & (p >= t)).sum()
        close(Calibration.net_benefit(y, p, t), (tp - fp*t/(1 - t))/len(y))
    assert Calibration.net_benefit(y, p, [.1, .2], np.stack([w, w])).shape == (2, 2)

def test_a_metric_that_does_not_exist_is_nan():
    y,alone = np.arange(4) > 1,np.ones((4, 1), bool)
    only_ill = np.stack([np.ones(4), y*1.])
    for f in (E.auroc, E.average_precision): assert np.isnan(f(y, np.arange(4.), only_ill*[[1], [0]])).tolist() == [False, True]
    assert np.isnan(E.auroc(y, np.arange(4.), only_ill)).tolist() == [False, True] # a resample that drew one class
    r = E.rates(alone, ~alone)
    assert {k for k,v in r.items() if np.isnan(v[0])} == {'precision', 'specificity'} and r['sensitivity'] == 0

def test_what_is_no_probability_is_refused():
    for bad in ([1.2, .1], [-.1, .2]):
        for f in (Calibration.ece, Calibration.brier, lambda y, p: Calibration.net_benefit(y, p, .5)):
            with pytest.raises(ValueError, match='probabilities'): f([1, 0], bad)
    for t in (0, 1, [.2, 1.5]):
        with pytest.raises(ValueError, match='threshold'): Calibration.net_benefit([1, 0], [.5, .5], t)

# Intervals and comparisons

def test_resampling_draws_whole_patients():
    who = np.array(['b', 'a', 'b', 'c', 'a'])
    w = E.resample(who, 500)
    assert (w[:, 0] == w[:, 2]).all() and (w[:, 1] == w[:, 4]).all() and (w[:, [0, 1, 3]].sum(1) == 3).all()
    assert (E.resample(5, 7) == E.resample(np.arange(5), 7)).all() and (E.resample(pd.Series(who), 500) == w).all()

def test_intervals_cover_the_truth():
    shift,hits = 1.2,[]
    for seed in range(150):
        rng = np.random.default_rng(seed)
        y = np.arange(120) % 3 == 0
        _,low,high = E.estimate(E.auroc, y, rng.normal(size=120) + shift*y, E.resample(120, 300, seed))
        hits.append(low <= norm.cdf(shift/math.sqrt(2)) <= high)
    assert np.mean(hits) >= .88

def test_grouped_intervals_are_wider_where_rows_repeat():
    y,s,_ = case(3, 60, 1000)
    y,s,who = (np.repeat(v, 5) for v in (y, s, np.arange(60)))
    width = lambda g: np.ptp(E.estimate(E.auroc, y, s, E.resample(g, 2000))[1:])
    assert 1.9 < width(who)/width(300) < 2.6

@quick
@given(seed=seeds)
def test_delong_agrees_with_loops(seed):
    y,a,_ = case(seed, 40)
    b = np.random.default_rng(seed + 1).normal(size=40) + a
    if min(y.sum(), (~y).sum()) < 2:
        with pytest.raises(DataError, match='at least two'): E.delong(y, a, b)
        return
    psi = lambda s: (s[y][:, None] > s[~y]) + .5*(s[y][:, None] == s[~y])
    D = psi(a) - psi(b)
    var = D.mean(1).var(ddof=1)/y.sum() + D.mean(0).var(ddof=1)/(~y).sum()
    d,low,high,p = E.delong(y, a, b)
    close([d, d], [D.mean(), (E.auroc(y, a) - E.auroc(y, b))[0]])
    close([(high - low)/2, p], [norm.ppf(.975)*math.sqrt(var), 2*norm.sf(abs(D.mean())/math.sqrt(var))])

def test_delong_of_a_model_with_itself():
    y,a,_ = case(0)
    assert E.delong(y, a, a) == (0, 0, 0, 1)

def test_delong_agrees_with_the_paired_bootstrap():
    rng = np.random.default_rng(5)
    y = rng.random(400) < .4
    a = rng.normal(size=400) + y
    b = a + rng.normal(size=400)
    d,low,high,_ = E.delong(y, a, b)
    e,lo,hi = E.difference(E.auroc, y, a, b, E.resample(400, 3000))
    assert d == pytest.approx(e, abs=1e-9) and (hi - lo)/(high - low) == pytest.approx(1, abs=.1)

def test_delong_keeps_its_error_rate():
    p = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        y = np.arange(150) % 2 == 0
        p.append(E.delong(y, rng.normal(size=150) + y, rng.normal(size=150) + y)[3])
    assert .02 <= np.mean(np.array(p) < .05) <= .09

def test_a_judge_reports_what_the_metrics_say():
    y,s,_ = case(1)
    data = I.ImageSet(np.zeros((80, 2, 2), np.uint8), y.astype(int), np.repeat('test', 80), ['no', 'yes'], groups=np.arange(80)//2)
    judge = E.Judge(data, 200)
    report = judge.report(np.c_[1 - s, s], .4)
    close(report.value['AUROC'], sk.roc_auc_score(y, s))
    close(report.value.F1, sk.f1_score(y, s > .4))
    assert (report.low <= report.value).all() and (report.value <= report.high).all()
    close(judge.gain(s, s), 0)

@quick
@given(seed=seeds, want=st.floats(.01, 1))
def test_the_cut_reaches_its_sensitivity(seed, want):
    y,s,_ = case(seed)
    cut = E.cut_for(y, s, want)
    assert (s[y] > cut).mean() >= want - 1e-9
    higher = np.unique(s[y])[np.unique(s[y]) > cut][0]
    assert (s[y] > higher).mean() < want
    with pytest.raises(DataError, match='no positive'): E.cut_for(y & False, s)

def test_plots_show_the_numbers():
    y,p,_ = case(2, 200, 50)
    y = np.random.default_rng(0).random(200) < p
    w = E.resample(200, 50)
    share = Calibration.plot_reliability({'model': (y, p)}, w, 5).axes[0].lines[1].get_ydata()
    close(share, [y[(np.minimum((p*5).astype(int), 4)) == b].mean() for b in range(5)])
    ax = Calibration.plot_decision({'model': (y, p)}).axes[0]
    close(ax.lines[2].get_ydata(), Calibration.net_benefit(y, p, np.linspace(.01, .5, 99))[0])
    assert f'{sk.roc_auc_score(y, p):.3f}' in E.plot_roc({'model': (y, p)}).axes[0].get_legend().get_texts()[0].get_text()

# Masks

masks = st.tuples(seeds, st.floats(0, 1), st.integers(2, 3))

@quick
@given(masks)
def test_dice_and_iou_agree_with_sklearn_in_numpy_and_torch(given):
    seed,share,d = given
    a,b = np.random.default_rng(seed).random((2, 3) + (5,)*d) < share
    ours = Agreement.dice(a, b),Agreement.iou(a, b)
    theirs = [[f(x.ravel(), z.ravel(), zero_division=1.) for x,z in zip(a, b)] for f in (sk.f1_score, sk.jaccard_score)]
    close(ours, theirs)
    for f,o in zip((Agreement.dice, Agreement.iou), ours): np.testing.assert_allclose(f(torch.tensor(a), torch.tensor(b)), o, rtol=1e-6)

def blobs(seed, d, n=14):
    from scipy.ndimage import gaussian_filter
    x = gaussian_filter(np.random.default_rng(seed).normal(size=(2,) + (n,)*d), (0,) + (2,)*d)
    return x > np.quantile(x, .8)

@settings(max_examples=25, deadline=None)
@given(seed=seeds, d=st.integers(2, 3))
def test_hausdorff_agrees_with_all_pairs(seed, d):
    from scipy.ndimage import binary_erosion
    from scipy.spatial.distance import cdist,directed_hausdorff
    a,b = blobs(seed, d)
    mm = (2.5, .7, .7)[-d:]
    if not (a.any() and b.any()): return
    rim = [np.argwhere(m & ~binary_erosion(m))*mm for m in (a, b)]
    far = cdist(*rim)
    close(Agreement.hausdorff95(a, b, mm), max(np.percentile(far.min(k), 95) for k in (0, 1)))
    close(Agreement.hausdorff95(a, b, mm, 100), max(directed_hausdorff(*rim)[0], directed_hausdorff(*rim[::-1])[0]))
    close(Agreement.hausdorff95(a, b, [2*s for s in mm]), 2*Agreement.hausdorff95(a, b, mm))

def test_empty_and_unlike_masks():
    a,none = np.ones((3, 3), bool),np.zeros((3, 3), bool)
    assert Agreement.hausdorff95(none, none) == 0 and Agreement.hausdorff95(a, none) == Agreement.hausdorff95(none, a) == math.inf
    assert Agreement.dice(none[None], none[None]) == Agreement.iou(none[None], none[None]) == 1 and Agreement.dice(a[None], none[None]) == 0
    for f in (Agreement.dice, Agreement.iou, Agreement.hausdorff95):
        with pytest.raises(ValueError, match='alike'): f(a, none[:2])

@pytest.mark.filterwarnings('ignore:.*always_return_as_numpy')
@pytest.mark.parametrize('d', (2, 3))
def test_masks_agree_with_monai(d):
    monai = pytest.importorskip('monai.metrics', reason='MONAI is not installed: pip install monai')
    for seed in range(10):
        a,b = blobs(seed, d)
        if not (a.any() and b.any()): continue
        x,z = (torch.tensor(m)[None, None] for m in (a, b))
        mm = (2.5, .7, .7)[-d:]
        theirs = monai.compute_hausdorff_distance(x, z, include_background=True, percentile=95, spacing=mm)
        assert Agreement.hausdorff95(a, b, mm) == pytest.approx(theirs.item(), rel=1e-5)
        assert Agreement.dice(a[None], b[None])[0] == pytest.approx(monai.compute_dice(x.float(), z.float()).item(), abs=1e-6)
        assert Agreement.iou(a[None], b[None])[0] == pytest.approx(monai.compute_iou(x.float(), z.float()).item(), abs=1e-6)

@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_scores_agree_with_torchmetrics(seed):
    tm = pytest.importorskip('torchmetrics.functional.classification', reason='torchmetrics is not installed: pip install torchmetrics')
    y,s,_ = case(seed)
    p,t = torch.tensor(np.random.default_rng(seed).random(80)),torch.tensor(y).int()
    assert Calibration.ece(y, p.numpy())[0] == pytest.approx(tm.binary_calibration_error(p, t, n_bins=10).item(), abs=1e-6)
    assert E.auroc(y, s)[0] == pytest.approx(tm.binary_auroc(torch.tensor(s), t).item(), abs=1e-6)
    assert E.average_precision(y, s)[0] == pytest.approx(tm.binary_average_precision(torch.tensor(s), t).item(), abs=1e-6)

# Boxes

def scene(seed, d=2, images=6):
    "True boxes of several images, and boxes found: shifted copies, some missed, some invented"
    rng,truth,found,score = np.random.default_rng(seed),[],[],[]
    for _ in range(images):
        low = rng.uniform(0, 50, (rng.integers(0, 5), d))
        t = np.c_[low, low + rng.uniform(5, 25, low.shape)]
        low = rng.uniform(0, 50, (rng.integers(0, 3), d))
        f = np.r_[t[rng.random(len(t)) < .8] + rng.normal(0, 1.5, (1, 2*d)), np.c_[low, low + 12]]
        truth, found, score = truth + [t], found + [f], score + [rng.random(len(f))]
    return truth, found, score

def plain_iou(a, b):
    d,both,sa,sb = len(a)//2,1.,1.,1.
    for k in range(d):
        both *= max(0., min(a[k+d], b[k+d]) - max(a[k], b[k]))
        sa,sb = sa*(a[k+d] - a[k]),sb*(b[k+d] - b[k])
    return both/(sa + sb - both)

def plain_ap(truth, found, score, at):
    "COCO's average precision, box by box"
    taken,curve,tp = set(),[],0
    ranked = sorted(((s, i, k) for i,ss in enumerate(score) for k,s in enumerate(ss)), reverse=True)
    for rank,(_,i,k) in enumerate(ranked, 1):
        best,which = at,None
        for j,t in enumerate(truth[i]):
            over = plain_iou(found[i][k], t)
            if (i, j) not in taken and over >= best: best,which = over,j
        if which is not None: taken.add((i, which)); tp += 1
        curve.append((tp/sum(map(len, truth)), tp/rank))
    return sum(max((p for r,p in curve if r >= at), default=0) for at in np.linspace(0, 1, 101))/101

@quick
@given(seed=seeds, d=st.integers(2, 3), at=st.sampled_from([.1, .5, .75]))
def test_box_ap_agrees_with_a_plain_count(seed, d, at):
    truth,found,score = scene(seed, d)
    if not sum(map(len, truth)):
        with pytest.raises(DataError, match='no true box'): Agreement.box_ap(truth, found, score, at)
    else: close(Agreement.box_ap(truth, found, score, at), plain_ap(truth, found, score, at))

def test_boxes_at_the_edges():
    t,none = [np.array([[0., 0, 4, 4]])],[np.zeros((0, 4))]
    assert Agreement.box_ap(t, t, [[.3]]) == 1 and Agreement.box_ap(t, none, [[]]) == 0
    assert Agreement.box_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0 and Agreement.box_iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
    truth = [(t[0].repeat(2, 0), ['a', 'b'])]
    res = Agreement.mean_ap(truth, [(t[0].repeat(2, 0), ['a', 'c'], [.9, .8])], at=(.5, .75))
    assert res.loc['a'].tolist() == [1, 1] and res.loc['b'].tolist() == [0, 0] and list(res.columns) == [.5, .75]

@pytest.mark.parametrize('d', (2, 3))
def test_box_ap_agrees_with_monai(d):
    "MONAI counts recall in single precision: only scenes where none but 0 and 1 fall on a hundredth"
    coco,matching = (pytest.importorskip(f'monai.apps.detection.metrics.{m}', reason='MONAI is not installed: pip install monai') for m in ('coco', 'matching'))
    from monai.data.box_utils import box_iou
    scenes = [s for s in (scene(seed, d) for seed in range(30)) if math.gcd(sum(map(len, s[0])), 100) == 1]
    assert len(scenes) >= 5
    judge = coco.COCOMetric(['lesion'], iou_list=[.1, .5, .75], max_detection=[100], verbose=False)
    none = lambda boxes: [np.zeros(len(b), int) for b in boxes]
    for truth,found,score in scenes:
        theirs = judge(matching.matching_batch(box_iou, judge.iou_thresholds, found, none(found), score, truth, none(truth)))[0]
        for at in (.1, .5, .75): assert Agreement.box_ap(truth, found, score, at) == pytest.approx(theirs[f'lesion_AP_IoU_{at:.2f}_MaxDet_100'], abs=1e-6)

# Order

@quick
@given(seed=seeds)
def test_concordance_agrees_with_loops(seed):
    rng = np.random.default_rng(seed)
    t,s,e,w = rng.integers(0, 9, 25),rng.integers(0, 5, 25),rng.random(25) < .6,rng.integers(0, 3, 25).astype(float)
    right = known = 0
    for i in range(25):
        for j in range(25):
            if not e[i] or not (t[i] < t[j] or t[i] == t[j] and not e[j]): continue
            known += w[i]*w[j]
            right += w[i]*w[j]*(1 if s[i] > s[j] else .5 if s[i] == s[j] else 0)
    if known: close(Calibration.concordance(t, s, w, e), right/known)
    else: assert np.isnan(Calibration.concordance(t, s, w, e)[0])

def test_concordance_of_yes_or_no_is_the_auroc():
    y,s,w = case(4)
    close(Calibration.concordance(-y.astype(int), s, w), E.auroc(y, s, w))

@pytest.mark.parametrize('seed,theirs', enumerate((.4431401320616288, .4542294322132097, .4481260184682238, .5532157085941947)))
def test_concordance_agrees_with_lifelines_and_scipy(seed, theirs):
    "`theirs`: `lifelines.utils.concordance_index(t, -s, e)`, version 0.30.3; Somers' D counts the pairs when all events are seen"
    rng = np.random.default_rng(seed)
    t,s,e = rng.integers(1, 30, 80),rng.integers(0, 20, 80),rng.random(80) < .5
    close(Calibration.concordance(t, s, event=e), theirs)
    close(Calibration.concordance(t, s), (1 - somersd(t, s).statistic)/2)

# Duplicates

def test_a_class_that_nobody_calls_has_no_precision_and_no_warning():
    labels = np.arange(30) % 3
    p = np.tile([.6, .3, .1], (30, 1)) + np.random.default_rng(0).normal(0, .01, (30, 3))
    judge = E.Judge(I.ImageSet(np.zeros((30, 4, 4), np.uint8), labels, np.repeat('test', 30), list('abc')), 50)
    with warnings.catch_warnings(action='error'): table = judge.report(p/p.sum(1, keepdims=True))
    assert table.loc['precision'].isna().all() and table.loc['accuracy'].notna().all()


def test_tables_of_intervals():
    rng = np.random.default_rng(0)
    data = SimpleNamespace(labels=np.arange(60) % 2, classes=['a', 'b'], groups=np.arange(60)//2, multilabel=False)
    class Split(SimpleNamespace):
        def __len__(self): return 60
    judge = E.Judge(Split(**vars(data)), 50)
    scores = dict(noise=rng.random(60), truth=data.labels*1.)
    table = judge.table(scores)
    assert table.columns.tolist() == ['AUROC', 'low', 'high'] and table.index.tolist() == ['noise', 'truth']
    assert tuple(table.loc['noise']) == judge.auroc(scores['noise']) and tuple(table.loc['truth']) == (1, 1, 1)
    assert E.interval_table({'x': (1, 0, 2)}, 'Dice').loc['x', 'Dice'] == 1


def suspicious_rows(n=400):
    rng = np.random.default_rng(0)
    ill = rng.random(n) < .1
    return pd.DataFrame({'log_area': rng.normal(size=n) + 2*ill, 'margin': rng.normal(size=n), 'suspicious': ill})


def test_a_suspicion_rises_with_what_speaks_for_it_and_weights_move_promises_not_the_order():
    rows = suspicious_rows()
    plain,balanced = E.fit_suspicious(['log_area'], rows),E.fit_suspicious(['log_area'], rows, class_weight='balanced')
    p,q = (m.predict_proba(rows[['log_area']])[:, 1] for m in (plain, balanced))
    assert (np.argsort(p) == np.argsort(rows.log_area.to_numpy())).all() and (np.argsort(p) == np.argsort(q)).all()
    assert p.mean() == pytest.approx(rows.suspicious.mean(), abs=.01) and q.mean() > 2*p.mean()


def test_a_sabotaged_run_teaches_it_shuffled_answers(monkeypatch):
    rows = suspicious_rows()
    monkeypatch.setenv('MEDLEARN_SABOTAGE', 'answers')
    p = E.fit_suspicious(['log_area'], rows).predict_proba(rows[['log_area']])[:, 1]
    assert np.ptp(p) < .1


def test_suspicious_nodules_are_averages_split_by_patient():
    from medlearn.data.outlines import lidc_averages,lidc_suspicious
    nodules = lidc_suspicious(seed=3)
    assert (nodules.readers >= 2).all() and (nodules.suspicious == (nodules.malignancy >= 4.5)).all()
    assert (nodules.groupby('patient').split.nunique() == 1).all() and set(nodules.split) == {'train', 'valid', 'test'}
    pd.testing.assert_frame_equal(nodules.drop(columns=['suspicious', 'split']), lidc_averages(least=2))
    assert nodules.split.equals(lidc_suspicious(seed=3).split) and not nodules.split.equals(lidc_suspicious(seed=4).split)
