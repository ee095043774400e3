"""The model in Flax NNX; reads and writes Hugging Face checkpoints.

mesh = make_mesh()
decoder = load_decoder(path, 'float32', mesh)
graphdef, state = nnx.split(decoder)   # then, inside jax.jit, nnx.merge
"""

from edsft_jax.models.checkpoint import (
  check,
  copy_tokenizer,
  end_ids,
  hash_model,
  load_decoder,
  parse_dtype,
  portable_name,
  resolve,
  rounding_note,
  save_decoder,
)
from edsft_jax.models.config import DecoderConfig, Rope
from edsft_jax.models.config_json import read_config
from edsft_jax.models.decoder import Decoder, KVCache, Output, output_logits
from edsft_jax.models.fingerprint import fingerprint
from edsft_jax.models.lora import (
  add_lora,
  hash_adapter,
  load_adapter,
  merged,
  save_adapter,
  set_dropout,
)
from edsft_jax.models.modules import LoRAParam
from edsft_jax.models.placement import shard_decoder, to_host
from edsft_jax.models.prompt_format import PromptFormat, load_prompt_format

__all__ = [
  'Decoder',
  'DecoderConfig',
  'KVCache',
  'LoRAParam',
  'Output',
  'PromptFormat',
  'Rope',
  'add_lora',
  'check',
  'copy_tokenizer',
  'end_ids',
  'fingerprint',
  'hash_adapter',
  'hash_model',
  'load_adapter',
  'load_decoder',
  'load_prompt_format',
  'merged',
  'output_logits',
  'parse_dtype',
  'portable_name',
  'read_config',
  'resolve',
  'rounding_note',
  'save_adapter',
  'save_decoder',
  'set_dropout',
  'shard_decoder',
  'to_host',
]
