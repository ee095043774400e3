"""Times the report of a large synthetic study.

  python scripts/benchmark_report.py

12 strategies x 5 budgets x 5 seeds, 2,000 evaluation items, a pool of 15,000
prompts with 576 features. Prints the wall and CPU seconds to make the report,
the size of the page and, if Chromium is installed, how much longer a headless
one takes to show the page than to show an empty one.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import random
import shutil
import subprocess
import tempfile
import time
from typing import Any

import command_line
import ml_collections
import numpy as np
import pyarrow as pa

from edsft_jax import config as config_lib
from edsft_jax import reporting, store, study
from edsft_jax.strategies.registry import STRATEGIES

NAMES = (
  'random',
  'mean_entropy',
  'least_confidence',
  'mean_margin',
  'min_margin',
  'k_center',
  'facility_location',
  'log_determinant',
  'task_diversity',
  'weighted_task_diversity',
  'prompt_mean_entropy',
  'prompt_min_margin',
)
BUDGETS = (100, 200, 400, 800, 1600)
POOL, TASKS, WIDTH = 15_000, 60, 576
ITEMS = 2_000
METRICS = ('loss', 'exact_match', 'rouge_l')


def get_config() -> ml_collections.ConfigDict:
  """The study, with prices."""
  c = config_lib.get_config()
  c.selection.strategies = NAMES
  c.study.budgets = BUDGETS
  c.study.seeds = tuple(range(5))
  c.annotation.price_per_answer = 2.0
  c.report.price_per_hour = 3.0
  return c


def write_pool(workdir: store.Workdir, rng: np.random.Generator) -> list[str]:
  """Writes prompts, answers and features; returns each prompt's task."""
  letters = random.Random(0)
  words = [
    ''.join(letters.choices('abcdefghijklmnopqrstuvwxyz', k=length))
    for length in rng.integers(2, 10, 3_000)
  ]
  texts = [
    ' '.join(letters.choices(words, k=count))
    for count in rng.integers(5, 61, POOL)
  ]
  task_N = rng.zipf(1.6, POOL) % TASKS
  tasks = [f'task {number}' for number in task_N]
  ids = [f'p{i}' for i in range(POOL)]
  store.write_parquet(
    workdir.pool, pa.table({'id': ids, 'prompt': texts, 'task': tasks})
  )
  store.write_parquet(
    workdir.responses, pa.table({'id': ids, 'response': texts[::-1]})
  )
  feature_NxD = rng.normal(size=(TASKS, WIDTH))[task_N]
  feature_NxD += rng.normal(size=(POOL, WIDTH))
  store.write_npy(workdir.features, feature_NxD.astype(np.float32))
  return tasks


def write_selections(
  c: ml_collections.ConfigDict,
  workdir: store.Workdir,
  tasks: list[str],
  rng: np.random.Generator,
) -> None:
  """Writes orders, and the gains curves of ten widths."""
  largest = max(BUDGETS)
  for name in NAMES:
    record: dict[str, Any] = {
      'bounds': [],
      'task_clusters': None,
      'seconds': 12.0,
    }
    store.write_json(workdir.selection_record(name), record)
    order = rng.permutation(POOL)[:largest].tolist()
    for seed in c.study.seeds:
      if STRATEGIES[name].seeded:
        order = rng.permutation(POOL)[:largest].tolist()
      rows = [
        {'rank': k, 'id': f'p{i}', 'gain': None, 'score': 1 / (1 + k)}
        for k, i in enumerate(order)
      ]
      for row, i in zip(rows, order, strict=True):
        row['task'] = tasks[i]
      store.write_jsonl(workdir.selection(name, seed), rows)
  widths = np.geomspace(0.01, 3.0, 10).tolist()
  pick_M = np.arange(largest)
  store.write_json(
    workdir.gains_curves,
    {
      'widths': widths,
      'curves': [
        (POOL * w * np.exp(-0.05 * w * pick_M) + 1e-9).tolist() for w in widths
      ],
      'degenerate': [None] * len(widths),
      'suggested': widths[4],
      'width': widths[4],
      'num_prompts': POOL,
      'budget': largest,
    },
  )


def write_cells(
  c: ml_collections.ConfigDict, workdir: store.Workdir, rng: np.random.Generator
) -> None:
  """Writes logs and evaluations of all cells and of both references."""
  item_I = 0.2 * rng.normal(size=ITEMS)
  cells = [
    *study.cells(c),
    *study.full_pool_cells(c, POOL),
    study.no_finetuning_cell(),
  ]
  for cell in cells:
    run = workdir.run(cell.name)
    quality = 0.1 * np.log2(max(cell.budget, 10)) + 0.01 * rng.normal()
    values = {
      name: np.round(quality + item_I + 0.2 * rng.normal(size=ITEMS), 4)
      for name in METRICS
    }
    metrics = {
      name: {
        'value': float(value_I.mean()),
        'standard_error': float(value_I.std() / ITEMS**0.5),
        'n': ITEMS,
        'label': name,
        'larger_is_better': name != 'loss',
        'meaning': 'made up',
      }
      for name, value_I in values.items()
    }
    evaluation = {
      **dataclasses.asdict(cell),
      'task': 'heldout',
      'version': 1,
      'fingerprint': {},
      'metrics': metrics,
      'by_task': {},
    }
    store.write_json(run.evaluation('heldout'), evaluation)
    rows = [
      {
        'id': f'h{i}',
        'task': None,
        'prediction': 'some text that a model has written ' * 3,
        'reference': 'a reference answer of a few words',
        'num_reference_tokens': 3,
        **{name: float(values[name][i]) for name in METRICS},
      }
      for i in range(ITEMS)
    ]
    store.write_jsonl(run.items('heldout'), rows)
    if cell.budget:
      run.model.mkdir()
      store.write_json(
        run.cell, {'training': {'first_loss': 3.0, 'last_loss': 1.0}}
      )
      seconds, tokens = 0.3 * cell.budget, 150 * cell.budget
      store.write_jsonl(run.timing, [{'step': 10, 'seconds': seconds}])
      store.write_jsonl(
        run.metrics, [{'step': 10, 'loss': 1.0, 'tokens': tokens}]
      )


def write(c: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Writes a study in which strategies differ by chance alone."""
  rng = np.random.default_rng(0)
  tasks = write_pool(workdir, rng)
  write_selections(c, workdir, tasks, rng)
  write_cells(c, workdir, rng)
  stages = ('pool', 'score', 'select', 'finetune', 'evaluate')
  record = {'fingerprint': {}, 'done': True, 'seconds': 100.0, 'counts': {}}
  store.write_json(
    workdir.manifest,
    {
      'stages': dict.fromkeys(stages, record),
      'versions': store.versions(),
    },
  )
  store.write_json(workdir.config, json.loads(c.to_json()))


def seconds_to_open(browser: str, url: str) -> float:
  """Seconds from the browser's start to the finished page."""
  command = [browser, '--headless', '--no-sandbox', '--disable-gpu']
  start = time.perf_counter()
  done = subprocess.run(
    [*command, '--dump-dom', url], capture_output=True, text=True, check=True
  )
  seconds = time.perf_counter() - start
  if url.startswith('file:') and 'data-ready="true"' not in done.stdout:
    raise RuntimeError(f'the scripts of {url} did not finish')
  return seconds


def main() -> None:
  """Makes the study and its report, and prints what that took."""
  command_line.parser(__doc__).parse_args()
  with tempfile.TemporaryDirectory() as folder:
    c, workdir = get_config(), store.Workdir(pathlib.Path(folder))
    write(c, workdir)
    start, cpu_start = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
      reporting.run(c, workdir)
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    megabytes = workdir.report.stat().st_size / 1e6
    print(
      f'report: {seconds:.1f} s by the clock, {cpu_seconds:.1f} s of CPU time; '
      f'page: {megabytes:.1f} MB'
    )
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if browser:
      # The first start fills the browser's own caches.
      empty = [seconds_to_open(browser, 'about:blank') for _ in range(3)][1:]
      url = workdir.report.resolve().as_uri()
      opened = [seconds_to_open(browser, url) for _ in range(2)]
      print(f'opening the page: {min(opened) - min(empty):.1f} s')


if __name__ == '__main__':
  command_line.run(main)
