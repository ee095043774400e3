"""The fields of a config.json: checked when they are read, none overlooked."""

from collections.abc import Iterator, Mapping
import math
import pathlib
from typing import Any

from edsft_jax import errors

# Fields that no architecture computes its logits with, by what they are about.
_HARMLESS = {
  'names and versions': (
    '_name_or_path',
    'name_or_path',
    '_commit_hash',
    'transformers_version',
    'transformers.js_config',
    'unsloth_fixed',
    'unsloth_version',
    'is_llama_config',
    'tokenizer_class',
  ),
  'the dtype of the weights, which the weights have themselves': (
    'dtype',
    'torch_dtype',
    'use_bfloat16',
  ),
  'how it is computed, not what': (
    'use_cache',
    'cache_implementation',
    'attn_implementation',
    '_attn_implementation',
    '_attn_implementation_autoset',
    'use_flash_attn',
    'pretraining_tp',
    'chunk_size_feed_forward',
    'torchscript',
  ),
  'what a forward pass returns': (
    'return_dict',
    'output_attentions',
    'output_hidden_states',
    'num_logits_to_keep',
  ),
  'training': (
    'attention_dropout',
    'embd_pdrop',
    'hidden_dropout',
    'residual_dropout',
    'resid_pdrop',
    'gradient_checkpointing',
  ),
  'tokens': (
    'pad_token_id',
    'sep_token_id',
    'unk_token_id',
    'prefix',
    'decoder_start_token_id',
  ),
  'generation': (
    'bad_words_ids',
    'begin_suppress_tokens',
    'diversity_penalty',
    'do_sample',
    'early_stopping',
    'encoder_no_repeat_ngram_size',
    'exponential_decay_length_penalty',
    'forced_bos_token_id',
    'forced_eos_token_id',
    'length_penalty',
    'max_length',
    'max_new_tokens',
    'min_length',
    'no_repeat_ngram_size',
    'num_beam_groups',
    'num_beams',
    'num_return_sequences',
    'output_scores',
    'remove_invalid_values',
    'repetition_penalty',
    'return_dict_in_generate',
    'suppress_tokens',
    'temperature',
    'top_k',
    'top_p',
    'typical_p',
  ),
  'heads of other tasks': (
    'finetuning_task',
    'id2label',
    'label2id',
    'num_labels',
    'problem_type',
    'task_specific_params',
  ),
}
HARMLESS = frozenset(name for group in _HARMLESS.values() for name in group)
# Fields that some architecture computes with, and the value that leaves them
# out of it. null does so everywhere.
NEUTRAL: dict[str, Any] = {
  'add_cross_attention': False,
  'alibi': False,
  'attention_bias': False,
  'attention_out_bias': False,
  'cross_attention_hidden_size': None,
  'embedding_multiplier': 1,
  'full_attn_mod': 1,
  'interpolate_factor': 1,
  'is_decoder': False,
  'is_encoder_decoder': False,
  'lm_head_bias': False,
  'logits_scaling': 1,
  'mlp_bias': False,
  'pruned_heads': {},
  'qk_layernorm': False,
  'residual_multiplier': 1,
  'rope_interleaved': False,
  'tie_encoder_decoder': False,
  'use_bidirectional_attention': False,
  'use_mrope': False,
  'use_qk_norm': False,
  'use_sliding_window': False,
}


class Fields:
  """The fields of a JSON object; remembers which were read.

  Every reader raises InputError for a value of another type or range.
  """

  def __init__(
    self, file: pathlib.Path, values: Mapping[str, Any], prefix: str = ''
  ):
    """Reads no field yet.

    Args:
      file: named in errors.
      values: the object.
      prefix: of the fields' names in errors, for an object inside another.
    """
    self.file = file
    self._values = values
    self._prefix = prefix
    self._read: set[str] = set()

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def get(self, *names: str) -> Any:
    """The first of these fields that is there and not null, or None."""
    self._read.update(names)
    values = (self._values.get(name) for name in names)
    return next((value for value in values if value is not None), None)

  def value(self, name: str, default: Any = None) -> Any:
    """The field, or the default if it is absent or null; None is an error."""
    value = self.get(name)
    value = default if value is None else value
    if value is None:
      raise self.error(name, 'is missing')
    return value

  def integer(
    self, name: str, default: int | None = None, least: int = 1
  ) -> int:
    """A whole number of at least `least`."""
    value = self.value(name, default)
    if type(value) is not int or value < least:
      raise self.error(
        name, f'{value!r} is not a whole number of at least {least}'
      )
    return value

  def number(self, name: str, default: float | None = None) -> float:
    """A finite number above 0."""
    return self._checked(name, self.value(name, default))

  def numbers(self, name: str, length: int) -> tuple[float, ...]:
    """A list of `length` finite numbers above 0."""
    values = self.value(name)
    if not isinstance(values, list) or len(values) != length:
      raise self.error(name, f'is not a list of {length} numbers')
    return tuple(self._checked(name, value) for value in values)

  def optional_number(self, name: str) -> float | None:
    """A finite number above 0, or None if the field is absent or null."""
    value = self.get(name)
    return None if value is None else self._checked(name, value)

  def refuse_absence(self, name: str) -> None:
    """Refuses a file without the field; it may be null."""
    if name not in self._values:
      raise self.error(name, 'is missing')

  def boolean(self, name: str, default: bool = False) -> bool:
    """True or false."""
    value = self.value(name, default)
    if type(value) is not bool:
      raise self.error(name, f'{value!r} is not true or false')
    return value

  def inner(self, name: str) -> 'Fields':
    """The object in a field; empty if it is absent or null."""
    value = self.get(name) or {}
    if not isinstance(value, dict):
      raise self.error(name, f'{value!r} is not an object')
    return Fields(self.file, value, f'{self._prefix}{name}.')

  def merged(self, other: 'Fields') -> 'Fields':
    """These fields and the other's, which win; named as the other's."""
    values = {**self._values, **other._values}
    return Fields(self.file, values, other._prefix)

  def refuse_unread(self, context: str) -> None:
    """Refuses a field that was not read, unless it is known to change nothing.

    Args:
      context: what the field is unknown for.
    """
    for name, value in self._values.items():
      if name in self._read or name in HARMLESS or value is None:
        continue
      if name in NEUTRAL and value == NEUTRAL[name]:
        continue
      raise self.error(
        name,
        f'{_shortened(value)} is unknown for {context}, and may change what '
        'the model computes: remove the field if it does not',
      )

  def error(self, name: str, problem: str) -> errors.InputError:
    """An error that names file and field."""
    return errors.InputError(f'{self.file}: {self._prefix}{name}: {problem}')

  def _checked(self, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self.error(name, f'{value!r} is not a number above 0')
    return float(value)


def _shortened(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
