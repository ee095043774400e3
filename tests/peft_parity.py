"""Twenty steps of both methods, by this package and by torch with peft.

  python tests/peft_parity.py

writes the losses of torch and peft to tests/finetuning/peft_parity.json, for
machines without them.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
import tiny_study

from edsft_jax import models
from edsft_jax.finetuning import schedules
from edsft_jax.finetuning.trainer import Trainer
from edsft_jax.mesh import make_mesh
from edsft_jax.models import lora
from edsft_jax.models.responses import Example

GOLDEN = pathlib.Path(__file__).parent / 'finetuning' / 'peft_parity.json'
BASE = tiny_study.MODEL
STEPS = 20
LORA = dataclasses.replace(
  tiny_study.LORA, lora_targets=lora.TARGETS, learning_rate=0.01
)
METHODS = {
  'lora': LORA,
  'full': dataclasses.replace(LORA, method='full', learning_rate=0.003),
}


def rates(method: str) -> np.ndarray:
  """The learning rate of each step."""
  h = METHODS[method]
  return schedules.learning_rates(
    h.schedule, h.learning_rate, STEPS, h.warmup_fraction
  )


def examples(step: int) -> list[Example]:
  """Four of unequal lengths; every fourth step has the same."""
  rng = np.random.default_rng(step % 4)
  return [
    Example(rng.integers(3, 40, size=n).tolist(), m, False, False)
    for n, m in ((30, 14), (5, 3), (21, 1), (12, 11))
  ]


def trainer(method: str) -> Trainer:
  """Of the golden base model, on one device."""
  mesh = make_mesh(devices=jax.devices()[:1])
  load = functools.partial(models.load_decoder, BASE, 'float32', mesh)
  return Trainer(load, METHODS[method], mesh)


def our_losses(method: str) -> list[float]:
  """The loss of each step."""
  model = trainer(method)
  state, losses = model.init_state(0), []
  for step, rate in enumerate(rates(method)):
    state, loss = model.step(state, examples(step), rate)
    losses.append(float(loss))
  return losses


def peer_losses(method: str) -> list[float]:
  """The same by torch and peft, from the same adapter."""
  import peft
  import torch
  import transformers

  h = METHODS[method]
  model = transformers.AutoModelForCausalLM.from_pretrained(
    BASE, dtype=torch.float32
  )
  if method == 'lora':
    ours = trainer('lora')
    with tempfile.TemporaryDirectory() as folder:
      models.save_adapter(ours.decoder(ours.init_state(0)), folder, str(BASE))
      model = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(
    [
      {'params': [p for p in trained if p.ndim > 1]},
      {'params': [p for p in trained if p.ndim == 1], 'weight_decay': 0.0},
    ],
    weight_decay=h.weight_decay,
  )
  losses = []
  for step, rate in enumerate(rates(method)):
    rows = examples(step)
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.zeros((len(rows), longest), dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for number, row in enumerate(rows):
      length = len(row.tokens)
      tokens[number, :length] = torch.tensor(row.tokens)
      mask[number, :length] = 1
      response = slice(length - row.num_response, length)
      labels[number, response] = tokens[number, response]
    logits = model(input_ids=tokens, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(
      logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, h.clip_norm)
    for group in optimizer.param_groups:
      group['lr'] = float(rate)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss.detach()))
  return losses


if __name__ == '__main__':
  golden = {method: peer_losses(method) for method in METHODS}
  GOLDEN.write_text(json.dumps(golden, indent=1) + '\n')
