"""The score stage on a tiny checkpoint: right, resumable, refusing changes."""

import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import formats
import jax
import ml_collections
import numpy as np
from places import REPOSITORY
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_study

from configs import default
from edsft_jax import console, errors, models, processes, scoring, store
from edsft_jax.inference import Work
from edsft_jax.inference.throughput import Rate
from edsft_jax.mesh import make_mesh, model_mesh
from edsft_jax.scoring import loading, shards, stage
from edsft_jax.scoring.scorer import Scorer

pytestmark = pytest.mark.usefixtures('on_one_device')

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
def workdir(tmp_path) -> store.Workdir:
  result = store.Workdir(tmp_path)
  prompts = _prompts()
  store.write_parquet(
    result.pool,
    pa.table({'id': [f'p{i}' for i in range(len(prompts))], 'prompt': prompts}),
  )
  return result


@pytest.fixture(scope='module')
def scored(tmp_path_factory) -> store.Workdir:
  """An uninterrupted run, to compare with."""
  result = store.Workdir(tmp_path_factory.mktemp('scored'))
  prompts = _prompts()
  store.write_parquet(
    result.pool,
    pa.table({'id': [f'p{i}' for i in range(len(prompts))], 'prompt': prompts}),
  )
  scoring.run(_config(), result)
  return result


def _brute_force(decoder, forward, prompt_ids, max_new_tokens, end_ids):
  """One prompt, no cache: every step is a whole forward pass."""
  ids = list(prompt_ids)
  for _ in range(max_new_tokens):
    # To one length, behind what counts: causal, so it changes nothing.
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(ids)] = ids
    logits, hidden = (x[0] for x in jax.device_get(forward(decoder, padded)))
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
      'log_probability': chosen[part].sum(),
    }

  result = scores(slice(n - 1, None))
  result['first_token_confidence'] = top1[n - 1]
  if n > 1:
    inside = scores(slice(0, n - 1))
    result |= {f'prompt_{name}': value for name, value in inside.items()}
  return ids[n:], result, hidden[:n].mean(0)


def test_table_and_features_match_brute_force(scored, forward):
  table = pq.read_table(scored.scores)
  features = np.load(scored.features)
  assert table['id'].to_pylist() == [f'p{i}' for i in range(NUM_PROMPTS)]
  assert features.dtype == np.float32
  assert not scored.score_shards.exists()

  prompt_format = formats.load(GOLDEN, template='raw')
  decoder = models.load_decoder(
    GOLDEN, 'float32', make_mesh(1, 1, 1, devices=jax.devices()[:1])
  )
  for row, prompt in enumerate(_prompts()[:6]):
    ids, truncated = prompt_format.encode_prompt(prompt, 99, False)
    assert not truncated
    new, scores, feature = _brute_force(
      decoder, forward, ids, 6, prompt_format.end_ids
    )
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
    'log_probability',
  ]
  assert set(names) == {
    'id',
    'num_prompt_tokens',
    'num_generated_tokens',
    'truncated',
    'generation',
    'near_ties',
    'first_token_confidence',
    *scores,
    *(f'prompt_{name}' for name in scores),
  }


def test_batch_size_and_devices_change_nothing(workdir, scored, monkeypatch):
  """Eight devices and other batches give what one device gave."""
  config = _config()
  config.scoring.batch_tokens = 64
  monkeypatch.setattr(stage.mesh_lib, 'model_mesh', model_mesh)
  scoring.run(config, workdir)
  table, expected = pq.read_table(workdir.scores), pq.read_table(scored.scores)
  assert table['generation'].equals(expected['generation'])
  for name in expected.column_names:
    if pa.types.is_floating(expected[name].type):
      np.testing.assert_allclose(
        table[name].to_numpy(), expected[name].to_numpy(), atol=1e-5, rtol=1e-5
      )
  np.testing.assert_allclose(
    np.load(workdir.features), np.load(scored.features), atol=1e-5
  )


def test_what_the_tokenizer_lacks_is_in_the_manifest(scored):
  counts = store.Manifest(scored).counts('score')
  notes = ' '.join(counts['notes'])
  assert 'no chat template' in notes
  assert 'no pad token' in notes
  assert counts['prompts'] == NUM_PROMPTS
  assert counts['truncated'] == 0
  assert counts['prompts_with_control_tokens'] == 0


def test_prompts_with_control_tokens_are_counted(workdir, capsys):
  texts = ['w3 </s> w4 </s>', 'w3', '<s> w5']
  ids = list(map(str, range(3)))
  store.write_parquet(workdir.pool, pa.table({'id': ids, 'prompt': texts}))
  config = _config()
  config.prompt.control_tokens = 'special'  # The tokenizer has no letters.
  config.scoring.generate = False
  scoring.run(config, workdir)
  counts = store.Manifest(workdir).counts('score')
  assert counts['prompts_with_control_tokens'] == 2
  said = '2 prompts with control tokens, encoded as themselves'
  assert said in capsys.readouterr().out
  assert said in ' '.join(counts['notes'])


@pytest.mark.parametrize(
  ('dtype', 'noisy'), [('bfloat16', True), ('bfloat16_weights', False)]
)
def test_noise_of_half_precision_is_said(workdir, capsys, dtype, noisy):
  config = _config()
  config.model.dtype = dtype
  scoring.run(config, workdir)
  near = pq.read_table(workdir.scores)['near_ties'].to_numpy() > 0
  said = f'{near.mean():.0%} of the continuations have a step'
  assert near.any() or not noisy
  assert (said in capsys.readouterr().out) == noisy
  notes = store.Manifest(workdir).counts('score')['notes']
  assert any(said in note for note in notes) == noisy


def test_rounded_weights_are_said(workdir, capsys):
  """The golden's tensors are float32."""
  config = _config()
  config.scoring.generate = False
  for dtype, rounds in (('bfloat16_weights', True), ('float32', False)):
    config.model.dtype = dtype
    shutil.rmtree(workdir.scores.parent, ignore_errors=True)
    workdir.manifest.unlink(missing_ok=True)
    scoring.run(config, workdir)
    assert ('rounds its weights' in capsys.readouterr().out) == rounds


def test_length_normalized_divides_by_the_steps(scored):
  config = _config()
  config.scoring.length_normalized = True
  root = scored.root / 'normalized'
  shutil.copytree(scored.pool.parent, root / 'pool')
  workdir = store.Workdir(root)
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
    'import tiny_study; from edsft_jax import store, scoring\n'
    'with tiny_study.on_one_device(): scoring.run(test_stage._config(), '
    f'store.Workdir(pathlib.Path({str(workdir.root)!r})))'
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

  written = []
  write = shards.write

  def spy(path, *args):
    written.append(path.name)
    write(path, *args)

  monkeypatch.setattr(stage.shards, 'write', spy)
  scoring.run(_config(), workdir)
  whole = sum(1 for name in left if not name.startswith('.'))
  assert written == ['00000', '00001', '00002'][whole:]
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
    ('prompt.template_arguments', '{"enable_thinking": false}'),
    ('prompt.control_tokens', 'special'),
    ('prompt.date', '2025-01-31'),
    ('model.dtype', 'bfloat16'),
    ('model.dtype', 'bfloat16_weights'),
    ('model.path', str(GOLDEN.with_name('linear_v4'))),
  ],
)
def test_other_inputs_are_refused_by_name(scored, option, value):
  config = _config()
  config.update_from_flattened_dict({option: value})
  with pytest.raises(errors.InputError, match=option.replace('.', r'\.')):
    scoring.run(config, scored)


def test_the_separator_counts_where_it_joins_turns(tmp_path, scored):
  turns = [{'role': 'user', 'content': name} for name in ('w3 w4', 'w5')]
  workdir = store.Workdir(tmp_path)
  store.write_parquet(
    workdir.pool, pa.table({'id': ['q'], 'messages': [turns]})
  )
  config = _config()
  scoring.run(config, workdir)
  config.prompt.separator = ' w6 '
  with pytest.raises(errors.InputError, match=r'prompt\.separator'):
    scoring.run(config, workdir)
  scoring.run(config, scored)  # Of plain prompts it joins nothing.


def test_another_pool_is_refused(workdir, scored):
  shutil.copy(scored.manifest, workdir.manifest)
  store.write_parquet(workdir.pool, pa.table({'id': ['q'], 'prompt': ['w3']}))
  with pytest.raises(errors.InputError, match='pool'):
    scoring.run(_config(), workdir)


def test_batch_tokens_may_change(scored):
  config = _config()
  config.scoring.batch_tokens = 999
  scoring.run(config, scored)


def test_stop_token_ids_end_a_continuation(workdir):
  config = _config()
  config.scoring.stop_token_ids = tuple(
    range(models.read_config(GOLDEN).vocab_size)
  )
  scoring.run(config, workdir)
  table = pq.read_table(workdir.scores)
  assert set(table['num_generated_tokens'].to_pylist()) == {1}


def test_long_prompts_are_truncated_and_flagged(workdir):
  context = models.read_config(GOLDEN).context
  kept = ' '.join(['w3'] * (context - 6))
  prompts = ['w3 w4', kept, kept + ' w9 w9']
  store.write_parquet(
    workdir.pool, pa.table({'id': ['a', 'b', 'c'], 'prompt': prompts})
  )
  config = _config()
  config.scoring.generate = False
  scoring.run(config, workdir)
  table = pq.read_table(workdir.scores)
  assert table['truncated'].to_pylist() == [False, False, True]
  assert table['num_prompt_tokens'].to_pylist()[1:] == [context - 6] * 2
  features = np.load(workdir.features)
  np.testing.assert_allclose(features[1], features[2], atol=1e-6)


def test_without_scores_of_prompts_the_rest_is_the_same(workdir, scored):
  config = _config()
  config.scoring.prompt_scores = False
  scoring.run(config, workdir)
  table, whole = pq.read_table(workdir.scores), pq.read_table(scored.scores)
  names = [n for n in whole.column_names if not n.startswith('prompt_')]
  assert table.column_names == names
  assert table['generation'].equals(whole['generation'])


def test_without_generation_there_are_features_and_prompt_scores(
  workdir, scored
):
  config = _config()
  config.scoring.generate = False
  scoring.run(config, workdir)
  table, whole = pq.read_table(workdir.scores), pq.read_table(scored.scores)
  of_prompts = [n for n in whole.column_names if n.startswith('prompt_')]
  assert table.column_names == [
    'id',
    'num_prompt_tokens',
    'truncated',
    *of_prompts,
  ]
  for name in of_prompts:
    np.testing.assert_allclose(
      table[name].to_numpy(), whole[name].to_numpy(), atol=1e-5, rtol=1e-5
    )
  np.testing.assert_allclose(
    np.load(workdir.features), np.load(scored.features), atol=1e-5
  )


@pytest.mark.parametrize('generate', [True, False])
def test_confidence_from_a_sample_of_each_task(workdir, scored, generate):
  """Tasks of 1, 7 and 13 prompts; the first shard holds none of the last."""
  tasks = ['few'] + ['some'] * 7 + ['many'] * 13
  table = pq.read_table(workdir.pool).append_column('task', [tasks])
  store.write_parquet(workdir.pool, table)
  config = _config()
  config.scoring.generate = generate
  config.scoring.confidence_prompts_per_task = 2
  scoring.run(config, workdir)
  table, whole = pq.read_table(workdir.scores), pq.read_table(scored.scores)
  drawn = np.array(table['confidence_sample'].to_pylist())
  counts = {task: sum(drawn[np.array(tasks) == task]) for task in set(tasks)}
  assert counts == {'few': 1, 'some': 2, 'many': 2}
  for name in ('num_generated_tokens', 'generation', 'min_margin'):
    known = np.array([x is not None for x in table[name].to_pylist()])
    assert known.tolist() == (drawn | generate).tolist()
  for row in np.flatnonzero(drawn):
    assert table['generation'][row] == whole['generation'][row]
    np.testing.assert_allclose(
      table['mean_confidence'][row].as_py(),
      whole['mean_confidence'][row].as_py(),
      rtol=1e-5,
    )
  assert None not in table['prompt_min_margin'].to_pylist()[:1]
  np.testing.assert_allclose(
    np.load(workdir.features), np.load(scored.features), atol=1e-5
  )


def test_a_sample_of_each_task_needs_tasks(workdir):
  config = _config()
  config.scoring.confidence_prompts_per_task = 2
  with pytest.raises(
    errors.InputError, match=r'pool has no tasks.*task_column'
  ):
    scoring.run(config, workdir)


def test_out_of_memory_is_answered_by_a_smaller_batch_once(
  workdir, scored, monkeypatch, capsys
):
  """What a device raises, raised in its place: no CPU runs out so early."""
  tried = []

  class Small(Scorer):
    def __call__(self, *args):
      tried.append(self.batch_tokens)
      if self.batch_tokens > fits:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
      return super().__call__(*args)

  monkeypatch.setattr(loading, 'Scorer', Small)
  fits = 100
  with pytest.raises(errors.InputError, match=r'128 .*scoring\.batch_tokens'):
    scoring.run(_config(), workdir)
  assert tried == [256, 128]
  fits = 128
  scoring.run(_config(), workdir)
  assert tried == [256, 128, 256, 128, 128, 128]
  assert 'batch_tokens=256' in capsys.readouterr().out
  table, expected = pq.read_table(workdir.scores), pq.read_table(scored.scores)
  assert table['generation'].equals(expected['generation'])


def test_out_of_memory_in_one_of_several_processes_ends_all(monkeypatch):
  """It must not continue alone with batches that the others do not run."""

  def fail(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setattr(processes, 'barrier_within', lambda *_: False)
  rate = Rate(console.bar('score', 1, 'prompts'), make_mesh())
  sizes, tokens = [256, 128], [np.ones(7), np.ones(3)]
  with pytest.raises(
    errors.InputError, match=r'256 .*scoring\.batch_tokens.* of 7 tokens'
  ):
    stage._within_memory(lambda _: fail, sizes, tokens, np.ones(2), rate, True)
  assert sizes == [256, 128]


@pytest.mark.parametrize(
  'error', [jax.errors.JaxRuntimeError, ValueError, MemoryError]
)
def test_prompts_that_are_scored_again_are_counted_once(error):
  bar = console.bar('score', 9, 'prompts')
  rate = Rate(bar, make_mesh())

  def scorer(tokens, generate, progress):
    progress(Work(prompts=3, tokens=5))
    if len(sizes) == 2:
      raise error('RESOURCE_EXHAUSTED: out of memory')

  sizes = [256, 128]
  rate(Work(prompts=2))
  stage._within_memory(lambda _: scorer, sizes, [], np.ones(0), rate)
  assert (bar.n, rate.work.prompts, rate.work.tokens) == (5, 5, 5)


def test_numbers_that_are_not_finite_name_the_prompt(workdir):
  with (
    tiny_study.overflowing_models(),
    pytest.raises(errors.InputError, match=r"prompt 'p\d+' .*not finite"),
  ):
    scoring.run(_config(), workdir)
  assert not workdir.scores.exists()
  assert list(workdir.score_shards.glob('*')) == []

  # Nothing was scored with it: another model may take its place.
  config = _config()
  config.model.path = str(GOLDEN.with_name('linear_v4'))
  scoring.run(config, workdir)
  assert workdir.scores.exists()


def test_prompt_scores_that_are_not_finite_name_the_prompt(workdir):
  config = _config()
  config.scoring.generate = False
  # The features come from below what overflows.
  config.scoring.features.layer = 0
  with (
    tiny_study.overflowing_models(),
    pytest.raises(errors.InputError, match=r"prompt 'p\d+' .*not finite"),
  ):
    scoring.run(config, workdir)


def test_a_prompt_of_which_nothing_is_left_is_named(workdir, monkeypatch):
  # As a tokenizer without BOS does that drops what it does not know.
  def encode(self, prompt, *args, **kwargs):
    return ([] if prompt == 'w5' else [3, 4]), False

  monkeypatch.setattr(models.PromptFormat, 'encode_prompt', encode)
  store.write_parquet(
    workdir.pool, pa.table({'id': ['p0', 'p1'], 'prompt': ['w3', 'w5']})
  )
  with pytest.raises(errors.InputError, match=r"prompt 'p1' has no tokens"):
    scoring.run(_config(), workdir)


def test_a_conversation_that_the_template_refuses_is_named(workdir):
  store.write_parquet(
    workdir.pool, pa.table({'id': ['p0', 'p1'], 'prompt': ['w3', 'w4 w5']})
  )
  config = _config()
  config.prompt.template = (
    "{% if 'w4' in messages[0].content %}{{ raise_exception('no w4') }}"
    '{% endif %}{{ messages[0].content }}'
  )
  with pytest.raises(errors.InputError, match=r"prompt 'p1': .*no w4"):
    scoring.run(config, workdir)


def test_more_shards_than_files_may_be_open(workdir):
  parts = [np.full((1, 2), i, np.float32) for i in range(80)]
  folders = [shards.folder(workdir.score_shards, i) for i in range(80)]
  for path, rows in zip(folders, parts, strict=True):
    shards.write(path, pa.table({}), rows)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  in_use = len(os.listdir('/proc/self/fd'))
  resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, hard))
  try:
    shards.join_features(workdir, folders, 0, 1)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  np.testing.assert_array_equal(
    np.load(workdir.features), np.concatenate(parts)
  )


@pytest.mark.parametrize(
  ('option', 'value', 'says'),
  [
    ('scoring.max_new_tokens', 0, 'scoring.max_new_tokens is 0'),
    ('scoring.max_new_tokens', 160, 'context of 160'),
    ('scoring.batch_tokens', 0, 'scoring.batch_tokens'),
    ('scoring.shard_prompts', -1, 'scoring.shard_prompts'),
    ('scoring.stop_token_ids', (64,), 'scoring.stop_token_ids has 64'),
    ('scoring.stop_token_ids', (1.5,), 'scoring.stop_token_ids has 1.5'),
    ('mesh.data', 7, 'does not fit 1 devices'),
    ('scoring.features.pooling', 'max', "'max' is unknown"),
    ('scoring.features.layer', 3, 'scoring.features.layer is 3'),
    ('prompt.template', 'alpaca', 'alpaca'),
    ('prompt.truncate', 'left', 'left'),
    ('prompt.template_arguments', '[]', 'is not a JSON object'),
    ('prompt.control_tokens', 'keep', "'keep' is not one of"),
    ('prompt.date', '2025-02-30', "'2025-02-30' is not a date"),
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
  workdir = store.Workdir(tmp_path)
  with pytest.raises(errors.InputError, match='run the pool stage first'):
    scoring.check(_config(), workdir, frozenset())
  scoring.check(_config(), workdir, frozenset({'pool'}))
