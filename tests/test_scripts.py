"""The scripts: each explains itself, and says in one line what is wrong."""

import ast
import sys

from places import REPOSITORY, script_module
import pytest

SCRIPTS = REPOSITORY / 'scripts'


def _imported(name: str) -> set[str]:
  """The top-level modules that a script imports when it starts."""
  tree = ast.parse((SCRIPTS / f'{name}.py').read_text(encoding='utf-8'))
  names = set()
  for node in tree.body:
    if isinstance(node, ast.Import):
      names |= {alias.name.partition('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.add(node.module.partition('.')[0])
  return names


NAMES = sorted(path.stem for path in SCRIPTS.glob('*.py'))
COMMANDS = [name for name in NAMES if 'command_line' in _imported(name)]


def _run(name, monkeypatch, *arguments):
  """Runs the script in this process; returns its exit code."""
  if 'torch' in _imported(name):
    pytest.importorskip('torch')
  module = script_module(name)
  monkeypatch.setattr(sys, 'argv', [f'{name}.py', *arguments])
  with pytest.raises(SystemExit) as stopped:
    script_module('command_line').run(module.main)
  return stopped.value.code


def test_all_with_a_main_have_the_shared_command_line():
  sources = {name: (SCRIPTS / f'{name}.py').read_text() for name in NAMES}
  assert [n for n in NAMES if "'__main__'" in sources[n]] == COMMANDS
  for name in COMMANDS:
    assert 'command_line.parser(__doc__)' in sources[name], name
    assert 'command_line.run(main)' in sources[name], name


@pytest.mark.parametrize('name', COMMANDS)
def test_help_shows_the_docstring(name, monkeypatch, capsys):
  assert _run(name, monkeypatch, '--help') == 0
  docstring = ast.get_docstring(ast.parse((SCRIPTS / f'{name}.py').read_text()))
  assert docstring in capsys.readouterr().out


@pytest.mark.parametrize(
  ('name', 'arguments', 'line'),
  [
    ('prepare_flan_v2', ['none.jsonl'], 'none.jsonl does not exist'),
    ('prepare_flan_v2', ['.'], '. is a folder: name a file'),
    ('prepare_flan_v2', ['broken.jsonl'], 'broken.jsonl, line 2: '),
    ('prepare_flan_v2', ['lacking.jsonl'], "line 2: no field 'targets'"),
    ('keep_study', ['verify', 'broken.jsonl'], 'is not a folder: name one'),
    ('keep_study', ['verify', '.'], 'config.json does not exist: name the'),
    ('benchmark_selection', ['smal'], "'smal' is unknown: use any of facility"),
    ('benchmark_scoring', ['pool'], 'pool: give --model and --prompts'),
    ('make_demo_model', ['--steps=0'], '0: must be 1 or more'),
  ],
)
def test_a_mistake_is_one_line(
  name, arguments, line, monkeypatch, capsys, tmp_path
):
  monkeypatch.chdir(tmp_path)
  row = '{"inputs": "a", "targets": "b"}\n'
  (tmp_path / 'broken.jsonl').write_text(row + '{"inputs": \n')
  (tmp_path / 'lacking.jsonl').write_text(row + '{"inputs": "a"}\n')
  if name == 'prepare_flan_v2':
    arguments = [*arguments, '--folder=made']
  assert _run(name, monkeypatch, *arguments) == 2
  *usage, last = capsys.readouterr().err.splitlines()
  assert line in last
  assert not any('Traceback' in line for line in usage)


def test_a_missing_peer_is_one_line(capsys):
  def main():
    raise ModuleNotFoundError("No module named 'torch'", name='torch')

  command_line = script_module('command_line')
  with pytest.raises(SystemExit, match='2'):
    command_line.run(main)
  assert capsys.readouterr().err == (
    "error: torch is not installed: pip install -e '.[bench]'\n"
  )


def test_a_failed_process_says_why():
  contest = script_module('contest')
  command = [sys.executable, '-c', 'import sys; sys.exit("no such model")']
  with pytest.raises(SystemExit, match='no such model'):
    contest.time_command(command)
  seconds, output = contest.time_command(
    [sys.executable, '-c', 'import os; print(os.environ["WORD"])'],
    {'WORD': 'given'},
  )
  assert output == 'given\n'
  assert seconds > 0
