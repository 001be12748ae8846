"Generators of molecules: what they read, write and count, on cases small enough to know the answer"
import numpy as np, pytest, torch

from medlearn.foundations.budget import Budget
from medlearn.foundations.newmolecules import Alphabet, read_back
from medlearn.foundations.sequences import sequence_net, SequenceSet
from medlearn.molecules import design as D, generation as G

FEW = ['CCO', 'CCN', 'CCCO', 'c1ccccc1', 'CC(=O)O']


@pytest.fixture(scope='module')
def alphabet(): return Alphabet(FEW)


# Counting

def test_triples_are_counted(alphabet):
    codes, _ = alphabet.encode(['CCO', 'CCN', 'CCO'])
    t = G.Triples(codes, len(alphabet), smooth=0)
    C, O, N = (alphabet.code[s] for s in 'CON')
    assert t.count[C, C, O] == 2 and t.count[C, C, N] == 1 and t.count[0, 0, C] == 3 and t.count[C, O, 2] == 2
    assert t.share[C, C, O] == pytest.approx(2/3)
    lost = t.surprise(alphabet.encode(['CCO', 'CCN'])[0])
    assert np.allclose(lost, -np.log([2/3, 1/3]))


def test_triples_write_what_they_saw_and_stop(alphabet):
    t = G.Triples(alphabet.encode(FEW[:2])[0], len(alphabet), smooth=1e-9)
    texts = alphabet.decode(t.write(200, 0, longest=10))
    assert set(texts) == {'CCO', 'CCN'} and list(texts) == list(alphabet.decode(t.write(200, 0, longest=10)))
    assert .4 < np.mean(texts == 'CCO') < .6


# The network

def test_questions_and_answers(alphabet):
    codes, sizes = alphabet.encode(['CCO', 'c1ccccc1'])
    x, y = G.next_symbols(codes, sizes)
    assert x.shape == y.shape == (2, sizes.max() - 1) and (y[0, sizes[0] - 1:] == -100).all()
    assert all((x[i, 1:n - 1] == y[i, :n - 2]).all() and y[i, n - 2] == 2 for i, n in enumerate(sizes))


@pytest.fixture(scope='module')
def learned(alphabet):
    codes, sizes = alphabet.encode(FEW*8)
    x, y = G.next_symbols(codes, sizes)
    part = lambda: SequenceSet(x, sizes - 1, y, kind='tags')
    torch.manual_seed(0)
    net = sequence_net(len(alphabet), len(alphabet), 'lstm', 32, 1, pool=None, words=True, drop=0)
    return G.train_writer(net, part(), part(), Budget(150, checks=1), 2e-2, 20, 'cpu')


def test_a_network_learns_a_short_list_by_heart(learned, alphabet):
    texts = G.write(learned.model, 100, alphabet, seed=1)
    assert np.mean(np.isin(texts, FEW)) > .8
    assert list(texts) == list(G.write(learned.model, 100, alphabet, seed=1))
    assert len(set(G.write(learned.model, 100, alphabet, heat=.05, seed=1))) <= len(set(texts))


def test_writing_with_a_kept_state_is_reading_from_the_beginning(learned, alphabet):
    "The shares while writing are those of the network that reads the whole text"
    net, x = learned.model.eval(), torch.tensor(alphabet.encode(['CC(=O)O'])[0][:, :-1])
    with torch.no_grad():
        whole, state, steps = net(x, torch.tensor([x.shape[1]])), None, []
        for t in range(x.shape[1]):
            h, state = net.body.nets[0][0](net.first(x[:, t:t + 1]), state)
            steps.append(net.head(h[:, 0]))
    assert torch.allclose(torch.stack(steps, 1), whole, atol=1e-5)


# Design

def test_columns_of_water():
    x = D.water_columns(['CC(=O)Oc1ccccc1C(=O)O', 'O'])
    assert x.shape == (2, 7) and np.allclose(x[0, [1, 2, 3, 4, 5, 6]], [180.16, 63.6, 2, 1, 3, 6/13], atol=.01)
    assert D.water_columns([]).shape == (0, 7)


def test_loss_of_the_vae_by_hand():
    scores, y = torch.zeros(2, 3, 4), torch.tensor([[1, 2, -100], [3, 2, 2]])
    mean, logvar, said = torch.full((2, 5), 2.), torch.zeros(2, 5), torch.ones(2, 1)
    loss = D.VAELoss(.1, 3.)((scores, mean, logvar, said), y, torch.zeros(2, 1))
    assert float(loss) == pytest.approx(5/2*np.log(4) + .1*.5*5*4 + 3)


@pytest.fixture(scope='module')
def folded():
    alphabet = Alphabet(FEW, selfies=True)
    codes, sizes = alphabet.encode(FEW*8)
    part = lambda: SequenceSet(codes[:, :-1], sizes - 1, np.where(codes[:, 1:] == 1, -100, codes[:, 1:]),
                               np.tile(np.float32([0, 0, 0, 1, 0]), 8)[:, None], kind='tags')
    torch.manual_seed(0)
    learn = D.fit_selfies_vae(D.SelfiesVAE(len(alphabet), 32, 4, forget=.5), part(), part(), Budget(250, checks=1), 2e-2, 20, .01, 'cpu')
    return alphabet, learn.model.eval(), codes, sizes


def test_a_vae_folds_and_unfolds(folded):
    alphabet, vae, codes, sizes = folded
    with torch.no_grad(): z = vae.encode(torch.tensor(codes[:5, :-1]), torch.tensor(sizes[:5] - 1))[0]
    again = read_back(D.write_from(vae, z, alphabet, heat=.1))
    assert np.mean(again == np.array(FEW, object)) >= .6
    with torch.no_grad(): assert vae.wish(z)[:, 0].argmax() == 3


def test_padding_changes_no_place(folded):
    _, vae, codes, sizes = folded
    x, n = torch.tensor(codes[:1, :sizes[0] - 1]), torch.tensor(sizes[:1] - 1)
    padded = torch.nn.functional.pad(x, (0, 7), value=1)
    with torch.no_grad(): assert torch.allclose(vae.encode(x, n)[0], vae.encode(padded, n)[0], atol=1e-5)


def test_a_latent_gan_plays_and_repeats_itself():
    torch.manual_seed(0)
    real = 3 + 2*torch.randn(300, 2)
    before, after = D.LatentGAN(real, 16, seed=1), D.LatentGAN(real, 16, seed=1).play(5)
    assert after.places(40, 0).shape == (40, 2) and torch.equal(after.places(9, 3), after.places(9, 3))
    assert torch.equal(after.places(9, 3), D.LatentGAN(real, 16, seed=1).play(5).places(9, 3))
    assert not torch.equal(before.places(9, 3), after.places(9, 3))
    with torch.no_grad():
        for p in before.gen.parameters(): p.zero_()
    assert torch.allclose(before.places(4, 0), real.mean(0).expand(4, 2), atol=1e-5)
