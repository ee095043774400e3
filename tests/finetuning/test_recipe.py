"""The recipe: rates, dropout, adapters to start from, held-out losses."""

import dataclasses
import functools
import json
import math
import shutil
import signal

from flax import nnx
import jax
import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
import tiny_study

from edsft_jax import errors, finetuning, mesh, models, store
from edsft_jax.finetuning import batches, options
from edsft_jax.finetuning import trainer as trainer_lib
from edsft_jax.finetuning.checkpoints import Checkpoints
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.finetuning.schedules import learning_rates
from edsft_jax.models import lora
from edsft_jax.models.responses import Example

pytestmark = pytest.mark.usefixtures('on_one_device')

CELL = 'random-k9-seed0'


def _config(**changed):
  config = tiny_study.config()
  config.study.budgets = (9,)
  config.finetuning.update(changed)
  return config


def test_schedules():
  def rates(name):
    return learning_rates(name, 0.4, 12, warmup_fraction=0.1)[1:]

  # Two steps of warm-up, then ten that go down from the peak.
  np.testing.assert_allclose(rates('constant'), 0.4, rtol=1e-6)
  np.testing.assert_allclose(
    rates('linear'), [0.4, *np.linspace(0.4, 0.04, 10)], rtol=1e-6
  )
  share = np.arange(10) / 10
  np.testing.assert_allclose(
    rates('cosine'),
    [0.4, *(0.2 * (1 + np.cos(np.pi * share)))],
    rtol=1e-6,
  )


@pytest.mark.parametrize('name', ['constant', 'linear', 'cosine'])
def test_warmup_takes_two_steps_at_least(name):
  assert learning_rates(name, 0.4, 40, 0.001)[0] == np.float32(0.2)
  assert learning_rates(name, 0.4, 40, 0.0)[0] == np.float32(0.4)


def test_methods_have_rates_of_their_own():
  for method, rate in (('lora', 1e-3), ('full', 1e-4)):
    config = _config(method=method, learning_rate=0.0)
    assert options.hyperparameters(config.finetuning).learning_rate == rate
  config.finetuning.learning_rate = 0.5
  assert options.hyperparameters(config.finetuning).learning_rate == 0.5


EXAMPLES = [
  Example(list(range(3, 3 + n)), m, False, False)
  for n, m in ((10, 4), (5, 3), (16, 1), (7, 6), (9, 2))
]


@functools.cache
def _trainer(memory=None) -> trainer_lib.Trainer:
  """A trainer with dropout."""
  device_mesh = mesh.make_mesh()
  config = _config(lora_dropout=0.5)
  return trainer_lib.Trainer(
    lambda: models.load_decoder(tiny_study.MODEL, 'float32', device_mesh),
    options.hyperparameters(config.finetuning),
    device_mesh,
    memory,
  )


def _losses(trainer, key) -> list[float]:
  """The losses of three steps."""
  state, losses = trainer.init_state(0), []
  for _ in range(3):
    state, loss = trainer.step(state, EXAMPLES, np.float32(0.05), key)
    losses.append(float(loss))
  return losses


def test_dropout_does_not_depend_on_how_a_step_is_divided():
  key = jax.random.key(1)
  packed = _losses(_trainer(), key)
  for memory in (
    MemoryOptions(packing=False),
    MemoryOptions(micro_batch_size=1, remat='layer'),
  ):
    divided = _losses(_trainer(memory), key)
    np.testing.assert_allclose(divided, packed, rtol=1e-4)
  # A new adapter's B is zero, so the first loss does not see its inputs.
  for other in (None, jax.random.key(2)):
    losses = _losses(_trainer(), other)
    assert not np.allclose(packed[1:], losses[1:], rtol=1e-3)


def test_dropout_keeps_the_mean():
  device_mesh = mesh.make_mesh()
  decoder = models.load_decoder(tiny_study.MODEL, 'float32', device_mesh)
  models.add_lora(decoder, 4, 8.0, ('q_proj',), nnx.Rngs(0))
  linear = decoder.layers[0].self_attn.q_proj
  linear.lora_b = models.LoRAParam(linear.lora_b[...] + 1.0)
  x = np.ones((1, 2000, linear.weight.shape[0]), np.float32)
  plain = linear(x)
  numbers = np.arange(2000, dtype=np.int32)[None]
  models.set_dropout(decoder, 0.25, jax.random.key(0), numbers)
  dropped = linear(x)
  assert float(np.std(dropped[0, :, 0])) > 0
  np.testing.assert_allclose(
    np.mean(dropped, axis=1), np.mean(plain, axis=1), atol=0.05
  )


def test_a_step_has_a_dropout_key_of_its_own():
  keys = [batches.dropout_key(s, t) for s in (0, 1) for t in (1, 2)]
  assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 4


def test_rank_stabilised_adapters(tmp_path):
  """As PEFT has them: alpha / sqrt(rank), and a field that says so."""
  device_mesh = mesh.make_mesh()
  decoder = models.load_decoder(tiny_study.MODEL, 'float32', device_mesh)
  models.add_lora(decoder, 4, 8.0, ('q_proj',), nnx.Rngs(0), rslora=True)
  assert decoder.layers[0].self_attn.q_proj.lora_scale == 8.0 / math.sqrt(4)
  models.save_adapter(decoder, tmp_path, 'base', rslora=True, dropout=0.1)
  fields = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert fields['use_rslora'] is True
  assert fields['lora_alpha'] == 8.0
  assert fields['lora_dropout'] == 0.1
  again = models.load_decoder(tiny_study.MODEL, 'float32', device_mesh)
  models.load_adapter(again, tmp_path)
  assert again.layers[0].self_attn.q_proj.lora_scale == 4.0


@pytest.mark.parametrize('rslora', [False, True])
def test_a_run_starts_from_an_adapter(workdir, tmp_path, rslora):
  decoder = models.load_decoder(tiny_study.MODEL, 'float32', mesh.make_mesh())
  models.add_lora(
    decoder, 2, 8.0, ('v_proj', 'q_proj'), nnx.Rngs(7), rslora=rslora
  )
  models.save_adapter(decoder, tmp_path / 'start', 'base', rslora=rslora)
  config = _config(adapter_path=str(tmp_path / 'start'))
  with pytest.raises(errors.InputError) as error:
    finetuning.check(config, workdir, frozenset())
  # The message has the words that make it right.
  assert '--config.finetuning.lora_rank="2"' in str(error.value)
  config.finetuning.update(
    lora_rank=2,
    lora_alpha=8.0,
    rslora=rslora,
    lora_targets=('q_proj', 'v_proj'),
    # So small that the weights hardly move.
    learning_rate=1e-12,
  )
  finetuning.run(config, workdir)
  trained = models.load_decoder(tiny_study.MODEL, 'float32', mesh.make_mesh())
  models.load_adapter(trained, workdir.run(CELL).model)
  for (_, ours), (_, start) in zip(
    lora.projections(trained), lora.projections(decoder), strict=True
  ):
    assert ours.lora_scale == start.lora_scale
    if start.lora_a is not None:
      np.testing.assert_allclose(ours.lora_a[...], start.lora_a[...], atol=1e-8)
  # Another adapter is another study.
  models.save_adapter(trained, tmp_path / 'start', 'base', rslora=rslora)
  with pytest.raises(errors.InputError, match=r'adapter_path \(its files\)'):
    finetuning.run(config, workdir)


def test_full_finetuning_has_no_adapter_to_start_from(workdir):
  config = _config(method='full', adapter_path='x')
  with pytest.raises(errors.InputError, match=r'adapter_path needs .*lora'):
    finetuning.check(config, workdir, frozenset())


def test_an_adapter_to_start_from_has_to_exist(workdir):
  config = _config(adapter_path='x')
  with pytest.raises(
    errors.InputError,
    match=r'finetuning.adapter_path: .*folder of a PEFT adapter',
  ):
    finetuning.check(config, workdir, frozenset())


@pytest.fixture
def start(tmp_path):
  """An adapter with the options of these tests."""
  decoder = models.load_decoder(tiny_study.MODEL, 'float32', mesh.make_mesh())
  c = _config().finetuning
  models.add_lora(
    decoder, c.lora_rank, c.lora_alpha, c.lora_targets, nnx.Rngs(0)
  )
  name = models.portable_name(tiny_study.MODEL)
  models.save_adapter(decoder, tmp_path / 'start', name)
  return tmp_path / 'start'


def test_an_adapter_to_start_from_has_to_be_complete(workdir, start):
  config = _config(adapter_path=str(start))
  finetuning.check(config, workdir, frozenset())
  weights = start / lora.ADAPTER_WEIGHTS
  content = weights.read_bytes()
  tensors = safetensors.numpy.load(content)
  name = sorted(tensors)[0]
  others = {n: x for n, x in tensors.items() if n != name}
  safetensors.numpy.save_file(others, weights)
  with pytest.raises(
    errors.InputError, match=rf'finetuning.adapter_path: .*no tensor {name}'
  ):
    finetuning.check(config, workdir, frozenset())
  weights.write_bytes(content[:-7])
  with pytest.raises(
    errors.InputError, match=r'finetuning.adapter_path: .*copy it again'
  ):
    finetuning.check(config, workdir, frozenset())
  # As PEFT used to save it.
  weights.rename(start / 'adapter_model.bin')
  with pytest.raises(
    errors.InputError, match=r'finetuning.adapter_path: .*as safetensors'
  ):
    finetuning.check(config, workdir, frozenset())


def test_an_adapter_of_another_model_is_said(workdir, start, capsys):
  config = _config(adapter_path=str(start), epochs=1, batch_size=9)
  finetuning.run(config, workdir)
  assert 'was trained on' not in capsys.readouterr().out
  shutil.rmtree(workdir.runs)
  file = start / lora.ADAPTER_CONFIG
  fields = json.loads(file.read_text())
  fields['base_model_name_or_path'] = 'meta-llama/Other'
  file.write_text(json.dumps(fields))
  finetuning.run(config, workdir)
  (line,) = [
    x for x in capsys.readouterr().out.split('\n') if 'trained on' in x
  ]
  assert "finetuning.adapter_path was trained on 'meta-llama/Other'" in line
  assert str(tiny_study.MODEL) in line


def _heldout_losses(workdir) -> dict[int, float]:
  lines = store.read_jsonl(workdir.run(CELL).metrics)
  return {
    line['step']: line['heldout_loss']
    for line in lines
    if 'heldout_loss' in line
  }


def _adapter(workdir) -> bytes:
  return (workdir.run(CELL).model / lora.ADAPTER_WEIGHTS).read_bytes()


def _stop(config, workdir, last) -> None:
  """Finetunes, and interrupts it in step `last`."""
  steps, step = [], trainer_lib.Trainer.step

  def stopping_step(*args):
    steps.append(1)
    if len(steps) == last:
      signal.raise_signal(signal.SIGINT)
    return step(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trainer_lib.Trainer, 'step', stopping_step)
    with pytest.raises(KeyboardInterrupt):
      finetuning.run(config, workdir)


# A rate that is far too high, so that the loss falls and then jumps about.
HIGH = {'learning_rate': 0.3, 'epochs': 40, 'schedule': 'constant'}
KEEPING = {**HIGH, 'eval_steps': 2, 'keep_best': True, 'early_stopping': 3}


@pytest.fixture(scope='module')
def best(tmp_path_factory) -> store.Workdir:
  """An uninterrupted run that keeps its best state."""
  workdir = tiny_study.make(tmp_path_factory.mktemp('best'))
  finetuning.run(_config(**KEEPING), workdir)
  return workdir


@pytest.fixture(scope='module')
def after_best(best, tmp_path_factory) -> store.Workdir:
  """The same, interrupted after its best step."""
  workdir = tiny_study.make(tmp_path_factory.mktemp('after_best'))
  _stop(_config(**KEEPING), workdir, _best_step(best) + 3)
  return workdir


@pytest.fixture
def copy(after_best, tmp_path) -> store.Workdir:
  root = shutil.copytree(after_best.root, tmp_path / 'copy')
  return store.Workdir(root)


def _best_step(workdir) -> int:
  losses = _heldout_losses(workdir)
  return min(losses, key=losses.get)


def _assert_same(ours, theirs) -> None:
  assert _adapter(ours) == _adapter(theirs)
  ours, theirs = ours.run(CELL), theirs.run(CELL)
  assert ours.cell.read_bytes() == theirs.cell.read_bytes()
  assert ours.metrics.read_bytes() == theirs.metrics.read_bytes()


def test_the_best_state_is_kept_and_training_ends_early(best, tmp_path_factory):
  workdir = best
  losses = _heldout_losses(workdir)
  best = _best_step(workdir)
  training = store.read_json(workdir.run(CELL).cell)['training']
  assert training['best_step'] == best
  assert training['best_heldout_loss'] == losses[best]
  # Three losses after the best one, none of them lower; 27 steps in all.
  assert max(losses) == training['steps'] == best + 6 < 27
  assert not workdir.run(CELL).best_checkpoint.exists()
  # What is exported is what a run without these options has at that step.
  plain = tiny_study.make(tmp_path_factory.mktemp('plain'))
  _stop(_config(**HIGH), plain, best)
  plain_losses = [
    line['loss'] for line in store.read_jsonl(plain.run(CELL).metrics)
  ]
  ours = store.read_jsonl(workdir.run(CELL).metrics)
  assert plain_losses == [line['loss'] for line in ours][: len(plain_losses)]
  assert _exported_loss(workdir) == pytest.approx(losses[best], rel=1e-5)


def _change_a_byte(folder) -> None:
  file = max(folder.glob('default/*/*'), key=lambda p: p.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


@pytest.mark.parametrize(
  ('damage', 'what'),
  [
    (_change_a_byte, 'has changed since it was written'),
    (shutil.rmtree, 'is missing'),
    (lambda folder: shutil.rmtree(folder.parent), 'is missing'),
    # Of a step before the best one.
    (lambda folder: folder.rename(folder.with_name('2')), 'is missing'),
  ],
)
def test_a_lost_best_state_is_refused_before_training_on(copy, damage, what):
  run = copy.run(CELL)
  folder = run.best_checkpoint / str(_best_step(copy))
  damage(folder)
  before = run.metrics.read_bytes()
  with pytest.raises(errors.InputError) as error:
    finetuning.run(_config(**KEEPING), copy)
  message = str(error.value)
  assert message.startswith(f'the checkpoint {folder} is ')
  assert what in message
  assert f'remove {run.root} and run the same command' in message
  assert 'remove that folder' not in message
  assert run.metrics.read_bytes() == before
  assert not run.model.exists()


def test_the_remedy_for_a_lost_best_state(copy, best):
  shutil.rmtree(copy.run(CELL).root)
  finetuning.run(_config(**KEEPING), copy)
  _assert_same(copy, best)


def test_a_best_state_that_is_lost_in_training_is_not_exported(copy):
  run = copy.run(CELL)
  folder = run.best_checkpoint / str(_best_step(copy))
  step = trainer_lib.Trainer.step

  def losing_step(*args):
    shutil.rmtree(folder, ignore_errors=True)
    return step(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trainer_lib.Trainer, 'step', losing_step)
    with pytest.raises(errors.InputError, match=f'{folder} is missing: remove'):
      finetuning.run(_config(**KEEPING), copy)
  assert not run.model.exists()
  assert 'training' not in store.read_json(run.cell)


def test_a_best_state_of_a_later_step_than_the_checkpoint(copy, best):
  """As a kill leaves it: the resumed run makes it again."""
  run = copy.run(CELL)
  shutil.rmtree(run.checkpoints)
  _stop(_config(**KEEPING), copy, _best_step(best) - 3)
  # A further kill finds the best state so far, and no other.
  kept = [int(p.name) for p in run.best_checkpoint.iterdir()]
  assert kept == [_best_step(copy)]
  finetuning.run(_config(**KEEPING), copy)
  _assert_same(copy, best)


def test_a_later_best_state_is_not_needed(copy, best):
  """Rounding on other devices may make it worse than one before it."""
  run = copy.run(CELL)
  shutil.rmtree(run.checkpoints)
  lost = run.best_checkpoint / str(_best_step(best))
  kept = lost.rename(lost.with_name('1000'))

  def broken_save(*_):
    raise RuntimeError('killed')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Checkpoints, 'save', broken_save)
    with pytest.raises(RuntimeError, match='killed'):
      finetuning.run(_config(**KEEPING), copy)
  # It goes only once another one is complete.
  assert kept.exists()
  finetuning.run(_config(**KEEPING), copy)
  assert not kept.exists()
  _assert_same(copy, best)


@pytest.mark.parametrize('option', [{'keep_best': True}, {'early_stopping': 1}])
def test_the_best_state_depends_on_the_heldout_answers(workdir, option):
  config = _config(eval_steps=2, **option)
  finetuning.run(config, workdir)
  table = store.read_parquet(workdir.heldout)
  others = pa.array(['w3'] * len(table))
  number = table.column_names.index('response')
  store.write_parquet(
    workdir.heldout, table.set_column(number, 'response', others)
  )
  with pytest.raises(
    errors.InputError, match=r'other inputs: held-out prompts and answers'
  ):
    finetuning.run(config, workdir)


def test_a_rise_is_looked_for_in_the_state_that_is_exported(
  workdir, monkeypatch
):
  measured = []
  loss, decoder = trainer_lib.Trainer.loss, trainer_lib.Trainer.decoder

  def noted_loss(self, state, *rest):
    measured.append(state)
    return loss(self, state, *rest)

  def noted_decoder(self, state):
    measured.append(state)
    return decoder(self, state)

  monkeypatch.setattr(trainer_lib.Trainer, 'loss', noted_loss)
  monkeypatch.setattr(trainer_lib.Trainer, 'decoder', noted_decoder)
  config = _config(**{**KEEPING, 'learning_rate': 3.0, 'epochs': 4})
  finetuning.run(config, workdir)
  training = store.read_json(workdir.run(CELL).cell)['training']
  assert training['exported_step'] == training['best_step'] < training['steps']
  first, exported = measured
  assert first is exported
  card = (workdir.run(CELL).model / 'README.md').read_text()
  assert f'after step {training["best_step"]} of {training["steps"]}' in card


def test_a_heldout_loss_that_is_not_finite_names_the_cell(workdir):
  config = _config(eval_steps=1, learning_rate=1e30)
  with pytest.raises(
    errors.InputError,
    match=rf'{CELL}: the held-out loss is not finite at step 1 \(.*remove',
  ):
    finetuning.run(config, workdir)


def test_the_best_state_stays_until_a_better_one_is_complete(workdir, best):
  """A kill during a save loses neither."""
  save = Checkpoints.save
  kept = workdir.run(CELL).best_checkpoint

  def broken_save(self, step, state, progress):
    if not progress and step == _best_step(best):
      raise RuntimeError('killed')
    save(self, step, state, progress)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Checkpoints, 'save', broken_save)
    with pytest.raises(RuntimeError, match='killed'):
      finetuning.run(_config(**KEEPING), workdir)
  # And only the last of them.
  assert [p.name for p in kept.iterdir()] == [str(_best_step(workdir))]
  finetuning.run(_config(**KEEPING), workdir)
  _assert_same(workdir, best)


def _exported_loss(workdir) -> float:
  """The held-out loss of the exported adapter."""
  config = _config(eval_steps=1, learning_rate=1e-12, epochs=1)
  config.finetuning.adapter_path = str(workdir.run(CELL).model)
  again = tiny_study.make(workdir.root / 'again')
  finetuning.run(config, again)
  return _heldout_losses(again)[1]


def test_heldout_losses_change_nothing(workdir, tmp_path_factory):
  finetuning.run(_config(eval_steps=2), workdir)
  assert list(_heldout_losses(workdir)) == [2, 4, 5]
  plain = tiny_study.make(tmp_path_factory.mktemp('plain'))
  finetuning.run(_config(), plain)
  assert _adapter(workdir) == _adapter(plain)
  # So they may be asked for later.
  finetuning.run(_config(eval_steps=2), plain)


@pytest.mark.parametrize(
  'changes',
  [
    # Adapters at such a rate end anywhere near the loss at the start.
    {'method': 'full', 'learning_rate': 3.0, 'schedule': 'constant'},
    # The last step's examples are easier than the first's.
    {'learning_rate': 3.0, 'epochs': 1},
    # Of a single step, and of two.
    {'learning_rate': 3.0, 'epochs': 1, 'batch_size': 16},
    {**HIGH, 'learning_rate': 3.0, 'epochs': 1, 'batch_size': 5},
  ],
)
def test_a_loss_that_rises_is_said(workdir, capsys, changes):
  finetuning.run(_config(**changes), workdir)
  assert f'{CELL}: the loss ended above its start' in capsys.readouterr().out
  training = store.read_json(workdir.run(CELL).cell)['training']
  start, end = training['loss_rise']
  assert end > start == training['first_loss']


def test_one_step_at_a_usual_rate_is_not_measured(workdir, monkeypatch):
  """That would take as long as the training."""
  monkeypatch.delattr(trainer_lib.Trainer, 'loss')
  finetuning.run(_config(epochs=1, batch_size=16, learning_rate=0.009), workdir)
  training = store.read_json(workdir.run(CELL).cell)['training']
  assert training['steps'] == 1
  assert 'loss_rise' not in training


def test_equal_losses_are_not_a_rise(workdir, capsys):
  finetuning.run(_config(epochs=1, learning_rate=1e-9), workdir)
  assert 'above its start' not in capsys.readouterr().out


def test_a_loss_is_that_of_a_step():
  model, key = _trainer(), jax.random.key(0)
  state = model.init_state(0)
  for _ in range(2):
    loss = float(model.loss(state, EXAMPLES, key))
    state, of_step = model.step(state, EXAMPLES, np.float32(0.05), key)
    assert loss == pytest.approx(float(of_step), rel=1e-6)


def test_every_hyperparameter_is_in_the_fingerprint():
  config = _config()
  found = options.fingerprint(config, tiny_study.MODEL)
  for field in dataclasses.fields(trainer_lib.Hyperparameters):
    assert f'finetuning.{field.name}' in found
