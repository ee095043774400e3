"""Times benchmarks here and in lm-evaluation-harness, item by item.

  python scripts/benchmark_evaluation.py --model HF_DIR --data FOLDER [CASE ...]

needs the extra `bench`. FOLDER has mmlu_dev, mmlu_test, bbh and gsm8k_test as
.jsonl.gz, and bbh_cot_prompts.json; the harness reads the same questions. Each
side runs in its own process, so that imports, loading, tokenising and
compilation count, as they do for a user; ours asks for huge pages, as the
command does. The harness runs transformers in
float32, once with each batch size.

Of the items with different answers, near ties are counted separately: those
whose two best letters, or tokens where the texts begin to differ, are closer
than 1e-4 in log-likelihood.
"""

import argparse
from collections.abc import Iterable
import json
import pathlib
import sys
import tempfile
from typing import Any, NamedTuple

import command_line
from contest import time_command
import harness_tasks
from prompt_files import read_rows

from edsft_jax import huge_pages

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


class _Side(NamedTuple):
  """What the process of one side runs.

  Attributes:
    case: one of CASES.
    args: the command line.
    folder: a temporary folder.
    questions: the case's questions.
    examples: questions to draw worked examples from.
  """

  case: str
  args: argparse.Namespace
  folder: pathlib.Path
  questions: list[dict]
  examples: list[dict]

  def given(self) -> Any:
    """The side's extra input: the harness's batch size, or texts to compare."""
    return json.loads(self.args.given.read_text())


class Answer(NamedTuple):
  """What one side says about an item.

  Attributes:
    answer: the letter, or what was extracted from the text.
    text: the generated text; '' for letters.
    margin: log-likelihood of the best letter less that of the second; 0.0 for
      text, whose margin is only computed where both sides differ.
  """

  answer: str
  text: str
  margin: float


def main() -> None:
  """Prints a row per case and side."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  command_line.add_names(parser, CASES)
  add('--model', type=command_line.existing_folder, required=True)
  add('--data', type=command_line.existing_folder, required=True)
  add(
    '--batch_sizes',
    type=command_line.positive,
    nargs='+',
    default=[4, 16],
    help='of the harness, which runs once with each',
  )
  add(
    '--limit',
    type=int,
    default=0,
    help='items per subject or task; 0: as in CASES',
  )
  # For the process of one side.
  add('--side', choices=_SIDES, help=argparse.SUPPRESS)
  add('--given', type=pathlib.Path, help=argparse.SUPPRESS)
  add('--out', type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side == 'ours':
    # As edsft_jax.main does.
    huge_pages.restart()
  for case in args.names or CASES:
    if args.side:
      questions, examples = _questions(case, args.data, args.limit)
      with tempfile.TemporaryDirectory() as name:
        side = _Side(case, args, pathlib.Path(name), questions, examples)
        found = _SIDES[args.side](side)
      args.out.write_text(json.dumps(found))
    else:
      _compete(case, args)


def _compete(case: str, args: argparse.Namespace) -> None:
  """Runs both sides of a case, and prints how they compare."""
  seconds, ours = _run(case, args, 'ours')
  ours = [Answer(*row) for row in ours]
  for size in args.batch_sizes:
    their_seconds, theirs = _run(case, args, 'theirs', size)
    pairs = list(zip(ours, (Answer(*row) for row in theirs), strict=True))
    differ = [i for i, (a, b) in enumerate(pairs) if a.answer != b.answer]
    margins = [min(pairs[i], key=lambda row: row.margin).margin for i in differ]
    if differ and CASES[case][0] != 'mmlu':
      texts = [(i, pairs[i][0].text, pairs[i][1].text) for i in differ]
      margins = _run(case, args, 'margins', texts)[1]
    ties = sum(margin < NEAR_TIE for margin in margins)
    print(
      f'{case}: {len(ours)} items, ours {seconds:.1f} s, harness in batches of '
      f'{size} {their_seconds:.1f} s, ratio {their_seconds / seconds:.2f}, '
      f'{len(differ)} answers differ, {ties} of them near ties',
      flush=True,
    )


def _run(
  case: str, args: argparse.Namespace, side: str, given: Any = None
) -> tuple[float, Any]:
  """Seconds and result of one side, in its own process."""
  with tempfile.TemporaryDirectory() as name:
    out = pathlib.Path(name) / 'out.json'
    given_path = out.with_name('given.json')
    given_path.write_text(json.dumps(given))
    seconds, _ = time_command(
      [
        *(sys.executable, __file__, case, '--side', side),
        *('--model', str(args.model), '--data', str(args.data)),
        *('--limit', str(args.limit), '--out', str(out)),
        *('--given', str(given_path)),
      ]
    )
    return seconds, json.loads(out.read_text())


def _questions(
  case: str, data: pathlib.Path, limit: int
) -> tuple[list[dict], list[dict]]:
  """The questions of a case, and the examples to draw from."""
  task, _, count, _ = CASES[case]
  count = limit or count

  def read(name: str) -> list[dict]:
    return list(read_rows(data / f'{name}.jsonl.gz'))

  def first_of_each(
    rows: list[dict], field: str, values: Iterable[str]
  ) -> list[dict]:
    of_each = ([r for r in rows if r[field] == value] for value in values)
    return [row for some in of_each for row in some[:count]]

  if task == 'mmlu':
    examples = [r for r in read('mmlu_dev') if r['subject'] in SUBJECTS]
    return first_of_each(read('mmlu_test'), 'subject', SUBJECTS), examples
  if task == 'bbh':
    rows = read('bbh')
    names = dict.fromkeys(row['task'] for row in rows)
    return first_of_each(rows, 'task', names), []
  rows = [
    {'question': row['prompt'], 'answer': row['response']}
    for row in read('gsm8k_test')
  ]
  # The training split is not needed to compare speed.
  return rows[:count], rows[-200:]


def _ours(side: _Side) -> list[Answer]:
  """Our answers."""
  from flax import nnx

  from edsft_jax.evaluation import runner

  loaded = _load(side)
  run = runner.Runner(
    loaded.task,
    loaded.decoder,
    loaded.prompt_format,
    loaded.mesh,
    loaded.batch_tokens,
  )
  responses = run(nnx.split(loaded.decoder)[1])
  rows = [
    loaded.task.score(item, given)
    for item, given in zip(loaded.task.items, responses, strict=True)
  ]
  return [
    Answer(row['prediction'], row.get('text', ''), row.get('margin', 0.0))
    for row in rows
  ]


def _margins(side: _Side) -> list[float]:
  """The best token's margin at the place where two texts begin to differ.

  The side is given the number of each item, and both texts.
  """
  import jax

  loaded = _load(side)
  decode = loaded.prompt_format.decode
  margins = []
  for number, ours, theirs in side.given():
    (request,) = loaded.task.items[number].requests
    end = decode(request.tokens)[-1:]
    ids = loaded.prompt_format.encode_pair(end, ours)[1]
    same = 0
    while same < len(ids) and theirs.startswith(decode(ids[: same + 1])):
      same += 1
    tokens = jax.numpy.array([[*request.tokens, *ids[:same]]])
    hidden = loaded.decoder(tokens, jax.numpy.ones_like(tokens)).hidden_BxLxD
    best = jax.lax.top_k(loaded.decoder.logits(hidden[:, -1]), 2)[0][0]
    margins.append(float(best[0] - best[1]))
  return margins


class _Loaded(NamedTuple):
  """A task of ours with its items, and what it needs to run."""

  task: Any
  decoder: Any
  prompt_format: Any
  mesh: Any
  batch_tokens: int


def _load(side: _Side) -> _Loaded:
  """Loads the model and our task of a case."""
  from edsft_jax import config as config_lib
  from edsft_jax import main as command
  from edsft_jax import mesh as mesh_lib
  from edsft_jax import models, store
  from edsft_jax.evaluation import tasks
  from edsft_jax.evaluation.task import TaskInputs

  command.enable_compilation_cache()
  task_name, shots, _, num_new = CASES[side.case]
  config = config_lib.get_config()
  config.prompt.template = 'raw'
  section = config.evaluation[task_name]
  section.shots = shots
  section.path = harness_tasks.write_rows(
    side.folder / 'questions.jsonl', side.questions
  )
  section.shots_path = (
    str(side.args.data / 'bbh_cot_prompts.json')
    if task_name == 'bbh'
    else harness_tasks.write_rows(side.folder / 'examples.jsonl', side.examples)
  )
  if 'max_new_tokens' in section:
    section.max_new_tokens = num_new
  mesh = mesh_lib.make_mesh()
  decoder = models.load_decoder(side.args.model, dtype='float32', mesh=mesh)
  prompt_format = models.load_prompt_format(side.args.model, **config.prompt)
  task = tasks.TASKS[task_name](
    TaskInputs(
      config,
      store.Workdir(side.folder),
      prompt_format,
      decoder.config.context,
    )
  )
  batch_tokens = config.evaluation.batch_tokens
  return _Loaded(task, decoder, prompt_format, mesh, batch_tokens)


def _theirs(side: _Side) -> list[Answer]:
  """The answers of the harness on transformers, in batches of a given size."""
  import lm_eval
  from lm_eval.tasks import TaskManager

  task_name, shots, _, num_new = CASES[side.case]
  specs = {
    'mmlu': harness_tasks.mmlu,
    'bbh': lambda folder, questions, _: harness_tasks.bbh(folder, questions),
    'gsm8k': harness_tasks.gsm8k,
  }[task_name](side.folder, side.questions, side.examples)
  found = lm_eval.simple_evaluate(
    'hf',
    model_args={'pretrained': str(side.args.model), 'dtype': 'float32'},
    device='cpu',
    batch_size=side.given(),
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
        rows.append(Answer('ABCD'[scores.index(best)], '', best - second))
      elif sample['filter'] in ('get-answer', 'flexible-extract'):
        rows.append(Answer(given[0], sample['resps'][0][0], 0.0))
  return rows


_SIDES = {'ours': _ours, 'theirs': _theirs, 'margins': _margins}


if __name__ == '__main__':
  command_line.run(main)
