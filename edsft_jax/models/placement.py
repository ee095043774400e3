"""Sharding of the decoder's parameters over a mesh."""

from collections.abc import Iterator
from typing import Any

from flax import nnx
import jax

from edsft_jax import mesh as mesh_lib
from edsft_jax import processes
from edsft_jax.models.decoder import Decoder

# Path of a parameter in the state: names of modules, indices of layers.
StatePath = tuple[Any, ...]

# Module -> logical axes of its weight; mesh.RULES maps them to mesh axes.
LOGICAL_AXES = {
  'embed_tokens': ('vocab', 'embed'),
  'q_proj': ('embed', 'heads'),
  'k_proj': ('embed', 'kv_heads'),
  'v_proj': ('embed', 'kv_heads'),
  'o_proj': ('heads', 'embed'),
  'gate_proj': ('embed', 'mlp'),
  'up_proj': ('embed', 'mlp'),
  'down_proj': ('mlp', 'embed'),
  'input_layernorm': ('norm',),
  'post_attention_layernorm': ('norm',),
  'pre_feedforward_layernorm': ('norm',),
  'post_feedforward_layernorm': ('norm',),
  'q_norm': ('norm',),
  'k_norm': ('norm',),
  'norm': ('norm',),
  'lm_head': ('embed', 'vocab'),
}


def logical_axes(path: StatePath) -> tuple[str, ...]:
  """Logical axes of the parameter at a path of the decoder's state."""
  module, kind = (str(part) for part in path[-2:])
  axes = LOGICAL_AXES[module]
  return {
    'weight': axes,
    'bias': axes[-1:],
    'lora_a': (axes[0], 'rank'),
    'lora_b': ('rank', axes[-1]),
  }[kind]


def shard_decoder(decoder: Decoder, mesh: jax.sharding.Mesh) -> None:
  """Shards every parameter over the mesh, adapters included, in place."""
  moved = [
    (path, variable.replace(mesh_lib.put(variable[...], sharding)))
    for path, variable, sharding in placed(decoder, mesh)
    if getattr(variable[...], 'sharding', None) != sharding
  ]
  nnx.update(decoder, nnx.from_flat_state(moved))


def to_host(decoder: Decoder) -> Decoder | None:
  """The decoder with its weights in host memory.

  Every process must call this; all but the first get None. Only one weight at a
  time is whole on each device.
  """
  taken = []
  for path, variable in nnx.to_flat_state(nnx.state(decoder)):
    array = mesh_lib.to_host(variable[...])
    if processes.is_first():
      taken.append((path, variable.replace(array)))
  if not taken:
    return None
  return nnx.merge(nnx.graphdef(decoder), nnx.from_flat_state(taken))


def placed(
  decoder: Decoder, mesh: jax.sharding.Mesh
) -> Iterator[tuple[StatePath, nnx.Param, jax.sharding.NamedSharding]]:
  """Yields path, parameter and sharding of every parameter."""
  for path, variable in nnx.to_flat_state(nnx.state(decoder, nnx.Param)):
    axes = logical_axes(path)
    yield path, variable, mesh_lib.sharding(mesh, axes, variable.shape)
