"""Splits prompts that are conversations written as text with role markers.

Alpaca    ### Instruction: ... ### Input: ... ### Response: ...
Guanaco   ### Human: ... ### Assistant: ...
ChatML    <|im_start|>user ... <|im_end|> <|im_start|>assistant ...
Llama 3   <|start_header_id|>user<|end_header_id|> ... <|eot_id|>
Zephyr    <|user|> ... <|assistant|> ...
Gemma     <start_of_turn>user ... <end_of_turn> <start_of_turn>model ...
questions ### Question: ... ### Answer: ...
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
  'model': 'assistant',
  'question': 'user',
  'q': 'user',
  'answer': 'assistant',
  'a': 'assistant',
}


@dataclasses.dataclass(frozen=True)
class Form:
  """A way to write a conversation as text.

  Attributes:
    name: its name, for messages.
    marker: matches the beginning of a turn; its only group is the role.
    needs: substrings; a conversation in this form contains at least one.
    end: matches the end of a turn or of the conversation, to be removed.
  """

  name: str
  marker: re.Pattern[str]
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
    'Gemma',
    re.compile(r'<start_of_turn>(user|model)\n?'),
    ('<start_of_turn>model',),
    re.compile(r'<end_of_turn>|</?bos>|<eos>'),
  ),
  Form(
    'question and answer',
    re.compile(r'^### ?(Question|Answer|System): ?', re.M),
    ('### Answer:', '###Answer:'),
    re.compile(r'</s>|<\|endoftext\|>'),
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
# Prompts in this form are common, and usually end before the answer.
_QUESTIONS = Form(
  'question and answer',
  re.compile(r'^(Question|Answer|Q|A): ?', re.M),
  ('\nAnswer:', '\nA:'),
)
# Each form has one of these characters; most prompts have none.
_BEGINNINGS = frozenset(need[0] for form in FORMS for need in form.needs)
# Number of prompts to detect the form from.
_SAMPLE_SIZE = 2000
_SYSTEM_2 = re.compile(r'\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*', re.S)


def find_form(texts: Iterable[str]) -> Form | None:
  """The form of more than half of the texts, or None."""
  sample = list(itertools.islice(texts, _SAMPLE_SIZE))
  for form in FORMS:
    if sum(is_in(text, form) for text in sample) * 2 > len(sample):
      return form
  return None


def is_in(text: str, form: Form) -> bool:
  """Whether a text has markers of a user and of an assistant."""
  if not any(need in text for need in form.needs):
    return False
  roles = {_role(match) for match in form.marker.finditer(text)}
  return {'user', 'assistant'} <= roles


def is_in_any(text: str) -> bool:
  """Whether a text has markers of some form."""
  return any(c in text for c in _BEGINNINGS) and any(
    is_in(text, form) for form in FORMS
  )


def answered_form(text: str, with_questions: bool) -> Form | None:
  """The form in which a text ends with an answer, or None.

  Args:
    text: a prompt.
    with_questions: whether "Question: ... Answer: ..." is a form, too.
  """
  if not any(c in text for c in _BEGINNINGS):
    return None
  for form in (*FORMS, *([_QUESTIONS] if with_questions else [])):
    if is_in(text, form):
      last = parse(text, form)[-1]
      if last['role'] == 'assistant' and last['content']:
        return form
  return None


def parse(text: str, form: Form) -> list[dict[str, Any]]:
  """Splits a text into turns; text before the first marker is a system turn.

  If the answer is missing, the last turn is the assistant's, without text.
  """
  matches = list(form.marker.finditer(text))
  ends = [match.start() for match in matches[1:]] + [len(text)]
  turns = [{'role': 'system', 'content': text[: matches[0].start()]}]
  for match, end in zip(matches, ends, strict=True):
    turns.append({'role': _role(match), 'content': text[match.end() : end]})
  for turn in turns:
    turn['content'] = form.end.sub('', turn['content']).strip()
  if form.name == 'Llama 2':
    turns = list(itertools.chain.from_iterable(map(_llama2, turns)))
  return list(_joined(turns))


def _role(match: re.Match[str]) -> str:
  return _ROLE_OF[match[1].casefold()]


def _llama2(turn: dict[str, Any]) -> list[dict[str, Any]]:
  """Splits the system text off the first user turn."""
  match = _SYSTEM_2.match(turn['content'])
  if match is None:
    return [turn]
  rest = turn['content'][match.end() :]
  return [{'role': 'system', 'content': match[1]}, {**turn, 'content': rest}]


def _joined(turns: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
  """Joins consecutive turns of one role, and drops empty ones."""
  for role, group in itertools.groupby(turns, key=lambda turn: turn['role']):
    contents = [turn['content'] for turn in group if turn['content']]
    if contents or role == 'assistant':
      yield {'role': role, 'content': '\n\n'.join(contents)}
