"""Rows of scores.parquet: checks, conversion and counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edsft_jax import errors, models, store
from edsft_jax.scoring.scorer import Scores


def refuse_not_finite(
  scores: Scores, ids: Sequence[str], lengths: Sequence[int]
) -> None:
  """Rejects scores and features that are not finite.

  Raises:
    InputError: naming the first prompt with a number that is not finite, which
      may be that of another prompt in its packed row.
  """
  finite = np.isfinite(scores.features).all(axis=1)
  if scores.scores:
    finite &= ~scores.generated | np.isfinite(scores.scores['mean_entropy'])
  if scores.prompt_scores:
    # A single token has no scores.
    finite &= (np.array(lengths) < 2) | np.isfinite(
      scores.prompt_scores['mean_entropy']
    )
  if not finite.all():
    raise errors.InputError(
      f'prompt {ids[int(np.argmin(finite))]!r} (or one that was read with it) '
      'has scores or features that are not finite: check the weights of the '
      'model and model.dtype'
    )


def make_table(
  columns: dict[str, Any], scores: Scores, prompt_format: models.PromptFormat
) -> pa.Table:
  """Rows of scores.parquet: the given columns, then the scores.

  Columns of continuations are null for prompts that were not continued, and
  absent if none was.
  """
  if scores.scores:
    none = ~scores.generated
    num_tokens = np.array([len(ids) for ids in scores.tokens], np.int64)
    columns |= {
      'num_generated_tokens': pa.array(num_tokens, mask=none),
      'near_ties': pa.array(scores.near_ties, mask=none),
      'generation': [
        prompt_format.decode(ids.tolist()) if generated else None
        for ids, generated in zip(scores.tokens, scores.generated, strict=True)
      ],
      **{name: _nullable(x) for name, x in scores.scores.items()},
    }
  columns |= {
    f'prompt_{name}': _nullable(x) for name, x in scores.prompt_scores.items()
  }
  return pa.table(columns)


def _nullable(values: np.ndarray) -> pa.Array:
  """A float32 array with NaN, which marks a missing value, as null."""
  return pa.array(values, pa.float32(), from_pandas=True)


def counts(workdir: store.Workdir) -> dict[str, int]:
  """Totals over scores.parquet, for the manifest."""
  table = store.read_parquet(workdir.scores)

  def total(name: str) -> int:
    known = name in table.column_names
    return (pc.sum(table[name]).as_py() or 0) if known else 0

  continued = near_a_tie = 0
  if 'near_ties' in table.column_names:
    continued = pc.count(table['near_ties']).as_py()
    near_a_tie = pc.sum(pc.greater(table['near_ties'], 0)).as_py() or 0
  return {
    'prompts': table.num_rows,
    'prompt_tokens': total('num_prompt_tokens'),
    'generated_tokens': total('num_generated_tokens'),
    'near_ties': total('near_ties'),
    'continued': continued,
    'continuations_near_a_tie': near_a_tie,
    'truncated': total('truncated'),
  }
