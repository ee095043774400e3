"""A task added as CONTRIBUTING.md says: one file, here with its test."""

from collections.abc import Mapping, Sequence
import shutil
from typing import Any, ClassVar

import formats
import jax
import numpy as np
import pytest
import tiny_study

from edsft_jax import errors, evaluation, models, reporting, store
from edsft_jax.evaluation import stage, task, tasks
from edsft_jax.evaluation.task import Generate, Item, Likelihood, Metric
from edsft_jax.mesh import make_mesh

WORDS = ('w5', 'w9', 'w21', 'w33')


class Repeat:
  """Whether a model repeats a word; by likelihood, and in its answer."""

  name: ClassVar[str] = 'repeat'
  version: ClassVar[int] = 1
  metrics: ClassVar[Mapping[str, Metric]] = {
    'loss': Metric('Loss of the word', False, 'nats'),
    'repeated': Metric('Repeated', True, 'share of answers with the word'),
  }

  def __init__(self, inputs: task.TaskInputs):
    self.stop: tuple[str, ...] = ()
    self.max_new_tokens = 3
    self.about: Mapping[str, Any] = {
      'protocol': 'repeat',
      'shots': 0,
      'template': None,
      'extractor': None,
    }
    self.counts: Mapping[str, int] = {}
    self.items: Sequence[Item] = []
    for word in WORDS:
      context, ids = inputs.prompt_format.encode_pair(word, f' {word}')
      requests = Likelihood([*context, *ids], len(ids)), Generate(context)
      self.items.append(Item(word, 'words', word, requests, text=word))

  @staticmethod
  def check(config, workdir, planned):
    if not config.evaluation.max_new_tokens:
      raise errors.InputError('nothing to repeat')

  @staticmethod
  def fingerprint(config, workdir):
    return {'words': list(WORDS)}

  def score(self, item, responses):
    scored, generated = responses
    return {
      'prediction': generated.text,
      'loss': scored.nll,
      'repeated': float(item.reference in generated.text),
      **task.generation_columns(item.requests[1], generated),
    }


@pytest.mark.usefixtures('on_one_device')
def test_a_new_task_needs_no_other_change(tmp_path, monkeypatch, forward):
  monkeypatch.setitem(tasks.TASKS, Repeat.name, Repeat)
  config = tiny_study.config()
  config.finetuning.method = 'full'
  config.evaluation.tasks = ('repeat',)
  config.report.metric = 'repeat.loss'
  stage.check_metric(config)
  workdir = tiny_study.make(tmp_path)
  for cell in ('random-k5-seed0', 'random-k9-seed0'):
    shutil.copytree(tiny_study.MODEL, workdir.run(cell).model)
  evaluation.run(config, workdir)
  run = workdir.run('no_finetuning-k0-seed0')
  rows = store.read_jsonl(run.items('repeat'))
  assert [row['id'] for row in rows] == [*WORDS]
  decoder = models.load_decoder(
    tiny_study.MODEL, 'float32', make_mesh(devices=jax.devices()[:1])
  )
  context, ids = formats.load(tiny_study.MODEL).encode_pair('w5', ' w5')
  logits = np.asarray(forward(decoder, np.array([[*context, *ids]]))[0][0])
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -sum(log_probs[len(context) - 1 + n, i] for n, i in enumerate(ids))
  assert rows[0]['loss'] == pytest.approx(nll, rel=1e-4)
  result = store.read_evaluation(run.evaluation('repeat'))
  assert result['metrics']['loss']['value'] == pytest.approx(
    np.mean([row['loss'] for row in rows])
  )
  reporting.run(config, workdir)
  assert 'Loss of the word' in workdir.report.read_text()
