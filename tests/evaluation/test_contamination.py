"""Shared runs of 13 words, counted for the pool and for each selection."""

import pyarrow as pa
import pytest
import tiny_study

from edsft_jax import evaluation, store
from edsft_jax.evaluation import contamination
from edsft_jax.evaluation.task import Item

pytestmark = pytest.mark.usefixtures('on_one_device')


def _words(first: int, count: int) -> str:
  return ' '.join(f'word{i}' for i in range(first, first + count))


def _item(number: int, task: str | None, text: str) -> Item:
  return Item(str(number), task, '', (), text=text)


def test_thirteen_words_in_a_row_count_and_twelve_do_not():
  items = [
    _item(0, 'a', _words(0, 20)),
    _item(1, 'a', f'{_words(0, 12)} {_words(100, 9)}'),
    _item(2, 'b', _words(200, 13)),
    _item(3, 'b', _words(200, 12)),
  ]
  texts = {
    'p0': [f'Before: {_words(3, 13).upper()}, after!'],
    'p1': [_words(0, 12), 'an answer'],
    'p2': ['a prompt', f'and, {_words(200, 13)}'],
  }
  found = contamination.count(
    items, texts, {'random': ['p1', 'p0'], 'other': ['p2', 'missing']}
  )
  assert found == {
    'items': 4,
    'too_short': 1,
    'pool': 2,
    'selections': {'random': 1, 'other': 1},
    'by_task': {'a': 1, 'b': 1},
  }


@pytest.mark.parametrize(
  ('text', 'other'),
  [
    ('Straße', 'STRASSE'),
    ('caf\u00e9', 'cafe\u0301'),
    ('word', '\uff57\uff4f\uff52\uff44'),
    ('word', 'wo\u200brd'),
    ('two words', 'two_words'),
    ('\u0130stanbul', 'i\u0307stanbul'),
  ],
)
def test_the_same_words_may_be_written_in_other_ways(text, other):
  (first,) = contamination.grams(f'{_words(0, 13)}'[: -len('word12')] + 'end')
  assert first.endswith('word11 end')
  assert contamination.grams(f'{_words(0, 12)} {text}') == (
    contamination.grams(f'{_words(0, 12)} {other}')
  )
  assert contamination.grams(f'{_words(0, 12)} {text}')


def test_answers_of_the_pool_count_whether_or_not_they_were_bought(tmp_path):
  workdir = tiny_study.make(tmp_path / 'run')
  first, second, *_ = store.read_prompts(workdir.pool).ids
  for file, prompt_id, answer in (
    (workdir.pool_responses, first, 'came with the pool'),
    (workdir.responses, second, 'was bought'),
  ):
    store.write_parquet(
      file, pa.table({'id': [prompt_id], 'response': [answer]})
    )
  texts = contamination.read_texts(workdir)
  assert texts[first][1:] == ['came with the pool']
  assert texts[second][1:] == ['was bought']


def test_the_stage_counts_what_the_pool_reveals(tmp_path):
  workdir = tiny_study.make(tmp_path / 'run')
  heldout = store.read_prompts(workdir.heldout)
  item = next(i for i, p in enumerate(heldout.prompts) if len(p.split()) > 13)
  pool = store.read_prompts(workdir.pool)
  prompts = [*pool.prompts]
  prompts[4] += f' {heldout.prompts[item]}'
  store.write_parquet(
    workdir.pool, pa.table({'id': pool.ids, 'prompt': prompts})
  )
  evaluation.run(tiny_study.config(), workdir)
  found = store.read_json(workdir.contamination)['heldout']
  assert found['items'] == tiny_study.NUM_HELDOUT
  assert found['pool'] == 1
  chosen = [
    row['id'] for row in store.read_jsonl(workdir.selection('random', 0))
  ]
  for budget in (5, 9):
    expected = int(pool.ids[4] in chosen[:budget])
    assert found['selections'][f'random-k{budget}-seed0'] == expected
  counts = store.Manifest(workdir).counts('evaluate')
  assert counts['heldout_contaminated_by_pool'] == 1
