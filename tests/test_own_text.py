"Somebody's reports: long ones, many classes, the same words with other labels, and new ones without labels"
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch

from medlearn.data.text import read_texts,Vocab,words
from medlearn.foundations.budget import Budget
from medlearn.foundations.evaluation import auroc,estimate,Judge,resample
from medlearn.foundations.sequences import probabilities,read_all
from medlearn.kit.cards import DataError
from medlearn.sequences import text as S
from test_sequences_text import made_up, parts


def test_long_reports_keep_both_ends():
    data = made_up()
    vocab, _ = parts(data)
    data.text[0] = ' '.join(['heart']*30 + ['lungs']*30 + ['nodule']*30)
    for longest in (1, 2, 5, 6, 20, 89, 90, 91, 200):
        s = S.report_set(data, vocab, longest)
        said = vocab.decode(s.x[0, :s.sizes[0]].tolist())
        assert s.x.shape[1] == min(longest, int(s.sizes.max())) and said[0] == 'xxbos'
        if 5 < longest < 60: assert said[1] == 'heart' and said[-1] == 'nodule' and 'lungs' not in said
    assert s.sizes[0] == 91


def test_the_same_words_with_other_labels_put_a_ceiling_on_every_model():
    data = made_up(40)
    data.text[:] = [f'{t} view {i}' for i, t in enumerate(data.text)]
    assert S.contradicted(data) == dict(same=0, other=0, right=1, auroc=1)
    text, labels = data.text.copy(), data.labels.copy()
    text[:4], labels[:4] = 'The heart is normal.', [0, 0, 0, 1]
    found = S.contradicted(replace(data, text=text, labels=labels))
    assert (found['same'], found['other']) == (4, 4) and found['right'] == pytest.approx(39/40) and found['auroc'] < 1


def forty(n=400):
    "Forty classes, of which the validation split lacks some"
    rng = np.random.default_rng(0)
    data = made_up(n)
    labels = np.arange(n) % 40
    text = np.array([f'{t} finding{chr(97 + k//26)}{chr(97 + k % 26)}' for t, k in zip(data.text, labels)], object)
    split = np.where(np.arange(n) < 240, 'train', np.where(np.arange(n) < 270, 'valid', 'test'))
    return replace(data, labels=labels, text=text, split=split, classes=[f'c{k}' for k in range(40)])


def test_a_baseline_of_forty_classes_is_chosen_over_those_that_are_there():
    data = forty()
    model = S.TfidfReader(data.part('train'), data.part('valid'), 1, strengths=(.1, 10))
    assert all(np.isfinite(list(model.tried.values()))) and model.C == max(model.tried, key=model.tried.get)
    p = model(data.part('test').text)
    assert p.shape == (130, 40) and Judge(data.part('test'), 50).auroc(p)[0] > .9
    lacks = data.part('train').take(data.part('train').labels != 7)
    assert (S.TfidfReader(lacks, data.part('valid'), 1, strengths=(1,))(data.part('test').text)[:, 7] == 0).all()


def test_a_resample_that_lacks_a_class_counts_the_others():
    y = np.arange(80)[:, None] % 40 == np.arange(40)
    v = estimate(auroc, y, y + np.random.default_rng(0).random(y.shape), resample(80, 100))
    assert np.isfinite(v).all() and v[1] <= v[0] <= v[2] + .05


def test_a_random_part_keeps_each_class_and_long_texts_make_it_smaller():
    data = forty(4000).part('test')
    some = S.some_reports(data, 300, 1)
    assert len(some) == 300 and min(np.bincount(some.labels, minlength=40)) >= 2 and S.some_reports(data) is data
    assert list(S.some_reports(data, 300, 1).ids) == list(some.ids) != list(S.some_reports(data, 300, 2).ids)
    long = replace(data, text=np.array([f'{t} ' + 'word '*2000 for t in data.text], object))
    assert len(S.some_reports(long, 2000)) == 300 and len(S.some_reports(data, 2000)) == 2000


def test_texts_without_labels_are_read_and_refused_by_row(tmp_path):
    (tmp_path/'a.csv').write_text('id,text,more\nr1,"Clear, no mass.",x\nr2,Edema.,y\n')
    assert list(read_texts(tmp_path/'a.csv').columns) == ['id', 'text']
    for wrong, message in (('r3, ,z', "the text is empty in row 3 .id 'r3'"), ('r1,Twice.,z', 'the id was there before'), ('r3,z', 'row 3 has 2 cells')):
        (tmp_path/'b.csv').write_text((tmp_path/'a.csv').read_text() + wrong + '\n')
        with pytest.raises(DataError, match=message): read_texts(tmp_path/'b.csv')
    (tmp_path/'c.csv').write_text('id,report\nr1,Clear.\n')
    with pytest.raises(DataError, match='lacks the column text'): read_texts(tmp_path/'c.csv')


def test_new_cases_are_those_of_the_chapter(tmp_path):
    data = made_up()
    vocab, _ = parts(data)
    sets = {s: S.report_set(data.part(s), vocab, 24) for s in data.splits}
    torch.manual_seed(0)
    learn = S.fit_reader(S.ReportNet(S.AWD(len(vocab)), 2), sets['train'], sets['valid'], Budget(10), device='cpu')
    own = probabilities(read_all(learn, sets['test']))
    test = data.part('test')
    pd.DataFrame(dict(id=test.ids, text=test.text)).to_csv(tmp_path/'new.csv', index=False)
    config = dict(words=vocab.words, classes=data.classes, longest=24, unknown=.02)
    found = S.new_cases(learn.model.state_dict(), config, tmp_path/'new.csv')
    assert np.allclose(found.to_numpy(), own, atol=1e-5) and list(found.index) == list(test.ids) and list(found.columns) == data.classes
    (tmp_path/'new.csv').write_text('id,text\nr1,Der Kranke hatte Fieber.\n')
    with pytest.raises(DataError, match='perhaps in another language'): S.new_cases(learn.model.state_dict(), config, tmp_path/'new.csv')
