"""The part of try_label_studio.sh that speaks with the server."""

import json
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any
import urllib.error
import urllib.request

import command_line

from edsft_jax import store

# What a spreadsheet, a CSV file or a template may damage.
PROMPTS = (
  'Plain?',
  '=SUM(A1:A3) is what kind of cell entry?',
  'Two\nlines, "quoted"; and <b>markup</b> & {{ braces }}',
  '+1 or -1?',
  '@home\tand a tab',
  'Grüße, 你好, שלום, 🙂',
  '1.23E+17',
  [
    {'role': 'system', 'content': 'Be kind.'},
    {'role': 'user', 'content': 'Name a shell.'},
    {'role': 'assistant', 'content': 'Cowrie.'},
    {'role': 'user', 'content': 'And another?'},
  ],
  'A prompt to skip',
  'A prompt to reject',
  'One more',
  'And another one',
)
IDS = ('123456789012345676', '007', 'MAR1', 'true', '1e5', 'p-6', 'ü7')
ANSWERS = (
  'A plain answer.',
  '=1+1',
  'Two\nlines, "quoted"; {"text":["not", "JSON"]}',
  '-1',
  '  indented\n\tlines',
  'Grüße, 你好, שלום, 🙂',
  '<b>markup</b> & {{ braces }}',
  '42',
)
FORMS = {
  'JSON': 'export.json',
  'JSON_MIN': 'export-min.json',
  'CSV': 'export.csv',
  'TSV': 'export.tsv',
}
BUDGET = 10


def main() -> None:
  """Runs the round trip; exits with an error if anything differs."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  add('--url', required=True, help='address of the server')
  add('--token', required=True, help='API token of a user')
  add('--work', type=pathlib.Path, required=True, help='a new folder')
  add('--keep', type=pathlib.Path, help='folder for the exports')
  arguments = parser.parse_args()
  work = arguments.work
  work.mkdir(parents=True)
  study = _Study(work)
  study.ask()
  server = _Server(arguments.url, arguments.token)
  expected = _annotate(server, study)
  keep = arguments.keep or work / 'exports'
  keep.mkdir(parents=True, exist_ok=True)
  shutil.copy(study.pool, keep / 'pool.jsonl')
  store.write_json(keep / 'expected.json', expected)
  for form, name in FORMS.items():
    (keep / name).write_bytes(server.export(form))
    study.read_back(keep / name, expected)
    print(f'{form}: {len(expected["answers"])} answers are the same')


class _Study:
  """A workdir that asks for BUDGET of the prompts."""

  def __init__(self, work: pathlib.Path):
    self.pool = work / 'pool.jsonl'
    self.root = work / 'workdir'
    ids = [*IDS, *(f'p{i}' for i in range(len(IDS), len(PROMPTS)))]
    rows = []
    for prompt_id, prompt in zip(ids, PROMPTS, strict=True):
      name = 'prompt' if isinstance(prompt, str) else 'messages'
      rows.append({'id': prompt_id, name: prompt, 'task': 'try'})
    store.write_jsonl(self.pool, rows)

  def ask(self) -> None:
    self._run(self.root, 'pool', 'select', 'annotate')

  def tasks(self) -> list[dict[str, Any]]:
    return store.read_json(self._file('todo.label_studio.json'))

  def labelling(self) -> str:
    return self._file('label_studio.xml').read_text()

  def read_back(self, export: pathlib.Path, expected: dict[str, Any]) -> None:
    """Reads an export into a copy of the workdir, and compares."""
    root = self.root.with_name(f'read-{export.name}')
    shutil.copytree(self.root, root)
    self._run(
      root,
      'select',
      'annotate',
      f'--config.annotation.answers_path={export}',
    )
    workdir = store.Workdir(root)
    _compare(store.read_responses(workdir.responses), expected['answers'])
    rejected = store.read_jsonl(workdir.rejected)
    _compare(
      {row['id']: row['reason'] for row in rejected}, expected['rejected']
    )
    asked = {row['prompt_id'] for row in store.read_jsonl(workdir.todo)}
    # The skipped prompt, and the one in place of the rejected one.
    if len(asked) != 2 or not asked.issuperset(expected['skipped']):
      sys.exit(f'{export.name}: asked for {asked}')

  def _file(self, name: str) -> pathlib.Path:
    return store.Workdir(self.root).todo.with_name(name)

  def _run(self, root: pathlib.Path, *words: str) -> None:
    command = [
      *(sys.executable, '-m', 'edsft_jax.main', *words),
      f'--workdir={root}',
      f'--config.pool.path={self.pool}',
      "--config.selection.strategies=('random',)",
      f'--config.study.budgets=({BUDGET},)',
      # Its picks have the prompts to skip and to reject.
      '--config.study.seeds=(1,)',
    ]
    subprocess.run(command, check=True)


class _Server:
  """The API of Label Studio."""

  def __init__(self, url: str, token: str):
    self._url = url
    self._token = token
    self._project = 0
    self._wait()

  def create(self, labelling: str, tasks: list[dict[str, Any]]) -> None:
    body = {'title': 'round trip', 'label_config': labelling}
    self._project = self._json('POST', '/api/projects', body)['id']
    path = f'/api/projects/{self._project}/import'
    print('imported:', self._json('POST', path, tasks)['task_count'], 'tasks')

  def tasks(self) -> list[dict[str, Any]]:
    path = f'/api/tasks?project={self._project}&page_size=100'
    return self._json('GET', path)['tasks']

  def annotate(
    self, task: int, result: list[dict[str, Any]], was_cancelled: bool = False
  ) -> None:
    body = {
      'result': result,
      'lead_time': 12.5,
      'was_cancelled': was_cancelled,
    }
    self._json('POST', f'/api/tasks/{task}/annotations/', body)

  def export(self, form: str) -> bytes:
    path = f'/api/projects/{self._project}/export?exportType={form}'
    return self._call('GET', path)

  def _json(self, method: str, path: str, body: Any = None) -> Any:
    return json.loads(self._call(method, path, body))

  def _call(self, method: str, path: str, body: Any = None) -> bytes:
    request = urllib.request.Request(
      self._url + path,
      method=method,
      data=None if body is None else json.dumps(body).encode(),
      headers={
        'Authorization': f'Token {self._token}',
        'Content-Type': 'application/json',
      },
    )
    try:
      with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()
    except urllib.error.HTTPError as e:
      sys.exit(f'{method} {path}: {e.code} {e.read()[:500]!r}')

  def _wait(self, seconds: int = 180) -> None:
    end = time.monotonic() + seconds
    while True:
      try:
        print('Label Studio', self._json('GET', '/api/version')['release'])
        return
      except (urllib.error.URLError, OSError):
        if time.monotonic() > end:
          sys.exit(f'no server at {self._url} after {seconds} s')
        time.sleep(1)


def _annotate(server: _Server, study: _Study) -> dict[str, Any]:
  """Answers, skips and rejects; returns what was said, by prompt_id."""
  server.create(study.labelling(), study.tasks())
  answers, rejected, skipped = {}, {}, []
  left = list(ANSWERS)
  for task in server.tasks():
    prompt_id, prompt = task['data']['prompt_id'], task['data']['prompt']
    if 'to skip' in prompt:
      server.annotate(task['id'], [], was_cancelled=True)
      skipped.append(prompt_id)
    elif 'to reject' in prompt:
      reason = 'not a question, "really"'
      server.annotate(
        task['id'], [_choice('rejected'), _text('reason', reason)]
      )
      rejected[prompt_id] = reason
    else:
      answers[prompt_id] = left.pop(0)
      server.annotate(task['id'], [_text('response', answers[prompt_id])])
  return {'answers': answers, 'rejected': rejected, 'skipped': skipped}


def _text(name: str, text: str) -> dict[str, Any]:
  return {
    'from_name': name,
    'to_name': 'prompt',
    'type': 'textarea',
    'value': {'text': [text]},
  }


def _choice(choice: str) -> dict[str, Any]:
  return {
    'from_name': 'verdict',
    'to_name': 'prompt',
    'type': 'choices',
    'value': {'choices': [choice]},
  }


def _compare(found: Any, expected: Any) -> None:
  if found != expected:
    sys.exit(f'read back {found!r}, not {expected!r}')


if __name__ == '__main__':
  command_line.run(main)
