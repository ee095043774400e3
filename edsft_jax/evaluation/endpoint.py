"""Asks an OpenAI-compatible server: vLLM, Ollama, llama.cpp or a cloud."""

from collections.abc import Mapping, Sequence
import http.client
import json
import math
import os
import random
import re
import threading
from typing import Any
import urllib.error
import urllib.request

from edsft_jax import errors, store

KEY = 'OPENAI_API_KEY'
# Temporary problems: the server is busy, restarting or overloaded.
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# Every request would get these: the key, its rights or the address is wrong.
# With a redirect, the key would go to another server.
_FATAL = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405})
# What reading a malformed answer raises.
_DAMAGED = (
  http.client.HTTPException,
  ValueError,
  KeyError,
  TypeError,
  IndexError,
  AttributeError,
  OverflowError,
  RecursionError,
)
# The longest wait, in seconds, that a server can ask for by Retry-After.
_LONGEST_WAIT = 60.0

# What servers add to the name of a model: a date, or a tag.
_ADDED = r'(-\d{4}-\d\d-\d\d|-\d{8}|-\d{4}|:latest)?'


class Failed(Exception):
  """A request that failed; it may be asked again later."""


class Unavailable(Failed):
  """The server did not answer, but may do so later."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """Makes a redirect an error."""

  def redirect_request(self, *_: Any) -> None:
    """Follows none."""


_OPENER = urllib.request.build_opener(_NoRedirects)


class Endpoint:
  """A chat model behind an HTTP server, for several threads.

  The key is read from OPENAI_API_KEY, sent to the server and written nowhere.

  Attributes:
    model: the model's name on the server.
    num_attempts: requests sent so far, repeated ones included.
    num_tokens: tokens that the server counted so far.
  """

  def __init__(
    self,
    base_url: str,
    model: str,
    *,
    max_attempts: int = 6,
    timeout: float = 60.0,
    backoff: float = 1.0,
  ):
    """Stores the address; sends nothing yet.

    Args:
      base_url: up to /v1, as http://localhost:8000/v1.
      model: the model's name on the server.
      max_attempts: attempts per request.
      timeout: seconds per attempt.
      backoff: seconds before the second attempt; doubled with each further one.
    """
    self.model = model
    self.num_attempts = 0
    self.num_tokens = 0
    self._url = f'{base_url.rstrip("/")}/chat/completions'
    self._max_attempts = max_attempts
    self._timeout = timeout
    self._backoff = backoff
    # Newer models of OpenAI refuse max_tokens.
    self._limit_name = 'max_tokens'
    self._stopped = threading.Event()
    self._lock = threading.Lock()

  def stop(self) -> None:
    """Ends waiting: requests under way fail after their current attempt."""
    self._stopped.set()

  def complete(
    self,
    messages: Sequence[store.Message],
    max_tokens: int,
    options: Mapping[str, Any],
  ) -> tuple[dict[str, Any], int]:
    """The answer to a conversation.

    Args:
      messages: its turns.
      max_tokens: tokens of the answer at most.
      options: further fields of the request.

    Returns:
      The first of the answer's `choices`, with a message, and the number of
      tokens that the server counted.

    Raises:
      Unavailable: no usable answer came in max_attempts attempts.
      Failed: the server refuses this request, or fails on it each time.
      InputError: the server refuses every request, or answers for another
        model.
    """
    reason, wait = '', 0.0
    kind: type[Failed] = Unavailable
    for attempt in range(self._max_attempts):
      if attempt:
        # Requests that failed together should not be repeated together.
        doubled = self._backoff * 2 ** (attempt - 1)
        delay = max(doubled * random.uniform(0.5, 1.0), wait)
        if self._stopped.wait(min(delay, _LONGEST_WAIT)):
          break
      try:
        return self._checked(self._send(messages, max_tokens, options))
      except urllib.error.HTTPError as error:
        reason = self._reason(error)
        kind = Failed if error.code == 500 else Unavailable
        wait = _seconds(error.headers.get('Retry-After'))
        if error.code in _FATAL:
          raise errors.InputError(
            f'{self._url} refuses requests ({reason}): check the address, the '
            f'model {self.model!r} and {KEY}'
          ) from None
        if 'max_completion_tokens' in reason:
          self._limit_name = 'max_completion_tokens'
        elif error.code not in _TRANSIENT:
          raise Failed(reason) from None
      except errors.InputError:
        raise
      except OSError as error:
        # No connection, or a timeout.
        reason = _one_line(str(error)) or type(error).__name__
        kind = Unavailable
      except _DAMAGED as error:
        reason = f'a malformed answer: {_one_line(str(error))}'
        kind = Unavailable
    raise kind(reason)

  def _send(
    self,
    messages: Sequence[store.Message],
    max_tokens: int,
    options: Mapping[str, Any],
  ) -> Any:
    body = {
      'model': self.model,
      'messages': list(messages),
      self._limit_name: max_tokens,
      **options,
    }
    headers = {'Content-Type': 'application/json'}
    if key := _key():
      headers['Authorization'] = f'Bearer {key}'
    request = urllib.request.Request(
      self._url, json.dumps(body).encode(), headers
    )
    with self._lock:
      self.num_attempts += 1
    with _OPENER.open(request, timeout=self._timeout) as response:
      return json.loads(response.read())

  def _checked(self, answer: Any) -> tuple[dict[str, Any], int]:
    """The answer's choice, if it has what is needed, and its tokens."""
    try:
      choice = answer['choices'][0]
      choice['message'].get('content')
    except _DAMAGED:
      raise ValueError('it has no choices[0].message') from None
    named = answer.get('model') or self.model
    if not _is_same_model(self.model, named):
      raise errors.InputError(
        f'{self._url} answers with the model {named!r}, not {self.model!r}: '
        'name that one, or load the other on the server'
      )
    num_tokens = int((answer.get('usage') or {}).get('total_tokens') or 0)
    with self._lock:
      self.num_tokens += num_tokens
    return choice, num_tokens

  def _reason(self, error: urllib.error.HTTPError) -> str:
    """Status and message; the key is removed, since a server may repeat it."""
    try:
      text = error.read().decode('utf-8', 'replace')
      message = json.loads(text)['error']['message']
    except (
      ValueError,
      KeyError,
      TypeError,
      OSError,
      http.client.HTTPException,
    ):
      message = ''
    if key := _key():
      message = str(message).replace(key, '...')
    status = f'status {error.code}'
    if 300 <= error.code < 400:
      return f'{status}, a redirect to {error.headers.get("Location")}'
    return f'{status}: {_one_line(str(message))}' if message else status


def log_probs(choice: Mapping[str, Any]) -> dict[str, float] | None:
  """Candidates for an answer's first token; None if the server gives none.

  Raises:
    Failed: one of them is not a log-probability.
  """
  try:
    content = (choice.get('logprobs') or {}).get('content') or []
    if not content or not content[0].get('top_logprobs'):
      return None
    found = {
      str(entry['token']): float(entry['logprob'])
      for entry in content[0]['top_logprobs']
    }
  except _DAMAGED as error:
    raise Failed(f'log-probabilities are damaged ({error!r})') from None
  for token, value in found.items():
    # A little above 0 is rounding.
    if math.isnan(value) or value > 0.01:
      raise Failed(f'{token!r} has the log-probability {value}')
  return found


def _is_same_model(asked: str, named: str) -> bool:
  """Whether a server's name for a model may stand for the one asked for.

  Clouds add a date to it, Ollama a tag, and others a folder before it.
  """
  asked_folder, _, asked_name = asked.rpartition('/')
  folder, _, name = named.rpartition('/')
  if folder and asked_folder and folder != asked_folder:
    return False
  return bool(re.fullmatch(re.escape(asked_name) + _ADDED, name))


def _key() -> str:
  """The key, without white space around it; '' if there is none.

  Raises:
    InputError: it cannot be sent. The message does not repeat it.
  """
  key = os.environ.get(KEY, '').strip()
  if not (key.isascii() and key.isprintable()):
    raise errors.InputError(
      f'{KEY} has characters that cannot be sent: copy the key again'
    )
  return key


def _seconds(text: str | None) -> float:
  """The wait that Retry-After asks for; 0 if it is a date or absent."""
  try:
    seconds = float(text or 0)
  except ValueError:
    return 0.0
  return seconds if seconds > 0 else 0.0


def _one_line(text: str) -> str:
  line = ' '.join(text.split())
  return line if len(line) <= 200 else f'{line[:200]} ...'
