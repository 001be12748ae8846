"Diseases found in sentences: by a list, by words with their letters, and by a chain of tags"
import itertools
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn

from batches import differ
from medlearn.data.entities import entity_f1,ncbi_disease,read_iob,Tagged
from medlearn.data.text import Vocab
from medlearn.foundations.budget import Budget
from medlearn.foundations.evaluation import estimate, resample
from medlearn.foundations.sequences import Recurrent, Transformer
from medlearn.kit.cards import DataError
from medlearn.kit.runner import plan, run
from medlearn.sequences import entities as S

root = Path(__file__).parents[1]
NER = root.parent/'shared'/'data'/'ner'/'NCBI-disease-IOB'


SENTENCES = [Tagged('Familial breast cancer and APC were seen .'.split(), ['B-D', 'I-D', 'I-D', 'O', 'B-D', 'O', 'O', 'O']),
             Tagged('Cancer of the colon'.split(), ['B-D', 'I-D', 'I-D', 'I-D']), Tagged('no cancer .'.split(), ['O', 'O', 'O'])]


def test_lookup_takes_the_longest_and_leaves_the_ambiguous():
    look = S.Lookup.learned(SENTENCES, .5)
    assert look('APC and FAMILIAL breast cancer'.split()) == ['B-D', 'O', 'B-D', 'I-D', 'I-D'] and look(['cancer']) == ['O']
    often = SENTENCES + [Tagged(['APC'], ['O'])]*3
    assert S.Lookup.learned(often, .5)(['APC']) == ['O'] and S.Lookup.learned(often, .2)(['APC']) == ['B-D']
    assert look([]) == [] and S.Lookup({})(['cancer']) == ['O'] and S.Lookup.learned(SENTENCES[2:])(['cancer']) == ['O']


def ner_sets(n=60, letters=8):
    rng = np.random.default_rng(0)
    ends, rest = ['itis', 'oma', 'emia'], 'the patient had and was seen with of'.split()
    def one():
        row = [(w, 'O') for w in rng.choice(rest, rng.integers(1, 25))]
        at = rng.integers(0, len(row) + 1)
        return Tagged(*map(list, zip(*row[:at], (''.join(rng.choice(list('bcdfg'), 4)) + rng.choice(ends), 'B-D'), *row[at:])))
    rows = [one() for _ in range(n)]
    vocab, tags = Vocab([[w.lower() for w in s.tokens] for s in rows], 2), S.tag_names(rows)
    return rows, vocab, tags, S.tag_set(rows, vocab, tags, letters)


def test_tag_set_keeps_casing_and_both_ends_of_long_words():
    vocab, tags = Vocab([['apc', 'cancer']], 1), S.tag_names(SENTENCES)
    data = S.tag_set([Tagged(['APC', 'Hyperhomocysteinemia', 'é'], ['B-D', 'O', 'O'])], vocab, tags, 8)
    assert tags == ['O', 'B-D', 'I-D'] and data.x.shape == (1, 3, 9) and data.x[0, :, 0].tolist() == [vocab.number['apc'], 0, 0]
    spelt = [''.join(map(chr, r[r > 0])) for r in data.x[0, :, 1:].numpy()]
    assert spelt == ['APC', 'Hypeemia', chr(127)] and data.y[1].tolist() == [[1, 0, 0]]


def test_unknown_tags_and_empty_sentences_are_named():
    _, vocab, tags, _ = ner_sets(4)
    with pytest.raises(DataError, match="sentence 1 has the tag 'B-Gene', which the network does not know: it knows O, B-D, I-D"):
        S.tag_set([Tagged(['a'], ['O']), Tagged(['BRCA1'], ['B-Gene'])], vocab, tags)
    with pytest.raises(DataError, match='sentence 1 of 2 has no words'): S.tag_set([Tagged(['a'], ['O']), Tagged([], [])], vocab, tags)


@pytest.mark.parametrize('learned', [True, False])
def test_chain_is_what_all_rows_written_down_give(learned):
    torch.manual_seed(0)
    tags = ['O', 'B-x', 'I-x', 'B-y', 'I-y']
    chain = S.Chain(tags, learned)
    if learned: nn.init.normal_(chain.move), nn.init.normal_(chain.first)
    z, lengths, y = torch.randn(2, 4, 5), torch.tensor([4, 2]), torch.tensor([[0, 1, 2, 3], [3, 4, -100, -100]])
    move, first, total = chain.move + chain.bar, chain.first + chain.bar_first, 0
    for i, n in enumerate(lengths.tolist()):
        s = {r: float(first[r[0]] + sum(z[i, t, k] for t, k in enumerate(r)) + sum(move[a, b] for a, b in zip(r, r[1:]))) for r in itertools.product(range(5), repeat=n)}
        total += np.logaddexp.reduce(list(s.values())) - s[tuple(y[i, :n].tolist())]
        assert chain.best(z, lengths)[i] == [tags[k] for k in max(s, key=s.get)]
    loss = float(chain(z, y))
    assert abs(loss - total/6) < 1e-4 if learned else abs(loss - float(nn.functional.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-100))) < 1e-6


def test_no_row_of_tags_breaks_the_grammar():
    torch.manual_seed(1)
    chain = S.Chain(['O', 'B-x', 'I-x', 'B-y', 'I-y'])
    for row in chain.best(torch.randn(50, 30, 5)*3, torch.randint(1, 31, (50,))):
        assert all(t[0] != 'I' or last[1:] == t[1:] and last != 'O' for last, t in zip(['O', *row], row))


def build(kind, vocab, tags, learned=True):
    torch.manual_seed(0)
    first = S.Spelled(len(vocab), 12, 12)
    return S.Tagger(first, Recurrent(first.width, 12, both=True) if kind == 'lstm' else Transformer(first.width, 16, 2, 1), tags, .1, learned)


@pytest.mark.parametrize('kind', ['lstm', 'transformer'])
def test_tagger_gives_the_same_in_a_batch_and_alone(kind):
    _, vocab, tags, data = ner_sets()
    assert differ(build(kind, vocab, tags), data, torch.argsort(data.sizes)[[-1, 0, 7, -2]].tolist()) < 1e-5


@pytest.mark.parametrize('kind,learned', [('lstm', True), ('lstm', False), ('transformer', True)])
def test_tagger_learns_endings_and_reads_longer_sentences(kind, learned):
    rows, vocab, tags, data = ner_sets(120)
    learn = S.fit_tagger(build(kind, vocab, tags, learned), data.take(range(80)), data.take(range(80, 100)), Budget(120), 1e-2, 8, 'cpu')
    pred = S.tags_of(learn, data.take(range(100, 120)), bs=7)
    assert entity_f1([s.tags for s in rows[100:]], pred).loc['all', 'F1'] > .7
    far = Tagged(['the']*200 + ['bcdfitis'], ['O']*201)
    again = S.tags_of(learn, S.tag_set([far, rows[0]], vocab, tags, 8))
    assert len(again[0]) == 201 and len(again[1]) == len(rows[0].tokens) and again[1] == S.tags_of(learn, data.take([0]))[0]


def test_f1_of_counts_is_that_of_entities():
    truth = [s.tags for s in SENTENCES]
    pred = [['B-D', 'I-D', 'I-D', 'O', 'O', 'O', 'O', 'O'], ['O']*4, ['O', 'B-D', 'O']]
    counts = S.sentence_counts(truth, pred)
    assert counts.tolist() == [[2, 1, 1], [1, 0, 0], [0, 1, 0]]
    value, low, high = estimate(S.sentence_f1, None, counts, resample(3, 50))
    assert value == pytest.approx(entity_f1(truth, pred).loc['all', 'F1']) and low <= value <= high
    with pytest.raises(DataError, match='no true entity in 2 sentences'): S.sentence_f1(None, np.zeros((2, 3)))


def test_ncbi_is_learned_a_little_from_a_part():
    if not NER.exists(): pytest.skip('the NCBI corpus is not here')
    train, test = read_iob(NER/'train.tsv')[:400], read_iob(NER/'test.tsv')[:200]
    vocab, tags = Vocab([[w.lower() for w in s.tokens] for s in train], 2), S.tag_names(train)
    sets = [S.tag_set(x, vocab, tags) for x in (train[:300], train[300:], test)]
    learn = S.fit_tagger(build('lstm', vocab, tags), *sets[:2], Budget(300), 1e-2, 8, 'cpu')
    assert entity_f1([s.tags for s in test], S.tags_of(learn, sets[2])).loc['all', 'F1'] > .2


def test_wrong_encoding_is_named(tmp_path):
    (tmp_path/'train.tsv').write_bytes('œdème\tB-Disease\n'.encode('cp1252'))
    with pytest.raises(DataError, match='is not utf-8'): read_iob(tmp_path/'train.tsv')


def test_the_corpus_comes_by_its_card(tmp_path, monkeypatch):
    if not NER.exists(): pytest.skip('the NCBI corpus is not here')
    monkeypatch.setenv('MEDLEARN_MIRROR', str(NER))
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path))
    got = ncbi_disease()
    assert {k: len(v) for k, v in got.items()} == dict(train=5424, valid=923, test=940)
    assert sum(t[0] == 'B' for s in got['test'] for t in s.tags) == 960


# The chapter, on somebody's sentences

def test_chapter_runs_on_a_folder(tmp_path):
    rows = ner_sets(150)[0]
    for name, part in dict(train=rows[:90], devel=rows[90:120], test=rows[120:]).items():
        lines = ['\n'.join(f'{w}\t{t}' for w, t in zip(*s)) for s in part]
        (tmp_path/f'{name}.tsv').write_text('\n\n'.join(lines) + '\n')
    row, = run(plan(['sequences/entities'], params=dict(dataset=str(tmp_path))), tmp_path/'out', timeout=300)
    assert row['error'] is None, row['error']
    holds = {c['claim']: c['passed'] for c in row['claims']}
    assert len(holds) >= 4 and all(holds.values()) and not any('list' in c for c in holds)
