"""Reads columns of scores.parquet for strategies, without missing values."""

from collections.abc import Mapping, Sequence

import numpy as np

from edsft_jax import console, errors, store

# Columns that scores.parquet has whatever the options of scoring.
_ALWAYS = ('num_prompt_tokens', 'truncated')
# The column that marks the prompts that a task's confidence comes from.
_SAMPLE = 'confidence_sample'


def read_scores(
  workdir: store.Workdir, ids: Sequence[str]
) -> dict[str, np.ndarray]:
  """Reads scores.parquet into arrays [N], null as NaN.

  Args:
    workdir: the workdir.
    ids: ids of the pool, in order.

  Raises:
    InputError: the file is damaged or belongs to another pool.
  """
  table = store.read_parquet(workdir.scores)
  if table['id'].to_pylist() != list(ids):
    raise errors.InputError(
      f'{workdir.scores} and {workdir.pool} list different prompts: score this '
      'pool again in a new --workdir'
    )
  return {
    column: table[column].to_numpy()
    for column in table.column_names
    if column not in ('id', 'generation')
  }


def needed_option(column: str) -> str:
  """The option of scoring that makes this column, or ''."""
  if column in _ALWAYS:
    return ''
  return 'prompt_scores' if column.startswith('prompt_') else 'generate'


def complete(
  scores: Mapping[str, np.ndarray], ids: Sequence[str], column: str
) -> np.ndarray:
  """Returns a score, [N], after checking that every prompt has it.

  Raises:
    InputError: the column or some of its values are missing.
  """
  option = needed_option(column)
  remedy = f'score with scoring.{option}=True in a new --workdir'
  if not option:
    remedy = 'score again in a new --workdir'
  if column not in scores:
    raise errors.InputError(f'scores.parquet has no {column}: {remedy}')
  values = scores[column]
  if absent := np.flatnonzero(np.isnan(values)).tolist():
    if option == 'prompt_scores':
      remedy = 'prompts of a single token have none, leave the strategy out'
    raise errors.InputError(
      f'scores.parquet has no {column} for '
      f'{console.count(len(absent), "prompt")}, first for '
      f'{ids[absent[0]]!r}: {remedy}'
    )
  return values


def confidence(
  scores: Mapping[str, np.ndarray],
  ids: Sequence[str],
  tasks: Sequence[str],
  column: str,
) -> np.ndarray:
  """Each prompt's confidence [N]; its task's mean if only a sample has one.

  Raises:
    InputError: no prompt of a task has one.
  """
  if column == 'sequence_probability' and 'log_probability' in scores:
    # Probabilities of long continuations underflow float32, some even float64.
    probability = np.exp(scores['log_probability'].astype(np.float64))
    tiny = np.finfo(np.float64).tiny
    scores = {**scores, column: np.maximum(probability, tiny)}
  if _SAMPLE not in scores or column not in scores:
    return complete(scores, ids, column)
  values = scores[column].astype(np.float64)
  samples: dict[str, list[float]] = {task: [] for task in tasks}
  for i in np.flatnonzero(scores[_SAMPLE] & np.isfinite(values)).tolist():
    samples[tasks[i]].append(values[i])
  if empty := [task for task, sample in samples.items() if not sample]:
    raise errors.InputError(
      f'scores.parquet has no {column} for any prompt of task {empty[0]!r}: '
      'score with scoring.generate=True in a new --workdir'
    )
  means = {task: np.mean(sample) for task, sample in samples.items()}
  return np.array([means[task] for task in tasks])
