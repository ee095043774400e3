"""A headless Chromium, driven through its DevTools protocol over a pipe."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

PATH = next(
  filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))), None
)


class Browser:
  """A browser page that records its messages and requests.

  Attributes:
    messages: from the console, uncaught errors and warnings.
    requests: URLs that were requested.
  """

  def __init__(self, folder: pathlib.Path):
    assert PATH is not None
    to_browser, self._out = os.pipe()
    self._in, from_browser = os.pipe()
    # The browser reads commands from file descriptor 3 and answers on 4.
    self._process = subprocess.Popen(
      [
        'bash',
        '-c',
        f'exec "$@" 3<&{to_browser} 4>&{from_browser}',
        'bash',
        PATH,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--hide-scrollbars',
        '--remote-debugging-pipe',
        f'--user-data-dir={folder}',
      ],
      pass_fds=(to_browser, from_browser),
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._numbers = itertools.count(1)
    self._read = b''
    self._session = ''
    self.messages: list[str] = []
    self.requests: list[str] = []
    target = self._call('Target.createTarget', url='about:blank')
    session = self._call(
      'Target.attachToTarget', targetId=target['targetId'], flatten=True
    )
    self._session = session['sessionId']
    for domain in ('Page', 'Runtime', 'Network', 'Log'):
      self._call(f'{domain}.enable')

  def close(self) -> None:
    """Closes the browser."""
    self._process.terminate()
    self._process.wait()
    os.close(self._out)
    os.close(self._in)

  def open(
    self, path: pathlib.Path, width: int, dark: bool = False, ready: str = ''
  ) -> None:
    """Opens a file and waits until it is ready.

    Args:
      path: the file.
      width: of the window in CSS pixels.
      dark: whether the user prefers dark pages.
      ready: JavaScript that is true once the page is ready.
    """
    self.messages.clear()
    self.requests.clear()
    self._call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=900,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = 'dark' if dark else 'light'
    features = [{'name': 'prefers-color-scheme', 'value': scheme}]
    self._call('Emulation.setEmulatedMedia', media='', features=features)
    self._call('Page.navigate', url=path.resolve().as_uri())
    done = 'document.readyState === "complete"' + (ready and f' && {ready}')
    self.evaluate(
      'new Promise(done => { const look = () => '
      f'({done}) ? done(true) : setTimeout(look, 20); look(); }})'
    )

  def print_preview(self) -> None:
    """Shows the page as it is printed, at the present width."""
    self._call('Emulation.setEmulatedMedia', media='print')

  def evaluate(self, script: str) -> Any:
    """The value of a JavaScript expression; waits for promises."""
    result = self._call(
      'Runtime.evaluate',
      expression=script,
      awaitPromise=True,
      returnByValue=True,
    )
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def screenshot(self, path: pathlib.Path) -> None:
    """Writes a PNG of the whole page."""
    shot = self._call('Page.captureScreenshot', captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot['data']))

  def pdf(self) -> bytes:
    """The page as it is printed."""
    printed = self._call('Page.printToPDF', printBackground=True)
    return base64.b64decode(printed['data'])

  def hover(self, x: float, y: float) -> None:
    """Moves the mouse to a point of the window, in CSS pixels."""
    self._call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)

  def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
    number = next(self._numbers)
    message = {'id': number, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._receive()
      if answer.get('id') == number:
        assert 'error' not in answer, answer
        return answer['result']
      self._record(answer)

  def _receive(self) -> dict[str, Any]:
    while b'\0' not in self._read:
      some = os.read(self._in, 1 << 20)
      assert some, 'the browser has ended'
      self._read += some
    text, _, self._read = self._read.partition(b'\0')
    return json.loads(text)

  def _record(self, event: dict[str, Any]) -> None:
    what = event.get('params', {})
    match event.get('method'):
      case 'Runtime.consoleAPICalled' | 'Runtime.exceptionThrown':
        self.messages.append(json.dumps(what))
      case 'Log.entryAdded':
        self.messages.append(what['entry']['text'])
      case 'Network.requestWillBeSent':
        self.requests.append(what['request']['url'])


@contextlib.contextmanager
def opened(folder: pathlib.Path):
  """A browser with its profile in a folder."""
  browser = Browser(folder)
  try:
    yield browser
  finally:
    browser.close()
