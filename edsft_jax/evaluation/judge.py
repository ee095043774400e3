"""Judges one model's outputs against another's.

    python -m edsft_jax.evaluation.judge --outputs=model.json \
        --reference=reference.json --folder=judged \
        --base_url=http://localhost:8000/v1 --model=NAME

or, in place of the last two, --judge=HF_DIR, a model of your own.

Both files are in AlpacaEval's form: a JSON list of objects with instruction,
output and generator, joined by the instruction's text. Prints raw and
length-controlled win rates; --folder keeps annotations.json and the judge's
answers, so that a second run asks only for what failed.
"""

from collections.abc import Iterator, Sequence
import pathlib
import sys
from typing import Any

from absl import app, flags

from edsft_jax import console, errors, store
from edsft_jax import mesh as mesh_lib
from edsft_jax.evaluation import pairs as pairs_lib
from edsft_jax.evaluation import verdicts as verdicts_lib
from edsft_jax.evaluation import win_rate
from edsft_jax.evaluation.endpoint import Endpoint
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.judges import EndpointJudge, Judge, ModelJudge
from edsft_jax.evaluation.pairs import Pair
from edsft_jax.evaluation.verdicts import Verdict

# Tokens per batch of a model directory, padding included.
_BATCH_TOKENS = 8192


def summary(
  pairs: Sequence[Pair], verdicts: Sequence[Verdict]
) -> Iterator[str]:
  """Lines with the win rates and what failed.

  Raises:
    InputError: no pair was judged.
  """
  done = [
    (verdict.preference, pair)
    for pair, verdict in zip(pairs, verdicts, strict=True)
    if verdict.preference is not None
  ]
  if not done:
    raise errors.InputError(
      f'the judge failed on all of {console.count(len(pairs), "pair")}: '
      f'{verdicts_lib.failures(verdicts)}'
    )
  rate, error = win_rate.win_rate([preference for preference, _ in done])
  controlled, its_error = win_rate.mean_and_error(
    win_rate.length_controlled(
      [preference for preference, _ in done],
      [len(pair.output) for _, pair in done],
      [len(pair.reference) for _, pair in done],
    )
  )
  yield (
    f'win rate {rate:.2f}{_spread(error)}, length-controlled '
    f'{controlled:.2f}{_spread(its_error)}'
  )
  result = 'none failed'
  if failed := len(pairs) - len(done):
    reasons = verdicts_lib.failures(verdicts)
    result = f'{failed:,} failed ({reasons}): run the command again for these'
  yield f'{console.count(len(done), "pair")} judged, {result}'
  if both := [v.consistent for v in verdicts if v.consistent is not None]:
    yield verdicts_lib.agreement(sum(both), len(both))


def _spread(error: float | None) -> str:
  return '' if error is None else f' (standard error {error:.2f})'


_OUTPUTS = flags.DEFINE_string(
  'outputs', None, "The model's outputs.", required=True
)
_REFERENCE = flags.DEFINE_string(
  'reference', None, 'Outputs to compare with.', required=True
)
_FOLDER = flags.DEFINE_string(
  'folder', None, 'Where results are kept.', required=True
)
_JUDGE = flags.DEFINE_string(
  'judge', 'endpoint', "A model directory, or 'endpoint'."
)
_BASE_URL = flags.DEFINE_string('base_url', '', 'The server, up to /v1.')
_MODEL = flags.DEFINE_string('model', '', "The judge's name on the server.")
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'For a model directory.')
_PROMPT = flags.DEFINE_string('prompt', '', "A file with the judge's prompt.")
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Decides which output comes first, if only one order is asked.'
)
_BOTH = flags.DEFINE_bool('both_orders', True, 'Judge each pair twice.')


def main(argv: Sequence[str]) -> None:
  """Judges, prints the win rates and writes annotations.json."""
  try:
    rows = {
      f'--{name}': pairs_lib.read_list(pathlib.Path(path), f'--{name}')
      for name, path in (
        ('outputs', _OUTPUTS.value),
        ('reference', _REFERENCE.value),
      )
    }
    outputs, reference = (
      pairs_lib.by_instruction(some, name) for name, some in rows.items()
    )
    pairs = pairs_lib.join(outputs, reference)
    prompt = JudgePrompt.read(_PROMPT.value, '--prompt')
    folder = pathlib.Path(_FOLDER.value)
    judge = _judge(prompt)
    with console.bar('judge', None, 'answers') as bar:
      verdicts = verdicts_lib.judge_pairs(
        judge,
        prompt,
        pairs,
        verdicts_lib.Answers(folder / 'answers.jsonl'),
        seed=_SEED.value,
        both_orders=_BOTH.value,
        progress=bar.update,
      )
    names = [_generator(some) for some in rows.values()]
    store.write_json(
      folder / 'annotations.json',
      pairs_lib.annotations(
        pairs,
        [verdict.preference for verdict in verdicts],
        generators=(names[1], names[0]),
        annotator=judge.name,
      ),
    )
    for line in summary(pairs, verdicts):
      print(line)
    tokens = sum(verdict.num_tokens for verdict in verdicts)
    print(f'preferences are {judge.note}; {tokens:,} tokens -> {folder}')
  except errors.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


def _judge(prompt: JudgePrompt) -> Judge:
  if _JUDGE.value != 'endpoint':
    return ModelJudge(
      _JUDGE.value, _DTYPE.value, mesh_lib.make_mesh(), _BATCH_TOKENS
    )
  if not _BASE_URL.value or not _MODEL.value:
    raise errors.InputError(
      'name a server by --base_url and --model, or a model directory by --judge'
    )
  return EndpointJudge(Endpoint(_BASE_URL.value, _MODEL.value), prompt)


def _generator(rows: Sequence[Any]) -> str:
  return str(rows[0].get('generator', '')) if rows else ''


if __name__ == '__main__':
  app.run(main)
