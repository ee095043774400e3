"""Scores prompts: the inference engine with hooks for token statistics."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax import inference, models
from edsft_jax.scoring import statistics
from edsft_jax.scoring.pooling import pool_features


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
    prefix: Sequence[int] = (),
  ):
    """Compiles nothing yet.

    Args:
      decoder: the model; its weights are on the mesh.
      mesh: batches are split over its axes data and fsdp.
      shapes: the shapes, without the prefix.
      end_ids: ids that end a continuation.
      max_new_tokens: tokens per continuation at most, end token included.
      batch_tokens: prompt and new tokens per batch, padding included.
      max_rows: prompts per call at most.
      prompt_scores: also score the prompts' own tokens.
      length_normalized: divide least_confidence by the number of steps.
      pooling: how features are pooled, see `pool_features`.
      layer: layer of the features, see Decoder.__call__.
      prefix: tokens that all prompts start with, see `inference.choose_prefix`.
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
        prefix=functools.partial(_read_prefix, with_scores=prompt_scores),
        prompt=functools.partial(
          _prompt_results,
          with_scores=prompt_scores,
          length_normalized=length_normalized,
          pooling=pooling,
        ),
        step=statistics.token_statistics,
        row=functools.partial(
          _row_results,
          length_normalized=length_normalized,
          near_tie=statistics.NEAR_TIES[decoder.dtype_name],
        ),
        scores_prompt=prompt_scores,
      ),
      layer=layer,
      prefix=prefix,
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
  near_tie: float,
) -> dict[str, Any]:
  scores = statistics.sequence_scores(observed, step_BxT, length_normalized)
  scores['first_token_confidence'] = observed.top1[:, 0]
  return {
    'near_ties': statistics.near_ties(observed, step_BxT, near_tie),
    'scores': scores,
  }


class _PrefixStatistics(NamedTuple):
  """What scores of a prompt need to know about its prefix of P tokens.

  Attributes:
    tokens: of each of its tokens given those before, fields [1, P - 1].
    next: of the token after it, whichever that is, fields [1, 1].
    next_log_prob_1xV: log probability of each token to be the next.
  """

  tokens: statistics.TokenStatistics
  next: statistics.TokenStatistics
  next_log_prob_1xV: jax.Array


class _SharedPrefix(NamedTuple):
  """What the prompt hook needs to know about the prefix of all prompts.

  Attributes:
    features_1xPxD: its hidden states.
    scored: None if the prompts' own tokens are not scored.
  """

  features_1xPxD: jax.Array
  scored: _PrefixStatistics | None


def _read_prefix(
  decoder: models.Decoder,
  output: models.Output,
  tokens_1xP: jax.Array,
  *,
  with_scores: bool,
) -> _SharedPrefix:
  """The prefix hook."""
  hidden_1xPxD = output.hidden_BxLxD
  if not with_scores:
    return _SharedPrefix(output.features_BxLxD, None)
  logits_1x1xV = decoder.logits(hidden_1xPxD[:, -1:])
  scored = _PrefixStatistics(
    _prompt_statistics(decoder, hidden_1xPxD, tokens_1xP),
    statistics.token_statistics(logits_1x1xV, tokens_1xP[:, -1:]),
    jax.nn.log_softmax(logits_1x1xV[:, 0]),
  )
  return _SharedPrefix(output.features_BxLxD, scored)


def _prompt_results(
  decoder: models.Decoder,
  output: models.Output,
  tokens_BxL: jax.Array,
  mask_BxSxL: jax.Array,
  prefix: _SharedPrefix | None,
  *,
  with_scores: bool,
  length_normalized: bool,
  pooling: str,
) -> dict[str, Any]:
  """The prompt hook."""
  features_BxLxD = output.features_BxLxD
  num_before = 0
  if prefix is not None:
    before_1xPxD = prefix.features_1xPxD
    num_before = before_1xPxD.shape[1]
    before_BxPxD = jnp.repeat(before_1xPxD, len(tokens_BxL), axis=0)
    features_BxLxD = jnp.concatenate([before_BxPxD, features_BxLxD], axis=1)

  def with_prefix(mask_BxSxL: jax.Array) -> jax.Array:
    widths = ((0, 0), (0, 0), (num_before, 0))
    return jnp.pad(mask_BxSxL, widths, constant_values=True)

  scores = {}
  if with_scores:
    found = jax.tree.map(
      lambda x_BxT: x_BxT[:, None],
      _prompt_statistics(decoder, output.hidden_BxLxD, tokens_BxL),
    )
    if prefix is not None and prefix.scored is not None:
      found = _after_prefix(prefix.scored, found, tokens_BxL, mask_BxSxL)
    valid_BxSxT = mask_BxSxL[..., :-1] & mask_BxSxL[..., 1:]
    scores = statistics.sequence_scores(
      found, with_prefix(valid_BxSxT), length_normalized
    )
  features = pool_features(features_BxLxD, with_prefix(mask_BxSxL), pooling)
  return {'scores': scores, 'features': features}


def _after_prefix(
  prefix: _PrefixStatistics,
  found: statistics.TokenStatistics,
  tokens_BxL: jax.Array,
  mask_BxSxL: jax.Array,
) -> statistics.TokenStatistics:
  """Of the prefix, each prompt's first token and its others [B, 1, T].

  Returns:
    Fields [B, S, P + T].
  """
  first_BxS = jnp.argmax(mask_BxSxL, axis=2)
  token_BxS = jnp.take_along_axis(tokens_BxL, first_BxS, axis=1)
  first = prefix.next._replace(
    log_prob=prefix.next_log_prob_1xV[0, token_BxS][..., None]
  )

  def along_tokens(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(
      [jnp.broadcast_to(x, (*token_BxS.shape, x.shape[-1])) for x in parts],
      axis=2,
    )

  return jax.tree.map(along_tokens, prefix.tokens, first, found)


def _prompt_statistics(
  decoder: models.Decoder, hidden_BxLxD: jax.Array, tokens_BxL: jax.Array
) -> statistics.TokenStatistics:
  """Statistics of each prompt token given those before, fields [B, L - 1].

  Works in blocks: logits of the whole prompt, [B, L, V], would be by far the
  largest buffer.
  """

  def score(
    tokens: tuple[jax.Array, jax.Array],
  ) -> statistics.TokenStatistics:
    hidden_BxD, next_B = tokens
    return statistics.token_statistics(decoder.logits(hidden_BxD), next_B)

  return inference.map_tokens(
    decoder, score, (hidden_BxLxD[:, :-1], tokens_BxL[:, 1:])
  )
