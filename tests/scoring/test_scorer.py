"""Rows that come and go while others are decoded: each as if it were alone."""

import pathlib

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.inference import Shapes, throughput
from edsft_jax.mesh import make_mesh
from edsft_jax.scoring import statistics
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
    return inference.generate(
      nnx.merge(graph, state),
      padded,
      mask,
      max_new_tokens=NUM_NEW,
      end_ids=end_ids,
      step_hook=statistics.token_statistics,
    )

  result = run(state, *inference.pad_left(tokens, 48))
  numbers = set(np.asarray(result.num_tokens_B).tolist())
  assert {1, NUM_NEW} < numbers, 'rows must end early, late and not at all'
  return result


def _scorer(decoder, mesh, end_ids, shapes, batch_tokens, **options) -> Scorer:
  return Scorer(
    decoder,
    mesh,
    shapes,
    end_ids=end_ids,
    max_new_tokens=NUM_NEW,
    batch_tokens=batch_tokens,
    max_rows=99,
    **options,
  )


@pytest.mark.parametrize(
  ('shapes', 'batch_tokens', 'devices'),
  [
    # Rows move from the short cache to the long one, among others.
    (Shapes((16, 48), (16, 48), (16, 48), 1, 20, (1.0, 1.0)), 240, 1),
    (Shapes((16, 48), (48,), (48,), 1, 20, (1.0,)), 600, 8),
  ],
)
def test_other_rows_change_nothing(
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
  mask = inference.pad_left(tokens, 48)[1]
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
  # One per row length to read, one per cache length to decode.
  expected = len(shapes.row_lengths) + len(shapes.cache_lengths)
  assert scorer.num_programs == expected

  again = scorer(tokens, everything)
  np.testing.assert_array_equal(again.features, result.features)
  for name, values in again.scores.items():
    np.testing.assert_array_equal(values, result.scores[name])


def test_rows_that_all_find_a_slot_never_move(decoder, tokens, end_ids):
  mesh = make_mesh(devices=jax.devices()[:1])
  shapes = Shapes((16, 48), (48,), (48,), 1, 20, (1.0,))
  scorer = _scorer(decoder, mesh, end_ids, shapes, 4000)
  scorer(tokens, np.ones(len(tokens), bool))
  assert scorer.num_resizes == 0
  # All rows are read at one length, and decoded at one cache length.
  assert scorer.num_programs == 2


def test_an_interrupt_ends_every_worker(decoder, tokens, end_ids):
  mesh = make_mesh(devices=jax.devices()[:1])
  shapes = Shapes((16, 48), (48,), (48,), 1, 20, (1.0,))
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


def test_rows_that_are_not_continued_are_read(decoder, tokens, end_ids):
  mesh = make_mesh(devices=jax.devices()[:1])
  scorer = _scorer(
    decoder, mesh, end_ids, Shapes((16, 48), (48,), (48,), 1, 20, (1.0,)), 240
  )
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


@pytest.mark.parametrize(
  ('pooling', 'devices'),
  [('weighted', 8), pytest.param('mean', 1, marks=pytest.mark.slow)],
)
def test_a_prefix_read_once_changes_nothing(
  decoder, tokens, end_ids, pooling, devices
):
  prefix = list(range(20, 37))
  rows = [np.array([*prefix, *ids], np.int32) for ids in tokens]
  mesh = make_mesh(devices=jax.devices()[:devices])
  placed = models.load_decoder(GOLDEN, 'float32', mesh)
  # The longer rows are not continued, so that both programs read.
  some = np.arange(len(rows)) % 3 == 0
  seen = []
  whole, shared = (
    _scorer(placed, mesh, end_ids, shapes, 900, pooling=pooling, **options)(
      rows, some, seen.append
    )
    for shapes, options in (
      (Shapes((64,), (64,), (64,), 1, 20, (1.0,)), {}),
      (Shapes((16, 48), (48,), (48,), 1, 20, (1.0,)), {'prefix': prefix}),
    )
  )
  for ids, expected in zip(shared.tokens, whole.tokens, strict=True):
    assert ids.tolist() == expected.tolist()
  np.testing.assert_allclose(
    shared.features, whole.features, rtol=1e-4, atol=1e-5
  )
  for found, expected in (
    (shared.scores, whole.scores),
    (shared.prompt_scores, whole.prompt_scores),
  ):
    for name, values in expected.items():
      np.testing.assert_allclose(
        found[name], values, rtol=1e-4, atol=1e-5, err_msg=name
      )
  assert sum(seen, throughput.Work()).prompts == 2 * len(rows)


def test_rows_without_the_prefix_are_refused(decoder, tokens, end_ids):
  mesh = make_mesh(devices=jax.devices()[:1])
  scorer = _scorer(
    decoder,
    mesh,
    end_ids,
    Shapes((48,), (48,), (48,), 1, 20, (1.0,)),
    900,
    prefix=[1],
  )
  with pytest.raises(ValueError, match='row 0 does not start with the prefix'):
    scorer(tokens, np.ones(len(tokens), bool))


@pytest.mark.parametrize(
  ('dtype', 'inside', 'outside'),
  [
    ('float32', 9e-5, 1.1e-4),
    ('bfloat16_weights', 2.4e-4, 2.6e-4),
    ('float16', 0.049, 0.051),
    ('bfloat16', 0.24, 0.26),
  ],
)
def test_steps_whose_best_logits_nearly_tie_are_counted(dtype, inside, outside):
  logits = np.array([[0.0, 5.0, 5.0 - inside], [0.0, 5.0, 5.0 - outside]])
  observed = statistics.token_statistics(
    logits[:, None].astype(np.float32), np.ones((2, 1), np.int32)
  )
  valid = np.ones((2, 1), bool)
  limit = statistics.NEAR_TIES[dtype]
  assert statistics.near_ties(observed, valid, limit).tolist() == [1, 0]
  assert statistics.near_ties(observed, ~valid, limit).tolist() == [0, 0]


def test_the_limit_of_near_ties_follows_the_dtype(tokens):
  mesh = make_mesh(devices=jax.devices()[:1])
  near = {}
  for dtype in ('float32', 'bfloat16'):
    decoder = models.load_decoder(GOLDEN, dtype, mesh)
    scorer = _scorer(
      decoder, mesh, (), Shapes((48,), (48,), (48,), 1, 20, (1.0,)), 600
    )
    near[dtype] = scorer(tokens, np.ones(len(tokens), bool)).near_ties.sum()
  assert near['float32'] < 3 < near['bfloat16']


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
      Shapes((16,), (16,), (16,), 1, 20, (1.0,)),
      end_ids=(),
      max_new_tokens=NUM_NEW,
      batch_tokens=2**14,
      max_rows=16,
      prompt_scores=False,
    )
    seen = []
    scorer(tokens, np.zeros(8, bool), seen.append)
    work = sum(seen, throughput.Work())
    assert work.flops == 8 * costs.flops(0, 16, 0)
    assert work.bytes == devices * costs.read_bytes(scored=False)
