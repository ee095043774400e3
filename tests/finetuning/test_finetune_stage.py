"""The finetune stage on a tiny study: resumable, and refusing what changed."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pytest
import tiny_study

from edsft_jax import errors, finetuning, models, store, study
from edsft_jax.finetuning import trainer as trainer_lib

pytestmark = pytest.mark.usefixtures('on_one_device')

CELLS = ('random-k5-seed0', 'random-k9-seed0')


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> store.Workdir:
  """An uninterrupted run, to compare with."""
  workdir = tiny_study.make(tmp_path_factory.mktemp('finished'))
  finetuning.run(tiny_study.config(), workdir)
  return workdir


@pytest.fixture
def no_training(monkeypatch):
  """Every optimizer step is a failure."""

  def step(*unused):
    raise AssertionError('a step was made')

  monkeypatch.setattr(trainer_lib.Trainer, 'step', step)


def _weights(workdir, cell) -> bytes:
  return (workdir.run(cell).model / 'adapter_model.safetensors').read_bytes()


def _assert_same_metrics(workdir, finished, cell) -> None:
  ours, theirs = (w.run(cell).metrics.read_bytes() for w in (workdir, finished))
  assert ours == theirs


def _metrics(workdir, cell) -> list[dict]:
  return store.read_jsonl(workdir.run(cell).metrics)


def test_what_a_cell_leaves(finished):
  assert sorted(p.name for p in finished.runs.iterdir()) == list(CELLS)
  for cell, budget, steps in zip(CELLS, (5, 9), (3, 5), strict=True):
    run = finished.run(cell)
    assert sorted(p.name for p in run.root.iterdir()) == [
      'cell.json',
      'metrics.jsonl',
      'model',
      'tensorboard',
      'timing.jsonl',
    ]
    assert store.read_json(run.cell)['budget'] == budget
    lines = _metrics(finished, cell)
    assert [line['step'] for line in lines] == [1, *range(2, steps, 2), steps]
    assert all(set(line) == set(lines[0]) for line in lines)
    assert list(lines[0]) == [
      'step',
      'loss',
      'learning_rate',
      'tokens',
    ]
    timing = store.read_jsonl(run.timing)
    assert [line['step'] for line in timing] == [line['step'] for line in lines]
    assert list(run.tensorboard.glob('events*'))


def test_counts_and_tokens(finished):
  """Each example is seen once per epoch; only its response tokens count."""
  answers = store.read_responses(finished.responses)
  ids = study.selected_ids(finished, 'random', 0)[:9]
  num_tokens = [len(answers[i].split()) + 1 for i in ids]  # Words and EOS.
  assert _metrics(finished, CELLS[0])[-1]['tokens'] == 2 * sum(num_tokens[:5])
  assert _metrics(finished, CELLS[1])[-1]['tokens'] == 2 * sum(num_tokens)
  assert store.Manifest(finished).counts('finetune') == {
    'cells': 2,
    'steps': 3 + 5,
    'examples': 9,
    'response_tokens': sum(num_tokens),
    'prompts_truncated': 0,
    'responses_cut': 0,
    'with_control_tokens': 0,
  }


def test_the_loss_falls(workdir):
  config = tiny_study.config()
  config.study.budgets = (5,)
  config.finetuning.epochs = 20
  finetuning.run(config, workdir)
  lines = _metrics(workdir, CELLS[0])
  assert lines[-1]['loss'] < 0.7 * lines[0]['loss']


# Dies like a machine does, once a checkpoint is whole and steps followed it.
_KILLED = """
import os, pathlib, signal, sys, time
sys.path.insert(0, 'tests')
import tiny_study
from edsft_jax import store, finetuning
from edsft_jax.finetuning import trainer

workdir = store.Workdir(pathlib.Path(sys.argv[1]))
steps, step = 0, trainer.Trainer.step

def dying_step(*args):
  global steps
  steps += 1
  if steps == 3 + 5:
    checkpoints = workdir.run('random-k9-seed0').checkpoints
    while not any(p.name in ('2', '4') for p in checkpoints.iterdir()):
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
  return step(*args)

trainer.Trainer.step = dying_step
with tiny_study.on_one_device():
  config = tiny_study.config()
  # One cell after the other.
  for budgets in ((5,), (5, 9)):
    config.study.budgets = budgets
    finetuning.run(config, workdir)
"""


def test_a_killed_and_resumed_run_is_as_if_never_interrupted(
  finished, workdir, monkeypatch
):
  killed = subprocess.run(
    [sys.executable, '-c', _KILLED, str(workdir.root)],
    cwd=tiny_study.REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert workdir.run(CELLS[0]).model.exists()
  assert not workdir.run(CELLS[1]).model.exists()
  with workdir.run(CELLS[1]).metrics.open('a') as f:
    f.write('{"step": 4, "lo')  # As a kill in the middle of a line leaves it.
  steps, step = [], trainer_lib.Trainer.step
  monkeypatch.setattr(
    trainer_lib.Trainer,
    'step',
    lambda *args: steps.append(1) or step(*args),
  )
  finetuning.run(tiny_study.config(), workdir)
  assert len(steps) in (1, 3)  # 5 in all, from the checkpoint of 4 or of 2.
  for cell in CELLS:
    assert _weights(workdir, cell) == _weights(finished, cell)
    assert not workdir.run(cell).checkpoints.exists()
    _assert_same_metrics(workdir, finished, cell)


def test_what_is_done_is_not_done_again(finished, no_training, capsys):
  finetuning.run(tiny_study.config(), finished)
  assert 'all already done' in capsys.readouterr().out


def test_another_budget_and_seed_redo_nothing(workdir):
  config = tiny_study.config()
  config.study.budgets = (5,)
  finetuning.run(config, workdir)
  before = {
    path: path.stat().st_mtime_ns
    for path in workdir.run(CELLS[0]).root.rglob('*')
  }
  config.study.budgets = (2, 5)
  config.study.seeds = (0, 1)
  finetuning.run(config, workdir)
  assert len(list(workdir.runs.glob('*/model'))) == 4
  assert before == {path: path.stat().st_mtime_ns for path in before}


def test_full_pool_needs_every_answer(workdir, capsys):
  config = tiny_study.config()
  config.study.budgets = (5,)
  config.study.full_pool = True
  finetuning.run(config, workdir)
  assert 'full pool' not in capsys.readouterr().out
  assert store.read_json(workdir.run(CELLS[0]).cell)['budget'] == 5
  assert workdir.run('full_pool-k13-seed0').model.exists()
  answers = store.read_responses(workdir.responses)
  known = study.selected_ids(workdir, 'random', 0)[:9]
  _write_answers(workdir, {i: answers[i] for i in known})
  finetuning.run(config, workdir)
  assert (
    'not finetuning on the full pool: 4 of 13 prompts have no answer'
    in capsys.readouterr().out
  )


def _write_answers(workdir, answers) -> None:
  store.write_parquet(
    workdir.responses,
    pa.table(
      {'id': list(answers), 'response': list(answers.values())},
    ),
  )


def test_a_missing_answer_is_named(workdir, no_training):
  answers = store.read_responses(workdir.responses)
  missing = study.selected_ids(workdir, 'random', 0)[1]
  del answers[missing]
  _write_answers(workdir, answers)
  with pytest.raises(
    errors.InputError, match=f"1 of 5 prompts.* '{missing}'.*annotate"
  ):
    finetuning.run(tiny_study.config(), workdir)


def test_other_hyperparameters_are_refused(finished, no_training):
  config = tiny_study.config()
  config.finetuning.learning_rate = 0.02
  with pytest.raises(
    errors.InputError, match=r'finetuning.learning_rate \(was 0.01, is 0.02\)'
  ):
    finetuning.run(config, finished)
  config = tiny_study.config()
  # How often to look and to save changes no number.
  config.finetuning.log_steps = 3
  config.finetuning.checkpoint_steps = 3
  finetuning.run(config, finished)


def test_other_answers_are_refused_where_a_cell_is_done(finished, no_training):
  answers = store.read_responses(finished.responses)
  last = study.selected_ids(finished, 'random', 0)[8]
  _write_answers(finished, {**answers, last: 'w3'})
  try:
    with pytest.raises(
      errors.InputError, match=r'random-k9-seed0.*prompts and answers'
    ):
      finetuning.run(tiny_study.config(), finished)
  finally:
    _write_answers(finished, answers)


def test_a_loss_that_is_not_finite_names_cell_and_step(workdir):
  config = tiny_study.config()
  config.study.budgets = (5,)
  config.finetuning.learning_rate = 1e30
  with pytest.raises(
    errors.InputError,
    match=r'random-k5-seed0.*at step [23].*finetuning.learning_rate',
  ):
    finetuning.run(config, workdir)
  run = workdir.run(CELLS[0])
  assert not run.model.exists()
  assert 'NaN' not in run.metrics.read_text()
  # And the remedy helps.
  shutil.rmtree(workdir.runs)
  config.finetuning.learning_rate = 0.01
  finetuning.run(config, workdir)
  assert all(
    math.isfinite(line['loss']) for line in _metrics(workdir, CELLS[0])
  )


def test_a_prompt_that_the_template_refuses_is_named(workdir, no_training):
  refused = study.selected_ids(workdir, 'random', 0)[2]
  pool = store.read_prompts(workdir.pool)
  text = pool.prompts[list(pool.ids).index(refused)]
  config = tiny_study.config()
  config.prompt.template = (
    f"{{% if messages[0].content == '{text}' %}}{{{{ raise_exception('no') }}}}"
    '{% endif %}{% for m in messages %}{{ m.content }} {% endfor %}'
  )
  with pytest.raises(errors.InputError, match=f"prompt '{refused}': .*no"):
    finetuning.run(config, workdir)


def test_weights_that_the_last_step_broke_are_not_kept(workdir):
  """No later loss would show them."""
  config = tiny_study.config()
  config.study.budgets = (4,)
  config.finetuning.epochs = 1
  config.finetuning.learning_rate = 3e38
  config.finetuning.weight_decay = 100.0
  with pytest.raises(errors.InputError, match=r'random-k4-seed0.*at step 1, '):
    finetuning.run(config, workdir)
  assert not workdir.run('random-k4-seed0').model.exists()


def test_long_examples_are_shortened_and_counted(workdir, capsys):
  config = tiny_study.config()
  config.study.budgets = (5,)
  config.finetuning.max_length = 6
  finetuning.run(config, workdir)
  answers = store.read_responses(workdir.responses)
  ids = study.selected_ids(workdir, 'random', 0)[:5]
  counts = store.Manifest(workdir).counts('finetune')
  assert counts['responses_cut'] == sum(
    len(answers[i].split()) + 1 > 5 for i in ids
  )
  assert counts['prompts_truncated'] >= counts['responses_cut'] > 0
  said = capsys.readouterr().out
  assert f'{counts["responses_cut"]} answers cut' in said
  # Before the first step.
  assert re.search(r'needs \d+\.\d GiB per device by count, of \d', said)
  assert 'may not fit' not in said


def test_full_finetuning_writes_a_model_directory(workdir):
  config = tiny_study.config()
  config.study.budgets = (5,)
  config.finetuning.method = 'full'
  finetuning.run(config, workdir)
  model = workdir.run(CELLS[0]).model
  assert models.check(model) == models.read_config(tiny_study.MODEL)
  fingerprint = store.read_json(workdir.run(CELLS[0]).cell)['fingerprint']
  assert fingerprint['finetuning.method'] == 'full'
  assert 'finetuning.lora_rank' not in fingerprint


@pytest.mark.parametrize(
  ('option', 'value', 'message'),
  [
    ('method', 'adapter', "'adapter' is unknown.* All: lora, full"),
    ('lora_rank', 0, 'finetuning.lora_rank is 0'),
    ('lora_targets', ('q',), 'finetuning.lora_targets'),
    ('lora_targets', (), 'finetuning.lora_targets'),
    ('lora_targets', ('q_proj', 'q_proj'), 'lora_targets .* q_proj only once'),
    ('epochs', 0, 'finetuning.epochs is 0'),
    ('epochs', 10**8, 'finetuning.epochs is 100,000,000: .* at most 10,000'),
    ('batch_size', 0, 'finetuning.batch_size is 0'),
    ('max_length', 1, 'finetuning.max_length is 1: give 2 to 160'),
    ('max_length', 161, 'finetuning.max_length is 161'),
    ('learning_rate', -1.0, 'finetuning.learning_rate is -1.0'),
    ('learning_rate', math.nan, 'finetuning.learning_rate is nan'),
    ('learning_rate', 1e39, r'finetuning.learning_rate is 1e\+39.*float32'),
    ('lora_alpha', 1e39, r'finetuning.lora_alpha is 1e\+39.*float32'),
    ('lora_alpha', math.inf, 'finetuning.lora_alpha is inf.*at most 3.4e'),
    ('weight_decay', 1e39, r'finetuning.weight_decay is 1e\+39.*float32'),
    ('clip_norm', 1e39, r'finetuning.clip_norm is 1e\+39.*float32'),
    ('warmup_fraction', 1.5, 'finetuning.warmup_fraction is 1.5'),
    ('weight_decay', -1.0, 'finetuning.weight_decay is -1.0'),
    ('clip_norm', 0.0, 'finetuning.clip_norm is 0.0'),
    ('checkpoint_steps', 0, 'finetuning.checkpoint_steps is 0'),
    ('log_steps', 0, 'finetuning.log_steps is 0'),
    ('remat', 'layers', "finetuning.remat 'layers' is unknown.*'layer'"),
    ('micro_batch_size', -1, 'finetuning.micro_batch_size is -1'),
    ('schedule', 'cosin', "'cosin' is unknown: did you mean 'cosine'"),
    ('export', 'peft', "'peft' is unknown.* All: adapter, merged, both"),
    ('lora_dropout', 1.0, 'finetuning.lora_dropout is 1.0'),
    ('eval_steps', -1, 'finetuning.eval_steps is -1'),
    ('keep_best', True, 'keep_best needs .* set finetuning.eval_steps'),
    ('early_stopping', 2, 'early_stopping needs .* finetuning.eval_steps'),
    ('wandb_project', 'x', 'wandb is not installed: pip install wandb'),
  ],
)
def test_bad_options(workdir, option, value, message):
  config = tiny_study.config()
  config.finetuning[option] = value
  with pytest.raises(errors.InputError, match=message):
    finetuning.check(config, workdir, frozenset())


_EXHAUSTED = 'RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.'


@pytest.mark.parametrize(
  ('owner', 'name'),
  [
    (models, 'load_decoder'),
    (trainer_lib.Trainer, 'init_state'),
    (trainer_lib.Trainer, 'step'),
  ],
)
@pytest.mark.parametrize(
  'error',
  [
    jax.errors.JaxRuntimeError(_EXHAUSTED),
    ValueError(_EXHAUSTED),
    MemoryError(),
  ],
  ids=['program', 'operation', 'host'],
)
def test_too_little_memory_names_the_options(
  workdir, monkeypatch, owner, name, error
):
  def fail(*unused, **also_unused):
    raise error

  config = tiny_study.config()
  config.study.budgets = (5,)
  monkeypatch.setattr(owner, name, fail)
  with pytest.raises(errors.InputError) as raised:
    finetuning.run(config, workdir)
  assert str(raised.value) == (
    'finetuning runs out of memory: use finetuning.micro_batch_size=1 or '
    "finetuning.remat='layer' or more devices with mesh.fsdp, or remove all "
    'cells and use a lower finetuning.lora_rank'
  )
  config.finetuning.update(method='full', micro_batch_size=1, remat='layer')
  shutil.rmtree(workdir.runs, ignore_errors=True)
  with pytest.raises(errors.InputError) as raised:
    finetuning.run(config, workdir)
  assert str(raised.value) == (
    'finetuning runs out of memory: use more devices with mesh.fsdp, or remove '
    "all cells and use finetuning.method='lora'"
  )


def test_other_errors_keep_their_traceback(workdir, monkeypatch):
  def fail(*unused):
    raise ValueError('a bug')

  monkeypatch.setattr(trainer_lib.Trainer, 'init_state', fail)
  with pytest.raises(ValueError, match='a bug'):
    finetuning.run(tiny_study.config(), workdir)


@pytest.mark.parametrize(
  ('name', 'stage'),
  [
    ('pool/pool.parquet', 'pool'),
    ('annotations/responses.parquet', 'annotate'),
    ('selections/random-seed0.jsonl', 'select'),
  ],
)
def test_missing_input_unless_planned(workdir, name, stage):
  config = tiny_study.config()
  finetuning.check(config, workdir, frozenset())
  (workdir.root / name).unlink()
  with pytest.raises(errors.InputError, match=f'{name}.*{stage} stage'):
    finetuning.check(config, workdir, frozenset())
  finetuning.check(config, workdir, frozenset({stage}))


def test_metrics_are_strict_json(finished):
  for cell in CELLS:
    for text in finished.run(cell).metrics.read_text().splitlines():
      json.loads(text, parse_constant=pytest.fail)
    losses = [line['loss'] for line in _metrics(finished, cell)]
    assert np.all(np.isfinite(losses))
