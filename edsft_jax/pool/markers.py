"""Prompts written out with the marks of roles, with or without their answer.

Alpaca    ### Instruction: ... ### Input: ... ### Response: ...
Guanaco   ### Human: ... ### Assistant: ...
ChatML    <|im_start|>user ... <|im_end|> <|im_start|>assistant ...
Llama 3   <|start_header_id|>user<|end_header_id|> ... <|eot_id|>
Zephyr    <|user|> ... <|assistant|> ...
Llama 2   [INST] ... [/INST] ...
dialogue  Human: ... Assistant: ...      at the beginning of a line
"""

from collections.abc import Iterable
import dataclasses
import itertools
import re
from typing import Any

_ROLE_OF = {
  'instruction': 'user',
  'input': 'user',
  'human': 'user',
  'user': 'user',
  'inst': 'user',
  'system': 'system',
  'tool': 'tool',
  'ipython': 'tool',
  'response': 'assistant',
  'output': 'assistant',
  'assistant': 'assistant',
  'gpt': 'assistant',
  'ai': 'assistant',
  '/inst': 'assistant',
}


@dataclasses.dataclass(frozen=True)
class Form:
  """A way to write a conversation as text.

  Attributes:
    name: for messages.
    mark: matches where a turn begins; its one group is the role's name.
    needs: texts of which a written conversation has at least one.
    end: matches what closes a turn or the whole, and is none of its text.
  """

  name: str
  mark: re.Pattern[str]
  needs: tuple[str, ...]
  end: re.Pattern[str] = re.compile(r'(?!)')


FORMS = (
  Form(
    'Alpaca',
    re.compile(r'^### ?(Instruction|Input|Response|Output|System): ?', re.M),
    ('### Response:', '###Response:', '### Output:', '###Output:'),
    re.compile(r'</s>|<\|endoftext\|>'),
  ),
  Form(
    'Guanaco',
    re.compile(r'### ?(Human|User|Assistant|GPT|AI|System): ?'),
    ('### Assistant:', '###Assistant:', '### GPT:', '### AI:'),
    re.compile(r'</s>|<\|endoftext\|>'),
  ),
  Form(
    'ChatML',
    re.compile(r'<\|im_start\|>(system|user|assistant|tool)\n'),
    ('<|im_start|>assistant',),
    re.compile(r'<\|im_end\|>|<\|endoftext\|>'),
  ),
  Form(
    'Llama 3',
    re.compile(
      r'<\|start_header_id\|>(system|user|assistant|ipython)'
      r'<\|end_header_id\|>\n*'
    ),
    ('<|start_header_id|>assistant',),
    re.compile(r'<\|eot_id\|>|<\|begin_of_text\|>|<\|end_of_text\|>'),
  ),
  Form(
    'Zephyr',
    re.compile(r'<\|(system|user|assistant)\|>\n?'),
    ('<|assistant|>',),
    re.compile(r'</s>|<\|endoftext\|>|<\|end\|>'),
  ),
  Form(
    'Llama 2',
    re.compile(r'\[(INST|/INST)\] ?'),
    ('[/INST]',),
    re.compile(r'</?s>'),
  ),
  Form(
    'dialogue',
    re.compile(r'^(Human|User|HUMAN|USER|Assistant|ASSISTANT|AI): ?', re.M),
    ('\nAssistant:', '\nASSISTANT:', '\nAI:'),
    re.compile(r'</s>|<\|endoftext\|>'),
  ),
)
# Of prompts read to tell what form they have.
_LOOKED_AT = 2000
_SYSTEM_2 = re.compile(r'\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*', re.S)


def find_form(texts: Iterable[str]) -> Form | None:
  """The form that more than half of the texts are written in, or None."""
  looked_at = list(itertools.islice(texts, _LOOKED_AT))
  for form in FORMS:
    if sum(is_in(text, form) for text in looked_at) * 2 > len(looked_at):
      return form
  return None


def is_in(text: str, form: Form) -> bool:
  """Whether a text has a user's and an assistant's mark of the form."""
  if not any(need in text for need in form.needs):
    return False
  roles = {_role(match) for match in form.mark.finditer(text)}
  return {'user', 'assistant'} <= roles


def parse(text: str, form: Form) -> list[dict[str, Any]]:
  """The turns of a written conversation; what stands before them is a system's.

  An assistant's last turn without text is where the answer is to stand.
  """
  marks = list(form.mark.finditer(text))
  ends = [match.start() for match in marks[1:]] + [len(text)]
  turns = [{'role': 'system', 'content': text[: marks[0].start()]}]
  for match, end in zip(marks, ends, strict=True):
    turns.append({'role': _role(match), 'content': text[match.end() : end]})
  for turn in turns:
    turn['content'] = form.end.sub('', turn['content']).strip()
  if form.name == 'Llama 2':
    turns = list(itertools.chain.from_iterable(map(_llama2, turns)))
  return list(_joined(turns))


def _role(mark: re.Match[str]) -> str:
  return _ROLE_OF[mark[1].casefold()]


def _llama2(turn: dict[str, Any]) -> list[dict[str, Any]]:
  """Takes the system's text out of the first user turn."""
  match = _SYSTEM_2.match(turn['content'])
  if match is None:
    return [turn]
  rest = turn['content'][match.end() :]
  return [{'role': 'system', 'content': match[1]}, {**turn, 'content': rest}]


def _joined(turns: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
  """Puts an instruction and its input into one turn, and leaves out blanks."""
  for role, group in itertools.groupby(turns, key=lambda turn: turn['role']):
    contents = [turn['content'] for turn in group if turn['content']]
    if contents or role == 'assistant':
      yield {'role': role, 'content': '\n\n'.join(contents)}
