"""What a cell is exported as, and how other programs find its base model."""

import json

from flax import nnx
import jax
import numpy as np
import pytest
import tiny_study

from edsft_jax import finetuning, mesh, models, store
from edsft_jax.finetuning import trainer as trainer_lib

pytestmark = pytest.mark.usefixtures('on_one_device')

CELL = 'random-k5-seed0'


def _config(kind):
  config = tiny_study.config()
  config.study.budgets = (5,)
  config.finetuning.export = kind
  return config


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> store.Workdir:
  workdir = tiny_study.make(tmp_path_factory.mktemp('both'))
  finetuning.run(_config('both'), workdir)
  return workdir


def _logits(decoder) -> np.ndarray:
  tokens = np.arange(3, 15, dtype=np.int32)[None]
  read = jax.jit(models.Decoder.__call__)
  hidden = read(decoder, tokens, np.ones_like(tokens, bool)).hidden_BxLxD
  return np.asarray(decoder.logits(hidden))


def test_the_merged_model_is_the_adapted_one(finished):
  run = finished.run(CELL)
  device_mesh = mesh.make_mesh()
  adapted = models.load_decoder(tiny_study.MODEL, 'float32', device_mesh)
  base = _logits(nnx.clone(adapted))
  models.load_adapter(adapted, run.model)
  merged = models.load_decoder(run.merged, 'float32', device_mesh)
  np.testing.assert_allclose(_logits(merged), _logits(adapted), atol=1e-4)
  assert not np.allclose(_logits(merged), base, atol=1e-2)


def test_the_tokenizer_is_next_to_the_adapter(finished):
  model = finished.run(CELL).model
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    source = tiny_study.MODEL / name
    if source.exists():
      assert (model / name).read_bytes() == source.read_bytes()
  assert (model / 'tokenizer.json').exists()


def test_the_card_says_how_to_load_it(finished):
  run = finished.run(CELL)
  base = str(tiny_study.MODEL.resolve())
  card = (run.model / 'README.md').read_text()
  assert f'base_model: {base}\n' in card
  assert 'library_name: peft\n' in card
  assert "AutoPeftModelForCausalLM.from_pretrained('.')" in card
  assert f'--model_args pretrained={base},peft=.,tokenizer=.' in card
  training = store.read_json(run.cell)['training']
  assert f'{training["first_loss"]:.3f} at the first step' in card
  merged = (run.merged / 'README.md').read_text()
  assert 'library_name: transformers\n' in merged
  assert "AutoModelForCausalLM.from_pretrained('.')" in merged


def test_the_base_is_found_from_anywhere(finished, tmp_path, monkeypatch):
  fields = json.loads(
    (finished.run(CELL).model / 'adapter_config.json').read_text()
  )
  assert fields['base_model_name_or_path'] == str(tiny_study.MODEL.resolve())
  # A relative path would be another folder elsewhere.
  (tmp_path / 'here').symlink_to(tiny_study.MODEL)
  monkeypatch.chdir(tmp_path)
  assert models.portable_name('here') == str(tiny_study.MODEL.resolve())
  # A folder of the hub's cache has a name that every machine knows.
  snapshot = tmp_path / 'models--some--model-1b' / 'snapshots' / 'abc'
  snapshot.mkdir(parents=True)
  assert models.portable_name(snapshot) == 'some/model-1b'


def test_a_merged_model_is_added_without_training(tmp_path, monkeypatch):
  workdir = tiny_study.make(tmp_path)
  finetuning.run(_config('adapter'), workdir)
  run = workdir.run(CELL)
  assert not run.merged.exists()

  def step(*unused):
    raise AssertionError('a step was made')

  monkeypatch.setattr(trainer_lib.Trainer, 'step', step)
  finetuning.run(_config('both'), workdir)
  assert models.check(run.merged) == models.read_config(tiny_study.MODEL)


def test_merged_alone_is_a_model_directory(tmp_path):
  workdir = tiny_study.make(tmp_path)
  finetuning.run(_config('merged'), workdir)
  run = workdir.run(CELL)
  assert models.check(run.model) == models.read_config(tiny_study.MODEL)
  assert not run.merged.exists()
