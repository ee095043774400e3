"""Shows the first prompts as the model will see them, before any work.

What is printed is decoded from the very tokens that scoring and finetuning
use, special tokens and all: a doubled BOS, a missing generation prompt or an
answer in the wrong place is seen here.
"""

import functools

import ml_collections

from edsft_jax import console, errors, models, store
from edsft_jax.models import responses

NUM_PROMPTS = 3
# Around what finetuning supervises.
MARKS = ('\u27e6', '\u27e7')
_NO_ANSWER = '(the answer)'


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Refuses an unusable model or template, and a missing pool.

  The options of scoring and finetuning are for these stages to check: the
  pipeline has them do it first.

  Raises:
    InputError: naming the option or the file.
  """
  path = models.resolve(config.model.path)
  models.check(path)
  models.load_prompt_format(path, **config.prompt)
  store.require(workdir.pool, 'pool', planned)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Prints the first prompts of the pool, for scoring and for finetuning.

  Where no answer is known, a stand-in takes its place.

  Raises:
    InputError: the template refuses a prompt, or leaves nothing of an answer
      to be supervised.
  """
  path = models.resolve(config.model.path)
  prompt_format = models.load_prompt_format(
    path, **config.prompt, log=functools.partial(console.say, 'preview')
  )
  context = models.read_config(path).context
  pool = store.read_prompts(workdir.pool)
  answers = _answers(workdir)
  for prompt_id, prompt in zip(
    pool.ids[:NUM_PROMPTS], pool.prompts[:NUM_PROMPTS], strict=True
  ):
    with errors.of_prompt(prompt_id):
      ids, truncated = prompt_format.encode_prompt(
        prompt, context - config.scoring.max_new_tokens, for_response=False
      )
      example = responses.encode(
        prompt_format,
        prompt,
        answers.get(prompt_id, _NO_ANSWER),
        config.finetuning.max_length or context,
      )
    notes = ['truncated'] if truncated else []
    _show(
      f'prompt {prompt_id} for scoring: {len(ids)} tokens',
      notes,
      prompt_format.decode(ids, special=True),
    )
    notes = ['prompt truncated'] if example.prompt_truncated else []
    notes += ['answer cut'] if example.response_cut else []
    notes += [] if prompt_id in answers else ['no answer yet']
    _show(
      f'prompt {prompt_id} for finetuning: {len(example.tokens)} tokens, '
      f'{example.num_response} supervised between {" and ".join(MARKS)}',
      notes,
      marked(prompt_format, example),
    )


def _show(head: str, notes: list[str], text: str) -> None:
  console.say('preview', ', '.join([head, *notes]))
  print(text, end='\n\n')


def marked(
  prompt_format: models.PromptFormat, example: responses.Example
) -> str:
  """Text of all its tokens, the supervised ones between MARKS."""
  first = len(example.tokens) - example.num_response
  before, supervised = example.tokens[:first], example.tokens[first:]
  return (
    prompt_format.decode(before, special=True)
    + MARKS[0]
    + prompt_format.decode(supervised, special=True)
    + MARKS[1]
  )


def _answers(workdir: store.Workdir) -> dict[str, str]:
  """The answers that are known: people's, and those that came with the pool."""
  answers: dict[str, str] = {}
  for path in (workdir.pool_responses, workdir.responses):
    if path.exists():
      answers |= store.read_responses(path)
  return answers
