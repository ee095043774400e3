"""Prints the plan of a study and writes plan/index.html."""

import ml_collections

from edsft_jax import console, errors, store
from edsft_jax.plan import cost, orders, picks, power, runs, section, speed
from edsft_jax.reporting import html
from edsft_jax.scoring import stage as scoring
from edsft_jax.strategies import registry

_NAME = 'plan'


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects bad options; a model is only needed if it is to be measured.

  Raises:
    InputError: naming the option or the file.
  """
  errors.refuse_below('plan.sample_prompts', config.plan.sample_prompts, 0)
  power.check(config)
  if config.plan.sample_prompts and not workdir.scores.exists():
    scoring.check_options(config)
  store.require(workdir.pool, 'pool', planned)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Prints what is known before money is spent, and how to learn more.

  Raises:
    InputError: a file is damaged, or the pilot has too few results.
  """
  pool = store.read_prompts(workdir.pool)
  found = orders.read(config, workdir)
  sections = [
    *cost.sections(config, workdir, pool, found),
    *picks.sections(config, workdir, pool, found),
    power.section(config, workdir),
    speed.section(config, workdir, pool),
    runs.section(config, workdir, len(pool)),
  ]
  if missing := _missing(config, workdir, found):
    sections.append(section.Section('Not known yet', missing))
  print()
  for one in sections:
    print(one.text(), end='\n\n')
  title = config.report.title or workdir.root.resolve().name
  page = html.template('edsft_jax.plan', 'page.html.jinja').render(
    title=title,
    model=config.model.path,
    pool_path=config.pool.path,
    num_prompts=len(pool),
    sections=sections,
    strategies=registry.STRATEGIES,
  )
  store.write_text(workdir.plan, page)
  console.say(_NAME, f'wrote {workdir.plan}')


def _missing(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  found: orders.Orders,
) -> list[str]:
  """What is not known yet, with the command that finds it out."""

  def command(*stages: str) -> str:
    return f'edsft-jax {" ".join(stages)} --workdir={workdir.root}'

  lines = []
  rows = registry.rows(found.missing)
  scored = workdir.scores.exists()
  if found.missing:
    needs_scores = not scored and any(row.needs_scoring for row in rows)
    stages = ('score', 'select') if needs_scores else ('select',)
    lines.append(
      f'No {found.largest:,} picks of {", ".join(found.missing)}: their words '
      'are taken to be those of the pool, and tasks, overlap, coverage and '
      f'examples do not have them. Run {command(*stages)} with the same '
      'options.'
    )
  if not scored:
    lines.append(
      f'No features, so no coverage. Run {command("score")} with the same '
      'options.'
    )
  if not workdir.heldout.exists():
    lines.append(
      'No held-out set to evaluate on: set pool.heldout_path, in a new '
      '--workdir.'
    )
  return lines
