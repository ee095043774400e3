"""A judge behind a server with known biases, faults and refusals."""

import contextlib
import http.server
import json
import math
import random
import threading

import numpy as np
import pytest

from edsft_jax import errors
from edsft_jax.evaluation import endpoint as endpoint_lib
from edsft_jax.evaluation import judge as judge_lib
from edsft_jax.evaluation import win_rate


@contextlib.contextmanager
def _server(answer):
  """An OpenAI-compatible server; `answer` maps the prompt to (status, body)."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers['Content-Length'])
      asked = json.loads(self.rfile.read(size))
      status, body = answer(asked['messages'][-1]['content'])
      data = body if isinstance(body, bytes) else json.dumps(body).encode()
      self.send_response(status)
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *unused): ...

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}/v1'
  finally:
    server.shutdown()
    server.server_close()


def _said(log_odds: float, **more):
  """An answer whose second output has these log-odds."""
  second = 1 / (1 + math.exp(-log_odds))
  top = [
    {'token': 'M', 'logprob': math.log(second)},
    {'token': 'm', 'logprob': math.log(1 - second)},
  ]
  choice = {
    'message': {'content': 'M' if second > 0.5 else 'm'},
    'logprobs': {'content': [{'token': 'M', 'top_logprobs': top}]},
  }
  return {'choices': [choice], 'usage': {'total_tokens': 7}, **more}


def _outputs(prompt: str) -> tuple[str, str]:
  first, second = prompt.split('# Output of "m"\n')[1].split(
    '\n\n# Output of "M"\n'
  )
  return first, second.split('\n\nWhich output')[0]


def _judge(url, cache=None, **options):
  options = {'backoff': 0.0, 'max_attempts': 3, 'timeout': 5.0, **options}
  endpoint = endpoint_lib.Endpoint(url, 'judge', **options)
  return judge_lib.Judge(endpoint, cache), endpoint


def _equal_models(count: int, extra: int) -> list[judge_lib.Pair]:
  """Outputs of the same quality; the model's are longer on average."""
  rng = random.Random(4)
  return [
    judge_lib.Pair(
      f'instruction {i}',
      'r' * rng.randint(50, 250),
      'o' * (rng.randint(50, 250) + extra),
    )
    for i in range(count)
  ]


def test_an_equal_model_gets_half_whatever_its_length():
  """The judge likes long outputs, and the one that it sees first."""

  def answer(prompt):
    first, second = _outputs(prompt)
    return 200, _said(0.02 * (len(second) - len(first)) - 0.5)

  items = _equal_models(400, extra=40)
  with _server(answer) as url:
    judged = _judge(url)[0](items)
  raw, _ = win_rate.win_rate(judged.preferences)
  controlled = win_rate.length_controlled(
    judged.preferences,
    [len(pair.output) - len(pair.reference) for pair in items],
  )
  assert raw > 58
  assert abs(controlled - 50) < 2


def test_faults_are_asked_again_and_never_cached(tmp_path):
  cache = tmp_path / 'answers.jsonl'
  items = _equal_models(6, extra=0)
  faults = [
    (429, {}),
    (500, {}),
    (200, b'{"choices": [{"mess'),
    (200, {'choices': []}),
    (200, {'choices': [{'message': {'content': None}}]}),
  ]
  broken = {f'instruction {i}': fault for i, fault in enumerate(faults)}
  asked = []

  def answer(prompt):
    name = prompt.split('# Instruction\n')[1].split('\n')[0]
    asked.append(name)
    return broken.get(name) or (200, _said(1.0))

  with _server(answer) as url:
    judge, endpoint = _judge(url, cache)
    judged = judge(items)
    assert [x is None for x in judged.preferences] == [True] * 5 + [False]
    # Three attempts for each fault; an answer without a choice is not one.
    assert [asked.count(f'instruction {i}') for i in range(6)] == [
      *(3, 3, 3, 3),
      *(1, 1),
    ]
    assert len(cache.read_text().splitlines()) == 1
    assert endpoint.num_tokens == 7
    broken.clear()
    asked.clear()
    again = _judge(url, cache)[0](items)
  assert None not in again.preferences
  assert sorted(asked) == [f'instruction {i}' for i in range(5)]
  lines = list(judge_lib.summary(items, judged))
  assert '1 pair judged, 5 failed' in lines[1]
  with pytest.raises(errors.InputError, match='failed on all of 6 pairs'):
    list(judge_lib.summary(items, judge_lib.Judged([None] * 6)))


def test_a_server_that_is_not_there_fails(tmp_path):
  judge, endpoint = _judge('http://127.0.0.1:9/v1')
  assert judge(_equal_models(1, 0)).preferences == [None]
  assert endpoint.num_attempts == 3


@pytest.mark.parametrize(
  ('reply', 'message'),
  [
    ((401, {}), r'refuses the request \(status 401\).*OPENAI_API_KEY'),
    ((200, _said(0.0, model='other')), "answers with the model 'other'"),
  ],
)
def test_a_refusal_ends_the_run(reply, message):
  refused = pytest.raises(errors.InputError, match=message)
  with _server(lambda prompt: reply) as url, refused:
    _judge(url)[0](_equal_models(1, 0))


def test_without_log_probabilities_the_word_counts():
  with _server(
    lambda prompt: (200, {'choices': [{'message': {'content': ' M\n'}}]})
  ) as url:
    judged = _judge(url)[0](_equal_models(8, 0))
  assert judged.from_text
  switched = [win_rate.is_switched(f'instruction {i}', 0) for i in range(8)]
  assert judged.preferences == [1.0 if s else 2.0 for s in switched]
  assert len(set(switched)) == 2


def test_both_orders_cancel_a_bias_of_position():
  with _server(lambda prompt: (200, _said(-2.0))) as url:
    judged = _judge(url)[0](_equal_models(5, 0), both_orders=True)
  np.testing.assert_allclose(judged.preferences, 1.5)
  assert (judged.num_consistent, judged.num_both) == (0, 5)


def test_equal_outputs_are_a_tie_that_nobody_is_asked_about():
  pair = judge_lib.Pair('x', 'same', 'same')
  judged = _judge('http://127.0.0.1:9/v1')[0]([pair])
  assert judged.preferences == [1.5]


def test_preference_is_a_ratio_and_absent_names_count_nothing():
  log_probs = {'m': math.log(0.2), 'M': math.log(0.6), 'x': math.log(0.2)}
  assert win_rate.preference(log_probs) == pytest.approx(1.75)
  assert win_rate.preference({'M': -1.0}) == 2.0
  assert win_rate.preference({'m': -1.0, 'x': -0.1}) == 1.0
  assert win_rate.preference({'x': -0.1}) is None


def test_win_rate_and_its_error():
  rate, error = win_rate.win_rate([1.0, 2.0, 1.5, 2.0])
  assert rate == pytest.approx(62.5)
  assert error == pytest.approx(np.std([0, 100, 50, 100], ddof=1) / 2)
  rows = [{'preference': 2.0}, {'preference': None}, {'preference': math.nan}]
  assert win_rate.read_annotations(rows) == [2.0]


@pytest.mark.parametrize(
  ('outputs', 'message'),
  [
    (
      [{'instruction': 'a', 'output': 'x'}],
      "--outputs has no output for .*'b'",
    ),
    (
      [{'instruction': i, 'output': 'x'} for i in 'abc'],
      "--reference has no output for the instruction 'c'",
    ),
    ([{'instruction': 'a'}], "entry 0 has no text in 'output'"),
    ([{'instruction': 'a', 'output': 'x'}] * 2, "'a' twice"),
  ],
)
def test_files_must_have_the_same_instructions(outputs, message):
  reference = [{'instruction': i, 'output': 'y'} for i in 'ab']
  with pytest.raises(errors.InputError, match=message):
    judge_lib.pairs(outputs, reference)


def test_the_key_is_sent_and_not_written(monkeypatch, tmp_path):
  monkeypatch.setenv(endpoint_lib.KEY, 'a-secret')
  cache = tmp_path / 'answers.jsonl'
  with _server(lambda prompt: (200, _said(1.0))) as url:
    _judge(url, cache)[0](_equal_models(2, 0))
  assert 'a-secret' not in cache.read_text()
