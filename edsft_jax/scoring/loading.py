"""Loads the model, and encodes the prompts that it scores."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib

import jax
import ml_collections

from edsft_jax import inference, models, store
from edsft_jax import mesh as mesh_lib
from edsft_jax.scoring.encoding import EncodedPool
from edsft_jax.scoring.scorer import Scorer


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Prompts as tokens, and the model that scores them.

  Attributes:
    encoded: the prompts.
    mesh: the devices.
    shapes: the shapes that prompts are read and continued in.
    scorer_of: tokens per batch -> scorer; cached.
  """

  encoded: EncodedPool
  mesh: jax.sharding.Mesh
  shapes: inference.Shapes
  scorer_of: Callable[[int], Scorer]


def load(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  prompt_format: models.PromptFormat,
  pool: store.Prompts,
  max_rows: int,
) -> Loaded:
  """Loads the model and encodes the prompts.

  Args:
    config: the model, mesh and scoring options.
    path: the model's directory.
    prompt_format: how prompts become tokens.
    pool: the prompts to score.
    max_rows: prompts per call of a scorer at most.

  Raises:
    InputError: a prompt cannot be encoded, or has no tokens.
  """
  c = config.scoring
  mesh = mesh_lib.model_mesh(**config.mesh)
  decoder = models.load_decoder(path, dtype=config.model.dtype, mesh=mesh)
  encoded = EncodedPool.of(
    prompt_format, pool, decoder.config.context - c.max_new_tokens
  )
  prefix = inference.choose_prefix(decoder, mesh, encoded.tokens)
  shapes = inference.choose_shapes(
    decoder,
    mesh,
    [length - len(prefix) for length in encoded.lengths],
    continued=c.generate,
  )
  scorer_of = functools.cache(
    lambda batch_tokens: Scorer(
      decoder,
      mesh,
      shapes,
      end_ids=(*prompt_format.end_ids, *c.stop_token_ids),
      max_new_tokens=c.max_new_tokens,
      batch_tokens=batch_tokens,
      max_rows=max_rows,
      prompt_scores=c.prompt_scores,
      length_normalized=c.length_normalized,
      pooling=c.features.pooling,
      layer=c.features.layer,
      prefix=prefix,
    )
  )
  return Loaded(encoded, mesh, shapes, scorer_of)
