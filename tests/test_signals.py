"Signals: reading, filters, R peaks and simulation against truths, reference implementations and bad input"
import warnings
from collections import Counter
from pathlib import Path

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medlearn.data import signals as S
from medlearn.data import rhythms as Rhythms
from medlearn.data import tracings as Tracings
from medlearn.kit.cards import card,DataError

mitdb = Path(__file__).parents[2]/'shared'/'data'/'mitdb_record100'


@pytest.fixture(scope='module')
def sim(): return Rhythms.simulated_ecg(60, seed=3)


@pytest.fixture(scope='module')
def record100():
    if not mitdb.is_dir(): pytest.skip('MIT-BIH record 100 is not beside the project')
    return Tracings.read_wfdb(mitdb/'100')


def write(path, x, rate, leads, gain=1000, fmt=16):
    "A WFDB record, written bit by bit where the format is 212"
    bits = 16 if fmt == 16 else 12
    low = -2**(bits-1)
    steps = [[low if np.isnan(v) else round(float(v)*gain) for v in row] for row in x]
    flat = [row[i] for i in range(len(x[0])) for row in steps]
    if fmt == 16: raw = np.array(flat, '<i2').tobytes()
    else:
        pairs = [(flat[i] % 4096, flat[i+1] % 4096 if i+1 < len(flat) else 0) for i in range(0, len(flat), 2)]
        raw = b''.join(bytes([a % 256, a//256 + b//256*16, b % 256]) for a, b in pairs)[:-(-len(flat)*3//2)]
    path.with_suffix('.dat').write_bytes(raw)
    sums = [(sum(row) + 2**15) % 2**16 - 2**15 for row in steps]
    lines = [f'{path.name}.dat {fmt} {gain}(0)/mV {bits} 0 {row[0]} {c} 0 {n}' for row, c, n in zip(steps, sums, leads)]
    path.with_suffix('.hea').write_text(f'{path.name} {len(x)} {rate} {len(x[0])}\n' + '\n'.join(lines) + '\n')
    return path.with_suffix('.hea')


@pytest.fixture
def rec(tmp_path):
    x = np.random.default_rng(0).normal(0, .4, (2, 500)).clip(-2, 2).astype(np.float32)
    return write(tmp_path/'rec', x, 250, ['II', 'V1'], gain=200, fmt=212), x


# Record 100

def test_record_100_as_published(record100):
    s = record100
    assert s.mv[0].shape == (2, 650_000) and s.rate == 360 and s.leads == ['MLII', 'V5']
    assert Counter(s.symbols[0]) == dict(N=2239, A=33, V=1)
    assert s.mv[0][:, 0] == pytest.approx([(995-1024)/200, (1011-1024)/200])
    marks = Tracings.read_annotations(mitdb/'100.atr')
    assert marks.iloc[0].tolist() == [18, '+', '(N'] and marks['sample'].is_monotonic_increasing


def test_record_100_as_the_wfdb_package_reads_it(record100):
    wfdb = pytest.importorskip('wfdb', reason='the wfdb package is not installed')
    got, marks = wfdb.rdrecord(str(mitdb/'100')), wfdb.rdann(str(mitdb/'100'), 'atr')
    assert np.allclose(got.p_signal.T, record100.mv[0], atol=1e-6) and got.sig_name == record100.leads
    own = Tracings.read_annotations(mitdb/'100.atr')
    assert (own['sample'] == marks.sample).all() and (own.symbol == marks.symbol).all()


def test_r_peaks_of_record_100(record100):
    "Within 75 ms of the cardiologists' marks, on all 30 minutes"
    found = S.r_peaks(record100.mv[0], 360)
    hits, missed, extra = Rhythms.match_peaks(found, record100.peaks[0], 360)
    assert hits/(hits+missed) > .998 and hits/(hits+extra) > .998


def test_r_peaks_agree_with_neurokit(record100):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nk = pytest.importorskip('neurokit2', reason='neurokit2 is not installed')
        x = record100.mv[0][:1, :360*120].astype(float)
        theirs = nk.ecg_peaks(nk.ecg_clean(x[0], 360), 360)[1]['ECG_R_Peaks']
    hits, missed, extra = Rhythms.match_peaks(S.r_peaks(x, 360), theirs, 360)
    assert hits > 130 and missed + extra <= 2


def test_a_wrong_rate_and_a_model_of_another_rate(record100):
    few = record100.take([0])
    with pytest.raises(DataError, match='has 360 Hz, the model needs 250'): few.at_rate(250)
    other = few.at_rate(250, change=True)
    assert other.mv[0].shape[1] == pytest.approx(650_000*250/360, abs=1)
    hits, missed, extra = Rhythms.match_peaks(S.r_peaks(other.mv[0], 250), other.peaks[0], 250)
    assert hits/(hits+missed) > .998 and hits/(hits+extra) > .998


# Reading and writing

@given(fmt=st.sampled_from([16, 212]), leads=st.integers(1, 5), n=st.integers(1, 40), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_written_records_come_back(tmp_path_factory, fmt, leads, n, seed):
    r = np.random.default_rng(seed)
    low = 2**(15 if fmt == 16 else 11)
    steps = r.integers(-low+1, low, (leads, n))
    x = np.where(r.random((leads, n)) < .1, np.nan, steps/100)
    head = write(tmp_path_factory.mktemp('w')/'r', x, 360, [f'L{i}' for i in range(leads)], gain=100, fmt=fmt)
    got = Tracings.read_wfdb(head, check=False)
    assert np.allclose(got.mv[0], x, atol=1e-4, equal_nan=True) and got.leads == [f'L{i}' for i in range(leads)]


def test_wfdb_package_reads_what_is_written(rec):
    wfdb = pytest.importorskip('wfdb', reason='the wfdb package is not installed')
    head, x = rec
    got = wfdb.rdrecord(str(head.with_suffix('')))
    assert got.fs == 250 and np.abs(got.p_signal.T - x).max() <= .0026 and got.sig_name == ['II', 'V1']
    sums = wfdb.rdrecord(str(head.with_suffix('')), physical=False).calc_checksum()
    assert all((a-b) % 65536 == 0 for a, b in zip(got.checksum, sums))


def test_units_and_defaults_of_a_header(tmp_path):
    np.array([[100, 1000, -7], [300, -1000, 7]], '<i2').tofile(tmp_path/'a.dat')
    (tmp_path/'a.hea').write_text('# made by hand\na 3 500 2\na.dat 16\na.dat 16 2(1000)/uV 16 0 1000 0 0 V 1\na.dat 16 1000/V\n')
    s = Tracings.read_wfdb(tmp_path/'a', patient='P7')
    assert np.allclose(s.mv[0], [[.5, 1.5], [0, -1], [-7, 7]]) and s.leads == ['signal 0', 'V 1', 'signal 2']
    assert s.groups.tolist() == ['P7'] and s.peaks is None


@pytest.mark.parametrize('old,new,says', [
    ('rec.dat', 'lost.dat', 'lost.dat cannot be read'), ('250 500', '250 600', 'has 1,500 bytes; 2 leads of 600'),
    ('dat 212', 'dat 310', 'format 310'), ('/mV', '/mmHg', 'is in mmHg'), ('rec 2 250', 'rec 3 250', 'promises 3 signals'),
    ('rec 2 250', 'rec/4 2 250', 'one segment'), ('dat 212', 'dat 212x4', '212x4'), ('rec 2 250', 'rec 2 0', 'the rate is 0')])
def test_bad_headers(rec, old, new, says):
    head, _ = rec
    head.write_text(head.read_text().replace(old, new))
    with pytest.raises(DataError, match=says): Tracings.read_wfdb(head)


def test_bad_files(rec, tmp_path):
    head, x = rec
    with pytest.raises(DataError, match='none.hea cannot be read'): Tracings.read_wfdb(tmp_path/'none')
    raw = bytearray(head.with_suffix('.dat').read_bytes())
    raw[0] ^= 1
    head.with_suffix('.dat').write_bytes(raw)
    with pytest.raises(DataError, match='do not add up to the checksum'): Tracings.read_wfdb(head)
    (tmp_path/'rec.atr').write_bytes(bytes([1, 4]))
    with pytest.raises(DataError, match='cut short'): Tracings.read_annotations(tmp_path/'rec.atr')


def mark(code, value): return (code << 10 | value).to_bytes(2, 'little')
def note(text): return mark(22, 0) + mark(63, len(text)) + text.encode() + b'\0'*(len(text) % 2)


def test_marks_with_a_rate_of_their_own(tmp_path):
    "Field 7: beats written in milliseconds beside a record of 360 Hz: 75 a minute, not 27"
    head = write(tmp_path/'r', np.random.default_rng(0).normal(0, .3, (1, 3600)), 360, ['II'])
    seconds = .5 + .8*np.arange(11)
    steps = np.diff([0, *(seconds*1000).round().astype(int)])
    (tmp_path/'r.atr').write_bytes(note('## time resolution: 1000') + b''.join(mark(1, int(s)) for s in steps) + bytes(2))
    s = Tracings.read_wfdb(head)
    assert s.peaks[0].tolist() == [round(v*360) for v in seconds]
    assert Rhythms.rr_features(s.peaks, s.rate)['heart rate'][0] == pytest.approx(75, abs=.05)
    raw = Tracings.read_annotations(tmp_path/'r.atr')
    assert raw.attrs == dict(rate=1000) and raw['sample'].tolist() == (seconds*1000).round().tolist()
    (tmp_path/'r.atr').write_bytes(note('## time resolution: fast') + mark(1, 9) + bytes(2))
    with pytest.raises(DataError, match="r.atr: '## time resolution: fast' is no rate"): Tracings.read_wfdb(head)


def test_marks_as_the_wfdb_package_times_them(tmp_path):
    wfdb = pytest.importorskip('wfdb', reason='the wfdb package is not installed')
    write(tmp_path/'r', np.random.default_rng(0).normal(0, .3, (1, 3600)), 360, ['II'])
    at = np.array([500, 1300, 2100, 9900])
    wfdb.wrann('r', 'atr', at, ['N']*4, fs=1000, write_dir=str(tmp_path))
    theirs = wfdb.rdann(str(tmp_path/'r'), 'atr')
    assert theirs.fs == 1000 and np.abs(Tracings.read_wfdb(tmp_path/'r').peaks[0]/360 - theirs.sample/theirs.fs).max() < .002


def test_marks_of_a_kind_of_their_own_are_no_beats(tmp_path):
    "Codes 42 to 49 are free: named by the file, or by their number; they were taken for the beats ? before"
    head = write(tmp_path/'r', np.random.default_rng(0).normal(0, .3, (1, 900)), 360, ['II'])
    kinds = [note(v) for v in ('## annotation type definitions', '42 pac a_premature_one', '## end of definitions')]
    (tmp_path/'r.atr').write_bytes(b''.join(kinds) + note('hello') + mark(1, 50) + mark(42, 100) + mark(47, 100) + bytes(2))
    assert Tracings.read_annotations(tmp_path/'r.atr').values.tolist() == [[0, '"', 'hello'], [50, 'N', ''], [150, 'pac', ''], [250, '[47]', '']]
    assert Tracings.read_wfdb(head).peaks[0].tolist() == [50]


@pytest.mark.parametrize('marks,says', [
    (mark(1, 50) + mark(1, 800) + mark(1, 100), r'r.atr: 2 of 3 beats lie after the end of r.hea, 700 samples at 360 Hz; the first at sample 850'),
    (mark(1, 50) + mark(62, 1) + mark(1, 0), r'r.atr: two beats are at sample 50 .1 such'),
    (mark(59, 0) + b'\xff\xff\x00\x00' + mark(1, 0), r'r.atr: mark 1 lies 65536 samples before the record')])
def test_marks_that_are_not_of_this_record(tmp_path, marks, says):
    head = write(tmp_path/'r', np.random.default_rng(0).normal(0, .3, (1, 700)), 360, ['II'])
    (tmp_path/'r.atr').write_bytes(marks + bytes(2))
    with pytest.raises(DataError, match=says): Tracings.read_wfdb(head)
    assert Tracings.read_wfdb(head, annotations='').peaks is None


def test_a_format_with_an_offset(rec):
    "Field 28: 212+3, the numbers begin after three bytes"
    head, x = rec
    data = head.with_suffix('.dat')
    data.write_bytes(b'abc' + data.read_bytes())
    head.write_text(head.read_text().replace(' 212 ', ' 212+3 '))
    assert np.abs(Tracings.read_wfdb(head).mv[0] - x).max() <= .0026
    data.write_bytes(data.read_bytes()[1:])
    with pytest.raises(DataError, match='has 1,499 bytes after the first 3; 2 leads of 500'): Tracings.read_wfdb(head)


@pytest.mark.parametrize('old,new,says', [
    ('rec 2 250 500', 'rec 2 25O 500', "first line 'rec 2 25O 500'"), ('rec 2 250 500', 'rec 2 360,5 500', 'with a point in the rate'), ('rec 2 250 500', 'rec 2 -250 500', 'the rate is -250'),
    ('rec 2 250 500', 'rec 2 nan 500', "first line 'rec 2 nan 500'"), ('rec 2 250 500', 'rec 2 1.2.3 500', 'is not "name'), ('rec 2 250 500', 'rec 2 250 5e2', 'is not "name'),
    ('212 200(0)/mV', '212 2e+0.1(0)/mV', "line 2, 'rec.dat 212 2e"), ('212 200(0)/mV', '212 --(0)/mV', 'line 2, .* does not describe a signal'),
    ('212 200(0)/mV', '212+x 200(0)/mV', 'line 2, '), ('212 200(0)/mV', '212 200(zero)/mV', 'line 2, ')])
def test_a_field_of_a_header_that_is_no_number(rec, old, new, says):
    "Field 28; a rate that is no number was 250 Hz before"
    head, _ = rec
    head.write_text(head.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=says): Tracings.read_wfdb(head)


def test_headers_as_other_programs_write_them(tmp_path):
    np.array([[100], [300]], '<i2').tofile(tmp_path/'a.dat')
    for first in ('a 1 360/100(5) 2 10:30:00 01/02/2003', 'a 1 3.6e2 2', 'a 1 360. 2 0:0:0.5'):
        (tmp_path/'a.hea').write_text(f'{first}\na.dat 16 1000(0)/µV 16 0 100 400 0 II\n', encoding='utf-8')
        s = Tracings.read_wfdb(tmp_path/'a')
        assert s.rate == 360 and np.allclose(s.mv[0], [[1e-4, 3e-4]])


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_no_header_ends_in_a_raw_error(tmp_path_factory, data):
    "A header with a few characters changed is read, or refused in words"
    folder = tmp_path_factory.mktemp('h')
    head = write(folder/'rec', np.random.default_rng(0).normal(0, .3, (2, 40)), 250, ['II', 'V1'], gain=200, fmt=212)
    text = list(head.read_text())
    for _ in range(data.draw(st.integers(1, 3))): text[data.draw(st.integers(0, len(text)-1))] = data.draw(st.sampled_from('0179.+-eE()/x: ,a\n'))
    head.write_text(''.join(text))
    try: Tracings.read_wfdb(head, check=False)
    except DataError: pass


def test_missing_and_saturated_samples(tmp_path):
    x = np.random.default_rng(1).normal(0, .3, (2, 2000))
    assert Tracings.faults(x, 500, ['a', 'b']).empty
    x[0] = x[0].clip(-.4, .4)
    x[0, 100:130], x[1, 900:1300], x[1, 5] = .4, 0, np.nan
    found = Tracings.faults(x, 500, ['a', 'b']).set_index('fault')
    assert found.loc['saturated', 'lead'] == 'a' and found.loc['saturated', 'start'] == pytest.approx(.2, abs=.02)
    assert found.loc['flat', 'seconds'] == pytest.approx(.8) and found.loc['missing', 'start'] == .01
    head = write(tmp_path/'x', x, 500, ['a', 'b'])
    with pytest.raises(DataError, match='3 faults; lead a is saturated'): Tracings.read_wfdb(head)
    assert np.isnan(Tracings.read_wfdb(head, check=False).mv[0][1, 5])
    assert Tracings.faults(np.zeros((1, 1000)), 500, ['off']).fault.tolist() == ['flat']


def dicom(tmp_path, change=lambda c: None, group=lambda w: None):
    "A DICOM ECG of two leads, one in microvolts, one in millivolts"
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage
    def code(value, meaning):
        d = Dataset()
        d.CodeValue, d.CodingSchemeDesignator, d.CodeMeaning = value, 'X', meaning
        return [d]
    def channel(name, sensitivity, unit):
        d = Dataset()
        d.ChannelSourceSequence, d.ChannelSensitivity, d.ChannelSensitivityUnitsSequence = code('1', name), sensitivity, code(unit, unit)
        d.ChannelSensitivityCorrectionFactor, d.ChannelBaseline, d.WaveformBitsStored = '1', '0', 16
        return d
    w, ds = Dataset(), Dataset()
    w.NumberOfWaveformChannels, w.NumberOfWaveformSamples, w.SamplingFrequency, w.WaveformBitsAllocated = 2, 3, '250', 16
    w.WaveformSampleInterpretation, w.MultiplexGroupLabel, w.WaveformOriginality = 'SS', 'RHYTHM', 'ORIGINAL'
    w.ChannelDefinitionSequence = [channel('Lead II', '2.5', 'uV'), channel('Lead V1 (x)', '0.01', 'mV')]
    w.WaveformData = np.array([[400, 100], [800, -100], [-400, 50]], '<i2').tobytes()
    w['WaveformData'].VR = 'OW'
    change(w.ChannelDefinitionSequence[1])
    group(w)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage
    ds.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PatientID, ds.Modality, ds.WaveformSequence = TwelveLeadECGWaveformStorage, '1.2.3', 'P9', 'ECG', [w]
    ds.save_as(tmp_path/'e.dcm', enforce_file_format=True)
    return tmp_path/'e.dcm'


def test_dicom_units_become_millivolts(tmp_path):
    s = Tracings.read_dicom_ecg(dicom(tmp_path))
    assert np.allclose(s.mv[0], [[1, 2, -1], [1, -1, .5]]) and s.leads == ['II', 'V1'] and s.rate == 250
    assert s.groups.tolist() == ['P9']


def test_bad_dicom(tmp_path):
    def no_unit(c): del c.ChannelSensitivityUnitsSequence
    def pressure(c): c.ChannelSensitivityUnitsSequence[0].CodeValue = 'mm[Hg]'
    for change in (no_unit, pressure):
        with pytest.raises(DataError, match='channel V1 has .* unit'): Tracings.read_dicom_ecg(dicom(tmp_path, change))
    with pytest.raises(DataError, match='number 1 is not there'): Tracings.read_dicom_ecg(tmp_path/'e.dcm', 1)
    (tmp_path/'no.dcm').write_bytes(b'no')
    with pytest.raises(DataError, match='no.dcm cannot be read as DICOM'): Tracings.read_dicom_ecg(tmp_path/'no.dcm')
    with pytest.raises(DataError, match='cannot be read as DICOM'): Tracings.read_dicom_ecg(tmp_path/'none.dcm')


def test_dicom_channels_without_a_name_in_words(tmp_path):
    "Field 27"
    def only_code(value):
        def change(c):
            del c.ChannelSourceSequence[0].CodeMeaning
            c.ChannelSourceSequence[0].CodeValue = value
        return change
    def label(c):
        del c.ChannelSourceSequence
        c.ChannelLabel = 'V1'
    def nothing(c): del c.ChannelSourceSequence
    def empty(c): c.ChannelSourceSequence = []
    for change, name in ((only_code('5.6.3-9-3'), 'V1'), (only_code('2:62'), 'aVR'), (only_code('X9'), 'X9'), (label, 'V1'), (nothing, 'channel 2'), (empty, 'channel 2')):
        s = Tracings.read_dicom_ecg(dicom(tmp_path, change))
        assert s.leads == ['II', name] and np.allclose(s.mv[0], [[1, 2, -1], [1, -1, .5]])


def test_dicom_without_rate_or_sensitivity(tmp_path):
    "Field 27"
    def without(name): return lambda d: delattr(d, name)
    def blank(w): w.SamplingFrequency = None
    for group in (without('SamplingFrequency'), blank):
        with pytest.raises(DataError, match='e.dcm: waveform 0 has no SamplingFrequency'): Tracings.read_dicom_ecg(dicom(tmp_path, group=group))
    with pytest.raises(DataError, match='e.dcm: channel V1 has no sensitivity'): Tracings.read_dicom_ecg(dicom(tmp_path, without('ChannelSensitivity')))
    with pytest.raises(DataError, match='e.dcm: waveform 0 cannot be read: .*ChannelDefinitionSequence'): Tracings.read_dicom_ecg(dicom(tmp_path, group=without('ChannelDefinitionSequence')))
    with pytest.raises(DataError, match='waveform 0 cannot be read: .*WaveformData'): Tracings.read_dicom_ecg(dicom(tmp_path, group=without('WaveformData')))
    def odd(w): w.WaveformBitsAllocated = 12
    with pytest.raises(DataError, match='waveform 0 cannot be read'): Tracings.read_dicom_ecg(dicom(tmp_path, group=odd))


def test_dicom_without_a_patient(tmp_path):
    import pydicom
    ds = pydicom.dcmread(dicom(tmp_path))
    ds.PatientID = None
    ds.save_as(tmp_path/'e.dcm')
    assert Tracings.read_dicom_ecg(tmp_path/'e.dcm').groups.tolist() == [str(tmp_path/'e.dcm')]
    assert Tracings.read_dicom_ecg(tmp_path/'e.dcm', patient='P3').groups.tolist() == ['P3']


def test_dicom_padding_is_no_sample(tmp_path):
    def pad(w): w.add_new('WaveformPaddingValue', 'OW', np.array([-400], '<i2').tobytes())
    assert np.allclose(Tracings.read_dicom_ecg(dicom(tmp_path, group=pad)).mv[0], [[1, 2, np.nan], [1, -1, .5]], equal_nan=True)


def test_real_12_lead_ecg_obeys_einthoven_and_goldberger():
    try: s = Tracings.ecg_12lead()
    except DataError as e: pytest.skip(f'the pydicom wheel cannot be had: {e}')
    lead = dict(zip(s.leads, s.mv[0]))
    assert s.leads == 'I II III aVR aVL aVF V1 V2 V3 V4 V5 V6'.split() and s.mv[0].shape == (12, 10_000) and s.rate == 1000
    assert np.abs(lead['I'] + lead['III'] - lead['II']).max() < .0026
    assert np.abs((lead['I'] + lead['II'])/2 + lead['aVR']).max() < .003
    rr = np.diff(S.r_peaks(s.mv[0], 1000))
    assert len(rr) == 9 and rr.mean() == pytest.approx(982, abs=10)


# The container

def test_container_refuses_what_does_not_fit(sim):
    x = [np.zeros((2, 10), np.float32)]*2
    for kw, says in ((dict(leads=['a']), 'record 0 has shape'), (dict(rate=0), 'rate is 0'), (dict(rate=float('nan')), 'rate is nan'),
                     (dict(groups=np.array([1])), '1 groups for 2')):
        with pytest.raises(DataError, match=says): S.Signals(**(dict(mv=x, rate=5, leads=['a', 'b'], groups=np.array([1, 2])) | kw))
    uneven = S.Signals([np.zeros((1, 5), np.float32), np.zeros((1, 6), np.float32)], 5, ['a'], np.array(['x', 'y']), 'two')
    with pytest.raises(DataError, match=r'record 1 \(patient y\) has 6 samples'): uneven.array()
    with pytest.raises(DataError, match="no split 'later'"): sim.part('later')


def test_parts_keep_rows_together(sim):
    t = sim.part('test')
    at = np.flatnonzero(sim.split == 'test')
    assert (t.labels == sim.labels[at]).all() and (t.table.patient == t.groups).all() and len(t) == len(at) > 5
    assert all((t.mv[i] == sim.mv[j]).all() and (t.peaks[i] == sim.peaks[j]).all() for i, j in enumerate(at))
    assert not set(t.groups) & set(sim.part('train').groups)


@pytest.mark.parametrize('rate', [100, 360, 500])
def test_resampling_keeps_a_slow_wave_and_its_place(rate):
    t = np.arange(2500)/250
    s = S.Signals([np.sin(2*np.pi*3*t)[None].astype(np.float32)], 250, ['x'], np.array(['p']), peaks=[np.array([250])])
    got = s.at_rate(rate, change=True)
    inner = slice(rate, -rate)
    assert np.abs(got.mv[0][0] - np.sin(2*np.pi*3*np.arange(got.mv[0].shape[1])/rate))[inner].max() < .01
    assert got.peaks[0][0] == rate and s.at_rate(250) is s


# Filters and peaks

def test_zero_phase_moves_nothing_and_causal_does():
    x = np.exp(-((np.arange(1000)-500)/8)**2/2)
    assert S.clean(x, 250, low=None, high=20).argmax() == 500 and S.clean(x, 250, causal=True, low=None, high=20).argmax() > 501


def test_filters_take_what_they_should():
    t = np.arange(5000)/500
    power = lambda f, **kw: np.std(S.clean(np.sin(2*np.pi*f*t), 500, **kw)[1500:-1500])*2**.5
    assert power(10) == pytest.approx(1, abs=.03) and power(.1) < .02 and power(150) < .02
    assert power(50, high=None, mains=50) < .02 < .9 < power(60, high=None, mains=50)
    assert power(.5) == pytest.approx(.5, abs=.02) and power(40) == pytest.approx(.5, abs=.03)


def test_filters_refuse(sim):
    for kw in (dict(high=125), dict(mains=130), dict(low=0)):
        with pytest.raises(DataError, match='between 0 and 125 Hz'): S.clean(sim.mv[0], 250, **kw)
    x = sim.mv[0].copy()
    x[0, 7] = np.nan
    with pytest.raises(DataError, match='missing samples'): S.clean(x, 250)
    with pytest.raises(DataError, match='from 2 s on'): S.r_peaks(sim.mv[0][:, :400], 250)


@given(st.lists(st.integers(0, 60), max_size=12, unique=True), st.lists(st.integers(0, 60), max_size=12, unique=True), st.integers(0, 6))
@settings(deadline=None)
def test_matching_is_the_best_one_to_one(a, b, within):
    a, b = np.array(sorted(a), int), np.array(sorted(b), int)
    hits, missed, extra = Rhythms.match_peaks(a, b, 1, within)
    near = np.abs(a[:, None] - b) <= within
    best = (maximum_bipartite_matching(csr_array(near)) >= 0).sum() if near.any() else 0
    assert (hits, missed, extra) == (best, len(b)-best, len(a)-best)


def test_peaks_do_not_depend_on_the_unit_and_the_sign(sim):
    p = S.r_peaks(sim.mv[0], 250)
    assert len(p) > 5 and (p == S.r_peaks(-3*sim.mv[0] + 5, 250)).all()
    assert len(S.r_peaks(np.zeros((1, 1000)), 250)) == 0


def test_peaks_of_simulated_rhythms(sim):
    inner = lambda p: p[(p >= 50) & (p < 2450)]
    n = np.array([Rhythms.match_peaks(inner(S.r_peaks(x, 250)), inner(p), 250) for x, p in zip(sim.mv, sim.peaks)]).sum(0)
    assert n[0]/(n[0]+n[1]) > .97 and n[0]/(n[0]+n[2]) > .97


def test_ventricular_beats_are_the_first_to_be_missed(sim):
    def found(kind, share):
        rows = [Rhythms.match_peaks(S.r_peaks(x, 250, share), p[s == kind], 250)[:2] for x, p, s in zip(sim.mv, sim.peaks, sim.symbols)]
        hits, missed = np.sum(rows, 0)
        return hits/(hits + missed)
    assert found('V', .3) > .9 and found('V', .7) < found('N', .7) - .1


def test_rr_interval_of_the_cart():
    import io, pydicom
    from medlearn.kit.fetch import fetch, read_member
    c = card('ecg_12lead')
    try: ds = pydicom.dcmread(io.BytesIO(read_member(fetch(c), c.file().member)))
    except DataError as e: pytest.skip(f'the pydicom wheel cannot be had: {e}')
    own = {a.ConceptNameCodeSequence[0].CodeMeaning: a.NumericValue for a in ds.WaveformAnnotationSequence if a.get('NumericValue')}
    s = Tracings.ecg_12lead()
    assert own['RR Interval'] == 982 and np.diff(S.r_peaks(s.mv[0], 1000)).mean() == pytest.approx(982, abs=1)


# Simulation

def test_simulation_is_repeatable_and_grows(sim):
    again, more, other = Rhythms.simulated_ecg(12, seed=3), Rhythms.simulated_ecg(18, seed=3), Rhythms.simulated_ecg(12, seed=4)
    assert all((a == b).all() and (a == c).all() and (a == d).all() for a, b, c, d in zip(again.mv, sim.mv, more.mv, Rhythms.simulated_ecg(12, seed=3).mv))
    assert not np.allclose(again.mv[0], other.mv[0]) and again.simulated and 'simulated' in repr(again)


def test_rhythms_are_what_they_are_called(sim):
    f = Rhythms.rr_features(sim.peaks, sim.rate)
    by = f.groupby(sim.table.rhythm).median()
    assert by.loc['bradycardia', 'heart rate'] < 63 < by.loc['sinus', 'heart rate'] < 97 < by.loc['tachycardia', 'heart rate']
    assert by['CV of RR'].drop(['AF-like', 'ventricular premature', 'atrial premature']).max() < .1 < by.loc['AF-like', 'CV of RR']
    for c, kinds in dict(sinus={'N'}, **{'ventricular premature': {'N', 'V'}, 'atrial premature': {'N', 'A'}}).items():
        assert all(set(k) == kinds for k, r in zip(sim.symbols, sim.table.rhythm) if r == c)


def test_compensatory_pause_and_the_wide_beat():
    s = Rhythms.simulated_ecg(20, kinds=['ventricular premature'], noise=0, seed=1)
    pairs = []
    for p, k in zip(s.peaks, s.symbols):
        for i in np.flatnonzero(k == 'V'):
            if 1 <= i < len(p)-1: pairs.append(((p[i+1]-p[i-1])/2/np.median(np.diff(p)), (p[i]-p[i-1])/(p[i+1]-p[i])))
    whole, early = np.array(pairs).T
    assert len(pairs) > 20 and np.median(whole) == pytest.approx(1, abs=.06) and (early < 1).mean() > .95
    w, _, kind = S.beats(s, normalise=False)
    width = lambda x: (np.abs(x) > np.abs(x).max(1, keepdims=True)/2).sum(1)/s.rate
    assert np.median(width(w[kind == 'V', 0])) > 1.4*np.median(width(w[kind == 'N', 0]))


def test_no_p_wave_in_af_like():
    def before(kind):
        "Height of the mean trace from 0.25 to 0.12 s before R, of beats that come more than 0.7 s after the last, R = 1"
        s = Rhythms.simulated_ecg(30, kinds=[kind], noise=0, seed=2)
        cut = [x[0, p-62:p-30]/x[0, p] for x, q in zip(s.mv, s.peaks) for p in q[1:][np.diff(q) > 175]]
        assert len(cut) > 50
        return np.ptp(np.mean(cut, 0))
    assert before('sinus') > 3*before('AF-like')


def test_unknown_rhythm():
    with pytest.raises(DataError, match="'flutter' is not a rhythm"): Rhythms.simulated_ecg(3, kinds=['flutter'])


def test_waves_are_those_of_neurokit():
    "ECGSYN integrated by neurokit2 against the sum of bells, beat on beat"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nk = pytest.importorskip('neurokit2', reason='neurokit2 is not installed')
        ecg = np.asarray(nk.ecg_simulate(duration=5, sampling_rate=100, noise=0, heart_rate=60, heart_rate_std=0, random_state=1))
    t = np.arange(-30, 40)/100
    beat = (Rhythms.waves.height.to_numpy()*np.exp(-((t[:, None] - Rhythms.waves['at'].to_numpy())/Rhythms.waves.width.to_numpy())**2/2)).sum(1)
    peaks = [p for p in S.r_peaks(ecg, 100) if 130 < p < len(ecg)-40]
    assert len(peaks) >= 2 and all(np.corrcoef(ecg[p-30:p+40], beat)[0, 1] > .95 for p in peaks)


def test_cards_say_what_is_simulated():
    assert card('simulated_ecg').simulated and 'SIMULATED' in card('simulated_ecg').title
    assert not card('ecg_12lead').simulated and list(Rhythms.rhythms) == list(card('simulated_ecg').labels.values())


# Features and beats

def test_features_by_hand():
    f = Rhythms.rr_features([np.array([0, 250, 500, 650]), np.array([0, 100]), np.array([], int)], 250).T
    assert f[0]['heart rate'] == pytest.approx(60000/((1000+1000+600)/3)) and f[0]['RMSSD, ms'] == pytest.approx((400**2/2)**.5)
    assert f[0]['pNN50'] == .5 and f[0]['shortest/median'] == .6 and f[[1, 2]].isna().all().all()


def test_windows_lie_on_their_peaks(sim):
    w, rec, kind = S.beats(sim, normalise=False)
    assert w.shape[1:] == (2, round(.25*250) + round(.45*250)) and len(w) == len(rec) == len(kind)
    i = 5
    inside = [p for p in sim.peaks[i] if p >= 62 and p+112 <= 2500]
    assert (rec == i).sum() == len(inside) and (w[rec == i][1, :, 62] == sim.mv[i][:, inside[1]]).all()
    with pytest.raises(DataError, match='no R peaks'): S.beats(S.Signals(sim.mv, 250, sim.leads, sim.groups))
    x = S.normalised(sim.mv[0])
    assert np.allclose(x.mean(1), 0, atol=1e-5) and np.allclose(x.std(1), 1, atol=1e-4) and (S.normalised(np.ones((1, 9))) == 0).all()


# PTB-XL

@pytest.fixture
def ptb(tmp_path, sim):
    (tmp_path/'records100/00000').mkdir(parents=True)
    for i in range(5): write(tmp_path/f'records100/00000/{i:05}_lr', sim.mv[i][:, :1000], 100, ['I', 'II'])
    codes = ["{'NORM': 100.0, 'SR': 0.0}", "{'IMI': 35.0, 'LVH': 0.0}", "{'SR': 0.0}", "{'NDT': 50.0}", "{'CLBBB': 100.0}"]
    df = pd.DataFrame(dict(ecg_id=range(1, 6), patient_id=[10., 11., 11., 12., 13.], scp_codes=codes, strat_fold=[1, 8, 8, 9, 10],
                           filename_lr=[f'records100/00000/{i:05}_lr' for i in range(5)]))
    df.to_csv(tmp_path/'ptbxl_database.csv', index=False)
    pd.DataFrame(dict(diagnostic=[1, 1, 1, 1, 1, None], diagnostic_class=['NORM', 'MI', 'HYP', 'STTC', 'CD', None]),
                 index=['NORM', 'IMI', 'LVH', 'NDT', 'CLBBB', 'SR']).to_csv(tmp_path/'scp_statements.csv')
    return tmp_path, df


def test_ptbxl(ptb, sim):
    with pytest.warns(UserWarning, match='1 of 5 records'): s = Tracings.ptbxl(ptb[0])
    assert s.labels.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]] and s.multilabel
    assert s.classes == ['NORM', 'MI', 'STTC', 'CD', 'HYP'] and s.split.tolist() == ['train', 'train', 'valid', 'test']
    assert s.groups.tolist() == [10, 11, 12, 13] and np.abs(s.array()[2] - sim.mv[3][:, :1000]).max() <= .00051
    assert len(Tracings.ptbxl(ptb[0], folds=[9, 10])) == 2


def test_bad_ptbxl(ptb, tmp_path):
    folder, df = ptb
    for what, says in (((dict(rate=250)), 'not 250'), (dict(rate=500), 'lacks the column filename_hr'), (dict(folds=[3]), 'Choose other folds')):
        with pytest.raises(DataError, match=says): Tracings.ptbxl(folder, **what)
    for c in ('patient_id', 'strat_fold'):
        df.assign(**{c: df[c].where(df.index != 2)}).to_csv(folder/'ptbxl_database.csv', index=False)
        with pytest.raises(DataError, match=f'ptbxl_database.csv: row 4 has no {c} .1 such'): Tracings.ptbxl(folder)
    df.assign(scp_codes='{oops').to_csv(folder/'ptbxl_database.csv', index=False)
    with pytest.raises(DataError, match='scp_codes cannot be read'): Tracings.ptbxl(folder)
    df.assign(filename_lr='records100/none').to_csv(folder/'ptbxl_database.csv', index=False)
    with pytest.raises(DataError, match='none.hea cannot be read'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Tracings.ptbxl(folder)
    with pytest.raises(DataError, match='A folder of PTB-XL holds it'): Tracings.ptbxl(tmp_path/'nowhere')
