"""Tables of prompts: what is written is read again, whatever its size."""

import pyarrow as pa
import pytest

from edsft_jax import store
from edsft_jax.store import prompts as prompts_lib

TURNS = [
  {'role': 'user', 'content': 'a'},
  {'role': 'assistant', 'content': 'b'},
  {'role': 'user', 'content': 'c'},
]


@pytest.mark.parametrize(
  'prompts',
  [
    store.Prompts(['a', 'b'], ['p', 'q'], None),
    store.Prompts(['a', 'b'], ['p', TURNS], ['t', 'u']),
    store.Prompts(['a', 'b'], [TURNS, TURNS], None, ['x', '']),
  ],
)
def test_prompts_are_read_as_they_were_written(tmp_path, prompts):
  path = tmp_path / 'p.parquet'
  store.write_parquet(path, store.prompt_table(prompts, {'n': [1, None]}))
  assert store.read_prompts(path) == prompts


def test_responses_are_read_as_they_were_written(tmp_path):
  path = tmp_path / 'r.parquet'
  responses = {'a': 'x', 'b': ''}
  assert store.read_responses(path) == {}
  store.write_parquet(path, store.response_table(responses))
  assert store.read_responses(path) == responses


def test_some_prompts_are_picked_with_all_that_is_known_of_them():
  prompts = store.Prompts(
    ['a', 'b', 'c'], list('pqr'), list('tuv'), ['', 'x', '']
  )
  assert prompts.where([True, False, True]) == store.Prompts(
    ['a', 'c'], ['p', 'r'], ['t', 'v'], ['', '']
  )
  assert prompts.answered().ids == ['b']
  assert len(store.Prompts(['a'], ['p'], None).answered()) == 0


def test_big_tables_are_written_in_batches():
  n = prompts_lib.BATCH_ROWS + 1
  ids = [str(i) for i in range(n)]
  prompts = store.Prompts(ids, ['p'] * n, None, ['r'] * n)
  table = store.prompt_table(
    prompts, {'n': list(range(n)), 's': ['x', 1] * (n // 2) + [None]}
  )
  assert table.num_rows == n
  assert table['n'].num_chunks == 2
  assert table.schema.field('n').type == pa.int64()
  assert table['s'].to_pylist()[:2] == ['x', '1']
  assert store.response_table(dict.fromkeys(ids, 'r')).num_rows == n


def test_numbers_beyond_64_bits_are_text():
  prompts = store.Prompts(['a'], ['p'], None)
  table = store.prompt_table(prompts, {'n': [2**70]})
  assert table['n'].to_pylist() == [str(2**70)]
