"Identifiers planted in headers, pixels and reports, and what refuses to be cleaned"
import warnings
from datetime import date

import numpy as np, pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from medlearn.kit.cards import DataError
from medlearn.trust.identifiers import (blackened, bright_spots, keyed_pseudonym, moved_date, redacted, released, rule_spans,
                                        saved_bytes, survivors, TextFinder)

KEY = 'a secret of a hospital, drawn at random'


def ct(): return dcmread(get_testdata_file('CT_small.dcm', download=False))


@pytest.mark.parametrize('tag, vr, value', [(0x00100010, 'PN', 'ZWETSCHKE^ANNA'), (0x00104000, 'LT', 'ZWETSCHKE'), (0x00291001, 'OB', b'ZWETSCHKE '),
                                            (0x60000022, 'LO', 'ZWETSCHKE'), (0x50002500, 'LO', 'ZWETSCHKE'), (0x00081190, 'UR', 'https://ZWETSCHKE.example')])
def test_nothing_planted_survives_in_header_or_sequence(tag, vr, value):
    ds, inner, deep = ct(), Dataset(), Dataset()
    for d in (ds, inner, deep): d.add_new(tag, vr, value)
    inner.ReferencedImageSequence, ds.AnatomicRegionSequence = [deep], [inner]
    assert survivors(saved_bytes(ds), ['zwetschke'])
    assert not survivors(saved_bytes(released(ds, 'salt', ['ZWETSCHKE'])), ['zwetschke'])


def test_a_name_where_the_table_keeps_text_refuses_the_file():
    ds = ct()
    ds.ManufacturerModelName = 'of Dr. Zwetschke'
    with pytest.raises(DataError, match='ManufacturerModelName.*clean the file again'): released(ds, 'salt', ['ZWETSCHKE'])
    with pytest.raises(DataError, match='too short'): released(ds, 'salt', ['Li'])
    with pytest.raises(DataError, match='nothing to search'): released(ds, 'salt', [])


def test_search_sees_other_encodings():
    for code in ('latin-1', 'utf-8', 'utf-16-le', 'utf-16-be'):
        assert survivors('x'.encode() + 'Müller'.encode(code), ['MÜLLER', 'absent']) == ['MÜLLER']


@pytest.mark.parametrize('text, kind', [('on 03/12/2014.', 'date'), ('on 2014-03-12', 'date'), ('March 3, 2014', 'date'), ('3 Mar 2014', 'date'), ('(317) 555-0142', 'phone'),
                                        ('317-555-0142', 'phone'), ('MRN 7153846', 'record'), ('file AB715384', 'record'), ('Dr. Miller', 'name'), ('Mrs. Anna Miller', 'name')])
def test_rules_find(text, kind): assert [k for _, _, k in rule_spans(text)] == [kind]


@pytest.mark.parametrize('text', ['T12 and L1', '2.3 x 1.4 cm', 'no change since 11/12', 'heart size 12 cm', 'Patient is rotated', 'grade 3 of 4, 100 percent'])
def test_rules_leave(text): assert rule_spans(text) == []


def test_redaction_joins_overlaps_and_refuses_places_outside():
    text = 'Seen by Anna Miller on 2014-03-12.'
    assert redacted(text, [(8, 19, 'name'), (13, 19, 'name'), (23, 33, 'date')]) == 'Seen by [name] on [date].'
    assert redacted(text, [(8, 15, 'name'), (13, 19, 'name')]) == 'Seen by [name] on 2014-03-12.'
    with pytest.raises(DataError, match='does not lie'): redacted('short', [(3, 9, 'name')])


def test_dates_keep_their_distance_and_pseudonyms_need_the_key():
    a, b = date(2012, 2, 28), date(2013, 5, 1)
    for p in ('1', '2', '77'):
        assert moved_date(b, p, KEY) - moved_date(a, p, KEY) == b - a and 1 <= (a - moved_date(a, p, KEY)).days <= 365
    assert len({(a - moved_date(a, str(p), KEY)).days for p in range(50)}) > 20
    assert keyed_pseudonym('1', KEY) == keyed_pseudonym('1', KEY) != keyed_pseudonym('2', KEY) != keyed_pseudonym('2', KEY + '.')
    with pytest.raises(DataError, match='16 or more'): keyed_pseudonym('1', 'short')
    with pytest.raises(DataError, match='without a number'): keyed_pseudonym(' ', KEY)
    with pytest.raises(DataError, match='30 or more'): moved_date(a, '1', KEY, 3)


def test_pixels():
    picture = np.zeros((64, 64), np.uint8)
    for i in range(4): picture[20:30, 10 + 8*i:13 + 8*i] = 255
    picture[45:48, 50:62] = 220
    spots, rows = bright_spots(picture)
    assert len(rows) == 5 == spots.max() and (np.bincount(spots.ravel())[1:] == rows[:, 2]).all()
    assert (rows[:, 11][rows[:, 0] == 10] >= 1).all(), 'letters have neighbours in their line'
    finder = TextFinder(10).fit(np.repeat(rows, 5, 0), np.repeat(rows[:, 0] == 10, 5))
    where = finder(picture)
    clean = blackened(picture, where)
    assert not clean[20:30, 10:37].any() and (clean[~where] == picture[~where]).all() and (clean[45:48, 50:62] == 220).all()
    assert not finder(np.zeros((20, 20), np.uint8)).any()
    with pytest.raises(DataError, match='bytes'): bright_spots(picture.astype(float))
    with pytest.raises(DataError, match='nothing to learn'): TextFinder().fit(rows, np.ones(len(rows), bool))
    with pytest.raises(DataError, match='must be alike'): blackened(picture, where[:10])
