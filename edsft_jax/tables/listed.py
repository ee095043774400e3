"""Lists in a cell, as Python and numpy print them."""

import ast
import io
import re
import tokenize
from typing import Any


def parse(text: str) -> list[Any]:
  """Parses a flat list of texts and numbers, also "['a' None]" from arrays.

  Raises:
    ValueError: it is something else.
  """
  inner = re.fullmatch(r'\[(.*)\]', text.strip(), re.DOTALL)
  if inner is None:
    raise ValueError('not in brackets')
  values: list[Any] = []
  try:
    # In brackets, so that line ends between the values mean nothing.
    lines = io.StringIO(f'[{inner[1]}]').readline
    for token in list(tokenize.generate_tokens(lines))[1:]:
      if token.type in (tokenize.STRING, tokenize.NUMBER):
        values.append(ast.literal_eval(token.string))
      elif token.string in ('None', 'nan', 'null'):
        values.append(None)
      elif token.string.strip() not in ('', ',', ']'):
        raise ValueError(f'{token.string!r} is neither text nor a number')
  except (SyntaxError, tokenize.TokenError) as error:
    raise ValueError(str(error)) from None
  return values
