"Padding changes no answer, masks hide what they should, and cells, attention and loaders keep what they promise"
import numpy as np, pytest, torch
from fastai.learner import Learner
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from medlearn.foundations import sequences as S
from medlearn.foundations.training import EMA, KeepBest, one_cycle
from medlearn.kit.cards import DataError

KINDS = [('rnn', False), ('gru', False), ('gru', True), ('lstm', False), ('lstm', True), ('transformer', False)]
POOLS = ['last', 'mean', 'max', 'attend', None]
each_net = pytest.mark.parametrize('kind,both', KINDS, ids=[k + '-both'*b for k, b in KINDS])


def some(n=12, longest=40, d=3, seed=0, words=None):
    "Sequences of 1 to `longest` steps; padding is filled with numbers that must not matter"
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=rng)
    lengths[:2] = torch.tensor([1, longest])
    x = torch.randint(2, words, (n, longest), generator=rng) if words else torch.randn(n, longest, d, generator=rng)
    return x, lengths


def alone(net, x, lengths):
    return [net(x[i:i+1, :n], lengths[i:i+1])[0] for i, n in enumerate(lengths.tolist())]


# Padding

@each_net
@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('words', [None, 50])
@torch.inference_mode()
def test_a_sequence_is_read_alike_alone_and_in_a_batch(kind, both, pool, words):
    x, n = some(words=words)
    net = S.sequence_net(words or 3, 4, kind, 16, 2, pool, bool(words), both=both).eval()
    together = net(x, n)
    for i, want in enumerate(alone(net, x, n)):
        got = together[i, :n[i]] if pool is None else together[i]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@each_net
@torch.inference_mode()
def test_what_stands_in_the_padding_does_not_matter(kind, both):
    x, n = some()
    real = S.real_steps(n, x.shape[1])[..., None]
    net = S.sequence_net(3, 2, kind, 16, 2, 'attend', both=both).eval()
    torch.testing.assert_close(net(x, n), net(torch.where(real, x, 1e3), n), atol=1e-5, rtol=1e-5)


@each_net
def test_no_gradient_reaches_the_padding(kind, both):
    x, n = some()
    x.requires_grad_()
    S.sequence_net(3, 2, kind, 16, 2, 'max', both=both, drop=0)(x, n).sum().backward()
    padding = ~S.real_steps(n, x.shape[1])
    assert x.grad[padding].abs().max() == 0 < x.grad[~padding].abs().max()


@torch.inference_mode()
def test_states_after_the_end_are_zero():
    x, n = some()
    for body in (S.Recurrent(3, 8, both=True), S.Transformer(3, 8)):
        h = body.eval()(x, n)
        assert h.shape == (12, 40, body.width) and h[~S.real_steps(n, 40)].abs().max() == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_backwards_is_its_own_inverse_and_leaves_the_padding(lengths, more):
    n = torch.tensor(lengths)
    x = torch.arange(float(len(n)*(max(lengths) + more)*2)).view(len(n), -1, 2)
    y = S.backwards(x, n)
    assert S.backwards(y, n).equal(x)
    for a, b, k in zip(x, y, lengths): assert b[:k].equal(a[:k].flip(0)) and b[k:].equal(a[k:])


@torch.inference_mode()
def test_two_layers_both_ways_are_what_packing_gives():
    x, n = some(d=5)
    for kind in ('rnn', 'gru', 'lstm'):
        body = S.Recurrent(5, 7, kind, layers=2, both=True)
        net = getattr(nn, kind.upper())(5, 7, 2, batch_first=True, bidirectional=True)
        net.load_state_dict({f'{name[:-1]}{i}' + '_reverse'*d: p for i, nets in enumerate(body.nets) for d, cell in enumerate(nets)
                             for name, p in cell.named_parameters()})
        packed = net(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[0]
        torch.testing.assert_close(body(x, n), pad_packed_sequence(packed, batch_first=True, total_length=40)[0], atol=1e-6, rtol=1e-5)


# Attention

def test_attention_is_pytorchs_and_its_weights_are_shares():
    q, k, v = torch.randn(3, 4, 2, 9, 8)
    seen = S.real_steps(torch.tensor([9, 1, 4, 6]), 9)[:, None, None]
    y, w = S.attention(q, k, v, seen)
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, seen))
    torch.testing.assert_close(w.sum(-1), torch.ones(4, 2, 9))
    assert w[~seen.expand_as(w)].max() == 0


@torch.inference_mode()
def test_a_causal_transformer_does_not_see_the_future():
    x, n = torch.randn(2, 20, 3), torch.tensor([20, 20])
    later = x.clone()
    later[:, 12:] = 9
    for causal in (True, False):
        net = S.Transformer(3, 16, causal=causal).eval()
        same = torch.allclose(net(x, n)[:, :12], net(later, n)[:, :12], atol=1e-6)
        assert same == causal


@torch.inference_mode()
def test_watched_blocks_keep_their_weights_and_answer_the_same():
    x, n = some()
    net = S.Transformer(3, 16, heads=2, layers=2).eval()
    plain, seen = net(x, n), net.watch()(x, n)
    torch.testing.assert_close(plain, seen, atol=1e-5, rtol=1e-5)
    w = net.blocks[1].weights
    assert w.shape == (12, 2, 40, 40) and w[0, :, :, 1:].max() == 0 and torch.allclose(w.sum(-1), torch.ones(12, 2, 40))
    assert net.watch(False).blocks[0].weights is None


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match='not divisible'): S.Block(10, 4)


def test_positions_differ_and_stay_between_minus_one_and_one():
    p = S.positions(200, 32)
    assert p.shape == (200, 32) and p.abs().max() <= 1 and torch.pdist(p).min() > .1


# Pooling

@torch.inference_mode()
def test_pools_are_what_their_names_say():
    h, n = torch.randn(3, 5, 4), torch.tensor([5, 1, 3])
    rows = [h[i, :k] for i, k in enumerate(n)]
    torch.testing.assert_close(S.Mean()(h, n), torch.stack([r.mean(0) for r in rows]))
    torch.testing.assert_close(S.Max()(h, n), torch.stack([r.amax(0) for r in rows]))
    torch.testing.assert_close(S.Last(S.Recurrent(2, 4))(h, n), torch.stack([r[-1] for r in rows]))
    both = torch.stack([torch.cat([r[-1, :2], r[0, 2:]]) for r in rows])
    torch.testing.assert_close(S.Last(S.Recurrent(2, 2, both=True))(h, n), both)
    pool = S.Attend(4)
    torch.testing.assert_close(pool(h, n)[1], h[1, 0])
    assert torch.allclose(pool.weights.sum(1), torch.ones(3)) and pool.weights[1, 1:].max() == 0


# Sets and loaders

def words_set(n=300, kind='category', seed=0):
    "Does the first word have a high number? Lengths from 1 to 40"
    x, long = some(n, words=30, seed=seed)
    x[~S.real_steps(long, 40)] = 1
    first = (x[:, 0] > 15)
    y = dict(category=first.long(), multi=torch.stack([first, ~first], 1).float(), value=first.float()[:, None],
             tags=torch.where(S.real_steps(long, 40), (x > 15).long(), -100))[kind]
    return S.SequenceSet(x, long, y, kind=kind)


def test_similar_lengths_leave_hardly_more_padding_than_sorting():
    data = words_set(1000)
    dl = S.sequence_loaders(data, data.take(range(50)), bs=16, device='cpu').train
    def padding(order):
        size = [data.sizes[order[i:i + 16]] for i in range(0, len(order), 16)]
        return 1 - sum(int(s.sum()) for s in size)/sum(len(s)*int(s.max()) for s in size)
    alike, least, chance = padding(dl.get_idxs()), padding(torch.argsort(-data.sizes).tolist()), padding(torch.randperm(1000).tolist())
    assert alike < least + .02 and alike < chance/2


def test_batches_are_cut_at_their_longest_and_hold_every_row_once():
    data = words_set()
    dls = S.sequence_loaders(data, data.take(range(50)), bs=16, device='cpu')
    assert dls.train.n_inp == dls.valid.n_inp == 2
    seen = []
    for x, n, y in dls.train:
        assert x.shape[1] == n.max()
        seen += [tuple(row[:k].tolist()) for row, k in zip(x, n)]
    assert sorted(seen) == sorted(tuple(row[:k].tolist()) for row, k in zip(data.x, data.sizes))
    first = [b[1].tolist() for b in dls.train]
    assert first != [b[1].tolist() for b in dls.train], 'another order each epoch'
    assert torch.cat([b[1] for b in dls.valid]).equal(data.sizes[:50]), 'validation stays in order'


def test_similar_lengths_go_together():
    data = words_set(640)
    dls = S.sequence_loaders(data, data.take(range(9)), bs=16, device='cpu')
    waste = lambda batches: 1 - sum(int(n.sum()) for _, n in batches)/sum(x.numel() for x, _ in batches)
    random = [data[i][:2] for i in torch.randperm(640).split(16)]
    assert waste([b[:2] for b in dls.train]) < .15 < .35 < waste(random)


@pytest.mark.parametrize('kind', ['category', 'multi', 'value', 'tags'])
def test_every_kind_of_target_can_be_learned(kind):
    torch.manual_seed(0)
    data, new = words_set(600, kind), words_set(200, kind, seed=1)
    dls = S.sequence_loaders(data, new, bs=32, device='cpu')
    n_out = dict(category=2, multi=2, value=1, tags=2)[kind]
    net = S.sequence_net(30, n_out, 'gru', 24, words=True, both=True, pool=None if kind == 'tags' else 'last', drop=0)
    learn = Learner(dls, net, loss_func=S.sequence_loss(kind))
    one_cycle(learn, 6, 2e-2, cbs=[KeepBest(), EMA(.9)], validate=True)
    z, y = S.read_all(learn, new, bs=64), new.y[1].numpy()
    if kind == 'category': right = z.argmax(1) == y
    elif kind == 'multi': right = (S.probabilities(z, 'multi') > .5) == (y > .5)
    elif kind == 'value': right = (z > .5) == (y > .5)
    else: right = (z.argmax(-1) == y)[y != -100]
    assert right.mean() > .95
    preds = learn.get_preds(dl=dls.valid)[0] if kind != 'tags' else None
    if kind == 'value': np.testing.assert_allclose(preds.numpy(), z, atol=1e-5)


def test_outputs_come_in_the_order_of_the_rows():
    data = words_set(70, 'tags')
    learn = Learner(S.sequence_loaders(data, data, device='cpu'), S.sequence_net(30, 3, words=True, pool=None, drop=0), loss_func=S.sequence_loss('tags'))
    z = S.read_all(learn, data, bs=8)
    assert z.shape == (70, 40, 3)
    with torch.inference_mode():
        for i in (0, 1, 33): np.testing.assert_allclose(z[i, :data.sizes[i]], learn.model(data.x[i:i+1], data.sizes[i:i+1])[0, :data.sizes[i]], atol=1e-5)
    assert abs(z[~S.real_steps(data.sizes, 40).numpy()]).max() == 0


def test_the_loss_leaves_the_padding_out():
    z, y = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, 1, 0], [2, -100, -100, -100, -100]])
    want = F.cross_entropy(torch.cat([z[0], z[1, :1]]), torch.cat([y[0], y[1, :1]]))
    torch.testing.assert_close(S.sequence_loss('tags')(z, y), want)


def test_probabilities_follow_the_kind():
    z = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert np.allclose(S.probabilities(z).sum(1), 1) and np.allclose(S.probabilities(z, 'multi'), 1/(1 + np.exp(-z)))


# Bad input

@pytest.mark.parametrize('x,lengths,y,says', [
    (torch.zeros(3, 5, 2), [5, 0, 1], [0, 0, 0], 'sequence 1 has length 0'),
    (torch.zeros(3, 5, 2), [5, 6, 1], [0, 0, 0], 'sequence 1 has length 6'),
    (torch.full((3, 5, 2), torch.nan), [5, 5, 5], [0, 0, 0], 'sequence 0 has NaN'),
    (torch.zeros(3, 5, 2), [5, 5], [0, 0, 0], '3 sequences and 2 lengths'),
    (torch.zeros(3, 5, 2), [5, 5, 5], [0, 0], '3 sequences and 2 targets'),
])
def test_what_cannot_be_read_is_refused(x, lengths, y, says):
    with pytest.raises(DataError, match=says): S.SequenceSet(x, lengths, y)
