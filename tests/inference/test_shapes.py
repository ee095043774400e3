"""Few shapes, little padding, batches within the budget."""

import dataclasses
import itertools

from flax import nnx
import jax
import numpy as np

from edsft_jax import inference, models
from edsft_jax.inference import Shapes
from edsft_jax.inference.shapes import padded_lengths
from edsft_jax.mesh import make_mesh


def test_padded_lengths_waste_least():
  """Against every choice of this many lengths."""
  rng = np.random.default_rng(5)
  lengths = rng.integers(1, 130, 60)
  found = padded_lengths(lengths, 3, compile_tokens=0)
  longest = -(-max(lengths) // 8) * 8

  def tokens(chosen):
    return sum(min(size for size in chosen if size >= x) for x in lengths)

  assert tokens(found) == min(
    tokens({*chosen, longest})
    for chosen in itertools.combinations(range(8, 145, 8), 2)
  )
  assert found[-1] == longest


def test_a_small_pool_is_not_worth_many_programs():
  options = inference.ShapeOptions(compile_tokens=2**13)
  few = Shapes.of([3, 20, 40, 100], options)
  assert few == Shapes((104,), (168,), (168,), 3, 40.75, (1.0,))
  assert few.num_rows(168, 1600) == 10
  assert few.most_sequences(168) == 21
  many = Shapes.of([3, 20, 40, 100, 400] * 4000, options)
  assert many.cache_lengths == (8, 40, 104, 400)
  assert (many.shortest, many.mean) == (3, 112.6)


def test_programs_pay_sooner_for_many_passes_and_large_models(goldens):
  decoder = goldens['tied_v4'].decoder
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  lengths = [3, 20, 40, 100] * 2

  def chosen(decoder, num_passes):
    shapes = inference.choose_shapes(decoder, mesh, lengths, num_passes)
    return shapes.cache_lengths

  def row_length(decoder):
    return inference.choose_shapes(decoder, mesh, [16] * 1000).targets[0]

  assert chosen(decoder, 1) == (104,)
  assert chosen(decoder, 10**6) == (8, 24, 40, 104)
  # Attention over a longer row would take much of a tiny model's time.
  assert row_length(decoder) == 64
  # Seven billion parameters; no weights are made.
  config = dataclasses.replace(
    decoder.config, width=4096, mlp_width=11008, num_layers=32, head_dim=128
  )
  config = dataclasses.replace(config, num_heads=32, num_kv_heads=32)
  large = nnx.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
  assert chosen(large, 1) == (8, 24, 40, 104)
  assert row_length(large) == 256


def test_rows_fit_the_budget_and_the_mesh():
  sizes = inference.BatchSizes(
    4096, num_new=64, multiple=4, total_rows=1000, read_tokens=256
  )
  for length in (64, 448):
    assert sizes.num_slots(length) * (length + 64) <= 4096
    rows = sizes.to_pack(length, 1000)
    assert sizes.num_slots(length) % 4 == rows % 4 == 0
    assert 0 < rows * length <= max(256, 4 * length)
  few = dataclasses.replace(sizes, total_rows=5)
  assert few.num_slots(64) == 8
  none = dataclasses.replace(few, batch_tokens=1)
  assert none.num_slots(64) == none.to_pack(64, 5) == 4


def test_a_call_reads_the_given_tokens_up_to_a_quarter_of_the_batch():
  def rows(read_tokens):
    return inference.BatchSizes(4096, 64, 1, 1024, read_tokens).to_pack(16, 999)

  assert rows(1) == 1
  # 12 would leave the last of 84 calls with 3.
  assert rows(200) == 12
  assert rows(10**6) == 63  # Of 4096 / 4 / 16 = 64; 16 calls need no more.


def test_calls_are_equally_full():
  """Of 19 rows, 7 are read at once: not 7, 7 and 5."""
  sizes = inference.BatchSizes(16384, 16, 1, 121, read_tokens=1849)
  assert sizes.to_pack(256, 19) == 7
  assert sizes.to_pack(256, 15) == 5
  assert sizes.to_pack(256, 2) == 2
  assert dataclasses.replace(sizes, multiple=4).to_pack(256, 15) == 4
  # Each prompt fills one row at most.
  assert dataclasses.replace(sizes, total_rows=10).to_pack(256, 19) == 5
