"""Counted memory, and the table of docs/accelerators.md made from it."""

import dataclasses
import subprocess
import sys

from flax import nnx
import jax
from places import REPOSITORY
import pytest

from edsft_jax import models
from edsft_jax.inference import memory

SIZES = {
  'batch_tokens': 240,
  'prompt_length': 16,
  'num_new': 8,
  'read_tokens': 60,
  'row_length': 24,
}


@pytest.fixture
def config(goldens_path) -> models.DecoderConfig:
  return models.read_config(goldens_path / 'qwen2_v4')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'bfloat16_weights'])
def test_weights_and_cache_are_those_of_the_arrays(
  config, goldens_path, one_device, dtype
):
  decoder = models.load_decoder(goldens_path / 'qwen2_v4', dtype, one_device)
  counted = memory.count(config, dtype, **SIZES)
  arrays = jax.tree.leaves(nnx.state(decoder, nnx.Param))
  assert counted.weights == sum(x.nbytes for x in arrays)
  # 10 slots of 24 entries, and 2 rows of 24 that are being read.
  entries = 10 * 24 + 2 * 24
  item = 2 if dtype == 'bfloat16' else 4
  values = 2 * config.num_layers * config.num_kv_heads * config.head_dim
  assert counted.cache == entries * (values * item + 4) + 2 * 4


def test_logits_and_activations_grow_with_what_they_are_for(config):
  wide = dataclasses.replace(config, vocab_size=10**6)
  counted = memory.count(wide, 'float32', **SIZES)
  assert counted.logits == 4 * 10 * 10**6
  split = memory.count(wide, 'bfloat16_weights', **SIZES)
  assert split.logits == 3 * counted.logits
  deep = dataclasses.replace(config, mlp_width=10**6)
  first = memory.count(deep, 'float32', **SIZES)
  assert first.activations == 48 * 4 * (2 * config.width + 2 * 10**6)
  assert first.total == sum(dataclasses.astuple(first))


def test_the_documented_table_is_the_counted_one():
  table = subprocess.run(
    [sys.executable, 'scripts/count_memory.py', 'scoring'],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  assert table in (REPOSITORY / 'docs' / 'accelerators.md').read_text()
