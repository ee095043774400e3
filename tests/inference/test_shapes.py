"""Few shapes, little padding, batches within the budget."""

import dataclasses
import itertools

from flax import nnx
import jax
import numpy as np

from edsft_jax import inference, models
from edsft_jax.inference import Shapes
from edsft_jax.mesh import make_mesh


def test_shapes_waste_least():
  """Against every choice of this many lengths."""
  rng = np.random.default_rng(5)
  lengths = rng.integers(1, 130, 60)
  options = inference.ShapeOptions(
    compile_tokens=0, max_lengths=3, max_cache_lengths=2
  )
  shapes = Shapes.of(lengths, options)
  sizes = range(8, 145, 8)
  longest = -(-max(lengths) // 8) * 8

  def tokens(chosen):
    return sum(min(size for size in chosen if size >= x) for x in lengths)

  assert tokens(shapes.lengths) == min(
    tokens({*chosen, longest}) for chosen in itertools.combinations(sizes, 2)
  )
  assert tokens(shapes.cache_lengths) == min(
    tokens({size, longest}) for size in shapes.lengths
  )
  assert shapes.lengths[-1] == shapes.cache_lengths[-1] == longest


def test_a_small_pool_is_not_worth_many_programs():
  options = inference.ShapeOptions(compile_tokens=2**13)
  few = Shapes.of([3, 20, 40, 100], options)
  assert few == Shapes((104,), (104,), (168,))
  many = Shapes.of([3, 20, 40, 100, 400] * 4000, options)
  assert many.lengths == (8, 24, 40, 104, 400)
  assert 1 < len(many.cache_lengths) <= 4
  assert many.cache_lengths[-1] == 400


def test_programs_pay_sooner_for_many_passes_and_large_models(goldens):
  decoder = goldens['tied_v4'].decoder
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  lengths = [3, 20, 40, 100] * 2

  def chosen(decoder, num_passes):
    shapes = inference.choose_shapes(decoder, mesh, lengths, num_passes)
    return shapes.lengths

  assert chosen(decoder, 1) == (104,)
  assert chosen(decoder, 10**6) == (8, 24, 40, 104)
  # Seven billion parameters; no weights are made.
  config = dataclasses.replace(
    decoder.config, width=4096, mlp_width=11008, num_layers=32, head_dim=128
  )
  config = dataclasses.replace(config, num_heads=32, num_kv_heads=32)
  large = nnx.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
  assert chosen(large, 1) == (8, 24, 40, 104)


def test_chunks_hold_every_prompt_once():
  rng = np.random.default_rng(2)
  lengths = rng.integers(1, 100, 77)
  shapes = Shapes((16, 64, 112), (112,), (112,))
  wanted = np.flatnonzero(rng.random(77) < 0.7)
  chunks = inference.chunks(
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
  sizes = inference.BatchSizes(
    batch_tokens=4096, num_new=64, multiple=4, total_rows=1000, read_tokens=256
  )
  for length, cache in ((16, 64), (64, 64), (448, 448)):
    slots, prefilled = sizes.num_slots(cache), sizes.to_prefill(length, cache)
    assert slots * (cache + 64) <= 4096
    assert slots % 4 == prefilled % 4 == 0
    assert 0 < prefilled <= slots
    assert 0 < sizes.to_read(length) <= 4096 // length
  few = inference.BatchSizes(
    batch_tokens=4096, num_new=64, multiple=4, total_rows=5, read_tokens=256
  )
  assert few.num_slots(64) == 8
  none = inference.BatchSizes(
    batch_tokens=1, num_new=64, multiple=4, total_rows=5, read_tokens=256
  )
  assert none.num_slots(64) == none.to_prefill(64, 64) == none.to_read(64) == 4


def test_a_call_reads_the_given_tokens_up_to_a_quarter_of_the_batch():
  def rows(read_tokens):
    sizes = inference.BatchSizes(4096, 64, 1, 1024, read_tokens)
    return sizes.to_prefill(16, 64), sizes.to_read(16)

  assert rows(1) == (1, 1)
  assert rows(200) == (200 // 16, 200 // 16)
  assert rows(10**6) == (32, 4096 // 4 // 16)  # No more than there are slots.


def test_calls_are_equally_full():
  """Of 121 prompts, 3 x 46 would be 17 rows of padding alone."""
  sizes = inference.BatchSizes(16384, 16, 1, 121, read_tokens=1849)
  assert sizes.to_read(40) == 41
  split = inference.BatchSizes(16384, 16, 4, 121, read_tokens=1849)
  assert split.to_read(40) == 44
