"""Judges with known biases, faults and refusals, behind a real socket."""

import json
import math
import os
import random
import subprocess
import sys
import time

import judge_server
from judge_server import said, serving
import numpy as np
from places import REPOSITORY
import pytest

from edsft_jax import errors
from edsft_jax.evaluation import endpoint as endpoint_lib
from edsft_jax.evaluation import judge as judge_lib
from edsft_jax.evaluation import pairs as pairs_lib
from edsft_jax.evaluation import verdicts as verdicts_lib
from edsft_jax.evaluation import win_rate
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.judges import EndpointJudge
from edsft_jax.evaluation.pairs import Pair

PROMPT = JudgePrompt()
PROBE = 'Name the capital of France.'


def _judge(
  url, pairs, tmp_path, *, both_orders=False, model='judge', **options
):
  """Verdicts of a new endpoint, and the endpoint."""
  options = {'backoff': 0.0, 'max_attempts': 3, 'timeout': 5.0, **options}
  endpoint = endpoint_lib.Endpoint(url, model, **options)
  verdicts = verdicts_lib.judge_pairs(
    EndpointJudge(endpoint, PROMPT),
    PROMPT,
    pairs,
    verdicts_lib.Answers(tmp_path / 'answers.jsonl'),
    both_orders=both_orders,
  )
  return verdicts, endpoint


def _preferences(verdicts):
  return [verdict.preference for verdict in verdicts]


def _equal_models(count: int, extra: int) -> list[Pair]:
  """Outputs of the same quality; the model's are longer on average."""
  rng = random.Random(4)
  return [
    Pair(
      f'instruction {i}',
      'r' * rng.randint(50, 250),
      'o' * (rng.randint(50, 250) + extra),
    )
    for i in range(count)
  ]


@pytest.mark.parametrize('both_orders', [False, True])
def test_an_equal_model_gets_half_whatever_its_length(tmp_path, both_orders):
  """The judge likes long outputs, and the one that it sees first."""

  def answer(request):
    first, second = judge_server.outputs_of(request)
    return 200, said(0.02 * (len(second) - len(first)) - 0.5)

  pairs = _equal_models(250, extra=40)
  with serving(answer) as url:
    verdicts, _ = _judge(url, pairs, tmp_path, both_orders=both_orders)
  preferences = _preferences(verdicts)
  raw, _ = win_rate.win_rate(preferences)
  controlled = win_rate.length_controlled(
    preferences,
    [len(pair.output) for pair in pairs],
    [len(pair.reference) for pair in pairs],
  )
  assert raw > 58
  assert abs(controlled.mean() - 50) < 2


FAULTS = {
  'busy': (429, {}),
  'broken': (500, {'error': {'message': 'out\nof memory'}}),
  'half JSON': (200, b'{"choices": [{"mess'),
  'half body': judge_server.CUT,
  'no choice': (200, {'choices': []}),
  'list': (200, []),
  'timeout': judge_server.HANG_SECONDS,
  'null answer': (200, {'choices': [{'message': {'content': None}}]}),
  'nonsense': (200, {'choices': [{'message': {'content': 'both'}}]}),
  'NaN': (200, said(math.nan)),
  'infinite': (200, {**said(1.0), 'usage': {'total_tokens': math.inf}}),
  'deep': (200, b'[' * 100_000),
  'too long': (400, {'error': {'message': 'context length exceeded'}}),
}
# What is not sent again within a run: the same request gets the same answer.
FINAL = {'null answer', 'nonsense', 'NaN', 'too long'}


def test_faults_are_asked_again_and_never_kept(tmp_path):
  good = ['fine', 'also fine']
  pairs = [Pair(name, 'r', 'o') for name in [*FAULTS, *good]]
  broken = dict(FAULTS)
  asked = []

  def answer(request):
    name = judge_server.instruction_of(request)
    asked.append(name)
    return broken.get(name) or (200, said(1.0))

  with serving(answer) as url:
    verdicts, endpoint = _judge(url, pairs, tmp_path, timeout=0.6)
    found = dict(
      zip([pair.instruction for pair in pairs], verdicts, strict=True)
    )
    for name in FAULTS:
      assert found[name].preference is None, name
      assert found[name].reason, name
      assert asked.count(name) == (1 if name in FINAL else 3), name
    assert 'out of memory' in found['broken'].reason
    assert all(found[name].preference is not None for name in good)
    kept = (tmp_path / 'answers.jsonl').read_text().splitlines()
    assert len(kept) == len(good)
    assert endpoint.num_attempts == len(asked)
    broken.clear()
    asked.clear()
    again, _ = _judge(url, pairs, tmp_path)
  assert None not in _preferences(again)
  # The server's abilities are probed again, and only failures are asked about.
  assert sorted(asked) == sorted([PROBE, *FAULTS])
  lines = list(judge_lib.summary(pairs, verdicts))
  assert f'2 pairs judged, {len(FAULTS)} failed' in lines[1]
  failed = [v for v in verdicts if v.preference is None]
  with pytest.raises(errors.InputError, match='failed on all of 13 pairs: '):
    list(judge_lib.summary(pairs[: len(failed)], failed))


def test_a_torn_file_of_answers_is_repaired(tmp_path):
  """Killed while an answer was written."""
  pairs = _equal_models(5, 0)
  asked = []

  def answer(request):
    asked.append(judge_server.instruction_of(request))
    return 200, said(0.7)

  path = tmp_path / 'answers.jsonl'
  with serving(answer) as url:
    before, _ = _judge(url, pairs, tmp_path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = b''.join([*lines[:2], b'{"key": 3}\n', lines[3], lines[4][:20]])
    path.write_bytes(torn)
    asked.clear()
    again, _ = _judge(url, pairs, tmp_path)
  assert again == before
  assert len(asked) == 3  # The probe, the damaged line and the torn one.
  assert sorted(whole.splitlines()) == sorted(
    line for line in path.read_bytes().splitlines() if line != b'{"key": 3}'
  )


def _command(url, tmp_path, **options):
  """The command line that compares two files."""
  for name in ('outputs', 'reference'):
    rows = [
      {
        'instruction': f'instruction {i}',
        'output': f'{name} {"x" * i}',
        'generator': name,
      }
      for i in range(6)
    ]
    (tmp_path / f'{name}.json').write_text(json.dumps(rows))
  flags = {
    'outputs': tmp_path / 'outputs.json',
    'reference': tmp_path / 'reference.json',
    'folder': tmp_path / 'judged',
    'base_url': url,
    'model': 'judge',
    **options,
  }
  words = [f'--{name}={value}' for name, value in flags.items()]
  return [sys.executable, '-m', 'edsft_jax.evaluation.judge', *words]


@pytest.mark.slow
def test_a_killed_command_asks_only_for_what_is_missing(tmp_path):
  before, asked = [], []
  answered = tmp_path / 'judged' / 'answers.jsonl'

  def answer_six(request):
    before.append(judge_server.text_of(request))
    # Killed before it answers.
    return 60.0 if len(before) > 6 else (200, said(0.5))

  def answer(request):
    asked.append(judge_server.text_of(request))
    return 200, said(0.5)

  def num_answered() -> int:
    return len(answered.read_text().splitlines()) if answered.exists() else 0

  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  with serving(answer_six) as url:
    first = subprocess.Popen(_command(url, tmp_path), env=environment)
    # The probe is not kept, and the last of seven is not answered.
    while len(before) < 7 or num_answered() < 5:
      assert first.poll() is None
      time.sleep(0.01)
    first.kill()
    first.wait()
  # Another server, since the first may still read requests of the killed one.
  with serving(answer) as url:
    done = subprocess.run(
      _command(url, tmp_path),
      env=environment,
      check=True,
      capture_output=True,
      text=True,
    )
  assert len(asked) == 1 + 12 - 5
  assert len({*asked, *before}) == 1 + 12
  assert '6 pairs judged, none failed' in done.stdout
  assert 'the same winner in both orders for 0 of 6 pairs' in done.stdout
  rows = json.loads((tmp_path / 'judged' / 'annotations.json').read_text())
  assert {row['generator_1'] for row in rows} == {'reference'}
  assert {row['generator_2'] for row in rows} == {'outputs'}
  assert [row['preference'] for row in rows] == [1.5] * 6


def test_a_server_that_is_not_there_is_one_line(tmp_path):
  with pytest.raises(errors.InputError, match=r'cannot be asked .*refused'):
    _judge('http://127.0.0.1:9/v1', _equal_models(1, 0), tmp_path)


@pytest.mark.parametrize(
  ('reply', 'message'),
  [
    (
      (401, {'error': {'message': 'Bad key a-secret'}}),
      r'refuses requests \(status 401: Bad key \.\.\.\).*OPENAI_API_KEY',
    ),
    ((200, said(0.0, model='other')), "answers with the model 'other'"),
    ((200, said(0.0, model='judge-mini')), "with the model 'judge-mini'"),
    (
      (200, {'choices': [{'message': {'content': 'Sure!'}}]}),
      "does not answer m or M to a simple question .*answer 'Sure!'",
    ),
  ],
)
def test_a_judge_that_cannot_be_used_is_one_line(
  monkeypatch, tmp_path, reply, message
):
  monkeypatch.setenv(endpoint_lib.KEY, 'a-secret')
  refused = pytest.raises(errors.InputError, match=message)
  with serving(lambda request: reply) as url, refused as caught:
    _judge(url, _equal_models(1, 0), tmp_path)
  assert 'a-secret' not in str(caught.value)
  assert not (tmp_path / 'answers.jsonl').exists()


def test_no_other_server_gets_the_key(monkeypatch, tmp_path):
  monkeypatch.setenv(endpoint_lib.KEY, 'a-secret')
  asked = []

  def answer(request):
    asked.append(request)
    return 200, said(1.0)

  refused = pytest.raises(errors.InputError, match='302, a redirect to http')
  with (
    serving(answer) as other,
    serving(lambda request: (302, other)) as url,
    refused,
  ):
    _judge(url, _equal_models(1, 0), tmp_path)
  assert not asked


@pytest.mark.parametrize('key', ['a-\x01secret', 'a-\nsecret', 'a-sécret'])
def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch, tmp_path, key):
  monkeypatch.setenv(endpoint_lib.KEY, key)
  refused = pytest.raises(errors.InputError, match='cannot be sent')
  with serving(lambda request: (200, said(1.0))) as url, refused as caught:
    _judge(url, _equal_models(1, 0), tmp_path)
  assert 'secret' not in str(caught.value)
  assert endpoint_lib.KEY in str(caught.value)


@pytest.mark.parametrize(
  'name', ['judge', 'judge-2024-07-18', 'judge:latest', 'folder/judge', None]
)
def test_names_with_a_date_a_tag_or_a_folder_are_the_same_model(tmp_path, name):
  with serving(lambda request: (200, said(0.0, model=name))) as url:
    verdicts, _ = _judge(url, _equal_models(1, 0), tmp_path)
  assert _preferences(verdicts) == [1.5]


@pytest.mark.parametrize(
  ('asked', 'named'),
  [
    ('claude-3', 'claude-3-5'),
    ('claude-opus-4', 'claude-opus-4-1'),
    ('qwen2', 'qwen2-72'),
    ('one/judge', 'another/judge'),
    ('judge', 'judge-large'),
  ],
)
def test_other_models_have_other_names(tmp_path, asked, named):
  refused = pytest.raises(errors.InputError, match=f'the model {named!r}')
  with serving(lambda request: (200, said(0.0, model=named))) as url, refused:
    _judge(url, _equal_models(1, 0), tmp_path, model=asked)


def test_a_model_that_changes_ends_the_run(tmp_path):
  """What was answered before is kept."""
  pairs = _equal_models(3, 0)

  def answer(request):
    last = judge_server.instruction_of(request) == 'instruction 2'
    return 200, said(0.0, model='other' if last else 'judge')

  with serving(answer) as url:
    _judge(url, pairs[:2], tmp_path)
    with pytest.raises(errors.InputError, match="the model 'other'"):
      _judge(url, pairs, tmp_path)
  assert len((tmp_path / 'answers.jsonl').read_text().splitlines()) == 2


def _without_log_probs(constrains: bool):
  """A server that answers m or M in JSON if it is asked to and can."""

  def answer(request):
    first, second = judge_server.outputs_of(request)
    name = 'M' if len(second) > len(first) else 'm'
    text = f' {name}.\n'
    if 'response_format' in request:
      if not constrains:
        return 400, {'error': {'message': 'unknown field response_format'}}
      schema = request['response_format']['json_schema']['schema']
      assert schema['properties']['better']['enum'] == ['m', 'M']
      text = json.dumps({'better': name})
    return 200, {'choices': [{'message': {'content': text}}]}

  return answer


@pytest.mark.parametrize(('constrains', 'form'), [(1, 'choice'), (0, 'word')])
def test_without_log_probabilities_the_choice_counts(
  tmp_path, constrains, form
):
  pairs = [Pair('a', 'r', 'longer'), Pair('b', 'longer', 'o')]
  with serving(_without_log_probs(constrains)) as url:
    endpoint = endpoint_lib.Endpoint(url, 'judge', backoff=0.0)
    assert EndpointJudge(endpoint, PROMPT).form == form
    verdicts, _ = _judge(url, pairs, tmp_path, both_orders=True)
  assert _preferences(verdicts) == [2.0, 1.0]


@pytest.mark.parametrize('status', [400, 500])
def test_log_probabilities_that_break_a_server_are_given_up(tmp_path, status):
  answer = _without_log_probs(True)

  def breaks(request):
    return (status, {}) if request.get('logprobs') else answer(request)

  with serving(breaks) as url:
    verdicts, _ = _judge(url, [Pair('a', 'r', 'longer')], tmp_path)
  assert _preferences(verdicts) == [2.0]


def test_a_busy_server_is_not_one_without_log_probabilities(tmp_path):
  answer = _without_log_probs(True)

  def busy(request):
    return (429, {}) if request.get('logprobs') else answer(request)

  refused = pytest.raises(errors.InputError, match=r'cannot be asked .*429')
  with serving(busy) as url, refused:
    _judge(url, [Pair('a', 'r', 'longer')], tmp_path)


def test_newer_models_get_the_other_name_of_the_limit(tmp_path):
  def answer(request):
    if 'max_tokens' in request:
      text = "Unsupported parameter: use 'max_completion_tokens' instead."
      return 400, {'error': {'message': text}}
    assert request['max_completion_tokens'] == 1
    return 200, said(1.0)

  with serving(answer) as url:
    verdicts, _ = _judge(url, _equal_models(2, 0), tmp_path)
  assert None not in _preferences(verdicts)


def test_both_orders_cancel_a_bias_of_position(tmp_path):
  with serving(lambda request: (200, said(-2.0))) as url:
    verdicts, _ = _judge(url, _equal_models(5, 0), tmp_path, both_orders=True)
  np.testing.assert_allclose(_preferences(verdicts), 1.5)
  assert [verdict.consistent for verdict in verdicts] == [False] * 5


def test_one_order_is_drawn_as_alpaca_eval_draws_it(tmp_path):
  with serving(lambda request: (200, said(2.0))) as url:
    verdicts, _ = _judge(url, _equal_models(8, 0), tmp_path)
  switched = [win_rate.is_switched(f'instruction {i}', 0) for i in range(8)]
  assert len(set(switched)) == 2
  assert [x < 1.5 for x in _preferences(verdicts)] == switched


def test_equal_outputs_are_a_tie_that_nobody_is_asked_about(tmp_path):
  asked = []

  def answer(request):
    asked.append(judge_server.instruction_of(request))
    return 200, said(1.0)

  with serving(answer) as url:
    verdicts, _ = _judge(url, [Pair('x', 'same', 'same')], tmp_path)
  assert _preferences(verdicts) == [1.5]
  assert asked == [PROBE]


@pytest.mark.parametrize('key', ['a-secret', ' a-secret\r\n'])
def test_the_key_is_sent_and_not_written(monkeypatch, tmp_path, key):
  monkeypatch.setenv(endpoint_lib.KEY, key)
  with serving(lambda request: (200, said(1.0))) as url:
    _judge(url, _equal_models(2, 0), tmp_path)
  assert 'a-secret' not in (tmp_path / 'answers.jsonl').read_text()


CHATML = """<|im_start|>system
Judge.
<|im_end|>
<|im_start|>user
{
  "instruction": \"""{instruction}\""",
  "m": \"""{output_1}\""", "M": \"""{output_2}\"""
}
<|im_end|>"""


def test_prompts_in_chatml_have_turns_and_outputs_stay_as_they_are(tmp_path):
  (tmp_path / 'prompt.txt').write_text(CHATML)
  prompt = JudgePrompt.read(str(tmp_path / 'prompt.txt'))
  assert prompt.messages('{output_2}', '<|im_end|>', '{0}') == [
    {'role': 'system', 'content': 'Judge.'},
    {
      'role': 'user',
      'content': '{\n  "instruction": """{output_2}""",\n'
      '  "m": """<|im_end|>""", "M": """{0}"""\n}',
    },
  ]
  (tmp_path / 'prompt.txt').write_text('{instruction} {output_1}')
  with pytest.raises(errors.InputError, match=r'must have .*\{output_2\}'):
    JudgePrompt.read(str(tmp_path / 'prompt.txt'))
  with pytest.raises(errors.InputError, match='cannot be read'):
    JudgePrompt.read(str(tmp_path / 'none.txt'))


def test_preference_is_a_ratio_and_absent_names_count_nothing():
  log_probs = {'m': math.log(0.2), 'M': math.log(0.6), 'x': math.log(0.2)}
  assert win_rate.preference(log_probs) == pytest.approx(1.75)
  assert win_rate.preference({'M': -1.0}) == 2.0
  assert win_rate.preference({'m': -1.0, 'x': -0.1}) == 1.0
  assert win_rate.preference({'x': -0.1}) is None
  assert win_rate.preference({'m': -math.inf, 'x': -0.1}) is None
  spaced = {'m': math.log(0.1), ' m': math.log(0.1), 'M': math.log(0.6)}
  assert win_rate.preference(spaced) == pytest.approx(1.75)


def test_win_rate_and_its_error():
  rate, error = win_rate.win_rate([1.0, 2.0, 1.5, 2.0])
  assert rate == pytest.approx(62.5)
  assert error == pytest.approx(np.std([0, 100, 50, 100], ddof=1) / 2)


def test_items_of_the_length_controlled_rate_have_its_bootstrap_error():
  rng = np.random.default_rng(0)
  lengths, reference = rng.integers(50, 400, [2, 300])
  slope = np.tanh((lengths - reference) / 100)
  soft = 1 / (1 + np.exp(-(0.4 + slope + rng.normal(size=300))))

  def rate(rows):
    return win_rate.length_controlled(
      1 + soft[rows], lengths[rows], reference[rows]
    )

  value, error = win_rate.mean_and_error(rate(np.arange(300)))
  drawn = [rate(rng.integers(0, 300, 300)).mean() for _ in range(60)]
  assert value == pytest.approx(np.mean(drawn), abs=0.5)
  assert error == pytest.approx(np.std(drawn), rel=0.25)


@pytest.mark.parametrize('preference', [1.0, 1.5, 2.0])
def test_agreement_is_finite(preference):
  found = win_rate.length_controlled([preference] * 5, range(5), [9] * 5)
  assert np.isfinite(found).all()
  assert found.mean() == pytest.approx(100 * (preference - 1), abs=0.5)


def _alpaca_eval_study():
  """Gamed rows, and preferences with the lengths of both outputs."""
  rng = np.random.default_rng(1)
  count = 805
  difficulty = rng.normal(size=count)
  length = np.concatenate([s * abs(rng.normal(size=count)) for s in (-1, 1)])
  index, difficulties = (np.tile(x, 2) for x in (np.arange(count), difficulty))
  soft = 1 / (1 + np.exp(np.tanh(length) - 0.3 * difficulties))
  lengths, reference = rng.integers(400, 500, [2, count])
  lengths += (100 * difficulty).astype(int)
  slope = np.tanh((lengths - reference) / 140 - 0.5)
  noise = rng.normal(size=count)
  preferences = 1 + 1 / (1 + np.exp(-(slope + 1.2 * difficulty - 0.3 + noise)))
  gamed = np.stack([index, soft, length, difficulties], axis=1)
  return gamed, (preferences, lengths, reference)


def test_rates_are_those_of_alpaca_eval(tmp_path):
  """Numbers of alpaca_eval 0.6.6 on the same data.

  Its regressions are penalised a little: length_controlled_minimal and _v1.
  """
  gamed, study = _alpaca_eval_study()
  header = 'index,preference,std_delta_len,instruction_difficulty'
  path = tmp_path / 'df_gamed.csv'
  np.savetxt(path, gamed, delimiter=',', header=header, comments='')
  found = win_rate.read_gamed(str(path))
  raw, error = win_rate.win_rate(study[0])
  assert (raw, error) == pytest.approx((37.922839727544336, 1.0567626709358722))
  minimal = win_rate.length_controlled(*study)
  assert minimal.mean() == pytest.approx(35.91693, abs=0.05)
  full = win_rate.length_controlled(*study, found, range(805))
  assert full.mean() == pytest.approx(36.12757, abs=0.05)
  np.savetxt(path, gamed[gamed[:, 0] > 0], delimiter=',', header=header)
  with pytest.raises(errors.InputError, match='cannot be read'):
    win_rate.read_gamed(str(path))
  np.savetxt(
    path, gamed[gamed[:, 0] > 0], delimiter=',', header=header, comments=''
  )
  with pytest.raises(errors.InputError, match='number its instructions'):
    win_rate.read_gamed(str(path))


@pytest.mark.parametrize(
  ('outputs', 'message'),
  [
    (
      [{'instruction': i, 'output': 'x'} for i in 'abc'],
      "--reference has no output for the instruction 'c', which --outputs has",
    ),
    ([{'instruction': 'a'}], "entry 0 has no text in 'output'"),
    (['a'], "entry 0 has no text in 'instruction'"),
    ([{'instruction': 'a', 'output': None}], "entry 0 has no text in 'output'"),
    ([{'instruction': 'a', 'output': 'x'}] * 2, "'a' twice"),
    (
      [{'instruction': 'a', 'output': '\ud83d'}],
      "entry 0 has half of a surrogate pair in 'output'",
    ),
  ],
)
def test_missing_outputs_are_one_line(outputs, message):
  reference = pairs_lib.by_instruction(
    [{'instruction': i, 'output': 'y'} for i in 'ab'], '--reference'
  )
  with pytest.raises(errors.InputError, match=message):
    pairs_lib.join(pairs_lib.by_instruction(outputs, '--outputs'), reference)


def test_annotations_of_two_annotators_are_refused(tmp_path):
  row = {'instruction': 'a', 'output_1': 'r', 'output_2': 'o', 'preference': 1}
  path = tmp_path / 'annotations.json'
  path.write_text(json.dumps([{**row, 'annotator': name} for name in 'AB']))
  with pytest.raises(errors.InputError, match=r"two annotations of .* 'a'"):
    pairs_lib.read_annotations(path, [Pair('a', 'r', 'o')], '--judge')


def _annotations(tmp_path, **changes):
  row = {
    'instruction': 'a',
    'output_1': 'r',
    'output_2': 'o',
    'annotator': 'weighted_alpaca_eval_gpt4_turbo',
    'preference': 1.25,
    **changes,
  }
  path = tmp_path / 'annotations.json'
  path.write_text(json.dumps([row]))
  return pairs_lib.read_annotations(
    path, [Pair('a', 'r', 'o'), Pair('b', 'r', 'o')], '--judge'
  )


@pytest.mark.parametrize(
  ('preference', 'expected'),
  [(1.25, 1.25), (2, 2.0), (0.0, 1.5), (None, None), (math.nan, None)],
)
def test_annotations_of_alpaca_eval(tmp_path, preference, expected):
  found, name = _annotations(tmp_path, preference=preference)
  assert found == [expected, None]
  assert name == 'weighted_alpaca_eval_gpt4_turbo'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'output_2': 'other'}, "about other outputs for the instruction 'a'"),
    ({'output_1': 'o', 'output_2': 'r'}, 'with the reference as output_1'),
    ({'preference': 2.5}, r'has the preference 2\.5'),
    ({'preference': 'M'}, "has the preference 'M'"),
    ({'preference': True}, 'has the preference True'),
    ({'preference': False}, 'has the preference False'),
    ({'output_1': None}, "entry 0 has no text in 'output_1'"),
  ],
)
def test_annotations_of_something_else_are_refused(tmp_path, changes, message):
  with pytest.raises(errors.InputError, match=message):
    _annotations(tmp_path, **changes)
