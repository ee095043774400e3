"""Prompts in, scores and features out: reading, decoding, refilling.

Rows end at different steps. A batch that waits for its last row computes
mostly rows that have ended; so as soon as there are places for the next few
prompts, these are read into them. What is left when the prompts of one room
run out moves on into the next larger one.
"""

from collections.abc import Callable, Sequence
import dataclasses
import threading
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.scoring import batching, lanes, statistics, throughput
from edsft_jax.scoring.pooling import pool_features

# Floats of logits that exist at once while a prompt's tokens are scored.
_MOST_LOGITS = 2**22

Progress = Callable[[throughput.Work], Any]


@dataclasses.dataclass
class Scores:
  """What is known of n prompts, in the order in which they were given.

  Attributes:
    features: float32 [n, D].
    prompt_scores: of the prompt's own tokens, float32 [n] by name; none if
      they were not asked for.
    generated: bool [n], the prompts that were continued.
    scores: of the continuation, float32 [n] by name; NaN where there is none.
    near_ties: int32 [n], steps whose two best logits were nearly the same.
    tokens: of the continuation; empty where there is none.
  """

  features: np.ndarray
  prompt_scores: dict[str, np.ndarray]
  generated: np.ndarray
  scores: dict[str, np.ndarray]
  near_ties: np.ndarray
  tokens: list[np.ndarray]


class Scorer:
  """The pretrained model as compiled functions from tokens to scores.

  Attributes:
    batch_tokens: slots of the rows that run at once.
  """

  def __init__(
    self,
    decoder: models.Decoder,
    mesh: jax.sharding.Mesh,
    shapes: batching.Shapes,
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int,
    most_rows: int,
    prompt_scores: bool = True,
    length_normalized: bool = False,
    pooling: str = 'mean',
    layer: int = -1,
  ):
    """Compiles nothing yet.

    Args:
      decoder: its weights lie on the mesh.
      mesh: batches are split over its axes data and fsdp.
      shapes: the padded lengths.
      end_ids: ids that end a continuation.
      max_new_tokens: of a continuation, the end token included.
      batch_tokens: prompt and new tokens of the rows that run at once.
      most_rows: prompts that a call gets at most.
      prompt_scores: score the prompts' own tokens too.
      length_normalized: divide least_confidence by the number of steps.
      pooling: of the features, see `pool_features`.
      layer: of the features, see Decoder.__call__.
    """
    self.batch_tokens = batch_tokens
    self._mesh = mesh
    self._shapes = shapes
    self._num_lanes = lanes.num_lanes(mesh)
    self._rows = batching.Rows(
      batch_tokens // self._num_lanes,
      max_new_tokens,
      mesh_lib.batch_multiple(mesh),
      -(-most_rows // self._num_lanes),
    )
    # Where the batch is split every part of it meets all weights.
    self._costs = throughput.Costs(
      decoder.config, decoder.dtype.itemsize, mesh_lib.batch_multiple(mesh)
    )
    graph, self._weights = nnx.split(decoder)
    model = _Model(
      graph,
      mesh,
      models.Generator(
        max_new_tokens, tuple(end_ids), statistics.token_statistics, layer
      ),
      prompt_scores,
      length_normalized,
      pooling,
    )
    self._read = lanes.Compiled(jax.jit(model.read))
    self._start = lanes.Compiled(jax.jit(model.start))
    self._advance = lanes.Compiled(jax.jit(model.advance, donate_argnums=1))
    self._empty = lanes.Compiled(jax.jit(model.empty, static_argnums=(1, 2)))
    self._admit = lanes.Compiled(jax.jit(model.admit, donate_argnums=0))
    self._move = lanes.Compiled(jax.jit(model.move, static_argnums=2))

  @property
  def num_programs(self) -> int:
    """Programs compiled so far to read prompts and to decode."""
    compiled = (self._read, self._start, self._advance)
    return sum(function.num_programs for function in compiled)

  def __call__(
    self,
    tokens: Sequence[Sequence[int]],
    generate: np.ndarray,
    progress: Progress = lambda work: None,
  ) -> Scores:
    """Scores prompts.

    Args:
      tokens: ids of each prompt.
      generate: bool [n], the prompts to be continued.
      progress: called with what was done since the last call.
    """
    lengths = [len(row) for row in tokens]
    result = _Collector(lengths, generate, self._costs, progress)
    only_read = batching.chunks(
      lengths, np.flatnonzero(~generate), self._shapes, self._rows.to_read
    )
    continued = np.flatnonzero(generate)
    continued = continued[
      np.argsort(np.take(lengths, continued), kind='stable')
    ]

    def lane(number: int, unless_stopped: lanes.UnlessStopped) -> None:
      under_way = None
      for chunk in unless_stopped(only_read[number :: self._num_lanes]):
        read = self._read(self._weights, *self._pad(chunk, tokens))
        # The host waits for one while the device has another.
        if under_way is not None:
          result.add_read(*under_way)
        under_way = chunk, read
      if under_way is not None:
        result.add_read(*under_way)
      admitted = batching.chunks(
        lengths,
        # Places for as many rows in each lane.
        continued[number :: self._num_lanes],
        self._shapes,
        lambda length: self._rows.to_admit(length, self._shapes.room(length)),
      )
      self._decode(tokens, admitted, result, unless_stopped)

    lanes.side_by_side(lane, self._num_lanes)
    return result.finish()

  def _decode(
    self,
    tokens: Sequence[Sequence[int]],
    queue: list[models.Group],
    result: '_Collector',
    unless_stopped: lanes.UnlessStopped,
  ) -> None:
    """Reads the chunks of a queue, the shortest first, and continues them."""
    rooms = self._rooms(queue)
    rows, places, room = None, np.zeros(0, int), 0
    reads = []
    for number, chunk in unless_stopped(enumerate(queue)):
      if rooms[number] != room:
        room = rooms[number]
        if not np.any(places >= 0):
          rows = None  # Their memory is for those that follow.
        rows, places = self._make_room(rows, places, room)
      free = np.flatnonzero(places < 0)[: len(chunk.indices)]
      place_P = np.full(chunk.num_rows, len(places), np.int32)
      place_P[: len(chunk.indices)] = free
      new, read = self._start(self._weights, *self._pad(chunk, tokens))
      rows = self._admit(rows, new, place_P)
      places[free] = chunk.indices
      reads.append((chunk, read))

      until = 0
      if number + 1 < len(queue):
        # All that is left must find a place, and so must those that follow.
        following = len(queue[number + 1].indices)
        until = self._rows.to_decode(rooms[number + 1]) - following
      if np.sum(places >= 0) > until:
        rows, ended = self._advance(self._weights, rows, np.int32(until))
        slots = rows.cache.position_BxS.shape[1]
        result.add_ended(places, slots, jax.device_get(ended))
        # Not before: the device would wait for the host.
        while reads:
          result.add_read(*reads.pop())

  def _rooms(self, queue: list[models.Group]) -> list[int]:
    """The room in which each chunk of a queue is decoded."""
    rooms = [self._shapes.room(chunk.length) for chunk in queue]
    together = sum(len(chunk.indices) for chunk in queue)
    if rooms and together <= self._rows.to_decode(rooms[-1]):
      # Nobody waits for a place: no need to move.
      return [rooms[-1]] * len(rooms)
    return rooms

  def _make_room(
    self, rows: models.Rows | None, places: np.ndarray, room: int
  ) -> tuple[models.Rows, np.ndarray]:
    """Rows that are on their way, in places with `room` slots a prompt."""
    num_places = self._rows.to_decode(room)
    if rows is None:
      empty = self._empty(self._weights, num_places, room)
      return empty, np.full(num_places, -1)
    staying = np.full(num_places, -1, np.int32)
    occupied = np.flatnonzero(places >= 0)
    staying[: len(occupied)] = occupied
    moved = np.where(staying >= 0, places[staying], -1)
    return self._move(rows, staying, room), moved

  def _pad(
    self, chunk: models.Group, tokens: Sequence[Sequence[int]]
  ) -> tuple[jax.Array, jax.Array]:
    return mesh_lib.shard_batch(
      self._mesh,
      models.pad_left(
        [tokens[i] for i in chunk.indices], chunk.length, chunk.num_rows
      ),
    )


class _Collector:
  """Gathers what comes from the device, in any order, from several threads."""

  def __init__(
    self,
    lengths: Sequence[int],
    generate: np.ndarray,
    costs: throughput.Costs,
    progress: Progress,
  ):
    self._lock = threading.Lock()
    self._lengths = lengths
    self._costs = costs
    self._progress = progress
    self._generated = generate
    self._features: np.ndarray | None = None
    self._prompt_scores: dict[str, np.ndarray] = {}
    self._scores: dict[str, np.ndarray] = {}
    self._near_ties = np.zeros(len(lengths), np.int32)
    self._tokens = [np.zeros(0, np.int32) for _ in lengths]

  def add_read(self, chunk: models.Group, read: dict[str, Any]) -> None:
    """Waits for what the device found in the prompts of a chunk."""
    read = jax.device_get(read)
    features = read['features'][: len(chunk.indices)]
    lengths = [self._lengths[i] for i in chunk.indices]
    generated = self._generated[chunk.indices]
    # The last token is scored where a continuation begins.
    scored = [
      length if read['scores'] else int(begins)
      for length, begins in zip(lengths, generated, strict=True)
    ]
    work = throughput.Work(
      prompts=int(np.sum(~generated)),
      tokens=sum(lengths),
      flops=sum(
        self._costs.flops(0, length, num)
        for length, num in zip(lengths, scored, strict=True)
      ),
      bytes=self._costs.read_bytes(scored=any(scored)),
    )
    with self._lock:
      if self._features is None:
        shape = len(self._lengths), features.shape[1]
        self._features = np.zeros(shape, np.float32)
      self._features[chunk.indices] = features
      for name, values in read['scores'].items():
        column = self._column(self._prompt_scores, name)
        column[chunk.indices] = values[: len(chunk.indices)]
      self._progress(work)

  def add_ended(
    self, places: np.ndarray, slots: int, ended: dict[str, Any]
  ) -> None:
    """Takes rows that have ended out of their places, of so many slots."""
    finished = np.flatnonzero((places >= 0) & ~ended['live'])
    which = places[finished]
    places[finished] = -1
    num_tokens = ended['num_tokens'][finished]
    work = throughput.Work(
      prompts=len(which),
      tokens=int(num_tokens.sum()),
      # The last token is not read again.
      flops=sum(
        self._costs.flops(self._lengths[i], self._lengths[i] + num - 1, num - 1)
        for i, num in zip(which, num_tokens.tolist(), strict=True)
      ),
      bytes=int(ended['steps']) * self._costs.step_bytes(len(places), slots),
    )
    with self._lock:
      for i, place, num in zip(which, finished, num_tokens, strict=True):
        self._tokens[i] = ended['tokens'][place, :num]
      self._near_ties[which] = ended['near_ties'][finished]
      for name, values in ended['scores'].items():
        self._column(self._scores, name)[which] = values[finished]
      self._progress(work)

  def finish(self) -> Scores:
    return Scores(
      features=self._features,
      prompt_scores=self._prompt_scores,
      generated=self._generated,
      scores=self._scores,
      near_ties=self._near_ties,
      tokens=self._tokens,
    )

  def _column(self, columns: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in columns:
      columns[name] = np.full(len(self._lengths), np.nan, np.float32)
    return columns[name]


@dataclasses.dataclass(frozen=True)
class _Model:
  """What is compiled; every method is pure."""

  graph: nnx.GraphDef
  mesh: jax.sharding.Mesh
  generator: models.Generator
  prompt_scores: bool
  length_normalized: bool
  pooling: str

  def read(
    self, weights: nnx.State, tokens_BxL: jax.Array, mask_BxL: jax.Array
  ) -> dict[str, Any]:
    """Features and scores of the prompts themselves."""
    decoder = nnx.merge(self.graph, weights)
    output = decoder(tokens_BxL, mask_BxL, layer=self.generator.layer)
    return self._of_prompt(decoder, output, tokens_BxL, mask_BxL)

  def start(
    self, weights: nnx.State, tokens_BxL: jax.Array, mask_BxL: jax.Array
  ) -> tuple[models.Rows, dict[str, Any]]:
    """The same, and rows to be continued."""
    decoder = nnx.merge(self.graph, weights)
    rows, output = self.generator.start(decoder, tokens_BxL, mask_BxL)
    read = self._of_prompt(decoder, output, tokens_BxL, mask_BxL)
    return self._placed(rows), read

  def empty(self, weights: nnx.State, places: int, room: int) -> models.Rows:
    decoder = nnx.merge(self.graph, weights)
    return self._placed(self.generator.empty(decoder, places, room))

  def admit(
    self, rows: models.Rows, new: models.Rows, place_P: jax.Array
  ) -> models.Rows:
    return self._placed(self.generator.admit(rows, new, place_P))

  def move(
    self, rows: models.Rows, place_M: jax.Array, room: int
  ) -> models.Rows:
    return self._placed(self.generator.move(rows, place_M, room))

  def advance(
    self, weights: nnx.State, rows: models.Rows, until: jax.Array
  ) -> tuple[models.Rows, dict[str, Any]]:
    """Decodes until few rows are live; what is known of all rows then."""
    decoder = nnx.merge(self.graph, weights)
    rows, steps = self.generator.advance(decoder, rows, until)
    step_T = jnp.arange(self.generator.max_new_tokens)
    step_BxT = step_T < rows.num_tokens_B[:, None]
    scores = statistics.sequence_scores(
      rows.observed, step_BxT, self.length_normalized
    )
    scores['first_token_confidence'] = rows.observed.top1[:, 0]
    return self._placed(rows), self._everywhere(
      {
        'steps': steps,
        'live': rows.live_B,
        'num_tokens': rows.num_tokens_B,
        'tokens': rows.tokens_BxT,
        'near_ties': statistics.near_ties(rows.observed, step_BxT),
        'scores': scores,
      }
    )

  def _of_prompt(
    self,
    decoder: models.Decoder,
    output: models.Output,
    tokens_BxL: jax.Array,
    mask_BxL: jax.Array,
  ) -> dict[str, Any]:
    scores = {}
    if self.prompt_scores:
      scores = statistics.sequence_scores(
        _prompt_statistics(decoder, output.hidden_BxLxD, tokens_BxL),
        mask_BxL[:, :-1] & mask_BxL[:, 1:],
        self.length_normalized,
      )
    features = pool_features(output.features_BxLxD, mask_BxL, self.pooling)
    return self._everywhere({'scores': scores, 'features': features})

  def _placed(self, rows: models.Rows) -> models.Rows:
    """Rows split over the mesh as batches are, heads as weights are."""

    def place(x: jax.Array) -> jax.Array:
      axes = ('batch', 'kv_heads', 'length', 'head_dim')[: x.ndim]
      if x.ndim == 2:
        axes = ('batch', 'length')
      place = mesh_lib.sharding(self.mesh, axes, x.shape)
      return jax.lax.with_sharding_constraint(x, place)

    return jax.tree.map(place, rows)

  def _everywhere(self, tree: Any) -> Any:
    """For the host, which cannot read what lies on other hosts alone."""
    return jax.lax.with_sharding_constraint(
      tree, jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    )


def _prompt_statistics(
  decoder: models.Decoder, hidden_BxLxD: jax.Array, tokens_BxL: jax.Array
) -> statistics.TokenStatistics:
  """Statistics of each next prompt token, fields [B, L - 1].

  A few positions at a time: logits of the whole prompt, [B, L, V], would be
  the largest buffer by far.
  """
  batch, length = tokens_BxL.shape
  vocab = decoder.config.vocab_size
  size = 1
  while length % (2 * size) == 0 and 2 * size * batch * vocab <= _MOST_LOGITS:
    size *= 2
  next_BxL = jnp.roll(tokens_BxL, -1, axis=1)

  def of_positions(part):
    hidden_BxPxD, next_BxP = part
    return statistics.token_statistics(decoder.logits(hidden_BxPxD), next_BxP)

  def parts(x_BxL):
    x_BxNxP = x_BxL.reshape(batch, -1, size, *x_BxL.shape[2:])
    return x_BxNxP.swapaxes(0, 1)

  of_NxBxP = jax.lax.map(of_positions, (parts(hidden_BxLxD), parts(next_BxL)))
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(batch, length)[:, :-1], of_NxBxP
  )
