"""The responses of a shard that is not whole yet."""

import math

import pytest

from edsft_jax.evaluation import journal
from edsft_jax.evaluation.requests import Place
from edsft_jax.evaluation.task import Generated, Scored

RESPONSES = {
  Place(3, 0): Scored(0.1 + 0.2, True, 4),
  Place(0, 1): Generated('a\n\ud800"', 3, 'stop', False),
}


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch):
  monkeypatch.setattr(journal, 'WRITE_SECONDS', 0)


def test_an_interruption_loses_nothing(tmp_path, monkeypatch):
  """Within a second, only then does anything get written."""
  monkeypatch.setattr(journal, 'WRITE_SECONDS', 100)
  path = tmp_path / '00000.journal'
  with pytest.raises(KeyboardInterrupt), journal.Journal(path) as kept:
    kept.add(RESPONSES)
    assert not path.exists()
    raise KeyboardInterrupt
  assert journal.parse(journal.Journal(path).read()) == RESPONSES
  with journal.Journal(path) as kept:
    kept.add(RESPONSES)
    kept.remove()
  assert not path.exists()


def test_responses_come_back(tmp_path):
  kept = journal.Journal(tmp_path / 'shards' / '00000.journal')
  assert journal.parse(kept.read()) == {}
  kept.add(RESPONSES)
  kept.add({Place(4, 0): Scored(math.inf, False, 1)})
  assert journal.parse(kept.read()) == {
    **RESPONSES,
    Place(4, 0): Scored(math.inf, False, 1),
  }
  kept.remove()
  kept.remove()
  assert journal.parse(kept.read()) == {}


def test_damaged_lines_are_left_out(tmp_path):
  path = tmp_path / '00000.journal'
  kept = journal.Journal(path)
  kept.add(RESPONSES)
  first, second = path.read_text().splitlines()
  for damaged in (
    first.replace('"nll"', '"nil"'),
    first.replace('"scored"', '"generated"'),
    first.replace('"scored"', '["scored"]'),
    first.replace('[3, 0]', '[3]'),
    first.replace('"place"', '"peace"'),
    first.replace('"num_tokens": 4', '"num_tokens": "4"'),
    first.replace('0.30000000000000004', 'null'),
    first[:-2],
  ):
    path.write_text(f'{damaged}\n{second}\n')
    assert [*journal.parse(kept.read())] == [Place(0, 1)]
