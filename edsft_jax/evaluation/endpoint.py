"""Asks an OpenAI-compatible server: vLLM, Ollama, llama.cpp or a cloud."""

from collections.abc import Callable, Mapping, Sequence
import json
import os
import time
from typing import Any
import urllib.error
import urllib.request

from edsft_jax import errors

KEY = 'OPENAI_API_KEY'
# Statuses that may pass: the server is busy, restarting or overloaded.
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class Failed(Exception):
  """A request that failed after all attempts; it may be asked again later."""


class Endpoint:
  """A chat model behind an HTTP server.

  The key is read from OPENAI_API_KEY, sent to the server and written nowhere.

  Attributes:
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
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Connects to nothing yet.

    Args:
      base_url: up to /v1, as http://localhost:8000/v1.
      model: the model's name on the server.
      max_attempts: attempts per request.
      timeout: seconds per attempt.
      backoff: seconds before the second attempt; doubled with each further one.
      sleep: waits; for tests.
    """
    self.model = model
    self.num_attempts = 0
    self.num_tokens = 0
    self._url = f'{base_url.rstrip("/")}/chat/completions'
    self._max_attempts = max_attempts
    self._timeout = timeout
    self._backoff = backoff
    self._sleep = sleep

  def first_token(
    self, messages: Sequence[Mapping[str, str]]
  ) -> tuple[str, dict[str, float] | None]:
    """The first token of an answer, and its candidates.

    Returns:
      The text of the answer's one token, and the log-probabilities of up to
      five candidates, or None if the server does not give any.

    Raises:
      Failed: no usable answer came in max_attempts attempts.
      InputError: the server refuses the request or answers for another model.
    """
    body = {
      'model': self.model,
      'messages': list(messages),
      'max_tokens': 1,
      'temperature': 0,
      'logprobs': True,
      'top_logprobs': 5,
    }
    answer = self._ask(body)
    (choice, *_) = answer['choices']
    content = (choice.get('logprobs') or {}).get('content') or []
    log_probs = None
    if content and content[0].get('top_logprobs'):
      log_probs = {
        entry['token']: float(entry['logprob'])
        for entry in content[0]['top_logprobs']
      }
    return str(choice['message'].get('content') or ''), log_probs

  def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
    reason = ''
    for attempt in range(self._max_attempts):
      if attempt:
        self._sleep(self._backoff * 2 ** (attempt - 1))
      self.num_attempts += 1
      try:
        return self._checked(self._send(body))
      except urllib.error.HTTPError as error:
        reason = f'status {error.code}'
        if error.code not in _TRANSIENT:
          raise errors.InputError(
            f'{self._url} refuses the request ({reason}): check the address, '
            f'the model {self.model!r} and {KEY}'
          ) from None
      except errors.InputError:
        raise
      except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        # No connection, a timeout, or an answer that is not what it should be.
        reason = ' '.join(str(error).split()) or type(error).__name__
    raise Failed(reason)

  def _send(self, body: Mapping[str, Any]) -> Any:
    headers = {'Content-Type': 'application/json'}
    if key := os.environ.get(KEY):
      headers['Authorization'] = f'Bearer {key}'
    request = urllib.request.Request(
      self._url, json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=self._timeout) as response:
      return json.loads(response.read())

  def _checked(self, answer: Any) -> dict[str, Any]:
    """The answer, if it has what is needed."""
    answer['choices'][0]['message'].get('content')
    named = answer.get('model', self.model)
    # Clouds add a date to the name, and some servers a folder before it.
    if self.model not in named and named not in self.model:
      raise errors.InputError(
        f'{self._url} answers with the model {named!r}, not {self.model!r}: '
        'correct --model, or load it on the server'
      )
    self.num_tokens += int((answer.get('usage') or {}).get('total_tokens', 0))
    return answer
