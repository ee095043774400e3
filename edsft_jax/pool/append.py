"""Appends the new rows of a file to the pool of a workdir.

What was scored, chosen, answered or held out stays as it is: old prompts keep
their places in the pool, new ones follow, and none joins the held-out set.
"""

from collections.abc import Sequence
import dataclasses

from edsft_jax import console, errors, store
from edsft_jax.pool import heldout
from edsft_jax.pool.built import Built, as_prompts, of_places

_REVEALS = 'it has the question of a held-out prompt'
_REMEDY = 'append a file whose old rows are unchanged, or use another --workdir'


def append(
  source: str,
  built: Built,
  workdir: store.Workdir,
  was_split: bool,
  strict: bool = False,
) -> Built:
  """Orders what was built from a longer file: the old pool, then new prompts.

  New prompts that reveal a held-out one are quarantined.

  Args:
    source: the file, for messages.
    built: its contents, with nothing held out.
    workdir: has the old pool, its answers and its held-out set.
    was_split: whether the held-out set was split off the old file.
    strict: whether to fail on a prompt that would be quarantined.

  Raises:
    InputError: an old row is missing or has changed, or, if strict, a prompt
      would be quarantined.
  """
  old = with_answers(workdir)
  held = store.Prompts([], [], None, [])
  if workdir.heldout.exists():
    held = store.read_prompts(workdir.heldout)
  place_of = {item.id: i for i, item in enumerate(built.pool)}
  old_places = _places(source, built, place_of, old, 'pool')
  held_places = []
  if was_split:
    held_places = _places(source, built, place_of, held, 'held-out set')

  known = {*old_places, *held_places}
  new_places = [i for i in range(len(built.pool)) if i not in known]
  new = [built.pool[i] for i in new_places]
  revealing = heldout.revealing(new, held)
  pairs = list(zip(new_places, revealing, strict=True))
  places = [*old_places, *(i for i, reveals in pairs if not reveals)]
  left_out = [built.pool[i].id for i, reveals in pairs if reveals]
  if left_out and strict:
    raise errors.InputError(
      f'{source}, id {left_out[0]!r}: {_REVEALS}: remove it, or set '
      'pool.strict=False to leave out such rows'
    )
  pool = [built.pool[i] for i in places]
  if old.tasks is None and as_prompts(pool, built.with_tasks).tasks is not None:
    raise errors.InputError(
      f'{source} has tasks, and the old pool has none: set '
      'pool.task_column=none, or use another --workdir'
    )
  return dataclasses.replace(
    built,
    pool=pool,
    heldout=[built.pool[i] for i in held_places],
    kept=of_places(built.kept, places),
    quarantine=[
      *built.quarantine,
      *({'line': None, 'id': i, 'reason': _REVEALS} for i in left_out),
    ],
  )


def with_answers(workdir: store.Workdir) -> store.Prompts:
  """The pool, with the answers that came with it."""
  pool = store.read_prompts(workdir.pool)
  answers = store.read_responses(workdir.pool_responses)
  return dataclasses.replace(
    pool, responses=[answers.get(i, '') for i in pool.ids]
  )


def _places(
  source: str,
  built: Built,
  place_of: dict[str, int],
  old: store.Prompts,
  where: str,
) -> list[int]:
  """Where the old prompts are in the new file.

  Raises:
    InputError: one is missing, or has changed.
  """
  if missing := [i for i in old.ids if i not in place_of]:
    merged = {row['id']: row['kept_id'] for row in built.duplicates}
    if kept := merged.get(missing[0]):
      raise errors.InputError(
        f'{source} has the prompt of {missing[0]!r} again as {kept!r}, with an '
        'answer: leave that row out, and give the answer by '
        'annotation.answers_path'
      )
    raise errors.InputError(
      f'{source} lacks {console.count(len(missing), "prompt")} of the {where}, '
      f'the first of them {missing[0]!r}: {_REMEDY}'
    )
  places = [place_of[i] for i in old.ids]
  present = as_prompts([built.pool[i] for i in places], built.with_tasks)
  for part, before, now in (
    ('prompt', old.prompts, present.prompts),
    ('task', old.tasks, present.tasks),
    ('response', old.responses, present.responses),
  ):
    if before != now:
      raise errors.InputError(
        f'{source} has another {part} for {_first(old.ids, before, now)} of '
        f'the {where}: {_REMEDY}'
      )
  return places


def _first(
  ids: Sequence[str],
  before: Sequence[object] | None,
  now: Sequence[object] | None,
) -> str:
  """The first id with a difference."""
  nothing = [None] * len(ids)
  pairs = zip(before or nothing, now or nothing, strict=True)
  return repr(ids[[a == b for a, b in pairs].index(False)])
