"""Has a strategy choose: from a seed's part, with the kernel of the pool."""

from collections.abc import Callable
import dataclasses

import numpy as np

from edsft_jax import errors, selection, store
from edsft_jax.strategies import derived, registry
from edsft_jax.strategies.view import View


def of_part(
  whole: View,
  part: np.ndarray | None,
  row: registry.Strategy,
  num_scale_prompts: int,
) -> View:
  """What a strategy may read of a seed's part, and the kernel for it.

  Args:
    whole: the view of the whole pool.
    part: ascending positions in the pool; None for the whole pool.
    row: the strategy.
    num_scale_prompts: how many prompts the scale of the kernel comes from:
      the first ones of the pool.
  """
  view = whole if part is None else whole.part(part)
  num_scale = num_scale_prompts
  if part is not None:
    num_scale = int(np.searchsorted(part, num_scale))
  if num_scale < len(view.pool) and 'kernel' in row.reads:
    view = dataclasses.replace(view, similarity=_as_before(view, num_scale))
  return view


def choose(
  row: registry.Strategy, view: View, count: int, seed: int
) -> selection.Selection:
  """Chooses that many prompts for one seed."""
  try:
    chosen = row.choose(view, count, seed)
  except selection.SelectionError as e:
    raise errors.InputError(f'strategy {row.name}: {e}') from e
  picked = chosen.indices.tolist()
  free = set(range(len(view.pool))) - {*view.initial}
  if not len({*picked} & free) == len(picked) == count:
    raise RuntimeError(
      f'strategy {row.name} chose {len({*picked} & free)} different prompts '
      f'that were free, in {len(picked)} picks instead of {count}'
    )
  return chosen


def picks_of(
  row: registry.Strategy,
  workdir: store.Workdir,
  whole: View,
  part: np.ndarray | None,
  number: int,
  seed: int,
) -> Callable[[int], list[int]]:
  """Returns a function: number -> the first picks of a written order.

  If rejected prompts call for more picks than the order has, the strategy
  chooses them again with those that follow.

  Args:
    row: the strategy.
    workdir: has its order.
    whole: the view of the whole pool.
    part: the positions that it chose from; None for the whole pool.
    number: of the present round.
    seed: of the order.
  """

  def picks(count: int) -> list[int]:
    record = store.read_json(workdir.selection_record(row.name))
    num_scale = record.get('num_scale_prompts', len(whole.pool))
    view = of_part(whole, part, row, num_scale)
    place = {prompt_id: i for i, prompt_id in enumerate(view.pool.ids)}
    order = store.read_jsonl(workdir.selection(row.name, seed))
    if len(order) >= count:
      return [place[pick['id']] for pick in order[:count]]
    initial = [
      place[pick['id']] for pick in order if pick.get('round', 0) < number
    ]
    view = dataclasses.replace(view, initial=initial)
    chosen = choose(row, view, count - len(initial), seed)
    return [*initial, *chosen.indices.tolist()]

  return picks


def _as_before(view: View, num_prompts: int) -> selection.Similarity | None:
  """The kernel as it was before the pool grew."""
  kernel = view.similarity
  if not isinstance(kernel, selection.Rbf) or kernel.width is None:
    return kernel
  assert view.features is not None
  return derived.with_scale(kernel.width, view.features[:num_prompts])
