"""Greedy continuations of prompts that are all known before the first runs.

Prompts that begin alike, such as the questions of a task after its worked
examples, share the keys and values of their common prefix: it is read once.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax import models
from edsft_jax.inference import waves
from edsft_jax.inference.choices import choose_shapes, compile_tokens
from edsft_jax.inference.collect import Found, Generations, Progress
from edsft_jax.inference.engine import Engine
from edsft_jax.inference.programs import Hooks
from edsft_jax.inference.slots import Stop

# Programs that each padded prefix length needs: to read the prefixes, and to
# prefill and insert the rows that follow them.
_PROGRAMS_PER_LENGTH = 3
# Prefix tokens per wave, as a share of batch_tokens, which do not count them.
_PREFIX_SHARE = 0.25


def _is_finite(logits_BxV: jax.Array, token_B: jax.Array) -> jax.Array:
  """Bool [B], whether the best logit is finite; the step hook."""
  return jnp.isfinite(jnp.max(logits_BxV, axis=-1))


def _are_finite(finite_BxT: jax.Array, step_BxT: jax.Array) -> jax.Array:
  """Bool [B], whether it was finite in every step; the row hook."""
  return jnp.all(finite_BxT | ~step_BxT, axis=1)


def _rows(
  prompts: Sequence[Sequence[int] | np.ndarray],
  references: Sequence[Sequence[int]],
) -> list[waves.Row]:
  """The rows of a part's prompts."""
  return [
    waves.Row.of_prompt(i, ids, reference=reference)
    for i, (ids, reference) in enumerate(zip(prompts, references, strict=True))
  ]


class GenerationEngine:
  """Continues the same prompts by models of one structure."""

  def __init__(
    self,
    decoder: models.Decoder,
    mesh: jax.sharding.Mesh,
    parts: Sequence[Sequence[Sequence[int] | np.ndarray]],
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int,
    num_passes: int = 1,
    min_saved: float | None = None,
    references: Sequence[Sequence[Sequence[int]]] | None = None,
  ):
    """Groups prompts and chooses shapes; compiles nothing yet.

    Args:
      decoder: gives the structure; its weights are on the mesh.
      mesh: batches are split over its axes data and fsdp.
      parts: ids of each prompt; each call continues one part, and all parts
        have the same shapes.
      end_ids: ids that end a continuation.
      max_new_tokens: tokens per continuation at most, end token included.
      batch_tokens: prompt and new tokens per batch, padding included.
      num_passes: how often the prompts will run, for example once per model.
      min_saved: tokens that prefixes must save, for each of their padded
        lengths, to be read on their own; None: as many as could be read while
        the programs for this length are compiled.
      references: ids to score after each prompt, read together with it; none
        for a prompt with an empty sequence. None: nothing is scored. The model
        must be one that can share prefixes, see `can_share`.
    """
    if min_saved is None:
      per_pass = compile_tokens(decoder, mesh) / num_passes
      min_saved = _PROGRAMS_PER_LENGTH * per_pass
    if references is None:
      references = [[()] * len(prompts) for prompts in parts]
    rows = [*map(_rows, parts, references)]
    self._waves = waves.plan(
      decoder,
      mesh,
      rows,
      waves.find(decoder, rows),
      num_passes=num_passes,
      max_prefix_tokens=int(_PREFIX_SHARE * batch_tokens),
      min_saved=min_saved,
      continued=True,
    )
    lengths = [
      wave.length + len(row.own)
      for wave in itertools.chain(*self._waves)
      for row in wave.rows
    ]
    self._engine = Engine(
      decoder,
      mesh,
      choose_shapes(decoder, mesh, lengths or [1], num_passes),
      end_ids=end_ids,
      max_new_tokens=max_new_tokens,
      batch_tokens=batch_tokens,
      max_rows=max(1, *map(len, parts)),
      hooks=Hooks(step=_is_finite, row=_are_finite),
      num_passes=num_passes,
    )

  @property
  def num_programs(self) -> int:
    """Programs compiled so far."""
    return self._engine.num_programs

  def __call__(
    self,
    weights: nnx.State,
    progress: Progress = lambda work: None,
    part: int = 0,
    stop: Stop | None = None,
    known: AbstractSet[int] = frozenset(),
    found: Found | None = None,
  ) -> Generations:
    """Continues a part of the prompts.

    The row results are bool [n]: false if a token was chosen from logits that
    are not finite. The prompt results are `nll` and `is_greedy` [n, 1] of the
    references, see `row_likelihood`; meaningless for prompts without one.

    Args:
      weights: weights of a decoder with the constructor's structure.
      progress: called with the work done since its last call.
      part: which one, from 0.
      stop: strings that end a continuation, besides the end ids.
      known: see `Engine.generate_waves`.
      found: see `Engine.generate_waves`.

    Raises:
      ValueError: a prompt has no tokens.
    """
    return self._engine.generate_waves(
      weights, self._waves[part], progress, stop, known, found
    )
