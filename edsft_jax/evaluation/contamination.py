"""How many evaluation items share text with the prompts that train the cells.

An item is contaminated if it shares 13 words in a row with a prompt of the pool
or its answer (Brown et al. 2020, arXiv 2005.14165, appendix C). Words are runs
of letters and digits, without regard to case and to how Unicode writes them.
"""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any
import unicodedata

from edsft_jax import store
from edsft_jax.evaluation.task import Item

NUM_WORDS = 13

_WORD = re.compile(r'[^\W_]+')
# Zero-width characters, soft hyphens and the like, also within a word.
_INVISIBLE = re.compile('[\u00ad\u200b-\u200f\u2060\ufeff]')


def grams(text: str) -> set[str]:
  """Every run of 13 words in a text."""
  plain = unicodedata.normalize('NFKC', _INVISIBLE.sub('', text))
  # Folding may separate accents again.
  words = _WORD.findall(unicodedata.normalize('NFKC', plain.casefold()))
  return {
    ' '.join(words[start : start + NUM_WORDS])
    for start in range(len(words) - NUM_WORDS + 1)
  }


def count(
  items: Sequence[Item],
  texts: Mapping[str, Iterable[str]],
  selections: Mapping[str, Iterable[str]],
) -> dict[str, Any]:
  """Counts the items that share text with the pool, and with each selection.

  Args:
    items: the items of a task.
    texts: for each prompt's id, its text and its answers.
    selections: name -> ids of the chosen prompts.

  Returns:
    items, too_short (items of fewer than 13 words, which cannot be checked),
    pool and selections {name: number}, and by_task {task: number} for the pool.
  """
  items_with: dict[str, set[int]] = {}
  too_short = 0
  for number, item in enumerate(items):
    found = grams(item.text)
    too_short += not found
    for gram in found:
      items_with.setdefault(gram, set()).add(number)
  shared = {
    prompt_id: set().union(
      *(items_with.get(g, ()) for text in some for g in grams(text))
    )
    for prompt_id, some in texts.items()
  }
  in_pool = set().union(*shared.values())
  by_task: dict[str, int] = {}
  for number, item in enumerate(items):
    if item.task is not None:
      by_task[item.task] = by_task.get(item.task, 0) + (number in in_pool)
  return {
    'items': len(items),
    'too_short': too_short,
    'pool': len(in_pool),
    'selections': {
      name: len(set().union(*(shared.get(i, ()) for i in ids)))
      for name, ids in selections.items()
    },
    'by_task': by_task,
  }


def read_texts(workdir: store.Workdir) -> dict[str, list[str]]:
  """Id -> the text of a prompt of the pool, and any answers to it.

  Those that came with the pool count too, whether or not they were bought.
  """
  pool = store.read_prompts(workdir.pool)
  texts = {
    prompt_id: [prompt_text(prompt)]
    for prompt_id, prompt in zip(pool.ids, pool.prompts, strict=True)
  }
  for file in (workdir.pool_responses, workdir.responses):
    for prompt_id, answer in store.read_responses(file).items():
      texts.setdefault(prompt_id, []).append(answer)
  return texts


def prompt_text(prompt: store.Prompt) -> str:
  """The text of a prompt, of all turns of a conversation."""
  if isinstance(prompt, str):
    return prompt
  return '\n'.join(turn['content'] for turn in prompt)
