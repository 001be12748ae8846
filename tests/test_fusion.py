"Fusion: modalities joined by id, what is hidden does not matter, dropout keeps one, the leak is found, pictures that slip are noticed"
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.ndimage import shift
from sklearn.metrics import roc_auc_score

from medlearn.data.brain import brain_joint
from medlearn.data.doors import joint_from
from medlearn.data.joint import check_joint, joined, lidc_joint, RATINGS, read_joint
from medlearn.foundations.classical import models
from medlearn.foundations.evaluation import Judge
from medlearn.foundations.augmentation import Augment
from medlearn.imaging.fusion import (Fusion, Inputs, JointAugment, MeanAndPeak, ModalityDropout, attention_weights,
                                    by_subset, displaced, encoder, fit_fusion, joint_loaders, predict_joint, subsets,
                                    table_baseline)
from medlearn.kit.cards import DataError

WAYS = ['early', 'middle', 'late', 'attention']
SHAPES = dict(ct=(1, 8, 8), mr=(2, 8, 8), blood=(3,))


def cases(n=120, seed=0):
    "Two signs, each in one modality: a bright picture and a high column; ill is whoever has both"
    rng = np.random.default_rng(seed)
    bright, high = rng.random((2, n)) < .6
    ids = pd.Index([f'P{i:03}' for i in range(n)])
    pictures = (rng.normal(80, 10, (n, 8, 8)) + 90*bright[:, None, None]).clip(0, 255).astype(np.uint8)
    blood = pd.DataFrame(dict(crp=3*high + rng.normal(0, .3, n), age=rng.normal(60, 9, n)), index=ids)
    return ids, pictures, blood, pd.DataFrame(dict(label=np.where(bright & high, 'ill', 'well')), index=ids)


def joint(n=120, seed=0, **kw):
    ids, pictures, blood, who = cases(n, seed)
    return joined(dict(ct=(ids, pictures), blood=blood), who, classes=['well', 'ill'], **kw)


@pytest.fixture(scope='module')
def data(): return joint(400)


def trained(data, how='middle', **kw):
    return fit_fusion(data, how, **(dict(epochs=10, lr=1e-2, bs=32, width=8, widths=(4, 8)) | kw))


@pytest.fixture(scope='module')
def net(data): return trained(data)


@pytest.fixture(scope='module')
def brain(): return brain_joint(40)


# Joining

@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_join_does_not_depend_on_the_order_of_rows(seed):
    ids, pictures, blood, who = cases(30)
    p, q = (np.random.default_rng(seed + k).permutation(30) for k in (0, 1))
    a, b = (joined(dict(ct=(i, x), blood=t), who) for i, x, t in ((ids, pictures, blood), (ids[p], pictures[p], blood.iloc[q])))
    assert all((a.parts[m] == b.parts[m]).all() for m in a.parts) and (a.labels == b.labels).all() and (a.split == b.split).all()


def test_codes_among_the_numbers_of_a_table_are_refused():
    "A value of -9 or 999 is no age: it is refused with the case, once far from all others or thrice below zero"
    ids, pictures, blood, who = cases()
    for code, times in ((999, 3), (-9, 3), (-1, 5)):
        ages = np.linspace(20, 80, len(ids)).round()
        ages[4:4 + times] = code
        with pytest.raises(DataError, match=rf"column 'age' of blood is {code} in row 4, .*{times} of {len(ids)} are so"):
            joined(dict(ct=(ids, pictures), blood=blood.assign(age=ages)), who)
        assert joined(dict(ct=(ids, pictures), blood=blood.assign(age=ages)), who, codes=False).parts['blood'][4, 1] == code


def test_patients_that_do_not_match_are_named():
    ids, pictures, blood, who = cases(30)
    with pytest.raises(DataError, match='blood lacks P007, P009'): joined(dict(blood=blood.drop(['P007', 'P009'])), who)
    with pytest.raises(DataError, match='ct alone has X1'): joined(dict(ct=(ids.append(pd.Index(['X1'])), np.zeros((31, 8, 8), np.uint8))), who)
    with pytest.raises(DataError, match='ct has twice P001'): joined(dict(ct=([*ids[:-1], 'P001'], pictures)), who)
    with pytest.raises(DataError, match='list of cases has twice P000'): joined(dict(blood=blood), pd.concat([who, who.iloc[:1]]))
    with pytest.raises(DataError, match='P000 has the label'): joined(dict(blood=blood), who, classes=['ill'] if who.label.iloc[0] == 'well' else ['well'])


def test_tables_and_classes_that_teach_nothing_are_named():
    ids, pictures, blood, who = cases(30)
    with pytest.raises(DataError, match="column 'age' of blood is constant"): joined(dict(blood=blood.assign(age=1)), who)
    with pytest.raises(DataError, match="column 'crp' of blood has no number in row 4"): joined(dict(blood=blood.assign(crp=[1.]*4 + [np.nan] + [2.]*25)), who)
    with pytest.raises(DataError, match="class 'odd' has 1 case:"): joined(dict(blood=blood), who.assign(label=['odd', *who.label[1:]]))
    with pytest.raises(DataError, match="no case of class 'odd' in the split 'train'"):
        joined(dict(blood=blood), pd.DataFrame(dict(label=['a', 'odd']*15, split=['train', 'test', 'train', 'valid', 'valid', 'test']*5), index=ids))


@pytest.mark.parametrize('column', ['label', 'patient', 'split'])
@pytest.mark.parametrize('empty', [None, np.nan, ' '])
def test_an_empty_cell_is_no_class_no_patient_and_no_split(column, empty):
    ids, pictures, blood, who = cases(30)
    who = who.assign(patient=ids, split=['train', 'valid', 'test']*10)
    who[column] = [*who[column][:3], empty, *who[column][4:]]
    with pytest.raises(DataError, match=f"column '{column}' is empty in row 3, case P003"): joined(dict(blood=blood), who)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_pictures_with_a_pixel_that_is_no_number_are_named(bad):
    ids, pictures, blood, who = cases(30)
    whole = pictures[::-1].astype(np.float32) # in another order than the cases
    assert joined(dict(ct=(ids[::-1], whole), blood=blood), who).parts['ct'].dtype == np.float32
    whole[[25, 28], 2, 3] = bad
    with pytest.raises(DataError, match=r'ct in row 1, P001 has a pixel .*2 of 30'): joined(dict(ct=(ids[::-1], whole), blood=blood), who)


def test_a_split_of_another_name_is_refused():
    ids, _, blood, who = cases(30)
    with pytest.raises(DataError, match="'Test' in row 29, P029"): joined(dict(blood=blood), who.assign(split=['train', 'valid', 'test']*9 + ['train', 'valid', 'Test']))


def test_a_network_that_answers_nan_is_not_ranked(data, net):
    test = data.part('test')
    p = predict_joint(net, test)
    p[4, 1] = np.nan
    with pytest.raises(DataError, match=f"row 4, patient {test.groups[4]}, class 'ill': score is nan"): Judge(test, 10).auroc(p)


def test_split_is_by_patient():
    who = cases(60)[3].assign(patient=np.repeat(np.arange(20), 3))
    d = joined(dict(blood=cases(60)[2]), who)
    assert pd.Series(d.split).groupby(d.groups).nunique().eq(1).all()
    torn = replace(d, split=np.roll(d.split, 1))
    with pytest.raises(DataError, match='Split by patient'): check_joint(torn)


def test_take_part_and_only_agree(data):
    train = data.part('train')
    assert len(train) == (data.split == 'train').sum() and (train.parts['ct'] == data.parts['ct'][data.split == 'train']).all()
    assert list(train.only('blood').parts) == ['blood'] and data.summary().cases.sum() == len(data)
    with pytest.raises(DataError, match="no modality 'pet'"): data.only('pet')


# A folder

def folder(path, n=30, **changes):
    ids, pictures, blood, who = cases(n)
    np.savez(path/'images.npz', **(dict(ids=np.array(ids[::-1], str), ct=pictures[::-1]) | changes))
    who.join(blood).rename_axis('id').to_csv(path/'table.csv')
    return path


def test_folder_is_joined_by_id(tmp_path):
    ids, pictures, blood, _ = cases(30)
    d = joint_from(folder(tmp_path))
    assert (d.parts['ct'] == pictures).all() and np.allclose(d.parts['table'], blood) and d.classes == ['ill', 'well'] and d.columns == dict(table=['crp', 'age'])


def test_folder_with_numbers_as_ids_and_a_split(tmp_path):
    d = folder(tmp_path, ids=np.arange(30))
    who = cases(30)[3].reset_index(drop=True).rename_axis('id').assign(split=['train', 'valid', 'test']*10, patient=range(30), crp=range(30))
    who.to_csv(d/'table.csv')
    assert list(read_joint(d).split) == ['train', 'valid', 'test']*10


def test_folders_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(DataError, match='no is not there'): joint_from(str(tmp_path/'no'))
    with pytest.raises(DataError, match='images.npz'): joint_from(tmp_path)
    d = folder(tmp_path)
    rows = pd.read_csv(d/'table.csv')
    rows.drop(columns='label').to_csv(d/'table.csv', index=False)
    with pytest.raises(DataError, match="no column 'label'"): read_joint(d)
    rows.assign(sex='f').to_csv(d/'table.csv', index=False)
    with pytest.raises(DataError, match="column 'sex' holds text, such as 'f'"): read_joint(d)
    rows.iloc[1:].to_csv(d/'table.csv', index=False)
    with pytest.raises(DataError, match='ct alone has P000'): read_joint(d)
    rows[['id', 'label']].to_csv(d/'table.csv', index=False)
    with pytest.raises(DataError, match='holds one modality, ct: fusion needs two'): read_joint(d)
    (d/'table.csv').unlink()
    with pytest.raises(DataError, match='cannot be read as a table'): read_joint(d)
    with pytest.raises(DataError, match=r'ct has shape \(3, 8, 8\) for 30 ids'): read_joint(folder(tmp_path, ct=np.zeros((3, 8, 8), np.uint8)))


def test_folders_with_holes_say_where(tmp_path):
    for column in ('id', 'label', 'patient'):
        rows = pd.read_csv(folder(tmp_path)/'table.csv', dtype=str).assign(patient=[f'K{i}' for i in range(30)])
        rows.loc[[4, 9], column] = ''
        rows.to_csv(tmp_path/'table.csv', index=False)
        with pytest.raises(DataError, match=f"column '{column}' is empty in row 4, .*2 of 30"): read_joint(tmp_path)
    pictures = cases(30)[1][::-1].astype(np.float32)
    pictures[20, 0, 0] = np.nan # of the ids from the last to the first
    with pytest.raises(DataError, match='ct in row 9, P009'): joint_from(folder(tmp_path, ct=pictures))


def test_nodules_are_labelled_by_the_other_readers():
    d = lidc_joint(16, 3.)
    assert list(d.columns['ratings']) == RATINGS and (d.parts['ratings'] == d.more[RATINGS].to_numpy()).all()
    assert ((d.more.others > 3) == (d.labels == 1)).all() and (d.more.others != 3).all() and (d.more.reader == 1).all()
    assert d.parts['outline'].shape == (len(d), 16, 16) and pd.Series(d.split).groupby(d.groups).nunique().eq(1).all()


# Networks

@pytest.mark.parametrize('how', WAYS)
def test_hidden_modalities_do_not_matter_and_shown_ones_do(how):
    net, there = Fusion(SHAPES, 2, how, 8, lambda s, w: encoder(s, w, (4, 8))).eval(), torch.tensor([[True, False, True]]*4)
    a, b = ([torch.randn(4, *s) for s in SHAPES.values()] for _ in range(2))
    with torch.no_grad():
        assert torch.equal(net(*a, there), net(a[0], b[1], a[2], there))
        assert not torch.allclose(net(*a, there), net(b[0], a[1], a[2], there))
        assert not torch.allclose(net(*a, there), net(*a, torch.ones(4, 3, dtype=torch.bool)))


@settings(max_examples=12, deadline=None)
@given(how=st.sampled_from(WAYS), k=st.integers(1, 4), n=st.integers(2, 5), classes=st.integers(2, 4))
def test_any_number_of_modalities(how, k, n, classes):
    shapes = {f'm{i}': (1 + i % 2, 8, 8) if i % 2 == 0 else (i,) for i in range(k)}
    net, xs = Fusion(shapes, classes, how, 4, lambda s, w: encoder(s, w, (4,))).eval(), [torch.randn(n, *s) for s in shapes.values()]
    for shown in range(k): assert net(*xs, torch.eye(k, dtype=torch.bool)[shown].expand(n, -1)).isfinite().all()
    assert net(*xs, torch.ones(n, k, dtype=torch.bool)).shape == (n, classes)


def test_late_is_the_mean_of_answers_and_attention_sums_to_one():
    xs = [torch.randn(5, *s) for s in SHAPES.values()]
    late = Fusion(SHAPES, 2, 'late', 8).eval()
    alone = torch.stack([late(*xs, torch.eye(3, dtype=torch.bool)[i].expand(5, -1)) for i in range(3)])
    assert torch.allclose(late(*xs, torch.ones(5, 3, dtype=torch.bool)), alone.mean(0), atol=1e-6)
    net, there = Fusion(SHAPES, 2, 'attention', 8).eval(), torch.tensor([[True, False, True]]*5)
    net(*xs, there)
    assert torch.allclose(net.attention.sum(1), torch.ones(5)) and (net.attention[:, 1] == 0).all() and (net.attention[:, 0] > 0).all()


def test_early_is_one_encoder_over_stacked_channels():
    net, (ct, mr, blood) = Fusion(SHAPES, 2, 'early', 8), [torch.randn(3, *s) for s in SHAPES.values()]
    x = net.stack([ct, mr, blood], torch.tensor([[True, False, True]]*3))
    assert torch.equal(x[:, :1], ct) and (x[:, 1:3] == 0).all() and torch.equal(x[:, 3:], blood[..., None, None].expand(3, 3, 8, 8))
    with pytest.raises(DataError, match='bring all to one grid'): Fusion(dict(ct=(1, 8, 8), mr=(1, 9, 8)), 2, 'early')
    with pytest.raises(ValueError, match='early, middle, late or attention'): Fusion(SHAPES, 2, 'soon')


def test_encoder_takes_volumes_and_sees_a_single_voxel():
    assert encoder((1, 8, 8, 8), 5, (4, 8))(torch.randn(2, 1, 8, 8, 8)).shape == (2, 5)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 2, 2] = 3
    assert MeanAndPeak()(x).tolist() == [[3/16, 3]]


# Loader and callbacks

def test_inputs_are_normalised_by_the_training_split(data):
    inputs = Inputs(data.part('train'))
    ct, blood, there = inputs(data.part('train'))
    assert abs(ct.mean()) < 1e-4 and abs(ct.std() - 1) < 1e-2 and torch.allclose(blood.mean(0), torch.zeros(2), atol=1e-4) and there.all()
    want = (data.part('test').parts['blood'] - data.part('train').parts['blood'].mean(0))/data.part('train').parts['blood'].std(0)
    assert np.allclose(inputs(data.part('test'))[1], want, atol=1e-4)
    x, y, shown, label = joint_loaders(data, inputs, 16).one_batch()
    assert x.shape == (16, 1, 8, 8) and y.shape == (16, 2) and shown.shape == (16, 2) and label.dtype == torch.int64


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0, 1), seed=st.integers(0, 2**20))
def test_dropout_keeps_one_that_is_there(p, seed):
    torch.manual_seed(seed)
    there = torch.rand(200, 3) < .7
    there[:, 0] |= ~there.any(1)
    cb = ModalityDropout(p)
    cb.learn = SimpleNamespace(xb=(0, 1, 2, there), training=True)
    cb.before_batch()
    kept = cb.learn.xb[-1]
    assert kept.any(1).all() and not (kept & ~there).any() and (p > 0 or torch.equal(kept, there))
    cb.learn = SimpleNamespace(xb=(0, 1, 2, there), training=False)
    cb.before_batch()
    assert torch.equal(cb.learn.xb[-1], there)


def test_pictures_are_moved_together_or_apart():
    x = torch.rand(6, 1, 16, 16)
    def moved(**kw):
        cb = JointAugment(**kw)
        cb.learn = SimpleNamespace(xb=(x, x.clone(), torch.ones(6, 2), torch.ones(6, 3, dtype=torch.bool)), training=True)
        cb.before_batch()
        return cb.learn.xb
    a, b, table, _ = moved(together=Augment(rotate=90, crop=.2))
    assert torch.equal(a, b) and not torch.allclose(a, x) and torch.equal(table, torch.ones(6, 2))
    a, b, *_ = moved(apart=Augment(crop=.2))
    assert not torch.allclose(a, b)


# Training and judging

@pytest.mark.parametrize('how', WAYS)
def test_every_fusion_learns_what_needs_both(data, how):
    learn, test = trained(data, how, epochs=14), data.part('test')
    judge = Judge(test, 1)
    both, *single = [judge.auroc(predict_joint(learn, test.only(*s)))[0] for s in subsets(test.parts)]
    assert both > .9 > max(single) - .05, (both, single)


def test_training_is_deterministic_and_seeded(data):
    a, b, c = (predict_joint(trained(data, 'attention', epochs=1, hide=.3, seed=s, augment=JointAugment(Augment(rotate=9))), data.part('test')) for s in (3, 3, 4))
    assert (a == b).all() and not np.allclose(a, c)


def test_a_model_that_ignores_a_modality_gains_nothing(data, net):
    "What the claims measure must fail for a broken model: shuffled pictures, and a table that is noise"
    rng, test = np.random.default_rng(0), data.part('test')
    judge = Judge(test, 200)
    blind = replace(data, parts=data.parts | dict(ct=data.parts['ct'][rng.permutation(len(data))]))
    gain = judge.gain(predict_joint(trained(blind), blind.part('test')), predict_joint(trained(data.only('blood')), test.only('blood')))
    real = judge.gain(predict_joint(net, test), predict_joint(trained(data.only('blood')), test.only('blood')))
    assert gain[0] < .05 < real[0] and real[1] > 0


def test_subsets_are_all_asked(data, net):
    answers = by_subset(dict(net=net), data.part('test'))
    assert [s for _, s in answers] == [('ct', 'blood'), ('ct',), ('blood',)] == subsets(['ct', 'blood'])
    assert all(np.allclose(p.sum(1), 1, atol=1e-5) for p in answers.values()) and len(subsets('abcd')) == 15


def test_models_refuse_what_they_were_not_trained_with(data, net):
    test = data.part('test')
    with pytest.raises(DataError, match=r'ct has the shape \(1, 4, 8\), the model was trained with \(1, 8, 8\)'):
        predict_joint(net, replace(test, parts=test.parts | dict(ct=test.parts['ct'][:, :4])))
    with pytest.raises(DataError, match="not trained with 'pet'"): predict_joint(net, replace(test, parts=test.parts | dict(pet=test.parts['ct'])))
    with pytest.raises(DataError, match="blood has no column 'crp'"):
        predict_joint(net, replace(test, parts=test.parts | dict(blood=test.parts['blood'][:, 1:]), columns=dict(blood=['age'])))
    with pytest.raises(DataError, match='no modality is left'): predict_joint(net, test.only())
    with pytest.raises(ValueError, match='no attention weights'): attention_weights(net, test)


def test_columns_are_found_by_name(data, net):
    test = data.part('test')
    turned = replace(test, parts=test.parts | dict(blood=test.parts['blood'][:, ::-1]), columns=dict(blood=['age', 'crp']))
    assert np.allclose(predict_joint(net, turned), predict_joint(net, test))


def test_baseline_is_the_best_of_its_grid_on_validation(data):
    x, at = data.parts['blood'], {s: data.split == s for s in ('train', 'valid', 'test')}
    got = table_baseline(x, data, ('logistic regression',))
    pipe, grid = models()['logistic regression']
    best = max(roc_auc_score(data.labels[at['valid']], pipe.set_params(**{k: v}).fit(x[at['train']], data.labels[at['train']]).predict_proba(x[at['valid']])[:, 1])
               for k, vs in grid.items() for v in vs)
    assert np.isclose(roc_auc_score(data.labels[at['valid']], got['valid'][:, 1]), best) and got['test'].shape == (at['test'].sum(), 2)


# Pictures that slip

@settings(max_examples=10, deadline=None)
@given(by=st.integers(0, 6), seed=st.integers(0, 99))
def test_displaced_is_scipys_shift(brain, by, seed):
    moved, angle = displaced(brain, 'pet', by, seed).parts['pet'], np.random.default_rng(seed).uniform(0, 2*np.pi, len(brain))
    for i in range(3):
        want = shift(brain.parts['pet'][i], np.rint(by*np.array([np.sin(angle[i]), np.cos(angle[i])])), order=0, mode='nearest')
        assert (moved[i] == want).all()
    assert (displaced(brain, 'mr', by, seed).parts['ct'] == brain.parts['ct']).all() and displaced(brain, 'mr', by).parts['mr'].shape == brain.parts['mr'].shape
