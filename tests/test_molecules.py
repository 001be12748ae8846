"Molecules: read and refused by row, stripped, compared, turned into numbers, and split; held against RDKit's own functions"
import os
from pathlib import Path

import numpy as np, pandas as pd, pytest

Chem = pytest.importorskip('rdkit.Chem')
pytest.importorskip('datamol')
from rdkit import DataStructs
from rdkit.Chem import Crippen, Descriptors, rdFingerprintGenerator

from medlearn.data import compounds as C, doors as D, fingerprints as F, molecules as M, scaffolds as S
from medlearn.kit.cards import DataError, card

ROWS = ['CCO,0,1', 'CCCO,0,', 'c1ccccc1,1,0', 'Nc1ccccc1,1,1', 'CC(=O)O,0,0']
GOOD = 'smiles,liver,kidney\n' + '\n'.join(ROWS) + '\n'
SHARED = next((p for p in (Path(__file__).parents[k]/'shared'/'data'/'molecules' for k in (1, 2)) if p.is_dir()), None)
real = pytest.mark.skipif(SHARED is None, reason="the folder of MoleculeNet's tables is not there")


@pytest.fixture
def read(tmp_path):
    def go(text, toml=None, **kw):
        (tmp_path/'mine.csv').write_text(text)
        if toml: (tmp_path/'mine.toml').write_text(toml)
        return D.molecules_from(tmp_path/'mine.csv', **kw)
    return go


@pytest.fixture
def loaded():
    "Loader of a card; where the package cannot be had, the test is skipped and says so"
    def go(name, **kw):
        try: return D.molecules_from(name, **kw)
        except DataError as e:
            if 'could not be had' not in str(e): raise
            pytest.skip(f'{name} cannot be fetched here')
    return go


# One compound

@pytest.mark.parametrize('smiles, why', [('', 'is empty'), ('c1ccccc', 'no SMILES'), ('CC(C)(C)(C)C', 'greater than permitted'), ('c1cccc1', 'kekulize'), ('C*', 'has a \\*')])
def test_what_is_no_molecule_is_told_why(smiles, why):
    assert C.canonical(smiles) is None
    with pytest.raises(DataError, match=why): C.mol_of(smiles)


def test_every_spelling_comes_back_to_one_text():
    for s in ('CC(=O)Oc1ccccc1C(=O)O', 'C[C@H](N)C(=O)O', 'CN1CCC[C@H]1c1cccnc1', 'F/C=C/F'):
        mol = Chem.MolFromSmiles(s)
        assert {C.canonical(Chem.MolToSmiles(mol, doRandom=True)) for _ in range(30)} == {Chem.CanonSmiles(s)}


@pytest.mark.parametrize('smiles, main, others', [
    ('CCN.Cl', 'CCN', []), ('[O-]c1ccccc1.[Na+]', 'Oc1ccccc1', []), ('CC(=O)O.O', 'CC(=O)O', []),
    ('CC(=O)Oc1ccccc1C(=O)O.CN1CCC[C@H]1c1cccnc1', 'CN1CCC[C@H]1c1cccnc1', ['CC(=O)Oc1ccccc1C(=O)O']), ('C[N+](C)(C)C.[I-]', 'C[N+](C)(C)C', [])])
def test_salts_are_stripped_and_mixtures_named(smiles, main, others):
    assert C.parent_of(smiles) == (main, others)


@pytest.mark.parametrize('a, b, flat, flask', [
    ('C[C@H](N)C(=O)O', 'C[C@@H](N)C(=O)O', True, True), ('Oc1ccccn1', 'O=c1cccc[nH]1', False, True),
    ('CCCO', 'CC(C)O', False, False), ('F/C=C/F', 'F/C=C\\F', True, True)])
def test_stereo_and_tautomers(a, b, flat, flask):
    (x, t), (y, u) = C.substance(a), C.substance(b)
    assert (x == y, t == u) == (flat, flask)


def test_disagreements_are_of_three_kinds():
    smiles = ['CCO', 'CCO', 'C[C@H](N)C(=O)O', 'C[C@@H](N)C(=O)O', 'Oc1ccccn1', 'O=c1cccc[nH]1', 'C']
    y = pd.DataFrame(dict(a=[0, 1, 0, 1, 0, 1, 1], b=[0, 0, np.nan, 1, 1, 1, 0]))
    odd = C.disagreements(smiles, y)
    assert [*zip(odd.kind, odd['rows'], odd.task)] == [('same', (0, 1), 'a'), ('stereo', (2, 3), 'a'), ('tautomer', (4, 5), 'a')]
    assert C.disagreements(smiles, y[['b']]).empty, 'what was not measured contradicts nothing'
    assert C.disagreements(smiles, y[['a']], apart=1).empty


# A user's file

def test_a_plain_file_is_read(read):
    d = read(GOOD)
    assert (d.task, [*d.y], len(d)) == ('binary', ['liver', 'kidney'], 5) and np.isnan(d.y.kidney[1]) and d.split is None
    assert 'not measured' in d.facts() and d.facts()['while reading'] == 'nothing was changed'


@pytest.mark.parametrize('text, why', [
    (GOOD.replace('CCCO', 'CCC='), "row 3: 'CCC=' is no SMILES"), (GOOD.replace('CCCO', ''), "row 3: '' is empty"),
    (GOOD.replace('CCCO', 'CCC.CCN'), 'row 3: .*several parts'), (GOOD.replace('CCCO,0', 'OCC,1'), 'rows 2 and 3 are the same molecule'),
    (GOOD.replace('CCO,0', 'CCO,high', 1), "row 2: liver is 'high'"), (GOOD.replace('0,1', '0,>1', 1), "kidney is '>1'.*a bound"),
    (GOOD.replace('smiles', 'stuff'), 'has no column smiles'), (GOOD.replace(',', ';'), 'Separate the columns by commas'),
    ('smiles,label\nCCO,-1\nC,1\nCC,0\n', 'classes or amounts'), ('smiles,a,b\nCCO,1.5,2\nC,2.1,3\n', 'which column holds the answer'),
    ('smiles,label\nCCO,yes\nC,no\n', 'positive = "yes"'), ('smiles,label\nCCO,\nC,\n', 'nothing was measured'),
    ('smiles,label,split\nCCO,1,train\nOCC,1,test\nC,0,test\n', 'in several splits, in rows 2, 3'), ('smiles,label,split\nCCO,1,holdout\nC,0,test\n', "split is 'holdout'"),
    ('smiles,pIC50\nC[C@H](N)C(=O)O,5.5\nC[C@@H](N)C(=O)O,8\n', 'rows 2 and 3 differ in stereo alone'), ('smiles,pIC50\nOc1ccccn1,5.5\nO=c1cccc[nH]1,8\n', 'are tautomers')])
def test_wrong_files_are_refused_by_row(read, text, why):
    with pytest.raises(DataError, match=why): read(text)


def test_the_advice_works(read):
    assert len(read(GOOD.replace('CCCO', 'CCC='), drop_bad=True)) == 4
    salt = GOOD.replace('CCCO', 'CCCO.Cl')
    assert 'CCCO' in read(salt, mixtures='strip').smiles and 'CCCO.Cl' in read(salt, mixtures='keep').smiles
    mixed = read(GOOD.replace('CCCO', 'CC(=O)Oc1ccccc1C(=O)O.CN1CCC[C@H]1c1cccnc1'), mixtures='strip')
    assert len(mixed) == 4 and 'mixtures' in mixed.said[-1]
    torn = GOOD.replace('CCCO,0', 'OCC,1')
    assert len(read(torn, conflicts='leave out')) == 3 and len(read(torn, conflicts='keep')) == 5
    assert read('smiles,label\nCCO,yes\nC,no\nCC,\n', positive='yes').y.label.tolist()[:2] == [1, 0]
    assert read('smiles,grade\nCCO,1\nCC,2\nCCC,3\n', task='regression').y.grade.tolist() == [1, 2, 3]


def test_doubles_that_agree_are_merged(read):
    d = read(GOOD.replace('CCCO,0,', 'OCC,0,'))
    assert len(d) == 4 and d.y.iloc[0].tolist() == [0, 1] and 'merged' in d.said[0]
    d = read('smiles,logS\nCCO,1.0\nOCC,1.5\nCC,-1.5\n')
    assert d.y.logS.tolist() == [1.25, -1.5] and 'averaged' in d.said[0]


def test_options_beside_the_file(read):
    assert read('structure,x,logS\nCCO,1.2,1.1\nCC,2.5,2.2\n', 'smiles = "structure"\nlabels = ["logS"]\n').y.logS.tolist() == [1.1, 2.2]
    with pytest.raises(DataError, match='Did you mean mixtures'): read(GOOD, 'mixture = "keep"\n')
    with pytest.raises(DataError, match='Did you mean iarc'): D.molecules_from('iarcs')


def test_molecules_without_answers(read, tmp_path):
    bare = 'smiles,name\nCCO,ethanol\nCC,ethane\nOCC,alcohol\n'
    with pytest.raises(DataError, match='which column holds the answer'): read(bare)
    d = read(bare, labelled=False)
    assert (len(d), d.task, d.y.shape, [*d.table.name]) == (2, 'none', (2, 0), ['ethanol', 'ethane']) and d.facts()['answers'] == 'nothing was measured'
    found = D.check(tmp_path/'mine.csv')
    assert 'molecules/generation' in found['chapters that take it'] and 'molecules/design' in found['chapters that take it'] and not isinstance(found, D.NotRead)
    assert 'molecules/toxicity: answers are wanted' in found['chapters that do not'] and found['answers'] == 'nothing was measured'
    two = 'smiles,logP,logS\nCCO,1.5,2.5\nCC,2.1,3.5\n' # only their owner knows which is the answer
    with pytest.raises(DataError, match='which column holds the answer. It could be logP, logS'): read(two)
    assert isinstance(D.check(tmp_path/'mine.csv'), D.NotRead) and read(two, labelled=False).task == 'none'
    assert read(two, 'labels = "logS"\n').y.columns.tolist() == ['logS'] and read(two, 'labels = ["logS"]\n', labelled=False).task == 'none'
    found = D.check(tmp_path/'mine.csv')
    assert 'molecules/solubility' in found['chapters that take it'] and 'molecules/toxicity: columns of 0 and 1' in found['chapters that do not']
    with pytest.raises(DataError, match='labelled'): read(bare, 'labelled = false\n')


# Sets with a card

def test_iarc_is_what_its_card_says(loaded):
    d = loaded('iarc')
    assert d.table.group.value_counts().to_dict() == {'3': 382, '2B': 247, '2A': 69, '1': 51} and d.y.carcinogenic.sum() == 367
    assert (d.y.carcinogenic == 0).equals(d.table.group == '3') and 'not the same as safe' in card('iarc').labels['0']
    assert len(loaded('iarc', mixtures='keep', conflicts='keep')) == 769 and len(set(d.smiles)) == len(d)
    assert d.smiles[d.table.name.tolist().index('Benzo[a]pyrene')] == Chem.CanonSmiles('c1ccc2c(c1)cc1ccc3cccc4ccc2c1c34')


def test_solubility_keeps_its_split_and_leaks_nothing(loaded):
    d = loaded('solubility')
    assert [(d.split == s).sum() for s in ('train', 'test')] == [1017, 257] and not {*d.part('train').smiles} & {*d.part('test').smiles}
    assert d.y.logS[d.table.name == 'n-pentane'].tolist() == [-3.18]


def test_the_series_and_the_drugs(loaded):
    d = loaded('sulfonamides')
    assert len(d) == 1017 and d.y.activity.agg(['min', 'max']).tolist() == [4.27, 9.22]
    assert len(loaded('approved_drugs')) == 1911 and len(loaded('approved_drugs', mixtures='keep')) == 1935


@real
def test_moleculenet_files_are_known_by_their_digest():
    tox = D.molecules_from(SHARED/'tox21.csv')
    assert (len(tox), tox.task, tox.y.shape[1]) == (7823, 'binary', 12) and int(tox.y['NR-AR'].sum()) in (308, 309)
    assert tox.y.isna().mean(axis=None).round(2) == .17 and '8 that are no molecule' in tox.said[0]
    sol = D.molecules_from(SHARED/'delaney-processed.csv')
    assert (len(sol), sol.task, [*sol.y]) == (1118, 'regression', ['logS'])
    with pytest.raises(DataError, match="row 1324: .*AlH3.*8 such rows"): M.read_molecules(SHARED/'tox21.csv')


# Numbers

SOME = ['CCO', 'CC(=O)Oc1ccccc1C(=O)O', 'c1ccc2c(c1)cc1ccc3cccc4ccc2c1c34', 'CN1CCC[C@H]1c1cccnc1', 'CCCCCCCCCC']


@pytest.mark.parametrize('kind', ['count', 'bit'])
def test_similarity_is_rdkits(kind):
    g = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [(g.GetCountFingerprint if kind == 'count' else g.GetFingerprint)(Chem.MolFromSmiles(s)) for s in SOME]
    want = np.array([[DataStructs.TanimotoSimilarity(a, b) for b in prints] for a in prints])
    x = F.fingerprints(SOME, kind)
    assert x.dtype == np.float32 and np.allclose(F.similarity(x, x), want, atol=1e-6)
    if kind == 'bit': assert np.allclose(F.similarity(SOME, SOME), want, atol=1e-6)


def test_descriptors_are_finite_and_rdkits():
    d = F.descriptors([*SOME, '[Na+].[Cl-]', '[As]'])
    assert np.isfinite(d).all(axis=None) and d.dtypes.eq('float32').all() and d.shape[1] > 200
    for name, f in dict(MolLogP=Crippen.MolLogP, TPSA=Descriptors.TPSA, MolWt=Descriptors.MolWt).items():
        assert np.allclose(d[name][:5], [f(Chem.MolFromSmiles(s)) for s in SOME], rtol=1e-5)
    with pytest.raises(DataError, match='molecule 1: '): F.descriptors(['C', 'CCX'])


def test_drawings_take_weights():
    fig = F.draw_molecules(SOME, SOME, [np.linspace(-1, 1, Chem.MolFromSmiles(s).GetNumAtoms()) for s in SOME], cols=3)
    assert len(fig.axes) == 6 and fig.axes[0].get_title() == 'CCO'


# Splits

@pytest.fixture(scope='module')
def family():
    "Chains on four rings: 240 molecules"
    heads = ['c1ccccc1', 'c1ccncc1', 'C1CCCCC1', 'c1ccc2ccccc2c1', 'c1ccsc1', 'c1ccoc1', 'C1CCNCC1', 'c1cnc2ccccc2c1', 'C1CCOC1', 'c1c[nH]cn1', 'C1CCNC1', 'c1ccc2[nH]ccc2c1']
    tails = ['C'*k + t for k in range(1, 6) for t in ('O', 'N', 'F', 'Cl')]
    return [C.canonical(t[::-1].replace('lC', 'Cl') + h) for h in heads for t in tails]


def test_splits_keep_their_promise(family):
    for seed in range(3):
        where, s = S.split_by_scaffold(family, seed), np.array([S.scaffold_of(m) for m in family])
        assert not {*s[where == 'test']} & {*s[where == 'train']} and {*where} == {'train', 'valid', 'test'}
        where = S.split_by_structure(family, seed, cutoff=.8)
        for a, b in (('test', 'train'), ('valid', 'train'), ('test', 'valid')):
            assert S.closest_similarity(np.array(family)[where == a], np.array(family)[where == b]).max() < .8
        assert abs((where == 'train').mean() - .8) < .15
    assert (S.split_by_scaffold(family, 1) == S.split_by_scaffold(family, 1)).all() and (S.split_by_scaffold(family, 1) != S.split_by_scaffold(family, 2)).any()


def test_scaffolds_of_known_drugs():
    assert S.scaffold_of('CC(=O)Oc1ccccc1C(=O)O') == 'c1ccccc1' and S.scaffold_of('CCCCO') == ''
    assert S.scaffold_of('CC(C)NCC(O)COc1cccc2ccccc12') == Chem.CanonSmiles('c1ccc2ccccc2c1')


def test_splits_that_cannot_be_had(family):
    with pytest.raises(DataError, match='shares'): S.split_at_random(10, 0, (.5, .5, .5))
    with pytest.raises(DataError, match='more than train takes|cannot fill'): S.split_by_structure(family[:20], cutoff=.05)


def test_sabotage_leaks(family, monkeypatch):
    monkeypatch.setenv('MEDLEARN_SABOTAGE', 'leak')
    s, where = np.array([S.scaffold_of(m) for m in family]), S.split_by_scaffold(family)
    assert {*s[where == 'test']} & {*s[where == 'train']}
