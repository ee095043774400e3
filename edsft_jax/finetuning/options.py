"""The options under config.finetuning: checks, and what results depend on."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import ml_collections
import numpy as np

from edsft_jax import errors, models
from edsft_jax.finetuning import export, memory, schedules
from edsft_jax.finetuning import trainer as trainer_lib
from edsft_jax.models import lora

_AT_LEAST_ONE = (
  'lora_rank',
  'epochs',
  'batch_size',
  'checkpoint_steps',
  'log_steps',
)
# The order of the examples is drawn for all epochs before the first step.
_MOST_EPOCHS = 10_000
_ABOVE_ZERO = ('lora_alpha', 'clip_norm')
# Computed in float32, where larger values are infinite.
_FINITE = ('learning_rate', 'lora_alpha', 'weight_decay', 'clip_norm')
_AT_LEAST_ZERO = (
  'learning_rate',
  'weight_decay',
  'eval_steps',
  'early_stopping',
)


def check_options(config: ml_collections.ConfigDict) -> None:
  """Rejects bad hyperparameters, and a model that does not support them.

  Raises:
    InputError: naming the option or the file.
  """
  c = config.finetuning
  model = models.check(models.resolve(config.model.path))
  for name, known in (
    ('method', trainer_lib.METHODS),
    ('schedule', schedules.SCHEDULES),
    ('export', export.EXPORTS),
  ):
    if c[name] not in known:
      raise errors.unknown(f'finetuning.{name} {c[name]!r}', c[name], known)
  unknown = [name for name in c.lora_targets if name not in lora.TARGETS]
  if unknown or not c.lora_targets:
    raise errors.InputError(
      f'finetuning.lora_targets is {tuple(c.lora_targets)}: choose from '
      f'{", ".join(lora.TARGETS)}'
    )
  repeated = {n for n in c.lora_targets if list(c.lora_targets).count(n) > 1}
  if repeated:
    raise errors.InputError(
      f'finetuning.lora_targets is {tuple(c.lora_targets)}: name '
      f'{", ".join(sorted(repeated))} only once'
    )
  memory.MemoryOptions.of(c).check()
  _check_numbers(c)
  if c.max_length and not 2 <= c.max_length <= model.context:
    raise errors.InputError(
      f'finetuning.max_length is {c.max_length}: give 2 to {model.context}, '
      "the model's context, or 0 for all of it"
    )
  for name in ('keep_best', 'early_stopping'):
    if c[name] and not c.eval_steps:
      raise errors.InputError(
        f'finetuning.{name} needs held-out losses: set finetuning.eval_steps'
      )
  if c.wandb_project and importlib.util.find_spec('wandb') is None:
    raise errors.InputError(
      'finetuning.wandb_project is set, but wandb is not installed: pip '
      'install wandb, or leave the option out'
    )
  if c.adapter_path:
    _check_adapter(c, model)


def _check_numbers(c: ml_collections.ConfigDict) -> None:
  for name in _AT_LEAST_ONE:
    errors.refuse_below(f'finetuning.{name}', c[name], 1)
  if c.epochs > _MOST_EPOCHS:
    raise errors.InputError(
      f'finetuning.epochs is {c.epochs:,}: must be at most {_MOST_EPOCHS:,}'
    )
  largest = float(np.finfo(np.float32).max)
  for name in _FINITE:
    if c[name] > largest:
      raise errors.InputError(
        f'finetuning.{name} is {c[name]}: must be at most {largest:.2g}, to be '
        'finite in float32'
      )
  for name in _ABOVE_ZERO:
    if not c[name] > 0:
      raise errors.InputError(
        f'finetuning.{name} is {c[name]}: must be above 0'
      )
  for name in _AT_LEAST_ZERO:
    errors.refuse_below(f'finetuning.{name}', c[name], 0)
  if not 0 <= c.warmup_fraction <= 1:
    raise errors.InputError(
      f'finetuning.warmup_fraction is {c.warmup_fraction}: must be from 0 to 1'
    )
  if not 0 <= c.lora_dropout < 1:
    raise errors.InputError(
      f'finetuning.lora_dropout is {c.lora_dropout}: must be from 0 to below 1'
    )


def _check_adapter(
  c: ml_collections.ConfigDict, model: models.DecoderConfig
) -> None:
  """Requires that the adapter to start from is what the options say."""
  if c.method != 'lora':
    raise errors.InputError(
      f'finetuning.adapter_path needs finetuning.method=lora, not {c.method}'
    )
  with errors.about('finetuning.adapter_path'):
    found = lora.read_adapter_config(c.adapter_path, model)
    # On a model without weights, for the names and shapes of the tensors.
    lora.load_adapter(models.Decoder(model, rngs=None), c.adapter_path)
  # PEFT saves targets as a set.
  order = sorted(found.targets, key=lora.TARGETS.index)
  if set(order) == set(c.lora_targets):
    order = list(c.lora_targets)
  options = {
    'lora_rank': found.rank,
    'lora_alpha': float(found.alpha),
    'rslora': found.rslora,
    'lora_targets': tuple(order),
  }
  differing = {
    name: value for name, value in options.items() if c[name] != value
  }
  if differing:
    words = ' '.join(
      f'--config.finetuning.{name}="{value}"'
      for name, value in differing.items()
    )
    raise errors.InputError(
      f'finetuning.adapter_path={c.adapter_path} has an adapter with other '
      f'options: add {words}'
    )


def hyperparameters(
  c: ml_collections.ConfigDict,
) -> trainer_lib.Hyperparameters:
  """How every cell is finetuned, from the options under config.finetuning."""
  values = {
    field.name: c[field.name]
    for field in dataclasses.fields(trainer_lib.Hyperparameters)
  }
  rate = c.learning_rate or schedules.METHOD_RATES[c.method]
  return trainer_lib.Hyperparameters(**{**values, 'learning_rate': rate})


def fingerprint(
  config: ml_collections.ConfigDict, path: pathlib.Path
) -> dict[str, Any]:
  """What the weights of every cell depend on, by name, besides prompts.

  Args:
    config: the whole config.
    path: the model's directory.
  """
  c = config.finetuning
  fields = dataclasses.asdict(hyperparameters(c))
  if c.method != 'lora':
    fields = {
      name: value
      for name, value in fields.items()
      if not name.startswith(('lora_', 'rslora'))
    }
  # They change nothing in the cells of studies that do not use them.
  for name in ('keep_best', 'early_stopping'):
    if c[name]:
      fields |= {name: c[name], 'eval_steps': c.eval_steps}
  if c.method == 'lora' and c.export == 'merged':
    fields['export'] = c.export
  result = {
    **models.fingerprint(path, config.model.dtype, config.prompt),
    **{f'finetuning.{name}': value for name, value in fields.items()},
  }
  if c.adapter_path:
    result['finetuning.adapter_path (its files)'] = lora.hash_adapter(
      c.adapter_path
    )
  return result
