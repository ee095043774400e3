"""The page says which runs' training loss ended above its start."""

import synthetic_study as synthetic

from edsft_jax import reporting, store, study
from edsft_jax.reporting import training


def _train(workdir, cell, **facts) -> None:
  store.write_json(workdir.run(cell.name).cell, {'training': facts})


def test_a_loss_that_rose_is_on_the_page(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  cells = study.cells(options)
  _train(workdir, cells[0], first_loss=2.0, last_loss=1.5)
  assert training.rising_losses(workdir, cells) == []
  _train(workdir, cells[1], loss_rise=(5.7, 9.7))
  line = f'{cells[1].name}: 5.700 at the start, 9.700 at the end'
  assert training.rising_losses(workdir, cells) == [line]
  reporting.run(options, workdir)
  text = workdir.report.read_text()
  assert f'<li>{line}</li>' in text
  assert f'<li>{cells[0].name}:' not in text
