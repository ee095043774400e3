"""Logs loss and learning rate by step to metrics.jsonl and TensorBoard."""

import json
import pathlib
import shutil
import time
from typing import Any

from edsft_jax import store


class MetricsLog:
  """Appends to metrics.jsonl and to TensorBoard, from a given step on."""

  def __init__(self, run: store.Run, step: int):
    """Drops what an interrupted run wrote after `step`."""
    kept = _lines_until(run.metrics, step)
    self._tokens = kept[-1]['tokens'] if kept else 0
    before = kept[-1]['seconds'] if kept else 0.0
    self._start = time.monotonic() - before
    store.write_jsonl(run.metrics, kept)
    if run.tensorboard.exists():
      shutil.rmtree(run.tensorboard)
    # Imported here, since it imports torch if that is installed.
    import tensorboardX

    self._writer = tensorboardX.SummaryWriter(str(run.tensorboard))
    for line in kept:
      self._plot(line)
    self._file = run.metrics.open('a', encoding='utf-8')

  def __enter__(self) -> 'MetricsLog':
    return self

  def __exit__(self, *_: Any) -> None:
    self._file.close()
    self._writer.close()

  def write(
    self, step: int, loss: float, learning_rate: float, num_tokens: int
  ) -> None:
    """Writes one line; `num_tokens` counts those since the last line."""
    self._tokens += num_tokens
    line = {
      'step': step,
      'loss': loss,
      'learning_rate': learning_rate,
      'tokens': self._tokens,
      'seconds': round(time.monotonic() - self._start, 3),
    }
    self._file.write(json.dumps(line, allow_nan=False) + '\n')
    # A checkpoint of this step needs this line on disk.
    self._file.flush()
    self._plot(line)

  def _plot(self, line: dict[str, float]) -> None:
    for name in ('loss', 'learning_rate', 'tokens'):
      self._writer.add_scalar(name, line[name], line['step'])


def _lines_until(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Lines up to `step`; the last one may be incomplete after a kill."""
  kept = []
  for text in path.read_text('utf-8').splitlines() if path.exists() else ():
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      break
    if line['step'] > step:
      break
    kept.append(line)
  return kept
