"Networks on DNA: both strands, what filters look for, planted motifs, each letter changed in turn"
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from medlearn.data import genomes as D
from medlearn.foundations.budget import Budget
from medlearn.kit.cards import DataError
from medlearn.molecules import genes as G
from medlearn.molecules import splicing as S


def dna(n=60, size=40, measured=False, word='TGCTGACTCAGCA'):
    x = np.random.default_rng(0).choice(list('ACGT'), (n, size))
    seqs = np.array([''.join(r) for r in x], object)
    y = np.arange(n) % 2
    seqs[y == 1] = G.planted(seqs[y == 1], word)
    split = np.repeat(['train', 'valid', 'test'], [n*2//3, n//6, n - n*2//3 - n//6])
    return D.Dna('made', seqs, y*1.5 if measured else y, [] if measured else ['no', 'yes'], split, np.arange(n), pd.DataFrame(dict(name=range(n))))


# Genes

@pytest.mark.parametrize('layers', [1, 2])
def test_with_both_strands_the_answer_cannot_depend_on_the_strand(layers):
    torch.manual_seed(0)
    x = G.dna_set(dna()).x
    for strands, same in ((2, True), (1, False)):
        net = G.MotifNet(layers=layers, strands=strands).eval()
        with torch.no_grad(): a, b = net(x), net(D.reverse_complement(x))
        assert a.shape == (60, 2) and torch.allclose(a, b, atol=1e-5) == same


def test_augmentation_turns_training_sequences_only():
    x = G.dna_set(dna()).x
    call = G.EitherStrand()
    for training in (True, False):
        learn = SimpleNamespace(xb=(x, None), training=training)
        call.learn = learn
        torch.manual_seed(0)
        call.before_batch()
        kept = (learn.xb[0] == x).flatten(1).all(1)
        turned = (learn.xb[0] == D.reverse_complement(x)).flatten(1).all(1)
        assert (kept | turned).all() and (10 < kept.sum() < 50 if training else kept.all())


def test_a_filter_shows_the_motif_that_it_was_given():
    word, net = 'TGCTGACTCAGCA', G.MotifNet(width=2, size=13)
    with torch.no_grad():
        net.filters.weight.zero_()
        net.filters.bias.fill_(-10)
        net.filters.weight[0] = torch.tensor(D.one_hot_dna([word])[0])
    d = dna()
    motifs, places, best = G.filter_motifs(net, G.dna_set(d).x)
    assert ''.join('ACGT'[i] for i in motifs[0].argmax(1)) == word and places[0] >= 30 and best.shape == (60, 2)
    assert G.likeness_to(word, motifs)[0] > .95 and G.likeness_to(D.reverse_complement(word), motifs)[0] > .95
    assert (motifs[1] == .25).all() and places[1] == 0 and G.likeness_to(word, motifs)[1] == pytest.approx(.25)
    fig = G.draw_logo(motifs[0], 'MARE')
    assert len(fig.axes[0].patches) >= 13


def test_planted_motifs_stand_in_the_middle_and_dots_keep_the_background():
    assert [*G.planted(['AAAAAAAA', 'CCCCCCCC'], 'TG.T')] == ['AATGATAA', 'CCTGCTCC']


def test_words_and_network_find_a_planted_motif():
    d = dna(300)
    train, valid, test = (d.part(s) for s in d.splits)
    score = G.words_model(train, valid, 4)
    assert G.auroc(test.labels == 1, score(test.sequences))[0] > .9
    torch.manual_seed(0)
    learn = G.fit_motifs(G.MotifNet(width=8), G.dna_set(train), G.dna_set(valid), Budget(60), device='cpu')
    p = G.probabilities(G.read_all(learn, G.dna_set(test)))[:, 1]
    assert G.auroc(test.labels == 1, p)[0] > .9


def test_new_cases_from_fasta_and_table(tmp_path):
    torch.manual_seed(0)
    net, d = G.MotifNet(width=8), dna()
    config = dict(classes=['no', 'yes'], length=40, net=dict(width=8, layers=1, strands=2))
    (tmp_path/'new.fa').write_text(''.join(f'>n{i}\n{s}\n' for i, s in enumerate(d.sequences[:3])))
    pd.DataFrame(dict(id=['n0', 'n1', 'n2'], sequence=[s.lower() for s in d.sequences[:3]])).to_csv(tmp_path/'new.csv', index=False)
    a, b = (G.new_cases(net.state_dict(), config, tmp_path/n) for n in ('new.fa', 'new.csv'))
    assert [*a.columns] == ['no', 'yes'] and np.allclose(a.sum(1), 1) and np.allclose(a, b) and [*a.index] == [*b.index] == ['n0', 'n1', 'n2']
    with pytest.raises(DataError, match='sequences of 40 letters'): G.new_cases(net.state_dict(), config | dict(length=50), tmp_path/'new.fa')
    (tmp_path/'bad.csv').write_text('id,seq\na,ACGT\n')
    with pytest.raises(DataError, match='no column sequence'): G.new_cases(net.state_dict(), config, tmp_path/'bad.csv')


# Splicing

def test_mutagenesis_is_what_a_loop_says():
    def score(seqs): return np.array([s.count('G') + 10*(s[2] == 'T') for s in seqs], float)
    seqs = ['ACTG', 'GGGG']
    m = S.mutagenesis(score, seqs)
    for i, s in enumerate(seqs):
        for j, b in enumerate('ACGT'):
            for k in range(4): assert m[i, j, k] == score([s[:k] + b + s[k+1:]])[0] - score([s])[0]
    assert m[0, 0, 2] == -10 and m[0, 2, 0] == 1 and m[1, 2, 1] == 0


def test_answers_for_measured_values_stay_within_their_limits():
    torch.manual_seed(0)
    x = S.site_set(dna(measured=True)).x
    net = S.SiteNet(40, limits=(-1., 2.)).eval()
    with torch.no_grad():
        net.head[-1].weight *= 100
        z = net(x)
    assert z.shape == (60, 1) and -1 <= z.min() and z.max() <= 2
    assert S.SiteNet(40, 3)(x).shape == (60, 3)


@pytest.mark.parametrize('measured', [True, False])
def test_sites_are_learned_as_values_and_as_classes(measured):
    d = dna(300, 20, measured, 'GGTAAGT')
    train, valid, test = (d.part(s) for s in d.splits)
    scale = (train.labels.mean(), train.labels.std()) if measured else (0., 1.)
    torch.manual_seed(0)
    nets = [S.fit_sites(S.SiteNet(20, 1 if measured else 2, width=8), S.site_set(train, scale), S.site_set(valid, scale), Budget(80), device='cpu')]
    p = S.read_sites(nets, test, scale)
    if measured: assert p.shape == (len(test),) and np.corrcoef(p, test.labels)[0, 1] > .9
    else: assert p.shape == (len(test), 2) and (p.argmax(1) == test.labels).mean() > .9
    again = S.read_sites(nets, replace(test, sequences=test.sequences[::-1].copy()), scale)
    assert np.allclose(again[::-1], p, atol=1e-5)
