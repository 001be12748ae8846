"What is said of data before training"
import numpy as np
import pandas as pd
import pytest

from medlearn.data.facts import ceiling,facts
from medlearn.data.hospital import read_records


def folder(path, people, labels):
    path.mkdir()
    rows = [f'{who},{t},{v},{x}' for who, values in people.items() for t, v, x in values]
    (path/'measurements.csv').write_text('\n'.join(['id,time,variable,value', *rows]) + '\n')
    (path/'outcomes.csv').write_text('\n'.join(['id,label', *(f'{k},{v}' for k, v in labels.items())]) + '\n')
    return path


def test_equal_records_are_counted_in_whatever_order(tmp_path):
    some = [(0, 'hr', 70), (1, 'hr', 81), (1, 'map', 90)]
    people = {f'p{i}': [(t, v, x + i) for t, v, x in some] for i in range(20)}
    people |= dict(a=some, b=some[::-1], c=some, d=people['p7'])
    labels = {k: 'died' if i % 3 == 0 else 'lived' for i, k in enumerate(people)} | dict(p0='lived', a='lived', b='died', c='lived', p7='died', d='died')
    said = facts(read_records(folder(tmp_path/'x', people, labels)))['the same record twice']
    assert said.startswith('6 people in 2 groups') and said.endswith('right on both: 1')
    for k in 'abcd': people.pop(k), labels.pop(k)
    assert facts(read_records(folder(tmp_path/'y', people, labels)))['the same record twice'] == 'none'


@pytest.mark.parametrize('cases,labels,best', [('aabb', [0, 1, 0, 0], .75), ('abcd', [0, 1, 0, 0], 1), ('aaa', [0, 1, 2], 1/3)])
def test_the_ceiling_is_what_a_memory_reaches(cases, labels, best):
    assert ceiling(list(cases), labels) == pytest.approx(best)
    table = pd.DataFrame(dict(c=list(cases), y=labels))
    assert (table.c.map(table.groupby('c').y.agg(lambda v: v.mode()[0])) == table.y).mean() == pytest.approx(best)
