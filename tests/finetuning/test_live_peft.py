"""Exports in the peft and transformers that are installed, and theirs here.

They need torch, which the project does not; nothing is downloaded.
"""

import dataclasses
import os

from flax import nnx
import jax
import numpy as np
import peft_parity
import pytest
import tiny_study

from edsft_jax import mesh, models, store, study
from edsft_jax.finetuning import export
from edsft_jax.models import lora

pytestmark = pytest.mark.slow
torch = pytest.importorskip('torch')
peft = pytest.importorskip('peft')
transformers = pytest.importorskip('transformers')

TOKENS = np.arange(3, 35)[None]
FACTS = {'first_loss': 2.0, 'last_loss': 1.0}
CELL = study.Cell('random', 5, 0)


@pytest.fixture(scope='module')
def base(shared):
  return shared / 'models' / 'stories260K'


def _decoder(base) -> models.Decoder:
  device_mesh = mesh.make_mesh(devices=jax.devices()[:1])
  return models.load_decoder(base, 'float32', device_mesh)


def _logits(decoder) -> np.ndarray:
  tokens = TOKENS.astype(np.int32)
  hidden = decoder(tokens, np.ones_like(tokens, bool)).hidden_BxLxD
  return np.asarray(decoder.logits(hidden))


def _torch_logits(model) -> np.ndarray:
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.fixture(scope='module', params=[False, True], ids=['plain', 'rslora'])
def exported(request, base, tmp_path_factory):
  """A cell's folder and the logits of its model."""
  hyperparameters = dataclasses.replace(
    tiny_study.LORA,
    lora_rank=8,
    lora_alpha=16.0,
    lora_dropout=0.1,
    rslora=request.param,
    lora_targets=lora.TARGETS,
  )
  decoder = _decoder(base)
  models.add_lora(
    decoder, 8, 16.0, lora.TARGETS, nnx.Rngs(0), rslora=request.param
  )
  for number, (_, linear) in enumerate(lora.projections(decoder)):
    noise = jax.random.normal(jax.random.key(number), linear.lora_b.shape)
    linear.lora_b = models.LoRAParam(0.05 * noise)
  run = store.Run(tmp_path_factory.mktemp('cell'))
  export.Export('both', hyperparameters, base, 'auto').write(
    decoder, run, CELL, FACTS
  )
  return run, _logits(decoder)


def test_peft_loads_the_adapter_by_the_lines_of_the_card(exported, monkeypatch):
  run, expected = exported
  card = (run.model / 'README.md').read_text()
  lines = [line.strip() for line in card.splitlines()]
  (imported,) = (x for x in lines if x.startswith('from peft import'))
  (loaded,) = (x for x in lines if x.startswith('model = Auto'))
  monkeypatch.chdir(run.model)
  names = {}
  exec(f'{imported}\n{loaded}', names)
  found = _torch_logits(names['model'])
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
  assert transformers.AutoTokenizer.from_pretrained('.').encode('a cat')


def test_transformers_loads_the_merged_model(exported):
  run, expected = exported
  model = transformers.AutoModelForCausalLM.from_pretrained(run.merged)
  np.testing.assert_allclose(
    _torch_logits(model), expected, rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize('rslora', [False, True])
def test_an_adapter_by_peft_is_a_starting_point(base, tmp_path, rslora):
  torch.manual_seed(0)
  config = peft.LoraConfig(
    r=4,
    lora_alpha=8,
    use_rslora=rslora,
    lora_dropout=0.1,
    target_modules=['q_proj', 'v_proj'],
    task_type='CAUSAL_LM',
  )
  model = peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(base), config
  )
  for name, parameter in model.named_parameters():
    if 'lora_B' in name:
      torch.nn.init.normal_(parameter, std=0.2)
  model.save_pretrained(tmp_path)
  decoder = _decoder(base)
  found = lora.read_adapter_config(tmp_path, decoder.config)
  assert found._replace(targets=tuple(sorted(found.targets))) == (
    ('q_proj', 'v_proj'),
    4,
    8,
    rslora,
  )
  models.load_adapter(decoder, tmp_path)
  np.testing.assert_allclose(
    _logits(decoder), _torch_logits(model), rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize('method', list(peft_parity.METHODS))
def test_twenty_steps_have_the_same_losses(method):
  """Those of torch and peft, which test_parity.py has recorded."""
  ours = peft_parity.our_losses(method)
  np.testing.assert_allclose(ours, peft_parity.peer_losses(method), rtol=1e-5)


def test_lm_eval_loads_the_adapter_by_the_arguments_of_the_card(exported):
  lm_eval = pytest.importorskip('lm_eval')
  from lm_eval.models.huggingface import HFLM

  del lm_eval
  run, _ = exported
  card = (run.model / 'README.md').read_text()
  (words,) = (x for x in card.splitlines() if '--model_args' in x)
  arguments = dict(
    pair.split('=') for pair in words.split('--model_args ')[1].split(',')
  )
  before = os.getcwd()
  os.chdir(run.model)
  try:
    model = HFLM(**arguments, device='cpu')
  finally:
    os.chdir(before)
  assert isinstance(model.model, peft.PeftModel)
