"""The engine against one row at a time: likelihood, stops, refilled slots."""

import functools

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.mesh import make_mesh

NUM_NEW = 9
SHAPES = inference.Shapes((16, 48), (16, 48))


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


@pytest.fixture(scope='module')
def log_probs(decoder, forward):
  """ids -> float64 log probabilities [L, V], one row without padding."""

  @functools.cache
  def compute(ids: tuple[int, ...]) -> np.ndarray:
    # To one length, behind what counts: causal, so it changes nothing.
    tokens = np.zeros((1, 56), np.int32)
    tokens[0, : len(ids)] = ids
    logits = np.asarray(forward(decoder, tokens)[0][0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

  return lambda ids: compute(tuple(ids))


def _expected(log_probs, target: inference.Target) -> tuple[float, bool]:
  ids = list(target.tokens)
  log_prob_LxV = log_probs(ids)
  places = range(len(ids) - target.num_targets, len(ids))
  nll = -sum(log_prob_LxV[i - 1, ids[i]] for i in places)
  greedy = all(np.argmax(log_prob_LxV[i - 1]) == ids[i] for i in places)
  return nll, greedy


def _targets(decoder, prompts) -> list[inference.Target]:
  """Some continued greedily, some cut anywhere, some with nothing scored."""
  engine, weights = _engine(decoder)
  continued = engine.generate(weights, prompts[:9]).tokens
  targets = [
    inference.Target([*prompt, *ids.tolist()], len(ids))
    for prompt, ids in zip(prompts, continued, strict=False)
  ]
  spoilt = [*targets[2].tokens[:-1], (targets[2].tokens[-1] + 1) % 60]
  return [
    *targets,
    inference.Target(spoilt, NUM_NEW),
    *(
      inference.Target(ids, number % len(ids))
      for number, ids in enumerate(prompts[9:])
    ),
  ]


@pytest.mark.parametrize('devices', [1, 8])
def test_likelihood_is_that_of_one_row_at_a_time(
  goldens, decoder, prompts, log_probs, devices
):
  targets = _targets(decoder, prompts)
  mesh = make_mesh(devices=jax.devices()[:devices])
  placed = models.load_decoder(goldens['mistral_v4'].path, 'float32', mesh)
  engine, weights = _engine(placed, devices)
  seen = []
  found = engine.likelihood(weights, targets, seen.append)
  expected = [_expected(log_probs, target) for target in targets]
  np.testing.assert_allclose(
    found.nll, [nll for nll, _ in expected], rtol=1e-4, atol=1e-4
  )
  assert found.is_greedy.tolist() == [greedy for _, greedy in expected]
  assert found.is_greedy[:9].all()
  assert not found.is_greedy[9]
  work = sum(seen, inference.Work())
  assert work.prompts == len(targets)
  assert work.tokens == sum(len(target.tokens) for target in targets)


@pytest.mark.parametrize('block', [1, 5, 100])
def test_likelihood_does_not_depend_on_blocks_of_logits(
  decoder, prompts, log_probs, forward, block
):
  rows = [ids for ids in prompts if len(ids) > 17][:4]
  num_targets = np.array([0, 1, 16, 12], np.int32)
  tokens, mask = inference.pad_left(rows, 40)
  _, hidden = forward(decoder, tokens, mask)
  found = inference.target_likelihood(
    decoder,
    hidden,
    tokens,
    num_targets,
    max_logits=4 * decoder.config.vocab_size * block,
  )
  expected = [
    _expected(log_probs, inference.Target(ids, int(num)))[0]
    for ids, num in zip(rows, num_targets, strict=True)
  ]
  np.testing.assert_allclose(found['nll'], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('num_targets', [-1, 3, 5])
def test_a_target_without_a_context_is_refused(decoder, num_targets):
  engine, weights = _engine(decoder)
  target = inference.Target([5, 6, 7], num_targets)
  with pytest.raises(ValueError, match='target 0 has'):
    engine.likelihood(weights, [target])


def test_prompts_that_cannot_run_are_refused(decoder):
  engine, weights = _engine(decoder)
  with pytest.raises(ValueError, match='prompt 1 has no tokens'):
    engine.generate(weights, [[5], []])
  with pytest.raises(ValueError, match='a prompt has 5000 tokens'):
    engine.generate(weights, [[5] * 5000])


def test_nothing_to_score_is_nothing(decoder):
  engine, weights = _engine(decoder)
  assert engine.likelihood(weights, []).nll.tolist() == []
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
    prompt=lambda decoder, output, tokens, mask: {
      'first': tokens[jax.numpy.arange(len(tokens)), mask.argmax(1)],
      'length': mask.sum(1),
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
