"""The model: Hugging Face checkpoints in and out, in Flax NNX.

mesh = make_mesh()
decoder = load_decoder(path, 'float32', mesh)
graphdef, state = nnx.split(decoder)   # then, inside jax.jit, nnx.merge
"""

from edsft_jax.models.checkpoint import (
  check,
  end_ids,
  hash_model,
  load_decoder,
  parse_dtype,
  resolve,
  save_decoder,
)
from edsft_jax.models.config import DecoderConfig, Rope, read_config
from edsft_jax.models.decoder import (
  Cache,
  Decoder,
  LoRAParam,
  Output,
  shard_decoder,
)
from edsft_jax.models.generation import (
  Generation,
  Generator,
  Group,
  Rows,
  bucket,
  generate,
  group,
  likeliest,
  pad_left,
)
from edsft_jax.models.lora import (
  add_lora,
  load_adapter,
  merged,
  save_adapter,
)
from edsft_jax.models.prompt_format import PromptFormat, load_prompt_format

__all__ = [
  'Cache',
  'Decoder',
  'DecoderConfig',
  'Generation',
  'Generator',
  'Group',
  'LoRAParam',
  'Output',
  'PromptFormat',
  'Rope',
  'Rows',
  'add_lora',
  'bucket',
  'check',
  'end_ids',
  'generate',
  'group',
  'hash_model',
  'likeliest',
  'load_adapter',
  'load_decoder',
  'load_prompt_format',
  'merged',
  'pad_left',
  'parse_dtype',
  'read_config',
  'resolve',
  'save_adapter',
  'save_decoder',
  'shard_decoder',
]
