"""The wheel alone, in a fresh environment, run from another folder."""

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

from places import REPOSITORY
import pytest

import edsft_jax

pytestmark = pytest.mark.slow


def _run(*words: str | pathlib.Path, cwd: pathlib.Path, code: int = 0):
  result = subprocess.run(
    words, cwd=cwd, capture_output=True, text=True, check=False
  )
  assert result.returncode == code, result.stderr
  return result


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  # Of what git has alone, and without build folders in the repository.
  _run('git', 'clone', '-q', REPOSITORY, source, cwd=folder)
  for name in ('edsft_jax', 'configs'):
    shutil.copytree(REPOSITORY / name, source / name, dirs_exist_ok=True)
  for name in ('pyproject.toml', 'README.md'):
    shutil.copy(REPOSITORY / name, source / name)
  command = (sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps')
  _run(*command, '--no-build-isolation', '.', '-w', folder, cwd=source)
  (built,) = folder.glob('edsft_jax-*.whl')
  return built


@pytest.fixture(scope='module')
def command(wheel, tmp_path_factory) -> pathlib.Path:
  """edsft-jax in a new environment, over the packages that are there."""
  folder = tmp_path_factory.mktemp('environment')
  _run(sys.executable, '-m', 'venv', folder / 'v', cwd=folder)
  python = folder / 'v' / 'bin' / 'python'
  purelib = 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
  site = _run(python, '-c', purelib, cwd=folder).stdout.strip()
  there = pathlib.Path(sysconfig.get_paths()['purelib'])
  # Packages are found there, but not what is installed as editable.
  (pathlib.Path(site) / 'others.pth').write_text(f'{there}\n')
  install = ('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index')
  _run(python, *install, '--force-reinstall', wheel, cwd=folder)
  found = _run(python, '-c', 'import edsft_jax; print(edsft_jax)', cwd=folder)
  assert site in found.stdout
  return folder / 'v' / 'bin' / 'edsft-jax'


def test_the_wheel_has_the_package_and_nothing_else(wheel):
  with zipfile.ZipFile(wheel) as file:
    names = file.namelist()
  assert {name.split('/')[0] for name in names} == {
    'edsft_jax',
    f'edsft_jax-{edsft_jax.__version__}.dist-info',
  }
  for name in (
    'edsft_jax/py.typed',
    'edsft_jax/models/demo/model.safetensors',
    'edsft_jax/plan/page.html.jinja',
    'edsft_jax/reporting/page.css',
    'edsft_jax/reporting/page.html.jinja',
  ):
    assert name in names


def test_the_pool_stage_runs_where_another_configs_is(command, tmp_path):
  """A folder configs of one's own must not shadow what the package needs."""
  (tmp_path / 'configs').mkdir()
  for name in ('__init__.py', 'default.py'):
    (tmp_path / 'configs' / name).write_text('raise RuntimeError("a decoy")\n')
  (tmp_path / 'p.jsonl').write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
  words = ('pool', '--workdir=w', '--config.pool.path=p.jsonl')
  assert '2 prompts' in _run(command, *words, cwd=tmp_path).stdout
  # A config of one's own is a file that changes the package's.
  (tmp_path / 'mine.py').write_text(
    'from edsft_jax import config\n'
    'def get_config():\n'
    '  c = config.get_config()\n'
    '  c.pool.limit = 1\n'
    '  return c\n'
  )
  words = ('pool', '--workdir=v', '--config=mine.py')
  result = _run(command, *words, '--config.pool.path=p.jsonl', cwd=tmp_path)
  assert '1 prompt,' in result.stdout
  result = _run(command, '--workdir=x', '--config=no.py', cwd=tmp_path, code=2)
  assert "the path of a file in the repository's configs" in result.stderr


def test_the_demo_runs_from_the_wheel(command, tmp_path):
  words = ('pool', 'score', '--workdir=w', '--config.pool.limit=20')
  more = ('--config.scoring.max_new_tokens=2',)
  _run(command, *words, *more, cwd=tmp_path)
  assert (tmp_path / 'w' / 'scores' / 'scores.parquet').exists()
