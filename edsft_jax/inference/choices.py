"""Chooses shapes and shared prefixes, by what they cost and save."""

from collections.abc import Sequence

import jax
import numpy as np

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.inference import shapes as shapes_lib
from edsft_jax.inference import throughput
from edsft_jax.inference.prefixes import MIN_LENGTH, can_share, common_prefix

# FLOP/s that small batches reach, by platform: two CPU cores, and any kind of
# accelerator. Only the order of magnitude matters.
_FLOPS = {'cpu': 1.5e11}
_ACCELERATOR_FLOPS = 1e14
# Bytes/s that a decode step reads, by platform.
_BYTES = {'cpu': 1.5e10}
_ACCELERATOR_BYTES = 1e12
# Seconds to compile a program, and the overhead of calling one.
_COMPILE_SECONDS = 1.5
_CALL_SECONDS = 0.01
# Prompt tokens per call, by platform, from which on reading the weights takes
# at most a tenth of the time of the products: ten times FLOP/s over bytes/s.
_READ_TOKENS = {'cpu': 512}
_ACCELERATOR_READ_TOKENS = 4096
# Tokens of the shortest packed rows, by platform, at most and at least: so many
# that attention takes this share of the other operations' time. With
# SmolLM2-135M on two cores, a token takes 5% longer in rows of 256 than in
# shorter ones, 17% in rows of 512 and 38% in rows of 1,024.
_ROW_LENGTHS = {'cpu': 256}
_ACCELERATOR_ROW_LENGTH = 512
_FEWEST_ROW_TOKENS = 64
_ATTENTION_SHARE = 0.083
# How much longer an operation of attention takes than one of other products; a
# CPU reaches half of the FLOP/s.
_ATTENTION_SLOWNESS = 2.0


def choose_shapes(
  decoder: models.Decoder,
  mesh: jax.sharding.Mesh,
  lengths: Sequence[int],
  num_passes: int = 1,
  groups: Sequence[Sequence[int]] | None = None,
  continued: bool = False,
) -> shapes_lib.Shapes:
  """Chooses the shapes for prompts of these lengths and this model.

  A further program pays off if computing the padding that it saves would take
  longer than compiling it: soon for a large model, late for a tiny one.

  Args:
    decoder: the model.
    mesh: the devices.
    lengths: tokens of each prompt.
    num_passes: how often the prompts will run, for example once per model.
    groups: indices of prompts that may share a packed row; None: all may.
    continued: see `Shapes.of`.
  """
  options = shapes_lib.ShapeOptions(
    compile_tokens=compile_tokens(decoder, mesh) / num_passes,
    row_length=_row_length(decoder, mesh),
    key_cost=key_cost(decoder),
  )
  return shapes_lib.Shapes.of(lengths, options, groups, continued)


def choose_prefix(
  decoder: models.Decoder,
  mesh: jax.sharding.Mesh,
  prompts: Sequence[Sequence[int] | np.ndarray],
) -> list[int]:
  """The tokens that all prompts start with, for `Engine`.

  Empty if they are few, if reading them for each prompt takes no longer than
  compiling the program that reads them once, or if the model cannot share them.

  Args:
    decoder: the model.
    mesh: the devices.
    prompts: ids of each prompt.
  """
  prefix = common_prefix(prompts) if can_share(decoder.config) else []
  num_saved = len(prefix) * len(prompts)
  pays_off = num_saved > compile_tokens(decoder, mesh)
  return prefix if pays_off and len(prefix) >= MIN_LENGTH else []


def compile_tokens(decoder: models.Decoder, mesh: jax.sharding.Mesh) -> float:
  """Tokens that can be read in the time that compiling a program takes."""
  return _tokens_in(_COMPILE_SECONDS, decoder, mesh)


def key_cost(decoder: models.Decoder) -> float:
  """Time to attend to a key, as a share of a token's without attention."""
  return _ATTENTION_SLOWNESS * throughput.Costs.of(decoder).key_share


def _row_length(decoder: models.Decoder, mesh: jax.sharding.Mesh) -> int:
  """Tokens of the shortest packed rows, about."""
  platform = mesh.devices.flat[0].platform
  most = _ROW_LENGTHS.get(platform, _ACCELERATOR_ROW_LENGTH)
  # On average, a token attends to the keys of half a row.
  enough = int(2 * _ATTENTION_SHARE / key_cost(decoder)) // 8 * 8
  return min(max(enough, _FEWEST_ROW_TOKENS), most)


def compile_bytes(mesh: jax.sharding.Mesh) -> float:
  """Bytes that are read from memory while a program is compiled, about."""
  platform = mesh.devices.flat[0].platform
  return _COMPILE_SECONDS * _BYTES.get(platform, _ACCELERATOR_BYTES) * mesh.size


def read_tokens(decoder: models.Decoder, mesh: jax.sharding.Mesh) -> int:
  """Prompt tokens per call that make up for its overhead."""
  platform = mesh.devices.flat[0].platform
  tokens = _READ_TOKENS.get(platform, _ACCELERATOR_READ_TOKENS)
  return max(
    tokens * mesh_lib.batch_multiple(mesh),
    int(_tokens_in(_CALL_SECONDS, decoder, mesh)),
  )


def _tokens_in(
  seconds: float, decoder: models.Decoder, mesh: jax.sharding.Mesh
) -> float:
  """Number of tokens that the layers process in about this time."""
  platform = mesh.devices.flat[0].platform
  flops = _FLOPS.get(platform, _ACCELERATOR_FLOPS) * mesh.size
  costs = throughput.Costs.of(decoder)
  return seconds * flops / (2 * costs.num_layer_weights)
