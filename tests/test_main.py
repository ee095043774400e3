"""The command line: stages, and one clear line for what is mistyped."""

import os
import re
import subprocess
import sys

from places import REPOSITORY, python_output, run_python
import pytest

from configs import default
import edsft_jax
from edsft_jax import errors, main, pipeline, processes, store
from edsft_jax.config import option_names


def _command(*words, cwd=REPOSITORY):
  return run_python('-m', 'edsft_jax.main', *words, cwd=cwd)


def test_no_word_means_every_stage():
  assert pipeline.stages_asked_for([]) == list(pipeline.STAGES)


def test_stages_run_in_the_order_of_the_data():
  assert pipeline.stages_asked_for(['select', 'pool']) == ['pool', 'select']


def test_unknown_stage_offers_the_nearest():
  with pytest.raises(errors.InputError, match="did you mean 'finetune'"):
    pipeline.stages_asked_for(['fintune'])


def test_help_is_one_screen_and_no_error():
  for word in ('--help', '-h', '--helpfull'):
    result = _command(word)
    assert result.returncode == 0
    assert result.stderr == ''
    lines = result.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name in pipeline.COMMANDS:
      assert any(line.startswith(f'  {name} ') for line in lines)
    assert 'edsft_jax/config.py' in result.stdout


def test_the_options_that_help_names_are_there():
  known = option_names(default.get_config())
  named = re.findall(r'  --config\.([\w.]+)=', main.usage())
  assert len(named) > 5
  assert set(named) <= set(known)


def test_version():
  result = _command('--version')
  assert result.stdout == f'edsft-jax {edsft_jax.__version__}\n'
  assert result.returncode == 0


_QUICK = """
import sys
from edsft_jax import main
sys.argv = ['edsft-jax', *sys.argv[1:]]
try:
  main.cli()
except SystemExit as e:
  print('exit', e.code)
heavy = ('jax', 'transformers', 'orbax', 'tensorboardX', 'scipy', 'matplotlib')
print('loaded', [m for m in heavy if m in sys.modules])
"""


@pytest.mark.parametrize(
  ('words', 'code'),
  [
    (['scor', '--workdir=W'], 2),
    (['--config.study.budget=3', '--workdir=W'], 2),
    (['--config=configs/none.py', '--workdir=W'], 2),
    (['--config.pool.path=none.jsonl', '--workdir=W'], 2),
    (["--config.selection.strategies=('min_margn',)", 'select'], 2),
    (['--workdir=gs://bucket/w'], 2),
    ([], 2),
    (['pool', '--config.pool.path=P', '--workdir=W'], 0),
    (['--help'], 0),
  ],
)
def test_what_needs_no_device_does_not_wait_for_jax(tmp_path, words, code):
  """Importing JAX alone would take longer than all of these."""
  (tmp_path / 'p.jsonl').write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
  words = [w.replace('=W', f'={tmp_path / "w"}') for w in words]
  words = [w.replace('=P', f'={tmp_path / "p.jsonl"}') for w in words]
  lines = python_output('-c', _QUICK, *words).splitlines()
  assert lines[-1] == 'loaded []'
  assert [line for line in lines if line.startswith('exit')] == (
    [f'exit {code}'] if code else ['exit None'] * ('--help' not in words)
  )


def test_a_refused_command_leaves_no_folder(tmp_path):
  workdir = tmp_path / 'a' / 'b' / 'c'
  (tmp_path / 'a').mkdir()
  words = ('--config.pool.path=none.jsonl', f'--workdir={workdir}')
  assert _command('pool', *words).returncode == 2
  assert list((tmp_path / 'a').iterdir()) == []


def test_options_may_follow_a_space(tmp_path):
  (tmp_path / 'p.jsonl').write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
  result = _command(
    'pool',
    *('--config', 'configs/default.py'),
    *('--workdir', str(tmp_path / 'w')),
    *('--config.pool.path', str(tmp_path / 'p.jsonl')),
  )
  assert result.returncode == 0, result.stderr
  assert '2 prompts' in result.stdout


def test_an_option_given_twice_takes_the_last(tmp_path):
  result = _command(
    '--config.pool.path=none.jsonl',
    f'--workdir={tmp_path / "w"}',
    "--config.study.budgets=('x',)",
    '--config.study.budgets=(3,)',
    '--config.pool.path=other.jsonl',
  )
  assert result.returncode == 2
  assert 'other.jsonl' in result.stderr


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    (['--config.study.budget=3'], 'did you mean --config.study.budgets?'),
    (['--config.studi.seeds=3'], 'did you mean --config.study.seeds?'),
    (['--config.scoring.batch_tokens=many'], 'batch_tokens'),
    (['--wrkdir=x'], 'workdir'),
    (['--config=configs/none.py'], 'configs are in'),
    (['--config=none.py'], '--config=none.py does not exist'),
    (['scor'], "did you mean 'score'"),
    ([], 'no --workdir'),
    (
      ["--config.selection.strategies=('min_margn',)"],
      "did you mean 'min_margin'",
    ),
    (['select', '--config.study.budgets=(5,0)'], 'study.budgets has 0'),
    (['select', '--config.study.budgets=()'], 'study.budgets is empty'),
    (['select', '--config.study.seeds=(1,1)'], 'study.seeds has duplicates'),
    (['--config.report.metric=bleu'], 'report.metric'),
    (['--config.mesh.data=7'], 'mesh'),
  ],
)
def test_a_mistake_is_one_line_and_an_exit_code(tmp_path, words, says):
  workdir = tmp_path / 'w'
  if words:
    words = [*words, f'--workdir={workdir}']
  result = _command(*words)
  assert result.returncode == 2
  assert 'Traceback' not in result.stderr
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith('edsft_jax: ')
  assert says in line
  assert not workdir.exists()


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    result = _command('pool', f'--workdir={workdir}')
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert f'--workdir={workdir} cannot be written to' in line


_COMPILE = """
from edsft_jax import main
main.enable_compilation_cache()
import jax
jax.jit(lambda x: x @ x)(jax.numpy.eye(9))
"""


def test_a_second_command_compiles_nothing_again(tmp_path):
  environ = os.environ | {'XDG_CACHE_HOME': str(tmp_path)}
  del environ['JAX_COMPILATION_CACHE_DIR']
  kept = []
  for _ in range(2):
    subprocess.run(
      [sys.executable, '-c', _COMPILE],
      env=environ,
      cwd=REPOSITORY,
      check=True,
    )
    folder = tmp_path / 'edsft_jax' / 'compilations'
    kept.append({path.name for path in folder.glob('*-cache')})
  assert kept[0]
  assert kept[0] == kept[1]


@pytest.mark.parametrize(
  ('environ', 'settings'),
  [
    ({}, ['dir', 'threshold']),
    ({'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '2'}, ['dir']),
    ({'JAX_COMPILATION_CACHE_DIR': 'mine'}, []),
    ({'XDG_CACHE_HOME': '/dev/null/x'}, []),
    ({'XDG_CACHE_HOME': 'relative'}, []),
  ],
)
def test_what_the_environment_says_of_compilations(
  monkeypatch, tmp_path, environ, settings
):
  monkeypatch.setattr(os, 'environ', os.environ.copy())
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  before = dict(os.environ)
  main.enable_compilation_cache()
  of = {
    'dir': (
      'JAX_COMPILATION_CACHE_DIR',
      str(tmp_path / 'edsft_jax' / 'compilations'),
    ),
    'threshold': ('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1'),
  }
  assert os.environ == before | dict(of[name] for name in settings)


def test_several_processes_do_not_verify(monkeypatch, tmp_path):
  monkeypatch.setattr(processes, 'count', lambda: 2)
  with pytest.raises(
    errors.InputError, match='verify cannot be run by several'
  ):
    pipeline.run(
      default.get_config(), store.Workdir(tmp_path / 'w'), ['verify']
    )
  assert not (tmp_path / 'w').exists()


def _previewed(tmp_path, **io_options):
  pool = tmp_path / 'pool.jsonl'
  rows = [f'{{"prompt": "{"word " * 50}{i}"}}\n' for i in range(9)]
  pool.write_text(''.join(rows))
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'edsft_jax.main',
      'preview',
      f'--config.pool.path={pool}',
      f'--workdir={tmp_path / "w"}',
    ],
    cwd=REPOSITORY,
    stderr=subprocess.PIPE,
    text=True,
    **io_options,
  )


@pytest.mark.parametrize('buffered', [True, False])
def test_a_closed_pipe_ends_the_command_quietly(tmp_path, buffered):
  reading, writing = os.pipe()
  os.close(reading)
  environ = os.environ | ({} if buffered else {'PYTHONUNBUFFERED': '1'})
  with _previewed(tmp_path, stdout=writing, env=environ) as command:
    os.close(writing)
    assert command.communicate()[1] == ''
  assert command.returncode == 141


def test_an_encoding_without_a_sign_shows_its_escape(tmp_path):
  environ = os.environ | {'PYTHONIOENCODING': 'latin-1'}
  with _previewed(tmp_path, stdout=subprocess.PIPE, env=environ) as command:
    shown, complaints = command.communicate()
  assert complaints == ''
  assert command.returncode == 0
  assert '\\u27e6(the answer)' in shown
