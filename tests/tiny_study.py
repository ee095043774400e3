"""A study of a few words on a tiny checkpoint, as earlier stages leave it."""

from collections.abc import Iterator
import contextlib
import functools
import operator
import pathlib
from unittest import mock

import jax
import ml_collections
import numpy as np
from places import REPOSITORY
import pyarrow as pa

from configs import default
from edsft_jax import config as config_lib
from edsft_jax import mesh, models, store
from edsft_jax.finetuning.trainer import Hyperparameters

MODEL = REPOSITORY / 'tests' / 'models' / 'goldens' / 'tied_v4'
LORA = Hyperparameters(
  method='lora',
  lora_rank=4,
  lora_alpha=8.0,
  lora_dropout=0.0,
  rslora=False,
  lora_targets=('q_proj', 'down_proj'),
  epochs=1,
  batch_size=4,
  max_length=0,
  learning_rate=0.01,
  schedule='cosine',
  warmup_fraction=0.1,
  weight_decay=0.1,
  clip_norm=0.5,
)
NUM_PROMPTS = 13
NUM_HELDOUT = 11


def config() -> ml_collections.ConfigDict:
  """Two cells of 5 and 9 answers, in 3 and 5 steps."""
  c = default.get_config()
  c.model.path = str(MODEL)
  c.selection.strategies = ('random',)
  c.study.budgets = (5, 9)
  c.study.seeds = (0,)
  c.study.full_pool = False
  c.finetuning.lora_rank = 4
  c.finetuning.epochs = 2
  c.finetuning.batch_size = 4
  c.finetuning.learning_rate = 0.01
  c.finetuning.log_steps = 2
  c.finetuning.checkpoint_steps = 2
  c.evaluation.max_new_tokens = 5
  return c


def words(config: ml_collections.ConfigDict) -> list[str]:
  """The command line's options for what differs from the defaults."""
  names = config_lib.option_names(config)
  values, defaults = (
    {name: operator.attrgetter(name)(c) for name in names}
    for c in (config, default.get_config())
  )
  return [
    f'--config.{name}={value}'
    for name, value in values.items()
    if value != defaults[name]
  ]


@contextlib.contextmanager
def on_devices(number: int) -> Iterator[None]:
  """Stages run on this many of the eight devices."""
  of_these = functools.partial(mesh.make_mesh, devices=jax.devices()[:number])
  with mock.patch.multiple(mesh, make_mesh=of_these, model_mesh=of_these):
    yield


def on_one_device() -> contextlib.AbstractContextManager[None]:
  """Stages run on one device: less to compile."""
  return on_devices(1)


@contextlib.contextmanager
def overflowing_models() -> Iterator[None]:
  """Models are loaded with weights that make every logit NaN."""
  load = models.load_decoder

  def broken(*args, **kwargs) -> models.Decoder:
    decoder = load(*args, **kwargs)
    decoder.norm.weight[...] = decoder.norm.weight[...] * np.nan
    return decoder

  with mock.patch.object(models, 'load_decoder', broken):
    yield


def make(root: pathlib.Path) -> store.Workdir:
  """Writes pool, answers, selections of seeds 0 and 1, and a held-out set."""
  workdir = store.Workdir(root)
  rng = np.random.default_rng(3)

  def texts(num: int, least: int, most: int) -> list[str]:
    return [
      ' '.join(f'w{i}' for i in rng.integers(3, 60, size=length))
      for length in rng.integers(least, most, size=num)
    ]

  ids = [f'p{i}' for i in range(NUM_PROMPTS)]
  store.write_parquet(
    workdir.pool, pa.table({'id': ids, 'prompt': texts(NUM_PROMPTS, 2, 20)})
  )
  store.write_parquet(
    workdir.responses,
    pa.table({'id': ids, 'response': texts(NUM_PROMPTS, 0, 9)}),
  )
  store.write_parquet(
    workdir.heldout,
    pa.table(
      {
        'id': [f'h{i}' for i in range(NUM_HELDOUT)],
        'prompt': texts(NUM_HELDOUT, 2, 20),
        'task': [('short', 'long')[i % 3 == 0] for i in range(NUM_HELDOUT)],
        'response': texts(NUM_HELDOUT, 0, 9),
      }
    ),
  )
  for seed in (0, 1):
    order = np.random.default_rng(seed).permutation(NUM_PROMPTS)
    store.write_jsonl(
      workdir.selection('random', seed),
      [{'rank': rank, 'id': ids[i]} for rank, i in enumerate(order)],
    )
  return workdir
