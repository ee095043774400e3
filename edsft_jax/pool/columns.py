"""Finds the role of each column.

Columns are detected by name, ignoring case. A file may contain rows of several
forms, so each row is searched in this order:

  prompt    `prompt`; a conversation in `messages`, `conversations` or
            `conversation`; `instruction` or `definition`; `question` or
            `query`; else `text`, `input` or `inputs`
  context   appended to the prompt: `context`, `passage`, `input`, `inputs`, and
            the answers to choose from in `choices` or `options`
  system    put before the prompt: `system`, `system_prompt`, and the turns in
            `history`
  response  the first of ANSWERS that has a value
  task      `task`, else `category`
  id        `id`, else `prompt_id`; else a hash of the prompt

A column named by the user is the only one for its role, but naming the detected
prompt column changes nothing. 'none' means no column.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import re

from edsft_jax import errors

NONE = 'none'
CONVERSATIONS = ('messages', 'conversations', 'conversation')
INSTRUCTIONS = ('instruction', 'instructions', 'definition')
QUESTIONS = ('question', 'query')
PROMPTS = ('prompt', *CONVERSATIONS, *INSTRUCTIONS, *QUESTIONS)
# Prompts only if a file has none of the others.
LAST_PROMPTS = ('text', 'input', 'inputs')
CHOICES = ('choices', 'options')
CONTEXTS = ('context', 'passage', 'input', 'inputs', *CHOICES)
# Columns with one choice each: A, B, ...; option_a or choice1, ...
_ONE_CHOICE = re.compile(r'((?:option|choice|opt)[ _-]?|)([A-Ja-j]|\d)', re.I)
HISTORY = 'history'
SYSTEMS = ('system', 'system_prompt', HISTORY)
ANSWERS = (
  'response',
  'completion',
  'output',
  'answer',
  'target',
  'responses',
  'completions',
  'outputs',
  'answers',
  'targets',
)
# What a chat template would need besides the prompt, and is not text.
NOT_TEXT = (
  'tools',
  'functions',
  'tool_calls',
  'image',
  'images',
  'audio',
  'video',
  'videos',
)
TASKS = ('task', 'category')
IDS = ('id', 'prompt_id')
# A column with one of these words in its name is never kept in the pool,
# whatever its values.
_ANSWER_WORDS = frozenset(
  (
    *ANSWERS,
    'ans',
    'assistant',
    'chosen',
    'conversation',
    'conversations',
    'correct',
    'expected',
    'generated',
    'generation',
    'generations',
    'gold',
    'golden',
    'label',
    'labels',
    'messages',
    'prediction',
    'reference',
    'references',
    'rejected',
    'replies',
    'reply',
    'resp',
    'result',
    'results',
    'solution',
    'solutions',
    'text',
    'truth',
  )
)
# How pandas and Arrow name a column without a name.
_UNNAMED = re.compile(r'|Unnamed: \d+(_level_\d+)?|__index_level_\d+__')


def may_be_answer(name: str) -> bool:
  """Whether a column's name suggests that it holds answers.

  Splits names into words at punctuation, digits and capitals: `Gold answer`,
  `answer_2` and `goldAnswer` all contain the word answer.
  """
  words = re.findall(r'[^\W\d_]+', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name))
  return any(word.casefold() in _ANSWER_WORDS for word in words)


def names_in(rows: Iterable[Iterable[str]]) -> list[str]:
  """The column names of rows, in order of first occurrence."""
  # Most rows have the same ones.
  distinct = dict.fromkeys(tuple(row) for row in rows)
  return list(dict.fromkeys(itertools.chain.from_iterable(distinct)))


def choice_label(name: str) -> str:
  """The label of a column with one choice: 'B' for option_b."""
  return name[-1].upper()


def is_unnamed(name: str) -> bool:
  """Whether a column has no name of its own."""
  return _UNNAMED.fullmatch(name) is not None


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of a file's columns by role, in the order in which to search a row.

  Attributes:
    prompts: text or a conversation.
    contexts: text to append to the prompt.
    choices: columns with one choice each, to append to the prompt.
    systems: text or turns to put before the prompt.
    responses: the answer.
    task: the task label; None if there is none.
    task_named: whether the user named the task column.
    id: the id; None if there is none.
    not_text: parts of a prompt that are not text.
    unnamed: number of columns without a name.
  """

  prompts: tuple[str, ...]
  contexts: tuple[str, ...] = ()
  choices: tuple[str, ...] = ()
  systems: tuple[str, ...] = ()
  responses: tuple[str, ...] = ()
  task: str | None = None
  task_named: bool = False
  id: str | None = None
  not_text: tuple[str, ...] = ()
  unnamed: int = 0

  @property
  def used(self) -> frozenset[str]:
    """The columns that have a role."""
    names = (*self.prompts, *self.contexts, *self.choices, *self.systems)
    names += (*self.responses, *self.not_text)
    return frozenset(names) | {n for n in (self.task, self.id) if n is not None}

  def __str__(self) -> str:
    def told(names: tuple[str, ...], joint: str) -> str:
      return joint.join(names) or NONE

    return (
      f'prompt {told(self.prompts, " or ")}, '
      f'context {told((*self.contexts, *self.choices), " + ")}, '
      f'system {told(self.systems, " + ")}, '
      f'response {told(self.responses, " or ")}, '
      f'task {self.task or NONE}, id {self.id or "a hash of the prompt"}'
    )


@dataclasses.dataclass(frozen=True)
class Named:
  """Columns that the user named; '' to detect one, 'none' for none."""

  prompt: str = ''
  context: str = ''
  system: str = ''
  response: str = ''
  task: str = ''
  id: str = ''


def find(
  source: str, names: Sequence[str], named: Named, optional: bool = False
) -> Columns:
  """Finds a file's columns.

  Args:
    source: the file, for messages.
    names: its columns.
    named: the columns that the user named.
    optional: detect a column if the named one does not exist.

  Raises:
    InputError: a named column does not exist or is named twice, or there is no
      prompt column.
  """
  if optional:
    there = {*names, NONE}
    named = Named(
      **{
        role: name if name in there else ''
        for role, name in dataclasses.asdict(named).items()
      }
    )
  _check_named(source, names, named)
  return _Finder(source, names, named).find()


class _Finder:
  """Gives each column at most one role."""

  def __init__(self, source: str, names: Sequence[str], named: Named):
    self._source = source
    self._names = names
    self._named = named
    self._free = [name for name in names if not is_unnamed(name)]
    for name in dataclasses.asdict(named).values():
      if name in self._free:
        self._free.remove(name)

  def find(self) -> Columns:
    """Finds the columns for all roles.

    Raises:
      InputError: the prompt column is missing.
    """
    task, id_ = self._named.task, self._named.id
    return Columns(
      # The order matters: `input` may be a prompt or a context.
      prompts=self._prompts(),
      contexts=self._role(self._named.context, CONTEXTS),
      choices=() if self._named.context else self._choices(),
      systems=self._role(self._named.system, SYSTEMS),
      responses=self._role(self._named.response, ANSWERS),
      task=next(iter(self._role(task, TASKS, most=1)), None),
      task_named=task not in ('', NONE),
      id=next(iter(self._role(id_, IDS, most=1)), None),
      not_text=self._role('', NOT_TEXT),
      unnamed=sum(map(is_unnamed, self._names)),
    )

  def _prompts(self) -> tuple[str, ...]:
    named = self._named.prompt
    self._free += [named] if named else []
    usual = self._usual(PROMPTS) or self._usual(LAST_PROMPTS)[:1]
    if named and named != next(iter(usual), None):
      usual = (named,)
    if not usual:
      raise errors.InputError(
        f'{self._source} has no column prompt, messages, instruction or '
        'question: set pool.prompt_column to one of its columns: '
        f'{", ".join(self._free)}'
      )
    self._free = [name for name in self._free if name not in usual]
    return usual

  def _choices(self) -> tuple[str, ...]:
    """The largest set of columns with one choice each, of at least two."""
    sets: dict[str, list[str]] = {}
    for name in self._free:
      match = _ONE_CHOICE.fullmatch(name)
      if match and (match[1] or match[2].isupper()):
        sets.setdefault(match[1].casefold(), []).append(name)
    found = max(sets.values(), key=len, default=[])
    labels = {choice_label(name) for name in found}
    if len(labels) < 2 or labels.isdisjoint({'A', '0', '1'}):
      return ()
    self._free = [name for name in self._free if name not in found]
    return tuple(found)

  def _role(
    self, named: str, usual: Sequence[str], most: int | None = None
  ) -> tuple[str, ...]:
    if named == NONE:
      return ()
    taken = (named,) if named else self._usual(usual)[:most]
    self._free = [name for name in self._free if name not in taken]
    return taken

  def _usual(self, usual: Sequence[str]) -> tuple[str, ...]:
    """Columns with these names, ignoring case, in the given order."""
    folded = {name.casefold(): name for name in reversed(self._free)}
    return tuple(folded[name] for name in usual if name in folded)


def _check_named(source: str, names: Sequence[str], named: Named) -> None:
  """Rejects names that make no sense.

  Raises:
    InputError: a column does not exist, is named twice, or holds answers.
  """
  option_of: dict[str, str] = {}
  for role, name in dataclasses.asdict(named).items():
    option = f'pool.{role}_column={name!r}'
    if name == NONE:
      if role == 'prompt':
        raise errors.InputError(
          f'{option}: a pool needs prompts: name their column'
        )
      if NONE in names:
        raise errors.InputError(
          f'{option} means no column, but {source} has a column of that name: '
          'rename the column'
        )
      continue
    if not name:
      continue
    if name not in names:
      raise errors.InputError(
        f'{option} is not in {source}: it has the columns {", ".join(names)}'
      )
    if role not in ('response', 'id') and name.casefold() in ANSWERS:
      raise errors.InputError(
        f'{option} has the name of an answer column, and selection must not '
        'read answers: rename the column if it does not hold any'
      )
    if name in option_of:
      raise errors.InputError(
        f'{option} is also the column of {option_of[name]}: name another one'
      )
    option_of[name] = f'pool.{role}_column'
