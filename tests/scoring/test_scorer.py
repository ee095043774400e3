"""Rows that come and go while others are decoded: each as if it were alone."""

from concurrent import futures
import itertools
import pathlib
import time

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import models
from edsft_jax.mesh import make_mesh
from edsft_jax.scoring import batching, lanes, statistics, throughput
from edsft_jax.scoring.batching import Shapes
from edsft_jax.scoring.scorer import Scorer

GOLDENS = pathlib.Path(__file__).parents[1] / 'models' / 'goldens'
# With a window and biases, so that positions matter.
GOLDEN = GOLDENS / 'mistral_v4'
NUM_NEW = 9


@pytest.fixture(scope='module')
def decoder():
  one = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  return models.load_decoder(GOLDEN, 'float32', one)


@pytest.fixture(scope='module')
def tokens(decoder) -> list[np.ndarray]:
  rng = np.random.default_rng(3)
  lengths = [1, 2, *rng.integers(1, 16, 14), *rng.integers(17, 40, 9)]
  vocab = decoder.config.vocab_size
  return [rng.integers(3, vocab, size).astype(np.int32) for size in lengths]


@pytest.fixture(scope='module')
def end_ids(decoder) -> tuple[int, ...]:
  """A fifth of the vocabulary, so that rows end at different steps."""
  return tuple(range(0, decoder.config.vocab_size, 5))


@pytest.fixture(scope='module')
def alone(decoder, tokens, end_ids):
  """All rows in one batch in which nothing moves."""
  graph, state = nnx.split(decoder)

  @jax.jit
  def run(state, padded, mask):
    return models.generate(
      nnx.merge(graph, state),
      padded,
      mask,
      max_new_tokens=NUM_NEW,
      end_ids=end_ids,
      observe=statistics.token_statistics,
    )

  result = run(state, *models.pad_left(tokens, 48))
  numbers = set(np.asarray(result.num_tokens_B).tolist())
  assert {1, NUM_NEW} < numbers, 'rows must end early, late and not at all'
  return result


def _scorer(decoder, mesh, end_ids, shapes, batch_tokens) -> Scorer:
  return Scorer(
    decoder,
    mesh,
    shapes,
    end_ids=end_ids,
    max_new_tokens=NUM_NEW,
    batch_tokens=batch_tokens,
    most_rows=99,
  )


@pytest.mark.parametrize(
  ('shapes', 'batch_tokens', 'devices'),
  [
    # Rows move from the small room to the large one, among strangers.
    (Shapes((16, 48), (16, 48)), 240, 1),
    (Shapes((16, 48), (16, 48)), 600, 8),
  ],
)
def test_company_changes_nothing(
  decoder, tokens, end_ids, alone, shapes, batch_tokens, devices
):
  mesh = make_mesh(devices=jax.devices()[:devices])
  placed = models.load_decoder(GOLDEN, 'float32', mesh)
  scorer = _scorer(placed, mesh, end_ids, shapes, batch_tokens)
  seen = []
  everything = np.ones(len(tokens), bool)
  result = scorer(tokens, everything, seen.append)
  for row, ids in enumerate(result.tokens):
    num = int(alone.num_tokens_B[row])
    assert ids.tolist() == alone.tokens_BxT[row, :num].tolist(), row
  step_BxT = np.arange(NUM_NEW) < np.asarray(alone.num_tokens_B)[:, None]
  expected = statistics.sequence_scores(alone.observed, step_BxT, False)
  for name, values in expected.items():
    np.testing.assert_allclose(
      result.scores[name], values, rtol=1e-4, atol=1e-5, err_msg=name
    )
  mask = models.pad_left(tokens, 48)[1]
  features = [
    hidden[row_mask].mean(0)
    for hidden, row_mask in zip(
      np.asarray(alone.prompt.features_BxLxD), mask, strict=True
    )
  ]
  np.testing.assert_allclose(result.features, features, rtol=1e-4, atol=1e-5)
  work = sum(seen, throughput.Work())
  assert work.prompts == len(tokens)
  assert work.tokens == sum(map(len, tokens)) + int(np.sum(alone.num_tokens_B))
  assert work.flops > 0 < work.bytes
  # Reading: one a length. Decoding: one a room.
  assert scorer.num_programs == len(shapes.lengths) + len(shapes.rooms)

  again = scorer(tokens, everything)
  np.testing.assert_array_equal(again.features, result.features)
  for name, values in again.scores.items():
    np.testing.assert_array_equal(values, result.scores[name])


def test_rows_that_find_room_at_once_never_move(decoder, tokens, end_ids):
  mesh = make_mesh(devices=jax.devices()[:1])
  shapes = Shapes((16, 48), (16, 48))
  scorer = _scorer(decoder, mesh, end_ids, shapes, 4000)
  scorer(tokens, np.ones(len(tokens), bool))
  assert scorer._move.num_programs == 0
  # Two lengths are read, in one room all are decoded.
  assert scorer.num_programs == 3


def test_an_interrupt_ends_what_runs_side_by_side(decoder, tokens, end_ids):
  mesh = make_mesh(devices=jax.devices()[:1])
  shapes = Shapes((16, 48), (16, 48))
  scorer = _scorer(decoder, mesh, end_ids, shapes, 240)
  everything = np.ones(len(tokens), bool)
  calls = []
  scorer(tokens, everything, calls.append)
  uninterrupted = len(calls)
  calls.clear()

  def interrupt_once(work):
    calls.append(work)
    if len(calls) == 1:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    scorer(tokens, everything, interrupt_once)
  assert len(calls) < uninterrupted / 2


def test_threads_do_not_compile_the_same_twice():
  traced = []

  def double(x):
    traced.append(x.shape)
    time.sleep(0.05)
    return 2 * x

  compiled = lanes.Compiled(jax.jit(double))
  with futures.ThreadPoolExecutor(4) as pool:
    sizes = [3, 3, 3, 4]
    doubled = list(pool.map(compiled, map(np.ones, sizes)))
  assert [len(x) for x in doubled] == sizes
  assert sorted(traced) == [(3,), (4,)]
  assert compiled.num_programs == 2


def test_rows_that_are_not_continued_are_read(decoder, tokens, end_ids):
  mesh = make_mesh(devices=jax.devices()[:1])
  scorer = _scorer(decoder, mesh, end_ids, Shapes((16, 48), (16, 48)), 240)
  some = np.arange(len(tokens)) % 3 == 0
  part = scorer(tokens, some)
  whole = scorer(tokens, np.ones(len(tokens), bool))
  assert [len(ids) > 0 for ids in part.tokens] == some.tolist()
  np.testing.assert_allclose(part.features, whole.features, atol=1e-5)
  assert np.isnan(part.scores['min_margin'][~some]).all()
  np.testing.assert_allclose(
    part.scores['min_margin'][some], whole.scores['min_margin'][some], atol=1e-5
  )
  for name, values in part.prompt_scores.items():
    # Sums over a prompt reach 126 nats, where 1e-5 is one float32 step.
    np.testing.assert_allclose(
      values, whole.prompt_scores[name], atol=1e-5, rtol=1e-5
    )


def test_steps_whose_best_logits_nearly_tie_are_counted():
  logits = np.array([[0.0, 5.0, 5.0 - 9e-5], [0.0, 5.0, 5.0 - 1.1e-4]])
  observed = statistics.token_statistics(
    logits[:, None].astype(np.float32), np.ones((2, 1), np.int32)
  )
  valid = np.ones((2, 1), bool)
  assert statistics.near_ties(observed, valid).tolist() == [1, 0]
  assert statistics.near_ties(observed, ~valid).tolist() == [0, 0]


def test_shapes_waste_least(monkeypatch):
  """Against every choice of so many lengths."""
  rng = np.random.default_rng(5)
  lengths = rng.integers(1, 130, 60)
  monkeypatch.setattr(batching, '_SLOTS_TO_COMPILE', 0)
  monkeypatch.setattr(batching, '_MOST_LENGTHS', 3)
  monkeypatch.setattr(batching, '_MOST_ROOMS', 2)
  shapes = Shapes.of(lengths)
  sizes = range(16, 145, 16)
  longest = -(-max(lengths) // 16) * 16

  def slots(chosen):
    return sum(min(size for size in chosen if size >= x) for x in lengths)

  assert slots(shapes.lengths) == min(
    slots({*chosen, longest}) for chosen in itertools.combinations(sizes, 2)
  )
  assert slots(shapes.rooms) == min(
    slots({size, longest}) for size in shapes.lengths
  )
  assert shapes.lengths[-1] == shapes.rooms[-1] == longest


def test_a_small_pool_is_not_worth_many_programs():
  few = Shapes.of([3, 20, 40, 100])
  assert few == Shapes((112,), (112,))
  many = Shapes.of([3, 20, 40, 100, 400] * 4000)
  assert many.lengths == (16, 32, 48, 112, 400)
  assert 1 < len(many.rooms) <= 4
  assert many.rooms[-1] == 400


def test_chunks_hold_every_prompt_once():
  rng = np.random.default_rng(2)
  lengths = rng.integers(1, 100, 77)
  shapes = Shapes((16, 64, 112), (112,))
  wanted = np.flatnonzero(rng.random(77) < 0.7)
  chunks = batching.chunks(
    lengths, wanted, shapes, lambda length: 200 // length
  )
  assert sorted(i for c in chunks for i in c.indices) == wanted.tolist()
  for chunk in chunks:
    assert max(lengths[chunk.indices]) <= chunk.length
    assert chunk.num_rows == 200 // chunk.length
    assert len(chunk.indices) <= chunk.num_rows
  longest = [max(lengths[c.indices]) for c in chunks]
  assert longest == sorted(longest)
  assert all(len(c.indices) == c.num_rows for c in chunks[1:])


def test_rows_fit_the_budget_and_the_mesh():
  rows = batching.Rows(batch_tokens=4096, num_new=64, multiple=4, most=1000)
  for length, room in ((16, 64), (64, 64), (448, 448)):
    places, admitted = rows.to_decode(room), rows.to_admit(length, room)
    assert places * (room + 64) <= 4096
    assert places % 4 == admitted % 4 == 0
    assert 0 < admitted <= places
    assert 0 < rows.to_read(length) <= 4096 // length
  few = batching.Rows(batch_tokens=4096, num_new=64, multiple=4, most=5)
  assert few.to_decode(64) == 8
  none = batching.Rows(batch_tokens=1, num_new=64, multiple=4, most=5)
  assert none.to_decode(64) == none.to_admit(64, 64) == none.to_read(64) == 4


def test_operations_are_those_that_the_compiler_counts(decoder):
  """Of a pass over two rows; the compiler adds norms and the like."""
  graph, state = nnx.split(decoder)
  length = 32

  @jax.jit
  def run(state, tokens, mask):
    merged = nnx.merge(graph, state)
    return merged.logits(merged(tokens, mask).hidden_BxLxD)

  tokens, mask = models.pad_left([np.full(length, 5)] * 2, length)
  counted = run.lower(state, tokens, mask).compile().cost_analysis()['flops']
  costs = throughput.Costs(decoder.config, 4)
  # The program multiplies tokens with those behind them too.
  pairs = length * length - length * (length + 1) // 2
  c = decoder.config
  masked = 4 * c.num_layers * c.num_heads * c.head_dim * pairs
  assert 0.75 < 2 * (costs.flops(0, length, length) + masked) / counted < 1.0
  apart = costs.flops(0, 20, 20) + costs.flops(20, length, length - 20)
  assert costs.flops(0, length, length) == pytest.approx(apart)
  sizes = [x.size for x in jax.tree.leaves(state)]
  assert costs.read_bytes() == pytest.approx(4 * sum(sizes), rel=0.35)
  cache = decoder.init_cache(3, 50)
  stored = sum(x.nbytes for x in (*cache.keys, *cache.values))
  assert costs.step_bytes(3, 50) - costs.read_bytes() == stored


def test_only_what_is_computed_counts(decoder):
  """Features need no logits, and each part of a batch reads the weights."""
  tokens = [np.full(16, 5, np.int32)] * 8
  costs = throughput.Costs(decoder.config, 4)
  for devices in (1, 8):
    mesh = make_mesh(devices=jax.devices()[:devices])
    on_mesh = models.load_decoder(GOLDEN, 'float32', mesh)
    scorer = Scorer(
      on_mesh,
      mesh,
      Shapes((16,), (16,)),
      end_ids=(),
      max_new_tokens=NUM_NEW,
      batch_tokens=2**14,
      most_rows=16,
      prompt_scores=False,
    )
    seen = []
    scorer(tokens, np.zeros(8, bool), seen.append)
    work = sum(seen, throughput.Work())
    assert work.flops == 8 * costs.flops(0, 16, 0)
    assert work.bytes == devices * costs.read_bytes(scored=False)


def test_shares_of_the_peak_are_shown_where_it_is_known():
  class Known:
    device_kind = 'TPU v4'

  work = throughput.Work(tokens=3000, flops=275e12, bytes=0.3 * 1.228e12)
  assert throughput.shown(work, 2.0, [Known(), Known()]) == (
    '1,500 tokens/s, 25% of peak FLOP/s, 8% of bandwidth'
  )
  assert throughput.shown(work, 2.0, jax.devices()[:1]) == '1,500 tokens/s'
