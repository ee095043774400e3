"""Ctrl-C and SIGTERM: delayed where work would be lost, and never ignored."""

from collections.abc import Callable, Iterator
import contextlib
import signal
import threading
from typing import Any


class Terminated(BaseException):
  """SIGTERM. Like KeyboardInterrupt, it is not an Exception."""


def exit_code(stopped: BaseException) -> int:
  """What a shell reports for a program that the signal has killed."""
  number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
  return 128 + number


def note_signals() -> None:
  """Only notes Ctrl-C and SIGTERM, until `raise_on_signals` is called.

  An exception while modules are imported shows a traceback, and in the middle
  of an extension's initialization it crashes the process.
  """
  _handle_by(_note)


def raise_on_signals() -> None:
  """Has Ctrl-C raise KeyboardInterrupt, and SIGTERM Terminated.

  Raises:
    KeyboardInterrupt: Ctrl-C was noted before.
    Terminated: SIGTERM was.
  """
  _handle_by(_note_and_raise)
  raise_lost()


def raise_lost() -> None:
  """Raises for a signal whose exception did not get through.

  Python ignores exceptions in callbacks of the garbage collector and of weak
  references, and runs signal handlers there as well.

  Raises:
    KeyboardInterrupt: for Ctrl-C.
    Terminated: for SIGTERM.
  """
  if _noted:
    _raise(_noted)


def forget() -> None:
  """Forgets signals that were raised, in a program that goes on."""
  global _noted
  _noted = 0


class Delayed:
  """The signals that arrived in a `delayed` block."""

  def __init__(self) -> None:
    """Starts without any."""
    self._own = 0
    self._elsewhere = 0

  @property
  def number(self) -> int:
    """The signal that arrived, or 0."""
    return self._own or self._elsewhere

  @property
  def arrived(self) -> bool:
    """Whether the block should come to an end."""
    return self.number != 0

  def arrived_elsewhere(self, number: int) -> None:
    """Notes a signal that reached another process of this command; 0: none.

    The same one often reaches this process a moment later, and must not count
    as the second.
    """
    self._elsewhere = number

  def deliver(self) -> None:
    """Raises what the signal that arrived would have raised.

    Raises:
      KeyboardInterrupt: for Ctrl-C.
      Terminated: for SIGTERM.
    """
    if self.arrived:
      _raise(self.number)

  def handle(self, number: int, frame: Any) -> None:
    """The signal handler: notes the first one, and raises the second."""
    del frame
    if self._own:
      _raise(number)
    self._own = number


@contextlib.contextmanager
def delayed() -> Iterator[Delayed]:
  """Delays Ctrl-C and SIGTERM until the end of the block.

  The block should look at `arrived` often and then save what it has. Signals
  only reach the main thread, so nothing is delayed in others.

  Raises:
    KeyboardInterrupt: at the end, for Ctrl-C; at once, for the second one.
    Terminated: the same for SIGTERM.
  """
  result = Delayed()
  if threading.current_thread() is not threading.main_thread():
    yield result
    return
  before = {s: signal.signal(s, result.handle) for s in _SIGNALS}
  try:
    yield result
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  result.deliver()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The last signal that came while handlers were those of this module; 0: none.
_noted = 0


def _handle_by(handler: Callable[[int, Any], None]) -> None:
  if threading.current_thread() is threading.main_thread():
    for number in _SIGNALS:
      signal.signal(number, handler)


def _note(number: int, frame: Any) -> None:
  global _noted
  del frame
  _noted = number


def _note_and_raise(number: int, frame: Any) -> None:
  _note(number, frame)
  _raise(number)


def _raise(number: int) -> None:
  raise KeyboardInterrupt if number == signal.SIGINT else Terminated
