"""Renders results and exhibits as one HTML page."""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any

import markupsafe
import ml_collections

from edsft_jax import store
from edsft_jax.reporting import (
  about,
  comparison,
  costs,
  exhibits,
  headline,
  html,
  interactive,
  picks,
  plots,
  results,
  tables,
)
from edsft_jax.reporting import material as material_lib
from edsft_jax.reporting.material import Material
from edsft_jax.reporting.plots import palette
from edsft_jax.strategies import registry

# Makes the images of an exhibit from its figure, name and caption.
Render = Callable[[Callable[[], Any], str, str], plots.Images]


@dataclasses.dataclass(frozen=True)
class Page:
  """The page and the data of its files.

  Attributes:
    html: the page's HTML.
    exhibits: its plots with their data.
    images: name of an exhibit -> its images.
    tables: file name -> header and rows of a csv.
    data: what the interactive charts show.
  """

  html: str
  exhibits: list[exhibits.Exhibit]
  images: Mapping[str, plots.Images]
  tables: dict[str, tables.Table]
  data: dict[str, Any]


def make(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  found: results.Results,
  render: Render | None = None,
) -> Page:
  """Reads the selections, makes the plots and renders the page.

  Args:
    config: the study.
    workdir: its folder.
    manifest: what its stages recorded.
    found: the evaluations.
    render: makes the images; None: plots.render.
  """
  material = material_lib.read(config, workdir, manifest, found)
  drawn = _draw(material)
  shown = [
    exhibit
    for exhibit in (*drawn.efficiency.values(), *drawn.others.values())
    if exhibit is not None
  ]
  draw = render or plots.render
  images = {e.name: draw(e.draw, e.name, e.text) for e in shown}
  data = _data(material)
  text = html.template('edsft_jax.reporting', 'page.html.jinja').render(
    **about.variables(material),
    **headline.variables(material),
    **drawn.others,
    efficiency=[
      (
        found.metrics[name],
        drawn.efficiency[name],
        [*one.curves.values(), *one.budgets.values()],
        headline.verdict_rows(one, found.budgets, material.prices)
        if one.savings
        else [],
      )
      for name, one in material.compared.items()
    ],
    lengths=material.lengths,
    strategies=registry.STRATEGIES,
    verdicts=comparison.Verdict,
    svg={
      name: markupsafe.Markup(palette.themed(_inline(made.svg)))
      for name, made in images.items()
    },
    embedded=_embedded(material, data),
    scripts=_scripts(),
    has_picks=bool(material.selections),
    num_prompts_shown=len(data['pool']['ids']) if 'pool' in data else 0,
  )
  return Page(text, shown, images, _tables(material), data)


def _inline(svg: str) -> str:
  """The svg element of an SVG file, without metadata."""
  return re.sub(
    '(?s)<metadata>.*?</metadata>', '', svg[svg.index('<svg') :].strip()
  )


def _data(material: Material) -> dict[str, Any]:
  """What the charts and the table of picks show, by name."""
  data = {}
  if material.spent.cells:
    data['curves'] = interactive.curves(
      material.found, material.compared, material.spent, material.confidence
    )
  if material.selections:
    data['pool'] = interactive.prompts(
      material.pool,
      material.selections,
      material.projected,
      material.found.budgets,
    )
  return data


def _scripts() -> list[markupsafe.Markup]:
  """The page's scripts: Bokeh, then page.js."""
  script = html.read('edsft_jax.reporting', 'page.js')
  return [
    markupsafe.Markup(interactive.bokeh_script()),
    markupsafe.Markup(script),
  ]


def _embedded(
  material: Material, data: Mapping[str, Any]
) -> dict[str, markupsafe.Markup]:
  """Id -> JSON that the page's script reads: data, and models of charts."""
  embedded = {f'{name}-data': contents for name, contents in data.items()}
  if 'curves' in data:
    embedded['efficiency-chart-model'] = interactive.efficiency_chart(
      material.found.strategies
    )
  if 'pool' in data and material.projected is not None:
    embedded['map-chart-model'] = interactive.map_chart()
  return {
    name: markupsafe.Markup(interactive.dumps(contents))
    for name, contents in embedded.items()
  }


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """The exhibits: one per metric, and others by their name in the template."""

  efficiency: dict[str, exhibits.Exhibit | None]
  others: dict[str, exhibits.Exhibit | None]


def _draw(material: Material) -> _Drawn:
  found, metric = material.found, material.metric
  orders, pool = material.orders, material.pool
  budgets, of_metric = found.budgets, material.compared[metric]
  widths = None
  if material.workdir.gains_curves.exists():
    curves = store.read_json(material.workdir.gains_curves)
    widths = exhibits.gains_by_width(curves)
  return _Drawn(
    {
      name: exhibits.label_efficiency(
        found, name, comparisons, material.confidence
      )
      for name, comparisons in material.compared.items()
    },
    {
      'forest': exhibits.forest(
        found.metrics[metric], of_metric, material.confidence
      ),
      'by_cost': exhibits.cost_efficiency(
        found, metric, of_metric, material.spent
      ),
      'coverage': exhibits.coverage(material.covered, orders, budgets),
      'spreads': exhibits.lengths(pool, material.answers, orders, budgets[-1]),
      'overlap': exhibits.overlap(
        orders, budgets[-1], material.expected_overlap
      ),
      'map': exhibits.pool_map(pool, material.projected, orders, budgets[-1]),
      'widths': widths,
      'gains': exhibits.selection_gains(material.selections),
      'allocation': exhibits.task_allocation(found, pool, material.selections),
      'quality': exhibits.task_quality(found, metric),
      'seconds': exhibits.stage_seconds(material.timings),
    },
  )


def _tables(material: Material) -> dict[str, tables.Table]:
  """File name -> header and rows of the tables without a plot."""
  compared = material.compared
  found: dict[str, tables.Table] = {
    'comparisons.csv': (
      tables.COMPARISON_COLUMNS,
      tables.comparison_rows(compared),
    ),
    'savings.csv': (tables.SAVINGS_COLUMNS, tables.savings_rows(compared)),
    'lengths.csv': (
      tables.LENGTH_COLUMNS,
      tables.length_rows(material.lengths),
    ),
    'costs.csv': (costs.COLUMNS, material.spent.rows()),
    'picks.csv': (
      picks.COLUMNS,
      picks.rows(
        material.pool, material.selections, material.found.budgets[-1]
      ),
    ),
  }
  if material.replaced:
    rows = [dataclasses.astuple(one) for one in material.replaced]
    found['replaced.csv'] = (picks.REPLACED_COLUMNS, rows)
  return found
