"""The engine against one row at a time: stops, refilled slots."""

import itertools

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.inference.waves import Row, Wave
from edsft_jax.mesh import make_mesh

NUM_NEW = 9
SHAPES = inference.Shapes((16, 48), (48,), (48,), 1, 20)


@pytest.fixture(scope='module')
def decoder(goldens) -> models.Decoder:
  return goldens['mistral_v4'].decoder


@pytest.fixture(scope='module')
def prompts(decoder) -> list[list[int]]:
  rng = np.random.default_rng(3)
  lengths = [1, 2, *rng.integers(1, 16, 14), *rng.integers(17, 40, 9)]
  vocab = decoder.config.vocab_size
  return [rng.integers(3, vocab, size).tolist() for size in lengths]


def _engine(decoder, devices=1, batch_tokens=240, **options):
  mesh = make_mesh(devices=jax.devices()[:devices])
  engine = inference.Engine(
    decoder,
    mesh,
    SHAPES,
    max_new_tokens=NUM_NEW,
    batch_tokens=batch_tokens,
    max_rows=99,
    **{'end_ids': (), **options},
  )
  return engine, nnx.split(decoder)[1]


def test_prompts_that_cannot_run_are_refused(decoder):
  engine, weights = _engine(decoder)
  with pytest.raises(ValueError, match='prompt 1 has no tokens'):
    engine.generate(weights, [[5], []])
  with pytest.raises(ValueError, match='a prompt has 5000 tokens'):
    engine.generate(weights, [[5] * 5000])


def test_a_reference_without_a_prompt_is_refused(decoder):
  row = Row.of_prompt(0, [], reference=[5, 6, 7])
  engine, weights = _engine(decoder)
  wave = Wave([], 0, 0, [row], SHAPES)
  with pytest.raises(ValueError, match='prompt 0 has no tokens'):
    engine.generate_waves(weights, [wave])


def _steps(decoder, waves, shapes, num_rows):
  """Per worker: own tokens, slots of packed rows, and prompts, of all steps."""
  engine = inference.Engine(
    decoder,
    make_mesh(devices=jax.devices()[:1]),
    shapes,
    end_ids=(),
    max_new_tokens=NUM_NEW,
    batch_tokens=12_000,
    max_rows=num_rows,
  )
  rows = [row for wave in waves for row in wave.rows]
  lengths = [len(row.own) for row in rows]
  for worker in range(2):
    packed = [s.packed for s in engine._queue(waves, lengths, worker)]
    yield (
      sum(lengths[i] for p in packed for i in p.indices),
      sum(p.num_rows * p.length for p in packed),
      sum(len(p.indices) for p in packed),
    )


def test_steps_have_little_padding_and_workers_equal_shares(decoder):
  lengths = np.random.default_rng(3).integers(8, 400, 600)
  options = inference.ShapeOptions(compile_tokens=500)
  shapes = inference.Shapes.of(lengths, options, continued=True)
  rows = [Row.of_prompt(i, [5] * n) for i, n in enumerate(lengths)]
  waves = [Wave([], 0, 0, rows, shapes, int(lengths.sum()))]
  (tokens, slots, num), (others, more_slots, more) = _steps(
    decoder, waves, shapes, len(rows)
  )
  assert num == more == 300
  assert abs(tokens - others) < 0.01 * tokens
  assert tokens + others > 0.9 * (slots + more_slots)


def test_a_large_group_is_divided_and_small_ones_stay_together(decoder):
  prefixes = [(3,) * 20, (4,) * 20, (5,) * 20, (6,) * 20]
  sizes = [200, 2, 2, 2]
  rows = []
  for number, size in enumerate(sizes):
    for _ in range(size):
      ids = [*prefixes[number], *[7] * 40]
      rows.append(Row.of_prompt(len(rows), ids, 20))
      rows[-1].prefix_index = number
  places = np.cumsum([0, *sizes])
  groups = [range(*ends) for ends in itertools.pairwise(places)]
  options = inference.ShapeOptions(compile_tokens=500)
  shapes = inference.Shapes.of([40] * len(rows), options, groups)
  assert shapes.row_lengths == (80, 240)
  caches = inference.Shapes((60,), (240,), (240,), 40, 40)
  waves = [Wave(prefixes, 20, 4, rows, shapes, 40 * len(rows))]
  (tokens, slots, _), (others, more_slots, _) = _steps(
    decoder, waves, caches, len(rows)
  )
  assert abs(tokens - others) <= 80
  assert tokens + others > 0.85 * (slots + more_slots)


def test_no_prompts_are_continued(decoder):
  engine, weights = _engine(decoder)
  assert engine.generate(weights, []).tokens == []


def _text(ids) -> str:
  return ' '.join(f'<{i}>' for i in ids)


def test_a_stop_string_ends_a_row_and_frees_its_slot(decoder, prompts):
  engine, weights = _engine(decoder)
  whole = engine.generate(weights, prompts)
  assert not whole.stopped.any()
  assert {len(ids) for ids in whole.tokens} == {NUM_NEW}
  # Two tokens that follow each other somewhere in the middle of a row.
  first = whole.tokens[4].tolist()
  strings = (f'<{first[3]}> <{first[4]}>', f'{whole.tokens[20][0]}>')
  stop = inference.Stop(strings, _text)
  found = engine.generate(weights, prompts, stop=stop)
  num_stopped = 0
  for row, ids in enumerate(whole.tokens):
    expected = next(
      (
        ids[:n].tolist()
        for n in range(1, NUM_NEW + 1)
        if any(s in _text(ids[:n]) for s in strings)
      ),
      None,
    )
    assert found.stopped[row] == (expected is not None)
    assert found.tokens[row].tolist() == (expected or ids.tolist())
    num_stopped += expected is not None
  assert 2 <= num_stopped < len(prompts)
  assert stop.cut(_text(found.tokens[4])).startswith(f'<{first[0]}>')
  assert strings[0] not in stop.cut(_text(found.tokens[4]))


def test_an_end_id_stops_and_the_most_tokens_do_not(decoder, prompts):
  end_ids = tuple(range(0, decoder.config.vocab_size, 5))
  engine, weights = _engine(decoder, end_ids=end_ids)
  found = engine.generate(weights, prompts)
  assert 0 < found.stopped.sum() < len(prompts)
  for ids, stopped in zip(found.tokens, found.stopped, strict=True):
    assert stopped == (int(ids[-1]) in end_ids)
    assert stopped or len(ids) == NUM_NEW


def test_hooks_see_each_row_alone(decoder, prompts):
  """What they return lands at its own row, whatever the order of slots."""
  end_ids = tuple(range(0, decoder.config.vocab_size, 5))
  hooks = inference.Hooks(
    prompt=lambda decoder, output, tokens, mask, prefix: {
      'first': jax.numpy.take_along_axis(tokens, mask.argmax(2), 1),
      'length': mask.sum(2),
    },
    step=lambda logits, token: token,
    row=lambda observed, steps: (observed * steps).sum(1),
  )
  engine, weights = _engine(decoder, end_ids=end_ids, hooks=hooks)
  found = engine.generate(weights, prompts)
  lengths = [len(ids) for ids in prompts]
  assert found.prompt_results['length'].tolist() == lengths
  firsts = [ids[0] for ids in prompts]
  assert found.prompt_results['first'].tolist() == firsts
  sums = [int(ids.sum()) for ids in found.tokens]
  assert found.row_results.tolist() == sums
  read = engine.read(weights, prompts)
  assert read['first'].tolist() == firsts
  assert read['length'].tolist() == lengths


@pytest.mark.parametrize('devices', [1, 8])
def test_the_last_rows_move_to_fewer_slots(
  goldens, prompts, monkeypatch, devices
):
  mesh = make_mesh(devices=jax.devices()[:devices])
  placed = models.load_decoder(goldens['mistral_v4'].path, 'float32', mesh)
  options = {
    'devices': devices,
    'batch_tokens': 240 * 8,
    'end_ids': tuple(range(0, placed.config.vocab_size, 2)),
  }
  usual, weights = _engine(placed, **options)
  longest = max(usual.generate(weights, prompts).tokens, key=len)
  stop = inference.Stop((f'<{longest[-2]}>',), _text)
  expected = usual.generate(weights, prompts, stop=stop)
  # Compiling costs nothing: every move pays off.
  monkeypatch.setattr(
    'edsft_jax.inference.engine.compile_bytes', lambda mesh: 0.0
  )
  moving, _ = _engine(placed, **options)
  found = moving.generate(weights, prompts, stop=stop)
  assert moving.num_resizes > usual.num_resizes
  assert found.stopped.tolist() == expected.stopped.tolist()
  for ids, other in zip(found.tokens, expected.tokens, strict=True):
    assert ids.tolist() == other.tolist()
