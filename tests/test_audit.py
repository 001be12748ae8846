"The audit: each planted leak is found and named, clean sets are called clean, and input that does not fit is refused"
import json
from pathlib import Path
import numpy as np, pandas as pd, pytest
from typer.testing import CliRunner
from medlearn.data.splits import duplicates
from medlearn.kit.cards import DataError
from medlearn.kit.cli import app
from medlearn.kit.study import study_from
from medlearn.trust.audit import audit, audit_file

SHARED = Path(__file__).resolve().parents[2]/'shared/data'


def study(seed=0, n=300):
    "A study without a leak: patients with two rows each, a score that knows something"
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n//2), 2)
    y = np.repeat(rng.random(n//2) < .4, 2).astype(int)
    split = np.repeat(rng.choice(['train', 'valid', 'test'], n//2, p=[.5, .2, .3]), 2)
    x = pd.DataFrame(rng.normal(size=(n, 4)) + y[:, None]*.5, columns=list('abcd'))
    p = 1/(1 + np.exp(-(x.sum(axis=1).to_numpy() - 1)))
    return dict(splits=split, ids=np.array([f'P{w}' for w in who]), records=x, y=y, prediction=p, sites=rng.choice(['A', 'B'], n))


def pictures(seed=0, n=60, side=32):
    "Smooth random pictures, all different"
    from scipy.ndimage import gaussian_filter
    x = gaussian_filter(np.random.default_rng(seed).normal(size=(n, side, side)), (0, 2, 2))
    x = (x - x.min((1, 2), keepdims=True))/np.ptp(x, axis=(1, 2))[:, None, None]
    return (30 + 200*x).astype(np.uint8)


def test_twenty_clean_studies_are_called_clean():
    found = {s: audit(**study(s, 400), images=pictures(s, 400, 20)).kinds for s in range(20)}
    assert not any(found.values()), found


def test_says_what_it_did_not_look_at():
    f = audit(splits=['train', 'test'], ids=['a', 'b'])
    assert len(f) == 0 and f.looked == ['patients in two splits'] and 'images=' in ' '.join(f.unseen())
    assert 'Nothing found in what was looked at: patients in two splits.' in repr(f) and 'No audit of data sees' in repr(f)
    assert 'Nothing found' in f._repr_html_()


def test_names_exactly_the_torn_patients():
    s = study()
    at = np.flatnonzero(s['splits'] == 'test')[[0, 10, 20]]
    s['splits'] = s['splits'].copy()
    s['splits'][at] = 'train'
    f = audit(**s)
    assert f.kinds == ['patient in two splits']
    torn = pd.Series(s['splits']).groupby(s['ids']).nunique()
    assert set(s['ids'][f.rows('patient in two splits')]) == set(torn.index[torn > 1]) == set(s['ids'][at])
    assert '3 patients' in f.table['where'][0] and 'split_by_group' in f.table['what to do'][0]


@pytest.mark.parametrize('how', ['same', 'brighter', 'noise', 'mirrored', 'turned'])
def test_finds_copies_of_pictures_and_nothing_else(how):
    x, split, rng = pictures(), np.repeat(['train', 'test'], 30), np.random.default_rng(1)
    for i in (31, 40, 52):
        a = x[i - 30].astype(float)
        a = dict(same=a, brighter=a*.9 + 12, noise=a + rng.normal(0, 3, a.shape), mirrored=a[:, ::-1], turned=np.rot90(a))[how]
        x[i] = np.clip(np.rint(a), 0, 255)
    f = audit(splits=split, images=x)
    assert f.kinds == ['the same picture in two splits'] and set(f.rows(f.kinds[0])) == {1, 10, 22, 31, 40, 52}


def test_pictures_of_two_tones_are_not_searched_and_it_says_so():
    x = (pictures() > 130).astype(np.uint8)*255
    f = audit(splits=np.repeat(['train', 'test'], 30), images=x)
    assert len(f) == 0 and 'two-tone' in ' '.join(f.unseen())


def test_same_picture_with_two_labels():
    x = pictures()
    x[1] = x[0]
    f = audit(images=x, y=np.arange(60) % 2)
    assert f.kinds == ['the same picture with two labels'] and list(f.rows(f.kinds[0])) == [0, 1]


def plant(s, what):
    rng, n = np.random.default_rng(3), len(s['y'])
    x = s['records']
    if what == 'the same record in two splits':
        x = x.copy()
        x.loc[np.flatnonzero(s['splits'] == 'test')[:4]] = x.loc[np.flatnonzero(s['splits'] == 'train')[:4]].round(7).to_numpy()
        return s | dict(records=x)
    if what == 'scaling fitted before the split': return s | dict(records=(x - x.mean())/x.std())
    if what == 'a column that gives the answer away': return s | dict(records=x.assign(code=s['y']*3 + rng.random(n)))
    if what == 'a value from after the prediction': return s | dict(times=pd.DataFrame(dict(a=np.r_[5., np.zeros(n - 1)])), at=1)
    if what == 'site and answer go together': return s | dict(sites=np.where(s['y'] ^ (rng.random(n) < .05), 'A', 'B'))
    if what == 'predictions for the other class': return s | dict(prediction=1 - s['prediction'])
    if what == 'predictions say the same of everyone': return s | dict(prediction=np.full(n, .5))
    if what == 'predictions too good to be true': return s | dict(prediction=s['y'] + rng.random(n)*.1)
    if what == 'a metric that is not what was reported': return s | dict(reported=dict(AUROC=.5))


KINDS = ['the same record in two splits', 'scaling fitted before the split', 'a column that gives the answer away', 'a value from after the prediction',
         'site and answer go together', 'predictions for the other class', 'predictions say the same of everyone', 'predictions too good to be true',
         'a metric that is not what was reported']


@pytest.mark.parametrize('what', KINDS)
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_each_planted_leak_is_found_alone(what, seed):
    assert audit(**plant(study(seed), what)).kinds == [what]


def test_a_range_from_0_to_1_that_training_does_not_have():
    s = study()
    x = (s['records'] - s['records'].min())/np.ptp(s['records'], axis=0)
    train = s['splits'] == 'train'
    assert any((x[c][train].min(), x[c][train].max()) != (0, 1) for c in x)
    assert audit(**s | dict(records=x)).kinds == ['scaling fitted before the split']
    fair = (s['records'] - s['records'][train].mean())/s['records'][train].std()
    assert not audit(**s | dict(records=fair)).kinds


def test_a_reported_metric_is_held_against_scikit_learn():
    from sklearn.metrics import accuracy_score, recall_score, roc_auc_score
    s = study()
    t = s['splits'] == 'test'
    y, p = s['y'][t], s['prediction'][t]
    right = dict(AUROC=roc_auc_score(y, p), accuracy=accuracy_score(y, p > .5), sensitivity=recall_score(y, p > .5), specificity=recall_score(1 - y, p <= .5))
    assert not audit(**s, reported=right).kinds
    f = audit(**s, reported=dict(AUROC=1 - right['AUROC']))
    assert f.kinds == ['a metric that is not what was reported'] and 'the other class' in f.table['what to do'][0]
    with pytest.raises(DataError, match='Dice'): audit(**s, reported=dict(Dice=.9))


def test_predictions_of_the_test_rows_and_by_name_are_the_same_as_of_all():
    s = study()
    t, cases = s['splits'] == 'test', [f'c{i}' for i in range(300)]
    stated = dict(reported=dict(AUROC=.5))
    all_rows = audit(**s, **stated).table
    assert audit(**s | dict(prediction=s['prediction'][t]), **stated).table['how bad'][0] == all_rows['how bad'][0]
    turned = pd.Series(s['prediction'], index=cases).sample(frac=1, random_state=0)
    assert audit(**s | dict(prediction=turned), cases=cases, **stated).table['how bad'][0] == all_rows['how bad'][0]


def test_several_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    p = rng.dirichlet([1, 1, 1], 300) + .3*np.eye(3)[y]
    split = rng.choice(['train', 'test'], 300)
    assert not audit(splits=split, y=y, prediction=p).kinds
    assert audit(splits=split, y=y, prediction=p[:, [1, 2, 0]]).kinds == ['predictions for the other class']
    with pytest.raises(DataError, match='3 classes'): audit(splits=split, y=y, prediction=p[:, :2])


def test_two_test_patients_are_too_few():
    s = study()
    keep = np.r_[np.flatnonzero(s['splits'] != 'test'), np.flatnonzero((s['splits'] == 'test') & (s['y'] == 1))[:2], np.flatnonzero((s['splits'] == 'test') & (s['y'] == 0))[:8]]
    f = audit(**{k: v.iloc[keep] if hasattr(v, 'iloc') else v[keep] for k, v in s.items()})
    assert 'too few to judge' in f.kinds


def bad(**wrong):
    with pytest.raises(DataError) as e: audit(**study() | wrong)
    return str(e.value)


def test_refuses_what_does_not_fit():
    s, cases = study(), [f'c{i}' for i in range(300)]
    assert '298 predictions for 300 labels' in bad(prediction=s['prediction'][:-2])
    named = pd.Series(s['prediction'], index=cases)
    assert 'no case' in bad(prediction=named.rename({'c3': 'x9'}), cases=cases) and 'x9' in bad(prediction=named.rename({'c3': 'x9'}), cases=cases)
    assert 'has no prediction' in bad(prediction=named[[c for c, t in zip(cases, s['splits'] == 'test') if not t]], cases=cases)
    assert 'two predictions' in bad(prediction=pd.concat([named, named[:1]]), cases=cases)
    assert 'give cases=' in bad(prediction=named)
    assert 'is no number' in bad(prediction=np.where(np.arange(300) == np.flatnonzero(s['splits'] == 'test')[4], np.nan, s['prediction']))
    assert 'every label is 0' in bad(y=np.zeros(300, int))
    assert 'test split has no case of 1' in bad(y=np.where(s['splits'] == 'test', 0, s['y']))
    assert 'all rows are in train' in bad(splits=['train']*300)
    assert 'row 7 has no split' in bad(splits=np.where(np.arange(300) == 7, '', s['splits']))
    assert 'row 2 has no patient' in bad(ids=[None if i == 2 else 'P' for i in range(300)])
    assert 'y has 299 rows' in bad(y=s['y'][1:])
    assert 'two rows are named a' in bad(cases=['a', 'a', *cases[2:]])
    assert 'no column of numbers' in bad(records=pd.DataFrame(dict(a=['x']*300)))
    with pytest.raises(DataError, match='nothing was given'): audit()
    with pytest.raises(DataError, match='no rows'): audit(splits=[], ids=[])
    with pytest.raises(DataError, match='without labels'): audit(prediction=[.1, .2], splits=['train', 'test'])


# Files and the command

def written(tmp_path, torn=False):
    s = study()
    t = s['records'].assign(split=s['splits'], mrn=s['ids'], label=s['y'], p=s['prediction'], site=s['sites'])
    if torn: t.loc[t.index[t.split == 'test'][0], 'split'] = 'train'
    t.to_csv(tmp_path/'study.csv', index=False)
    return tmp_path/'study.csv'


def test_the_command_finds_and_says_so_by_its_status(tmp_path):
    run = lambda *words: CliRunner().invoke(app, ['audit', *map(str, words)])
    clean = run(written(tmp_path), '-c', 'patient=mrn')
    assert clean.exit_code == 0 and 'Nothing found in what was looked at: patients in two splits' in clean.output.replace('\n', ' ')
    dirty = run(written(tmp_path, torn=True), '-c', 'patient=mrn', '--json')
    told = json.loads(dirty.output)
    assert dirty.exit_code == 1 and [f['what'] for f in told['findings']] == ['patient in two splits'] and told['not_looked_at']
    assert run(tmp_path/'none.csv').exit_code == 1 and run(written(tmp_path), '-c', 'mrn').exit_code == 2


@pytest.mark.parametrize('text, columns, said', [
    ('', None, 'cannot be read'), ('split,label\n', None, 'no rows'), ('split,label\ntrain,0\n', dict(patient='mrn'), "no column 'mrn'"),
    ('split,label\ntrain,0\n', dict(doctor='label'), 'no part of a study'), ('split,id,subject\ntrain,1,2\n', None, 'could both be the patient')])
def test_tables_that_are_refused(tmp_path, text, columns, said):
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(DataError, match=said): study_from(tmp_path/'t.csv', columns)


def test_times_of_a_table(tmp_path):
    (tmp_path/'t.csv').write_text('split,patient,label,lab,lab_day,predicted_at\ntrain,a,0,1.5,1,3\ntrain,b,1,2,4,3\ntest,c,1,2,1,3\ntest,d,0,2,1,3\n')
    assert audit_file(tmp_path/'t.csv', dict(times='lab_day')).rows('a value from after the prediction').tolist() == [1]


def test_pictures_of_a_file(tmp_path):
    x = pictures()
    x[50] = x[3]
    np.savez(tmp_path/'x.npz', train_images=x[:40], test_images=x[40:], train_labels=np.arange(40)[:, None] % 2, test_labels=np.arange(20)[:, None] % 2)
    f = audit_file(tmp_path/'x.npz')
    assert f.rows('the same picture in two splits').tolist() == [3, 50]
    with pytest.raises(DataError, match='Leave the columns out'): audit_file(tmp_path/'x.npz', dict(patient='mrn'))
    np.savez(tmp_path/'y.npz', pictures=x)
    with pytest.raises(DataError, match='wanted are train_images'): audit_file(tmp_path/'y.npz')


@pytest.mark.skipif(not (SHARED/'pneumoniamnist').is_dir(), reason='no real X-rays beside the project')
def test_copies_in_real_chest_x_rays():
    "PneumoniaMNIST: every copy that stands in two splits is found, and taken away nothing is left"
    at = SHARED/'pneumoniamnist/pneumoniamnist.npz'
    s = study_from(at)
    torn = [r for r in duplicates(s['images']) if len(set(s['splits'][r])) > 1]
    assert len(duplicates(s['images'])) == 27 and torn
    found = audit(**s).rows('the same picture in two splits')
    assert set(np.concatenate(torn)) <= set(found) and len(found) <= 40
    left = ~np.isin(np.arange(len(s['splits'])), found)
    assert not audit(**{k: None if v is None else v[left] for k, v in s.items()}).rows('the same picture in two splits').size


@pytest.mark.skipif(not (SHARED/'breastmnist').is_dir(), reason='no real ultrasound beside the project')
def test_near_copies_in_real_ultrasound():
    "BreastMNIST: more than a quarter of the test pictures have a near copy in training or validation"
    s = study_from(SHARED/'breastmnist/breastmnist.npz')
    rows = audit(**s).rows('the same picture in two splits')
    assert (s['splits'][rows] == 'test').sum() > .25*(s['splits'] == 'test').sum()
