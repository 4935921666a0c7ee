"""Item sets from files of every kind, broken ones too; and the quality of those that ship."""
import csv, json
from collections import Counter

import pytest

from labkit.core.files import read_jsonl, samples
from labkit.evaluate.datasets import DIMENSIONS, DatasetError, load_items, read_hub, read_rows, select, take_range


def test_formats_agree(tmp_path):
    rows = [dict(question='问题 "x", y', answer='a'), dict(question='two\nlines', answer='b')]
    (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps(r) for r in rows))
    (tmp_path / 'a.json').write_text(json.dumps(rows))
    with open(tmp_path / 'a.csv', 'w', newline='', encoding='utf-8') as f:
        w = csv.DictWriter(f, ['question', 'answer']); w.writeheader(); w.writerows(rows)
    assert read_rows(tmp_path / 'a.jsonl') == read_rows(tmp_path / 'a.json') == read_rows(tmp_path / 'a.csv') == rows


@pytest.mark.parametrize('name,data,why', [('a.jsonl', b'', 'no items'), ('a.json', b'{"a": 1}', 'list of objects'), ('a.json', b'[1', 'cannot be read'), ('a.json', b'[1]', 'list of objects'),
                                           ('a.csv', b'\xff\xfe\x00', 'cannot be read'), ('a.json', b'[]', 'no items')])
def test_bad_files_are_named(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=why) as e: read_rows(tmp_path / name)
    assert name in str(e.value)


def test_missing_file():
    with pytest.raises(DatasetError, match='nowhere.jsonl: no such file'): read_rows('nowhere.jsonl')


def test_broken_line_is_skipped_and_named(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"q": 1}\n{"q": \n{"q": 3}\n')
    with pytest.warns(UserWarning, match=r'a\.jsonl:2'): assert read_rows(tmp_path / 'a.jsonl') == [{'q': 1}, {'q': 3}]


def test_through_datasets(tmp_path):
    pytest.importorskip('datasets')
    path = samples('eval/exam.jsonl')
    assert read_hub('json', split='train', data_files=str(path), cache_dir=str(tmp_path)) == [dict(r) for r in read_rows(path)]
    with pytest.raises(DatasetError, match='datasets could not open'): read_hub('json', split='test', data_files=str(path), cache_dir=str(tmp_path))


def test_splits_and_ids(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"q": 1, "split": "train"}\n{"q": 2}\n{"q": 3, "id": "x", "language": "zh"}\n')
    items = load_items(tmp_path / 'a.jsonl')
    assert [r['id'] for r in items.test] == ['0', 'x'] and [r['q'] for r in items.train] == [1] and items.name == 'a' and len(items) == 2
    with pytest.raises(DatasetError, match="no items in language 'fr'"): load_items(tmp_path / 'a.jsonl', language='fr')
    assert select([dict(a=1), dict(a=2)], a=2) == [dict(a=2)]


@pytest.mark.parametrize('text,want', [('[0:2]', [0, 1]), ('[-2:]', [3, 4]), ('[::2]', [0, 2, 4]), ('3', [0, 1, 2]), ('[:99]', [0, 1, 2, 3, 4])])
def test_ranges(text, want): assert take_range(range(5), text) == want


@pytest.mark.parametrize('text', ['0:2', '[a:b]', '', '__import__("os")'])
def test_bad_ranges(text):
    with pytest.raises(DatasetError, match='slice'): take_range(range(5), text)


@pytest.mark.parametrize('name', DIMENSIONS)
def test_shipped_sets(name):
    rows = list(read_jsonl(samples(f'eval/{name}.jsonl')))
    asked = [r for r in rows if r.get('split') != 'train']
    assert 24 <= len(asked) <= 40 and Counter(r['language'] for r in asked) == {'en': len(asked) // 2, 'zh': len(asked) // 2}
    assert len({r['id'] for r in rows}) == len(rows)
    for r in rows:
        options = [r[l] for l in 'ABCD' if l in r]
        assert len(set(options)) == len(options)
        if options: assert r['answer'] in 'ABCD'[:len(options)]
        else: assert r['answer'] and isinstance(r['aliases'], list)
        if 'passage' in r: assert any(a in r['passage'] for a in [r['answer'], *r['aliases']]) or r['topic'] in ('number', 'main idea', '主旨', '数字'), r
    letters = Counter(r['answer'] for r in rows if 'A' in r)
    if letters: assert max(letters.values()) <= .6 * len(rows)


def test_shipped_questions_are_not_in_the_training_chats():
    train = ' '.join(m['content'] or '' for f in ('instructions', 'instructions_heldout') for r in read_jsonl(samples(f'{f}.jsonl')) for m in r['messages']).lower()
    asked = [r['question'] for d in DIMENSIONS if d != 'language' for r in read_jsonl(samples(f'eval/{d}.jsonl')) if r.get('split') != 'train']
    assert [q for q in asked if q.lower() in train] == []
