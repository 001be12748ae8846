"Reports read by counting and by networks, and entities found in sentences"
import itertools, sys, types
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn

from medlearn.data.entities import entity_f1,read_iob,Tagged
from medlearn.data.text import read_reports,Reports,Vocab,words
from medlearn.foundations.evaluation import estimate, resample
from medlearn.foundations.sequences import Recurrent, Transformer, read_all, sequence_net
from medlearn.kit.cards import DataError
from medlearn.kit.runner import plan, run
from medlearn.sequences import text as S

root = Path(__file__).parents[1]
NER = root.parent/'shared'/'data'/'ner'/'NCBI-disease-IOB'


def made_up(n=120, multi=False, seed=0):
    "Reports of very different lengths, in which a nodule is ill"
    rng = np.random.default_rng(seed)
    ill = np.arange(n) % 2
    fill = 'heart size is normal the lungs are clear no effusion bones are intact'.split()
    text = np.array([' '.join([*rng.choice(fill, rng.integers(1, 60)), *['nodule']*i]) + '.' for i in ill], object)
    labels = np.stack([ill, 1 - ill, rng.integers(0, 2, n)], 1) if multi else ill
    split = np.array((['train']*4 + ['valid']*2 + ['test']*2)*(n//8 + 1))[:n]
    return Reports(np.array([f'r{i}' for i in range(n)]), text, labels, split, list('abc') if multi else ['well', 'ill'], 'made up', np.arange(n).astype(str))


def parts(data):
    vocab = Vocab([words(t) for t in data.part('train').text], 1)
    return vocab, {s: S.report_set(data.part(s), vocab) for s in ('train', 'valid', 'test')}


def differ(net, data, rows):
    "Largest difference of the answers in one batch and alone"
    net.eval()
    x, n, *_ = data.take(rows)[torch.arange(len(rows))]
    with torch.no_grad():
        z = net(x, n)
        return max(float((z[i, :k] - net(x[i:i+1, :k], n[i:i+1])[0]).abs().max()) if z.ndim == 3 else float((z[i] - net(x[i:i+1, :k], n[i:i+1])[0]).abs().max())
                   for i, k in enumerate(n.tolist()))


# Reports

def test_report_set_has_codes_lengths_and_labels():
    data = made_up()
    vocab, sets = parts(data)
    first = words(data.part('train').text[0])
    assert vocab.decode(sets['train'].x[0, :len(first) + 1].tolist()) == ['xxbos', *first] and sets['train'].sizes[0] == len(first) + 1
    assert sets['train'].kind == 'category' and parts(made_up(multi=True))[1]['train'].kind == 'multi'
    assert S.report_set(data, vocab, longest=5).x.shape[1] == 5


@pytest.mark.parametrize('text', ['', ' \n\t'])
def test_empty_text_is_named(text):
    data = made_up()
    vocab = parts(data)[0]
    data.text[3] = text
    with pytest.raises(DataError, match="report 'r3' has no words"): S.report_set(data, vocab)


def test_a_label_with_one_member_is_named(tmp_path):
    data = made_up()
    assert S.check_classes(data) is data
    rare = np.where(np.arange(120) == 0, 2, data.labels)
    with pytest.raises(DataError, match="class 'rare' has 1 reports in train, and needs 2"): S.check_classes(replace(data, labels=rare, classes=['well', 'ill', 'rare']))
    only = np.c_[data.labels, (data.split == 'train').astype(int)]
    with pytest.raises(DataError, match="class 'b' has 0 reports in valid"): S.check_classes(replace(data, labels=only, classes=['a', 'b']))
    rows = '\n'.join(f'r{i},Clear lungs {i}.,{"rare" if i == 3 else "ab"[i % 2]}' for i in range(20))
    (tmp_path/'my.csv').write_text('id,text,label\n' + rows)
    with pytest.raises(DataError, match="label 'rare' stands alone"): read_reports(tmp_path/'my.csv')


def test_wrong_encoding_is_named(tmp_path):
    (tmp_path/'my.csv').write_bytes('id,text,label\n1,Décompensation,a\n2,Clear,b'.encode('cp1252'))
    with pytest.raises(DataError, match='byte 0xe9 .*line 2.* is not utf-8'): read_reports(tmp_path/'my.csv')
    (tmp_path/'train.tsv').write_bytes('œdème\tB-Disease\n'.encode('cp1252'))
    with pytest.raises(DataError, match='is not utf-8'): read_iob(tmp_path/'train.tsv')


@pytest.mark.parametrize('multi', [False, True])
def test_counting_chooses_its_penalty_on_validation(multi):
    data = made_up(multi=multi)
    train, valid, test = (data.part(s) for s in data.splits)
    model = S.TfidfReader(train, valid)
    p = model(test.text)
    assert p.shape == (len(test), len(data.classes)) and model.C == max(model.tried, key=model.tried.get)
    assert ((p[:, 0] > .5) == test.labels[:, 0] if multi else p.argmax(1) == test.labels).mean() > .9


def test_counting_with_three_classes():
    data = made_up()
    data = replace(data, labels=np.arange(120) % 3, classes=list('xyz'))
    p = S.TfidfReader(data.part('train'), data.part('valid'))(data.part('test').text)
    assert p.shape == (len(data.part('test')), 3) and np.allclose(p.sum(1), 1)


def test_single_words_are_blind_to_order():
    data = made_up()
    p = S.TfidfReader(data.part('train'), data.part('valid'), 1)(['no effusion nodule', 'no nodule effusion'])
    assert np.allclose(p[0], p[1])


# Networks that read reports

@pytest.fixture(scope='module')
def lm():
    data = made_up()
    torch.manual_seed(0)
    vocab, _ = parts(data)
    return vocab, S.language_model(data.part('train').text, data.part('valid').text, vocab, 2, 16, 24, device='cpu')


def test_language_model_learns_and_is_carried_over(lm):
    vocab, learn = lm
    perplexity = [float(np.exp(v[1])) for v in learn.recorder.values]
    assert perplexity[-1] < perplexity[0] and perplexity[-1] < len(vocab)
    body = S.AWD(len(vocab), 16, 24).start_from(learn)
    assert torch.equal(body.net.encoder.weight, learn.model[0].encoder.weight)
    x = torch.randint(2, len(vocab), (2, 9))
    learn.model[0].eval().reset()
    assert torch.allclose(body.eval()(x, torch.tensor([9, 9])), learn.model[0](x), atol=1e-6)
    with pytest.raises(RuntimeError, match='size mismatch'): S.AWD(len(vocab), 32, 24).start_from(learn)


@pytest.mark.parametrize('kind', ['awd', 'transformer', 'lstm'])
def test_padding_and_neighbours_change_nothing(kind):
    data = made_up()
    vocab, sets = parts(data)
    torch.manual_seed(0)
    body = dict(awd=lambda: S.Reader(S.AWD(len(vocab), 16, 24), 2), lstm=lambda: sequence_net(len(vocab), 2, 'lstm', 16, words=True),
                transformer=lambda: sequence_net(len(vocab), 2, 'transformer', 16, 2, 'mean', words=True))
    rows = torch.argsort(sets['train'].sizes)[[-1, 0, 5, -2, 1]].tolist()
    assert sets['train'].sizes[rows].max() > 10*sets['train'].sizes[rows].min()
    assert differ(body[kind](), sets['train'], rows) < 1e-5


def test_awd_forgets_the_batch_before():
    body = S.AWD(20, 16, 24).eval()
    x, n = torch.randint(2, 20, (3, 7)), torch.tensor([7, 4, 1])
    with torch.no_grad():
        first = body(x, n)
        body(torch.randint(2, 20, (5, 30)), torch.full((5,), 30))
        assert torch.equal(first, body(x, n)) and (first[1, 4:] == 0).all()


def test_reader_learns(lm):
    vocab, learn = lm
    data = made_up()
    sets = {s: S.report_set(data.part(s), vocab) for s in data.splits}
    torch.manual_seed(0)
    fitted = S.fit_reader(S.Reader(S.AWD(len(vocab), 16, 24).start_from(learn), 2), sets['train'], sets['valid'], 8, 1e-2, 8, 'cpu')
    assert (read_all(fitted, sets['test']).argmax(1) == data.part('test').labels).mean() > .9


def test_attention_and_worth_have_a_value_for_each_word():
    data = made_up()
    vocab, sets = parts(data)
    torch.manual_seed(0)
    net = S.fit_reader(sequence_net(len(vocab), 2, 'transformer', 16, 2, 'mean', words=True), sets['train'], sets['valid'], 12, 5e-3, 8, 'cpu').model
    x = torch.tensor(vocab.encode(['xxbos', *words('The heart is normal, nodule')]))
    looks, worth = S.looked_at(net, x), S.missed(net, x)
    assert looks.shape == (2, len(x)) and np.allclose(looks.sum(1), 1, atol=1e-5) and worth.shape == (len(x),)
    assert worth.argmax() == len(x) - 1 and net.body.blocks[0].weights is None


def test_bias_starts_at_the_odds():
    layer = nn.Linear(4, 2)
    S.start_at_odds(layer, np.array([[1, 0]]*3 + [[0, 0]]*1))
    assert torch.allclose(layer.bias.sigmoid(), torch.tensor([.7, .1]), atol=1e-6)


# Pretrained models

def test_without_transformers_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(DataError, match="pretrained='some/model' needs the package transformers"): S.Clinical('some/model')


class StandIn(nn.Module):
    "What a Hugging Face encoder promises"
    def __init__(self):
        super().__init__()
        self.config, self.emb = types.SimpleNamespace(hidden_size=16, max_position_embeddings=30), nn.Embedding(300, 16)
    def forward(self, input_ids, attention_mask):
        h, m = self.emb(input_ids), attention_mask[..., None]
        return types.SimpleNamespace(last_hidden_state=h + (h*m).sum(1, keepdim=True)/m.sum(1, keepdim=True))


class Tokens:
    pad_token_id, model_max_length = 0, 10**30
    def __call__(self, texts, truncation, max_length): return dict(input_ids=[[2, *(3 + ord(c) % 250 for c in t)][:max_length] for t in texts])


def stand_in(monkeypatch):
    def get(cls):
        def load(name, weights_only=False):
            assert weights_only or cls is Tokens, 'weights from elsewhere are read without running their code'
            if name != 'here': raise OSError(f'{name} is not a local folder\nand more')
            return cls()
        return types.SimpleNamespace(from_pretrained=load)
    monkeypatch.setitem(sys.modules, 'transformers', types.SimpleNamespace(AutoModel=get(StandIn), AutoTokenizer=get(Tokens)))


def test_a_pretrained_model_reads_like_any_other(monkeypatch):
    stand_in(monkeypatch)
    data, body = made_up(), S.Clinical('here')
    sets = {s: body.report_set(data.part(s)) for s in data.splits}
    assert sets['train'].sizes.max() == 30
    learn = S.fit_reader(S.Reader(body, 2), sets['train'], sets['valid'], 1, 1e-2, 16, 'cpu')
    assert read_all(learn, sets['test']).shape == (len(sets['test']), 2)
    assert differ(learn.model, sets['train'], torch.argsort(sets['train'].sizes)[[0, -1, 3]].tolist()) < 1e-5
    with pytest.raises(DataError, match="pretrained='elsewhere' is not a folder .*elsewhere is not a local folder"): S.Clinical('elsewhere')
    data.text[0] = ' '
    with pytest.raises(DataError, match="report 'r0' has no words"): body.report_set(data)


def test_a_tiny_bert_in_a_folder(tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    (tmp_path/'vocab.txt').write_text('\n'.join('[PAD] [UNK] [CLS] [SEP] [MASK] no effusion nodule clear heart'.split()))
    transformers.BertTokenizerFast(str(tmp_path/'vocab.txt')).save_pretrained(tmp_path)
    small = transformers.BertConfig(vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40)
    transformers.BertModel(small).save_pretrained(tmp_path)
    body = S.Clinical(str(tmp_path))
    sets = body.report_set(made_up())
    assert sets.sizes.max() == 40 and differ(S.Reader(body, 2), sets, torch.argsort(sets.sizes)[[0, -1, 3]].tolist()) < 1e-5


# Negation

@pytest.mark.parametrize('text,finding,other', [
    ('Clear. No pleural effusion.', 'effusion', 'Clear. pleural effusion.'), ('There is no effusion or edema.', 'edema', 'There is effusion or edema.'),
    ('No change in the effusion.', 'effusion', None), ('Large effusion.', 'effusion', None), ('Without effusion.', 'effusion', None), ('Clear lungs.', 'effusion', None)])
def test_a_denial_is_taken_away(text, finding, other): assert S.stated(text, finding) == other


# Entities

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
    learn = S.fit_tagger(build(kind, vocab, tags, learned), data.take(range(80)), data.take(range(80, 100)), 12, 1e-2, 8, 'cpu')
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
    learn = S.fit_tagger(build('lstm', vocab, tags), *sets[:2], 12, 1e-2, 8, 'cpu')
    assert entity_f1([s.tags for s in test], S.tags_of(learn, sets[2])).loc['all', 'F1'] > .2


# The chapter, on somebody's reports

def test_chapter_runs_on_a_csv(tmp_path):
    said = {'normal': 'The heart is normal . lungs are clear', 'opacity': 'There is an opacity in the left base', 'fracture': 'Healing fracture of a rib'}
    rng = np.random.default_rng(0)
    rows = [(f'r{i}{k}', ' '.join([said[k], f'view {i}', *rng.choice(['seen', 'today', 'again', 'chest'], rng.integers(0, 12))]), k) for i in range(40) for k in said]
    lines = ['id,text,label'] + [f'{a},"{b}",{c}' for a, b, c in rows]
    (tmp_path/'my.csv').write_text('\n'.join(lines))
    part = tmp_path/'nbs'/'sequences'
    part.mkdir(parents=True)
    notebook = (root/'nbs'/'sequences'/'05_text.ipynb').read_text(encoding='utf-8')
    for now, small in {'lm_epochs=3, epochs=2': 'lm_epochs=1, epochs=1', 'few_epochs=2': 'few_epochs=1', 'sentences=400, ner_epochs=6': 'sentences=120, ner_epochs=1', 'draws=300': 'draws=50'}.items():
        assert now in notebook
        notebook = notebook.replace(now, small)
    (part/'05_text.ipynb').write_text(notebook, encoding='utf-8')
    jobs = plan(['sequences/text'], params=dict(dataset=str(tmp_path/'my.csv')), folder=tmp_path/'nbs')
    row, = run(jobs, tmp_path/'out', timeout=300)
    assert row['error'] is None, row['error']
    holds = {c['claim']: c['passed'] for c in row['claims']}
    assert holds['AUROC of counted words, my.csv'] and holds['Answers of our networks, in a batch and alone, largest difference']
    assert not any('NegEx' in c for c in holds)


def test_what_a_reader_reads():
    "The corpus can be had elsewhere, no wish is a bound, and what the run shows is not written beforehand"
    text = (root/'nbs'/'sequences'/'05_text.ipynb').read_text(encoding='utf-8')
    assert 'shared/' not in text and '`cambridgeltl/MTL-Bioinformatics-2016`' in text
    assert 'The goal was' not in text and 'aim of this course' not in text and 'An AUROC of 0.99' not in text
