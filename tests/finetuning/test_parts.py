"""Several commands, each with its part of the cells."""

import fcntl
import subprocess
import sys

import pytest
import tiny_study

from edsft_jax import errors, evaluation, finetuning, pipeline, store, study
from edsft_jax.finetuning import trainer as trainer_lib

pytestmark = pytest.mark.usefixtures('on_one_device')


def _config():
  config = tiny_study.config()
  config.study.seeds = (0, 1)
  config.finetuning.epochs = 1
  return config


def _done(workdir) -> set[str]:
  return {path.parent.name for path in workdir.runs.glob('*/model')}


CELLS = [study.Cell('s', k, i) for k in (10, 20) for i in (0, 1, 2)]


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_parts_are_disjoint_and_whole(count):
  parts = [study.CellPart(i, count).of(CELLS) for i in range(count)]
  together = [cell for part in parts for cell in part]
  assert sorted(together, key=CELLS.index) == CELLS
  if count < len(CELLS):
    # No part has only large budgets.
    sizes = [sum(cell.budget for cell in part) for part in parts]
    assert max(sizes) - min(sizes) <= 20


@pytest.mark.parametrize('text', ['2/2', '1', '-1/2', 'a/b', '/2', '0/0'])
def test_bad_parts(text):
  with pytest.raises(errors.InputError, match=r'--cells=.*0/4'):
    study.CellPart.parse(text)


def test_a_lost_machines_cells_are_made_by_the_whole_command(workdir):
  config = _config()
  first = study.CellPart.parse('0/2')
  finetuning.run(config, workdir, first)
  evaluation.run(config, workdir, first)
  some = _done(workdir)
  assert len(some) == 2
  assert not store.Manifest(workdir).is_done('finetune')
  # The same again has nothing to do; the other machine never came.
  finetuning.run(config, workdir, first)
  assert _done(workdir) == some
  finetuning.run(config, workdir)
  evaluation.run(config, workdir)
  assert len(_done(workdir)) == 4
  manifest = store.Manifest(workdir)
  assert manifest.is_done('finetune')
  assert manifest.is_done('evaluate')
  assert manifest.counts('finetune')['cells'] == 4
  assert len(list(workdir.runs.glob('*/evaluations/heldout/eval.json'))) == 5


def test_the_last_part_leaves_counts_to_the_whole_command(workdir, monkeypatch):
  config = _config()
  for index in range(2):
    finetuning.run(config, workdir, study.CellPart(index, 2))
  assert len(_done(workdir)) == 4

  def step(*unused):
    raise AssertionError('a step was made')

  monkeypatch.setattr(trainer_lib.Trainer, 'step', step)
  finetuning.run(config, workdir)
  assert store.Manifest(workdir).counts('finetune')['cells'] == 4


def test_a_cell_of_another_command_is_left_to_it(workdir, capsys):
  config = _config()
  name = 'random-k9-seed0'
  with store.locked(workdir, name) as is_free:
    assert is_free
    finetuning.run(config, workdir, study.CellPart(0, 1))
  assert _done(workdir) == {
    'random-k5-seed0',
    'random-k5-seed1',
    'random-k9-seed1',
  }
  assert f'{name}: another command trains it' in capsys.readouterr().out


_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], 'a')
fcntl.flock(file, int(sys.argv[2]))
print('held', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
  ('kind', 'shared', 'whole'),
  [(fcntl.LOCK_SH, True, False), (fcntl.LOCK_EX, False, False)],
)
def test_who_may_use_a_workdir_together(workdir, kind, shared, whole):
  """Commands with --cells do, others do not."""
  with subprocess.Popen(
    [sys.executable, '-c', _HOLDER, workdir.root / '.lock', str(int(kind))],
    stdout=subprocess.PIPE,
  ) as holder:
    try:
      assert holder.stdout.readline() == b'held\n'
      for together, allowed in ((True, shared), (False, whole)):
        if allowed:
          with store.claimed(workdir, shared=together):
            pass
        else:
          with (
            pytest.raises(errors.InputError, match='another command is using'),
            store.claimed(workdir, shared=together),
          ):
            pass
    finally:
      holder.kill()


def test_only_cells_can_be_divided(workdir):
  with pytest.raises(errors.InputError, match=r'divides finetune and evaluate'):
    pipeline.run(
      _config(),
      workdir,
      ['finetune', 'evaluate', 'report'],
      study.CellPart(0, 2),
    )


def test_commands_do_not_lose_each_others_records(workdir):
  first, second = store.Manifest(workdir), store.Manifest(workdir)
  first.begin('finetune', {'x': 1})
  second.begin('evaluate', {'y': 2})
  with first.timed('finetune'):
    second.finish('evaluate', {'models': 3})
  found = store.Manifest(workdir)
  assert set(found.stages) == {'finetune', 'evaluate'}
  assert found.counts('evaluate') == {'models': 3}
  with pytest.raises(errors.InputError, match=r'x \(was 1, is 2\)'):
    store.Manifest(workdir).begin('finetune', {'x': 2})
