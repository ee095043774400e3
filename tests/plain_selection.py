"""Slow and plain versions of every selection, for small pools."""

import itertools

import numpy as np

from edsft_jax.selection import similarity as similarity_lib


def exact_similarities(features, similarity):
  """Returns [N, N] in float64 by the definitions of the documentation."""
  x = np.asarray(features, np.float64)
  if isinstance(similarity, similarity_lib.Rbf):
    distance = np.square(x[:, None] - x[None]).sum(axis=-1)
    if similarity.gamma is not None:
      return np.exp(-similarity.gamma * distance)
    mean = distance.mean()
    return np.exp(-distance / (similarity.width * mean if mean else 1.0))
  norm = np.sqrt(np.square(x).sum(axis=1))
  unit = x / np.where(norm > 0, norm, 1)[:, None]
  cosine = np.clip(unit @ unit.T, -1, 1)
  np.fill_diagonal(cosine, norm > 0)
  if similarity.transform == 'shift':
    return (1 + cosine) / 2
  return np.maximum(cosine, 0)


def similarities_in_use(features, similarity):
  """Returns [N, N] float32 as the library rounds them, from one whole tile."""
  points = similarity.points(np.asarray(features))
  distinct = similarity_lib.distinct_rows(points)
  point, group = distinct.point_UxD, distinct.group_N
  norm = similarity_lib.squared_norms(point)
  # Padded to a multiple of what vector instructions hold.
  pad = -len(point) % 64
  point = np.pad(point, ((0, pad), (0, 0)))
  padded_norm = np.pad(norm, (0, pad))
  tile = similarity_lib.tile(
    similarity.formula, point, padded_norm, point, padded_norm
  )
  s = np.array(tile)[: len(norm), : len(norm)]
  itself = similarity_lib.self_similarity(similarity.formula, norm)
  np.fill_diagonal(s, itself)
  return s[group][:, group]


def facility_location(s, budget, initial=(), candidates=None, weights=None):
  """Returns indices, gains and objective by trying every candidate."""
  s = s.astype(np.float64)
  n = len(s)
  weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
  free = set(range(n) if candidates is None else candidates) - set(initial)
  covered = s[:, list(initial)].max(axis=1, initial=0.0)
  picks, gains = [], []
  for _ in range(budget):
    every = [
      (-(weights * np.maximum(s[:, j] - covered, 0)).sum(), j) for j in free
    ]
    gain, pick = min(every)
    free.remove(pick)
    picks.append(pick)
    gains.append(-gain)
    covered = np.maximum(covered, s[:, pick])
  return np.array(picks, np.int64), np.array(gains), (weights * covered).sum()


def worst_regret(s, picks, initial=(), weights=None):
  """Replays picks in float64: the most by which one missed the best gain.

  In units of the first best gain.
  """
  weights = np.ones(len(s)) if weights is None else np.asarray(weights)
  covered = s[:, list(initial)].max(axis=1, initial=0.0)
  taken = np.zeros(len(s), bool)
  taken[list(initial)] = True
  worst, first = 0.0, None
  for pick in picks:
    gain = weights @ np.maximum(s - covered[:, None], 0)
    best = gain[~taken].max()
    first = first or best
    worst = max(worst, (best - gain[pick]) / first)
    taken[pick] = True
    covered = np.maximum(covered, s[:, pick])
  return worst


def replay(s, picks):
  """As worst_regret, for larger pools: gains are lowered with every pick.

  A pick changes the gains by the rows that it covers better alone.
  """
  covered = np.zeros(len(s))
  gain = s.sum(axis=0)
  worst, first = 0.0, gain.max()
  for pick in picks:
    worst = max(worst, (gain.max() - gain[pick]) / first)
    rows = np.flatnonzero(s[:, pick] > covered)
    before, after = covered[rows][:, None], s[rows, pick][:, None]
    gain -= (np.clip(s[rows], before, after) - before).sum(axis=0)
    gain[pick] = -np.inf
    covered = np.maximum(covered, s[:, pick])
  return worst


def best_sets(s, most, initial=()):
  """Returns for m = 0 .. most what the best m picks reach."""
  free = [j for j in range(len(s)) if j not in set(initial)]
  return [
    max(
      s[:, [*initial, *chosen]].max(axis=1, initial=0.0).sum()
      for chosen in itertools.combinations(free, m)
    )
    for m in range(most + 1)
  ]


def k_center(features, budget, initial=(), first=0):
  """Returns indices, gains and radius from all distances, in float64."""
  x = np.asarray(features, np.float64)
  distance = np.sqrt(np.square(x[:, None] - x[None]).sum(axis=-1))
  chosen, picks, gains = list(initial), [], []
  for _ in range(budget):
    if chosen:
      nearest = distance[:, chosen].min(axis=1)
      nearest[chosen] = -1
      pick = int(np.argmax(nearest))
      gains.append(nearest[pick])
    else:
      pick = first
      gains.append(np.nan)
    picks.append(pick)
    chosen.append(pick)
  radius = distance[:, chosen].min(axis=1, initial=np.inf).max(initial=0.0)
  return np.array(picks, np.int64), np.array(gains), radius


def log_determinant(s, budget, jitter, initial=()):
  """Returns indices, gains and objective from whole determinants."""
  s = s + jitter * np.eye(len(s))

  def value(chosen):
    return np.linalg.slogdet(s[np.ix_(chosen, chosen)])[1] if chosen else 0.0

  chosen, gains = list(initial), []
  for _ in range(budget):
    every = [
      (value([*chosen, j]) - value(chosen), -j)
      for j in range(len(s))
      if j not in chosen
    ]
    gain, pick = max(every)
    chosen.append(-pick)
    gains.append(gain)
  return np.array(chosen[len(initial) :]), np.array(gains), value(chosen)
