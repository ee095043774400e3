"""The report's procedure by its definitions: loops, least squares and scipy."""

import math
import statistics

import numpy as np
from scipy import optimize, stats


def mean(values, weights):
  return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def pooled(rows):
  """Variance within rows, and its degrees of freedom."""
  freedom = sum(len(row) - 1 for row in rows)
  if not freedom:
    return 0.0, 0
  squares = sum((len(row) - 1) * statistics.variance(row) for row in rows)
  return squares / freedom, freedom


def item_variance(first, second, weights, clusters):
  """v_I of two strategies' tables, seed -> values of the items.

  With equal weights and no clusters, max(0, var(d) - e^2 / R - ...) / n.
  """
  names = sorted(set(clusters))
  count = len(names)
  total = sum(weights)

  def parts(row):
    """What each cluster adds to the row's mean, relative to that mean."""
    centre = mean(row, weights)
    sums = dict.fromkeys(names, 0.0)
    for value, weight, name in zip(row, weights, clusters, strict=True):
      sums[name] += weight * (value - centre) / total
    return [sums[name] for name in names]

  tables = [[parts(row) for row in table] for table in (first, second)]
  noise = 0.0
  for table in tables:
    if len(table) > 1:
      by_cluster = zip(*table, strict=True)
      noise += sum(map(statistics.variance, by_cluster)) / len(table)
  middles = [
    [sum(column) / len(table) for column in zip(*table, strict=True)]
    for table in tables
  ]
  squares = sum((a - b) ** 2 for a, b in zip(*middles, strict=True))
  return max(0.0, squares - noise) * count / (count - 1)


def standard_error(rows, name, fixed, items):
  """(standard error, degrees of freedom) of a strategy minus random."""
  drawn, drawn_freedom = pooled([r for s, r in rows.items() if s not in fixed])
  seeds, random_seeds = len(rows[name]), len(rows['random'])
  if name not in fixed:
    square = drawn / seeds + drawn / random_seeds + items
    return math.sqrt(square), drawn_freedom
  single, _ = pooled([r for s, r in rows.items() if s in fixed])
  # The variance of picks is what random shows.
  square = drawn / random_seeds + single / seeds + drawn + items
  return math.sqrt(square), drawn_freedom


def holm(p_values):
  """key -> corrected p-value."""
  corrected, largest = {}, 0.0
  for i, key in enumerate(sorted(p_values, key=p_values.get)):
    largest = max(largest, (len(p_values) - i) * p_values[key])
    corrected[key] = min(largest, 1.0)
  return corrected


def test(rows, tables, name, fixed, weights, clusters, confidence):
  """A strategy minus random: everything that the report says of it."""
  items = item_variance(tables[name], tables['random'], weights, clusters)
  error, freedom = standard_error(rows, name, fixed, items)
  difference = statistics.fmean(rows[name]) - statistics.fmean(rows['random'])
  t = stats.t(freedom)
  half = t.ppf((1 + confidence) / 2) * error
  return {
    'difference': difference,
    'error': error,
    'freedom': freedom,
    'items': items,
    'low': difference - half,
    'high': difference + half,
    'p': 2 * t.sf(abs(difference) / error),
  }


def detectable(rows, one, name, fixed, seeds, alpha, num_tests):
  """The smallest difference found with power .8 by this many seeds."""
  error, freedom = one['error'], one['freedom']
  if seeds is not None:
    drawn = pooled([r for s, r in rows.items() if s not in fixed])[0]
    num_drawn = sum(s not in fixed for s in rows)
    random_seeds = max(seeds, len(rows['random']))
    square = drawn / random_seeds + drawn / seeds
    if name in fixed:
      single = pooled([r for s, r in rows.items() if s in fixed])[0]
      square = drawn / random_seeds + drawn + single / seeds
    error = math.sqrt(square + one['items'])
    freedom = num_drawn * (seeds - 1)
  t = stats.t(freedom)
  return (t.ppf(1 - alpha / (2 * num_tests)) + t.ppf(0.8)) * error


def slope(curves, budgets):
  """beta by least squares over all seeds, with a height for each seed.

  Returns beta, its standard error, the degrees of freedom, and the p-value of a
  quadratic term.
  """
  x = np.log2(budgets)
  rows = [(s, row) for s, table in curves.items() for row in table]
  height = np.kron(np.eye(len(rows)), np.ones((len(x), 1)))
  line = np.tile(x, len(rows))[:, None]
  y = np.concatenate([row for _, row in rows])
  beta = np.linalg.lstsq(np.hstack([height, line]), y)[0][-1]
  slopes = [[np.polyfit(x, r, 1)[0] for r in t] for t in curves.values()]
  variance, freedom = pooled(slopes)
  if len(budgets) < 3:
    return beta, math.sqrt(variance / len(rows)), freedom, None
  bends = [[np.polyfit(x, r, 2)[0] for r in t] for t in curves.values()]
  bend_variance, _ = pooled(bends)
  bend = np.mean([b for row in bends for b in row])
  ratio = abs(bend) / math.sqrt(bend_variance / len(rows))
  return (
    beta,
    math.sqrt(variance / len(rows)),
    freedom,
    2 * stats.t(freedom).sf(ratio),
  )


def fieller(gamma, gamma_error, gamma_freedom, beta, error, freedom, level):
  """Ends of the set of ratios that are not rejected, by root finding."""
  t = stats.t(min(gamma_freedom, freedom)).ppf((1 + level) / 2)
  if beta**2 <= (t * error) ** 2:
    return None

  def excess(ratio):
    square = gamma_error**2 + (ratio * error) ** 2
    return (gamma - ratio * beta) ** 2 - t**2 * square

  centre, far = gamma / beta, 1.0
  while excess(centre - far) < 0 or excess(centre + far) < 0:
    far *= 2
  return (
    optimize.brentq(excess, centre - far, centre, xtol=1e-13),
    optimize.brentq(excess, centre, centre + far, xtol=1e-13),
  )


def monotone(values):
  """The isotonic fit by its max-min formula."""
  n = len(values)
  return [
    max(
      min(statistics.fmean(values[i : k + 1]) for k in range(j, n))
      for i in range(j + 1)
    )
    for j in range(n)
  ]


def isotonic_answers(means, goal, half, budgets, grid=200_001):
  """(guess, low, high) by evaluating the curve at very many answers."""
  x = np.linspace(np.log2(budgets[0]), np.log2(budgets[-1]), grid)
  y = np.interp(x, np.log2(budgets), monotone(means))

  def first(level):
    if y[0] > level:
      return 0.0
    return 2 ** x[np.argmax(y >= level)] if y[-1] >= level else math.inf

  def last(level):
    if y[0] > level:
      return 0.0
    return 2 ** x[np.argmax(y > level) - 1] if y[-1] > level else math.inf

  return first(goal), first(goal - half), last(goal + half)
