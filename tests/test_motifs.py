"Networks on DNA: planted words, each letter changed in turn, answers of several networks, new sequences"
import numpy as np, pandas as pd, pytest, torch
from medlearn.data.genomes import Dna, one_hot_dna
from medlearn.foundations import motifs as M
from medlearn.foundations.budget import Budget
from medlearn.foundations.sequences import read_all
from medlearn.kit.cards import DataError


def dna(n=40, size=12, measured=False):
    rng = np.random.default_rng(0)
    seqs = np.array([''.join(r) for r in rng.choice(list('ACGT'), (n, size))], object)
    y = np.array([s.count('G') for s in seqs], float) if measured else np.array([s.count('G') > 2 for s in seqs], int)
    split = np.repeat(['train', 'valid', 'test'], [n//2, n//4, n - n//2 - n//4])
    return Dna('made', seqs, y, [] if measured else ['few', 'many'], split, np.arange(n), pd.DataFrame(dict(name=range(n))))


class Flat(torch.nn.Module):
    def __init__(self, n_out):
        super().__init__()
        self.out = torch.nn.Linear(48, n_out)
    def forward(self, x, lengths=None): return self.out(x.flatten(1))


def test_planted_words_stand_in_the_middle_and_dots_keep_the_background():
    assert [*M.planted(['AAAAAAAA', 'CCCCCCCC'], 'TG.T')] == ['AATGATAA', 'CCTGCTCC']


def test_mutagenesis_is_what_a_loop_says():
    def score(seqs): return np.array([s.count('G') + 10*(s[2] == 'T') for s in seqs], float)
    seqs = ['ACTG', 'GGGG']
    m = M.mutagenesis(score, seqs)
    for i, s in enumerate(seqs):
        for j, b in enumerate('ACGT'):
            for k in range(4): assert m[i, j, k] == score([s[:k] + b + s[k+1:]])[0] - score([s])[0]
    assert m[0, 0, 2] == -10 and m[0, 2, 0] == 1 and m[1, 2, 1] == 0


@pytest.mark.parametrize('measured', [True, False])
def test_values_and_classes_are_learned_and_read_in_order(measured):
    d = dna(400, measured=measured)
    train, valid, test = (d.part(s) for s in d.splits)
    scale = (train.labels.mean(), train.labels.std()) if measured else (0., 1.)
    torch.manual_seed(0)
    learn = M.fit_dna(Flat(1 if measured else 2), M.dna_set(train, scale), M.dna_set(valid, scale), Budget(150), 3e-2, smooth=.05, device='cpu')
    p, z = M.mean_answer([learn.model], test, scale), torch.tensor(read_all(learn, M.dna_set(test)))
    if measured: assert np.allclose(p, z[:, 0]*scale[1] + scale[0], atol=1e-4) and np.corrcoef(p, test.labels)[0, 1] > .95
    else: assert np.allclose(p, z.softmax(1), atol=1e-5) and (p.argmax(1) == test.labels).mean() > .75
    other = Flat(1 if measured else 2)
    both = M.mean_answer([learn.model, other], test, scale)
    assert np.allclose(both, (p + M.mean_answer([other], test, scale))/2, atol=1e-5)


def test_letters_become_rows_in_their_order():
    d = dna()
    s = M.dna_set(d)
    assert s.x.shape == (40, 12, 4) and np.array_equal(s.x.numpy().transpose(0, 2, 1), one_hot_dna(d.sequences)) and s.kind == 'category'
    assert M.dna_set(dna(measured=True), (2., 4.)).kind == 'value'


def test_new_sequences_from_fasta_and_table(tmp_path):
    seqs = ['ACGTACGTAC', 'ACGTACGTNN', 'GGGTACGTAC']
    (tmp_path/'new.fa').write_text(''.join(f'>n{i}\n{s}\n' for i, s in enumerate(seqs)))
    pd.DataFrame(dict(id=['n0', 'n1', 'n2'], sequence=[s.lower() for s in seqs])).to_csv(tmp_path/'new.csv', index=False)
    a, b = (M.new_dna(tmp_path/n, 10, ['no', 'yes']) for n in ('new.fa', 'new.csv'))
    assert [*a.sequences] == [*b.sequences] == seqs and [*a.table.id] == [*b.table.id] == ['n0', 'n1', 'n2'] and not a.measured
    assert M.new_dna(tmp_path/'new.csv', 10, []).measured
    pd.DataFrame(dict(sequence=seqs)).to_csv(tmp_path/'bare.csv', index=False)
    assert [*M.new_dna(tmp_path/'bare.csv', 10, []).table.id] == ['row 2', 'row 3', 'row 4']
    with pytest.raises(DataError, match='sequences of 10 letters'): M.new_dna(tmp_path/'new.fa', 9, [])
    (tmp_path/'bad.csv').write_text('id,seq\na,ACGT\n')
    with pytest.raises(DataError, match='no column sequence'): M.new_dna(tmp_path/'bad.csv', 4, [])
    (tmp_path/'odd.csv').write_text('id,sequence\na,ACGT\nb,AC-T\n')
    with pytest.raises(DataError, match="b: letter 3 is '-'"): M.new_dna(tmp_path/'odd.csv', 4, [])
    with pytest.raises(DataError, match='cannot be read'): M.new_dna(tmp_path/'none.csv', 4, [])
