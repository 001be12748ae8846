"Records of full runs: what is shown of them, and what is refused"
import os
from pathlib import Path

import pytest

from medlearn.kit.catalog import chapters,describe
from medlearn.kit.code import code_of
from medlearn.kit.figures import RecordError, fell, published, reached, read_record, record_path, write_record

root = Path(__file__).parent.parent
NAME = 'imaging/classification'
HERE = code_of(chapters()[NAME])


def run(seed, auroc=.84, code=HERE, params={}, **kept):
    rows = [['area alone', .84, .81, .87], ['network', auroc, auroc - .03, auroc + .04]]
    table = dict(kind='table', labels=1, columns=['model', 'AUROC', 'AUROC low', 'AUROC high'], rows=rows)
    return dict(parameters=params, seed=seed, date='2026-12-01', commit='abc', processor='a processor', threads=2, seconds=720,
                inputs=[dict(name='lidc_nodules', digest='sha256:1')], code=code, claims=[dict(claim='c', passed=True)],
                kept=dict(networks=table, share=dict(kind='number', value=auroc), gap=dict(kind='numbers', value=[auroc, .1, .9])) | kept)


def record(folder, *runs, sabotage=()):
    return write_record(dict(format=1, chapter=NAME, runs=list(runs), sabotage=list(sabotage)), folder)


def show(name, folder, **kw): return repr(reached(name, chapter=NAME, folder=folder, **kw))


def test_mean_range_and_interval_over_seeds_with_provenance(tmp_path):
    record(tmp_path, run(1, .82), run(2, .84), run(3, .86))
    text = show('networks', tmp_path)
    assert '0.840 (0.820 to 0.860) [0.790, 0.900]' in text and '0.840 [0.810, 0.870]' in text
    for words in ('lidc_nodules', 'full profile', 'seeds 1 to 3', '2 threads of a processor', '12 minutes each', '2026-12-01', 'commit abc'):
        assert words in text
    assert 'other code' not in text and 'low' not in text
    assert '0.840 (0.820 to 0.860)' in show('share', tmp_path) and '[0.100, 0.900]' in show('gap', tmp_path)


def test_stale_says_what_has_changed(tmp_path):
    record(tmp_path, run(1), run(2, code=HERE | {'foundations/training': 'another', 'gone/module': 'x'}))
    assert 'Measured with other code: foundations/training, gone/module changed since.' in show('networks', tmp_path)


def test_other_data_and_parameters_have_their_own_rows(tmp_path):
    record(tmp_path, run(1, .8), run(1, .9, params=dict(dataset='pneumoniamnist')))
    assert '0.800' in show('share', tmp_path) and '0.900' not in show('share', tmp_path)
    for name in ('pneumoniamnist', '/data/pneumoniamnist.npz'): assert '0.900' in show('share', tmp_path, dataset=name)
    assert '0.800' in show('share', tmp_path, dataset='lidc_nodules')
    assert 'medlearn measure imaging/classification -p dataset=mine.npz' in show('share', tmp_path, dataset='/home/me/mine.npz')


def test_a_name_that_was_never_kept_has_a_nearest(tmp_path):
    record(tmp_path, run(1))
    with pytest.raises(RecordError, match='never kept.*nearest: networks'): show('network', tmp_path)
    assert 'No full run is on record' in show('networks', tmp_path/'empty')
    with pytest.raises(RecordError, match='no chapter is called'): reached('x', chapter='imaging/clasification', folder=tmp_path)
    with pytest.raises(RecordError, match='default_exp'): reached('x', folder=tmp_path)


@pytest.mark.parametrize('text, words', [
    ('{"runs"', 'is not JSON'), ('[]', 'is not a record'), ('{"format": 1, "chapter": "imaging/volumes", "runs": []}', "of 'imaging/volumes'"),
    ('{"format": 2, "chapter": "imaging/classification", "runs": []}', 'Update medlearn'),
    ('{"format": 1, "chapter": "imaging/classification", "runs": [{"seed": 1}]}', 'in run 0')])
def test_what_is_no_record_is_refused_with_advice(tmp_path, text, words):
    record_path(NAME, tmp_path).write_text(text)
    with pytest.raises(RecordError, match=words) as e: read_record(NAME, tmp_path)
    assert str(record_path(NAME, tmp_path)) in str(e.value)


def test_a_full_disk_leaves_the_old_record_whole(tmp_path, monkeypatch):
    path = record(tmp_path, run(1))
    before = path.read_bytes()
    def full(self, data): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError): record(tmp_path, run(1, .5))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_kill_while_writing_leaves_the_old_record_whole(tmp_path, monkeypatch):
    path = record(tmp_path, run(1))
    before = path.read_bytes()
    monkeypatch.setattr(os, 'replace', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt): record(tmp_path, run(1, .5))
    assert path.read_bytes() == before


def test_a_record_is_small_stable_and_one_row_a_line(tmp_path):
    text = record(tmp_path, run(2), run(1)).read_text()
    assert text == record(tmp_path, run(1), run(2)).read_text() and '["area alone", 0.84, 0.81, 0.87]' in text
    assert max(map(len, text.splitlines())) < 400
    big = dict(kind='table', labels=0, columns=['x'], rows=[[i] for i in range(20_000)])
    with pytest.raises(RecordError, match='100 at most'): record(tmp_path, run(1, big=big))
    assert record_path(NAME, tmp_path).read_text() == text


def test_published_rows_stand_below_with_their_source(tmp_path):
    record(tmp_path, run(1, params=dict(dataset='pneumoniamnist')))
    text = show('networks', tmp_path, dataset='pneumoniamnist', published=('medmnist', 'pneumoniamnist'))
    assert 'Google AutoML Vision' in text and '0.991' in text and 'Scientific Data 10:41' in text
    assert published('medmnist', 'nobody').empty
    with pytest.raises(RecordError, match='nearest: medmnist'): published('medmist', 'x')


def test_which_claims_fell(tmp_path):
    sabotage = [dict(kind=k, profile='smoke', seed=42, date='2026-12-01', code=HERE, error=None, holds=h)
                for k, h in (('answers', dict(a=False, b=True)), ('untrained', dict(a=True, b=True)))]
    record(tmp_path, run(1), sabotage=sabotage)
    lines = repr(fell(NAME, tmp_path)).splitlines()
    assert [line.split() for line in lines[1:3]] == [['a', 'falls', 'holds'], ['b', 'holds', 'holds']]
    assert 'Not tried yet' in repr(fell('imaging/volumes', tmp_path))


@pytest.mark.parametrize('name', [n for n in chapters() if record_path(n).exists()])
def test_the_records_of_the_course_are_sound(name):
    found = read_record(name)
    defaults = describe(chapters()[name])['parameters']
    assert len(record_path(name).read_bytes()) <= 100_000
    for r in found['runs']:
        assert set(r['parameters']) <= set(defaults) and r['seconds'] > 0 and r['processor'] and r['versions'] and r['commit']
        assert not r['commit'].endswith('+'), 'measured on files that were not committed'
        assert '/' not in str(r['parameters'].get('dataset', '')), 'a path of some machine'
        for k in r['kept'].values():
            if k['kind'] == 'picture': assert (record_path(name).parent/k['file']).exists()
