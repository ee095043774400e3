"""A made-up study on disk: what the report reads, without the pipeline."""

import json
import math
import pathlib
import random

import ml_collections
import numpy as np
import pyarrow as pa

from configs import default
from edsft_jax import store, study
from edsft_jax.strategies.registry import STRATEGIES

TASKS = {
  'copy the sentence': 120,
  'sort <numbers> & words': 90,
  'capital of a country': 60,
  'cost in $ and $$': 40,
  'reverse a word': 20,
  'rhyme': 10,
}
POOL_SIZE = sum(TASKS.values())
IDS = [f'p{i}' for i in range(POOL_SIZE)]
# The devices in the manifest.
DEVICES = '8 x cpu'
# The task of each prompt.
LABELS = [task for task, count in TASKS.items() for _ in range(count)]
# How much better than random a strategy is, in units of ROUGE-L.
EFFECTS = {
  'random': 0.0,
  'min_margin': 0.005,
  'facility_location': 0.12,
  'weighted_task_diversity': -0.08,
}


def config(**options) -> ml_collections.ConfigDict:
  """The default config with `section__name=value` options set."""
  made = default.get_config()
  made.study.budgets = (20, 40, 80)
  for name, value in options.items():
    section, option = name.split('__')
    made[section][option] = value
  return made


METRICS = {
  'loss': ('Loss', False, 'nats per token of the reference answer'),
  'exact_match': ('Exact match', True, 'share of answers equal to it'),
  'rouge_l': ('ROUGE-L', True, 'word overlap in order, from 0 to 1'),
}


def evaluation(
  strategy: str,
  budget: int,
  seed: int,
  rouge_l: float,
  tasks: bool = True,
  **metrics: float,
) -> dict:
  """The contents of an eval.json of the task heldout."""
  values = {
    'loss': 3 - 2 * rouge_l,
    'exact_match': rouge_l / 2,
    'rouge_l': rouge_l,
    **metrics,
  }

  def means(factor: float, n: int) -> dict:
    return {
      name: {'value': value * factor, 'standard_error': 0.01, 'n': n}
      for name, value in values.items()
    }

  return {
    'strategy': strategy,
    'budget': budget,
    'seed': seed,
    'task': 'heldout',
    'version': 1,
    'fingerprint': {
      'evaluation.limit': 0,
      'cell': f'{strategy}-k{budget}-seed{seed}',
    },
    'metrics': {
      name: {
        **mean,
        'label': METRICS[name][0],
        'larger_is_better': METRICS[name][1],
        'meaning': METRICS[name][2],
      }
      for name, mean in means(1, 60).items()
    },
    'by_task': {
      task: means(0.6 + 0.15 * i, max(TASKS[task] // 6, 1))
      for i, task in enumerate(TASKS)
    }
    if tasks
    else {},
  }


def write_evaluation(workdir: store.Workdir, contents: dict) -> None:
  cell = study.Cell(contents['strategy'], contents['budget'], contents['seed'])
  run = workdir.run(cell.name)
  store.write_json(run.evaluation(contents['task']), contents)
  count = next(iter(contents['metrics'].values()))['n']
  store.write_jsonl(
    run.items(contents['task']),
    [
      {
        'id': f'h{i}',
        'task': None,
        # Items differ, by the same in every cell.
        **{
          name: metric['value'] + (i - (count - 1) / 2) / count
          for name, metric in contents['metrics'].items()
        },
        'num_reference_tokens': 3,
      }
      for i in range(count)
    ],
  )


def write_features(workdir: store.Workdir) -> None:
  """Writes random features of the pool."""
  rows = np.random.default_rng(0).normal(size=(POOL_SIZE, 6))
  store.write_npy(workdir.features, rows.astype(np.float32))


def write(
  root: pathlib.Path,
  options: ml_collections.ConfigDict,
  noise: float = 0.008,
  tasks: bool = True,
) -> store.Workdir:
  """Writes a whole study for the config's strategies, budgets and seeds."""
  workdir = store.Workdir(root)
  rng = random.Random(0)
  _write_pool(workdir, tasks)
  for strategy in options.selection.strategies:
    _write_selections(workdir, options, strategy, tasks, rng)
  cells = [
    *study.cells(options),
    *study.full_pool_cells(options, POOL_SIZE),
    study.no_finetuning_cell(),
  ]
  for cell in cells:
    rouge_l = 0.05
    if cell.budget:
      rouge_l = 0.1 * math.log2(cell.budget) - 0.2 + rng.gauss(0, noise)
      rouge_l += EFFECTS.get(cell.strategy, 0.0)
    write_evaluation(
      workdir,
      evaluation(cell.strategy, cell.budget, cell.seed, rouge_l, tasks),
    )
  _write_gains_curves(workdir, max(options.study.budgets))
  _write_manifest(workdir)
  store.write_json(workdir.config, json.loads(options.to_json()))
  return workdir


def _write_pool(workdir: store.Workdir, tasks: bool) -> None:
  columns = {'id': IDS, 'prompt': [f'Prompt {i}?' for i in range(POOL_SIZE)]}
  if tasks:
    columns['task'] = LABELS
  store.write_parquet(workdir.pool, pa.table(columns))
  store.write_parquet(workdir.responses, pa.table({'id': IDS, 'response': IDS}))


def _write_selections(
  workdir: store.Workdir,
  options: ml_collections.ConfigDict,
  strategy: str,
  tasks: bool,
  rng: random.Random,
) -> None:
  greedy = strategy == 'facility_location'
  clusters = 'tasks' in STRATEGIES[strategy].reads and not tasks
  bounds = [
    {'budget': m, 'objective': 9.0 * m, 'upper_bound': 10.0 * m}
    for m in (*options.study.budgets, 999)
  ]
  store.write_json(
    workdir.selection_record(strategy),
    {
      'bounds': bounds if greedy else [],
      'task_clusters': 1234 if clusters else None,
    },
  )
  for seed in study.seeds(options, strategy):
    order = rng.sample(range(POOL_SIZE), max(options.study.budgets))
    store.write_jsonl(
      workdir.selection(strategy, seed),
      [
        {
          'rank': rank,
          'id': IDS[i],
          'gain': 30 / (1 + rank) if greedy else None,
          'score': None,
          'task': LABELS[i] if tasks else None,
        }
        for rank, i in enumerate(order)
      ],
    )


def _write_gains_curves(workdir: store.Workdir, num_picks: int) -> None:
  widths = [0.01, 0.03, 0.1, 0.3, 1.0]
  store.write_json(
    workdir.gains_curves,
    {
      'widths': widths,
      'curves': [
        [
          1.0 if i == 0 else POOL_SIZE * width * math.exp(-k * width * 3) + 1e-9
          for k in range(num_picks)
        ]
        for i, width in enumerate(widths)
      ],
      'degenerate': ['flat', None, None, None, 'collapsed'],
      'suggested': 0.1,
      'width': 0.1,
      'num_prompts': POOL_SIZE,
      'budget': num_picks,
    },
  )


def _write_manifest(workdir: store.Workdir) -> None:
  seconds = {
    'pool': 0.6,
    'score': 12.5,
    'select': 1.5,
    'annotate': 0.4,
    'finetune': 125.0,
    'evaluate': 60.0,
  }
  counts = {
    'pool': {'prompts': POOL_SIZE, 'quarantined': 3, 'duplicates': 1234},
    'score': {'truncated': 2, 'notes': ['raw', 'no pad'], 'empty': []},
  }
  stages = {
    stage: {
      'fingerprint': {},
      'done': True,
      'seconds': value,
      'counts': counts.get(stage, {}),
      'made_with': [store.versions() | {'devices': DEVICES}],
    }
    for stage, value in seconds.items()
  }
  store.write_json(workdir.manifest, {'stages': stages})
