"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), saved as PEFT does.

A projection's W becomes W + (alpha / rank) A B. A is random and B is zero, so a
new adapter does not change the output. Rank-stabilised adapters (Kalajdzievski
2023, arXiv 2312.03732) are scaled by alpha / sqrt(rank).
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import math
import pathlib
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from edsft_jax import errors, store
from edsft_jax.models import tensors as tensors_lib
from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.config_json import read_json_object
from edsft_jax.models.decoder import Decoder
from edsft_jax.models.diagnosis import ADAPTER_CONFIG
from edsft_jax.models.modules import DropoutKeys, Linear, LoRAParam
from edsft_jax.models.placement import StatePath

TARGETS = (
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
)
ADAPTER_WEIGHTS = 'adapter_model.safetensors'
# What to do if a file is missing.
_FILES = {
  ADAPTER_CONFIG: 'give the folder of a PEFT adapter',
  ADAPTER_WEIGHTS: 'if the adapter has another format, save it as safetensors',
}
_PREFIX = 'base_model.model.'
# A [in, R] and B [R, out] of a module.
_Adapter = tuple[np.ndarray, np.ndarray]


def add_lora(
  decoder: Decoder,
  rank: int,
  alpha: float,
  targets: Sequence[str],
  rngs: nnx.Rngs,
  rslora: bool = False,
) -> None:
  """Adds an adapter to every projection of the named kinds, in place.

  Adapters are float32 whatever the decoder's dtype, since updates are small. A
  is uniform in +-1 / sqrt(in), as in PEFT. With `rslora` they are
  rank-stabilised.

  Raises:
    InputError: an unknown target, or a rank below 1.
  """
  targets = _checked_targets(targets, rank)
  for _, linear in projections(decoder, targets):
    num_in, num_out = linear.weight.shape
    bound = 1 / math.sqrt(num_in)
    linear.lora_a = LoRAParam(
      jax.random.uniform(
        rngs.params(), (num_in, rank), jnp.float32, -bound, bound
      )
    )
    linear.lora_b = LoRAParam(jnp.zeros((rank, num_out), jnp.float32))
    linear.lora_scale = scale(rank, alpha, rslora)


def scale(rank: int, alpha: float, rslora: bool) -> float:
  """What an adapter's A B is multiplied by."""
  return alpha / (math.sqrt(rank) if rslora else rank)


def set_dropout(
  decoder: Decoder, rate: float, key: jax.Array, numbers_BxL: jax.Array
) -> None:
  """Makes the adapters drop inputs in the next forward pass, in place.

  Args:
    decoder: a model with adapters.
    rate: probability that an input is dropped, below 1.
    key: a random key.
    numbers_BxL: int32 [B, L]; tokens of the same number have the same mask.
  """
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))
  for count, (_, linear) in enumerate(projections(decoder)):
    if linear.lora_a is not None:
      own_key = jax.random.fold_in(key, count)
      linear.lora_dropout = rate
      linear.lora_keys = DropoutKeys(fold(own_key, numbers_BxL))


def projections(
  decoder: Decoder, targets: Sequence[str] = TARGETS
) -> Iterator[tuple[StatePath, Linear]]:
  """Yields path and module of every projection of these kinds."""
  for number, layer in enumerate(decoder.layers):
    for group in ('self_attn', 'mlp'):
      for name in targets:
        if hasattr(getattr(layer, group), name):
          path = ('layers', number, group, name)
          yield path, getattr(getattr(layer, group), name)


def merged(decoder: Decoder) -> Decoder:
  """Returns a copy with the adapters merged into the weights."""
  result = nnx.clone(decoder)
  for _, linear in projections(result):
    if linear.lora_a is None or linear.lora_b is None:
      continue
    delta = linear.lora_scale * jnp.matmul(
      linear.lora_a[...], linear.lora_b[...], precision='highest'
    )
    weight = linear.weight[...]
    linear.weight[...] = (weight.astype(jnp.float32) + delta).astype(
      weight.dtype
    )
    linear.lora_a = nnx.data(None)
    linear.lora_b = nnx.data(None)
    linear.lora_scale = 0.0
  return result


def save_adapter(
  decoder: Decoder,
  path: str | pathlib.Path,
  base_name: str,
  rslora: bool = False,
  dropout: float = 0.0,
) -> None:
  """Writes the adapters in PEFT's format.

  Args:
    decoder: a model with adapters, all of the same rank and scale.
    path: the directory, created if missing.
    base_name: name of the base model, for adapter_config.json.
    rslora: whether the adapters are rank-stabilised.
    dropout: probability of dropout in further training.

  Raises:
    ValueError: the decoder has no adapters.
  """
  directory = pathlib.Path(path)
  directory.mkdir(parents=True, exist_ok=True)
  adapters, factor = _adapters(decoder)
  if not adapters:
    raise ValueError('the decoder has no adapters to save')
  if decoder.config.fused:
    adapters = _fused(adapters, decoder.config)
  rank = max(a.shape[1] for a, _ in adapters.values())
  targets = list(dict.fromkeys(path[-1] for path in adapters))
  tensors = {
    _tensor_name(module_path, name): np.ascontiguousarray(array.T)
    for module_path, adapter in adapters.items()
    for name, array in zip('AB', adapter, strict=True)
  }
  safetensors.numpy.save_file(
    tensors, directory / ADAPTER_WEIGHTS, metadata={'format': 'pt'}
  )
  store.write_json(
    directory / ADAPTER_CONFIG,
    {
      'peft_type': 'LORA',
      'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': base_name,
      'r': rank,
      'lora_alpha': factor / scale(rank, 1.0, rslora),
      'use_rslora': rslora,
      'lora_dropout': dropout,
      'target_modules': targets,
      'bias': 'none',
      'fan_in_fan_out': False,
      'inference_mode': True,
    },
  )


def _adapters(decoder: Decoder) -> tuple[dict[StatePath, _Adapter], float]:
  """The adapters of a model on the host, and the scale that they have."""
  adapters: dict[StatePath, _Adapter] = {}
  factor = 0.0
  for module_path, linear in projections(decoder):
    if linear.lora_a is None or linear.lora_b is None:
      continue
    factor = linear.lora_scale
    adapters[module_path] = (
      np.asarray(jax.device_get(linear.lora_a[...])),
      np.asarray(jax.device_get(linear.lora_b[...])),
    )
  return adapters, factor


def hash_adapter(path: str | pathlib.Path) -> str:
  """One hash over a PEFT adapter's config and weights.

  Raises:
    InputError: one of them is missing.
  """
  return store.hash_files([_file(path, name) for name in _FILES])


def _file(path: str | pathlib.Path, name: str) -> pathlib.Path:
  """The path of a file in an adapter's directory.

  Raises:
    InputError: it is missing.
  """
  file = pathlib.Path(path) / name
  if not file.is_file():
    raise errors.InputError(f'{file} does not exist: {_FILES[name]}')
  return file


def load_adapter(decoder: Decoder, path: str | pathlib.Path) -> None:
  """Adds saved adapters to a decoder without any, in place.

  Raises:
    InputError: a file is missing or unreadable; the adapters compute something
      else than W + scale A B; a tensor is missing, unknown or has the wrong
      shape.
  """
  directory = pathlib.Path(path)
  config = decoder.config
  targets, rank, alpha, rslora, _ = read_adapter_config(directory, config)
  weights = _file(directory, ADAPTER_WEIGHTS)
  try:
    tensors = safetensors.numpy.load_file(weights)
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.InputError(
      f'{weights} is not a complete safetensors file ({error}): copy it again'
    ) from None
  taken: dict[StatePath, tuple[np.ndarray, ...]] = {}
  for module_path, linear in projections(decoder, targets):
    num_in, num_out = linear.weight.shape
    where = tensors_lib.outputs(module_path, config)
    if where.module not in taken:
      name = str(where.module[-1])
      all_out = tensors_lib.num_outputs(name, config)
      # As PEFT stores them: [R, in] and [out, R].
      taken[where.module] = tuple(
        _take(weights, tensors, _tensor_name(where.module, name), shape)
        for name, shape in (('A', (rank, num_in)), ('B', (all_out, rank)))
      )
    a, b = taken[where.module]
    b = b[where.start : where.start + num_out]
    linear.lora_a = LoRAParam(jnp.asarray(a.T, jnp.float32))
    linear.lora_b = LoRAParam(jnp.asarray(b.T, jnp.float32))
    linear.lora_scale = scale(rank, alpha, rslora)
  if tensors:
    raise errors.InputError(
      f'{weights} has the unknown tensor {sorted(tensors)[0]}'
    )


# Fields that, if set, change the computation from W + scale A B.
_UNSUPPORTED = (
  'use_dora',
  'rank_pattern',
  'alpha_pattern',
  'modules_to_save',
  'layers_to_transform',
  'fan_in_fan_out',
  'lora_bias',
  'use_bdlora',
  'alora_invocation_tokens',
)


class AdapterConfig(NamedTuple):
  """What adapter_config.json says; see edsft_jax/config.py for the fields.

  Attributes:
    targets: the decoder's projections with an adapter.
    rank: the rank of every adapter.
    alpha: see `scale`.
    rslora: whether the adapters are rank-stabilised.
    base_name: the model that it was trained on; '' if it does not say.
  """

  targets: tuple[str, ...]
  rank: int
  alpha: float
  rslora: bool
  base_name: str


def read_adapter_config(
  path: str | pathlib.Path, config: DecoderConfig
) -> AdapterConfig:
  """Reads a PEFT adapter's config.

  Args:
    path: the adapter's directory.
    config: the base model's.

  Raises:
    InputError: there is none, or the adapter is of a kind that is not
      supported.
  """
  file = _file(path, ADAPTER_CONFIG)
  fields = read_json_object(file)
  unsupported = [name for name in _UNSUPPORTED if fields.get(name)]
  # These initialisations move a part of the base weights into the adapter.
  if str(fields.get('init_lora_weights')).startswith(
    ('pissa', 'olora', 'corda', 'loftq')
  ):
    unsupported.append('init_lora_weights')
  if fields.get('peft_type') != 'LORA' or fields.get('bias') != 'none':
    raise errors.InputError(
      f'{file}: only LORA adapters without bias are supported'
    )
  if unsupported:
    raise errors.InputError(f'{file}: {unsupported[0]} is not supported')
  targets, rank, alpha = (
    fields.get(name) for name in ('target_modules', 'r', 'lora_alpha')
  )
  if (
    not isinstance(targets, list)
    or not isinstance(rank, int)
    or not isinstance(alpha, int | float)
    or isinstance(rank, bool)
    or isinstance(alpha, bool)
  ):
    raise errors.InputError(f'{file}: target_modules, r or lora_alpha is wrong')
  if config.fused:
    parts = [tensors_lib.FUSED.get(name, (name,)) for name in targets]
    targets = list(itertools.chain.from_iterable(parts))
  return AdapterConfig(
    _checked_targets(targets, rank),
    rank,
    alpha,
    fields.get('use_rslora') is True,
    str(fields.get('base_model_name_or_path') or ''),
  )


def _fused(
  adapters: Mapping[StatePath, _Adapter], config: DecoderConfig
) -> dict[StatePath, _Adapter]:
  """The same adapters for the modules of a checkpoint that fuses projections.

  A module's A are side by side and its B are blocks, so that its rank is the
  sum of theirs. PEFT has one rank for all modules, so others are padded.
  """
  groups: dict[StatePath, list[tuple[int, _Adapter]]] = {}
  for path, adapter in adapters.items():
    where = tensors_lib.outputs(path, config)
    groups.setdefault(where.module, []).append((where.start, adapter))
  rank = max(sum(a.shape[1] for _, (a, _) in g) for g in groups.values())
  result = {}
  for module, group in groups.items():
    num_in = group[0][1][0].shape[0]
    num_out = tensors_lib.num_outputs(str(module[-1]), config)
    whole_a = np.zeros((num_in, rank), np.float32)
    whole_b = np.zeros((rank, num_out), np.float32)
    first = 0
    for start, (a, b) in group:
      ranks = slice(first, first + a.shape[1])
      whole_a[:, ranks] = a
      whole_b[ranks, start : start + b.shape[1]] = b
      first = ranks.stop
    result[module] = whole_a, whole_b
  return result


def _take(
  weights: pathlib.Path,
  tensors: dict[str, np.ndarray],
  name: str,
  shape: tuple[int, int],
) -> np.ndarray:
  """Removes a tensor from those of a file and returns it.

  Raises:
    InputError: it is missing or has another shape.
  """
  array = tensors.pop(name, None)
  if array is None:
    raise errors.InputError(f'{weights} has no tensor {name}')
  if array.shape != shape:
    raise errors.InputError(
      f'{weights}: tensor {name} is {list(array.shape)}, the model needs '
      f'{list(shape)}'
    )
  return array


def _tensor_name(module_path: StatePath, which: str) -> str:
  module = tensors_lib.tensor_name(module_path)
  return f'{_PREFIX}{module}.lora_{which}.weight'


def _checked_targets(targets: Sequence[str], rank: int) -> tuple[str, ...]:
  if rank < 1:
    raise errors.InputError(f'LoRA rank is {rank}: must be at least 1')
  if unknown := [name for name in targets if name not in TARGETS]:
    raise errors.InputError(
      f'LoRA target {unknown[0]!r} is not one of {TARGETS}'
    )
  if not targets:
    raise errors.InputError(f'no LoRA targets: name some of {TARGETS}')
  return tuple(dict.fromkeys(targets))
