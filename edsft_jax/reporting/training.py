"""What cell.json says about training that a reader of the page should know."""

from collections.abc import Iterable

from edsft_jax import store, study


def rising_losses(
  workdir: store.Workdir, cells: Iterable[study.Cell]
) -> list[str]:
  """A line for each cell whose training loss ended above its start."""
  lines = []
  for cell in cells:
    path = workdir.run(cell.name).cell
    facts = store.read_cell(path).get('training') if path.exists() else None
    if facts and 'loss_rise' in facts:
      start, end = facts['loss_rise']
      lines.append(
        f'{cell.name}: {start:.3f} at the start, {end:.3f} at the end'
      )
  return lines
