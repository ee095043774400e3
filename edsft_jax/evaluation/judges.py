"""Judges of pairs: a model behind a server, or one that we load ourselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import json
import math
from typing import Any, Protocol

from flax import nnx
import jax

from edsft_jax import errors, inference, models, store
from edsft_jax.evaluation import endpoint as endpoint_lib
from edsft_jax.evaluation import win_rate
from edsft_jax.evaluation.endpoint import Endpoint, Failed, Unavailable
from edsft_jax.evaluation.judge_prompt import JudgePrompt

Messages = Sequence[store.Message]


@dataclasses.dataclass(frozen=True)
class Answer:
  """A judge's answer to one question.

  Attributes:
    preference: for the output that is shown second, in [1, 2].
    num_tokens: tokens of question and answer, as far as they are known.
  """

  preference: float
  num_tokens: int = 0


# An answer, or the reason why there is none.
Found = Answer | Failed


class Judge(Protocol):
  """Answers questions, each of which ends with the choice of m or M.

  Attributes:
    name: its name in annotations.json.
    identity: what its answers depend on, besides the question.
    form: how preferences are found, in a word.
    note: the same for the log.
  """

  name: str
  identity: str
  form: str
  note: str

  def ask(self, questions: Sequence[Messages]) -> Iterator[tuple[int, Found]]:
    """Yields the index of a question and what was found, as answers come.

    Raises:
      InputError: the judge cannot answer any question.
    """


# --- A model behind a server.

# An easy question, whose answer is M.
_PROBE = ('Name the capital of France.', 'I do not know.', 'Paris')

# The answer as JSON, for servers that constrain answers to a schema.
_SCHEMA = {
  'type': 'object',
  'properties': {
    'better': {'type': 'string', 'enum': [win_rate.FIRST, win_rate.SECOND]}
  },
  'required': ['better'],
  'additionalProperties': False,
}


def _from_log_probs(choice: Mapping[str, Any]) -> float | None:
  found = endpoint_lib.log_probs(choice)
  return None if found is None else win_rate.preference(found)


def _from_json(choice: Mapping[str, Any]) -> float | None:
  try:
    value = json.loads(choice['message'].get('content') or '')
  except (ValueError, TypeError):
    return None
  return _from_name(value.get('better') if isinstance(value, dict) else None)


def _from_word(choice: Mapping[str, Any]) -> float | None:
  content = choice['message'].get('content')
  return _from_name(content.strip(' \n"\'.') if isinstance(content, str) else 0)


def _from_name(name: object) -> float | None:
  return {win_rate.FIRST: 1.0, win_rate.SECOND: 2.0}.get(str(name))


@dataclasses.dataclass(frozen=True)
class _Form:
  """A way to ask a server.

  Attributes:
    name: part of the judge's identity.
    max_tokens: tokens of the answer at most.
    options: further fields of the request.
    read: choice -> preference; None if the answer is neither m nor M.
    note: for the log.
  """

  name: str
  max_tokens: int
  options: Mapping[str, Any]
  read: Callable[[Mapping[str, Any]], float | None]
  note: str


_FORMS = (
  _Form(
    'log-probabilities',
    1,
    # As in AlpacaEval: at 0, some servers give the likeliest token all of the
    # probability.
    {'temperature': 1, 'logprobs': True, 'top_logprobs': 5},
    _from_log_probs,
    "by the probabilities of the judge's answers",
  ),
  _Form(
    'choice',
    32,
    {
      'temperature': 0,
      'response_format': {
        'type': 'json_schema',
        'json_schema': {'name': 'choice', 'strict': True, 'schema': _SCHEMA},
      },
    },
    _from_json,
    "1 or 2, by the judge's choice: the server gives no log-probabilities",
  ),
  _Form(
    'word',
    4,
    {'temperature': 0},
    _from_word,
    "1 or 2, by the judge's word: the server gives no log-probabilities and "
    'does not constrain answers',
  ),
)


class EndpointJudge:
  """A judge behind a server, asked in the best way that the server knows."""

  def __init__(
    self, endpoint: Endpoint, prompt: JudgePrompt, num_parallel: int = 8
  ):
    """Asks one question to see what the server gives.

    Args:
      endpoint: the server.
      prompt: the prompt of the questions to come.
      num_parallel: requests that wait for answers at the same time.

    Raises:
      InputError: the server cannot be reached, refuses requests, or the model
        answers neither m nor M.
    """
    self.name = endpoint.model
    self._endpoint = endpoint
    self._num_parallel = num_parallel
    self._form = self._probe(prompt.messages(*_PROBE))
    self.form = self._form.name
    self.identity = f'{endpoint.model}, {self.form}'
    self.note = self._form.note

  def _probe(self, question: Messages) -> _Form:
    reasons: dict[str, None] = {}
    for form in _FORMS:
      try:
        self._ask(question, form)
        return form
      except Unavailable as reason:
        # Not a reason to ask in another form.
        raise errors.InputError(
          f'the judge {self.name!r} cannot be asked ({reason}): check its '
          'server and run the same command again'
        ) from None
      except Failed as reason:
        reasons[str(reason)] = None
    raise errors.InputError(
      f'the judge {self.name!r} does not answer m or M to a simple question '
      f'({"; ".join(reasons)}): check its server, or name another model'
    )

  def _ask(self, question: Messages, form: _Form) -> Answer:
    choice, num_tokens = self._endpoint.complete(
      question, form.max_tokens, form.options
    )
    preference = form.read(choice)
    if preference is None:
      text = ' '.join(str(choice['message'].get('content')).split())
      raise Failed(f'answer {text[:40]!r}, not m or M, by {form.name}')
    return Answer(preference, num_tokens)

  def ask(self, questions: Sequence[Messages]) -> Iterator[tuple[int, Found]]:
    """Yields answers as they come; see Judge.ask."""
    pool = futures.ThreadPoolExecutor(self._num_parallel)
    try:
      waiting = {
        pool.submit(self._ask, question, self._form): number
        for number, question in enumerate(questions)
      }
      for done in futures.as_completed(waiting):
        try:
          yield waiting[done], done.result()
        except Failed as reason:
          yield waiting[done], reason
    except BaseException:
      self._endpoint.stop()
      raise
    finally:
      pool.shutdown(cancel_futures=True)


# --- A model directory.

# Questions whose answers are kept together: an interrupted run repeats fewer.
_CHUNK = 64
# Today's date for chat templates: answers must not depend on the day.
_DATE = '2024-07-26'


class ModelJudge:
  """A model directory as judge: the likelihoods of both answers."""

  def __init__(
    self,
    path: str,
    dtype: str,
    mesh: jax.sharding.Mesh,
    batch_tokens: int,
  ):
    """Loads the model.

    Args:
      path: see `models.resolve`.
      dtype: see model.dtype.
      mesh: where its weights are.
      batch_tokens: tokens per batch, padding included.

    Raises:
      InputError: the model cannot be used.
    """
    directory = models.resolve(path)
    self.name = directory.resolve().name
    self._format = models.load_prompt_format(
      directory,
      template='auto',
      separator='',
      truncate='end',
      template_arguments='{}',
      control_tokens='text',
      date=_DATE,
    )
    self.identity = store.hash_json([models.hash_model(directory), dtype])
    self.form = 'likelihoods'
    self.note = (
      "by the judge's likelihoods of m and M, "
      + ('in' if self._format.has_template else 'without')
      + ' its chat template'
    )
    self._decoder = models.load_decoder(directory, dtype=dtype, mesh=mesh)
    self._mesh = mesh
    self._batch_tokens = batch_tokens

  def ask(self, questions: Sequence[Messages]) -> Iterator[tuple[int, Found]]:
    """Yields answers in order; see Judge.ask."""
    weights = nnx.split(self._decoder)[1]
    encoded = [self._targets(question) for question in questions]
    fitting = [i for i, targets in enumerate(encoded) if targets]
    chunks = [
      fitting[start : start + _CHUNK]
      for start in range(0, len(fitting), _CHUNK)
    ]
    engine = inference.LikelihoodEngine(
      self._decoder,
      self._mesh,
      [[target for i in chunk for target in encoded[i]] for chunk in chunks],
      batch_tokens=self._batch_tokens,
    )
    for part, chunk in enumerate(chunks):
      nll = engine(weights, part=part).nll.reshape(len(chunk), 2)
      for i, (first, second) in zip(chunk, nll.tolist(), strict=True):
        yield i, self._answer(first, second, len(encoded[i][0].tokens))
    for i, targets in enumerate(encoded):
      if not targets:
        yield i, Failed("the question is longer than the judge's context")

  def _targets(self, question: Messages) -> list[inference.Target]:
    """The question with either answer; none if it is too long."""
    text = self._format.text(list(question), chat=self._format.has_template)
    targets = []
    for name in (win_rate.FIRST, win_rate.SECOND):
      context, ids = self._format.encode_pair(text, name)
      # The last token of an answer is not read.
      if len(context) + len(ids) > self._decoder.config.context + 1:
        return []
      targets.append(inference.Target([*context, *ids], len(ids)))
    return targets

  def _answer(self, first: float, second: float, num_tokens: int) -> Found:
    if not math.isfinite(first) or not math.isfinite(second):
      return Failed(
        "the judge's likelihoods are not finite: check its weights and dtype"
      )
    # Relative to the likelier one, since both may be very unlikely.
    least = min(first, second)
    log_probs = {
      win_rate.FIRST: least - first,
      win_rate.SECOND: least - second,
    }
    preference = win_rate.preference(log_probs)
    assert preference is not None
    return Answer(preference, num_tokens)
