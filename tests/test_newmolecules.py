"New molecules: every number of a list against RDKit, fcd-torch, or a case counted by hand"
import numpy as np, pandas as pd, pytest
from collections import Counter
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import BRICS, rdMolDescriptors
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

from medlearn.data.molecules import Molecules
from medlearn.foundations import newmolecules as N
from medlearn.kit.cards import DataError

SOME = ['CC(=O)Oc1ccccc1C(=O)O', 'CN1CCC[C@H]1c1cccnc1', 'CC(C)Cc1ccc(C(C)C(=O)O)cc1', 'Cn1c(=O)c2c(ncn2C)n(C)c1=O',
        'CC(=O)Nc1ccc(O)cc1', 'O=C(O)c1ccccc1O', 'CCN(CC)CC(=O)Nc1c(C)cccc1C', 'Clc1ccc(C(c2ccccc2)N2CCNCC2)cc1']
SOME = [Chem.CanonSmiles(s, useChiral=0) for s in SOME]


def named(smiles):
    y = pd.DataFrame(index=range(len(smiles)))
    return Molecules('mine', np.array(smiles, object), y, 'none', y.copy())


def tanimoto():
    make = GetMorganGenerator(radius=2, fpSize=1024)
    prints = [make.GetFingerprint(Chem.MolFromSmiles(s)) for s in SOME]
    return np.array([DataStructs.BulkTanimotoSimilarity(p, prints) for p in prints])


# Texts

@pytest.mark.parametrize('text, parts', [('CCl', ['C', 'Cl']), ('C[N+](C)C', ['C', '[N+]', '(', 'C', ')', 'C']), ('Brc1', ['Br', 'c', '1']),
                                         ('C%12C', ['C', '%12', 'C']), ('', []), ('C[N', ['C', '[', 'N'])])
def test_symbols_are_what_chemists_read(text, parts): assert N.symbols(text) == parts


def test_symbols_joined_are_the_text():
    for text in [*SOME, 'C[', 'C(=O', '\n']: assert ''.join(N.symbols(text)) == text


@pytest.mark.parametrize('selfies', [False, True])
def test_codes_and_back(selfies):
    alphabet = N.Alphabet(SOME, selfies)
    codes, sizes = alphabet.encode(SOME)
    assert codes.shape == (len(SOME), sizes.max()) and (codes[:, 0] == 0).all()
    assert all(codes[i, n - 1] == 2 and (codes[i, n:] == 1).all() and (codes[i, 1:n - 1] > 2).all() for i, n in enumerate(sizes))
    assert list(N.read_back(alphabet.decode(codes[:, 1:]))) == SOME


def test_a_symbol_that_nobody_knows_is_refused():
    with pytest.raises(DataError, match="symbol 'Br'"): N.Alphabet(SOME).encode(['CBr'])


def test_what_can_be_learned_from():
    smiles = [*SOME, 'C[C@H](O)CCCCCC', 'C[C@@H](O)CCCCCC', 'CCCCCCCC[Se]C', 'CCO']
    found = N.writable(named(smiles), common=1, shortest=5)
    assert Counter(found.smiles)['CCCCCCC(C)O'] == 1 and 'CCO' not in found.smiles and not any('@' in s for s in found.smiles)
    assert '1 that differ in stereo alone were merged' in found.said[-1] and len(found) == len(SOME) + 2
    with pytest.raises(DataError, match='mine: .* of 12 molecules'): N.writable(named(smiles), longest=9)


# Valid, unique, novel

def test_three_shares_counted_by_hand():
    found = N.read_back(['OCC', 'CCO', 'C(C', '', 'CN(C)(C)C', 'c1ccccc1'])
    assert list(found) == ['CCO', 'CCO', None, None, None, 'c1ccccc1']
    assert N.unique_share(found) == 2/3 and N.unique_share(found, 2) == .5
    assert N.novel_share(found, ['CCO']) == .5 and N.novel_share(found, []) == 1
    assert np.isnan(N.unique_share([None])) and np.isnan(N.novel_share([None], ['C']))


def test_one_carbon_more_is_one_carbon_more():
    formula = lambda s: Counter(a.GetSymbol() for a in Chem.AddHs(Chem.MolFromSmiles(s)).GetAtoms())
    new = N.add_carbon(SOME, 30, 1)
    assert not set(new) & set(SOME) and len(new) == 30 and set(N.read_back(new)) == set(new)
    heavy = lambda s: Counter({k: v for k, v in formula(s).items() if k != 'H'})
    known = [heavy(s) + Counter(C=1) for s in SOME]
    assert all(heavy(s) in known for s in new)
    assert list(N.add_carbon(SOME, 5, 3)) == list(N.add_carbon(SOME, 5, 3))


def test_random_selfies_are_all_molecules():
    assert all(m is not None for m in N.read_back(N.random_selfies(SOME, 50, 0)))


# Similarity

def test_similarities_are_those_of_rdkit():
    t, prints = tanimoto(), N.morgan_bits(SOME)
    assert prints.shape == (len(SOME), 1024)
    assert np.allclose(N.nearest_similarity(prints, prints), 1)
    apart = t - 2*np.eye(len(t))
    assert np.allclose(N.nearest_similarity(prints, prints, itself=False), apart.max(1), atol=1e-6)
    assert np.isclose(N.internal_diversity(prints), 1 - t.mean(), atol=1e-6)
    assert np.isclose(N.internal_diversity(prints, 2), 1 - np.sqrt((t**2).mean()), atol=1e-6)
    assert N.internal_diversity(prints[[0, 0, 0]]) == pytest.approx(0, abs=1e-6) and np.isnan(N.internal_diversity(prints[:0]))


# Fragments, scaffolds, properties

def test_fragments_are_those_of_brics():
    def pieces(s): return Chem.MolToSmiles(BRICS.BreakBRICSBonds(Chem.MolFromSmiles(s))).split('.')
    assert N.fragment_counts(SOME) == Counter(p for s in SOME for p in pieces(s))


def test_scaffolds_with_two_rings_count():
    found = N.scaffold_counts(['Cc1ccccc1CCc1ccccn1', 'c1ccccc1CCc1ccccn1', 'c1ccccc1C', 'CCO'])
    assert found == {Chem.CanonSmiles('c1ccccc1CCc1ccccn1'): 2}
    assert sum(N.scaffold_counts(['c1ccccc1C', 'CCO'], rings=1).values()) == 1


def test_cosine_by_hand():
    assert N.count_cosine(Counter(a=3, b=4), Counter(a=4, c=3)) == pytest.approx(12/25)
    assert N.count_cosine(Counter(a=1), Counter(b=1)) == 0 and np.isnan(N.count_cosine(Counter(), Counter(a=1)))


def test_properties_of_known_drugs():
    aspirin = N.drug_properties(SOME[:1]).iloc[0]
    assert aspirin.weight == pytest.approx(180.16, abs=.01) and aspirin.logP == pytest.approx(1.31, abs=.01)
    assert aspirin.QED == pytest.approx(.55, abs=.01) and 1 <= aspirin.SA < 2
    taxol = 'CC1=C2C(C(=O)C3(C(CC4C(C3C(C(C2(C)C)(CC1OC(=O)C(C(C5=CC=CC=C5)NC(=O)C6=CC=CC=C6)O)O)OC(=O)C7=CC=CC=C7)(CO4)OC(=O)C)O)C)OC(=O)C'
    assert N.drug_properties([taxol]).SA[0] > 5
    assert N.drug_properties([]).shape == (0, 4)


# ChemNet

@pytest.fixture(scope='module')
def chemnet(): return N.ChemNet()


def test_features_are_those_of_fcd_torch(chemnet):
    import torch
    from torch.utils.data import DataLoader
    from fcd_torch.utils import SmilesDataset
    batch = next(iter(DataLoader(SmilesDataset(SOME), batch_size=len(SOME))))
    with torch.no_grad(): theirs = chemnet.net(batch.transpose(1, 2).float()).numpy()
    ours = chemnet([*SOME, SOME[0]])
    assert ours.shape == (len(SOME) + 1, 512) and np.allclose(ours[:-1], theirs, atol=1e-5) and (ours[-1] == ours[0]).all()
    assert len(chemnet.seen) == len(SOME) and chemnet([]).shape == (0, 512)


def test_distance_is_that_of_fcd_torch_and_refuses_short_lists(chemnet):
    from fcd_torch.utils import calculate_frechet_distance
    rng = np.random.default_rng(0)
    chemnet.seen |= {f'{k}{i}': v for k, s in (('a', 1.), ('b', 1.5)) for i, v in enumerate(rng.normal(0, s, (1100, 512)).astype(np.float32))}
    a, b = ([f'{k}{i}' for i in range(1100)] for k in 'ab')
    x, y = (chemnet(v).astype(float) for v in (a, b))
    theirs = calculate_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert chemnet.distance(a, b) == pytest.approx(theirs, rel=1e-4) and chemnet.distance(a, a) == pytest.approx(0, abs=1e-6)
    assert np.isnan(chemnet.distance(a[:512], b))


# The yardstick

def test_a_list_that_is_the_test_part_lies_at_no_distance():
    yard = N.MoleculeYardstick(SOME[:4]*3, SOME*2)
    numbers = yard.numbers(SOME*2)
    assert numbers['valid'] == 1 and numbers['unique'] == .5 and numbers['novel'] == .5
    assert numbers['SNN'] == pytest.approx(1) and numbers['Frag'] == pytest.approx(1) and numbers['Scaf'] == pytest.approx(1)
    assert all(numbers[p] == 0 for p in N.PROPERTIES) and np.isnan(numbers['FCD'])
    assert numbers['to known'] == pytest.approx(tanimoto()[:, :4].max(1).mean(), abs=1e-6)


def test_properties_may_be_asked_of_the_first_molecules_alone():
    from scipy.stats import wasserstein_distance
    mine = [*SOME[::-1], *SOME[:3]]
    every, first = (N.MoleculeYardstick(SOME, SOME, some=k).numbers(mine) for k in (None, 3))
    assert {k: v for k, v in first.items() if k not in (*N.PROPERTIES, 'FCD')} == {k: v for k, v in every.items() if k not in (*N.PROPERTIES, 'FCD')}
    for p in N.PROPERTIES:
        assert first[p] == wasserstein_distance(N.drug_properties(SOME[::-1][:3])[p], N.drug_properties(SOME[:3])[p])
        assert first[p] != every[p]


def test_nothing_valid_gives_no_numbers_and_no_error():
    numbers = N.MoleculeYardstick(SOME, SOME).numbers(['C(', '', 'xx'])
    assert numbers['valid'] == 0 and all(np.isnan(v) for k, v in numbers.items() if k != 'valid')
    table = N.lists_table({'none': [numbers], 'all': [N.MoleculeYardstick(SOME, SOME).numbers(SOME*2)]})
    assert table.valid['none'] == 0 and table.valid['all'] == 1
    assert list(table.columns).index('FCD low') == list(table.columns).index('FCD') + 1


def test_a_forest_tells_what_differs():
    from medlearn.foundations.evaluation import auroc
    odd, which = N.random_selfies(SOME, 40, 0), np.arange(80) >= 40
    assert auroc(which, N.told_apart([*(SOME*5), *odd], which))[0] > .9
