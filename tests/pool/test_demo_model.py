"""The built-in model, and the text that it was trained on."""

import itertools

import formats
from places import script_module
import pytest

from edsft_jax import models
from edsft_jax.pool import demo


@pytest.fixture(scope='module')
def script():
  return script_module('make_demo_model')


def test_text_is_repeatable_and_none_of_the_pool(script):
  def some():
    return list(itertools.islice(script.documents(3), 2000))

  texts = some()
  assert texts == some()
  lines = {line for text in texts for line in text.split('\n')}
  assert lines.isdisjoint(row['prompt'] for row in demo.rows())


def test_checkpoint_is_small_and_whole():
  path = models.resolve('demo')
  assert sum(f.stat().st_size for f in path.iterdir()) <= 4 * 2**20
  config = models.check(path)
  assert config.vocab_size == 512


@pytest.mark.parametrize(
  'text', ['What is 3 plus 5?', 'Grüße, 世界 🙂\n\ttab', 'ﬁ\u00a0\u2028']
)
def test_tokenizer_takes_any_text(text):
  prompt_format = formats.load('demo')
  ids, _ = prompt_format.encode_prompt(text, 256, False)
  assert ids[0] == 1
  assert prompt_format.decode(ids) == text


def test_prompts_and_responses_of_the_pool_are_short():
  prompt_format = formats.load('demo')
  for row in demo.rows()[::20]:
    ids, _ = prompt_format.encode_prompt(row['prompt'], 256, True)
    assert len(ids) < 60
    response = prompt_format.encode_response(row['prompt'], row['response'])
    assert len(response) <= 16
