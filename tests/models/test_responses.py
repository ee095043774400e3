"""A prompt with its response as tokens, shortened where it is too long."""

import formats
import pytest
import tiny_study

from edsft_jax import models
from edsft_jax.models import responses


@pytest.fixture(scope='module')
def prompt_format() -> models.PromptFormat:
  return formats.load(tiny_study.MODEL, separator=' w3 ')


def test_encode_shortens_the_prompt_first(prompt_format):
  prompt, response = 'w10 w11 w12 w13', 'w20 w21'
  whole = responses.encode(prompt_format, prompt, response, 100)
  # BOS, four words, the separator, two words, EOS.
  assert whole.tokens == [1, 10, 11, 12, 13, 3, 20, 21, 2][-len(whole.tokens) :]
  assert (whole.num_response, *whole[2:]) == (3, False, False)
  shorter = responses.encode(prompt_format, prompt, response, 6)
  assert len(shorter.tokens) == 6
  assert shorter.tokens[-3:] == whole.tokens[-3:]
  assert (shorter.num_response, *shorter[2:]) == (3, True, False)


def test_encode_cuts_a_response_that_is_too_long_alone(prompt_format):
  cut = responses.encode(prompt_format, 'w10 w11', 'w20 w21 w22 w23', 3)
  assert cut.tokens[1:] == [20, 21]
  assert (cut.num_response, *cut[2:]) == (2, True, True)
