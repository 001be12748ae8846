"Letters, strands, words, relatives, and what is refused in a reader's own sequences"
import gzip
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from medlearn.data import doors as D, genomes as G
from medlearn.kit.cards import DataError

real = Path(__file__).parent.parent.parent/'shared/data/dna/splice.csv'


def letters(n, size, seed=0):
    x = np.random.default_rng(seed).choice(list('ACGT'), (n, size))
    return [''.join(row) for row in x]


@pytest.fixture
def home(tmp_path):
    rows = letters(60, 40)
    df = pd.DataFrame(dict(id=[f's{i}' for i in range(60)], sequence=rows, label=['bound', 'free']*30))
    df.to_csv(tmp_path/'sites.csv', index=False)
    (tmp_path/'sites.fa').write_text(''.join(f'>s{i} chr1:{i}\n{s[:25]}\n{s[25:]}\n' for i, s in enumerate(rows)))
    for name, which in (('pos', rows[::2]), ('neg', rows[1::2])):
        (tmp_path/f'{name}.fa').write_text(''.join(f'>{name}{i}\n{s}\n' for i, s in enumerate(which)))
    return tmp_path


# Letters

def test_codes_are_those_of_biopython_or_of_the_table_of_cornish_bowden():
    try: from Bio.Data.IUPACData import ambiguous_dna_complement as partner, ambiguous_dna_values as values
    except ImportError: # the table, as published in Nucleic Acids Research 13:3021, 1985
        values = dict(R='AG', Y='CT', M='AC', K='GT', S='CG', W='AT', H='ACT', B='CGT', V='ACG', D='AGT', N='ACGT')
        partner = dict(R='Y', Y='R', M='K', K='M', S='S', W='W', H='D', D='H', B='V', V='B', N='N', A='T', T='A', C='G', G='C')
    for c, bases in values.items():
        if c in G.IUPAC: assert sorted(G.IUPAC[c]) == sorted(bases)
    for c in G.IUPAC: assert G.reverse_complement(c) == partner[c]


def test_one_hot_holds_shares_and_sums_to_one():
    x = G.one_hot_dna(['ACGTN', 'RYSWK'])
    assert x.shape == (2, 4, 5) and x.dtype == np.float32
    assert np.allclose(x.sum(1), 1) and (x[0, :, :4] == np.eye(4)).all()
    assert np.allclose(x[1, :, 0], [.5, 0, .5, 0]) and np.allclose(x[0, :, 4], .25)


@pytest.mark.parametrize('seqs, said', [
    (['ACGT', 'AC-T'], "row 1: letter 3 is '-', no base .1 such sequences.. A gap belongs to an alignment"),
    (['ACGT', 'ACJT'], "row 1: letter 3 is 'J', no base"), (['ACGT', 'MKL*'], "letter 3 is 'L'"),
    (['ACGT', ''], 'row 1: the sequence is empty'), (['ACGT', 'NNNN'], 'row 1: every letter is N'),
    (['ACGT', 'ACG', 'ACGA'], 'row 1 has 3 letters, most have 4 .1 of 3'), ([], 'no sequence')])
def test_what_is_refused(seqs, said):
    with pytest.raises(DataError, match=said): G.clean_dna(seqs)


def test_what_is_said():
    x, said = G.clean_dna(['ACGTNacg', 'ACGURacg'])
    assert [*x] == ['ACGTNACG', 'ACGTRACG']
    assert any('37.5% of the letters are lower-case' in s and 'capitals' in s for s in said)
    assert any('U was read as T' in s for s in said) and any('2 letters in 2 sequences are ambiguous (R 1, N 1)' in s for s in said)
    assert [*G.clean_dna(['ACgt'], masked='hide')[0]] == ['ACNN']
    assert [*G.clean_dna(['acgt'])[0]] == ['ACGT'] and not G.clean_dna(['acgt'])[1] # all small: that says nothing
    with pytest.raises(DataError, match='lies in repeats'): G.clean_dna(['ACGT', 'acgt'], masked='hide')


def test_lengths():
    assert [*G.clean_dna(['AACCGG', 'TTTT'], lengths='crop')[0]] == ['ACCG', 'TTTT']
    assert [*G.clean_dna(['AACCGG', 'TTTT'], lengths='pad')[0]] == ['AACCGG', 'NTTTTN']
    with pytest.raises(DataError, match='lengths is'): G.clean_dna(['A'], lengths='cut')


# Strands and words

def test_the_other_strand_of_letters_numbers_and_tensors():
    seqs = letters(20, 31)
    x = G.one_hot_dna(seqs)
    assert (G.one_hot_dna(G.reverse_complement(seqs)) == G.reverse_complement(x)).all()
    assert (G.reverse_complement(torch.tensor(x)).numpy() == G.reverse_complement(x)).all()
    assert G.reverse_complement('GATTACA') == 'TGTAATC'


@pytest.mark.parametrize('k', [1, 3, 5, 9])
def test_words_are_counted_as_scikit_learn_does(k):
    from sklearn.feature_extraction.text import CountVectorizer
    seqs = [*letters(10, 60), 'ACGT'*5, 'A'*30]
    vec = CountVectorizer(analyzer='char', ngram_range=(k, k), lowercase=False)
    theirs, (ours, names) = vec.fit_transform(seqs), G.kmers(seqs, k, both=False)
    where = {n: i for i, n in enumerate(names)}
    assert (ours[:, [where[n] for n in vec.get_feature_names_out()]] != theirs).nnz == 0 and ours.sum() == theirs.sum()


def test_words_of_both_strands_and_without_ambiguous_letters():
    x, names = G.kmers(['AAACC', 'GGTTT', 'AANCC', 'AC'], 3)
    assert len(names) == 32 and (x[0] != x[1]).nnz == 0 and x.sum(1).ravel().tolist() == [3, 3, 0, 0]
    assert len(G.kmers(['ACGTACGT'], 6)[1]) == (4**6 + 4**3)//2 # a palindrome is its own partner
    with pytest.raises(ValueError): G.kmers(['ACGT'], 13)


# Relatives and splits

def test_relatives_are_found_on_either_strand_and_strangers_are_not():
    a, b, *others = letters(40, 200)
    near = a[:100] + 'T' + a[101:]
    overlap = a[120:] + b[:120]
    g = G.groups_by_likeness([a, near, G.reverse_complement(a), overlap, *others])
    assert len(set(g[:4])) == 1 and len(set(g)) == 39
    short = G.groups_by_likeness(['ACGT', 'ACGT', 'TTTT'])
    assert short[0] == short[1] != short[2]


def test_copies_stay_on_one_side_of_a_drawn_split(home):
    rows = pd.read_csv(home/'sites.csv')
    rows.loc[5, 'sequence'] = G.reverse_complement(rows.sequence[4])
    rows.to_csv(home/'twice.csv', index=False)
    d = D.dna_from(home/'twice.csv')
    assert d.split[4] == d.split[5] and d.groups[4] == d.groups[5]
    assert any('2 sequences are there more than once' in s for s in d.said) and any('1 sequence has two labels' in s for s in d.said)
    rows['split'] = np.resize(['train', 'valid', 'test'], 60)
    rows.to_csv(home/'torn.csv', index=False)
    with pytest.raises(DataError, match='s4 and s5 are the same DNA, in valid and in test'): D.dna_from(home/'torn.csv')


# A reader's own files

def test_three_ways_to_bring_the_same_sequences(home):
    table = D.dna_from(home/'sites.csv')
    pair = D.dna_from(f'{home}/pos.fa,{home}/neg.fa')
    (home/'pair').mkdir()
    for n in ('pos.fa', 'neg.fa'): (home/'pair'/n).write_bytes((home/n).read_bytes())
    folder = D.dna_from(home/'pair')
    beside = D.dna_from(home/'sites.fa')
    assert set(table.sequences) == set(pair.sequences) == set(folder.sequences) == set(beside.sequences)
    assert pair.classes == folder.classes == ['neg', 'pos'] and table.classes == ['bound', 'free']
    assert pair.labels[:30].all() and not pair.labels[30:].any()
    assert [*beside.labels] == [*table.labels] and beside.table['name'][0] == 's0'
    assert {len(table.part(s)) for s in table.splits} == {35, 10, 15} and not table.measured


def test_values_are_measured_and_a_split_is_kept(home):
    rows = pd.read_csv(home/'sites.csv')
    rows['label'], rows['split'] = np.linspace(-1, 1, 60), np.repeat(['training', 'validation', 'test'], 20)
    rows.to_csv(home/'values.csv', index=False)
    d = D.dna_from(home/'values.csv')
    assert d.measured and d.classes == [] and np.allclose(d.labels, rows.label) and [*d.split] == ['train']*20 + ['valid']*20 + ['test']*20
    assert d.part('valid').labels[0] == pytest.approx(rows.label[20]) and 'mean' in d.summary()


@pytest.mark.parametrize('change, said', [
    (dict(sequence=None), "has no column 'sequence'; it has id, label"), (dict(label=None), "has no column 'label'"),
    (dict(label='x'), "every sequence is 'x'"), (dict(label=['']+['a', 'b']*29+['a']), 's0 has no label'),
    (dict(split='later'), "s0 is in the split 'later'"), (dict(split='train'), 'no sequence is in test')])
def test_tables_are_refused_by_name(home, change, said):
    rows = pd.read_csv(home/'sites.csv')
    for c, v in change.items(): rows = rows.drop(columns=c) if v is None else rows.assign(**{c: v})
    rows.to_csv(home/'bad.csv', index=False)
    with pytest.raises(DataError, match=said): D.dna_from(home/'bad.csv')


@pytest.mark.parametrize('text, said', [
    ('ACGT\n', "line 1 is 'ACGT', before any name"), ('@r1\nACGT\n+\nIIII\n', 'FASTQ'), ('>a\n>b\nACGT\n', "line 1, 'a': no letter"), ('\n', 'no sequence')])
def test_fasta_is_refused_by_line(home, text, said):
    (home/'bad.fa').write_text(text)
    with pytest.raises(DataError, match=said): G.read_fasta(home/'bad.fa')


def test_fasta_and_table_must_agree(home):
    (home/'sites.csv').write_text('\n'.join((home/'sites.csv').read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match='has no row for s59'): D.dna_from(home/'sites.fa')
    (home/'alone.fa').write_text('>a\nACGT\n')
    with pytest.raises(DataError, match='has no labels'): D.dna_from(home/'alone.fa')
    with pytest.raises(DataError, match='is not there'): D.dna_from(home/'none.fa')
    with pytest.raises(DataError, match='oct4_mafk'): D.dna_from('oct4mafk')
    (home/'zipped.fa.gz').write_bytes(gzip.compress((home/'sites.fa').read_bytes()))
    assert (G.read_fasta(home/'zipped.fa.gz').sequence == G.read_fasta(home/'sites.fa').sequence).all()


def test_the_file_beside_it_says_what_the_columns_do_not(home):
    rows = pd.read_csv(home/'sites.csv')
    rows.loc[0, 'sequence'] = rows.sequence[0][:30].lower() + rows.sequence[0][30:]
    rows.rename(columns=dict(sequence='site', label='found')).to_csv(home/'other.csv', index=False)
    with pytest.raises(DataError, match="has no column 'sequence'; it has id, site, found"): D.dna_from(home/'other.csv')
    (home/'other.toml').write_text('sequence = "site"\nlabel = "found"\nmasked = "hide"\n')
    assert D.kind_of(home/'other.csv') == 'dna' and D.dna_from(home/'other.csv').sequences[0][:30] == 'N'*30
    assert 'hidden as N' in D.check(home/'other.csv')['while reading']
    (home/'pos.toml').write_text('apart = "copies"\nfractions = [0.4, 0.3, 0.3]\n')
    pair = D.dna_from(f'{home}/pos.fa,{home}/neg.fa')
    assert D.kind_of(f'{home}/pos.fa,{home}/neg.fa') == 'dna' and len(pair.part('train')) < 30
    for text, said in (('mask = "hide"', 'Did you mean masked'), ('apart = "kin"', "apart is 'kin'"), ('masked = true', 'it wants a text'), ('label = "none"', "has no column 'none'")):
        (home/'sites.toml').write_text(text)
        with pytest.raises(DataError, match=said): D.dna_from(home/'sites.csv')


def test_a_table_of_many_headings_is_read_where_dna_is_asked_for(home):
    rows = pd.read_csv(home/'sites.csv').rename(columns=dict(sequence='seq', label='class'))
    rows.insert(0, 'gene', 'BRCA2')
    rows.to_csv(home/'genes.tsv.gz', index=False, sep='\t')
    assert len(D.dna_from(home/'genes.tsv.gz')) == 60


# The cards

def test_cards_hold_what_they_say():
    try: d, m, again = G.oct4_mafk(), G.mpsa_brca2(), G.mpsa_brca2(replicate=True)
    except DataError as e: pytest.skip(f'not at hand: {e}')
    assert len(d) == 7997 and np.bincount(d.labels).tolist() == [4000, 3997] and len(d.sequences[0]) == 200
    gc = G.one_hot_dna(d.sequences)[:, 1:3].sum((1, 2))/200
    assert gc[d.labels == 1].mean() == pytest.approx(.46, abs=.005) and gc[d.labels == 0].mean() == pytest.approx(.39, abs=.005)
    assert [len(m.part(s)) for s in m.splits] == [18469, 5936, 6078]
    assert m.labels[[*m.sequences].index('CAGGTAAGT')] == pytest.approx(2) and len(again) == 30697
    by = G.oct4_mafk(apart='chromosome')
    assert not set(by.part('train').table.chromosome) & set(by.part('test').table.chromosome)


def test_splice_junctions_as_others_hand_them_on():
    if not real.is_file(): pytest.skip('the file of splice junctions is not at hand')
    d = D.dna_from(real)
    assert dict(zip(d.classes, np.bincount(d.labels))) == dict(EI=767, IE=768, N=1655)
    assert any('N 56, D 2, R 1, S 1' in s for s in d.said) and any('310 sequences are there more than once' in s for s in d.said)
    assert any('1 sequence has two labels' in s for s in d.said)
    sides = pd.Series(d.split).groupby(G.same_dna(d.sequences)).nunique()
    assert sides.max() == 1
