"""The engine against one row at a time: stops, refilled slots."""

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.inference.waves import Row, Wave
from edsft_jax.mesh import make_mesh

NUM_NEW = 9
SHAPES = inference.Shapes((16, 48), (48,), (48,), 1, 20, (1.0,))


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
