"Reports are read as they are, faults are named by row, line or byte, and words, tags and numbers keep what they stand for"
import codecs, gzip, warnings
from pathlib import Path

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from medlearn.data import doors,text as T
from medlearn.data import entities as Entities
from medlearn.data.splits import check_leak
from medlearn.kit.cards import DataError

NER = Path(__file__).parents[2]/'shared'/'data'/'ner'/'NCBI-disease-IOB'


@pytest.fixture(scope='module')
def table():
    try: return T.indiana_table()
    except DataError as e: pytest.skip(f'the torchxrayvision package cannot be had here: {e}')


# The Indiana reports

def test_counts_of_the_archive(table):
    assert len(table) == table.id.nunique() == 3955 and list(table.id[:2]) == ['CXR1', 'CXR2']
    normal = table.major.map(lambda m: m == ['normal'])
    assert normal.sum() == 1391 and normal[table.text == ''].all() and (table.text == '').sum() == 28
    assert not table.text.str.contains('<br', case=False).any() and (table.headings.map(len)[normal] == 0).all()


def test_indiana_is_the_table_without_empty_and_unindexed(table):
    data = T.indiana()
    keep = (table.text != '') & table.major.map(lambda m: m != ['No Indexing'])
    assert list(data.ids) == list(table.id[keep]) and list(data.text) == list(table.text[keep])
    assert (data.labels == table.major[keep].map(lambda m: m != ['normal'])).all()
    assert [list(v) for v in data.table.headings] == list(table.headings[keep])


def test_split_repeats_itself_and_keeps_patients_and_wordings_together(table):
    a, b, other = T.indiana(seed=1), T.indiana(seed=1), T.indiana(seed=2)
    assert (a.split == b.split).all() and (a.split != other.split).any()
    assert check_leak(a.split, a.groups) == len(a) > check_leak(a.split, T.same_text(a.text))
    with pytest.raises(DataError, match='Split by patient'): check_leak(T.indiana(apart=True).split, T.same_text(a.text))
    share = pd.Series(a.split).value_counts(normalize=True)
    assert abs(share.train - .6) < .02 and abs(share.valid - .15) < .02


def test_headings_are_columns(table):
    data = T.indiana('mesh', least=100)
    assert data.multilabel and data.labels.shape == (len(data), len(data.classes)) and data.labels.sum(0).min() >= 100
    for j in (0, len(data.classes) - 1):
        assert (data.labels[:, j] == data.table.major.map(lambda m: any(x.split('/')[0].strip() == data.classes[j] for x in m))).all()
    assert {'normal', 'No Indexing'}.isdisjoint(data.classes)
    with pytest.raises(DataError, match='"normal" or "mesh"'): T.indiana('all')


def test_parts_carry_everything(table):
    data = T.indiana()
    test = data.part('test')
    assert set(test.split) == {'test'} and list(test.table.id) == list(test.ids) and len(test) == data.summary().loc['test', 'reports']
    assert test.table.text.tolist() == test.text.tolist() and not any(t in repr(data) for t in data.text[:50])
    with pytest.raises(DataError, match="no split 'train'"): test.part('train')


def test_a_table_that_is_changed_leaves_the_next_one_alone(table):
    changed = T.indiana_table()
    changed['text'] = ''
    assert (T.indiana_table().text != '').any()


# Anybody's reports

GOOD = pd.DataFrame(dict(id=[f'r{i}' for i in range(20)], text=[f'Report {i}, with a comma\nand a line.' for i in range(20)], label=['no', 'yes']*10))


def saved(tmp_path, df, encoding='utf-8'):
    df.to_csv(tmp_path/'my.csv', index=False, encoding=encoding)
    return tmp_path/'my.csv'


def test_reads_what_was_written(tmp_path):
    df = GOOD.assign(patient=[f'p{i//4}' for i in range(20)])
    data = T.read_reports(saved(tmp_path, df))
    assert list(data.text) == list(df.text) and [data.classes[y] for y in data.labels] == list(df.label)
    assert list(data.groups) == list(df.patient) and check_leak(data.split, data.groups) == 5 and data.splits == ['train', 'valid', 'test']
    assert (T.read_reports(saved(tmp_path, df)).split == data.split).all()
    from medlearn.kit import fetch
    assert fetch.seen[-1] == ('my.csv', fetch.digest_of(tmp_path/'my.csv'))


def test_labels_that_look_like_missing_values_are_labels_when_asked(tmp_path):
    assert T.read_reports(saved(tmp_path, GOOD.assign(label=['None', 'some']*10))).classes == ['None', 'some']
    assert T.read_reports(saved(tmp_path, GOOD.assign(label=['None', 'NA']*10)), unknown='keep').classes == ['NA', 'None']


@pytest.mark.parametrize('code', ['NA', 'nan', '?', 'unknown', ''])
def test_labels_that_are_not_known(tmp_path, code):
    "Field 16"
    path = saved(tmp_path, GOOD.assign(label=['yes', 'no']*9 + [code]*2))
    with pytest.raises(DataError, match=r"my.csv: the label (is empty|'.*' says that nothing is known) in row 19 \(id 'r18'\), and in 2 of 20 rows"): T.read_reports(path)
    with pytest.warns(UserWarning, match='2 of 20 reports have no known label'): data = T.read_reports(path, unknown='leave out')
    assert len(data) == 18 == len(data.table) and data.classes == ['no', 'yes'] and list(data.ids) == list(GOOD.id[:18])
    with pytest.raises(ValueError, match='unknown'): T.read_reports(path, unknown='drop')


def test_minus_one_beside_classes_is_no_class(tmp_path):
    "Field 16"
    path = saved(tmp_path, GOOD.assign(label=[0, 1]*9 + [-1]*2))
    with pytest.raises(DataError, match="the label '-1' says that nothing is known in row 19"): T.read_reports(path)
    assert T.read_reports(path, unknown='keep').classes == ['-1', '0', '1']
    assert T.read_reports(saved(tmp_path, GOOD.assign(label=[-1, 1]*10))).classes == ['-1', '1']


def test_a_patient_who_is_not_known(tmp_path):
    path = saved(tmp_path, GOOD.assign(patient=[1, 2]*9 + [9, 'nan']))
    with pytest.raises(DataError, match=r"the patient is not known in row 20 \(id 'r19'\), and in 1 of 20"): T.read_reports(path)


def test_a_file_cut_in_mid_row_or_packed(tmp_path):
    path = saved(tmp_path, GOOD)
    raw = path.read_bytes()
    path.write_bytes(raw + b'r20,a tex')
    with pytest.raises(DataError, match='row 21 has 2 cells under 3 headings, and 1 rows are such. The file ends in this row: it was cut'), warnings.catch_warnings(action='ignore'): T.read_reports(path)
    path.write_bytes(raw + b'r20,"a tex')
    with pytest.raises(DataError, match='unexpected end of data'), warnings.catch_warnings(action='ignore'): T.read_reports(path)
    path.write_bytes(raw[:-1])
    with pytest.warns(UserWarning, match='the last, has no line end'): T.read_reports(path)
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(DataError, match='no text but packed .gzip'): T.read_reports(path)
    path.write_bytes(gzip.compress(raw)[:-9])
    with pytest.raises(DataError, match='no text but packed .gzip'): T.read_reports(path)
    path.write_text('id,text,label,label\n' + 'a,b,c,d\n')
    with pytest.raises(DataError, match="two columns 'label'"): T.read_reports(path)


def test_split_of_the_file_is_kept_and_checked(tmp_path):
    df = GOOD.assign(split=['train']*10 + ['val']*4 + ['test']*6)
    assert list(T.read_reports(saved(tmp_path, df)).split) == list(df.split.replace('val', 'valid'))
    with pytest.raises(DataError, match="split is unknown in row 1 .id 'r0'"): T.read_reports(saved(tmp_path, df.replace({'split': {'train': 'learn'}})))
    with pytest.raises(DataError, match='patient p is in train and'): T.read_reports(saved(tmp_path, df.assign(patient='p')))


def test_equal_wording_stays_together(tmp_path):
    df = GOOD.assign(text=[['Clear lungs.', 'clear  lungs', 'A nodule.', 'Some text', 'Other text'][i % 5] for i in range(20)])
    data = T.read_reports(saved(tmp_path, df))
    assert check_leak(data.split, T.same_text(data.text)) == 4


def at(row, **change):
    df = GOOD.copy()
    for k, v in change.items(): df.loc[row, k] = v
    return df


@pytest.mark.parametrize('df,message', [
    (at(3, text=' '), r"the text is empty in row 4 \(id 'r3'\)"), (at(3, label=''), r"the label is empty in row 4 \(id 'r3'\)"),
    (at(3, id=''), 'the id is empty in row 4'), (at(3, id='r1'), r"there before in row 4 \(id 'r1'\)"),
    (at(3, label='rare'), r"label 'rare' stands alone in row 4 \(id 'r3'\)"), (GOOD.drop(columns='text'), 'lacks the column text; it has id, label'),
    (GOOD.drop(columns=['id', 'label']), 'lacks the column id and label'), (GOOD.assign(label='no'), 'has 20 rows and 1 classes'),
    (GOOD[:0], 'has 0 rows'), (GOOD.assign(patient=['']*20), 'the patient is empty in row 1'), (GOOD.assign(patient='one'), '1 patients cannot fill')])
def test_faults_are_named(df, message, tmp_path):
    with pytest.raises(DataError, match=message): T.read_reports(saved(tmp_path, df))


def test_encoding(tmp_path):
    df = at(2, text='décompensation')
    with pytest.raises(DataError, match='byte 0xe9 at position .* is not utf-8.*cp1252'): T.read_reports(saved(tmp_path, df, 'cp1252'))
    for enc in ('cp1252', 'utf-8', 'utf-16', 'utf-8-sig'):
        data = T.read_reports(saved(tmp_path, df, enc), encoding='cp1252' if enc == 'cp1252' else 'utf-8')
        assert data.text[2] == 'décompensation' and data.ids[0] == 'r0'
    with pytest.raises(DataError, match="'latin-99' is not known"): T.read_reports(saved(tmp_path, df), encoding='latin-99')


@pytest.mark.parametrize('raw,message', [(b'', 'not a CSV'), (b'id,text,label\na,"open,x\n', 'not a CSV'), (b'id,text,label\na,b,c,d\n', 'row 1 has 4 cells under 3'), (b'PK\0\0', 'NUL'), (codecs.BOM_UTF16_LE + b'a', 'not utf-16')])
def test_what_is_no_table(raw, message, tmp_path):
    (tmp_path/'x.csv').write_bytes(raw)
    with pytest.raises(DataError, match=message): T.read_reports(tmp_path/'x.csv')


def test_a_file_that_is_not_there():
    with pytest.raises(DataError, match='nowhere.csv is not there. Check the path'): doors.reports_from('nowhere.csv')


# Groups

@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_tied_is_the_closure(rows):
    a, b = zip(*rows)
    want = np.array([[x == y or v == w for y, w in rows] for x, v in rows])
    for _ in rows: want = (want.astype(int)@want) > 0
    got = T.tied(a, b)
    assert ((got[:, None] == got) == want).all()


# Words and numbers

@pytest.mark.parametrize('raw,clean', [
    ('XXXX-year-old', 'xxdeid -year-old'), ('x-XXXX.', 'x- xxdeid .'), ('seen by [**Last Name (STitle) 1**],', 'seen by xxdeid ,'),
    ('[**2101\n-1**] on ___ and _____', 'xxdeid on xxdeid and xxdeid'), ('a_b XX AXXXX', 'a_b XX AXXXX'), ('  as\n it was ', 'as it was')])
def test_placeholders(raw, clean):
    assert T.deidentified(raw) == clean and T.deidentified(clean) == clean


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_words_lose_nothing_but_space(text):
    assert ''.join(T.words(text)) == ''.join(T.deidentified(text).lower().split())


def test_words():
    assert T.words("T8-T9: 1.5 cm, w/o XXXX; Crohn's x-ray") == ['t', '8', '-', 't', '9', ':', '1.5', 'cm', ',', 'w', '/', 'o', 'xxdeid', ';', "crohn's", 'x-ray']


def test_sections():
    got = T.report_sections('Two views.\nFINDINGS: Clear. Ratio is 1:2.\nFINAL IMPRESSION: Normal.\nFINDINGS: Addendum.')
    assert got == {'': 'Two views.', 'findings': 'Clear. Ratio is 1:2. Addendum.', 'final impression': 'Normal.'} and T.report_sections('plain') == {'': 'plain'}


rows = st.lists(st.lists(st.sampled_from('abcdefg'), min_size=1, max_size=9), min_size=1, max_size=8)


@given(rows, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_vocabulary(tokens, least):
    v, flat = T.Vocab(tokens, least), [w for r in tokens for w in r]
    assert set(v.words[len(T.special):]) == {w for w in flat if flat.count(w) >= least} and v.words[:2] == ['xxunk', 'xxpad']
    assert v.words == T.Vocab(tokens[::-1], least).words, 'the order of the reports matters'
    assert v.unknown(tokens) == np.mean([flat.count(w) < least for w in flat])
    assert all(v.decode(v.encode(r)) == [w if w in v.words else 'xxunk' for w in r] for r in tokens)


def test_special_words_are_never_counted_twice():
    v = T.Vocab([['xxdeid', 'a', 'xxunk']]*5)
    assert v.words == [*T.special, 'a'] and v.encode(['xxdeid', 'zebra']) == [4, 0]


@given(rows, st.one_of(st.none(), st.integers(1, 5)))
@settings(max_examples=60, deadline=None)
def test_padding(tokens, longest):
    import torch
    v = T.Vocab(tokens, 1)
    p = T.to_ids(tokens, v, longest)
    assert p.ids.dtype == p.lengths.dtype == np.int64 and (p.mask.sum(1) == p.lengths).all() and (p.ids[~p.mask] == 1).all() and (p.ids[p.mask] != 1).all()
    want = torch.nn.utils.rnn.pad_sequence([torch.tensor(v.encode(r[:longest])) for r in tokens], batch_first=True, padding_value=1)
    assert torch.equal(torch.from_numpy(p.ids), want)


def test_a_report_without_words():
    with pytest.raises(DataError, match='report 1 of 2 has no words'): T.to_ids([['a'], []], T.Vocab([['a']], 1))


# Negation

@pytest.mark.parametrize('text,want', [
    ('No effusion.', [True]), ('Effusion.', [False]), ('No pneumothorax or pleural effusion', [True]), ('No change in effusion', [False]), ('NO EFFUSION', [True]),
    ('No mass, but effusion.', [False]), ('No mass. Effusion.', [False]), ('No mass.Effusion.', [False]), ('No 1.5 cm effusion', [True]),
    ('Effusion is not seen', [True]), ('Effusion has resolved; nodule', [True]), ('effusion cannot be excluded', [False]),
    ('There is no effusion, however there is effusion', [True, False]), ('nothing else', []), ('notable effusion', [False]), ('Knot with effusion', [False])])
def test_negation(text, want):
    got = T.mentions(text, 'effusion')
    assert [m.negated for m in got] == want and all(text[m.start:m.end] == m.word for m in got)


def test_every_mention_is_found_once(table):
    import re
    for t in table.text[:400]: assert [m.start for m in T.mentions(t, 'effusion|no')] == [m.start() for m in re.finditer('effusion|no', t, re.I)]


def test_rules_beat_saying_that_nothing_is_ever_stated(table):
    "Findings are rare, so that silence is hard to beat; counting words does not"
    terms = dict(pneumothora='Pneumothorax', effusion='Pleural Effusion', nodule='Nodule')
    some = table[table.text != '']
    word, heard, truth = (np.array([[f(t, h, p, name) for p, name in terms.items()] for t, h in zip(some.text, some.headings)]) for f in (
        lambda t, h, p, name: bool(T.mentions(t, p)), lambda t, h, p, name: any(not m.negated for m in T.mentions(t, p)),
        lambda t, h, p, name: name in h))
    assert (heard != truth).mean() < truth.mean() < (word != truth).mean()


# Named entities

kinds = st.sampled_from(['Disease', 'Drug'])


@st.composite
def sentence(draw):
    tags = []
    for n, kind in draw(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), kinds)), min_size=1, max_size=8)):
        tags += ['O']*max(n, 1) if kind is None else [f'B-{kind}'] + [f'I-{kind}']*n
    return tags


@given(sentence())
@settings(max_examples=150, deadline=None)
def test_tags_to_spans_and_back(tags):
    spans = Entities.to_spans(tags)
    assert Entities.to_tags(spans, len(tags)) == tags and Entities.to_spans(Entities.to_tags(spans, len(tags))) == spans


def reference(tags):
    "Chunks as conlleval finds them: (start, end, kind)"
    out, begin, kind = [], None, None
    for i, tag in enumerate([*tags, 'O']):
        p, _, k = tag.partition('-')
        if begin is not None and (p != 'I' or k != kind):
            out.append((begin, i, kind))
            begin = None
        if p == 'B' or p == 'I' and begin is None: begin, kind = i, k
    return out


tag = st.sampled_from(['O', 'B-Disease', 'I-Disease', 'B-Drug', 'I-Drug'])
pair = st.integers(1, 9).flatmap(lambda n: st.tuples(*[st.lists(tag, min_size=n, max_size=n)]*2))


@given(st.lists(pair, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_f1_against_a_reference_for_any_tags(pairs):
    truth, pred = map(list, zip(*pairs))
    a, b = ({(i, *s) for i, tags in enumerate(side) for s in reference(tags)} for side in (truth, pred))
    got = Entities.entity_f1(truth, pred).loc['all']
    assert (got.true, got.found, got.right) == (len(a), len(b), len(a & b))
    want = len(a & b)/len(b) if b else 0, len(a & b)/len(a) if a else 0, 2*len(a & b)/(len(a) + len(b)) if a or b else 0
    assert np.allclose(got[['precision', 'recall', 'F1']].astype(float), want)
    try: from seqeval.metrics import f1_score
    except ImportError: return
    if a or b: assert np.isclose(got.F1, f1_score(truth, pred, zero_division=0))


def test_f1_by_hand():
    truth = [['B-A', 'I-A', 'O', 'B-B'], ['O', 'B-A', 'O']]
    assert (Entities.entity_f1(truth, truth)[['precision', 'recall', 'F1']] == 1).all(axis=None)
    got = Entities.entity_f1(truth, [['B-A', 'O', 'O', 'B-B'], ['O', 'B-B', 'B-A']])
    assert got.loc['A', 'F1'] == 0 and got.loc['B', ['precision', 'recall']].tolist() == [.5, 1] and got.loc['all', 'F1'] == 2/7


@pytest.mark.parametrize('pred,message', [([['O']], '2 sentences, and predictions for 1'), ([['O', 'O'], ['O', 'O']], 'sentence 1 has 1 words and 2')])
def test_f1_refuses_what_does_not_fit(pred, message):
    with pytest.raises(DataError, match=message): Entities.entity_f1([['O', 'O'], ['O']], pred)


@pytest.mark.parametrize('spans', [[(0, 2, 'A'), (1, 3, 'A')], [(2, 5, 'A')], [(1, 1, 'A')], [(-1, 1, 'A')]])
def test_spans_that_do_not_fit(spans):
    with pytest.raises(DataError, match='overlaps another or leaves'): Entities.to_tags(spans, 4)


def test_read_iob(tmp_path):
    path = tmp_path/'x.tsv'
    path.write_bytes('\n\nno\tO\r\nœdème\tB-Disease\r\n\r\n\r\nX\tB-A\nY\tI-A'.encode())
    assert Entities.read_iob(path) == [(['no', 'œdème'], ['O', 'B-Disease']), (['X', 'Y'], ['B-A', 'I-A'])]


@pytest.mark.parametrize('text,message', [
    ('a\tO\nb\tI-A', 'line 2: I-A follows O'), ('a\tB-A\n\nb\tI-A', 'line 3: I-A follows O'), ('a\tB-A\nb\tI-B', 'line 2: I-B follows B-A'),
    ('a\tO\nb', 'line 2: 1 columns'), ('a\tNN\tO', 'line 1: 3 columns'), ('a\tX', "line 1: the tag 'X'"), ('a\tB-', "the tag 'B-'"), ('\tO', 'line 1: 2 columns'), ('\n\n', 'no sentences')])
def test_bad_iob(text, message, tmp_path):
    (tmp_path/'x.tsv').write_text(text)
    with pytest.raises(DataError, match=message): Entities.read_iob(tmp_path/'x.tsv')


def test_bad_encoding_of_iob(tmp_path):
    (tmp_path/'x.tsv').write_bytes(b'a\tO\n\xe9\tO\n')
    with pytest.raises(DataError, match=r'byte 0xe9 at position 4 \(line 2\)'): Entities.read_iob(tmp_path/'x.tsv')


@pytest.mark.skipif(not NER.exists(), reason='NCBI-disease is not beside the checkout')
@pytest.mark.parametrize('part,sentences,entities', [('train', 5424, 5134), ('devel', 923, 787), ('test', 940, 960)])
def test_ncbi_disease(part, sentences, entities):
    data = Entities.read_iob(NER/f'{part}.tsv')
    assert len(data) == sentences and sum(len(Entities.to_spans(s.tags)) for s in data) == entities
    assert all(Entities.to_tags(Entities.to_spans(s.tags), len(s.tags)) == s.tags for s in data)
    assert Entities.entity_f1([s.tags for s in data], [s.tags for s in data]).loc['Disease', 'F1'] == 1


def test_what_is_kept_of_the_archive_is_what_is_parsed():
    import json
    rows = pd.DataFrame(json.loads(T._parsed()['rows'].tobytes())).set_index('id')
    kept = T.indiana_table().set_index('id')
    pd.testing.assert_frame_equal(kept[rows.columns].loc[rows.index], rows)
