"""No Ctrl-C and no SIGTERM is lost, whenever it comes."""

import signal
import subprocess
import sys
import weakref

from places import REPOSITORY
import pytest

from edsft_jax import interrupts

# Runs the command, which gets a signal when it first looks for a module.
_SIGNALLED = """
import os, runpy, sys

module, number, *words = sys.argv[1:]

class Finder:
  def find_spec(self, name, *unused):
    if name == module:
      os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Finder())
sys.argv = ['edsft_jax.main', *words]
runpy.run_module('edsft_jax.main', run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize('module', ['absl', 'edsft_jax.store.workdir', 'jax'])
@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_during_imports_ends_the_command(
  tmp_path, module, number, code
):
  words = ['pool', 'score', f'--workdir={tmp_path / "run"}']
  result = subprocess.run(
    [sys.executable, '-c', _SIGNALLED, module, str(int(number)), *words],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert result.returncode == code, result.stderr
  assert result.stderr.strip() == ('Stopped. Run the same command to resume.')


@pytest.fixture
def handled():
  """Signals are handled as in a command."""
  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
  interrupts.raise_on_signals()
  yield
  for number, handler in before.items():
    signal.signal(number, handler)
  interrupts.forget()


class _Object:
  """Something to refer to weakly."""


@pytest.mark.usefixtures('handled')
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  ('number', 'raised'),
  [
    (signal.SIGINT, KeyboardInterrupt),
    (signal.SIGTERM, interrupts.Terminated),
  ],
)
def test_a_signal_in_a_callback_is_raised_later(number, raised):
  kept = _Object()
  reference = weakref.ref(kept, lambda _: signal.raise_signal(number))
  del kept
  assert reference() is None
  with pytest.raises(raised):
    interrupts.raise_lost()
  interrupts.forget()
  interrupts.raise_lost()


def test_a_noted_signal_is_raised_when_signals_are(handled):
  interrupts.note_signals()
  signal.raise_signal(signal.SIGTERM)
  with pytest.raises(interrupts.Terminated):
    interrupts.raise_on_signals()
