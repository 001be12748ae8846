"A model is handed over whole or not at all, and only to functions that read new cases"
import importlib
import json
import warnings
import os

import numpy as np
import pytest
import torch
from torch import nn

from medlearn.kit import handover, predict
from medlearn.kit.cards import DataError
from medlearn.kit.catalog import WrongUsage
from medlearn.kit.chapter import Sentence
from medlearn.kit.handover import hand_over, reader_of
from medlearn.kit.predict import answers_for, find_model, predict_new, read_model

BY = 'medlearn.imaging.classification:new_cases'


def new_cases(weights, config, path):
    "The sum of the weights, once for each line of a file"
    import pandas as pd
    lines = path.read_text().split()
    if 'odd' in lines: warnings.warn(f'{path.name}: an odd line')
    if 'bad' in lines: raise DataError(f'{path.name}, row 2: bad')
    return pd.DataFrame({c: float(weights['w'].sum()) for c in config['classes']}, index=lines)


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    "The chapter reads new cases as this file does"
    chapter = importlib.import_module(BY.partition(':')[0])
    monkeypatch.setattr(new_cases, '__module__', chapter.__name__)
    monkeypatch.setattr(chapter, 'new_cases', new_cases, raising=False)
    monkeypatch.setattr(chapter, '__all__', [*chapter.__all__, 'new_cases'])
    monkeypatch.setattr(handover, '_handed', set())
    monkeypatch.delenv('MEDLEARN_JOB', raising=False)


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A folder that a run asks models for"
    monkeypatch.setenv('MEDLEARN_MODEL', str(tmp_path/'run'))
    monkeypatch.setenv('MEDLEARN_ABOUT', json.dumps(dict(chapter='imaging/classification', profile='full', seed=3)))
    return tmp_path/'run'


def give(model=None, config=None, methods=None, **kw):
    hand_over(model or dict(w=torch.ones(3)), BY, config or dict(classes=['ill']), methods or dict(n=3), **kw)


def settle(folder, **facts):
    said = json.loads((folder/'model.json').read_text())
    (folder/'model.json').write_text(json.dumps(said | facts))


def test_tells_and_writes_nothing_where_no_report_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MEDLEARN_MODEL', raising=False)
    give(methods=dict(AUROC=(np.float32(.84), .79, .88), said=Sentence('It *ended*.'), lost=float('nan'), n=np.int64(7)))
    said = capsys.readouterr().out
    assert 'For a methods section' in said and 'AUROC: 0.84 [0.79, 0.88]' in said and 'n: 7' in said and 'lost: not known' in said
    assert '--report' in said and 'not for clinical use' in said and not list(tmp_path.iterdir())


def test_comes_back_as_it_was(run):
    net = nn.Sequential(nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)).bfloat16()
    net[2].weight = net[0].weight
    give(net, dict(mean=np.float32(.5), sides=(64, 64), classes=np.array(['a', 'b'])), dict(m=Sentence('x')))
    settle(run/'model', status='passed')
    weights, said = read_model(run/'model')
    assert weights['0.weight'].dtype == torch.bfloat16 and set(weights) == set(net.state_dict())
    other = nn.Sequential(nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)).bfloat16()
    other.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))
    assert said['config'] == dict(mean=.5, sides=[64, 64], classes=['a', 'b']) and said['classes'] == ['a', 'b']
    assert (said['chapter'], said['profile'], said['seed'], said['format'], said['notice']) == (
        'imaging/classification', 'full', 3, 1, 'not for clinical use')
    assert b'pickle' not in (run/'model/model.safetensors').read_bytes()


@pytest.mark.parametrize('config, says', [
    (dict(a=float('nan')), r"config\['a'\] is nan"), ({'a': {1: 2}}, r"config\['a'\] has the key 1"), (dict(a=[object()]), r"config\['a'\]\[0\] is a object"),
    (dict(a=nn.ReLU), 'is a type'), (dict(a=1j), 'complex')])
def test_a_setting_that_json_cannot_carry_is_named(run, config, says):
    with pytest.raises(ValueError, match=says): give(config=config)
    assert not run.exists()


@pytest.mark.parametrize('model, says', [('weights', 'give a module'), (nn.ReLU(), 'no tensors'), (dict(w='text'), 'w is a str, no tensor')])
def test_a_model_without_tensors_is_refused(run, model, says):
    with pytest.raises(ValueError, match=says): give(model)


def test_several_models_have_names(run, monkeypatch):
    monkeypatch.setenv('MEDLEARN_JOB', 'x')
    give()
    give(dict(w=torch.zeros(1)), name='linear')
    with pytest.raises(ValueError, match="two models of this chapter have the name 'linear'"): give(name='linear')
    with pytest.raises(ValueError, match='small letters'): give(name='../up')
    assert sorted(p.name for p in run.iterdir()) == ['model', 'model-linear']
    with pytest.raises(WrongUsage, match='2 models: model, model-linear. .*--model NAME'): find_model(run)
    assert find_model(run, 'linear').name == 'model-linear' and find_model(run, 'model').name == 'model'
    with pytest.raises(DataError, match="no model of the name 'boost'"): find_model(run, 'boost')


def test_whole_or_not_at_all(run, monkeypatch):
    give()
    before = (run/'model/model.json').read_bytes()
    monkeypatch.setattr(handover.Path, 'write_text', lambda *a, **k: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): give(dict(w=torch.zeros(9)))
    assert [p.name for p in run.iterdir()] == ['model'] and (run/'model/model.json').read_bytes() == before


def test_a_run_that_is_broken_on_purpose_leaves_no_model(run, monkeypatch):
    monkeypatch.setenv('MEDLEARN_SABOTAGE', 'answers')
    give()
    assert not run.exists()


@pytest.mark.parametrize('by', ['os:system', 'medlearn.kit.fetch:fetch', 'medlearn.kit.handover:new_cases', 'medlearn.imaging.classification:classic_cnn',
                                'medlearn.imaging.classification:new_cases.__globals__', 'medlearn.imaging.nowhere:new_cases', 'builtins.imaging.x:new_cases',
                                'medlearn.data.images:new_cases', 'medlearn.imaging.classification.x:new_cases', 'medlearn.imaging.classification:new_cases\n', '', None, 7])
def test_no_other_function_can_be_named(run, by):
    with pytest.raises(ValueError): reader_of(by)
    give()
    settle(run/'model', status='passed', by=by)
    with pytest.raises(DataError, match='not to be trusted|lacks by'): read_model(run/'model')


def test_a_name_of_a_chapter_for_another_object_is_refused(monkeypatch):
    chapter = importlib.import_module(BY.partition(':')[0])
    for other in (os.system, print, type('X', (), {}), lambda w, c, p: None):
        monkeypatch.setattr(chapter, 'new_cases', other)
        with pytest.raises(ValueError, match='no public function'): reader_of(BY)


@pytest.mark.parametrize('facts, says', [
    (dict(status='failed', fell=['AUROC above chance']), 'imaging/classification failed, these claims do not hold: AUROC above chance'),
    (dict(status='error'), 'error'), (dict(status=None), 'cut off'), (dict(format=2), 'newer medlearn: format 2, and this one reads 1'),
    (dict(format='1'), 'lacks format'), (dict(config=None), 'lacks config'), (dict(sha256='0'*64), 'damaged or was altered')])
def test_what_may_not_be_used_is_refused(run, facts, says):
    give()
    settle(run/'model', status='passed')
    assert read_model(run/'model')
    settle(run/'model', **facts)
    with pytest.raises(DataError, match=says): read_model(run/'model')


@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b''])
def test_altered_numbers_are_refused(run, damage):
    give()
    settle(run/'model', status='passed')
    path = run/'model/model.safetensors'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match='its digest is not the one'): read_model(run/'model')


@pytest.mark.parametrize('text', ['', '{', '[]', '7', '{"format": 1}'])
def test_a_damaged_text_is_refused(run, text):
    give()
    (run/'model/model.json').write_text(text)
    with pytest.raises(DataError, match='model.json'): read_model(run/'model')


def cases(tmp_path, **files):
    for name, text in files.items(): (tmp_path/f'{name}.txt').write_text(text)
    return [tmp_path/f'{name}.txt' for name in files]


def test_answers_are_one_table_or_none(run, tmp_path, monkeypatch, capsys):
    give()
    settle(run/'model', status='passed')
    one, two, bad, again = cases(tmp_path, one='a b', two='c', bad='d bad', again='a')
    assert answers_for(run/'model', [one, two]).to_csv() == 'id,ill\na,3.0\nb,3.0\nc,3.0\n'
    monkeypatch.chdir(tmp_path)
    predict_new(predict.Path('run'), [predict.Path('one.txt'), predict.Path('two.txt')], out=predict.Path('p.csv'))
    assert (tmp_path/'p.csv').read_text() == 'id,ill\na,3\nb,3\nc,3\n' and 'not for clinical use' in capsys.readouterr().out
    with pytest.raises(WrongUsage, match='p.csv is there already'): predict_new(run, [one], out=tmp_path/'p.csv')
    with pytest.raises(DataError, match='bad.txt, row 2'): predict_new(run, [one, bad], out=tmp_path/'q.csv')
    with pytest.raises(WrongUsage, match='none.txt: there is no such file'): predict_new(run, [tmp_path/'none.txt'])
    with pytest.raises(WrongUsage, match='there is no folder'): predict_new(run, [one], out=tmp_path/'x/q.csv')
    with pytest.raises(DataError, match='the case a stands in .*one.txt and in .*again.txt'): predict_new(run, [one, again], out=tmp_path/'q.csv')
    with pytest.raises(WrongUsage, match='writes no masks'): predict_new(run, [one], masks=tmp_path/'m')
    assert not (tmp_path/'q.csv').exists() and sorted(p.name for p in tmp_path.iterdir()) == ['again.txt', 'bad.txt', 'one.txt', 'p.csv', 'run', 'two.txt']
    capsys.readouterr()
    predict_new(run, cases(tmp_path, odd='odd'))
    assert capsys.readouterr().err.startswith('Note: odd.txt: an odd line\n')
    (tmp_path/'empty.txt').write_text('')
    with pytest.raises(DataError, match='empty.txt: no case'): answers_for(run/'model', [tmp_path/'empty.txt'])


def test_a_model_of_another_version_is_told_so(run, tmp_path):
    give(dict(v=torch.ones(2)))
    settle(run/'model', status='passed')
    with pytest.raises(DataError, match="do not fit each other .KeyError: 'w'.; the model was written by medlearn"):
        answers_for(run/'model', cases(tmp_path, one='a'))


def test_masks_appear_when_all_are_there(run, tmp_path, monkeypatch):
    def masks(weights, config, path, out=None):
        import pandas as pd
        if out: (out/f'{path.stem}.txt').write_text('mask')
        if path.stem == 'bad': raise DataError('bad: another spacing')
        return pd.DataFrame(dict(ml=[1.]), index=[path.stem])
    chapter = importlib.import_module(BY.partition(':')[0])
    masks.__module__ = chapter.__name__
    monkeypatch.setattr(chapter, 'new_cases', masks)
    give()
    settle(run/'model', status='passed')
    one, two, bad = cases(tmp_path, one='', two='', bad='')
    with pytest.raises(DataError, match='another spacing'): predict_new(run, [one, bad], masks=tmp_path/'m', out=tmp_path/'a.csv')
    assert not (tmp_path/'m').exists() and not (tmp_path/'a.csv').exists() and not list(tmp_path.glob('.*'))
    (tmp_path/'m').mkdir()
    predict_new(run, [one, two], masks=tmp_path/'m')
    assert sorted(p.name for p in (tmp_path/'m').iterdir()) == ['one.txt', 'two.txt']
    with pytest.raises(WrongUsage, match='is there already'): predict_new(run, [one], masks=tmp_path/'m')


def test_rows_without_names_are_numbered_by_file(run, tmp_path, monkeypatch):
    def found(weights, config, path):
        import pandas as pd
        words = path.read_text().split()
        return pd.DataFrame(dict(word=words)) if config['classes'] else pd.DataFrame(dict(word=words), index=[path.stem]*len(words))
    chapter = importlib.import_module(BY.partition(':')[0])
    found.__module__ = chapter.__name__
    monkeypatch.setattr(chapter, 'new_cases', found)
    give()
    settle(run/'model', status='passed')
    files = cases(tmp_path, one='a b', two='c')
    assert list(answers_for(run/'model', files).index) == ['one-0', 'one-1', 'two-0']
    settle(run/'model', config=dict(classes=[]))
    assert list(answers_for(run/'model', files).index) == ['one', 'one', 'two'] # several findings of one text
