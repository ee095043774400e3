"""Greedy generation against transformers' tokens, and its properties."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edsft_jax import models
from edsft_jax.mesh import make_mesh, shard_batch

NUM_NEW = 12


def observe(logits, token):
  """What a score would take: two reductions of the logits."""
  probs = jax.nn.softmax(logits)
  top = jax.lax.top_k(probs, 2)[0]
  chosen = jnp.take_along_axis(probs, token[:, None], axis=1)[:, 0]
  return {'margin': top[:, 0] - top[:, 1], 'chosen': chosen}


@functools.partial(jax.jit, static_argnames=('graphdef', 'max_new_tokens'))
def _run(graphdef, state, tokens, mask, end_ids, max_new_tokens):
  # Ids as arrays, so that tests with other ids share the program.
  return models.generate(
    nnx.merge(graphdef, state),
    tokens,
    mask,
    max_new_tokens=max_new_tokens,
    end_ids=end_ids,
    observe=observe,
  )


def run(decoder, tokens, mask, end_ids=(-1, -1), max_new_tokens=NUM_NEW):
  graphdef, state = nnx.split(decoder)
  return _run(graphdef, state, tokens, mask, end_ids, max_new_tokens)


def pad(golden, rows):
  """Six rows of three more columns than the golden's: one program for all."""
  return models.pad_left(rows, golden.values['tokens'].shape[1] + 3, 6)


def rows(golden) -> list[list[int]]:
  return [row.tolist() for row in golden.values['tokens']]


# The tokens of all goldens are compared in test_decoder.py, without a cache;
# here of those to which a cache matters. Dynamic rope has no other way.
@pytest.mark.parametrize(
  'case', ['tied_v4', 'mistral_v4', 'qwen3_v5', 'dynamic_v4', 'dynamic_v5']
)
def test_tokens_are_those_of_transformers(goldens, case):
  golden = goldens[case]
  result = run(golden.decoder, *pad(golden, rows(golden)))
  np.testing.assert_array_equal(result.tokens_BxT[:2], golden.values['greedy'])
  assert result.num_tokens_B.tolist() == [NUM_NEW] * 2 + [0] * 4
  assert result.prompt.cache is None
  # The first token's statistics are those of the prompt's last position.
  top2 = golden.values['top2'][:, -1]
  np.testing.assert_allclose(
    result.observed['margin'][:2, 0], top2[:, 0] - top2[:, 1], atol=1e-4
  )
  np.testing.assert_allclose(
    result.observed['chosen'][:2, 0], top2[:, 0], atol=1e-4
  )
  np.testing.assert_allclose(
    result.prompt.features_BxLxD[:2, 3:].mean(1),
    golden.values['pooled'][-1],
    atol=2e-4,
  )


@pytest.fixture
def clear(goldens):
  """The golden whose two rows say different things."""
  return goldens['tied_v4']


def test_statistics_are_those_of_a_pass_over_the_whole_text(clear, forward):
  result = run(clear.decoder, *pad(clear, rows(clear)))
  text = np.concatenate([clear.values['tokens'], clear.values['greedy']], 1)
  logits, _ = forward(clear.decoder, text)
  length = clear.values['tokens'].shape[1]
  for step in range(NUM_NEW):
    expected = observe(
      logits[:, length + step - 1], clear.values['greedy'][:, step]
    )
    for name, values in expected.items():
      np.testing.assert_allclose(
        result.observed[name][:2, step], values, atol=1e-4
      )


def test_a_row_ends_at_its_first_end_token(clear):
  greedy = clear.values['greedy']
  # An id that ends row 0 early and another that ends row 1 later.
  ends = (int(greedy[0, 3]), int(greedy[1, 7]))
  lengths = [
    next(n + 1 for n, id in enumerate(row) if id in ends) for row in greedy
  ]
  assert lengths[0] != lengths[1]
  whole = run(clear.decoder, *pad(clear, rows(clear)))
  result = run(clear.decoder, *pad(clear, rows(clear)), ends)
  np.testing.assert_array_equal(result.num_tokens_B[:2], lengths)
  for row, length in enumerate(lengths):
    np.testing.assert_array_equal(
      result.tokens_BxT[row, :length], greedy[row, :length]
    )
    assert not result.tokens_BxT[row, length:].any()
    for name, values in result.observed.items():
      np.testing.assert_allclose(
        values[row, :length], whole.observed[name][row, :length], atol=1e-5
      )
      assert not values[row, length:].any()


def test_the_loop_stops_when_every_row_has_ended(clear):
  """Counted: steps beyond the last row's end are never computed."""
  steps = []
  decoder = clear.decoder
  graphdef, state = nnx.split(decoder)
  greedy = clear.values['greedy'][0].tolist()
  end = greedy[4]
  tokens, mask = models.pad_left(rows(clear)[:1], 27, 3)

  def count(logits, token):
    jax.debug.callback(lambda: steps.append(1))
    return {}

  @jax.jit
  def go(state):
    return models.generate(
      nnx.merge(graphdef, state),
      tokens,
      mask,
      max_new_tokens=NUM_NEW,
      end_ids=(end,),
      observe=count,
    ).num_tokens_B

  num_tokens = go(state)
  jax.effects_barrier()
  # The rows that are padding alone generate nothing and hold nobody up.
  assert num_tokens.tolist() == [greedy.index(end) + 1, 0, 0]
  assert len(steps) == greedy.index(end) + 1


def test_padding_rows_and_company_change_nothing(clear):
  alone, company = rows(clear)
  short = company[:7]
  result = run(clear.decoder, *pad(clear, [short, alone, short, company]))
  np.testing.assert_array_equal(result.tokens_BxT[1], clear.values['greedy'][0])
  np.testing.assert_array_equal(result.tokens_BxT[3], clear.values['greedy'][1])
  np.testing.assert_array_equal(result.tokens_BxT[0], result.tokens_BxT[2])
  assert result.num_tokens_B.tolist() == [NUM_NEW] * 4 + [0, 0]
  # The same short row without any padding, and no loop at all.
  tokens, mask = models.pad_left([short], 7, 1)
  single = run(clear.decoder, tokens, mask, max_new_tokens=1)
  assert single.tokens_BxT.tolist() == result.tokens_BxT[:1, :1].tolist()
  for name, values in single.observed.items():
    np.testing.assert_allclose(
      values[0], result.observed[name][0, :1], atol=1e-5
    )


def test_rows_moved_leave_places_empty(clear):
  generator = models.Generator(3, (-1,))
  new, _ = generator.start(clear.decoder, *models.pad_left(rows(clear), 27))
  few = generator.admit(
    generator.empty(clear.decoder, 4, 27), new, np.array([3, 1])
  )
  assert few.live_B.tolist() == [False, True, False, True]
  moved = generator.move(few, np.array([3, -1, 1]), 30)
  assert moved.live_B.tolist() == [True, False, True]
  assert moved.last_B[::2].tolist() == new.last_B[:2].tolist()
  assert (moved.cache.position_BxS[1] == -1).all()
  assert moved.cache.position_BxS.shape == (3, 33)
  assert int(moved.cache.index) == 30
  # One beyond the last place leaves a row out.
  fewer = generator.admit(few, new, np.array([4, 0]))
  assert fewer.live_B.tolist() == [True, True, False, True]
  assert fewer.last_B[0] == new.last_B[1]


def test_the_lowest_id_wins_among_equals(clear):
  prompt = rows(clear)[0]
  best = int(clear.values['greedy'][0, 0])
  # In a tied model, ids of one embedding have one logit. Neither is in the
  # prompt, which therefore still has `best` on top.
  lower = min(set(range(best)) - set(prompt))
  decoder = nnx.clone(clear.decoder)
  table = np.array(decoder.embed_tokens.weight[...])
  table[lower] = table[best]
  decoder.embed_tokens.weight[...] = jnp.asarray(table)
  result = run(decoder, *pad(clear, [prompt]))
  assert int(result.tokens_BxT[0, 0]) == lower
  assert float(result.observed['margin'][0, 0]) == 0.0


def test_eight_devices_write_the_same(goldens):
  golden = goldens['biases_v5']
  mesh = make_mesh(2, 2, 2)
  decoder = models.load_decoder(golden.path, 'float32', mesh)
  tokens, mask = models.pad_left(rows(golden), 23, 4)
  tokens, mask = shard_batch(mesh, (tokens, mask))
  result = run(decoder, tokens, mask)
  np.testing.assert_array_equal(result.tokens_BxT[:2], golden.values['greedy'])
  assert result.num_tokens_B.tolist() == [NUM_NEW, NUM_NEW, 0, 0]


def test_bucket():
  lengths = np.arange(1, 5000)
  sizes = np.array([models.bucket(int(n)) for n in lengths])
  assert (sizes >= lengths).all()
  assert (np.diff(sizes) >= 0).all()
  assert len(set(sizes)) <= 17
  large = lengths > 16
  assert (sizes[large] <= 2 * lengths[large]).all()
  assert [models.bucket(n) for n in (1, 16, 17, 512, 513, 769, 1025)] == [
    16,
    16,
    32,
    512,
    768,
    1024,
    1536,
  ]


def test_pad_left():
  tokens, mask = models.pad_left([[5, 6], [], [7, 8, 9]], 4, 4)
  np.testing.assert_array_equal(
    tokens, [[0, 0, 5, 6], [0, 0, 0, 0], [0, 7, 8, 9], [0, 0, 0, 0]]
  )
  assert tokens.dtype == np.int32
  np.testing.assert_array_equal(mask.sum(1), [2, 0, 3, 0])
  np.testing.assert_array_equal(mask, tokens > 0)
  with pytest.raises(ValueError, match='exceeds 2'):
    models.pad_left([[1, 2, 3]], 2, 1)
  with pytest.raises(ValueError, match='2 rows do not fit 1'):
    models.pad_left([[1], [2]], 2, 1)


def test_group_covers_every_row_within_the_budget():
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 90, size=101).tolist()
  groups = models.group(lengths, num_new=8, batch_tokens=1000, multiple=4)
  assert sorted(i for g in groups for i in g.indices) == list(range(101))
  for g in groups:
    assert max(lengths[i] for i in g.indices) <= g.length
    assert len(g.indices) <= g.num_rows
    assert g.num_rows % 4 == 0
    assert g.num_rows * (g.length + 8) <= 1000
  # Less than all would cost at the longest row's length.
  assert sum(g.num_rows * g.length for g in groups) < 0.8 * 101 * 96
  assert models.group([50], num_new=8, batch_tokens=1, multiple=4) == [
    models.Group([0], 64, 4)
  ]


def test_filled_groups_have_one_shape_a_length():
  lengths = [40, 10, 12, 33, 9, 14, 45]
  for some in (lengths, lengths[:3], lengths[1:]):
    shapes = {
      (g.length, g.num_rows)
      for g in models.group(
        some, num_new=0, batch_tokens=200, multiple=4, fill=True
      )
    }
    assert shapes <= {(16, 12), (48, 4)}
