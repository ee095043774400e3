"""Ctrl-C and SIGTERM: delayed where work would be lost, and never ignored."""

from collections.abc import Iterator
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


def raise_on_sigterm() -> None:
  """Has SIGTERM raise Terminated, so that files are left as by Ctrl-C."""
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _raise)


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
      _raise(self.number, None)

  def handle(self, number: int, frame: Any) -> None:
    """The signal handler: notes the first one, and raises the second."""
    if self._own:
      _raise(number, frame)
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


def _raise(number: int, frame: Any) -> None:
  del frame
  raise KeyboardInterrupt if number == signal.SIGINT else Terminated
