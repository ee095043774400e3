"""Times benchmarks here and in lm-evaluation-harness, item by item.

  python scripts/benchmark_evaluation.py --model HF_DIR --data FOLDER [CASE ...]

needs the extra `bench`. FOLDER has mmlu_dev, mmlu_test, bbh and gsm8k_test as
.jsonl.gz, and bbh_cot_prompts.json; the harness reads the same questions. Each
side is a process of its own, so that imports, loading, tokenising and
compilation count, as they do for a user. The harness has its transformers
backend in float32, with the fastest of the batch sizes. Items whose two best
choices are closer than 1e-4 are counted apart.
"""

import argparse
from collections.abc import Sequence
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

NEAR_TIE = 1e-4
SUBJECTS = (
  'abstract_algebra',
  'anatomy',
  'global_facts',
  'high_school_world_history',
  'moral_scenarios',
  'professional_law',
)
# Case -> task, worked examples, items (per subject or task), new tokens.
CASES = {
  'mmlu-5-shot': ('mmlu', 5, 40, 1),
  'mmlu-0-shot': ('mmlu', 0, 84, 1),
  'bbh': ('bbh', 3, 2, 256),
  'gsm8k': ('gsm8k', 5, 40, 256),
}


def main() -> None:
  """Prints a row per case and side."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('cases', nargs='*', default=list(CASES))
  parser.add_argument('--model', type=pathlib.Path, required=True)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--batch_sizes', type=int, nargs='+', default=[4, 16])
  parser.add_argument('--limit', type=int, default=0, help='fewer items')
  parser.add_argument('--side', choices=['ours', 'theirs'])
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  if args.side:
    (case,) = args.cases
    run = _ours if args.side == 'ours' else _theirs
    answers = run(case, args.model, args.data, args.limit, args.batch_sizes[0])
    args.out.write_text(json.dumps(answers))
    return
  for case in args.cases:
    _compete(case, args)


def _compete(case: str, args: argparse.Namespace) -> None:
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    seconds: dict[str, float] = {}
    answers: dict[str, dict[str, Any]] = {}

    def side(name: str, which: str, batch_size: int) -> None:
      out = folder / f'{name}.json'
      start = time.perf_counter()
      subprocess.run(
        [
          *(sys.executable, __file__, case, '--side', which),
          *('--model', str(args.model), '--data', str(args.data)),
          *('--limit', str(args.limit), '--out', str(out)),
          *('--batch_sizes', str(batch_size)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
      )
      seconds[name] = time.perf_counter() - start
      answers[name] = json.loads(out.read_text())

    side('ours', 'ours', 0)
    for size in args.batch_sizes:
      side(f'harness, batches of {size}', 'theirs', size)
    ours = answers.pop('ours')
    for name, theirs in answers.items():
      assert ours.keys() == theirs.keys()
      differ = [k for k, found in ours.items() if found[0] != theirs[k][0]]
      ties = sum(min(ours[k][1], theirs[k][1]) < NEAR_TIE for k in differ)
      print(
        f'{case}: {len(ours)} items, ours {seconds["ours"]:.1f} s, {name} '
        f'{seconds[name]:.1f} s, ratio {seconds[name] / seconds["ours"]:.2f}, '
        f'{len(differ)} answers differ, {ties} of them near ties',
        flush=True,
      )


def _questions(
  case: str, data: pathlib.Path, limit: int
) -> tuple[list[dict], list[dict]]:
  """The questions of a case, and the examples to draw from."""
  task, _, count, _ = CASES[case]
  count = limit or count

  def read(name: str) -> list[dict]:
    with gzip.open(data / f'{name}.jsonl.gz', 'rt', encoding='utf-8') as f:
      return [json.loads(line) for line in f]

  if task == 'mmlu':
    test, dev = read('mmlu_test'), read('mmlu_dev')
    return (
      [
        row
        for subject in SUBJECTS
        for row in [r for r in test if r['subject'] == subject][:count]
      ],
      [row for row in dev if row['subject'] in SUBJECTS],
    )
  if task == 'bbh':
    rows = read('bbh')
    names = dict.fromkeys(row['task'] for row in rows)
    return (
      [r for n in names for r in [r for r in rows if r['task'] == n][:count]],
      [],
    )
  rows = [
    {'question': row['prompt'], 'answer': row['response']}
    for row in read('gsm8k_test')
  ]
  # The training split is not needed to compare speed.
  return rows[:count], rows[-200:]


def _ours(
  case: str, model: pathlib.Path, data: pathlib.Path, limit: int, _: int
) -> dict[str, tuple[str, float]]:
  """Item -> answer and margin, by our task."""
  from flax import nnx

  from edsft_jax import config as config_lib
  from edsft_jax import main as command
  from edsft_jax import mesh as mesh_lib
  from edsft_jax import models
  from edsft_jax.evaluation import runner, tasks

  command.enable_compilation_cache()
  task_name, shots, _, num_new = CASES[case]
  questions, examples = _questions(case, data, limit)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    config = config_lib.get_config()
    config.prompt.template = 'raw'
    section = config.evaluation[task_name]
    section.shots = shots
    section.path = _save(folder / 'questions.jsonl', questions)
    section.shots_path = (
      str(data / 'bbh_cot_prompts.json')
      if task_name == 'bbh'
      else _save(folder / 'examples.jsonl', examples)
    )
    if 'max_new_tokens' in section:
      section.max_new_tokens = num_new
    mesh = mesh_lib.make_mesh()
    decoder = models.load_decoder(model, dtype='float32', mesh=mesh)
    prompt_format = models.load_prompt_format(model, **config.prompt)
    task = tasks.TASKS[task_name](
      config, None, prompt_format, decoder.config.context
    )
    run = runner.Runner(
      task, decoder, prompt_format, mesh, config.evaluation.batch_tokens
    )
    responses = run(nnx.split(decoder)[1])
  rows = [
    task.score(item, given)
    for item, given in zip(task.items, responses, strict=True)
  ]
  return _numbered(
    [(row['prediction'], row.get('margin', float('inf'))) for row in rows]
  )


def _theirs(
  case: str,
  model: pathlib.Path,
  data: pathlib.Path,
  limit: int,
  batch_size: int,
) -> dict[str, tuple[str, float]]:
  """Item -> answer and margin, by the harness on transformers."""
  import harness_tasks
  import lm_eval
  from lm_eval.tasks import TaskManager

  task_name, shots, _, num_new = CASES[case]
  questions, examples = _questions(case, data, limit)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if task_name == 'mmlu':
      specs = harness_tasks.mmlu(folder, questions, examples)
    elif task_name == 'bbh':
      specs = harness_tasks.bbh(folder, questions)
    else:
      specs = harness_tasks.gsm8k(folder, questions, examples)
    found = lm_eval.simple_evaluate(
      'hf',
      model_args={'pretrained': str(model), 'dtype': 'float32'},
      device='cpu',
      batch_size=batch_size,
      tasks=specs,
      num_fewshot=shots,
      bootstrap_iters=0,
      task_manager=TaskManager(include_defaults=False),
      gen_kwargs={'max_gen_toks': num_new} if task_name != 'mmlu' else None,
    )['samples']
  rows = []
  for task in sorted(found):
    for sample in sorted(found[task], key=lambda sample: sample['doc_id']):
      given = sample['filtered_resps']
      if task_name == 'mmlu':
        scores = [float(score) for score, _ in given]
        best = max(scores)
        second = sorted(scores)[-2]
        answer = 'ABCD'[scores.index(best)]
        rows.append((answer, best - second))
      elif sample['filter'] in ('get-answer', 'flexible-extract'):
        rows.append((given[0], float('inf')))
  return _numbered(rows)


def _numbered(
  rows: Sequence[tuple[str, float]],
) -> dict[str, tuple[str, float]]:
  """By the number of the item: both sides have the same order."""
  return {str(number): row for number, row in enumerate(rows)}


def _save(path: pathlib.Path, rows: Sequence[dict]) -> str:
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return str(path)


if __name__ == '__main__':
  main()
