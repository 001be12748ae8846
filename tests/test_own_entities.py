"Somebody's tagged sentences, and new texts without tags"
from pathlib import Path

import numpy as np, pytest, torch

from medlearn.data.entities import in_pieces,read_entities,read_untagged,same_sentences,split_words,Tagged,to_spans
from medlearn.data.text import Vocab
from medlearn.foundations.budget import Budget
from medlearn.kit.cards import DataError
from medlearn.kit.runner import plan
from medlearn.sequences import entities as S
from test_sequences_entities import NER, ner_sets, SENTENCES


def corpus(at, rows, **other):
    "A folder of three files"
    at.mkdir(exist_ok=True)
    for name, part in (dict(train=rows, devel=rows, test=rows) | other).items():
        (at/f'{name}.tsv').write_text('\n\n'.join('\n'.join(f'{w}\t{t}' for w, t in zip(*s)) for s in part) + '\n')
    return at


def test_a_relative_folder_counts_from_where_the_user_is_and_fails_at_once(tmp_path):
    corpus(tmp_path/'mine', SENTENCES)
    job, = plan(['sequences/entities'], params=dict(dataset='mine'), cwd=tmp_path)
    assert job.parameters['dataset'] == str(tmp_path/'mine')
    with pytest.raises(Exception, match='nothere'): plan(['sequences/entities'], params=dict(dataset='nothere/mine'), cwd=tmp_path)


def test_a_split_without_entities_and_a_kind_that_training_lacks_are_named(tmp_path):
    with pytest.raises(DataError, match='devel.tsv names no entity'): read_entities(corpus(tmp_path/'a', SENTENCES, devel=SENTENCES[2:]))
    with pytest.raises(DataError, match="test.tsv has the kind 'Gene', which train.tsv lacks"):
        read_entities(corpus(tmp_path/'b', SENTENCES, test=[Tagged(['BRCA1'], ['B-Gene'])]))


def test_same_words_with_other_tags_are_counted():
    other = Tagged('No CANCER .'.split(), ['O', 'B-D', 'O'])
    said = same_sentences(dict(train=SENTENCES, valid=[], test=[other, SENTENCES[0]]))
    assert list(said.values()) == [2, 2, 2]


@pytest.mark.parametrize('longest', [2, 3, 8, 500])
def test_pieces_keep_every_word_and_no_entity_is_lost(longest):
    rows = ner_sets(20)[0]
    long = Tagged([w for s in rows for w in s.tokens], [t for s in rows for t in s.tags])
    pieces = in_pieces([long, rows[0]], longest)
    assert max(len(s.tokens) for s in pieces) <= longest and all(s.tags[0][0] != 'I' for s in pieces)
    assert [w for s in pieces for w in s.tokens] == long.tokens + rows[0].tokens
    assert sum(len(to_spans(s.tags)) for s in pieces) >= len(to_spans(long.tags)) + len(to_spans(rows[0].tags))
    full_stop = in_pieces([Tagged('a b c . d e f'.split(), ['O']*7)], 5)
    assert [len(s.tokens) for s in full_stop] == [4, 3]


def test_texts_without_tags_are_read(tmp_path):
    (tmp_path/'a.txt').write_text('No well-defined mass. Old rib fracture of 1.5 cm.\nEdema\n')
    (tmp_path/'a.tsv').write_text('Old\tO\nrib\tB-D\n\nNo\tO\n')
    (tmp_path/'b.tsv').write_text('Old\nrib\n\n\nNo\n')
    (tmp_path/'a.csv').write_text('id,text\nr1,"No mass, no edema."\nr2,Clear.\n')
    assert read_untagged(tmp_path/'a.txt')['a.txt'] == [['No', 'well-defined', 'mass', '.'], ['Old', 'rib', 'fracture', 'of', '1.5', 'cm', '.'], ['Edema']]
    assert split_words('well-defined', False) == [['well', '-', 'defined']]
    assert read_untagged(tmp_path/'a.tsv')['a.tsv'] == [['Old', 'rib'], ['No']] == read_untagged(tmp_path/'b.tsv')['b.tsv']
    assert list(read_untagged(tmp_path/'a.csv')) == ['r1', 'r2']
    (tmp_path/'c.txt').write_text('\n')
    with pytest.raises(DataError, match='has no words'): read_untagged(tmp_path/'c.txt')
    with pytest.raises(DataError, match='is a folder'): read_untagged(tmp_path)


def test_the_linear_tagger_learns_endings_and_keeps_the_grammar():
    rows = ner_sets(120)[0]
    look = S.LinearTagger(rows[:80], 1e-5)
    right = [look(s.tokens) == s.tags for s in rows[80:]]
    assert np.mean(right) > .7
    for s in rows[80:]: assert all(t[0] != 'I' for t in look(s.tokens)[:1])


@pytest.fixture(scope='module')
def trained():
    rows, vocab, tags, data = ner_sets(120)
    torch.manual_seed(0)
    net = S.bilstm_tagger(len(vocab), tags, 20, drop=.1)
    learn = S.fit_tagger(net, data.take(range(80)), data.take(range(80, 100)), Budget(100), device='cpu')
    return rows, learn, dict(words=vocab.words, tags=tags, classes=['D'], letters=8, width=20, longest=128, hyphens=True, unknown=.1), data


def test_new_cases_are_those_of_the_chapter(trained, tmp_path):
    rows, learn, config, data = trained
    test = rows[100:]
    own = [[(a + 1, b) for a, b, _ in to_spans(t)] for t in S.tags_of(learn, data.take(range(100, 120)))]
    (tmp_path/'new.tsv').write_text('\n\n'.join('\n'.join(s.tokens) for s in test) + '\n')
    found = S.new_cases(learn.model.state_dict(), config, tmp_path/'new.tsv')
    again = [[*zip(rows['first'], rows['last'])] for _, rows in found.groupby('sentence')]
    assert again == [o for o in own if o] and sum(map(len, own)) > 5 and found.index.is_unique
    assert found.entity.iloc[0].endswith(('itis', 'oma', 'emia'))


def test_new_texts_have_a_row_even_where_nothing_is_found_and_other_languages_are_refused(trained, tmp_path):
    _, learn, config, _ = trained
    (tmp_path/'new.csv').write_text('id,text\nr1,the patient had bcdfitis and was seen\nr2,the\n')
    found = S.new_cases(learn.model.state_dict(), config, tmp_path/'new.csv')
    assert set(found.text) == {'r1', 'r2'} and 'bcdfitis' in set(found.entity)
    (tmp_path/'new.txt').write_text('Der Kranke hatte Fieber.')
    with pytest.raises(DataError, match='perhaps in another language'): S.new_cases(learn.model.state_dict(), config, tmp_path/'new.txt')


def test_few_steps_find_more_on_ncbi_than_the_dictionary():
    if not NER.exists(): pytest.skip('the NCBI corpus is not here')
    from medlearn.data.entities import entity_f1
    said = read_entities(NER)
    train, valid, test = said['train'][:800], said['valid'][:150], said['test'][:300]
    vocab, tags = Vocab([[w.lower() for w in s.tokens] for s in train], 2), S.tag_names(train)
    sets = [S.tag_set(x, vocab, tags) for x in (train, valid, test)]
    torch.manual_seed(1)
    learn = S.fit_tagger(S.bilstm_tagger(len(vocab), tags, 50, drop=.3), *sets[:2], Budget(160), device='cpu')
    look = S.Lookup.learned(train, .25)
    f1 = [entity_f1([s.tags for s in test], t).loc['all', 'F1'] for t in (S.tags_of(learn, sets[2]), [look(s.tokens) for s in test])]
    assert f1[0] > f1[1] - .1 and f1[0] > .4, f1
