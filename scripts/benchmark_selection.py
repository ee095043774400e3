"""Times edsft_jax.selection against its peers, side by side.

  pip install -e '.[bench]'
  python scripts/benchmark_selection.py --csv benchmark.csv

Every contestant of a case runs once to warm up, then all take turns, and the
median of three calls counts, so that other load on the machine affects all
alike. The time of similarities is included. CPU seconds add up over threads.
The pool is a mixture of 200 clusters of skewed sizes; k-center also has one of
37 clusters of unequal size and spread. Memory is the peak of a separate
process: in total, beyond the features, and the bound for the latter
(memory_limit + c N).
"""

from collections.abc import Callable, Iterator, Sequence
import heapq
import importlib
import multiprocessing
import sys
import time

import command_line
from contest import Contestant, compete, peak_process_bytes, show
import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax import selection
from edsft_jax.selection import checks, memory

GROUPS = ('facility_location', 'small', 'k_center', 'approximate', 'size')
PEERS = ('apricot', 'submodlib')
FIELDS = (
  'case',
  'contestant',
  'seconds',
  'ratio',
  'cpu_seconds',
  'objective',
  'peak_gib',
  'beyond_features_gib',
  'bound_gib',
)
# Bytes per row that facility location may use besides its memory limit at d=64:
# points, similarities to guess from, a panel, and temporary numpy arrays.
BYTES_PER_ROW = 12 * 2**10


def clustered_pool(n: int, d: int) -> np.ndarray:
  """A mixture of 200 Gaussians, as skewed and uneven as real pools."""
  rng = np.random.default_rng(0)
  share = 1 / np.arange(1, 201)
  centre = rng.normal(size=(200, d))
  label = rng.choice(200, n, p=share / share.sum())
  spread = 0.5 * rng.gamma(2, 0.5, size=(n, 1))
  return (centre[label] + spread * rng.normal(size=(n, d))).astype(np.float32)


def uneven_pool(n: int, d: int) -> np.ndarray:
  """37 Gaussian clusters of unequal size and spread."""
  rng = np.random.default_rng(0)
  share = rng.gamma(1.0, size=37)
  centre = 3 * rng.normal(size=(37, d))
  spread = rng.gamma(2, 0.5, size=37)
  label = rng.choice(37, n, p=share / share.sum())
  noise = spread[label, None] * rng.normal(size=(n, d))
  return (centre[label] + noise).astype(np.float32)


def kernel(features: np.ndarray, similarity: str) -> np.ndarray:
  """All similarities in numpy, float32: RBF of width 1 or shifted cosine."""
  if similarity == 'cosine':
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    s = unit @ unit.T
    s += 1
    s /= 2
    return s
  x = features - features.mean(axis=0)
  norm = np.square(x).sum(axis=1)
  s = x @ x.T
  s *= 2
  s -= norm[:, None]
  s -= norm
  np.minimum(s, 0, out=s)
  s /= 2 * x.var(axis=0).sum()
  return np.exp(s, out=s)


def ours(features, budget, similarity, **kwargs) -> Contestant:
  """This library."""
  how: dict[str, selection.Similarity] = {
    'rbf': selection.Rbf(width=1.0),
    'cosine': selection.Cosine(),
  }
  return lambda: (
    selection.facility_location(
      features, budget, how[similarity], **kwargs
    ).objective
  )


def numpy_heap(features, budget, similarity) -> Contestant:
  """Lazy greedy in numpy over the whole kernel."""

  def run() -> float:
    s = kernel(features, similarity)
    covered = np.zeros(len(s), np.float32)
    extra = np.empty_like(covered)
    heap = [(-gain, i) for i, gain in enumerate(s.sum(axis=1).tolist())]
    heapq.heapify(heap)
    for _ in range(budget):
      while True:
        candidate = heap[0][1]
        np.subtract(s[candidate], covered, out=extra)
        np.maximum(extra, 0, out=extra)
        heapq.heapreplace(heap, (-float(extra.sum()), candidate))
        if heap[0][1] == candidate:
          break
      heapq.heappop(heap)
      np.maximum(covered, s[candidate], out=covered)
    return float(covered.sum(dtype=np.float64))

  return run


def apricot(features, budget, similarity) -> Contestant:
  """apricot-select, lazy greedy."""
  from apricot import FacilityLocationSelection

  def run() -> float:
    s = kernel(features, similarity).astype(np.float64)
    picks = (
      FacilityLocationSelection(budget, metric='precomputed', optimizer='lazy')
      .fit(s)
      .ranking
    )
    return float(s[:, picks].max(axis=1).sum())

  return run


def submodlib(features, budget, similarity) -> Contestant:
  """submodlib-py, lazy greedy."""
  from submodlib import FacilityLocationFunction

  def run() -> float:
    s = kernel(features, similarity)
    function = FacilityLocationFunction(
      n=len(s), mode='dense', sijs=s, separate_rep=False
    )
    picks = function.maximize(
      budget=budget, optimizer='LazyGreedy', show_progress=False
    )
    return float(s[:, [i for i, _ in picks]].max(axis=1).sum(dtype=float))

  return run


def ours_k_center(features, budget) -> Contestant:
  """This library."""
  return lambda: selection.k_center(features, budget).objective


def numpy_k_center(features, budget) -> Contestant:
  """One product with the last pick per step."""

  def run() -> float:
    x = features - features.mean(axis=0)
    norm = np.square(x).sum(axis=1)
    nearest = np.full(len(x), np.inf, np.float32)
    pick = 0
    for _ in range(budget):
      np.minimum(nearest, norm + norm[pick] - 2 * (x @ x[pick]), out=nearest)
      nearest[pick] = 0
      pick = int(np.argmax(nearest))
    return float(np.sqrt(nearest.max()))

  return run


def jax_k_center(features, budget) -> Contestant:
  """The same loop in jax, compiled."""

  @jax.jit
  def loop(x):
    x = x - x.mean(axis=0)
    norm = jnp.square(x).sum(axis=1)

    def step(_, state):
      nearest, pick = state
      product = jnp.matmul(x, x[pick], precision='highest')
      nearest = jnp.minimum(nearest, norm + norm[pick] - 2 * product)
      nearest = nearest.at[pick].set(0)
      return nearest, jnp.argmax(nearest)

    start = (jnp.full(len(x), jnp.inf), jnp.int32(0))
    return jnp.sqrt(jax.lax.fori_loop(0, budget, step, start)[0].max())

  return lambda: float(loop(features))


def rows_of(
  case: str, contestants: dict[str, Contestant], repeats: int
) -> Iterator[dict[str, str]]:
  """Rows of the table for one case."""
  for m in compete(case, contestants, repeats):
    yield dict(
      case=m.case,
      contestant=m.contestant,
      seconds=f'{m.seconds:.3f}',
      ratio=f'{m.ratio:.2f}',
      cpu_seconds=f'{m.cpu_seconds:.3f}',
      objective=f'{m.result:.4f}',
      peak_gib='',
      beyond_features_gib='',
      bound_gib='',
    )


def facility_location_cases(peers: Sequence[Callable], repeats: int):
  """The large cases: N = 20k, a fifth of it picked."""
  for similarity, d in (('rbf', 64), ('rbf', 512), ('cosine', 64)):
    arguments = (clustered_pool(20_000, d), 4_000, similarity)
    contestants = {make.__name__: make(*arguments) for make in (ours, *peers)}
    case = f'facility location {similarity} N=20000 d={d} k=4000'
    yield from rows_of(case, contestants, repeats)


def small_cases(peers: Sequence[Callable], repeats: int):
  """Pools whose kernels fit in any memory."""
  for n in (2_000, 5_000, 10_000):
    arguments = (clustered_pool(n, 64), n // 5, 'rbf')
    contestants = {make.__name__: make(*arguments) for make in (ours, *peers)}
    case = f'facility location rbf N={n} d=64 k={n // 5}'
    yield from rows_of(case, contestants, repeats)


def k_center_cases(repeats: int):
  """N = 20k, d = 512, 2,000 centres, of two kinds of pools."""
  pools = {'200 clusters': clustered_pool, '37 uneven clusters': uneven_pool}
  for name, make_pool in pools.items():
    arguments = (make_pool(20_000, 512), 2_000)
    contestants = {
      make.__name__: make(*arguments)
      for make in (ours_k_center, numpy_k_center, jax_k_center)
    }
    case = f'k-center N=20000 d=512 k=2000, {name}'
    yield from rows_of(case, contestants, repeats)


def approximate_cases(repeats: int):
  """What threshold and partitioned save and lose with little memory."""
  limited = dict(memory_limit=2**25)
  arguments = (clustered_pool(20_000, 64), 400, 'rbf')
  contestants = {
    'greedy': ours(*arguments, **limited),
    'threshold 0.1': ours(*arguments, method='threshold', **limited),
    'threshold 0.3': ours(
      *arguments, method='threshold', epsilon=0.3, **limited
    ),
    'partitioned': ours(*arguments, method='partitioned', **limited),
  }
  yield from rows_of(
    'facility location rbf N=20000 d=64 k=400 32 MiB', contestants, repeats
  )


def measure_size(n: int, d: int) -> list[dict]:
  """Warms up on a small pool, then measures two calls: times and peaks."""
  features = clustered_pool(n, d)
  selection.facility_location(features[:2_000], 10)
  before = peak_process_bytes()
  limit = memory.limit(None, checks.mesh(None))
  rows = []
  for call in ('first call', 'second call'):
    start, cpu_start = time.perf_counter(), time.process_time()
    result = selection.facility_location(features, n // 10, memory_limit=limit)
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    peak = peak_process_bytes()
    beyond = (peak - before) / 2**30
    bound = (limit + BYTES_PER_ROW * n) / 2**30
    rows.append(
      dict(
        case=f'size N={n} d={d} k={n // 10}',
        contestant=call,
        seconds=f'{seconds:.3f}',
        ratio='',
        cpu_seconds=f'{cpu_seconds:.3f}',
        objective=f'{result.objective:.4f}',
        peak_gib=f'{peak / 2**30:.2f}',
        beyond_features_gib=f'{beyond:.2f}',
        bound_gib=f'{bound:.2f}',
      )
    )
  return rows


def size_cases():
  """Peak memory and growth, each size in its own process.

  A second call compiles nothing; its ratio is relative to that of the smallest
  size, shown next to that of N^2.
  """
  context = multiprocessing.get_context('spawn')
  sizes = (20_000, 50_000, 100_000)
  for n in sizes:
    with context.Pool(1) as pool:
      first, second = pool.apply(measure_size, (n, 64))
    if n == sizes[0]:
      reference = float(second['seconds'])
    second['ratio'] = (
      f'{float(second["seconds"]) / reference:.2f} of {(n / sizes[0]) ** 2:.2f}'
    )
    yield from (first, second)


def installed_peers(names: Sequence[str]) -> list[Callable]:
  """The numpy heap, and the peers that can be imported."""
  peers = [numpy_heap]
  for name in names:
    try:
      importlib.import_module(name)
    except ImportError as error:
      print(f'without {name}: {error}', file=sys.stderr)
    else:
      peers.append(globals()[name])
  return peers


def main() -> None:
  """Runs the requested groups, prints a table and writes it."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  command_line.add_names(parser, GROUPS)
  add('--csv', default='', help='file to write; none by default')
  add('--repeats', type=command_line.positive, default=3)
  add(
    '--peers',
    nargs='*',
    type=command_line.one_of(PEERS),
    default=PEERS,
    help=f'any of {", ".join(PEERS)}; those installed by default',
  )
  arguments = parser.parse_args()
  groups = arguments.names or GROUPS
  peers, repeats = installed_peers(arguments.peers), arguments.repeats
  cases = {
    'facility_location': lambda: facility_location_cases(peers, repeats),
    'small': lambda: small_cases(peers, repeats),
    'k_center': lambda: k_center_cases(repeats),
    'approximate': lambda: approximate_cases(repeats),
    'size': size_cases,
  }
  rows = (row for group in groups for row in cases[group]())
  show(FIELDS, rows, arguments.csv)


if __name__ == '__main__':
  command_line.run(main)
