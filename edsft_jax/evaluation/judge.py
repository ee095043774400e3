"""Judges one model's outputs against another's, through a server.

    python -m edsft_jax.evaluation.judge --outputs=model.json \
        --reference=reference.json --base_url=http://localhost:8000/v1 \
        --model=NAME --folder=judged

Both files are in AlpacaEval's form: a JSON list of objects with instruction,
output and generator, joined by the instruction's text. Prints raw and
length-controlled win rates; --folder keeps annotations.json and the judge's
answers, so that a second run asks only for what failed.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib
import sys
from typing import Any

from absl import app, flags

from edsft_jax import console, errors, store
from edsft_jax.evaluation import win_rate
from edsft_jax.evaluation.endpoint import Endpoint, Failed

PROMPT = """Two assistants, "m" and "M", were given the same instruction.

# Instruction
{instruction}

# Output of "m"
{output_1}

# Output of "M"
{output_2}

Which output would most people prefer? Answer with m or M and nothing else."""


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two outputs for an instruction."""

  instruction: str
  reference: str
  output: str


@dataclasses.dataclass
class Judged:
  """What a judge said about all pairs.

  Attributes:
    preferences: for each pair in [1, 2], 2 if the model's output is better;
      None if the judge failed.
    num_consistent: of the pairs judged in both orders, how many got the same
      winner.
    num_both: pairs judged in both orders.
    from_text: whether the server gives no log-probabilities, so that the
      preferences are the judge's words alone.
  """

  preferences: list[float | None]
  num_consistent: int = 0
  num_both: int = 0
  from_text: bool = False


def pairs(
  outputs: Sequence[Mapping[str, Any]],
  reference: Sequence[Mapping[str, Any]],
) -> list[Pair]:
  """Joins two files by the text of their instructions.

  Raises:
    InputError: an instruction is missing in one of them or occurs twice.
  """
  found = [_by_instruction(outputs, 'outputs')]
  found.append(_by_instruction(reference, 'reference'))
  for one, other, name in (
    (found[0], found[1], 'reference'),
    (found[1], found[0], 'outputs'),
  ):
    for instruction in one:
      if instruction not in other:
        raise errors.InputError(
          f'--{name} has no output for the instruction {instruction[:60]!r}: '
          'both files must have the same instructions'
        )
  return [Pair(i, found[1][i], output) for i, output in found[0].items()]


def _by_instruction(
  rows: Sequence[Mapping[str, Any]], name: str
) -> dict[str, str]:
  result: dict[str, str] = {}
  for number, row in enumerate(rows):
    for field in ('instruction', 'output'):
      if not isinstance(row, Mapping) or not isinstance(row.get(field), str):
        raise errors.InputError(
          f'--{name}, entry {number} has no text in {field!r}: write a list of '
          'objects with instruction, output and generator'
        )
    if row['instruction'] in result:
      raise errors.InputError(
        f'--{name} has the instruction {row["instruction"][:60]!r} twice'
      )
    result[row['instruction']] = row['output']
  return result


class Judge:
  """Asks an endpoint, and remembers its answers by their content."""

  def __init__(
    self, endpoint: Endpoint, cache: pathlib.Path | None, prompt: str = PROMPT
  ):
    """Reads the cache.

    Args:
      endpoint: the judge.
      cache: a JSON-lines file of earlier answers; None for none. Failures are
        never written to it.
      prompt: text with {instruction}, {output_1} and {output_2}.
    """
    self._endpoint = endpoint
    self._cache = cache
    self._prompt = prompt
    self.from_text = False
    self._known: dict[str, float] = {}
    if cache is not None and cache.exists():
      self._known = {
        row['key']: row['preference'] for row in store.read_jsonl(cache)
      }

  def __call__(
    self, items: Sequence[Pair], seed: int = 0, both_orders: bool = False
  ) -> Judged:
    """Judges pairs; those that fail have no preference.

    Args:
      items: the pairs.
      seed: decides which output is shown first.
      both_orders: judge each pair twice, and average.
    """
    result = Judged([])
    for pair in items:
      switched = win_rate.is_switched(pair.instruction, seed)
      found = [self._preference(pair, switched)]
      if both_orders:
        found.append(self._preference(pair, not switched))
        if None not in found:
          result.num_both += 1
          above = [x > 1.5 for x in found if x is not None]
          result.num_consistent += above[0] == above[1]
      known = [x for x in found if x is not None]
      complete = len(known) == len(found)
      result.preferences.append(sum(known) / len(known) if complete else None)
    result.from_text = self.from_text
    return result

  def _preference(self, pair: Pair, switched: bool) -> float | None:
    """The preference for the model's output, in [1, 2]."""
    if pair.output == pair.reference:
      return 1.5
    shown = (pair.reference, pair.output)
    first, second = shown[::-1] if switched else shown
    text = self._prompt.format(
      instruction=pair.instruction, output_1=first, output_2=second
    )
    key = hashlib.sha256(
      json.dumps([self._endpoint.model, text]).encode()
    ).hexdigest()
    if key not in self._known:
      found = self._ask(text)
      if found is None:
        return None
      self._known[key] = found
      self._remember(key, found)
    found = self._known[key]
    return 3 - found if switched else found

  def _ask(self, text: str) -> float | None:
    """The preference for the second output that is shown."""
    try:
      answer, log_probs = self._endpoint.first_token(
        [{'role': 'user', 'content': text}]
      )
    except Failed:
      return None
    if log_probs is not None:
      return win_rate.preference(log_probs)
    self.from_text = True
    named = answer.strip()
    if named not in (win_rate.FIRST, win_rate.SECOND):
      return None
    return 2.0 if named == win_rate.SECOND else 1.0

  def _remember(self, key: str, found: float) -> None:
    if self._cache is not None:
      self._cache.parent.mkdir(parents=True, exist_ok=True)
      with self._cache.open('a', encoding='utf-8') as f:
        f.write(f'{json.dumps({"key": key, "preference": found})}\n')


def summary(items: Sequence[Pair], judged: Judged) -> Iterator[str]:
  """Lines with the win rates and what failed.

  Raises:
    InputError: no pair was judged.
  """
  done = [
    (found, len(pair.output) - len(pair.reference))
    for pair, found in zip(items, judged.preferences, strict=True)
    if found is not None
  ]
  failed = len(items) - len(done)
  if not done:
    raise errors.InputError(
      f'the judge failed on all of {len(items)} pairs: check its server'
    )
  rate, error = win_rate.win_rate([found for found, _ in done])
  controlled = win_rate.length_controlled(
    [found for found, _ in done], [length for _, length in done]
  )
  spread = '' if error is None else f' (standard error {error:.2f})'
  yield f'win rate {rate:.2f}{spread}, length-controlled {controlled:.2f}'
  yield (
    f'{console.count(len(done), "pair")} judged, {failed:,} failed: run the '
    'command again to ask for these'
    if failed
    else f'{console.count(len(done), "pair")} judged, none failed'
  )
  if judged.num_both:
    yield (
      f'the same winner in both orders for {judged.num_consistent:,} of '
      f'{judged.num_both:,} pairs'
    )
  if judged.from_text:
    yield (
      'the server gives no log-probabilities: preferences are 1 or 2, by the '
      "judge's word"
    )


_OUTPUTS = flags.DEFINE_string(
  'outputs', None, "The model's outputs.", required=True
)
_REFERENCE = flags.DEFINE_string(
  'reference', None, 'Outputs to compare with.', required=True
)
_BASE_URL = flags.DEFINE_string(
  'base_url', None, 'The server, up to /v1.', required=True
)
_MODEL = flags.DEFINE_string(
  'model', None, "The judge's name on the server.", required=True
)
_FOLDER = flags.DEFINE_string(
  'folder', None, 'Where results are kept.', required=True
)
_SEED = flags.DEFINE_integer('seed', 0, 'Decides which output comes first.')
_BOTH = flags.DEFINE_bool('both_orders', False, 'Judge each pair twice.')


def main(argv: Sequence[str]) -> None:
  """Judges, prints the win rates and writes annotations.json."""
  try:
    items = pairs(_read(_OUTPUTS.value), _read(_REFERENCE.value))
    folder = pathlib.Path(_FOLDER.value)
    endpoint = Endpoint(_BASE_URL.value, _MODEL.value)
    judged = Judge(endpoint, folder / 'answers.jsonl')(
      items, _SEED.value, _BOTH.value
    )
    store.write_json(
      folder / 'annotations.json',
      [
        {
          'instruction': pair.instruction,
          'output_1': pair.reference,
          'output_2': pair.output,
          'annotator': endpoint.model,
          'preference': found,
        }
        for pair, found in zip(items, judged.preferences, strict=True)
      ],
    )
    for line in summary(items, judged):
      print(line)
    print(
      f'{endpoint.num_attempts:,} requests, {endpoint.num_tokens:,} tokens '
      f'-> {folder}'
    )
  except errors.InputError as error:
    sys.exit(f'error: {error}')


def _read(path: str) -> Any:
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.InputError(f'{path} cannot be read ({error})') from None


if __name__ == '__main__':
  app.run(main)
