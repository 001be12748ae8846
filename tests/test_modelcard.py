"Every model that a run keeps has a card: what it learned from, how it was judged, what fell"
import errno
import json
import os

import pytest
from test_result import chapter, TINY

from medlearn.kit import workers
from medlearn.kit.cards import card, DataError
from medlearn.kit.modelcard import card_of_model, MODEL_CARD, write_model_cards
from medlearn.kit.runner import plan, run

HELD = dict(claim='AUROC', value=.84, low=.79, high=.88, bound=.5, direction='at_least', source='definition: chance', passed=True)
ROW = dict(chapter='imaging/classification', profile='full', seed=1, claims=[HELD], data=[dict(name='wdbc', digest='sha256:12ab')], own_data={})
SAID = dict(by='medlearn.imaging.classification:new_cases', notice='not for clinical use', classes=['benign', 'malignant'], methods=dict(patients=60, AUROC=[.84, .79, .88]),
            sha256='ab'*32, chapter='imaging/classification', seed=1, profile='full', versions=dict(torch='2.15.0'))


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    "A run of two chapters that hand models over: one whose claim holds, one whose claim falls; a third breaks and keeps none"
    root = tmp_path_factory.mktemp('kept')
    chapter(root/'nbs', 'imaging/01_tiny')
    chapter(root/'nbs', 'imaging/02_falls', TINY.replace('.7, .9), at', '.1, .9), at'))
    chapter(root/'nbs', 'imaging/03_breaks', TINY + '\nraise ValueError("torn")')
    run(plan(['imaging'], folder=root/'nbs', report=True), root/'out', jobs=1)
    return root/'out', write_model_cards(root/'out')


def test_each_kept_model_has_its_card(kept):
    out, written = kept
    models = sorted(p.parent for p in out.rglob('model.safetensors'))
    assert len(models) == 2 and written == [m/MODEL_CARD for m in models]
    tiny, falls = [next(p for p in written if name in str(p)).read_text(encoding='utf-8') for name in ('tiny', 'falls')]
    for text in (tiny, falls):
        assert text.startswith('# Model card: not for clinical use') and json.loads((models[0]/'model.json').read_text())['sha256'][:10]
        for says in ('## What it is for', '## What it learned from', '## Claims', '## Limits', 'patients: 60', 'quick run', 'definition: chance', 'no, yes'): assert says in text, says
    assert '**Does not hold:** AUROC of &lt;the&gt; network.' in falls and 'Does not hold' not in tiny
    assert '<script>' not in tiny and '&lt;script&gt;alert(1)&lt;/script&gt;' in tiny


def test_the_crate_lists_the_cards(kept):
    from medlearn.kit.crate import crate_of
    out, written = kept
    files = {e['@id'] for e in crate_of(out)['@graph']}
    assert {p.relative_to(out).as_posix() for p in written} <= files


def test_what_the_data_were():
    text = card_of_model(SAID, ROW)
    wdbc = card('wdbc')
    assert wdbc.title in text and 'One clinic, about 1990' in text and 'Artistic-2.0' in text and 'quick run' not in text
    own = card_of_model(SAID, ROW | dict(data=[dict(name='/home/me/x.csv', digest='md5:1')], own_data=dict(dataset='sha256:9')))
    assert 'No data card' in own and '/home/me' not in own and "the reader's own, parameter dataset, digest sha256:9" in own
    assert 'No data were recorded' in card_of_model(SAID, ROW | dict(data=[])) and 'nothing is promised' in card_of_model(SAID, ROW | dict(claims=[]))


def test_markup_is_shown_and_not_obeyed():
    evil = '</td><img src=x onerror=1> | [a](javascript:1) `x`\n# head'
    text = card_of_model(SAID | dict(classes=[evil], methods={evil: evil}, name=evil), ROW | dict(claims=[HELD | dict(claim=evil, source=evil)]), {})
    assert '<img' not in text and '](javascript' not in text and '\n# head' not in text
    row = next(line for line in text.splitlines() if 'onerror' in line and line.startswith('| '))
    assert row.count('|') == 6


@pytest.mark.parametrize('name, text', [('model/model.json', '{'), ('model/model.json', '[]'), ('../smoke-seed42.json', '{"chapter": 1}'), ('../smoke-seed42.json', None)])
def test_a_damaged_folder_is_said(tmp_path, name, text):
    stem = tmp_path/'imaging/tiny/smoke-seed42'
    (stem/'model').mkdir(parents=True)
    (stem/'model/model.json').write_text(json.dumps(SAID))
    (stem/'../smoke-seed42.json').write_text(json.dumps(ROW))
    assert len(write_model_cards(tmp_path)) == 1
    (stem/name).unlink() if text is None else (stem/name).write_text(text)
    with pytest.raises(DataError, match='smoke-seed42/model gets no model card: model.json or smoke-seed42.json is damaged'): write_model_cards(tmp_path)


def test_a_full_disk_leaves_the_older_card(tmp_path, monkeypatch):
    stem = tmp_path/'imaging/tiny/smoke-seed42'
    (stem/'model').mkdir(parents=True)
    (stem/'model/model.json').write_text(json.dumps(SAID))
    stem.with_suffix('.json').write_text(json.dumps(ROW))
    (stem/'model'/MODEL_CARD).write_text('older')
    def full(self, data): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(workers.Path, 'write_bytes', full)
    with pytest.raises(DataError, match='MODEL_CARD.md cannot be written: No space left'): write_model_cards(tmp_path)
    assert (stem/'model'/MODEL_CARD).read_text() == 'older' and sorted(os.listdir(stem/'model')) == [MODEL_CARD, 'model.json']
