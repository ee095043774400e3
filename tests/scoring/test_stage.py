"""The score stage on a tiny checkpoint: right, resumable, refusing changes."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from flax import nnx
import jax
import ml_collections
import numpy as np
from places import REPOSITORY
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import default
from edsft_jax import artifacts, errors, models, scoring
from edsft_jax.mesh import make_mesh
from edsft_jax.scoring import stage
from edsft_jax.scoring.stage import Scorer, score_prompts

GOLDEN = pathlib.Path(__file__).parents[1] / 'models' / 'goldens' / 'tied_v4'
NUM_PROMPTS = 21


def _prompts() -> list[str]:
  rng = np.random.default_rng(7)
  return [
    ' '.join(f'w{i}' for i in rng.integers(3, 60, size=length))
    # Two padded lengths: 16 and, in the first shard, 32.
    for length in [20, *rng.integers(1, 15, size=NUM_PROMPTS - 1)]
  ]


def _config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.model.path = str(GOLDEN)
  config.scoring.max_new_tokens = 6
  config.scoring.shard_prompts = 8
  config.scoring.batch_tokens = 256
  return config


@pytest.fixture
def workdir(tmp_path) -> artifacts.Workdir:
  result = artifacts.Workdir(tmp_path)
  prompts = _prompts()
  artifacts.write_parquet(
    result.pool,
    pa.table({'id': [f'p{i}' for i in range(len(prompts))], 'prompt': prompts}),
  )
  return result


@pytest.fixture(scope='module')
def scored(tmp_path_factory) -> artifacts.Workdir:
  """An uninterrupted run, to compare with."""
  result = artifacts.Workdir(tmp_path_factory.mktemp('scored'))
  prompts = _prompts()
  artifacts.write_parquet(
    result.pool,
    pa.table({'id': [f'p{i}' for i in range(len(prompts))], 'prompt': prompts}),
  )
  scoring.run(_config(), result)
  return result


def _brute_force(decoder, prompt_ids, max_new_tokens, end_ids):
  """One prompt, no padding, no cache: every step is a whole forward pass."""

  @jax.jit
  def forward(state, tokens):
    merged = nnx.merge(graph, state)
    output = merged(tokens, np.ones(tokens.shape, bool))
    return merged.logits(output.hidden_BxLxD)[0], output.hidden_BxLxD[0]

  graph, state = nnx.split(decoder)
  ids = list(prompt_ids)
  for _ in range(max_new_tokens):
    padded = np.zeros((1, len(prompt_ids) + max_new_tokens), np.int32)
    padded[0, : len(ids)] = ids
    logits, hidden = jax.device_get(forward(state, padded))
    ids.append(int(np.argmax(logits[len(ids) - 1])))
    if ids[-1] in end_ids:
      break
  logit = logits[: len(ids) - 1].astype(np.float64)
  log_prob = logit - np.log(np.exp(logit).sum(-1, keepdims=True))
  prob = np.exp(log_prob)
  top2, top1 = np.sort(prob, axis=-1)[:, -2:].T
  chosen = log_prob[np.arange(len(ids) - 1), ids[1:]]
  entropy = -(prob * log_prob).sum(-1)
  n = len(prompt_ids)

  def scores(part):
    return {
      'mean_entropy': entropy[part].mean(),
      'max_entropy': entropy[part].max(),
      'least_confidence': -chosen[part].sum(),
      'min_confidence': top1[part].min(),
      'mean_margin': (top1 - top2)[part].mean(),
      'min_margin': (top1 - top2)[part].min(),
      'mean_confidence': top1[part].mean(),
    }

  result = scores(slice(n - 1, None))
  result['first_token_confidence'] = top1[n - 1]
  if n > 1:
    inside = scores(slice(0, n - 1))
    result |= {f'prompt_{name}': value for name, value in inside.items()}
  return ids[n:], result, hidden[:n].mean(0)


def test_table_and_features_match_brute_force(scored):
  table = pq.read_table(scored.scores)
  features = np.load(scored.features)
  assert table['id'].to_pylist() == [f'p{i}' for i in range(NUM_PROMPTS)]
  assert features.dtype == np.float32
  assert not scored.score_shards.exists()

  prompt_format = models.load_prompt_format(GOLDEN, 'raw', '\n', 'end')
  decoder = models.load_decoder(
    GOLDEN, 'float32', make_mesh(1, 1, 1, devices=jax.devices()[:1])
  )
  for row, prompt in enumerate(_prompts()[:6]):
    ids, truncated = prompt_format.encode_prompt(prompt, 99, False)
    assert not truncated
    new, scores, feature = _brute_force(decoder, ids, 6, prompt_format.end_ids)
    got = {name: table[name][row].as_py() for name in table.column_names}
    assert got['num_prompt_tokens'] == len(ids)
    assert got['num_generated_tokens'] == len(new)
    assert got['generation'] == prompt_format.decode(new)
    for name, value in scores.items():
      np.testing.assert_allclose(got[name], value, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(features[row], feature, rtol=1e-4, atol=1e-5)


def test_columns_are_the_contract(scored):
  names = pq.read_table(scored.scores).column_names
  scores = [
    'mean_entropy',
    'max_entropy',
    'least_confidence',
    'min_confidence',
    'mean_margin',
    'min_margin',
    'mean_confidence',
  ]
  assert set(names) == {
    'id',
    'num_prompt_tokens',
    'num_generated_tokens',
    'truncated',
    'generation',
    'first_token_confidence',
    *scores,
    *(f'prompt_{name}' for name in scores),
  }


def test_batch_size_and_devices_change_nothing(scored):
  """Eight devices and other batches give what one device gives."""
  prompt_format = models.load_prompt_format(GOLDEN, 'raw', '\n', 'end')
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  scorer = Scorer(
    models.load_decoder(GOLDEN, 'float32', mesh),
    mesh,
    end_ids=prompt_format.end_ids,
    max_new_tokens=6,
    batch_tokens=64,
  )
  ids = [f'p{i}' for i in range(NUM_PROMPTS)]
  table, features = score_prompts(
    scorer, prompt_format, ids, _prompts(), limit=100
  )
  expected = pq.read_table(scored.scores)
  assert table['generation'].equals(expected['generation'])
  for name in expected.column_names:
    if pa.types.is_floating(expected[name].type):
      np.testing.assert_allclose(
        table[name].to_numpy(), expected[name].to_numpy(), atol=1e-5, rtol=1e-5
      )
  np.testing.assert_allclose(features, np.load(scored.features), atol=1e-5)


def test_what_the_tokenizer_lacks_stands_in_the_manifest(scored):
  counts = artifacts.Manifest(scored).counts('score')
  notes = ' '.join(counts['notes'])
  assert 'no chat template' in notes
  assert 'no pad token' in notes
  assert counts['prompts'] == NUM_PROMPTS
  assert counts['truncated'] == 0


def test_length_normalized_divides_by_the_steps(scored):
  config = _config()
  config.scoring.length_normalized = True
  root = scored.root / 'normalized'
  shutil.copytree(scored.pool.parent, root / 'pool')
  workdir = artifacts.Workdir(root)
  scoring.run(config, workdir)
  new, old = pq.read_table(workdir.scores), pq.read_table(scored.scores)
  np.testing.assert_allclose(
    new['least_confidence'].to_numpy() * new['num_generated_tokens'].to_numpy(),
    old['least_confidence'].to_numpy(),
    rtol=1e-5,
  )


def test_kill_and_run_again_gives_the_same_bytes(workdir, scored, monkeypatch):
  """kill -9 once a shard is there; the second run does only the others."""
  code = (
    'import pathlib; from scoring import test_stage; '
    'from edsft_jax import artifacts, scoring; '
    'scoring.run(test_stage._config(), '
    f'artifacts.Workdir(pathlib.Path({str(workdir.root)!r})))'
  )
  env = {**os.environ, 'PYTHONPATH': f'{REPOSITORY}:{REPOSITORY / "tests"}'}
  process = subprocess.Popen(
    [sys.executable, '-c', code], cwd=REPOSITORY, env=env
  )
  first = workdir.score_shards / '00000'
  while not first.exists() and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert first.exists()
  assert not workdir.scores.exists(), 'it was not killed in time'
  left = {p.name for p in workdir.score_shards.iterdir()}

  scored_now = []

  def spy(scorer, prompt_format, ids, *args, **kwargs):
    scored_now.extend(ids)
    return score_prompts(scorer, prompt_format, ids, *args, **kwargs)

  monkeypatch.setattr(stage, 'score_prompts', spy)
  scoring.run(_config(), workdir)
  whole = sum(1 for name in left if not name.startswith('.'))
  assert scored_now == [f'p{i}' for i in range(8 * whole, NUM_PROMPTS)]
  assert workdir.scores.read_bytes() == scored.scores.read_bytes()
  assert workdir.features.read_bytes() == scored.features.read_bytes()


def test_a_second_run_loads_no_model(scored, monkeypatch):
  monkeypatch.setattr(
    models, 'load_decoder', lambda *a, **k: pytest.fail('loaded')
  )
  scoring.run(_config(), scored)


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('scoring.max_new_tokens', 7),
    ('scoring.stop_token_ids', (5,)),
    ('scoring.features.pooling', 'last'),
    ('prompt.template', 'raw'),
    ('prompt.truncate', 'start'),
    ('model.dtype', 'bfloat16'),
    ('model.path', str(GOLDEN.with_name('linear_v4'))),
  ],
)
def test_other_inputs_are_refused_by_name(scored, option, value):
  config = _config()
  config.update_from_flattened_dict({option: value})
  with pytest.raises(errors.InputError, match=option.replace('.', r'\.')):
    scoring.run(config, scored)


def test_another_pool_is_refused(workdir, scored):
  shutil.copy(scored.manifest, workdir.manifest)
  artifacts.write_parquet(
    workdir.pool, pa.table({'id': ['q'], 'prompt': ['w3']})
  )
  with pytest.raises(errors.InputError, match='pool'):
    scoring.run(_config(), workdir)


def test_batch_tokens_may_change(scored):
  config = _config()
  config.scoring.batch_tokens = 999
  scoring.run(config, scored)


def test_stop_token_ids_end_a_continuation(scored):
  prompt_format = models.load_prompt_format(GOLDEN, 'raw', '\n', 'end')
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  decoder = models.load_decoder(GOLDEN, 'float32', mesh)
  vocab = decoder.config.vocab_size
  scorer = Scorer(
    decoder,
    mesh,
    end_ids=range(vocab),
    max_new_tokens=6,
    batch_tokens=4096,
  )
  table, _ = score_prompts(scorer, prompt_format, ['a'], ['w3 w9'], limit=100)
  assert table['num_generated_tokens'].to_pylist() == [1]


def test_long_prompts_are_truncated_and_flagged(scored):
  prompt_format = models.load_prompt_format(GOLDEN, 'raw', '\n', 'end')
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  scorer = Scorer(
    models.load_decoder(GOLDEN, 'float32', mesh),
    mesh,
    end_ids=prompt_format.end_ids,
    max_new_tokens=6,
    batch_tokens=4096,
  )
  table, features = score_prompts(
    scorer,
    prompt_format,
    ['short', 'long'],
    ['w3 w4 w5', 'w3 w4 w5 w6 w7'],
    limit=3,
  )
  assert table['truncated'].to_pylist() == [False, True]
  assert table['num_prompt_tokens'].to_pylist() == [3, 3]
  np.testing.assert_allclose(features[0], features[1], atol=1e-6)


def test_numbers_that_are_not_finite_name_the_prompt(workdir, monkeypatch):
  def broken(*args, **kwargs):
    decoder = load(*args, **kwargs)
    decoder.norm.weight[...] = decoder.norm.weight[...] * np.nan
    return decoder

  load = models.load_decoder
  monkeypatch.setattr(models, 'load_decoder', broken)
  with pytest.raises(errors.InputError, match=r"prompt 'p\d+' .*not finite"):
    scoring.run(_config(), workdir)
  assert not workdir.scores.exists()
  assert list(workdir.score_shards.glob('*')) == []

  # Nothing was scored with it: another model may take its place.
  monkeypatch.setattr(models, 'load_decoder', load)
  config = _config()
  config.model.path = str(GOLDEN.with_name('linear_v4'))
  scoring.run(config, workdir)
  assert workdir.scores.exists()


@pytest.mark.parametrize(
  ('option', 'value', 'says'),
  [
    ('scoring.max_new_tokens', 0, 'scoring.max_new_tokens is 0'),
    ('scoring.max_new_tokens', 160, 'context of 160'),
    ('scoring.batch_tokens', 0, 'scoring.batch_tokens'),
    ('scoring.shard_prompts', -1, 'scoring.shard_prompts'),
    ('scoring.stop_token_ids', (64,), 'scoring.stop_token_ids has 64'),
    ('scoring.stop_token_ids', (1.5,), 'scoring.stop_token_ids has 1.5'),
    ('mesh.data', 7, 'does not fit 8 devices'),
    ('scoring.features.pooling', 'max', "'max' is unknown"),
    ('scoring.features.layer', 3, 'scoring.features.layer is 3'),
    ('prompt.template', 'alpaca', 'alpaca'),
    ('prompt.truncate', 'left', 'left'),
    ('model.dtype', 'int8', 'int8'),
    ('model.path', '/nowhere', '/nowhere'),
  ],
)
def test_bad_options_are_found_before_any_work(workdir, option, value, says):
  config = _config()
  config.update_from_flattened_dict({option: value})
  with pytest.raises(errors.InputError, match=re.escape(says)):
    scoring.check(config, workdir, frozenset())


def test_without_a_pool_the_pool_stage_is_named(tmp_path):
  workdir = artifacts.Workdir(tmp_path)
  with pytest.raises(errors.InputError, match='run the pool stage first'):
    scoring.check(_config(), workdir, frozenset())
  scoring.check(_config(), workdir, frozenset({'pool'}))
