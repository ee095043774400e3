"""Likelihoods of given continuations.

Rows that begin alike, such as the questions of a subject after the same worked
examples, share the keys and values of their common prefix: it is read once.
Continuations that differ only in their last token, such as the letters of a
question, are scored from one row.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
import dataclasses
import functools
import itertools
import threading
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.inference import packing, throughput, waves, workers
from edsft_jax.inference.collect import Progress, Reporter
from edsft_jax.inference.logits import row_likelihood
from edsft_jax.inference.planner import Planned, Planner
from edsft_jax.inference.prefixes import Prefixes
from edsft_jax.inference.programs import cache_after
from edsft_jax.inference.waves import Row, Wave


class Target(NamedTuple):
  """A continuation to score, with its context.

  Attributes:
    tokens: ids of the context, followed by those of the continuation.
    num_targets: number of tokens of the continuation; fewer than all, since
      nothing predicts the first token.
  """

  tokens: Sequence[int] | np.ndarray
  num_targets: int


@dataclasses.dataclass(frozen=True)
class Likelihoods:
  """Likelihoods of n continuations, in the given order.

  Attributes:
    nll: float64 [n], summed negative log-likelihood in nats.
    is_greedy: bool [n], whether each token was the likeliest one.
  """

  nll: np.ndarray
  is_greedy: np.ndarray


# Called with the indices of targets that are scored, and with their results.
Found = Callable[[Sequence[int], Likelihoods], Any]


def rolling_targets(
  ids: Sequence[int], prefix_id: int, context: int
) -> list[Target]:
  """Windows in which each token of a text is a target once.

  A window but the first has as much context as fits before its targets: one
  token, except for the last window, as in lm-evaluation-harness.

  Args:
    ids: the text.
    prefix_id: the token that the first one is predicted from.
    context: tokens that the model reads at most.
  """
  targets = []
  for start in range(0, len(ids), context):
    end = min(start + context, len(ids))
    if start == 0:
      tokens = [prefix_id, *ids[:end]]
    else:
      tokens = list(ids[end - context - 1 : end])
    targets.append(Target(tokens, end - start))
  return targets


class LikelihoodEngine:
  """Scores the same continuations by models of one structure."""

  def __init__(
    self,
    decoder: models.Decoder,
    mesh: jax.sharding.Mesh,
    parts: Sequence[Sequence[Target]],
    *,
    batch_tokens: int,
    num_passes: int = 1,
  ):
    """Groups targets and chooses shapes; compiles nothing yet.

    Args:
      decoder: gives the structure; its weights are on the mesh.
      mesh: batches are split over its axes data and fsdp.
      parts: contexts with their continuations; each call scores one part, and
        all parts have the same shapes.
      batch_tokens: tokens per batch, padding and prefixes included.
      num_passes: how often the targets will run, for example once per model.

    Raises:
      ValueError: a target has no context.
    """
    for i, target in enumerate(itertools.chain(*parts)):
      if not 0 <= target.num_targets < len(target.tokens):
        raise ValueError(
          f'target {i} has {target.num_targets} targets among '
          f'{len(target.tokens)} tokens: give fewer than all'
        )
    self._mesh = mesh
    self._num_workers = workers.num_workers(mesh)
    self._costs = throughput.Costs.of(decoder, mesh_lib.batch_multiple(mesh))
    self._sizes = [len(part) for part in parts]
    rows = [_rows(part) for part in parts]
    self._max_choices = max(
      (len(row.last) for part in rows for row in part), default=1
    )
    planner = Planner(
      decoder, mesh, rows, batch_tokens // self._num_workers, num_passes
    )
    self._plan = planner.cheapest()
    graph, _ = nnx.split(decoder)
    self._programs = _Programs(graph, mesh)

  @property
  def num_programs(self) -> int:
    """Programs compiled so far."""
    return self._programs.read.num_programs + self._programs.score.num_programs

  def __call__(
    self,
    weights: nnx.State,
    progress: Progress = lambda work: None,
    part: int = 0,
    known: AbstractSet[int] = frozenset(),
    found: Found | None = None,
  ) -> Likelihoods:
    """Scores a part of the targets.

    Args:
      weights: weights of a decoder with the constructor's structure.
      progress: called with the work done since its last call; a target counts
        as a prompt.
      part: which one, from 0.
      known: targets to leave out, by index; a packed row with others scores
        them as well.
      found: called with the results of targets as soon as they are known, by
        one thread at a time.
    """
    results = _Results(self._sizes[part], found)
    report = Reporter(self._costs, progress)
    calls = []
    for planned in self._plan[part]:
      read = functools.partial(
        self._read_prefixes, weights, planned.wave, report
      )
      new = [
        packed
        for packed in planned.calls
        if not set(planned.targets(packed)) <= known
      ]
      prefixes = workers.Shared(read, len(new))
      calls += [(planned, prefixes, packed) for packed in new]
    queue = workers.Queue(calls)

    def work(number: int, unless_stopped: workers.UnlessStopped) -> None:
      workers.pipeline(
        unless_stopped(queue.take(number)),
        lambda call: self._score(weights, *call),
        lambda call, result: results.put(call[0], call[2], result, report),
      )

    workers.run(work, self._num_workers)
    return Likelihoods(results.nll, results.is_greedy)

  def _read_prefixes(
    self, weights: nnx.State, wave: Wave, report: Reporter
  ) -> Prefixes | None:
    """Reads the prefixes of a wave, if it has any."""
    if not wave.prefixes:
      return None
    prefixes = self._programs.read(
      weights, *mesh_lib.shard_batch(self._mesh, wave.padded_prefixes())
    )
    report.prefilled([throughput.Span(0, len(ids), 0) for ids in wave.prefixes])
    return prefixes

  def _score(
    self,
    weights: nnx.State,
    planned: Planned,
    prefixes: workers.Shared[Prefixes | None],
    packed: packing.Packed,
  ) -> dict[str, jax.Array]:
    """Starts the computation of `row_likelihood` for packed rows."""
    num_segments = planned.wave.shapes.most_sequences(packed.length)
    rows = planned.wave.rows
    inputs = (
      *waves.fill(packed, rows),
      *waves.fill_scored(packed, rows, num_segments, self._max_choices),
    )
    return self._programs.score(
      weights, prefixes.take(), *mesh_lib.shard_batch(self._mesh, inputs)
    )


class _Results:
  """Likelihoods known so far, from several threads."""

  def __init__(self, num_targets: int, found: Found | None):
    # A target without tokens is certain.
    self.nll = np.zeros(num_targets)
    self.is_greedy = np.ones(num_targets, bool)
    self._found = found
    self._lock = threading.Lock()

  def put(
    self,
    planned: Planned,
    packed: packing.Packed,
    result: dict[str, jax.Array],
    report: Reporter,
  ) -> None:
    """Waits for the results of packed rows, and stores them."""
    places = packed.places
    values = {k: x[places] for k, x in jax.device_get(result).items()}
    rows = [planned.wave.rows[i] for i in packed.indices]
    with self._lock:
      for number, row in enumerate(rows):
        for choice, index in enumerate(row.indices):
          self.nll[index] = values['nll'][number, choice]
          self.is_greedy[index] = values['is_greedy'][number, choice]
      if self._found is not None:
        indices = planned.targets(packed)
        self._found(
          indices, Likelihoods(self.nll[indices], self.is_greedy[indices])
        )
    report.prefilled(
      [row.span(row.num_scored + 1) for row in rows],
      num_finished=sum(len(row.indices) for row in rows),
    )


def _rows(targets: Sequence[Target]) -> list[Row]:
  """Rows for the targets; those that differ in the last token share one."""
  rows: dict[tuple[tuple[int, ...], int], Row] = {}
  for index, target in enumerate(targets):
    if not target.num_targets:
      continue
    *inputs, last = np.asarray(target.tokens).tolist()
    key = tuple(inputs), target.num_targets - 1
    row = rows.setdefault(key, Row(*key))
    row.indices.append(index)
    row.last.append(last)
  return list(rows.values())


class _Programs:
  """The compiled programs of one model structure."""

  def __init__(self, graph: nnx.GraphDef, mesh: jax.sharding.Mesh):
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def read(
      weights: nnx.State, tokens_NxP: jax.Array, mask_NxP: jax.Array
    ) -> Prefixes:
      return Prefixes.read(nnx.merge(graph, weights), tokens_NxP, mask_NxP)

    def score(
      weights: nnx.State,
      prefixes: Prefixes | None,
      prefix_B: jax.Array,
      tokens_BxL: jax.Array,
      segments_BxL: jax.Array,
      num_scored_BxS: jax.Array,
      last_BxSxC: jax.Array,
    ) -> dict[str, jax.Array]:
      decoder = nnx.merge(graph, weights)
      cache = cache_after(prefixes, prefix_B, tokens_BxL)
      output = decoder.packed(tokens_BxL, segments_BxL, cache)
      found = row_likelihood(
        decoder,
        output.hidden_BxLxD,
        tokens_BxL,
        packing.sequence_masks(segments_BxL, num_scored_BxS.shape[1]),
        num_scored_BxS,
        last_BxSxC,
      )
      return jax.lax.with_sharding_constraint(found, replicated)

    self.read = workers.Compiled(jax.jit(read))
    self.score = workers.Compiled(jax.jit(score))
