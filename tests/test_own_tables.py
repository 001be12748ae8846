"A large table of measurements: read within a small multiple of itself, and as `tidy` would leave it"
from functools import partial
import numpy as np, pandas as pd, pytest
from medlearn.data import hospital as H
from medlearn.data.events import layout,tidy
from medlearn.data.large import _plain
from medlearn.foundations.bench import random_records
from medlearn.kit.cards import DataError
from medlearn.kit.machine import cost_of


def table(n=900, people=40, seed=0):
    "Random measurements as texts in no order, with days that come twice; their index is the row in a file"
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(id=[f'P{k}' for k in rng.integers(0, people, n)], time=rng.integers(-20, 100, n)/10,
                           variable=[f'lab é {k}' for k in rng.integers(0, 4, n)], value=rng.integers(0, 1000, n)/7))
    return df.set_axis(range(2, n + 2), axis=0)

def write(path, df, answers=None):
    path.mkdir(exist_ok=True)
    df.to_csv(path/'measurements.csv', index=False)
    if answers is None: answers = [f'{i},{"died" if k % 3 else "lived"}' for k,i in enumerate(df.id.unique())]
    (path/'outcomes.csv').write_text('\n'.join(['id,label', *answers, '']))
    return path

def result(f):
    try: return f()
    except (DataError, ValueError) as e: return str(e)

def mixed(df): return df.set_axis(df.index, axis=0)
ORDERS = dict(mixed=mixed, by_day=lambda df: df.sort_values('time', kind='stable'), by_person=lambda df: df.sort_values('id', kind='stable'),
              in_order=lambda df: df.sort_values(['id', 'time', 'variable'], kind='stable'),
              strictly=lambda df: df.sort_values(['id', 'time', 'variable']).drop_duplicates(['id', 'time', 'variable']))

@pytest.mark.parametrize('order', ORDERS)
def test_what_is_read_is_what_tidy_makes_of_it(tmp_path, monkeypatch, order):
    monkeypatch.setattr(H, '_ordered', partial(H._ordered, most=300)) # rows put in order at a time
    df = ORDERS[order](table())
    df = df.set_axis(range(2, len(df) + 2), axis=0)
    file = write(tmp_path/'a', df)/'measurements.csv'
    for unsorted in ('sort', 'refuse'):
        for twice in ('mean', 'first', 'last', 'refuse'):
            want = result(lambda: tidy(df, unsorted, twice, str(file)))
            got = result(lambda: H.read_records(tmp_path/'a', unsorted, twice, chunk=.008))
            if isinstance(want, str): assert got == want
            else:
                pd.testing.assert_frame_equal(got.measurements, want[0], check_exact=True)
                assert {k: got.counts[k] for k in want[1]} == want[1] and all(type(v) is int for v in got.counts.values())

def test_ways_that_are_not_known_are_refused(tmp_path):
    write(tmp_path/'a', table(50))
    with pytest.raises(ValueError, match="unsorted is 'never'"): H.read_records(tmp_path/'a', unsorted='never')
    with pytest.raises(ValueError, match="twice is 'both'"): H.read_records(tmp_path/'a', twice='both')

def test_texts_are_shared_and_columns_are_as_before(tmp_path):
    m = H.read_records(write(tmp_path/'a', table())).measurements
    assert m.dtypes.astype(str).tolist() == ['str', 'float64', 'str', 'float64'] and list(m) == layout['measurements']
    assert len({id(v) for v in m.id.to_numpy()}) == m.id.nunique() and len({id(v) for v in m.variable.to_numpy()}) == 4
    m.loc[0, 'value'] = 7 # it can be written to
    assert m.value[0] == 7 and m.index.equals(pd.RangeIndex(len(m)))

def test_rows_that_are_left_out_change_no_row_number(tmp_path):
    df = table(400, 20).drop_duplicates(['id', 'time', 'variable'])
    df.iloc[5, 3] = -9
    ids = list(df.id.unique())
    answers = [f'{i},{"NA" if k == 1 else k % 2}' for k,i in enumerate(ids[:-1])]
    df = pd.concat([df, df[(df.id == ids[0])].iloc[:1]]).set_axis(range(2, len(df) + 3), axis=0)
    kw = dict(missing=(-9,), unknown='leave out')
    r = H.read_records(write(tmp_path/'a', df, answers), **kw)
    kept = df[~df.id.isin([ids[1], ids[-1]]) & (df.value != -9)]
    pd.testing.assert_frame_equal(r.measurements, tidy(kept)[0])
    assert r.counts['coded as missing'] == 1 and r.counts['outcomes not known'] == 2
    with pytest.raises(DataError, match=f'measurements.csv: row {len(df) + 1}: .* is there twice .1 such rows'): H.read_records(tmp_path/'a', twice='refuse', **kw)
    first = df[df.id == ids[-1]]
    write(tmp_path/'a', df, [a.replace('NA', '1') for a in answers])
    with pytest.raises(DataError, match=rf'measurements.csv: row {first.index[0]}: {ids[-1]} has no outcome in outcomes.csv .1 such ids'): H.read_records(tmp_path/'a', missing=(-9,))

def test_nothing_that_is_known_is_an_empty_table(tmp_path):
    write(tmp_path/'a', table(50).assign(value=-9))
    r = H.read_records(tmp_path/'a', missing=(-9,))
    assert len(r.measurements) == 0 and r.counts['ids without measurements'] == len(r) and r.counts['rows'] == 0 and r.variables == []

@pytest.mark.parametrize('text, plain', [('P1,lab 3\n', True), ('P1,é\n', True), ('P1 ,x\n', False), ('P1, x\n', False), ('P1,x \n', False), (' P1,x\n', False), ('P1,\u00a0x\n', False),
                                         ('P1,"x"\n', False), ('P1,x\rP2,y\n', False), ('P1,x\n\nP2,y\n', False), ('P1,\n', False), ('P1,x', False), ('P1,x\u2003\n', False), ('P1,x\r\n', True)])
def test_what_is_read_at_once_needs_no_care(text, plain): assert (_plain(text.encode(), ['id', 'variable'], ',', 1, []) is not None) == plain

def test_memory_grows_by_less_than_two_and_a_half_tables(tmp_path):
    took = []
    for n in (100_000, 500_000):
        (tmp_path/str(n)).mkdir()
        random_records(tmp_path/str(n), n)
        took.append(cost_of(f'm = read_records({str(tmp_path/str(n))!r}).measurements\nsaid = 32*len(m)/1e6', 'from medlearn.data.hospital import read_records'))
    assert (took[1]['mb'] - took[0]['mb']) < 2.5*(took[1]['said'] - took[0]['said'])
