"""Greedy generation against transformers' tokens, and its properties."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.inference import packing
from edsft_jax.inference.prefixes import Prefixes
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
  return inference.generate(
    nnx.merge(graphdef, state),
    tokens,
    mask,
    max_new_tokens=max_new_tokens,
    end_ids=end_ids,
    step_hook=observe,
  )


def run(decoder, tokens, mask, end_ids=(-1, -1), max_new_tokens=NUM_NEW):
  graphdef, state = nnx.split(decoder)
  return _run(graphdef, state, tokens, mask, end_ids, max_new_tokens)


DECODING = inference.GreedyDecoding(NUM_NEW, (-1,))


@functools.partial(jax.jit, static_argnums=0)
def _prefill(graphdef, weights, tokens, segments):
  return DECODING.prefill(nnx.merge(graphdef, weights), tokens, segments, 2)


@functools.partial(jax.jit, static_argnums=0)
def _decode_until(graphdef, weights, state, max_steps):
  decoder = nnx.merge(graphdef, weights)
  return DECODING.decode_until(decoder, state, 0, max_steps)


def pad(golden, rows):
  """Six rows of three more columns than the golden's: one program for all."""
  return inference.pad_left(rows, golden.values['tokens'].shape[1] + 3, 6)


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
  assert result.prompt.kv_cache is None
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
    next(n + 1 for n, i in enumerate(row) if i in ends) for row in greedy
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
  tokens, mask = inference.pad_left(rows(clear)[:1], 27, 3)

  def count(logits, token):
    jax.debug.callback(lambda: steps.append(1))
    return {}

  @jax.jit
  def go(state):
    return inference.generate(
      nnx.merge(graphdef, state),
      tokens,
      mask,
      max_new_tokens=NUM_NEW,
      end_ids=(end,),
      step_hook=count,
    ).num_tokens_B

  num_tokens = go(state)
  jax.effects_barrier()
  # Rows of padding alone generate nothing and do not delay the others.
  assert num_tokens.tolist() == [greedy.index(end) + 1, 0, 0]
  assert len(steps) == greedy.index(end) + 1


def test_padding_and_other_rows_change_nothing(clear):
  alone, company = rows(clear)
  short = company[:7]
  result = run(clear.decoder, *pad(clear, [short, alone, short, company]))
  np.testing.assert_array_equal(result.tokens_BxT[1], clear.values['greedy'][0])
  np.testing.assert_array_equal(result.tokens_BxT[3], clear.values['greedy'][1])
  np.testing.assert_array_equal(result.tokens_BxT[0], result.tokens_BxT[2])
  assert result.num_tokens_B.tolist() == [NUM_NEW] * 4 + [0, 0]
  # The same short row without any padding, and no loop at all.
  tokens, mask = inference.pad_left([short], 7, 1)
  single = run(clear.decoder, tokens, mask, max_new_tokens=1)
  assert single.tokens_BxT.tolist() == result.tokens_BxT[:1, :1].tolist()
  for name, values in single.observed.items():
    np.testing.assert_allclose(
      values[0], result.observed[name][0, :1], atol=1e-5
    )


def _packed(golden) -> tuple[np.ndarray, np.ndarray]:
  """The golden's two prompts in one row, the second one first."""
  first, second = rows(golden)
  segments = [1] * len(second) + [2] * len(first) + [0] * 3
  return np.array([[*second, *first, 0, 0, 0]]), np.array([segments])


@functools.partial(jax.jit, static_argnums=0)
def _prefill_after(graphdef, weights, prefix, tokens, segments):
  """Prompts that follow a prefix, padded on the left by three tokens."""
  decoder = nnx.merge(graphdef, weights)
  mask = jnp.arange(prefix.shape[1])[None] >= 3
  read = Prefixes.read(decoder, prefix, mask)
  cache = read.extended(jnp.zeros(len(tokens), jnp.int32), tokens.shape[1])
  return DECODING.prefill(decoder, tokens, segments, 3, cache)[0]


def test_prompts_of_several_rows_follow_a_prefix(clear):
  """Also if a window of the row only just fits into the slot."""
  model = nnx.split(clear.decoder)
  first, second = rows(clear)
  # Prompts of other lengths share the rows.
  packed = packing.Packed([[0, 2, 1], [1, 2]], 64, 2)
  prompts = [first[4:], second[4:], [7, 8, 9]]
  tokens, segments = packing.fill(packed, dict(enumerate(prompts)))
  for shared in (first[:4], second[:4]):
    new = _prefill_after(
      *model, np.array([[0, 0, 0, *shared]]), tokens, segments
    )
    wanted = first if shared == first[:4] else second
    place = (0, 0) if wanted is first else (1, 0)
    slots = np.full((2, 3), 9)
    slots[place] = 1
    for room in (7 + len(first) - 4, 7 + len(first) + 6, 60):
      state = DECODING.init_state(clear.decoder, 2, room)
      state = jax.jit(DECODING.insert)(state, new, slots)
      state, _ = _decode_until(*model, state, NUM_NEW)
      expected = clear.values['greedy'][0 if wanted is first else 1]
      np.testing.assert_array_equal(state.tokens_BxT[1], expected)
      assert state.num_tokens_B.tolist() == [0, NUM_NEW]


def test_packed_prompts_are_put_into_their_slots(clear):
  model = nnx.split(clear.decoder)
  new, _ = _prefill(*model, *_packed(clear))
  insert = jax.jit(DECODING.insert)
  length = clear.values['tokens'].shape[1]
  # Slots with room for a prompt alone, half of the other, and the whole row.
  for room in (length, length + 10, 2 * length + 3, 60):
    state = DECODING.init_state(clear.decoder, 4, room)
    # An earlier occupant, of which nothing may stay.
    state = insert(state, new, np.array([[3, 1]]))
    state, _ = _decode_until(*model, state, 5)
    state = insert(state, new, np.array([[1, 4]]))
    state = insert(state, new, np.array([[4, 3]]))
    assert state.active_B.tolist() == [False, True, False, True]
    state, steps = _decode_until(*model, state, NUM_NEW)
    assert int(steps) == NUM_NEW - 1
    np.testing.assert_array_equal(
      state.tokens_BxT[np.array([3, 1])], clear.values['greedy']
    )
    assert state.num_tokens_B.tolist() == [0, NUM_NEW, 0, NUM_NEW]


def test_rows_moved_leave_slots_empty(clear):
  new, _ = _prefill(*nnx.split(clear.decoder), *_packed(clear))
  insert = jax.jit(DECODING.insert)
  few = DECODING.init_state(clear.decoder, 4, 27)
  few = insert(few, new, np.array([[3, 1]]))
  assert few.active_B.tolist() == [False, True, False, True]
  resize = jax.jit(DECODING.resize, static_argnums=2)
  moved = resize(few, np.array([3, -1, 1]), 30)
  assert moved.active_B.tolist() == [True, False, True]
  assert moved.last_token_B[::2].tolist() == new.token_BxS[0].tolist()
  assert (moved.kv_cache.position_BxS[1] == -1).all()
  assert moved.kv_cache.position_BxS.shape == (3, 30 + NUM_NEW)
  assert int(moved.kv_cache.cache_index) == 30
  # One beyond the last slot leaves a prompt out.
  fewer = insert(few, new, np.array([[4, 0]]))
  assert fewer.active_B.tolist() == [True, True, False, True]
  assert fewer.last_token_B[0] == new.token_BxS[0, 1]


def test_decoding_stops_after_max_steps_and_resumes(clear):
  model = nnx.split(clear.decoder)
  new, _ = _prefill(*model, *_packed(clear))
  state = jax.jit(DECODING.insert)(
    DECODING.init_state(clear.decoder, 2, 27), new, np.array([[1, 0]])
  )
  state, steps = _decode_until(*model, state, 4)
  assert int(steps) == 4
  assert state.num_tokens_B.tolist() == [5, 5]
  state, steps = _decode_until(*model, state, NUM_NEW)
  assert int(steps) == NUM_NEW - 5
  np.testing.assert_array_equal(state.tokens_BxT, clear.values['greedy'])


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
  tokens, mask = inference.pad_left(rows(golden), 23, 4)
  tokens, mask = shard_batch(mesh, (tokens, mask))
  result = run(decoder, tokens, mask)
  np.testing.assert_array_equal(result.tokens_BxT[:2], golden.values['greedy'])
  assert result.num_tokens_B.tolist() == [NUM_NEW, NUM_NEW, 0, 0]


def test_pad_left():
  tokens, mask = inference.pad_left([[5, 6], [], [7, 8, 9]], 4, 4)
  np.testing.assert_array_equal(
    tokens, [[0, 0, 5, 6], [0, 0, 0, 0], [0, 7, 8, 9], [0, 0, 0, 0]]
  )
  assert tokens.dtype == np.int32
  np.testing.assert_array_equal(mask.sum(1), [2, 0, 3, 0])
  np.testing.assert_array_equal(mask, tokens > 0)
  with pytest.raises(ValueError, match='exceeds 2'):
    inference.pad_left([[1, 2, 3]], 2, 1)
  with pytest.raises(ValueError, match='2 rows do not fit 1'):
    inference.pad_left([[1], [2]], 2, 1)
