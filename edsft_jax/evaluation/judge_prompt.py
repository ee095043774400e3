"""The question that a judge is asked about two outputs."""

from collections.abc import Sequence
import pathlib
import re

from edsft_jax import errors, store

_DEFAULT = """Two assistants, "m" and "M", were given the same instruction.

# Instruction
{instruction}

# Output of "m"
{output_1}

# Output of "M"
{output_2}

Which output would most people prefer? Answer with m or M and nothing else."""

_FIELDS = ('instruction', 'output_1', 'output_2')
_FIELD = re.compile(r'\{(instruction|output_1|output_2)\}')
_START, _END = '<|im_start|>', '<|im_end|>'


class JudgePrompt:
  """A question with places for an instruction and two outputs.

  Attributes:
    text: the template.
  """

  def __init__(self, text: str = _DEFAULT, place: str = 'the prompt'):
    """Parses a template.

    Args:
      text: with {instruction}, {output_1} and {output_2}, each once. The
        outputs are called m and M. In ChatML (<|im_start|>system ...), as
        AlpacaEval's own files are, it may have several turns.
      place: what messages call it.

    Raises:
      InputError: it lacks a place.
    """
    if sorted(_FIELD.findall(text)) != sorted(_FIELDS):
      places = ', '.join(f'{{{name}}}' for name in _FIELDS)
      raise errors.InputError(f'{place} must have {places}, each once')
    self.text = text
    self._turns = _turns(text)

  @classmethod
  def read(
    cls, path: str, option: str = 'evaluation.alpaca_eval.prompt_path'
  ) -> 'JudgePrompt':
    """Reads a template from a file.

    Args:
      path: the file; '' for the default template.
      option: where the path was given, for messages.

    Raises:
      InputError: it cannot be read or lacks a place.
    """
    if not path:
      return cls()
    place = f'{option}={path}'
    try:
      return cls(pathlib.Path(path).read_text(encoding='utf-8'), place)
    except (OSError, UnicodeDecodeError) as error:
      raise errors.InputError(f'{place} cannot be read ({error})') from None

  def messages(
    self, instruction: str, first: str, second: str
  ) -> list[store.Message]:
    """The turns of the question about two outputs."""
    values = dict(zip(_FIELDS, (instruction, first, second), strict=True))
    return [
      {
        'role': role,
        # In one pass: outputs may contain such places themselves.
        'content': _FIELD.sub(lambda match: values[match[1]], content),
      }
      for role, content in self._turns
    ]


def _turns(text: str) -> Sequence[tuple[str, str]]:
  """Role and content of each turn; text that is not ChatML is one user turn."""
  if not text.lstrip().startswith(_START):
    return [('user', text)]
  turns = []
  for part in text.split(_START)[1:]:
    role, _, content = part.partition('\n')
    turns.append((role.strip(), content.split(_END)[0].strip()))
  return turns
