"""Tasks of lm-evaluation-harness on local files, as it would get from the hub.

For scripts/benchmark_evaluation.py and the tests that compare us with the
harness: it then needs no network, and both sides have the same questions.
"""

from collections.abc import Sequence
import functools
import json
import pathlib
from typing import Any


def mmlu(
  directory: pathlib.Path, questions: Sequence[dict], shots: Sequence[dict]
) -> list[dict[str, Any]]:
  """The harness's mmlu_SUBJECT for each subject of the questions."""
  specs = []
  for subject in dict.fromkeys(q['subject'] for q in questions):
    files = {}
    for split, rows in (('test', questions), ('dev', shots)):
      files[split] = write_rows(
        directory / f'mmlu_{subject}_{split}.jsonl',
        [
          {
            'question': row['question'],
            'subject': subject,
            'choices': row['choices'],
            'answer': 'ABCD'.index(row['answer']),
          }
          for row in rows
          if row['subject'] == subject
        ],
      )
    specs.append(_local(f'mmlu_{subject}', files))
  return specs


def bbh(
  directory: pathlib.Path,
  questions: Sequence[dict],
  variant: str = 'bbh_cot_fewshot',
) -> list[dict[str, Any]]:
  """The harness's VARIANT_TASK for each task of the questions."""
  specs = []
  for task in dict.fromkeys(q['task'] for q in questions):
    rows = [
      {'input': q['input'], 'target': q['target']}
      for q in questions
      if q['task'] == task
    ]
    files = {'test': write_rows(directory / f'bbh_{task}.jsonl', rows)}
    specs.append(_local(f'{variant}_{task}', files))
  return specs


def gsm8k(
  directory: pathlib.Path, questions: Sequence[dict], shots: Sequence[dict]
) -> list[dict[str, Any]]:
  """The harness's gsm8k."""
  files = {
    split: write_rows(
      directory / f'gsm8k_{split}.jsonl',
      [{'question': r['question'], 'answer': r['answer']} for r in rows],
    )
    for split, rows in (('test', questions), ('train', shots))
  }
  return [_local('gsm8k', files)]


def _local(name: str, files: dict[str, str]) -> dict[str, Any]:
  """The harness's own configuration, with other data."""
  # Only where the harness is installed.
  from lm_eval.tasks._yaml_loader import load_yaml

  return {
    **load_yaml(_index()[name].yaml_path),
    'task': name,
    'dataset_path': 'json',
    'dataset_name': None,
    'dataset_kwargs': {'data_files': files},
  }


@functools.cache
def _index() -> dict[str, Any]:
  """The harness's tasks by name; finding them takes it seconds."""
  from lm_eval.tasks import TaskManager

  return TaskManager().task_index


def write_rows(path: pathlib.Path, rows: Sequence[dict]) -> str:
  """Writes rows as JSON lines; returns the path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return str(path)
