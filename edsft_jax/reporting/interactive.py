"""The interactive charts of the page: Bokeh models, and the data they show.

The models are empty; page.js fills them from the data as its controls say, and
gives them the colours of the style sheet.
"""

from collections.abc import Mapping, Sequence
import importlib.resources
import json
from typing import Any

import numpy as np

from edsft_jax import store
from edsft_jax.reporting import comparison, costs, picks, projection, results
from edsft_jax.reporting.plots import palette, style
from edsft_jax.strategies import registry

# Prompts on the map, and bytes of their texts, at most: a page of a larger pool
# shows all picks and a random sample of the others.
MAX_POINTS = 15_000
MAX_TEXT_BYTES = 3_000_000
# Picks in the table, over all lists.
MAX_PICKS = 100_000

# Marker of matplotlib -> of Bokeh.
_MARKERS = {
  'o': 'circle',
  'X': 'x',
  '<': 'triangle_pin',
  '>': 'hex_dot',
  'p': 'plus',
  'P': 'cross',
  's': 'square',
  '^': 'triangle',
  'h': 'hex',
  'v': 'inverted_triangle',
  'D': 'diamond',
  '*': 'star',
}


def bokeh_script() -> str:
  """Bokeh's JavaScript, without widgets and tables, for the page."""
  file = importlib.resources.files('bokeh').joinpath(
    'server', 'static', 'js', 'bokeh.min.js'
  )
  return file.read_text(encoding='utf-8')


def dumps(data: Any) -> str:
  """JSON for a script element, which `<` could end."""
  text = json.dumps(data, ensure_ascii=False, allow_nan=False)
  return text.replace('<', '\\u003c')


def curves(
  found: results.Results,
  compared: Mapping[str, comparison.Comparisons],
  spent: costs.Costs,
  confidence: float,
) -> dict[str, Any]:
  """What the chart of label efficiency shows, for every metric and axis."""
  return {
    'axes': [
      {'name': axis, 'label': costs.LABELS[axis]} for axis in spent.axes()
    ],
    'budgets': list(found.budgets),
    'metrics': [
      {
        'name': name,
        'label': found.metrics[name].axis_label,
        'references': [
          {
            'label': style.REFERENCES[line[0]].label,
            'value': found.reference(*line, name).mean,
          }
          for line in found.references(name)
        ],
        'points': {
          strategy: _points(
            found, name, comparisons, spent, strategy, confidence
          )
          for strategy in found.strategies
        },
      }
      for name, comparisons in compared.items()
    ],
    'strategies': [
      {'name': name, 'variable': _variable(name)} for name in found.strategies
    ],
  }


def _variable(strategy: str) -> str:
  """The style sheet's variable with a strategy's colour."""
  return palette.variable(registry.STRATEGIES[strategy].colour)


def _points(
  found: results.Results,
  metric: str,
  compared: comparison.Comparisons,
  spent: costs.Costs,
  strategy: str,
  confidence: float,
) -> list[dict[str, Any]]:
  points = []
  for budget in found.budgets:
    interval = compared.interval(strategy, budget, confidence)
    if interval is None:
      continue
    points.append(
      {
        'budget': budget,
        'mean': interval.mean,
        'low': interval.low,
        'high': interval.high,
        'seeds': found.values(strategy, budget, metric),
        'costs': {
          axis: spent.typical(strategy, budget, axis) for axis in spent.axes()
        },
      }
    )
  return points


def prompts(
  pool: store.Prompts,
  selections: picks.Selections,
  projected: projection.Projection | None,
  budgets: Sequence[int],
) -> dict[str, Any]:
  """Prompts, their places on the map, and the lists of picks.

  Without features, only picked prompts are included.
  """
  per_list = MAX_PICKS // max(len(selections), 1)
  lists = _lists(selections, min(max(budgets), per_list))
  place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
  shown = _shown(pool, lists, place, projected is not None)
  number = {i: n for n, i in enumerate(shown)}
  texts, words = pool.texts(), pool.num_words()
  tasks: dict[str, int] = {}
  if pool.tasks is not None:
    for i in shown:
      tasks.setdefault(pool.tasks[i] or '', len(tasks))
  return {
    'ids': [pool.ids[i] for i in shown],
    'texts': [picks.shown(texts[i]) for i in shown],
    'words': [words[i] for i in shown],
    'tasks': list(tasks),
    'task': [tasks[pool.tasks[i] or ''] for i in shown] if pool.tasks else [],
    'budgets': list(budgets),
    'points': {}
    if projected is None
    else {
      name: {
        axis: points[shown, column].tolist() for column, axis in enumerate('xy')
      }
      for name, points in projected.points.items()
    },
    'lists': [
      {
        **{key: one[key] for key in ('strategy', 'seeds', 'scores')},
        # Random's own grey would not stand out.
        'variable': palette.variable(palette.INK)
        if one['strategy'] == registry.RANDOM
        else _variable(one['strategy']),
        'picks': [number[place[i]] for i in one['ids']],
      }
      for one in lists
    ],
    'num_prompts': len(pool),
  }


def _lists(selections: picks.Selections, count: int) -> list[dict[str, Any]]:
  """The first picks of each list; one for the seeds that have the same."""
  found: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
  for (strategy, seed), rows in selections.items():
    ids = tuple(row['id'] for row in rows[:count])
    one = found.setdefault(
      (strategy, ids),
      {
        'strategy': strategy,
        'ids': ids,
        'seeds': [],
        'scores': [_score(row) for row in rows[:count]],
      },
    )
    one['seeds'].append(seed)
  return list(found.values())


def _score(row: Mapping[str, Any]) -> float | None:
  """The score or gain that a pick was chosen by, to four digits."""
  for name in ('score', 'gain'):
    if row.get(name) is not None:
      return float(f'{row[name]:.4g}')
  return None


def _shown(
  pool: store.Prompts,
  lists: Sequence[Mapping[str, Any]],
  place: Mapping[str, int],
  with_others: bool,
) -> list[int]:
  """Positions of the prompts on the page: picks, then a sample of others."""
  shown = dict.fromkeys(place[i] for one in lists for i in one['ids'])
  if with_others:
    texts = pool.texts()
    room = MAX_TEXT_BYTES - sum(_size(texts[i]) for i in shown)
    for i in np.random.default_rng(0).permutation(len(pool)).tolist():
      if len(shown) >= MAX_POINTS or room <= 0:
        break
      if i not in shown:
        shown[i] = None
        room -= _size(texts[i])
  return list(shown)


def _size(text: str) -> int:
  return len(text[: picks.MAX_CHARACTERS].encode('utf-8'))


def efficiency_chart(strategies: Sequence[str]) -> dict[str, Any]:
  """The chart of label efficiency, for Bokeh.embed."""
  from bokeh import embed, models

  plot = _figure('efficiency', 'pan,xwheel_zoom,box_zoom,reset,save', 'log')
  (budgets,) = plot.below
  budgets.name = 'budgets'
  budgets.ticker = models.FixedTicker(name='ticks', ticks=[])
  budgets.formatter = models.NumeralTickFormatter(format='0,0')
  others = models.LogAxis(
    name='costs',
    visible=False,
    formatter=models.NumeralTickFormatter(format='0,0.[00]'),
    major_label_policy=models.NoOverlap(),
  )
  plot.add_layout(others, 'below')
  for strategy in strategies:
    _add_curve(plot, strategy)
  for line in style.REFERENCES.values():
    plot.add_layout(
      models.Span(
        name=line.label,
        dimension='width',
        line_dash=list(line.dashes),
        visible=False,
      )
    )
  return embed.json_item(plot)


def _add_curve(plot: Any, strategy: str) -> None:
  """The means of a strategy with their interval, and its seeds."""
  from bokeh import models

  means = models.ColumnDataSource(
    name=f'means {strategy}',
    data={name: [] for name in ('x', 'y', 'low', 'high', 'text')},
  )
  seeds = models.ColumnDataSource(
    name=f'seeds {strategy}', data={'x': [], 'y': []}
  )
  plot.varea(
    'x', 'low', 'high', source=means, fill_alpha=0.14, name=f'band {strategy}'
  )
  plot.line('x', 'y', source=means, line_width=2, name=f'line {strategy}')
  dots = plot.scatter(
    *('x', 'y'),
    source=means,
    size=8,
    marker=_MARKERS[registry.STRATEGIES[strategy].marker],
    name=f'dots {strategy}',
  )
  plot.scatter(
    *('x', 'y'), source=seeds, size=5, fill_alpha=0, name=f'rings {strategy}'
  )
  plot.add_tools(
    models.HoverTool(
      renderers=[dots],
      tooltips=f'<div class="tip"><b>{strategy}</b><br>@text</div>',
      visible=False,
    )
  )


def map_chart() -> dict[str, Any]:
  """The map of the pool, for Bokeh.embed."""
  from bokeh import embed, models

  plot = _figure('map', 'pan,wheel_zoom,box_zoom,reset,save', 'linear')
  for axis in (*plot.below, *plot.left):
    axis.visible = False
  renderers = []
  for name, size, alpha in (('others', 4, 0.4), ('picks', 6, 0.9)):
    source = models.ColumnDataSource(
      name=name, data={key: [] for key in ('x', 'y', 'text', 'about')}
    )
    renderers.append(
      plot.scatter(
        *('x', 'y'),
        source=source,
        size=size,
        fill_alpha=alpha,
        line_alpha=0,
        name=f'dots {name}',
      )
    )
  plot.add_tools(
    models.HoverTool(
      renderers=renderers,
      tooltips='<div class="tip">@text<br><i>@about</i></div>',
      limit=3,
    )
  )
  return embed.json_item(plot)


def _figure(name: str, tools: str, x_axis: str) -> Any:
  """An empty chart as wide as its element."""
  from bokeh import models, plotting

  plot = plotting.figure(
    name=name,
    tools=tools,
    x_axis_type=x_axis,
    sizing_mode='stretch_width',
    height=420,
    background_fill_alpha=0,
    border_fill_alpha=0,
    outline_line_alpha=0,
  )
  plot.toolbar.logo = None
  plot.toolbar.autohide = True
  # Scrolling the page must not zoom.
  plot.toolbar.active_scroll = None
  plot.toolbar.active_drag = None
  for axis in (*plot.below, *plot.left):
    axis.axis_label_text_font_style = 'normal'
  for scale in (plot.x_range, plot.y_range):
    if isinstance(scale, models.DataRange1d):
      scale.only_visible = True
  return plot
