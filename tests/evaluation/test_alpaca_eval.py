"""alpaca_eval in a study: outputs, judges, what is kept and what is asked."""

import json
import shutil

import engine_server
import judge_server
from judge_server import said, serving
import numpy as np
import pytest
from safetensors import numpy as numpy_files
import tiny_study

from edsft_jax import errors, evaluation, reporting, store
from edsft_jax import mesh as mesh_lib
from edsft_jax.evaluation import pairs as pairs_lib
from edsft_jax.evaluation.endpoint import KEY, Endpoint
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.judges import EndpointJudge, ModelJudge
from edsft_jax.evaluation.pairs import Pair
from edsft_jax.evaluation.tasks import alpaca_eval
from edsft_jax.evaluation.verdicts import Answers, judge_pairs

RANDOM = ('random-k5-seed0', 'random-k9-seed0')
OTHER = ('min_margin-k5-seed0', 'min_margin-k9-seed0')
BASE = 'no_finetuning-k0-seed0'
CELLS = (BASE, *RANDOM, *OTHER)
TASK = 'alpaca_eval'
PROMPT = JudgePrompt()
INSTRUCTIONS = [
  {'instruction': f'w{i} w{i + 7} w{3 * i}', 'dataset': 'ab'[i % 2]}
  for i in range(3, 10)
]


@pytest.fixture(scope='module', autouse=True)
def one_device():
  with tiny_study.on_one_device():
    yield


def _config(root, **options):
  config = tiny_study.config()
  config.selection.strategies = ('random', 'min_margin')
  config.finetuning.method = 'full'
  config.evaluation.tasks = (TASK,)
  config.report.metric = f'{TASK}.win_rate'
  c = config.evaluation.alpaca_eval
  c.path = str(root / 'instructions.json')
  c.max_new_tokens = 5
  c.update(options)
  return config


def _endpoint(workdir, url, **options):
  options = {'judge': 'endpoint', 'base_url': url, 'model': 'judge', **options}
  return _config(workdir.root.parent, **options)


@pytest.fixture(scope='module')
def answered(tmp_path_factory) -> store.Workdir:
  """A study whose cells have outputs."""
  root = tmp_path_factory.mktemp('answered')
  (root / 'instructions.json').write_text(json.dumps(INSTRUCTIONS))
  workdir = tiny_study.make(root / 'study')
  for seed, cell in enumerate((*RANDOM, *OTHER)):
    _finetune(workdir.run(cell).model, seed)
  evaluation.run(_config(root), workdir)
  return workdir


def _finetune(path, seed):
  """A model whose weights differ a little from the pretrained ones."""
  shutil.copytree(tiny_study.MODEL, path)
  weights = numpy_files.load_file(path / 'model.safetensors')
  rng = np.random.default_rng(seed)
  for name, value in weights.items():
    noise = rng.normal(scale=0.3 * value.std(), size=value.shape)
    weights[name] = (value + noise).astype(value.dtype)
  numpy_files.save_file(weights, path / 'model.safetensors')


@pytest.fixture
def workdir(answered, tmp_path) -> store.Workdir:
  """A copy that a test may change."""
  shutil.copytree(answered.root.parent, tmp_path / 'copy')
  return store.Workdir(tmp_path / 'copy' / 'study')


def _likes_long(request):
  """Prefers longer outputs, the first one of equally long ones."""
  first, second = judge_server.outputs_of(request)
  return 200, said(0.05 * (len(second) - len(first)) - 0.5)


def _outputs(workdir, cell):
  return json.loads(workdir.run(cell).outputs(TASK).read_text())


def _eval(workdir, cell):
  return store.read_evaluation(workdir.run(cell).evaluation(TASK))


def test_outputs_are_in_the_form_of_alpaca_eval(answered):
  seen = set()
  for cell in CELLS:
    rows = _outputs(answered, cell)
    fields = ('instruction', 'dataset')
    assert [{k: row[k] for k in fields} for row in rows] == INSTRUCTIONS
    assert {row['generator'] for row in rows} == {cell}
    assert all(isinstance(row['output'], str) for row in rows)
    seen.add(json.dumps([row['output'] for row in rows]))
    assert not answered.run(cell).evaluation(TASK).exists()
  assert len(seen) == 5


def test_strategies_are_judged_against_random(workdir, capsys):
  with serving(_likes_long) as url:
    config = _endpoint(workdir, url, price_per_million_tokens=1e4)
    evaluation.run(config, workdir)
  counts = [_eval(workdir, cell)['counts'] for cell in OTHER]
  tokens = sum(count['judge_tokens'] for count in counts)
  printed = capsys.readouterr().out
  assert f'{tokens:,} tokens, which cost {tokens / 100:,.2f}' in printed
  for cell in RANDOM:
    assert _eval(workdir, cell)['metrics']['win_rate']['value'] == 50
  for cell, random_cell in zip(OTHER, RANDOM, strict=True):
    found = _eval(workdir, cell)
    assert found['judge'] == 'judge'
    assert found['reference'] == random_cell
    rows = store.read_jsonl(workdir.run(cell).items(TASK))
    own, others = (
      {row['instruction']: row['output'] for row in _outputs(workdir, name)}
      for name in (cell, random_cell)
    )
    assert len(rows) == len(own)
    for row, (instruction, output) in zip(rows, own.items(), strict=True):
      reference = others[instruction]
      assert (row['prediction'], row['reference']) == (output, reference)
      # The mean of both orders; the bias of position is not linear.
      difference = 0.05 * (len(output) - len(reference))
      both = [
        1 / (1 + np.exp(-(difference - 0.5))),
        1 / (1 + np.exp(-(difference + 0.5))),
      ]
      expected = 0.5 if output == reference else np.mean(both)
      assert row['win_rate'] == pytest.approx(100 * expected)
    for name in ('win_rate', 'length_controlled_win_rate'):
      metric = found['metrics'][name]
      assert metric['larger_is_better']
      values = [row[name] for row in rows]
      assert metric['value'] == pytest.approx(np.mean(values))
    assert set(found['by_category']) == {'a', 'b'}
    ties = sum(own[i] == others[i] for i in own)
    assert found['counts']['pairs_in_both_orders'] == len(own) - ties
    assert found['counts']['judge_tokens'] == 14 * (len(own) - ties)
    assert found['counts']['failed_pairs'] == 0
  # Random has no cell of this budget.
  assert not workdir.run(BASE).evaluation(TASK).exists()


def test_a_file_is_a_reference_for_all_cells(workdir):
  path = workdir.root.parent / 'reference.json'
  rows = [
    {'instruction': row['instruction'], 'output': 'x' * 30, 'generator': 'gpt'}
    for row in reversed(INSTRUCTIONS)
  ]
  path.write_text(json.dumps(rows))
  with serving(_likes_long) as url:
    config = _endpoint(workdir, url, reference=str(path))
    evaluation.run(config, workdir)
  assert {_eval(workdir, cell)['reference'] for cell in CELLS} == {'gpt'}
  rates = {_eval(workdir, c)['metrics']['win_rate']['value'] for c in CELLS}
  assert len(rates) > 2
  path.write_text(json.dumps(rows[1:]))
  with pytest.raises(errors.InputError, match='no output for the instruction'):
    evaluation.run(config, workdir)
  path.write_text(json.dumps([*rows[1:], {**rows[0], 'output': 'other'}]))
  with pytest.raises(errors.InputError, match=r'alpaca_eval\.reference'):
    evaluation.run(config, workdir)


def test_an_interrupted_run_asks_only_for_what_is_missing(workdir, tmp_path):
  """And ends with the same bytes as an uninterrupted one."""
  whole = store.Workdir(tmp_path / 'whole' / 'study')
  shutil.copytree(workdir.root.parent, whole.root.parent)
  asked = []

  def answer(request, limit):
    asked.append(judge_server.text_of(request))
    if len(asked) > limit:
      # The server dies: nothing more is answered.
      return 403, {}
    return _likes_long(request)

  with serving(lambda request: answer(request, 10_000)) as url:
    evaluation.run(_endpoint(whole, url), whole)
  total = len(asked)
  assert len(set(asked)) == total > 10
  asked.clear()
  with serving(lambda request: answer(request, 6)) as url:
    stopped = pytest.raises(errors.InputError, match='status 403')
    with stopped:
      evaluation.run(_endpoint(workdir, url, num_parallel=1), workdir)
  kept = len(workdir.judge_answers.read_text().splitlines())
  assert kept == 5  # And the probe.
  asked.clear()
  with serving(lambda request: answer(request, 10_000)) as url:
    evaluation.run(_endpoint(workdir, url), workdir)
    assert len(asked) == total - kept
    asked.clear()
    evaluation.run(_endpoint(workdir, url), workdir)
    assert not asked
  for cell in (*RANDOM, *OTHER):
    for file in ('items.jsonl', 'eval.json', 'annotations.json'):
      paths = (
        each.run(cell).evaluation(TASK).with_name(file)
        for each in (workdir, whole)
      )
      assert len({path.read_bytes() for path in paths}) == 1


def test_a_cell_with_failures_has_no_win_rate_until_they_are_answered(
  workdir, capsys
):
  broken = {INSTRUCTIONS[0]['instruction']}

  def answer(request):
    if judge_server.instruction_of(request) in broken:
      return 200, {'choices': [{'message': {'content': None}}]}
    return _likes_long(request)

  with serving(answer) as url:
    config = _endpoint(workdir, url)
    evaluation.run(config, workdir)
    printed = capsys.readouterr().out
    assert 'the judge failed on 2 pairs' in printed
    assert "answer 'None'" in printed
    assert [workdir.run(c).evaluation(TASK).exists() for c in OTHER] == [0, 0]
    config.evaluation.alpaca_eval.leave_out_failed = True
    evaluation.run(config, workdir)
    assert '1 instruction left out for all' in capsys.readouterr().out
    for cell in (*RANDOM, *OTHER):
      assert len(store.read_jsonl(workdir.run(cell).items(TASK))) == 6
    assert _eval(workdir, OTHER[0])['counts']['failed_pairs'] == 1
    # Asked again, and not left out this time.
    broken.clear()
    config.evaluation.alpaca_eval.leave_out_failed = False
    evaluation.run(config, workdir)
  for cell in (*RANDOM, *OTHER):
    assert len(store.read_jsonl(workdir.run(cell).items(TASK))) == 7


def test_annotations_are_read_back(workdir, capsys):
  """Ours, and those that alpaca_eval makes of outputs.json."""
  with serving(_likes_long) as url:
    evaluation.run(_endpoint(workdir, url), workdir)
  before = {cell: _eval(workdir, cell)['metrics'] for cell in OTHER}
  for cell in (*RANDOM, *OTHER):
    workdir.run(cell).evaluation(TASK).unlink()
  config = _config(workdir.root.parent, judge='annotations')
  workdir.run(OTHER[1]).annotations(TASK).rename(workdir.root / 'kept.json')
  evaluation.run(config, workdir)
  assert '1 cell without annotations.json' in capsys.readouterr().out
  (workdir.root / 'kept.json').rename(workdir.run(OTHER[1]).annotations(TASK))
  evaluation.run(config, workdir)
  for cell in OTHER:
    found = _eval(workdir, cell)
    assert found['judge'] == 'judge'
    for name, metric in before[cell].items():
      value = found['metrics'][name]['value']
      assert value == pytest.approx(metric['value'])


def test_other_judges_are_not_mixed(workdir):
  with serving(_likes_long) as url:
    evaluation.run(_endpoint(workdir, url), workdir)
    with pytest.raises(errors.InputError, match=r'alpaca_eval\.judge'):
      evaluation.run(_endpoint(workdir, url, model='judge-2024'), workdir)
    workdir.run(OTHER[0]).evaluation(TASK).unlink()

  def word(request):
    return 200, {'choices': [{'message': {'content': 'm'}}]}

  refused = pytest.raises(errors.InputError, match='now answers by word')
  with serving(word) as url, refused:
    evaluation.run(_endpoint(workdir, url), workdir)


def test_the_report_shows_win_rates(workdir):
  with serving(_likes_long) as url:
    config = _endpoint(workdir, url)
    evaluation.run(config, workdir)
  store.Manifest(workdir).finish('evaluate', {})
  reporting.run(config, workdir)
  page = workdir.report.read_text()
  for label in ('Win rate', 'Length-controlled win rate'):
    assert label in page


def test_a_key_is_written_nowhere(workdir, monkeypatch):
  monkeypatch.setenv(KEY, 'a-secret')
  with serving(_likes_long) as url:
    evaluation.run(_endpoint(workdir, url), workdir)
  for path in workdir.root.rglob('*'):
    assert not path.is_file() or b'a-secret' not in path.read_bytes(), path


def _judge_by_model(workdir, shared, **options):
  model = str(shared / 'models' / 'stories260K')
  config = _config(workdir.root.parent, judge=model, **options)
  config.evaluation.batch_tokens = 2048
  evaluation.run(config, workdir)


def test_a_model_of_our_own_is_a_judge(shared, workdir, tmp_path):
  """Its preferences are those of its next-token probabilities."""
  again = store.Workdir(tmp_path / 'again' / 'study')
  shutil.copytree(workdir.root.parent, again.root.parent)
  for each in (workdir, again):
    path = each.root.parent / 'instructions.json'
    path.write_text(json.dumps(INSTRUCTIONS[:2]))
    for cell in CELLS:
      each.run(cell).generation(TASK).unlink()
  _judge_by_model(workdir, shared)
  found = _eval(workdir, OTHER[0])
  assert found['judge'] == 'stories260K'
  assert found['preferences'] == 'likelihoods'
  assert found['counts']['pairs_in_both_orders'] > 0
  _judge_by_model(again, shared)
  for cell in OTHER:
    paths = (each.run(cell).items(TASK) for each in (workdir, again))
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'path': ''}, r'alpaca_eval\.path is empty'),
    ({'path': 'none.json'}, r'none\.json'),
    ({'limit': -1}, r'limit is -1: must be at least 0'),
    ({'max_new_tokens': 0}, r'max_new_tokens is 0: give 1 to'),
    ({'judge': 'endpont'}, r'alpaca_eval\.judge: .*endpont'),
    ({'judge': 'endpoint'}, r'evaluation\.alpaca_eval\.base_url is empty'),
    (
      {'judge': 'endpoint', 'base_url': 'localhost/v1', 'model': 'x'},
      r'base_url=localhost/v1 is not an address',
    ),
    (
      {'judge': 'endpoint', 'base_url': 'http://localhost/v1'},
      r'evaluation\.alpaca_eval\.model is empty',
    ),
    ({'reference': 'none.json'}, r'none\.json cannot be read'),
    ({'prompt_path': 'none.txt'}, r'prompt_path=none\.txt cannot be read'),
    ({'gamed_path': 'none.csv'}, r'gamed_path=none\.csv cannot be read'),
    ({'num_parallel': 0}, r'num_parallel is 0'),
    ({'timeout': 0.0}, r'timeout is 0\.0'),
  ],
)
def test_bad_options_are_one_line(answered, options, message):
  config = _config(answered.root.parent, **options)
  with pytest.raises(errors.InputError, match=message):
    alpaca_eval.AlpacaEval.check(config, answered, frozenset())


def test_random_must_be_there_to_compare_with(answered):
  config = _config(answered.root.parent)
  config.selection.strategies = ('min_margin',)
  with pytest.raises(errors.InputError, match=r"'random', which is not in"):
    alpaca_eval.AlpacaEval.check(config, answered, frozenset())
  config.selection.strategies = ('random', 'min_margin')
  config.study.random_seeds = (1, 2)
  with pytest.raises(errors.InputError, match=r'random_seeds has no 0'):
    alpaca_eval.AlpacaEval.check(config, answered, frozenset())


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([{'instruction': 'a'}, {'instruction': 'a'}], 'of another row'),
    ([{'instruction': 'Translate.', 'input': 'Hi'}], r"an input \('Hi'\)"),
    ([{'instruction': ' '}], 'has no text as instruction: fill it in'),
    ([{'instruction': 3}], 'has no text as instruction: fill it in'),
    ([{'instructions': 'a'}], "no field 'instruction'.*did you mean"),
    ([], 'no records'),
  ],
)
def test_bad_instructions_are_one_line(tmp_path, rows, message):
  path = tmp_path / 'instructions.json'
  path.write_text(json.dumps(rows))
  with pytest.raises(errors.InputError, match=message):
    alpaca_eval.read(str(path), 0)


def test_any_file_with_instructions_is_read(tmp_path):
  path = tmp_path / 'prompts.jsonl'
  path.write_text('{"id": "x", "prompt": "Name a colour.", "more": 1}\n')
  assert alpaca_eval.read(str(path), 0) == [
    {'id': 'x', 'instruction': 'Name a colour.', 'dataset': None}
  ]


def test_damaged_outputs_are_one_line(workdir):
  path = workdir.run(OTHER[0]).outputs(TASK)
  path.write_text('[{')
  with pytest.raises(errors.InputError, match=r'outputs\.json cannot be read'):
    pairs_lib.read_outputs(path, 'evaluate')


PAIRS = [
  Pair('Tell a story.', 'Once upon a time there was a cat.', 'No.'),
  Pair('What is ice?', 'Frozen water.', 'Ice is what you find in a lake.'),
  Pair('Say hello.', 'Hello!', 'Hello, M or m, {output_1}!'),
]


def _by_engine(url, tmp_path):
  """Verdicts of a model behind our test server, and how it answered."""
  endpoint = Endpoint(url, 'judge', backoff=0.0)
  judge = EndpointJudge(endpoint, PROMPT)
  answers = Answers(tmp_path / 'answers.jsonl')
  return judge_pairs(judge, PROMPT, PAIRS, answers), judge.form


@pytest.mark.parametrize(
  ('max_candidates', 'form'), [(512, 'log-probabilities'), (5, 'choice')]
)
def test_our_engine_behind_a_server_is_the_judge_that_it_is_at_home(
  shared, forward, tmp_path, max_candidates, form
):
  path = shared / 'models' / 'stories260K'
  mesh = mesh_lib.make_mesh()
  at_home = judge_pairs(
    ModelJudge(str(path), 'float32', mesh, 2048),
    PROMPT,
    PAIRS,
    Answers(tmp_path / 'at_home.jsonl'),
  )
  model = engine_server.Model(path, forward, max_candidates)
  with serving(model) as url:
    found, how = _by_engine(url, tmp_path)
  assert how == form
  for ours, theirs in zip(at_home, found, strict=True):
    assert ours.consistent == theirs.consistent
    if form == 'log-probabilities':
      assert ours.preference == pytest.approx(theirs.preference, abs=1e-4)
    else:
      assert theirs.preference in (1.0, 1.5, 2.0)


def test_a_question_longer_than_the_judges_context_fails(shared, tmp_path):
  path = shared / 'models' / 'stories260K'
  judge = ModelJudge(str(path), 'float32', mesh_lib.make_mesh(), 2048)
  pairs = [PAIRS[0], Pair('Tell more.', 'word ' * 2000, 'No.')]
  answers = Answers(tmp_path / 'answers.jsonl')
  good, failed = judge_pairs(judge, PROMPT, pairs, answers)
  assert 1 < good.preference < 2
  assert failed.preference is None
  assert "longer than the judge's context" in failed.reason
