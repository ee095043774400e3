"""README's examples, run one after the other as a reader would."""

import gzip
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


def _write(path: pathlib.Path, shared: pathlib.Path, source: str, count: int):
  with gzip.open(shared / 'data' / source, 'rt', encoding='utf-8') as file:
    rows = [json.loads(next(file)) for _ in range(count)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.mark.slow
def test_the_commands_run(tmp_path, shared):
  model = str(shared / 'models' / 'stories260K')
  names = {
    'path/to/hf_model': model,
    '=JUDGE': f'={model}',
    'configs/default.py': str(REPOSITORY / 'configs' / 'default.py'),
  }
  _write(tmp_path / 'prompts.jsonl', shared, 'dolly15k.jsonl.gz', 60)
  _write(tmp_path / 'mmlu_test.jsonl', shared, 'mmlu_test.jsonl.gz', 200)
  _write(tmp_path / 'mmlu_dev.jsonl', shared, 'mmlu_dev.jsonl.gz', 285)
  # Short ones, for the context of a judge that is as small.
  instructions = [
    {'instruction': text} for text in ('Say hello.', 'Name a dog.')
  ]
  (tmp_path / 'alpaca_eval.json').write_text(json.dumps(instructions))
  commands = _commands('python -m edsft_jax.main')
  assert len(commands) == 3
  first = [word for word in commands[0] if '.path=' in word]
  for command in commands:
    words = [*command[1:], *first]
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
  mine = tmp_path / 'runs' / 'mine'
  cell = mine / 'runs' / 'min_margin-k4-seed0' / 'evaluations'
  for task in ('heldout', 'mmlu', 'alpaca_eval'):
    assert (cell / task / 'eval.json').exists()
  assert (mine / 'report' / 'index.html').exists()


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
