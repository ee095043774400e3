"""Benchmarks through the stage, against single rows of a small model."""

import json

import formats
import jax
import numpy as np
import pytest
import tiny_study

from edsft_jax import errors, evaluation, inference, models, store, study
from edsft_jax.evaluation import fewshot, metrics, stage
from edsft_jax.evaluation.task import Metric, TaskInputs
from edsft_jax.evaluation.tasks import TASKS, mmlu
from edsft_jax.mesh import make_mesh

pytestmark = pytest.mark.usefixtures('on_one_device')

BASE = 'no_finetuning-k0-seed0'


def _words(rng, size) -> str:
  return ' '.join(f'w{i}' for i in rng.integers(3, 60, size))


def _questions(seed: int, per_subject: int) -> list[dict]:
  rng = np.random.default_rng(seed)
  return [
    {
      'subject': subject,
      'question': _words(rng, 2),
      'choices': [_words(rng, 1) for _ in range(4)],
      'answer': 'ABCD'[rng.integers(4)],
    }
    for _ in range(per_subject)
    for subject in ('anatomy', 'law')
  ]


def _write(path, rows) -> str:
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


@pytest.fixture
def config(tmp_path):
  c = tiny_study.config()
  c.evaluation.tasks = ('mmlu',)
  c.evaluation.mmlu.path = _write(tmp_path / 'test.jsonl', _questions(1, 3))
  c.evaluation.mmlu.shots_path = _write(
    tmp_path / 'dev.jsonl', _questions(2, 2)
  )
  c.evaluation.mmlu.shots = 1
  return c


def test_questions_and_options_are_searched_for_in_the_pool(config, tmp_path):
  workdir = tiny_study.make(tmp_path / 'run')
  prompt_format = formats.load(tiny_study.MODEL)
  task = TASKS['mmlu'](TaskInputs(config, workdir, prompt_format, 500))
  (question, *_) = mmlu.read(config.evaluation.mmlu.path, 'path')
  lines = task.items[0].text.split('\n')
  assert lines[:2] == [question['question'], f'A. {question["choices"][0]}']
  assert len(lines) == 5


def test_counts_of_parts_are_kept(config, tmp_path):
  workdir = tiny_study.make(tmp_path / 'run')
  evaluation.run(config, workdir, study.CellPart(0, 1))
  assert store.Manifest(workdir).counts('evaluate')['mmlu_items'] == 6
  evaluation.run(config, workdir)
  counts = store.Manifest(workdir).counts('evaluate')
  assert counts['mmlu_items'] == 6
  assert counts['models'] > 0


def _log_probs(decoder, forward, ids):
  # To one length, behind what counts: causal, so it changes nothing.
  tokens = np.zeros((1, 160), np.int32)
  tokens[0, : len(ids)] = ids
  logits = np.asarray(forward(decoder, tokens)[0][0])
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_letters_have_the_likelihoods_of_single_rows(config, tmp_path, forward):
  workdir = tiny_study.make(tmp_path / 'run')
  config.evaluation.mmlu.protocol = 'original'
  evaluation.run(config, workdir)
  run = workdir.run(BASE)
  rows = store.read_jsonl(run.items('mmlu'))
  assert [row['id'] for row in rows[:3]] == ['anatomy/0', 'law/0', 'anatomy/1']
  questions = mmlu.read(config.evaluation.mmlu.path, 'path')
  shots = mmlu.read(config.evaluation.mmlu.shots_path, 'path')
  prompt_format = formats.load(tiny_study.MODEL)
  decoder = models.load_decoder(
    tiny_study.MODEL, 'float32', make_mesh(devices=jax.devices()[:1])
  )
  for row, question in zip(rows[:3], questions[:3], strict=True):
    shot = next(s for s in shots if s['subject'] == question['subject'])
    text = mmlu.prompt('original', question, [shot]).text(1)
    expected = []
    for letter in 'ABCD':
      context, ids = prompt_format.encode_pair(text, f' {letter}')
      log_probs = _log_probs(decoder, forward, [*context, *ids])
      expected.append(
        sum(log_probs[len(context) - 1 + n, i] for n, i in enumerate(ids))
      )
    np.testing.assert_allclose(row['log_likelihoods'], expected, atol=1e-4)
    assert row['prediction'] == 'ABCD'[int(np.argmax(expected))]
    assert row['num_shots'] == 1
    assert row.get('category') == {'anatomy': 'STEM', 'law': None}[row['task']]


def test_results_name_protocol_shots_and_counts(config, tmp_path):
  workdir = tiny_study.make(tmp_path / 'run')
  evaluation.run(config, workdir)
  run = workdir.run(BASE)
  result = store.read_evaluation(run.evaluation('mmlu'))
  assert (result['protocol'], result['shots']) == ('lm_eval', 1)
  assert result['counts']['prompts_truncated'] == 0
  assert set(result['by_task']) == {'anatomy', 'law'}
  assert set(result['by_category']) == {'STEM'}
  rows = store.read_jsonl(run.items('mmlu'))
  micro = np.mean([row['accuracy'] for row in rows])
  assert result['metrics']['accuracy']['value'] == pytest.approx(micro)
  config.evaluation.mmlu.protocol = 'original'
  with pytest.raises(errors.InputError, match=r'evaluation\.mmlu\.protocol'):
    evaluation.run(config, workdir)


def test_both_forms_of_prompts_are_reported(config, tmp_path, capsys):
  config.prompt.template = (
    "w7 {% for m in messages %}{{ m['content'] }}{% endfor %} w8 "
  )
  config.evaluation.tasks = ('mmlu', 'mmlu:chat')
  config.report.metric = 'mmlu:chat.accuracy'
  stage.check_metric(config)
  workdir = tiny_study.make(tmp_path / 'run')
  evaluation.run(config, workdir)
  run = workdir.run(BASE)
  prompt_format = formats.load(
    tiny_study.MODEL, template=config.prompt.template
  )
  questions = mmlu.read(config.evaluation.mmlu.path, 'path')
  shots = mmlu.read(config.evaluation.mmlu.shots_path, 'path')
  for name, chat in (('mmlu', False), ('mmlu:chat', True)):
    result = store.read_evaluation(run.evaluation(name))
    assert result['task'] == name
    assert result['template'] == (config.prompt.template if chat else None)
    assert result['fingerprint']['evaluation.mmlu.chat'] is chat
    for row, question in zip(
      store.read_jsonl(run.items(name)), questions, strict=True
    ):
      shot = next(s for s in shots if s['subject'] == question['subject'])
      text = prompt_format.text(
        mmlu.prompt('lm_eval', question, [shot]).text(1), chat=chat
      )
      context, _ = prompt_format.encode_pair(text, ' A')
      assert row['num_prompt_tokens'] == len(context)
  # It is a task of its own: done, while the plain form is not.
  run.evaluation('mmlu').unlink()
  capsys.readouterr()
  evaluation.run(config, workdir)
  out = capsys.readouterr().out
  assert ' of mmlu,' in out
  assert 'mmlu:chat,' not in out


@pytest.mark.parametrize('task', ['mmlu', 'gsm8k'])
def test_numbers_that_overflow_are_not_answers(config, tmp_path, task):
  """They would choose A, or some token, and count as wrong."""
  config.evaluation.tasks = (task,)
  config.evaluation.gsm8k.path = _write(
    tmp_path / 'gsm8k.jsonl', [{'question': 'w5 w6', 'answer': '#### 3'}]
  )
  config.evaluation.gsm8k.shots = 0
  config.evaluation.gsm8k.max_new_tokens = 3
  workdir = tiny_study.make(tmp_path / 'run')
  message = f'evaluating {BASE} on {task}: the logits for .* are not finite'
  with (
    tiny_study.overflowing_models(),
    pytest.raises(errors.InputError, match=message),
  ):
    evaluation.run(config, workdir)
  assert not workdir.run(BASE).evaluation(task).exists()


def test_macro_and_clustered_errors():
  values = {'a': [1.0, 0.0, 1.0, 1.0], 'b': [0.0, 0.0]}
  rows = [{'task': t, 'x': v} for t, some in values.items() for v in some]
  found = metrics.aggregate(
    rows,
    {
      'x': Metric('X', True, 'x'),
      'over': Metric('X', True, 'x', column='x', over_tasks=True),
    },
  )
  assert found['x']['value'] == pytest.approx(0.5)
  # Sums of residuals: 4 (0.75 - 0.5) = 1 and 2 (0 - 0.5) = -1.
  assert found['x']['clustered_standard_error'] == pytest.approx(2 / 6)
  assert found['over']['value'] == pytest.approx(0.375)
  # Variances of the means: 0.25 / 4 and 0.
  assert found['over']['standard_error'] == pytest.approx(0.25 / 2)


def test_a_long_prompt_loses_shots_and_then_its_start():
  prompt_format = formats.load(tiny_study.MODEL)
  parts = fewshot.FewShot('w3 w4 ', ['w5 w6 ', 'w7 w8 '], 'w9 w10 w11')
  whole = fewshot.encode(prompt_format, parts, 100)
  assert (whole.num_dropped, whole.truncated) == (0, False)
  assert whole.tokens == prompt_format.encode_text(parts.text(2))
  one = fewshot.encode(prompt_format, parts, len(whole.tokens) - 1)
  assert (one.num_dropped, one.truncated) == (1, False)
  assert one.tokens == prompt_format.encode_text('w3 w4 w5 w6 w9 w10 w11')
  cut = fewshot.encode(prompt_format, parts, 3)
  assert (cut.num_dropped, cut.truncated) == (2, True)
  assert cut.tokens == prompt_format.encode_text('w9 w10 w11')[-3:]
  assert fewshot.counts([whole, one, cut]) == {
    'prompts_without_some_shots': 2,
    'shots_dropped': 3,
    'prompts_truncated': 1,
  }


def test_a_question_longer_than_the_context_is_scored_and_counted(config):
  rows = _questions(1, 1)
  rows[0]['question'] = _words(np.random.default_rng(0), 900)
  path = config.evaluation.mmlu.path
  with open(path, 'w') as f:
    f.write('\n'.join(map(json.dumps, rows)))
  prompt_format = formats.load(tiny_study.MODEL)
  task = TASKS['mmlu'](TaskInputs(config, None, prompt_format, 40))
  assert task.counts['prompts_truncated'] == 1
  request = task.items[0].requests[0]
  assert request.truncated
  question = mmlu.read(path, 'path')[0]
  text = mmlu.prompt('lm_eval', question, []).text(0)
  whole = prompt_format.encode_text(f'{text} A')
  assert len(whole) > 900
  assert list(request.tokens) == whole[-41:]


SAME = 'the file of the questions'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mmlu.protocol': 'orignal'}, "did you mean 'original'"),
    ({'mmlu.path': ''}, r'evaluation\.mmlu\.path is empty'),
    ({'mmlu.path': 'nowhere.jsonl'}, 'nowhere.jsonl does not exist'),
    (
      {'mmlu.shots_path': ''},
      r'shots is 1, but evaluation\.mmlu\.shots_path is empty',
    ),
    ({'mmlu.shots': 3}, 'has 2 examples of anatomy'),
    ({'mmlu.shots_path': SAME}, 'has the questions that are asked'),
    ({'tasks': ('ifeval',)}, "lm-evaluation-harness are 'lm_eval:NAME'"),
    ({'mmlu.limit': -1}, 'limit is -1: must be at least 0'),
    ({'mmlu.chat': True}, 'the model lacks a chat template'),
    ({'tasks': ('mlu',)}, "did you mean 'mmlu'"),
    ({'tasks': ('mlu:chat',)}, "did you mean 'mmlu'"),
    ({'tasks': ('mmlu:chat',)}, 'the model lacks a chat template'),
    ({'tasks': ('heldout:chat',)}, "name 'heldout' alone"),
    (
      {'tasks': ('mmlu:chat',), 'mmlu.chat': True},
      "name 'mmlu' alone, or set the option to False",
    ),
  ],
)
def test_bad_options_are_named(config, tmp_path, changes, message):
  for name, value in changes.items():
    *sections, last = name.split('.')
    section = config.evaluation
    for part in sections:
      section = section[part]
    section[last] = config.evaluation.mmlu.path if value is SAME else value
  workdir = tiny_study.make(tmp_path / 'run')
  with pytest.raises(errors.InputError, match=message):
    stage.run(config, workdir)


def test_a_continuation_is_tokenised_with_its_context(shared):
  """Alone, ' A' has other ids with SentencePiece."""
  prompt_format = formats.load(shared / 'models' / 'stories260K')
  context, ids = prompt_format.encode_pair('Once upon a time:  ', 'Lily')
  assert [*context, *ids] == prompt_format.encode_text(
    'Once upon a time:  Lily'
  )
  assert context == prompt_format.encode_text('Once upon a time:')
  assert ids != prompt_format.encode_text('Lily')[1:]


def test_stops_and_lengths_go_to_the_engine(tmp_path):
  """GSM8K of a tiny model: nothing right, everything finite and counted."""
  c = tiny_study.config()
  rng = np.random.default_rng(3)
  rows = [
    {'question': _words(rng, 3), 'answer': f'{_words(rng, 2)} #### {i}'}
    for i in range(4)
  ]
  c.evaluation.tasks = ('gsm8k',)
  c.evaluation.gsm8k.path = _write(tmp_path / 'test.jsonl', rows)
  c.evaluation.gsm8k.shots = 0
  c.evaluation.gsm8k.limit = 3
  c.evaluation.gsm8k.max_new_tokens = 4
  workdir = tiny_study.make(tmp_path / 'run')
  evaluation.run(c, workdir)
  rows = store.read_jsonl(workdir.run(BASE).items('gsm8k'))
  assert len(rows) == 3
  decoder = models.load_decoder(
    tiny_study.MODEL, 'float32', make_mesh(devices=jax.devices()[:1])
  )
  prompt_format = formats.load(tiny_study.MODEL)
  for row in rows:
    assert row['num_generated_tokens'] <= 4
    assert row['finish'] in ('stop', 'length')
  text = (
    'Question: '
    + json.loads((tmp_path / 'test.jsonl').read_text().split('\n')[0])[
      'question'
    ]
    + '\nAnswer:'
  )
  ids = prompt_format.encode_text(text)
  tokens, mask = inference.pad_left([ids], len(ids))
  found = inference.generate(
    decoder, tokens, mask, max_new_tokens=4, end_ids=prompt_format.end_ids
  )
  num = int(found.num_tokens_B[0])
  new = found.tokens_BxT[0, :num].tolist()
  if new[-1] in prompt_format.end_ids:
    new.pop()
  assert rows[0]['text'] == prompt_format.decode(new)
