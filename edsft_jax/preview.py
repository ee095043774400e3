"""Shows the first prompts as the model will see them, before any work.

The first ones of the pool, or, once they are selected, of a strategy.

The text is decoded from the tokens that scoring and finetuning use, special
tokens included, so a doubled BOS, a missing generation prompt or a misplaced
answer shows up here.
"""

import functools

import ml_collections

from edsft_jax import console, errors, models, store, study
from edsft_jax.models import responses
from edsft_jax.strategies import registry

NUM_PROMPTS = 3
# Printed around the supervised tokens.
MARKS = ('\u27e6', '\u27e7')
_NO_ANSWER = '(the answer)'


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects an unusable model or template, and a missing pool.

  The pipeline has the score and finetune stages check their options first.

  Raises:
    InputError: naming the option or the file.
  """
  path = models.resolve(config.model.path)
  models.check(path)
  models.load_prompt_format(path, **config.prompt)
  store.require(workdir.pool, 'pool', planned)
  if strategy := config.preview.strategy:
    study.check(config)
    if strategy not in registry.STRATEGIES:
      raise errors.unknown(
        f'preview.strategy={strategy!r}', strategy, registry.STRATEGIES
      )
    selection = workdir.selection(strategy, study.seeds(config, strategy)[0])
    store.require(selection, 'select', planned)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Prints some prompts, for scoring and for finetuning.

  A placeholder stands in for an unknown answer.

  Raises:
    InputError: the template rejects a prompt, or drops the answer, so that
      nothing would be supervised.
  """
  path = models.resolve(config.model.path)
  prompt_format = models.load_prompt_format(
    path, **config.prompt, log=functools.partial(console.say, 'preview')
  )
  context = models.read_config(path).context
  pool = store.read_prompts(workdir.pool)
  answers = store.known_answers(workdir)
  prompts = dict(zip(pool.ids, pool.prompts, strict=True))
  for prompt_id in _shown_ids(config, workdir, pool):
    prompt = prompts[prompt_id]
    answer = answers.get(prompt_id, _NO_ANSWER)
    with errors.about_prompt(prompt_id):
      ids, truncated = prompt_format.encode_prompt(
        prompt, context - config.scoring.max_new_tokens, for_response=False
      )
      example = responses.encode(
        prompt_format,
        prompt,
        answer,
        config.finetuning.max_length or context,
      )
    notes = ['truncated'] if truncated else []
    notes += _control_notes(prompt_format, prompt)
    _show(
      f'prompt {prompt_id} for scoring: {len(ids)} tokens',
      notes,
      prompt_format.decode(ids, special=True),
    )
    notes = ['prompt truncated'] if example.prompt_truncated else []
    notes += ['answer cut'] if example.response_cut else []
    notes += _control_notes(prompt_format, prompt, answer)
    notes += [] if prompt_id in answers else ['no answer yet']
    _show(
      f'prompt {prompt_id} for finetuning: {len(example.tokens)} tokens, '
      f'{example.num_response} supervised between {" and ".join(MARKS)}',
      notes,
      marked(prompt_format, example),
    )


def _shown_ids(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
) -> list[str]:
  """Ids of the first prompts of the pool, or of a strategy."""
  strategy = config.preview.strategy
  if not strategy:
    return pool.ids[:NUM_PROMPTS]
  seed = study.seeds(config, strategy)[0]
  ids = study.selected_ids(workdir, strategy, seed)[:NUM_PROMPTS]
  console.say(
    'preview',
    f'the first of {max(config.study.budgets):,} prompts chosen by {strategy} '
    f'for seed {seed}: {", ".join(ids)}',
  )
  return ids


def _control_notes(
  prompt_format: models.PromptFormat, prompt: store.Prompt, answer: str = ''
) -> list[str]:
  number = prompt_format.num_control_tokens(prompt, answer)
  if not number:
    return []
  tokens = console.count(number, 'control token')
  return [f'{tokens} {prompt_format.control_note}']


def _show(head: str, notes: list[str], text: str) -> None:
  console.say('preview', ', '.join([head, *notes]))
  print(text, end='\n\n')


def marked(
  prompt_format: models.PromptFormat, example: responses.Example
) -> str:
  """The text of all tokens, with the supervised ones between MARKS."""
  first = len(example.tokens) - example.num_response
  before, supervised = example.tokens[:first], example.tokens[first:]
  return (
    prompt_format.decode(before, special=True)
    + MARKS[0]
    + prompt_format.decode(supervised, special=True)
    + MARKS[1]
  )
