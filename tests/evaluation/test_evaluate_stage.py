"""The evaluate stage against one prompt at a time, without cache or padding."""

import shutil

import formats
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_study

from edsft_jax import errors, evaluation, finetuning, models, store
from edsft_jax.evaluation import metrics, stage, tasks
from edsft_jax.evaluation.runner import Runner
from edsft_jax.mesh import make_mesh

pytestmark = pytest.mark.usefixtures('on_one_device')

BASE = 'no_finetuning-k0-seed0'
CELLS = (BASE, 'random-k5-seed0', 'random-k9-seed0')


def _config():
  config = tiny_study.config()
  # As unlike the base model as a few steps can make it.
  config.finetuning.learning_rate = 0.05
  return config


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory) -> store.Workdir:
  workdir = tiny_study.make(tmp_path_factory.mktemp('evaluated'))
  finetuning.run(_config(), workdir)
  evaluation.run(_config(), workdir)
  return workdir


@pytest.fixture
def workdir(evaluated, tmp_path) -> store.Workdir:
  """A copy that a test may change."""
  shutil.copytree(evaluated.root, tmp_path / 'copy')
  return store.Workdir(tmp_path / 'copy')


@pytest.fixture
def no_evaluation(monkeypatch):
  def call(*unused, **unused_too):
    raise AssertionError('a model was evaluated')

  monkeypatch.setattr(Runner, '__call__', call)


def _brute_force(decoder, forward, prompt_format, prompt, reference):
  """Loss per reference token from every logit, and the greedy answer."""

  def log_prob(ids):
    # To one length, behind what counts: causal, so it changes nothing.
    tokens = np.zeros((1, 48), np.int32)
    tokens[0, : len(ids)] = ids
    logits = np.asarray(forward(decoder, tokens)[0][0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

  prompt_ids, _ = prompt_format.encode_prompt(prompt, 48, for_response=True)
  target = prompt_format.encode_response(prompt, reference)
  rows = log_prob([*prompt_ids, *target])[len(prompt_ids) - 1 :]
  nll = -sum(rows[i, token] for i, token in enumerate(target))
  answer = []
  for _ in range(5):
    ids = [*prompt_ids, *answer]
    token = int(np.argmax(log_prob(ids)[len(ids) - 1]))
    if token in prompt_format.end_ids:
      break
    answer.append(token)
  return {
    'prediction': prompt_format.decode(answer),
    'loss': nll / len(target),
    'num_prompt_tokens': len(prompt_ids),
    # The end token counts as one.
    'num_generated_tokens': min(len(answer) + 1, 5),
    'num_reference_tokens': len(target),
    'truncated': False,
    'finish': 'stop' if len(answer) < 5 else 'length',
  }


@pytest.mark.parametrize('cell', CELLS)
def test_numbers_are_those_of_brute_force(evaluated, forward, cell):
  decoder = models.load_decoder(
    tiny_study.MODEL, 'float32', make_mesh(devices=jax.devices()[:1])
  )
  if cell != BASE:
    models.load_adapter(decoder, evaluated.run(cell).model)
  prompt_format = formats.load(tiny_study.MODEL)
  heldout = store.read_prompts(evaluated.heldout)
  rows = store.read_jsonl(evaluated.run(cell).items('heldout'))
  assert [row['id'] for row in rows] == heldout.ids
  expected = []
  for row, task, prompt, reference in zip(
    rows, heldout.tasks, heldout.prompts, heldout.responses, strict=True
  ):
    found = _brute_force(decoder, forward, prompt_format, prompt, reference)
    answer = found['prediction']
    expected.append(
      {
        'id': row['id'],
        'task': task,
        'reference': reference,
        **found,
        'exact_match': metrics.exact_match(answer, reference),
        'rouge_l': metrics.rouge_l(answer, reference),
      }
    )
    loss = pytest.approx(found['loss'], rel=1e-4)
    assert row == {**expected[-1], 'loss': loss}

  def means(some):
    values, weights = (
      [row[name] for row in some] for name in ('loss', 'num_reference_tokens')
    )
    return {
      'loss': pytest.approx(np.average(values, weights=weights), rel=1e-4),
      'exact_match': pytest.approx(np.mean([r['exact_match'] for r in some])),
      'rouge_l': pytest.approx(np.mean([r['rouge_l'] for r in some])),
    }

  result = store.read_json(evaluated.run(cell).evaluation('heldout'))
  assert cell == '{strategy}-k{budget}-seed{seed}'.format(**result)
  assert result['task'] == 'heldout'
  assert result['version'] == 1
  labels = {
    m['label']: m['larger_is_better'] for m in result['metrics'].values()
  }
  assert labels == {'Loss': False, 'Exact match': True, 'ROUGE-L': True}

  def values(found):
    return {name: metric['value'] for name, metric in found.items()}

  assert values(result['metrics']) == means(expected)
  sizes = {metric['n'] for metric in result['metrics'].values()}
  assert sizes == {tiny_study.NUM_HELDOUT}
  assert set(result['by_task']) == {'short', 'long'}
  for name, found in result['by_task'].items():
    some = [row for row in expected if row['task'] == name]
    assert values(found) == means(some)
    assert {metric['n'] for metric in found.values()} == {len(some)}


def test_models_differ(evaluated):
  losses = [
    store.read_json(evaluated.run(cell).evaluation('heldout'))['metrics'][
      'loss'
    ]['value']
    for cell in CELLS
  ]
  assert len(set(losses)) == 3


def test_small_batches_and_several_devices_change_nothing(evaluated, workdir):
  for cell in CELLS:
    workdir.run(cell).evaluation('heldout').unlink()
  config = _config()
  config.evaluation.batch_tokens = 60
  mesh = make_mesh(devices=jax.devices()[:4])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('edsft_jax.mesh.model_mesh', lambda data, fsdp, tensor: mesh)
    evaluation.run(config, workdir)
  for cell in CELLS:
    for ours, theirs in zip(
      store.read_jsonl(workdir.run(cell).items('heldout')),
      store.read_jsonl(evaluated.run(cell).items('heldout')),
      strict=True,
    ):
      assert ours == {**theirs, 'loss': pytest.approx(theirs['loss'], rel=1e-4)}


def test_what_is_done_is_not_done_again(workdir, no_evaluation, capsys):
  evaluation.run(_config(), workdir)
  assert '3 models, all already done' in capsys.readouterr().out
  workdir.run(CELLS[1]).evaluation('heldout').unlink()
  with pytest.raises(AssertionError, match='a model was evaluated'):
    evaluation.run(_config(), workdir)


def test_the_manifest_is_completed(workdir, no_evaluation):
  """Killed after the last eval.json; or counts of other tasks are there."""
  manifest = store.Manifest(workdir)
  manifest.forget('evaluate')
  manifest.begin('evaluate', {})
  manifest.finish('evaluate', {'quiz_items': 9})
  evaluation.run(_config(), workdir)
  record = store.Manifest(workdir).stages['evaluate']
  assert record.done
  assert record.counts == {'quiz_items': 9, 'models': 3}


@pytest.mark.parametrize('text', ['', '{}', '{"metrics": {}'])
def test_a_damaged_evaluation_is_named(workdir, no_evaluation, text):
  workdir.run(CELLS[1]).evaluation('heldout').write_text(text)
  with pytest.raises(errors.InputError, match=r'eval\.json is not a complete'):
    evaluation.run(_config(), workdir)


def test_rows_without_a_column_name_the_task(workdir, monkeypatch):
  """A task's mistake is a bug, not something that the user has to fix."""
  score = tasks.TASKS['heldout'].score

  def without(self, item, responses):
    row = score(self, item, responses)
    del row['finish']
    return row

  monkeypatch.setattr(tasks.TASKS['heldout'], 'score', without)
  workdir.run(CELLS[1]).evaluation('heldout').unlink()
  with pytest.raises(TypeError, match=r"task heldout have no \['finish'\]"):
    evaluation.run(_config(), workdir)


def test_other_options_are_refused(workdir, no_evaluation):
  config = _config()
  config.evaluation.max_new_tokens = 6
  with pytest.raises(
    errors.InputError, match=r'evaluation.max_new_tokens \(was 5, is 6\)'
  ):
    evaluation.run(config, workdir)


def test_a_cell_finetuned_again_is_refused_by_name(workdir, no_evaluation):
  run = workdir.run(CELLS[2])
  cell = store.read_json(run.cell)
  cell['fingerprint']['prompts and answers'] = 'others'
  store.write_json(run.cell, cell)
  with pytest.raises(errors.InputError, match=r'random-k9-seed0.*eval\.json'):
    evaluation.run(_config(), workdir)


def test_cells_without_a_model_wait(workdir, no_evaluation, capsys):
  shutil.rmtree(workdir.run(CELLS[1]).root)
  evaluation.run(_config(), workdir)
  out = capsys.readouterr().out
  assert '1 of 2 cells have no model yet' in out
  assert '2 models, all already done' in out


def test_limit_takes_the_first(tmp_path):
  workdir = tiny_study.make(tmp_path)
  config = _config()
  config.evaluation.limit = 3
  evaluation.run(config, workdir)
  result = store.read_json(workdir.run(BASE).evaluation('heldout'))
  assert result['metrics']['loss']['n'] == 3
  assert sum(t['loss']['n'] for t in result['by_task'].values()) == 3
  rows = store.read_jsonl(workdir.run(BASE).items('heldout'))
  assert [row['id'] for row in rows] == ['h0', 'h1', 'h2']


def test_full_models_and_no_tasks(tmp_path):
  workdir = tiny_study.make(tmp_path)
  table = pq.read_table(workdir.heldout).drop_columns('task')
  store.write_parquet(workdir.heldout, table)
  config = _config()
  config.finetuning.method = 'full'
  config.study.budgets = (5,)
  finetuning.run(config, workdir)
  evaluation.run(config, workdir)
  base, cell = (
    store.read_json(workdir.run(name).evaluation('heldout'))
    for name in CELLS[:2]
  )
  assert base['by_task'] == cell['by_task'] == {}
  assert base['metrics']['loss']['value'] != cell['metrics']['loss']['value']


def test_compiled_once_for_all_models(workdir, monkeypatch):
  runners = {}
  call = Runner.__call__

  def noted(self, *args):
    result = call(self, *args)
    runners.setdefault(self, []).append(self.num_programs)
    return result

  monkeypatch.setattr(Runner, '__call__', noted)
  for cell in CELLS:
    workdir.run(cell).evaluation('heldout').unlink()
  evaluation.run(_config(), workdir)
  ((runner, counts),) = runners.items()
  assert counts[0] > 0
  assert counts == [runner.num_programs] * len(CELLS)


@pytest.mark.parametrize(
  ('option', 'value', 'message'),
  [
    ('max_new_tokens', 0, 'evaluation.max_new_tokens is 0'),
    ('max_new_tokens', 160, 'evaluation.max_new_tokens is 160: give 1 to 159'),
    ('batch_tokens', 0, 'evaluation.batch_tokens is 0'),
    ('limit', -1, 'evaluation.limit is -1'),
  ],
)
def test_bad_options(evaluated, option, value, message):
  config = _config()
  config.evaluation[option] = value
  with pytest.raises(errors.InputError, match=message):
    evaluation.check(config, evaluated, frozenset())


def test_no_heldout_set(tmp_path):
  workdir = store.Workdir(tmp_path)
  config = _config()
  evaluation.check(config, workdir, frozenset({'pool'}))
  with pytest.raises(errors.InputError, match=r'pool\.heldout_fraction'):
    evaluation.check(config, workdir, frozenset({'finetune'}))
  config.pool.heldout_fraction = 0.0
  with pytest.raises(errors.InputError, match=r'set pool\.heldout_path or'):
    evaluation.check(config, workdir, frozenset({'pool'}))


def test_a_prompt_that_the_template_refuses_is_named(workdir):
  heldout = store.read_prompts(workdir.heldout)
  config = _config()
  config.prompt.template = (
    f"{{% if messages[0].content == '{heldout.prompts[1]}' %}}"
    "{{ raise_exception('no') }}{% endif %}"
    '{% for m in messages %}{{ m.content }} {% endfor %}'
  )
  for cell in CELLS:
    shutil.rmtree(workdir.run(cell).evaluations)
  with pytest.raises(
    errors.InputError, match=f"prompt '{heldout.ids[1]}': .*no"
  ):
    evaluation.run(config, workdir)


def test_a_workdir_of_the_old_form_is_evaluated_again(workdir, capsys):
  """Before there were tasks, a cell had one eval.json in its own folder."""
  for cell in CELLS:
    run = workdir.run(cell)
    shutil.rmtree(run.evaluations)
    store.write_json(run.old_evaluation[0], {'metrics': {'loss': 1.0}})
    store.write_jsonl(run.old_evaluation[1], [{'prediction': 'x'}])
  manifest = store.read_json(workdir.manifest)
  manifest['stages']['evaluate']['fingerprint'] = {'heldout': 'abc'}
  store.write_json(workdir.manifest, manifest)
  evaluation.run(_config(), workdir)
  assert '3 models on 11 items of heldout' in capsys.readouterr().out
  for cell in CELLS:
    assert workdir.run(cell).items('heldout').exists()
    assert not any(p.exists() for p in workdir.run(cell).old_evaluation)


@pytest.mark.parametrize(
  ('tasks', 'message'),
  [
    ((), 'evaluation.tasks is empty'),
    (('heldot',), "did you mean 'heldout'"),
    (('heldout', 'heldout'), 'has duplicates'),
  ],
)
def test_bad_tasks(evaluated, tasks, message):
  config = _config()
  config.evaluation.tasks = tasks
  with pytest.raises(errors.InputError, match=message):
    evaluation.check(config, evaluated, frozenset())


def test_a_metric_that_no_task_gives_is_refused():
  config = _config()
  config.report.metric = 'rouge'
  with pytest.raises(errors.InputError, match="did you mean 'rouge_l'"):
    stage.check_metric(config)
  config.report.metric = 'exact_match'
  stage.check_metric(config)


def test_a_missing_adapter_to_start_from_is_named(tmp_path):
  workdir = tiny_study.make(tmp_path / 'workdir')
  config = _config()
  config.finetuning.adapter_path = str(tmp_path / 'x')
  with pytest.raises(
    errors.InputError, match=r'finetuning.adapter_path: .*x/adapter_config.json'
  ):
    evaluation.run(config, workdir)
