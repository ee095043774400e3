"""README's examples, run one after the other as a reader would."""

import csv
import gzip
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
from places import REPOSITORY
import pytest

from edsft_jax import study

README = REPOSITORY / 'README.md'
# What makes the examples small enough for a test; the last of an option counts.
SMALL = {
  'pool.limit': 60,
  'scoring.max_new_tokens': 4,
  'scoring.batch_tokens': 4096,
  'study.budgets': (4, 8),
  'study.seeds': (0, 1),
  'finetuning.epochs': 1,
  'finetuning.max_length': 128,
  'evaluation.limit': 6,
  'evaluation.max_new_tokens': 4,
  'evaluation.mmlu.limit': 1,
  'evaluation.bbh.limit': 1,
  'evaluation.bbh.max_new_tokens': 4,
  'evaluation.gsm8k.limit': 2,
  'evaluation.gsm8k.max_new_tokens': 4,
  'evaluation.alpaca_eval.max_new_tokens': 4,
}


def _blocks() -> list[str]:
  """The indented blocks of code, without their indentation."""
  text = README.read_text(encoding='utf-8')
  found = re.findall(r'(?:^    .*\n|^\n(?=    ))+', text, re.M)
  return [re.sub(r'^ {4}', '', block, flags=re.M).strip() for block in found]


def _commands(start: str) -> list[list[str]]:
  """The words of the commands that start like this."""
  lines = [
    line
    for block in _blocks()
    for line in re.sub(r'\\\n\s*', '', block).splitlines()
  ]
  return [
    shlex.split(line, comments=True) for line in lines if line.startswith(start)
  ]


def _rows(shared: pathlib.Path, source: str, count: int) -> list[dict]:
  with gzip.open(shared / 'data' / source, 'rt', encoding='utf-8') as file:
    return [json.loads(line) for line in itertools.islice(file, count)]


def _write(path: pathlib.Path, rows: list[dict]):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _write_benchmarks(data: pathlib.Path, shared: pathlib.Path):
  """A subject, a task and some problems in the files of their publishers."""
  for split, count in (('test', 4), ('dev', 5)):
    path = data / 'mmlu' / split / f'abstract_algebra_{split}.csv'
    path.parent.mkdir(parents=True)
    with path.open('w', encoding='utf-8', newline='') as file:
      csv.writer(file).writerows(
        [row['question'], *row['choices'], row['answer']]
        for row in _rows(shared, f'mmlu_{split}.jsonl.gz', count)
      )
  name = 'boolean_expressions'
  bbh = data / 'BIG-Bench-Hard'
  (bbh / 'bbh').mkdir(parents=True)
  rows = _rows(shared, 'bbh.jsonl.gz', 3)
  examples = [{'input': r['input'], 'target': r['target']} for r in rows]
  (bbh / 'bbh' / f'{name}.json').write_text(json.dumps({'examples': examples}))
  (bbh / 'cot-prompts').mkdir()
  shots = json.loads((shared / 'data' / 'bbh_cot_prompts.json').read_text())
  (bbh / 'cot-prompts' / f'{name}.txt').write_text(shots[name])
  problems = [
    {'question': row['prompt'], 'answer': row['response']}
    for row in _rows(shared, 'gsm8k_test.jsonl.gz', 12)
  ]
  _write(data / 'gsm8k' / 'test.jsonl', problems[:4])
  _write(data / 'gsm8k' / 'train.jsonl', problems[4:])


@pytest.mark.slow
def test_the_commands_run(tmp_path, shared):
  model = str(shared / 'models' / 'stories260K')
  names = {
    'path/to/hf_model': model,
    '=JUDGE': f'={model}',
    '=HF_DIR': f'={model}',
    '=configs/': f'={REPOSITORY / "configs"}/',
  }
  for name, source, count in (
    ('prompts', 'dolly15k', 60),
    ('mmlu_test', 'mmlu_test', 200),
    ('mmlu_dev', 'mmlu_dev', 285),
  ):
    _write(
      tmp_path / f'{name}.jsonl', _rows(shared, f'{source}.jsonl.gz', count)
    )
  _write_benchmarks(tmp_path / 'data', shared)
  # Short ones, for the context of a judge that is as small.
  instructions = [
    {'instruction': text} for text in ('Say hello.', 'Name a dog.')
  ]
  (tmp_path / 'alpaca_eval.json').write_text(json.dumps(instructions))
  for name in ('model', 'reference'):
    answers = [
      {**row, 'output': f'An answer of {name}.', 'generator': name}
      for row in instructions
    ]
    (tmp_path / f'{name}.json').write_text(json.dumps(answers))
  commands = _commands('python -m edsft_jax.main')
  assert len(commands) == 5
  paths = [word for word in commands[0] if '.path=' in word]
  # lm_eval's example is not run: the harness would fetch its data.
  commands += _commands('python -m edsft_jax.evaluation.judge')
  assert len(commands) == 6
  for command in commands:
    words = command[1:]
    if '--workdir=runs/mine' in words:
      words += paths
    if 'edsft_jax.main' in words:
      words += [f'--config.{name}={value}' for name, value in SMALL.items()]
    for placeholder, name in names.items():
      words = [word.replace(placeholder, name) for word in words]
    result = subprocess.run(
      [sys.executable, *words],
      cwd=tmp_path,
      env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stderr
  assert list((tmp_path / 'judged').iterdir())
  assert (tmp_path / 'runs' / 'trial' / 'report' / 'index.html').exists()
  mine = tmp_path / 'runs' / 'mine'
  cell = mine / 'runs' / 'min_margin-k4-seed0' / 'evaluations'
  for task in ('heldout', 'mmlu', 'alpaca_eval'):
    assert (cell / task / 'eval.json').exists()
  assert (mine / 'report' / 'index.html').exists()
  base = study.no_finetuning_cell().name
  folder = tmp_path / 'runs' / 'benchmarks' / 'runs' / base / 'evaluations'
  for task in ('mmlu', 'bbh', 'gsm8k'):
    assert (folder / task / 'eval.json').exists()


@pytest.mark.slow
def test_the_python_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names: dict[str, object] = {
    'features': np.random.default_rng(0).normal(size=(1500, 8)),
  }
  blocks = [b for b in _blocks() if re.match('from|import', b)]
  assert len(blocks) == 2
  for block in blocks:
    exec(compile(block, str(README), 'exec'), names)
  chosen = names['chosen']
  assert len(chosen.indices) == 1000
  assert sum(chosen.gains) <= chosen.upper_bound
  assert (tmp_path / 'runs' / 'mine' / 'scores' / 'features.npy').exists()


PAGES = [README, *sorted(REPOSITORY.glob('docs/*.md'))]


def _linked(page: pathlib.Path) -> set[pathlib.Path]:
  """The files that a page links to."""
  text = page.read_text(encoding='utf-8')
  links = re.findall(r'\]\(([^):]+?)(?:#[^)]*)?\)', text)
  return {(page.parent / link).resolve() for link in links}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_the_files_that_are_named_exist(page):
  assert [path for path in _linked(page) if not path.exists()] == []


def test_the_index_names_every_document_and_config():
  root = REPOSITORY.resolve()
  index = root / 'docs' / 'index.md'
  files = {*root.glob('docs/*.md'), *root.glob('configs/*.py')}
  files -= {index, root / 'configs' / '__init__.py'}
  assert files - _linked(index) == set()
