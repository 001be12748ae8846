"Reports read by counting and by networks"
import sys, types
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn

from batches import differ
from medlearn.data.text import check_reports,read_reports,Reports,Vocab,words
from medlearn.foundations.budget import Budget
from medlearn.foundations.sequences import read_all, sequence_net
from medlearn.kit.cards import DataError
from medlearn.kit.runner import plan, run
from medlearn.sequences import text as S

root = Path(__file__).parents[1]


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
    assert check_reports(data) is data
    rare = np.where(np.arange(120) == 0, 2, data.labels)
    with pytest.raises(DataError, match="class 'rare' has 1 reports in train, and needs 2"): check_reports(replace(data, labels=rare, classes=['well', 'ill', 'rare']))
    only = np.c_[data.labels, (data.split == 'train').astype(int)]
    with pytest.raises(DataError, match="class 'b' has 0 reports in valid"): check_reports(replace(data, labels=only, classes=['a', 'b']))
    rows = '\n'.join(f'r{i},Clear lungs {i}.,{"rare" if i == 3 else "ab"[i % 2]}' for i in range(20))
    (tmp_path/'my.csv').write_text('id,text,label\n' + rows)
    with pytest.raises(DataError, match="label 'rare' stands alone"): read_reports(tmp_path/'my.csv')


def test_wrong_encoding_is_named(tmp_path):
    (tmp_path/'my.csv').write_bytes('id,text,label\n1,Décompensation,a\n2,Clear,b'.encode('cp1252'))
    with pytest.raises(DataError, match='byte 0xe9 .*line 2.* is not utf-8'): read_reports(tmp_path/'my.csv')


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
    return vocab, S.language_model(data.part('train').text, data.part('valid').text, vocab, Budget(60), 16, 24, device='cpu')


def test_language_model_learns_and_is_carried_over(lm):
    vocab, learn = lm
    perplexity = [float(np.exp(c['validation'])) for c in learn.spent.checks]
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
    body = dict(awd=lambda: S.ReportNet(S.AWD(len(vocab), 16, 24), 2), lstm=lambda: sequence_net(len(vocab), 2, 'lstm', 16, words=True),
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
    fitted = S.fit_reader(S.ReportNet(S.AWD(len(vocab), 16, 24).start_from(learn), 2), sets['train'], sets['valid'], Budget(60), 1e-2, 8, 'cpu')
    assert (read_all(fitted, sets['test']).argmax(1) == data.part('test').labels).mean() > .9


def test_attention_and_worth_have_a_value_for_each_word():
    data = made_up()
    vocab, sets = parts(data)
    torch.manual_seed(0)
    net = S.fit_reader(sequence_net(len(vocab), 2, 'transformer', 16, 2, 'mean', words=True), sets['train'], sets['valid'], Budget(96), 5e-3, 8, 'cpu').model
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
    learn = S.fit_reader(S.ReportNet(body, 2), sets['train'], sets['valid'], Budget(4), 1e-2, 16, 'cpu')
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
    assert sets.sizes.max() == 40 and differ(S.ReportNet(body, 2), sets, torch.argsort(sets.sizes)[[0, -1, 3]].tolist()) < 1e-5


# Negation

@pytest.mark.parametrize('text,finding,other', [
    ('Clear. No pleural effusion.', 'effusion', 'Clear. pleural effusion.'), ('There is no effusion or edema.', 'edema', 'There is effusion or edema.'),
    ('No change in the effusion.', 'effusion', None), ('Large effusion.', 'effusion', None), ('Without effusion.', 'effusion', None), ('Clear lungs.', 'effusion', None)])
def test_a_denial_is_taken_away(text, finding, other): assert S.stated(text, finding) == other


# The chapter, on somebody's reports

def test_chapter_runs_on_a_csv(tmp_path):
    said = {'normal': 'The heart is normal . lungs are clear', 'opacity': 'There is an opacity in the left base', 'fracture': 'Healing fracture of a rib'}
    rng = np.random.default_rng(0)
    rows = [(f'r{i}{k}', ' '.join([said[k], f'view {i}', *rng.choice(['seen', 'today', 'again', 'chest'], rng.integers(0, 12))]), k) for i in range(40) for k in said]
    lines = ['id,text,label'] + [f'{a},"{b}",{c}' for a, b, c in rows]
    (tmp_path/'my.csv').write_text('\n'.join(lines))
    part = tmp_path/'nbs'/'sequences'
    part.mkdir(parents=True)
    notebook = (root/'nbs'/'sequences'/'06_text.ipynb').read_text(encoding='utf-8')
    for now, small in {'Budget(200, seconds=25)': 'Budget(12)', 'few_draws=0': 'few_draws=1', 'Budget(70, 2)': 'Budget(6)', 'draws=300': 'draws=50'}.items():
        assert now in notebook
        notebook = notebook.replace(now, small)
    (part/'06_text.ipynb').write_text(notebook, encoding='utf-8')
    jobs = plan(['sequences/text'], params=dict(dataset=str(tmp_path/'my.csv')), folder=tmp_path/'nbs')
    row, = run(jobs, tmp_path/'out', timeout=300)
    assert row['error'] is None, row['error']
    holds = {c['claim']: c['passed'] for c in row['claims']}
    assert holds['AUROC of counted words, my.csv'] and holds['Answers of our networks, in a batch and alone, largest difference']
    assert not any('NegEx' in c for c in holds)


def test_what_a_reader_reads():
    "The corpus can be had elsewhere, no wish is a bound, and what the run shows is not written beforehand"
    text = (root/'nbs'/'sequences'/'06_text.ipynb').read_text(encoding='utf-8')
    assert 'shared/' not in text
    assert 'The goal was' not in text and 'aim of this course' not in text and 'An AUROC of 0.99' not in text
