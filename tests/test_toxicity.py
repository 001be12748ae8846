"Toxicity from structures: missing answers, forests, networks, atoms, and three ways to read one molecule"
import json

import numpy as np, pytest, torch
from fastai.learner import Learner
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.metrics import roc_auc_score

from medlearn.data.fingerprints import descriptors, fingerprints
from medlearn.foundations.budget import Budget, train_within
from medlearn.foundations.loading import TensorLoaders
from medlearn.foundations.sequences import Max, SequenceNet
from medlearn.kit.cards import DataError
from medlearn.molecules import representations as R, toxicity as T

FEW = ['CCO', 'c1ccccc1', 'O=[N+]([O-])c1ccc(Cl)cc1', 'CC(=O)Oc1ccccc1C(=O)O', 'C[C@H](O)C(=O)O', 'C1CC1CCN', 'C', 'CN(C)N=O']


def answered(n=300, tasks=3, seed=0):
    "Numbers, answers that depend on them, and a third of the answers missing"
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12)).astype(np.float32)
    y = (x[:, :tasks] + .3*rng.normal(size=(n, tasks)) > 0).astype(float)
    y[rng.random(y.shape) < .33] = np.nan
    return x, y


# Answers that are missing

def test_mean_auroc_is_the_mean_over_what_was_measured():
    x, y = answered()
    s = x[:, :3] + np.random.default_rng(1).normal(size=(300, 3))
    want = np.mean([roc_auc_score(y[~np.isnan(y[:, j]), j], s[~np.isnan(y[:, j]), j]) for j in range(3)])
    assert T.mean_auroc(T.seen_answers(y), s)[0] == pytest.approx(want)
    twice = np.full((1, 300), 2.)
    assert T.mean_auroc(T.seen_answers(y), s, twice)[0] == pytest.approx(want)
    y[:, 2] = np.where(np.isnan(y[:, 2]), np.nan, 1)
    assert T.mean_auroc(T.seen_answers(y), s)[0] == pytest.approx(np.mean([roc_auc_score(y[~np.isnan(y[:, j]), j], s[~np.isnan(y[:, j]), j]) for j in range(2)]))
    with pytest.raises(DataError, match='no task has both answers'): T.mean_auroc(T.seen_answers(y[:, 2:]), s[:, 2:])


@pytest.mark.parametrize('loss', [T.masked_loss, R.heard_loss])
def test_what_is_missing_pulls_at_nothing(loss):
    z = torch.randn(4, 3, requires_grad=True)
    y = torch.tensor([[1., 0, np.nan], [np.nan]*3, [0, 1, 1], [1, np.nan, 0]])
    seen = ~y.isnan()
    value = loss(z, y)
    assert torch.isclose(value, torch.nn.functional.binary_cross_entropy_with_logits(z[seen], y[seen]))
    value.backward()
    assert (z.grad[~seen] == 0).all() and (z.grad[seen] != 0).all()
    assert float(loss(z.detach(), torch.full((4, 3), np.nan))) == 0


def test_trees_learn_each_task_from_its_own_molecules():
    x, y = answered()
    trees = T.TaskTrees(x[:200], y[:200], trees=30)
    p = trees(x[200:])
    assert p.shape == (100, 3) and 0 <= p.min() <= p.max() <= 1 and T.mean_auroc(T.seen_answers(y[200:]), p)[0] > .85
    other = y[:200].copy()
    other[:, 1] = np.where(np.isnan(other[:, 1]), np.nan, 1 - other[:, 1])
    q = T.TaskTrees(x[:200], other, trees=30)(x[200:])
    assert (q[:, [0, 2]] == p[:, [0, 2]]).all() and (q[:, 1] != p[:, 1]).any()
    never = np.where(np.arange(3) == 2, 0, y[:200])
    assert (T.TaskTrees(x[:200], never, 'extra', 5)(x)[:, 2] == 0).all()
    with pytest.raises(DataError, match='task 1 was never measured'): T.TaskTrees(x[:200], np.where(np.arange(3) == 1, np.nan, y[:200]))
    with pytest.raises(ValueError, match='forest, extra'): T.TaskTrees(x, y, 'oak')


def test_network_learns_from_half_of_the_answers_and_bears_large_numbers():
    x, y = answered(600)
    x = np.concatenate([x*1000, np.random.default_rng(3).poisson(1, (600, 20))], 1).astype(np.float32)
    split = np.repeat(['train', 'valid', 'test'], [400, 100, 100])
    dls = T.task_loaders(x, y, split, 32, 'cpu')
    torch.manual_seed(0)
    net = T.TaskNet(dls.train.dataset.x, 12, 3, width=32, drop=.1)
    learn = train_within(Learner(dls, net, loss_func=T.masked_loss), Budget(120), 1e-2)
    p = T.task_probabilities(learn, x)
    assert p.shape == (600, 3) and T.mean_auroc(T.seen_answers(y[500:]), p[500:])[0] > .85
    x[0, 0] = 1e30
    assert np.isfinite(T.task_probabilities(learn, x)).all()


def test_new_molecules_are_read_as_the_network_was_taught(tmp_path):
    x = np.concatenate([descriptors(FEW), fingerprints(FEW, bits=64)], 1)
    torch.manual_seed(0)
    net = T.TaskNet(torch.as_tensor(x), x.shape[1] - 64, 2, width=8).eval()
    config = json.loads(json.dumps(T.task_config(net, ['a', 'b'], descriptors(FEW[:1]).columns, FEW[:3])))
    (tmp_path/'new.csv').write_text('smiles\n' + '\n'.join(FEW) + '\n')
    res = T.new_cases(net.state_dict(), config, tmp_path/'new.csv')
    with torch.inference_mode(): want = net(torch.as_tensor(x)).sigmoid().numpy()
    assert list(res.columns) == ['a', 'b', 'nearest in training'] and np.allclose(res[['a', 'b']], want, atol=1e-6)
    assert res['nearest in training'].tolist()[:3] == [1, 1, 1] and res['nearest in training'].iloc[-1] < 1
    with pytest.raises(DataError, match="no descriptor 'Wiener9'"): T.new_cases(net.state_dict(), config | dict(descriptors=['Wiener9']), tmp_path/'new.csv')
    (tmp_path/'bad.csv').write_text('smiles\nCCO\nC1CC\n')
    with pytest.raises(DataError, match="row 3: 'C1CC' is no SMILES"): T.new_cases(net.state_dict(), config, tmp_path/'bad.csv')


# Parts for cross-validation

def test_folds_keep_groups_whole_and_large_ones_in_training():
    groups = np.r_[np.zeros(60, int), np.arange(1, 121), np.repeat(np.arange(200, 210), 2)]
    fold = T.folds_of(groups, 5, 1)
    assert (fold[:60] == -1).all() and set(fold[60:]) == set(range(5)) and (T.folds_of(groups, 5, 1) == fold).all()
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups)) and np.ptp(np.bincount(fold[60:])) <= 2


# Atoms

@pytest.mark.parametrize('smiles', FEW)
@pytest.mark.parametrize('radius', [0, 2, 3])
def test_an_atom_takes_the_pieces_with_it_that_reach_it(smiles, radius):
    x, mol = T.without_atoms(smiles, radius, 1024), Chem.MolFromSmiles(smiles)
    assert (x[0] == fingerprints([smiles], radius=radius, bits=1024)[0]).all() and (x >= 0).all()
    told = rdFingerprintGenerator.AdditionalOutput()
    told.AllocateBitInfoMap()
    rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=1024).GetCountFingerprint(mol, additionalOutput=told)
    far, pieces = Chem.GetDistanceMatrix(mol), [p for v in told.GetBitInfoMap().values() for p in v]
    assert (x[0].sum() - x[1:].sum(1)).tolist() == [sum(far[middle, a] <= r for middle, r in pieces) for a in range(mol.GetNumAtoms())]


def test_the_map_of_a_sum_is_the_sum_of_its_pieces():
    weight = np.random.default_rng(0).normal(size=2048)
    x = T.without_atoms(FEW[3])
    assert np.allclose(T.atom_worth(lambda v: v@weight, FEW[3]), (x[0] - x[1:])@weight)


def test_planted_group_is_found():
    smiles = np.array([f'{"C"*a}c1ccc({g})cc1{"O"*b}' for a in range(1, 9) for b in (0, 1) for g in ('[N+](=O)[O-]', 'C(=O)O', 'Cl', 'CN')])
    pattern = T.toxicophores['aromatic nitro']
    inside = [T.atoms_in(s, pattern) for s in smiles]
    has = np.array([v.any() for v in inside], float)
    trees = T.TaskTrees(fingerprints(smiles), has[:, None], trees=30)
    found = [roc_auc_score(v, T.atom_worth(lambda x: trees(x)[:, 0], s)) for s, v, h in zip(smiles, inside, has) if h]
    assert has.sum() == 16 and np.mean(found) > .8
    assert T.atoms_in('CCO', '[OX2H]').tolist() == [False, False, True]
    assert all(Chem.MolFromSmarts(p) is not None for p in T.toxicophores.values())
    with pytest.raises(DataError, match='no SMARTS'): T.atoms_in('CCO', '[C')
    with pytest.raises(DataError): T.without_atoms('C1CC')


# Texts

@pytest.mark.parametrize('smiles', FEW)
def test_signs_are_all_of_the_text_and_writings_are_the_same_molecule(smiles):
    assert ''.join(R.smiles_letters(smiles)) == smiles
    again = R.written_anew(smiles, 5, 3)
    assert len(again) == 5 and again == R.written_anew(smiles, 5, 3) and R.written_anew(smiles, 0) == []
    assert {Chem.CanonSmiles(s) for s in again} == {Chem.CanonSmiles(smiles)}


def test_signs_become_numbers():
    signs = R.Signs(['CCl', 'C[N+]'])
    x, sizes = signs(['ClC', 'CBr', 'C[N+]Cl'])
    assert R.smiles_letters('ClC%12Br[nH]') == ['Cl', 'C', '%12', 'Br', '[nH]'] and sizes.tolist() == [2, 2, 3] and len(signs) == 5
    assert x[1, 1] == 0 and x[0, 2] == 1 and x[0, 0] == x[2, 2] and x.min() >= 0
    with pytest.raises(DataError, match='text 1 is empty'): signs(['C', ''])


def test_no_text_depends_on_its_neighbours():
    torch.manual_seed(0)
    signs = R.Signs(FEW)
    net = SequenceNet(torch.nn.Embedding(len(signs), 16, padding_idx=1), R.TextConv(16), Max(), 2).eval()
    x, sizes = map(torch.as_tensor, signs(FEW))
    alone = torch.cat([net(x[i:i + 1, :n], sizes[i:i + 1]) for i, n in enumerate(sizes.tolist())])
    assert torch.allclose(net(x, sizes), alone, atol=1e-4)


# Drawings

def test_drawings_are_ink_on_white():
    x = R.drawings(FEW, 32)
    assert x.shape == (len(FEW), 32, 32) and x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1
    assert (x[:-2].mean((1, 2)) > .01).all() and (x.mean((1, 2)) < .5).all() and (R.drawings(FEW[:1], 32) == x[:1]).all()


# Graphs

def test_graph_of_ethanol():
    atoms, ends, bonds = R.graph_of('CCO')
    assert atoms.shape == (3, 29) and ends.tolist() == [[0, 1, 1, 2], [1, 2, 0, 1]] and bonds.shape == (4, 6) and (bonds[:, 0] == 1).all()
    atoms, ends, bonds = R.graph_of('C')
    assert atoms.shape == (1, 29) and ends.shape == (2, 0) and bonds.shape == (0, 6)
    with pytest.raises(DataError): R.graph_of('C1CC')


def test_graph_network_knows_no_order_and_no_neighbours_in_the_batch():
    torch.manual_seed(0)
    net = R.MessageNet(2, width=16).eval()
    together = R.graph_probabilities(net, FEW)
    assert np.allclose(together, np.concatenate([R.graph_probabilities(net, [s]) for s in FEW]), atol=1e-5)
    assert np.allclose(together, R.graph_probabilities(net, [R.written_anew(s, 3)[-1] for s in FEW]), atol=1e-5)
    assert np.ptp(together[:, 0]) > 1e-3


def test_graph_network_learns_a_group():
    smiles = np.array([f'{"C"*a}{g}' for a in range(3, 23) for g in ('O', 'N', 'Cl', 'F')])
    y = np.array([[s.endswith('N')] for s in smiles], float)
    sets = R.GraphSet(smiles[:60], y[:60], 0), R.GraphSet(smiles[60:], y[60:])
    torch.manual_seed(0)
    dls = TensorLoaders(R.GraphLoader(sets[0], 16, True), R.GraphLoader(sets[1], 16), device=torch.device('cpu'))
    learn = train_within(Learner(dls, R.MessageNet(1, width=16), loss_func=R.heard_loss), Budget(60), 1e-2)
    assert roc_auc_score(y[60:, 0], R.graph_probabilities(learn.model, smiles[60:])[:, 0]) > .95
