import collections
import itertools

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from edsft_jax import selection


def plain(tasks, budget, weights, initial):
  """Returns the task of each pick, by the rule of the documentation."""
  order = list(dict.fromkeys(tasks))
  left = collections.Counter(tasks)
  left.subtract(collections.Counter(tasks[i] for i in initial))
  have = collections.Counter(tasks[i] for i in initial)
  picks = []
  for _ in range(budget):
    task = max(
      (t for t in order if left[t] > 0),
      key=lambda t: (weights[t] / (have[t] + 0.5), -have[t], -order.index(t)),
    )
    picks.append(task)
    left[task] -= 1
    have[task] += 1
  return picks


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.data())
def test_follows_the_rule(data):
  tasks = data.draw(st.lists(st.sampled_from('abcd'), min_size=1, max_size=30))
  n = len(tasks)
  order = data.draw(st.permutations(range(n)))
  initial = order[: data.draw(st.integers(0, n))]
  budget = data.draw(st.integers(0, n - len(initial)))
  confidence = weights = None
  if data.draw(st.booleans()):
    confidence = data.draw(
      st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=n, max_size=n)
    )
    weights = {
      t: 1
      / np.mean([c for c, u in zip(confidence, tasks, strict=True) if u == t])
      for t in tasks
    }
  result = selection.task_diversity(
    tasks, budget, confidence, seed=7, initial=initial
  )
  picks = result.indices.tolist()
  assert len(set(picks) - set(initial)) == budget
  expected = plain(tasks, budget, weights or dict.fromkeys(tasks, 1.0), initial)
  assert [tasks[i] for i in picks] == expected


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.data())
def test_no_set_is_worth_more(data):
  tasks = data.draw(st.lists(st.sampled_from('abc'), min_size=1, max_size=7))
  n = len(tasks)
  order = data.draw(st.permutations(range(n)))
  initial = order[: data.draw(st.integers(0, min(2, n)))]
  confidence = data.draw(
    st.sampled_from([None, [0.25 + 0.5 * (i % 2) for i in range(n)]])
  )
  result = selection.task_diversity(
    tasks, n - len(initial), confidence, initial=initial
  )

  def worth(chosen):
    """Sums w_t / (k + 1/2) over the k = 0, 1, ... of every task."""
    total = 0.0
    for task in set(tasks):
      of_task = [i for i in range(n) if tasks[i] == task]
      weight = 1.0
      if confidence:
        weight = len(of_task) / sum(confidence[i] for i in of_task)
      count = len(set(of_task) & set(chosen))
      total += sum(weight / (k + 0.5) for k in range(count))
    return total

  picks = result.indices.tolist()
  for m in range(len(picks) + 1):
    chosen = [*initial, *picks[:m]]
    best = max(
      worth([*initial, *others])
      for others in itertools.combinations(order[len(initial) :], m)
    )
    assert worth(chosen) == pytest.approx(best)
    gained = result.gains[:m].sum()
    assert gained == pytest.approx(worth(chosen) - worth(initial))
  assert result.objective == pytest.approx(worth(range(n)))


def test_shares_follow_confidence():
  tasks = ['easy'] * 100 + ['hard'] * 100
  confidence = [0.9] * 100 + [0.3] * 100
  picks = selection.task_diversity(tasks, 40, confidence).indices
  assert (picks >= 100).sum() == 30


def test_seeds_change_prompts_and_not_tasks():
  tasks = list('aabbccddaabbccdd')
  one = selection.task_diversity(tasks, 8, seed=1).indices
  two = selection.task_diversity(tasks, 8, seed=2).indices
  assert one.tolist() != two.tolist()
  assert [tasks[i] for i in one] == [tasks[i] for i in two]
  part = selection.task_diversity(tasks, 5, seed=1).indices
  np.testing.assert_array_equal(part, one[:5])


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(budget=4), 'budget 4 exceeds'),
    (dict(budget=-1), 'budget -1'),
    (dict(confidence=[1, 1]), 'confidence has shape'),
    (dict(confidence=[1, 0, 1]), 'confidence has values'),
    (dict(confidence=[1, 1e-320, 1e-320]), 'confidence or its inverse'),
    (dict(confidence=[1e308, 1e308, 1]), 'confidence or its inverse'),
    (dict(confidence=[1, np.nan, 1]), 'confidence has NaN'),
    (dict(initial=[3]), 'initial has 3'),
    (dict(seed=-1), 'seed -1'),
  ],
)
def test_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    selection.task_diversity(**dict(dict(tasks='aab', budget=1), **kwargs))


def test_clusters_stand_in_for_tasks():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 4, size=200)
  features = 20 * np.eye(4)[truth] + rng.normal(size=(200, 4)) + 50
  label = selection.cluster_tasks(features, 4)
  assert label.dtype == np.int64
  assert label[0] == 0
  pairs = set(zip(truth.tolist(), label.tolist(), strict=True))
  assert len(pairs) == 4
  np.testing.assert_array_equal(label, selection.cluster_tasks(features, 4))
  assert set(selection.cluster_tasks(np.ones((5, 2)), 3).tolist()) == {0}
  with pytest.raises(ValueError, match='features differ by so little'):
    selection.cluster_tasks(features * 1e-200, 4)
  with pytest.raises(ValueError, match='num_tasks 6 exceeds'):
    selection.cluster_tasks(np.ones((5, 2)), 6)
