"""A model of our own behind an OpenAI-compatible server, for tests.

It answers with one token, or with one of the values that a JSON schema allows.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import formats
import jax
import numpy as np

from edsft_jax import models
from edsft_jax.mesh import make_mesh
from edsft_jax.models import tokenizer


class Model:
  """Answers requests by the logits of a plain forward pass."""

  def __init__(self, path: pathlib.Path, forward: Any, max_candidates: int):
    """Loads a model.

    Args:
      path: a model directory.
      forward: the fixture of this name.
      max_candidates: log-probabilities per answer at most.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    self._decoder = models.load_decoder(path, 'float32', mesh)
    self._forward = forward
    self._format = formats.load(path)
    self._tokenizer = tokenizer.load_tokenizer(path)
    self._max_candidates = max_candidates

  def __call__(self, request: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    text = self._format.text(
      request['messages'], chat=self._format.has_template
    )
    if 'response_format' in request:
      schema = request['response_format']['json_schema']['schema']
      ((name, field),) = schema['properties'].items()
      best = max(field['enum'], key=lambda value: self._score(text, value))
      return 200, self._answer(json.dumps({name: best}), text)
    log_prob_V = self._log_probs(self._format.encode_text(text))[-1]
    asked = min(request.get('top_logprobs', 0), self._max_candidates)
    if self._max_candidates > 5:
      asked = self._max_candidates  # So that each token is a candidate.
    likeliest = np.argsort(-log_prob_V)[:asked].tolist()
    top = [
      {'token': self._tokenizer.token(i), 'logprob': float(log_prob_V[i])}
      for i in likeliest
    ]
    answer = self._answer(
      self._tokenizer.token(int(np.argmax(log_prob_V))), text
    )
    if request.get('logprobs'):
      answer['choices'][0]['logprobs'] = {'content': [{'top_logprobs': top}]}
    return 200, answer

  def _answer(self, content: str, text: str) -> dict[str, Any]:
    tokens = len(self._format.encode_text(text)) + 1
    return {
      'model': 'judge',
      'choices': [{'message': {'role': 'assistant', 'content': content}}],
      'usage': {'total_tokens': tokens},
    }

  def _score(self, text: str, value: str) -> float:
    context, ids = self._format.encode_pair(text, value)
    rows = self._log_probs([*context, *ids])[len(context) - 1 : -1]
    return sum(row[i] for row, i in zip(rows, ids, strict=True))

  def _log_probs(self, ids: list[int]) -> np.ndarray:
    tokens = np.zeros((1, 512), np.int32)
    tokens[0, : len(ids)] = ids  # Causal: what follows changes nothing.
    logits_LxV = self._forward(self._decoder, tokens)[0][0][: len(ids)]
    return np.asarray(jax.nn.log_softmax(logits_LxV), np.float64)
