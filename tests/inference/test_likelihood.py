"""Likelihoods against one row at a time, without cache or prefix."""

import functools

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.mesh import make_mesh

NUM_NEW = 9


@pytest.fixture(scope='module')
def decoder(goldens) -> models.Decoder:
  return goldens['mistral_v4'].decoder


@pytest.fixture(scope='module')
def prompts(decoder) -> list[list[int]]:
  """Some on their own; some with 20 tokens in common, some with 17 others."""
  rng = np.random.default_rng(3)
  vocab = decoder.config.vocab_size

  def draw(size) -> list[int]:
    return rng.integers(3, vocab, size).tolist()

  first, second = draw(20), draw(17)
  return [
    *(draw(n) for n in (1, 2, 9, 15, 30)),
    *([*first, *draw(n)] for n in (1, 2, 7, 12, 13)),
    *([*second, *draw(n)] for n in (3, 20)),
  ]


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


@pytest.fixture(scope='module')
def targets(decoder, prompts, log_probs) -> list[inference.Target]:
  """Some continued greedily, some cut anywhere, some with nothing scored."""
  result = []
  for prompt in prompts[3:8]:
    ids = [*prompt]
    while len(ids) < len(prompt) + NUM_NEW:
      ids.append(int(np.argmax(log_probs(ids)[len(ids) - 1])))
    result.append(inference.Target(ids, NUM_NEW))
  *begun, last = result[2].tokens
  for other in range(3):  # They differ in the last token alone.
    result.append(inference.Target([*begun, (last + 1 + other) % 60], NUM_NEW))
  return result + [
    inference.Target(ids, number % len(ids))
    for number, ids in enumerate(prompts)
  ]


def _score(decoder, targets, devices=1, progress=lambda work: None):
  mesh = make_mesh(devices=jax.devices()[:devices])
  # With this many passes, compiling costs nothing, so prefixes are shared.
  engine = inference.LikelihoodEngine(
    decoder, mesh, [targets], batch_tokens=300, num_passes=10**6
  )
  return engine(nnx.split(decoder)[1], progress)


@pytest.mark.parametrize('devices', [1, 8])
def test_likelihood_is_that_of_one_row_at_a_time(
  goldens, targets, log_probs, devices
):
  mesh = make_mesh(devices=jax.devices()[:devices])
  placed = models.load_decoder(goldens['mistral_v4'].path, 'float32', mesh)
  seen = []
  found = _score(placed, targets, devices, seen.append)
  expected = [_expected(log_probs, target) for target in targets]
  np.testing.assert_allclose(
    found.nll, [nll for nll, _ in expected], rtol=1e-4, atol=1e-4
  )
  assert found.is_greedy.tolist() == [greedy for _, greedy in expected]
  assert found.is_greedy[:5].all()
  assert not found.is_greedy[5:8].any()
  work = sum(seen, inference.Work())
  assert work.prompts == sum(target.num_targets > 0 for target in targets)


def test_known_targets_are_left_out(decoder, targets):
  """The others have the same bits; each call scores all that it reads."""
  engine = inference.LikelihoodEngine(
    decoder,
    make_mesh(devices=jax.devices()[:1]),
    [targets],
    batch_tokens=80,
    num_passes=10**6,
  )
  weights = nnx.split(decoder)[1]
  calls, work = [], []

  def found(indices, scored):
    calls.append((indices, scored))

  whole = engine(weights, found=found)
  assert len(calls) > 2
  scored = [index for indices, _ in calls for index in indices]
  assert sorted(scored) == [
    i for i, target in enumerate(targets) if target.num_targets
  ]
  for indices, some in calls:
    assert some.nll.tolist() == whole.nll[indices].tolist()
    assert some.is_greedy.tolist() == whole.is_greedy[indices].tolist()
  # All of the first call, and a part of another.
  known = {*calls[0][0], calls[1][0][0]}
  assert len(calls[1][0]) > 1
  first, calls = calls, []
  again = engine(weights, work.append, known=known, found=found)
  assert sorted(i for i, _ in calls) == sorted(i for i, _ in first[1:])
  new = [index for indices, _ in calls for index in indices]
  assert again.nll[new].tolist() == whole.nll[new].tolist()
  assert sum(x.prompts for x in work) == len(new)


def test_parts_are_scored_in_the_shapes_of_all(decoder, targets):
  engine = inference.LikelihoodEngine(
    decoder,
    make_mesh(devices=jax.devices()[:1]),
    [targets[:5], [], targets[5:]],
    batch_tokens=300,
    num_passes=10**6,
  )
  weights = nnx.split(decoder)[1]
  parts = [engine(weights, part=part).nll for part in range(3)]
  assert [len(nll) for nll in parts] == [5, 0, len(targets) - 5]
  expected = _score(decoder, targets).nll
  np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-5)


def test_what_is_common_is_read_once(decoder):
  """Two subjects with their examples, three questions, four letters."""
  rng = np.random.default_rng(4)
  shots = rng.integers(3, 60, (2, 40)).tolist()
  questions = rng.integers(3, 60, (3, 10)).tolist()
  targets = [
    inference.Target([*shots[s], *question, letter], 1)
    for question in questions
    for s in range(2)
    for letter in (5, 6, 7, 8)
  ]
  seen = []
  found = _score(decoder, targets, progress=seen.append)
  work = sum(seen, inference.Work())
  assert work.tokens == 2 * 40 + 6 * 10
  assert work.prompts == 24
  assert found.nll.shape == (24,)


def test_rows_whose_keys_depend_on_their_length_share_nothing(goldens):
  """With dynamic rope, a prefix read alone has other keys."""
  decoder = goldens['dynamic_v5'].decoder
  length = decoder.config.rope.original_context
  rng = np.random.default_rng(5)
  ids = rng.integers(3, decoder.config.vocab_size, length + 4).tolist()
  targets = [inference.Target([*ids[: length + n], 7], 1) for n in (1, 2, 3, 4)]
  seen = []
  together = _score(decoder, targets, progress=seen.append).nll
  alone = [_score(decoder, [target]).nll[0] for target in targets]
  np.testing.assert_allclose(together, alone, rtol=1e-5)
  work = sum(seen, inference.Work())
  assert work.tokens == sum(len(target.tokens) - 1 for target in targets)


@pytest.mark.parametrize('block', [1, 5, 100])
def test_likelihood_does_not_depend_on_blocks_of_logits(
  decoder, prompts, log_probs, block
):
  rows = [ids for ids in prompts if len(ids) > 20][:4]
  num_targets = np.array([0, 1, 16, 12], np.int32)
  tokens, mask = map(jax.numpy.asarray, inference.pad_left(rows, 40))
  hidden = jax.jit(models.Decoder.__call__)(decoder, tokens, mask).hidden_BxLxD
  is_target = np.arange(40) >= 40 - num_targets[:, None]
  found = inference.target_likelihood(
    decoder,
    hidden,
    tokens,
    is_target,
    max_logits=4 * decoder.config.vocab_size * block,
  )
  expected = [
    _expected(log_probs, inference.Target(ids, int(num)))[0]
    for ids, num in zip(rows, num_targets, strict=True)
  ]
  assert not found['nll'][~is_target].any()
  assert found['is_greedy'][~is_target].all()
  np.testing.assert_allclose(
    found['nll'].sum(1), expected, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('num_targets', [-1, 3, 5])
def test_a_target_without_a_context_is_refused(decoder, num_targets):
  with pytest.raises(ValueError, match='target 0 has'):
    _score(decoder, [inference.Target([5, 6, 7], num_targets)])


def test_nothing_to_score_is_nothing(decoder):
  assert _score(decoder, []).nll.tolist() == []


def test_rolling_windows_score_each_token_once():
  """The example in lm-evaluation-harness's documentation."""
  windows = inference.rolling_targets(list(range(10)), 99, 4)
  assert windows == [
    ([99, 0, 1, 2, 3], 4),
    ([3, 4, 5, 6, 7], 4),
    ([5, 6, 7, 8, 9], 2),
  ]
  assert inference.rolling_targets([], 99, 4) == []
  assert inference.rolling_targets([7], 99, 4) == [([99, 7], 1)]


def test_nothing_is_shared_if_compiling_takes_longer(decoder):
  rng = np.random.default_rng(4)
  shots = rng.integers(3, 60, 40).tolist()
  targets = [inference.Target([*shots, 3 + n, 5], 1) for n in range(9)]
  mesh = make_mesh(devices=jax.devices()[:1])
  num_tokens = []
  for num_passes in (1, 10**6):
    seen = []
    engine = inference.LikelihoodEngine(
      decoder, mesh, [targets], batch_tokens=300, num_passes=num_passes
    )
    engine(nnx.split(decoder)[1], seen.append)
    num_tokens.append(sum(seen, inference.Work()).tokens)
  assert num_tokens == [9 * 41, 40 + 9]
