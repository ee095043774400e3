"""Scores prompts: the inference engine with hooks for token statistics."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax import inference, models
from edsft_jax.scoring import statistics
from edsft_jax.scoring.pooling import pool_features

# Most logits held at once while a prompt's tokens are scored, in floats.
_MAX_LOGITS = 2**22


@dataclasses.dataclass
class Scores:
  """Scores and features of n prompts, in the given order.

  Attributes:
    features: float32 [n, D].
    prompt_scores: scores of the prompt's own tokens, float32 [n] by name;
      empty if they were not requested.
    generated: bool [n], the prompts that were continued.
    scores: scores of the continuation, float32 [n] by name; NaN without one.
    near_ties: int32 [n], steps whose two best logits were almost equal.
    tokens: the continuation's ids; empty without one.
  """

  features: np.ndarray
  prompt_scores: dict[str, np.ndarray]
  generated: np.ndarray
  scores: dict[str, np.ndarray]
  near_ties: np.ndarray
  tokens: list[np.ndarray]


class Scorer:
  """The pretrained model as a function from tokens to scores."""

  def __init__(
    self,
    decoder: models.Decoder,
    mesh: jax.sharding.Mesh,
    shapes: inference.Shapes,
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int,
    max_rows: int,
    prompt_scores: bool = True,
    length_normalized: bool = False,
    pooling: str = 'mean',
    layer: int = -1,
  ):
    """Compiles nothing yet.

    Args:
      decoder: the model; its weights are on the mesh.
      mesh: batches are split over its axes data and fsdp.
      shapes: the padded lengths.
      end_ids: ids that end a continuation.
      max_new_tokens: tokens per continuation at most, end token included.
      batch_tokens: prompt and new tokens per batch, padding included.
      max_rows: prompts per call at most.
      prompt_scores: also score the prompts' own tokens.
      length_normalized: divide least_confidence by the number of steps.
      pooling: how features are pooled, see `pool_features`.
      layer: layer of the features, see Decoder.__call__.
    """
    self._weights = nnx.split(decoder)[1]
    self._engine = inference.Engine(
      decoder,
      mesh,
      shapes,
      end_ids=end_ids,
      max_new_tokens=max_new_tokens,
      batch_tokens=batch_tokens,
      max_rows=max_rows,
      hooks=inference.Hooks(
        prompt=functools.partial(
          _prompt_results,
          with_scores=prompt_scores,
          length_normalized=length_normalized,
          pooling=pooling,
        ),
        step=statistics.token_statistics,
        row=functools.partial(
          _row_results, length_normalized=length_normalized
        ),
        scores_prompt=prompt_scores,
      ),
      layer=layer,
    )

  @property
  def batch_tokens(self) -> int:
    """Tokens per batch."""
    return self._engine.batch_tokens

  @property
  def num_programs(self) -> int:
    """Programs compiled so far to read prompts and to decode."""
    return self._engine.num_programs

  @property
  def num_resizes(self) -> int:
    """Programs compiled so far to move rows to a longer cache."""
    return self._engine.num_resizes

  def __call__(
    self,
    tokens: Sequence[Sequence[int] | np.ndarray],
    generate: np.ndarray,
    progress: inference.Progress = lambda work: None,
  ) -> Scores:
    """Scores prompts.

    Args:
      tokens: ids of each prompt.
      generate: bool [n], the prompts to be continued.
      progress: called with the work done since its last call.
    """
    continued = np.flatnonzero(generate).tolist()
    only_read = np.flatnonzero(~generate).tolist()
    read = self._engine.read(
      self._weights, [tokens[i] for i in only_read], progress
    )
    generations = self._engine.generate(
      self._weights, [tokens[i] for i in continued], progress
    )
    prompt_results = _spread(
      len(tokens),
      (only_read, read),
      (continued, generations.prompt_results),
    )
    row_results = (
      _spread(len(tokens), (continued, generations.row_results)) or {}
    )
    new_tokens = [np.zeros(0, np.int32) for _ in tokens]
    for i, ids in zip(continued, generations.tokens, strict=True):
      new_tokens[i] = ids
    scores = row_results.get('scores', {})
    return Scores(
      features=prompt_results['features'],
      prompt_scores=prompt_results['scores'],
      generated=generate,
      scores={
        name: np.where(generate, values, np.float32(np.nan))
        for name, values in scores.items()
      },
      near_ties=row_results.get('near_ties', np.zeros(len(tokens), np.int32)),
      tokens=new_tokens,
    )


def _spread(num_rows: int, *parts: tuple[list[int], Any]) -> Any:
  """Joins pytrees that each hold some of n rows; None if all are None.

  Each part is (row indices, pytree of [rows, ...] arrays).
  """
  parts = tuple(part for part in parts if part[1] is not None)
  if not parts:
    return None

  def join(*arrays: np.ndarray) -> np.ndarray:
    joined = np.zeros((num_rows, *arrays[0].shape[1:]), arrays[0].dtype)
    for (indices, _), array in zip(parts, arrays, strict=True):
      joined[indices] = array
    return joined

  return jax.tree.map(join, *(tree for _, tree in parts))


def _row_results(
  observed: statistics.TokenStatistics,
  step_BxT: jax.Array,
  *,
  length_normalized: bool,
) -> dict[str, Any]:
  scores = statistics.sequence_scores(observed, step_BxT, length_normalized)
  scores['first_token_confidence'] = observed.top1[:, 0]
  return {
    'near_ties': statistics.near_ties(observed, step_BxT),
    'scores': scores,
  }


def _prompt_results(
  decoder: models.Decoder,
  output: models.Output,
  tokens_BxL: jax.Array,
  mask_BxL: jax.Array,
  *,
  with_scores: bool,
  length_normalized: bool,
  pooling: str,
) -> dict[str, Any]:
  scores = {}
  if with_scores:
    scores = statistics.sequence_scores(
      _prompt_statistics(decoder, output.hidden_BxLxD, tokens_BxL),
      mask_BxL[:, :-1] & mask_BxL[:, 1:],
      length_normalized,
    )
  features = pool_features(output.features_BxLxD, mask_BxL, pooling)
  return {'scores': scores, 'features': features}


def _prompt_statistics(
  decoder: models.Decoder, hidden_BxLxD: jax.Array, tokens_BxL: jax.Array
) -> statistics.TokenStatistics:
  """Statistics of each prompt token given those before, fields [B, L - 1].

  Works in blocks of positions: logits of the whole prompt, [B, L, V], would be
  by far the largest buffer.
  """
  batch, length = tokens_BxL.shape
  vocab = decoder.config.vocab_size
  size = 1
  while length % (2 * size) == 0 and 2 * size * batch * vocab <= _MAX_LOGITS:
    size *= 2
  next_BxL = jnp.roll(tokens_BxL, -1, axis=1)

  def score_block(
    block: tuple[jax.Array, jax.Array],
  ) -> statistics.TokenStatistics:
    hidden_BxPxD, next_BxP = block
    return statistics.token_statistics(decoder.logits(hidden_BxPxD), next_BxP)

  def blocks(x_BxL: jax.Array) -> jax.Array:
    x_BxNxP = x_BxL.reshape(batch, -1, size, *x_BxL.shape[2:])
    return x_BxNxP.swapaxes(0, 1)

  block_NxBxP = jax.lax.map(
    score_block, (blocks(hidden_BxLxD), blocks(next_BxL))
  )
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(batch, length)[:, :-1], block_NxBxP
  )
