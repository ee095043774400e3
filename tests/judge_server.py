"""OpenAI-compatible servers on real sockets, for tests of judges."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import http.server
import json
import math
import threading
from typing import Any

# A fault that an answer can be: the connection ends in the middle of the body.
CUT = 'cut'
# Longer than the timeout of the tests' endpoints.
HANG_SECONDS = 1.0

# Request -> status and body, CUT, or seconds to wait before an empty answer. A
# status of 302 has the address to go to as its body.
Answer = Callable[[Mapping[str, Any]], Any]


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[str]:
  """Yields the address of a server that answers by a function."""

  stopped = threading.Event()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers['Content-Length'])
      found = answer(json.loads(self.rfile.read(size)))
      if isinstance(found, float):
        stopped.wait(found)
        found = 200, {}
      cut = found == CUT
      status, body = (200, {'choices': []}) if cut else found
      data = body if isinstance(body, bytes) else json.dumps(body).encode()
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        self.send_response(status)
        if status == 302:
          self.send_header('Location', body)
        self.send_header('Content-Length', str(len(data) + 10 * cut))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *unused): ...

  class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # More than the requests that are sent at the same time.
    request_queue_size = 64

  server = Server(('127.0.0.1', 0), Handler)
  thread = threading.Thread(
    target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True
  )
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}/v1'
  finally:
    stopped.set()
    server.shutdown()
    server.server_close()


def said(log_odds: float, **more: Any) -> dict[str, Any]:
  """An answer whose second output has these log-odds."""
  second = 1 / (1 + math.exp(-log_odds))
  top = [
    {'token': 'M', 'logprob': math.log(second)},
    {'token': 'm', 'logprob': math.log(1 - second)},
  ]
  choice = {
    'message': {'content': 'M' if second > 0.5 else 'm'},
    'logprobs': {'content': [{'token': 'M', 'top_logprobs': top}]},
  }
  return {'choices': [choice], 'usage': {'total_tokens': 7}, **more}


def text_of(request: Mapping[str, Any]) -> str:
  """The last turn of a request."""
  return request['messages'][-1]['content']


def instruction_of(request: Mapping[str, Any]) -> str:
  """The instruction that a question in the default prompt is about."""
  return text_of(request).split('# Instruction\n')[1].split('\n\n#')[0]


def outputs_of(request: Mapping[str, Any]) -> tuple[str, str]:
  """The outputs that a question in the default prompt shows."""
  first, second = (
    text_of(request)
    .split('# Output of "m"\n')[1]
    .split('\n\n# Output of "M"\n')
  )
  return first, second.split('\n\nWhich output')[0]
