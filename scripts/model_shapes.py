"""Shapes of models that the benchmarks make with random weights."""

from collections.abc import Mapping
import json
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from edsft_jax import models

_LLAMA = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'hidden_act': 'silu',
  'max_position_embeddings': 4096,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10_000.0,
  'tie_word_embeddings': False,
  'bos_token_id': 1,
  'eos_token_id': 2,
}

# Name -> the fields of config.json.
SHAPES: dict[str, dict[str, Any]] = {
  # Half of the parameters are in the vocabulary, as in small models.
  'random_58m': _LLAMA
  | {
    'vocab_size': 32_000,
    'hidden_size': 512,
    'intermediate_size': 1376,
    'num_hidden_layers': 8,
    'num_attention_heads': 8,
    'num_key_value_heads': 8,
  },
  'smollm2_135m': _LLAMA
  | {
    'vocab_size': 49_152,
    'hidden_size': 576,
    'intermediate_size': 1536,
    'num_hidden_layers': 30,
    'num_attention_heads': 9,
    'num_key_value_heads': 3,
    'tie_word_embeddings': True,
  },
  'llama2_7b': _LLAMA
  | {
    'vocab_size': 32_000,
    'hidden_size': 4096,
    'intermediate_size': 11_008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': 32,
  },
}


def read_config(fields: Mapping[str, Any]) -> 'models.DecoderConfig':
  """The architecture that a config.json with these fields describes."""
  # The benchmarks' peers read SHAPES without jax.
  from edsft_jax import models

  with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / 'config.json').write_text(json.dumps(fields))
    return models.read_config(folder)
