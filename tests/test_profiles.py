"Tables of expression: layouts, names that became dates, gaps, counts and logarithms, and cells from an old file"
import numpy as np, pandas as pd, pytest

from medlearn.data import doors as D, profiles as P
from medlearn.data.cells import blood_cells
from medlearn.kit.cards import DataError, card
from medlearn.kit.fetch import read_member
from medlearn.data.records import fetched


def some(n=12, d=5, seed=0):
    "Logarithms with labels, a row a sample"
    x = pd.DataFrame(np.random.default_rng(seed).normal(6, 1, (n, d)).round(4), [f's{i}' for i in range(n)], [f'G{j}' for j in range(d)])
    return x.rename_axis('sample').assign(label=['ill' if i % 3 else 'well' for i in range(n)])


def refused(match, path, **kw):
    with pytest.raises(DataError, match=match): P.read_profiles(path, **kw)


def written(df, path, **kw):
    df.to_csv(path, **kw)
    return path


def test_both_layouts_give_the_same(tmp_path):
    df = some().assign(patient=[f'p{i//2}' for i in range(12)])
    a = D.profiles_from(written(df, tmp_path/'a.csv'))
    b = D.profiles_from(written(df.T.rename_axis('gene'), tmp_path/'b.tsv', sep='\t'))
    c = D.profiles_from(written(df, tmp_path/'c.csv.gz'))
    for d in (a, b, c):
        assert np.allclose(d.x, df[d.genes], atol=1e-5) and list(d.x.index) == list(df.index)
        assert d.label_names() == list(df.label) and list(d.groups) == list(df.patient) and d.x.dtypes.eq(np.float32).all()
    assert 'a row a sample' in a.said[0] and 'a row a gene' in b.said[0]


def test_the_file_beside_it_says_that_these_are_counts(tmp_path):
    x = pd.DataFrame(np.random.default_rng(0).poisson(30, (12, 5)), columns=[f'G{j}' for j in range(5)]).assign(label=['ill', 'well']*6)
    x['split'] = ['training', 'validation', 'testing']*4
    x.to_csv(tmp_path/'c.csv', index=False)
    with pytest.raises(DataError, match='look like counts'): D.profiles_from(tmp_path/'c.csv')
    (tmp_path/'c.toml').write_text('values = "counts"\n')
    d = D.profiles_from(tmp_path/'c.csv')
    assert 'Counts were divided' in d.said[-1] and d.splits == ['train', 'valid', 'test'] and D.kind_of(tmp_path/'c.csv') == 'profiles'
    assert D.check(tmp_path/'c.csv')['dataset.toml says'] == "values = 'counts'"
    (tmp_path/'c.toml').write_text('value = "counts"\n')
    with pytest.raises(DataError, match='Did you mean values'): D.profiles_from(tmp_path/'c.csv')


def test_a_heading_as_R_writes_it_and_a_sheet_with_the_labels(tmp_path):
    x = some().drop(columns='label')
    text = x.T.to_csv(sep='\t').split('\n', 1)
    (tmp_path/'m.txt').write_text(text[0].removeprefix('\t') + '\n' + text[1])
    refused('no column label and no row label', tmp_path/'m.txt')
    some()[['label']].iloc[::-1].to_csv(tmp_path/'sheet.csv')
    d = P.read_profiles(tmp_path/'m.txt', genes='rows', sheet='sheet.csv')
    assert np.allclose(d.x, x, atol=1e-5) and d.label_names() == list(some().label)
    some()[['label']].iloc[1:].to_csv(tmp_path/'short.csv')
    refused(r'short.csv: sample s0 is not in it \(1 of 12\)', tmp_path/'m.txt', genes='rows', sheet='short.csv')


@pytest.mark.parametrize('name, symbol', [
    ('1-Mar', 'MARC1'), ('1-Mar', 'MARCHF1'), ('Mar-01', 'MARCH1'), ('2-Sep', 'SEPTIN2'), ('Sep-02', 'SEPT2'), ('02-Sep', 'SEPT2'), ('X2.Sep', 'SEPT2'),
    ('10-Sep', 'SEPT10'), ('15-Sep', 'SELENOF'), ('1-Dec', 'DEC1'), ('2021-03-05', 'MARCH5'), ('2006-09-07 00:00:00', 'SEPT7'), ('09/04/2020', 'SEPT4'), ('3. Mrz', 'MARCH3'),
    ('5-Sep-24', 'SEPT5'), ('1-Dez', 'DEC1'), ('4-Oct', 'OCT4'), ('31-Jan', 'cannot be told'), ('2.31E+13', 'RIKEN')])
def test_dates_lead_back(name, symbol): assert symbol in P.gene_dates([name])[name]


def test_symbols_are_no_dates():
    real = 'TP53 SEPT9 SEPTIN9 MARCH1 MARCHF1 DEC1 OCT4 HLA-A HLA.E H1-4 NKX2-5 NKX3-1 1060P11.3 AC004.1 MAR1 7SK U6 A1BG-AS1 Mar1 5S_rRNA 100287102 DECR1 APRT MAY1 JUN NOV DECORIN-01'.split()
    assert P.gene_dates(real) == {}
    assert P.spreadsheet(['SEPT2', 'MARC1', 'DEC1', 'TP53', 'SEPTIN2', 'OCT4', 'SEPT31']) == dict(SEPT2='2-Sep', MARC1='1-Mar', DEC1='1-Dec', OCT4='4-Oct')


@pytest.mark.parametrize('rows', [False, True])
def test_dates_are_refused_in_both_layouts(tmp_path, rows):
    df = some().rename(columns=dict(G1='1-Mar', G2='Sep-02'))
    path = written(df.T.rename_axis('gene') if rows else df, tmp_path/'x.csv')
    refused('made dates of 2 names of genes: 1-Mar .probably MARCH1, today MARCHF1, or MARC1', path)


def test_counts_and_logarithms(tmp_path):
    counts = some().drop(columns='label').pipe(lambda x: np.exp(x).round())
    path = written(counts.assign(label=some().label), tmp_path/'counts.csv')
    refused('look like counts', path)
    refused('"counts", "linear"|it is log, counts, linear', path, values='TPM')
    d = P.read_profiles(path, values='counts')
    v = counts.to_numpy()
    assert np.allclose(d.x, np.log1p(1e4*v/v.sum(1, keepdims=True)), atol=1e-4) and 'divided by the total' in d.said[-1]
    path = written(some(), tmp_path/'logs.csv')
    refused('s0 is .*: counts are whole numbers', path, values='counts')
    refused('look like logarithms already', path, values='linear')
    linear = (2**some().drop(columns='label')*100).assign(label=some().label)
    path = written(linear, tmp_path/'linear.csv')
    refused('logarithms are expected. Say values = "linear"', path)
    assert np.allclose(P.read_profiles(path, values='linear').x, np.log2(1 + linear.drop(columns='label')), atol=1e-4)
    below = linear.copy()
    below.iloc[2, 1] = -3.
    refused('G1 of s2 is -3, below 0', written(below, tmp_path/'below.csv'), values='linear')
    none = counts.copy()
    none.iloc[4] = 0
    refused('sample s4 has no count at all', written(none.assign(label=some().label), tmp_path/'none.csv'), values='counts')
    assert P.read_profiles(written(some().assign(G0=some().G0 - 9), tmp_path/'ratios.csv')).x.G0.min() < 0


def test_gaps(tmp_path):
    df = some().astype(object)
    df.iloc[3, 0] = df.iloc[5, 0] = ''
    df.iloc[5, 1] = 'NA'
    path = written(df, tmp_path/'gaps.csv')
    refused('G0 is missing from the profile of s3: 2 genes are missing from 2 of 12 profiles', path)
    d = P.read_profiles(path, drop_bad=True)
    assert d.genes == ['G2', 'G3', 'G4'] and len(d) == 12 and any('2 genes that other samples lack' in s for s in d.said)
    df.iloc[7, :4] = ''
    d = P.read_profiles(written(df, tmp_path/'poor.csv'), drop_bad=True)
    assert len(d) == 11 and 's7' not in d.x.index and len(d.genes) == 3
    df = some()
    df.loc['s2', 'label'] = '?'
    refused('sample s2 has no label', written(df, tmp_path/'dark.csv'))
    assert len(P.read_profiles(tmp_path/'dark.csv', drop_bad=True)) == 11


def test_genes_twice_and_constant_ones(tmp_path):
    df = some().set_axis(['A', 'B', 'A', 'C', 'D', 'label'], axis=1).assign(C=3.5)
    path = written(df, tmp_path/'twice.csv')
    refused('1 genes are there twice or more: A', path)
    mean, first = (P.read_profiles(path, twice=k) for k in ('mean', 'first'))
    assert np.allclose(mean.x.A, df.A.mean(axis=1), atol=1e-5) and np.allclose(first.x.A, df.A.iloc[:, 0], atol=1e-5)
    assert mean.genes == ['A', 'B', 'D'] and any('same value in all samples, such as C' in s for s in mean.said)
    counts = np.exp(df.drop(columns='label')).round().assign(label=df.label)
    assert P.read_profiles(written(counts, tmp_path/'c.csv'), values='counts', twice='mean').x.notna().all(axis=None)


def test_equal_profiles(tmp_path):
    df = some()
    df.loc['s4', df.columns[:-1]] = df.loc['s1', df.columns[:-1]]
    d = P.read_profiles(written(df, tmp_path/'pair.csv'))
    assert d.together[4] == d.together[1] and len(set(d.together)) == 11 and d.facts()['equal profiles'] == '1 repeat another'
    for seed in range(20):
        split = d.divided(seed=seed).split
        assert split[4] == split[1]
    df.loc['s4', 'label'] = 'well'
    refused('s1, s4 have equal profiles and different labels', written(df, tmp_path/'odd.csv'))


def test_a_published_split_is_kept_and_a_leak_refused(tmp_path):
    split = ['train']*6 + ['valid']*2 + ['Test']*4
    d = P.read_profiles(written(some().assign(split=split), tmp_path/'s.csv'))
    assert list(d.divided().split) == [s.lower() for s in split] and len(d.part('test')) == 4
    refused('is in', written(some().assign(split=split, patient=['p']*12), tmp_path/'leak.csv'))
    refused("in the split 'later'", written(some().assign(split=['later'] + split[1:]), tmp_path/'dev.csv'))


@pytest.mark.parametrize('text, match', [
    ('sample,label,A,B\ns1,x,1.5,2\ns2,y,"1,5",3.5\n', "column A, row 2: '1,5' is no number .*Write 0.5, not 0,5"),
    ('sample;label;A;B\ns1;x;1,5;2\n', 'separated by semicolons'), ('sample,label,A,B\n', 'has a heading only'), ('', 'empty'),
    ('sample,label,A,B\ns1,x,1.5,inf\ns2,y,1,2\n', 'the number is infinite'), ('sample,label,A,B\ns1,x,1.5,2\ns1,y,1,2.5\n', 'sample s1 is there twice'),
    ('sample,label,A,B\ns1,x,1.5,2,7\ns2,x,1.5,2,7\ns3,x,1.5,2,7,8,9\n', 'no table|twice|no number|label'), ('sample,label,A,\ns1,x,1.5,2\ns2,y,1,2.5\n', 'gene number 2 has no name'),
    ('sample,label,A,B\ns1,x,1.5,2.5\ns2,x,1,2.1\n', '1 labels are left'), ('PK\x03\x04zz\nzz', 'a spreadsheet is saved as CSV first')])
def test_what_is_no_table(tmp_path, text, match):
    (tmp_path/'x.csv').write_text(text)
    refused(match, tmp_path/'x.csv')


def test_names_and_paths():
    with pytest.raises(DataError, match='Did you mean tissue_gene_expression'): D.profiles_from('tissue_gene_expresion')
    with pytest.raises(DataError, match='is not there'): D.profiles_from('nowhere/x.csv')


def test_tissues():
    d = D.profiles_from('tissue_gene_expression')
    assert d.x.shape == (189, 500) and d.classes == sorted(d.classes) and dict(zip(d.classes, np.bincount(d.labels)))['placenta'] == 6
    assert len(set(d.together)) == 185 and set(P.spreadsheet(d.genes)) == {'SEPT10', 'MARC2'} and np.isfinite(d.x.to_numpy()).all()
    assert np.allclose(P.same_genes(d, d.genes[::-1]).x.iloc[:, 0], d.x.iloc[:, -1])
    with pytest.raises(DataError, match='2 of 3 genes that training had are missing: XX, YY'): P.same_genes(d, ['LHPP', 'XX', 'YY'])
    few = d.take([3, 1])
    assert list(few.x.index) == list(d.x.index[[3, 1]]) and len(few.labels) == 2


def test_blood_cells_are_as_h5py_reads_them():
    "An independent reader of such files sees the same values"
    import io, h5py, scipy.sparse as sp
    d = blood_cells()
    assert d.x.shape == (700, 765) and len(d.classes) == 10 and (d.x.to_numpy() == 0).mean() > .6 and d.table.lane.nunique() == 8
    c = card('blood_cells')
    f = h5py.File(io.BytesIO(read_member(fetched(c, None), c.file().member)))
    x = sp.csr_matrix(tuple(f[f'raw.X/{k}'][:] for k in ('data', 'indices', 'indptr')), shape=(700, 765)).toarray()
    assert (d.x.to_numpy() == x).all() and d.genes == list(f['raw.var'][:]['index'].astype(str))
    assert d.label_names() == list(f['uns/bulk_labels_categories'][:].astype(str)[f['obs'][:]['bulk_labels']])
    assert (d.table.molecules.to_numpy() == f['obs'][:]['n_counts']).all() and list(d.x.index) == list(f['obs'][:]['index'].astype(str))
