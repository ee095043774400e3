"""Pairs of outputs to judge, and AlpacaEval's files of outputs and annotations.

Outputs are a JSON list of objects with instruction, output, generator and, if
known, dataset. Annotations add what a judge preferred.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

from edsft_jax import errors, store


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two outputs for an instruction."""

  instruction: str
  reference: str
  output: str

  @property
  def is_tie(self) -> bool:
    """Whether the outputs are equal, so that nobody has to be asked."""
    return self.output == self.reference


def read_list(path: pathlib.Path, option: str) -> list[Any]:
  """Reads a JSON list.

  Raises:
    InputError: naming the option.
  """
  try:
    rows = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.InputError(
      f'{option}: {path} cannot be read ({error}): give a JSON list'
    ) from None
  if not isinstance(rows, list):
    raise errors.InputError(f'{option}: {path} is not a JSON list')
  return rows


def read_outputs(path: pathlib.Path, option: str) -> dict[str, str]:
  """Instruction -> output of a file in AlpacaEval's form.

  Raises:
    InputError: naming the option and the entry.
  """
  return by_instruction(read_list(path, option), f'{option}: {path}')


def by_instruction(
  rows: Sequence[Mapping[str, Any]], place: str
) -> dict[str, str]:
  """Instruction -> output.

  Raises:
    InputError: an entry lacks a field, or repeats an instruction.
  """
  result: dict[str, str] = {}
  for number, row in enumerate(rows):
    for field in ('instruction', 'output'):
      if not isinstance(row, Mapping) or not isinstance(row.get(field), str):
        raise errors.InputError(
          f'{place}, entry {number} has no text in {field!r}: write a list of '
          'objects with instruction, output and generator'
        )
      if not store.is_unicode(row[field]):
        raise errors.InputError(
          f'{place}, entry {number} has half of a surrogate pair in {field!r}, '
          'which is not Unicode: fix the text'
        )
    if row['instruction'] in result:
      raise errors.InputError(
        f'{place} has the instruction {_shortened(row["instruction"])} twice'
      )
    result[row['instruction']] = row['output']
  return result


def join(
  outputs: Mapping[str, str],
  reference: Mapping[str, str],
  names: tuple[str, str] = ('--outputs', '--reference'),
) -> list[Pair]:
  """Joins outputs by the text of their instructions, in the first one's order.

  Args:
    outputs: instruction -> the model's output.
    reference: instruction -> the output to compare with.
    names: what messages call the two.

  Raises:
    InputError: an instruction is missing in the reference.
  """
  for instruction in outputs:
    if instruction not in reference:
      raise errors.InputError(
        f'{names[1]} has no output for the instruction '
        f'{_shortened(instruction)}, which {names[0]} has: instructions are '
        'compared as they are, character by character'
      )
  return [Pair(i, reference[i], output) for i, output in outputs.items()]


def annotations(
  pairs: Iterable[Pair],
  preferences: Iterable[float | None],
  *,
  generators: tuple[str, str],
  annotator: str,
) -> list[dict[str, Any]]:
  """Rows of AlpacaEval's annotations.json.

  Args:
    pairs: the pairs.
    preferences: in [1, 2]; None where the judge failed.
    generators: names of the reference and of the model.
    annotator: name of the judge.
  """
  return [
    {
      'instruction': pair.instruction,
      'output_1': pair.reference,
      'generator_1': generators[0],
      'output_2': pair.output,
      'generator_2': generators[1],
      'annotator': annotator,
      'preference': preference,
    }
    for pair, preference in zip(pairs, preferences, strict=True)
  ]


def read_annotations(
  path: pathlib.Path, pairs: Sequence[Pair], option: str
) -> tuple[list[float | None], str]:
  """Preferences in an annotations.json, ours or one that alpaca_eval wrote.

  Args:
    path: the file.
    pairs: the pairs that it should be about.
    option: the option that names it, for messages.

  Returns:
    The preference for each pair, None where the annotator failed or was not
    asked, and the annotator's name.

  Raises:
    InputError: the file is damaged, or about other outputs.
  """
  known: dict[str, Mapping[str, Any]] = {}
  names = set()
  for number, row in enumerate(read_list(path, option)):
    for field in ('instruction', 'output_1', 'output_2'):
      if not isinstance(row, Mapping) or not isinstance(row.get(field), str):
        raise errors.InputError(
          f'{option}: {path}, entry {number} has no text in {field!r}'
        )
    if row['instruction'] in known:
      raise errors.InputError(
        f'{option}: {path} has two annotations of the instruction '
        f'{_shortened(row["instruction"])}: keep those of one annotator'
      )
    known[row['instruction']] = row
    names.add(str(row.get('annotator')))
  preferences: list[float | None] = []
  for pair in pairs:
    row = known.get(pair.instruction, {})
    if row and (row['output_1'], row['output_2']) != (
      pair.reference,
      pair.output,
    ):
      raise errors.InputError(
        f'{option}: {path} is about other outputs for the instruction '
        f'{_shortened(pair.instruction)}: annotate these again, with the '
        'reference as output_1'
      )
    preferences.append(_preference(row.get('preference'), path))
  return preferences, ' and '.join(sorted(names))


def _preference(value: Any, path: pathlib.Path) -> float | None:
  """A preference in [1, 2]; alpaca_eval writes failures as null or NaN."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  # Older versions write 0 for a tie.
  if is_number and value == 0:
    return 1.5
  if not is_number or not 1 <= value <= 2:
    raise errors.InputError(
      f'{path} has the preference {value!r}: give numbers from 1 (output_1 is '
      'better) to 2 (output_2 is)'
    )
  return float(value)


def _shortened(text: str) -> str:
  return repr(text if len(text) <= 60 else f'{text[:60]} ...')
