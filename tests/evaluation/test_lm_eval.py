"""Our tasks and adapter against lm-evaluation-harness, item by item.

Runs where it is installed (pip install 'edsft_jax[lm-eval]'); the comparison
with its own backend also needs torch.
"""

import gzip
import json
import pathlib
import subprocess
import sys

import chat_models
from flax import nnx
import formats
import jax
import numpy as np
import pytest
import tiny_study

from configs import default
from edsft_jax import errors, evaluation, models, store
from edsft_jax.evaluation import runner, tasks
from edsft_jax.evaluation.task import TaskInputs
from edsft_jax.evaluation.tasks import bbh
from edsft_jax.mesh import make_mesh
from scripts import harness_tasks

pytestmark = pytest.mark.slow

lm_eval = pytest.importorskip('lm_eval')


@pytest.fixture(scope='module')
def model(shared):
  return shared / 'models' / 'stories260K'


@pytest.fixture(scope='module')
def adapter(model):
  from edsft_jax.evaluation import lm_eval as ours

  return ours.EdsftLM(str(model))


def _rows(shared, name) -> list[dict]:
  with gzip.open(shared / 'data' / f'{name}.jsonl.gz', 'rt') as f:
    return [json.loads(line) for line in f]


def _harness(model, specs, **options) -> dict[str, list[dict]]:
  """Task -> the harness's samples, in the order of the questions."""
  from lm_eval.tasks import TaskManager

  found = lm_eval.simple_evaluate(
    model,
    tasks=[dict(spec) for spec in specs],
    bootstrap_iters=0,
    task_manager=TaskManager(include_defaults=False),
    log_samples=True,
    **options,
  )['samples']
  return {
    task: sorted(samples, key=lambda sample: sample['doc_id'])
    for task, samples in found.items()
  }


def _our_rows(name, model, **options) -> list[dict]:
  """Rows of items.jsonl of the base model."""
  config = default.get_config()
  config.model.path = str(model)
  config.prompt.template = 'raw'
  config.evaluation[name].update(options)
  mesh = make_mesh(devices=jax.devices()[:1])
  decoder = models.load_decoder(model, 'float32', mesh)
  prompt_format = formats.load(model, template='raw')
  task = tasks.find(name, config)(
    TaskInputs(config, None, prompt_format, decoder.config.context)
  )
  run = runner.Runner(task, decoder, prompt_format, mesh, 8192)
  responses = run(nnx.split(decoder)[1])
  return [
    {'id': item.id, 'task': item.task, **task.score(item, given)}
    for item, given in zip(task.items, responses, strict=True)
  ]


def _save(tmp_path, name, rows) -> str:
  store.write_jsonl(tmp_path / f'{name}.jsonl', rows)
  return str(tmp_path / f'{name}.jsonl')


@pytest.mark.parametrize('shots', [0, 1])
def test_mmlu_equals_the_harness(shared, model, adapter, tmp_path, shots):
  subjects = ('global_facts', 'marketing')
  test, dev = (
    [row for row in _rows(shared, name) if row['subject'] in subjects]
    for name in ('mmlu_test', 'mmlu_dev')
  )
  # Two questions fit the small model's context: neither side drops anything.
  short = [row for row in test if len(row['question']) < 60]
  dev.sort(key=lambda row: len(json.dumps(row)))
  questions = [
    row for s in subjects for row in [r for r in short if r['subject'] == s][:5]
  ]
  specs = harness_tasks.mmlu(tmp_path, questions, dev)
  theirs = _harness(adapter, specs, num_fewshot=shots)
  ours = _our_rows(
    'mmlu',
    model,
    path=_save(tmp_path, 'test', questions),
    shots_path=_save(tmp_path, 'dev', dev),
    shots=shots,
  )
  assert len(ours) == 10
  assert {row['num_shots'] for row in ours} == {shots}
  for subject in subjects:
    rows = [row for row in ours if row['task'] == subject]
    samples = theirs[f'mmlu_{subject}']
    for row, sample in zip(rows, samples, strict=True):
      np.testing.assert_allclose(
        row['log_likelihoods'],
        [float(found[0]) for found in sample['filtered_resps']],
        rtol=1e-5,
      )
      assert row['accuracy'] == sample['acc']


def test_prompts_of_bbh_are_the_harness_s(shared, adapter, tmp_path):
  """All 27 tasks, reasoned, direct and without examples."""
  from lm_eval.tasks import TaskManager

  path = str(shared / 'data' / 'bbh_cot_prompts.json')
  worked = bbh.read_worked(path)
  questions = [
    {'task': task, 'input': 'How so?', 'target': 'x'} for task in worked
  ]
  manager = TaskManager(include_defaults=False)
  for variant, cot, shots in (
    ('bbh_cot_fewshot', True, 3),
    ('bbh_fewshot', False, 3),
    ('bbh_zeroshot', False, 0),
  ):
    specs = harness_tasks.bbh(tmp_path / variant, questions, variant)
    loaded = manager.load(specs)['tasks']
    assert len(loaded) == 27
    for task in worked:
      harness = loaded[f'{variant}_{task}']
      expected = harness.fewshot_context(harness.eval_docs[0], shots)
      found = bbh.prompt('lm_eval', cot, 'How so?', worked[task], shots)
      assert found.text(shots) == expected, (variant, task)


def test_bbh_equals_the_harness(shared, model, adapter, tmp_path):
  """Answers of at most 20 tokens, since the small model rambles."""
  questions = [
    row
    for row in _rows(shared, 'bbh')
    if row['task'] == 'boolean_expressions' and len(row['input']) < 40
  ][:6]
  specs = harness_tasks.bbh(tmp_path, questions, 'bbh_zeroshot')
  gen_kwargs = {'max_gen_toks': 20}
  theirs = _harness(adapter, specs, gen_kwargs=gen_kwargs)
  samples = theirs['bbh_zeroshot_boolean_expressions']
  ours = _our_rows(
    'bbh',
    model,
    path=_save(tmp_path, 'test', questions),
    shots_path=str(shared / 'data' / 'bbh_cot_prompts.json'),
    shots=0,
    cot=False,
    max_new_tokens=20,
  )
  for name, prediction, metric in (
    ('strict-match', 'prediction', 'exact_match'),
    ('flexible-extract', 'flexible_prediction', 'flexible_match'),
  ):
    found = [sample for sample in samples if sample['filter'] == name]
    for row, sample in zip(ours, found, strict=True):
      assert row[prediction] == sample['filtered_resps'][0]
      assert row[metric] == sample['exact_match']


def test_gsm8k_equals_the_harness(shared, model, adapter, tmp_path):
  rows = [
    {'question': row['prompt'], 'answer': row['response']}
    for row in _rows(shared, 'gsm8k_test')
    if len(row['prompt']) + len(row['response']) < 260
  ]
  questions, train = rows[:5], rows[5:15]
  specs = harness_tasks.gsm8k(tmp_path, questions, train)
  theirs = _harness(
    adapter, specs, num_fewshot=1, gen_kwargs={'max_gen_toks': 16}
  )['gsm8k']
  ours = _our_rows(
    'gsm8k',
    model,
    path=_save(tmp_path, 'test', questions),
    shots_path=_save(tmp_path, 'train', train),
    shots=1,
    max_new_tokens=16,
  )
  for name, metric in (
    ('strict-match', 'strict_match'),
    ('flexible-extract', 'flexible_match'),
  ):
    samples = [sample for sample in theirs if sample['filter'] == name]
    for row, sample in zip(ours, samples, strict=True):
      assert row[metric] == sample['exact_match']
      assert row['text'] == sample['resps'][0][0]


@pytest.mark.parametrize('name', ['stories260K', 'stories3M', 'byte_level'])
def test_pairs_have_the_ids_of_the_harness(shared, tmp_path, name):
  hf = pytest.importorskip('transformers')
  from lm_eval.api.model import TemplateLM

  class Theirs(TemplateLM):
    eot_token_id = 2

    def tok_encode(self, string, add_special_tokens=None, **unused):
      return tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, **unused): ...
    def loglikelihood_rolling(self, requests, disable_tqdm=False): ...
    def generate_until(self, requests, disable_tqdm=False): ...

  path = shared / 'models' / name
  if name == 'byte_level':
    path = tmp_path / 'model'
    chat_models.write(chat_models.CHAT_MODELS['smollm2'], path)
  tokenizer = hf.AutoTokenizer.from_pretrained(path)
  prompt_format = formats.load(path)
  for context, continuation in (
    ('Answer:', ' A'),
    ('Answer: ', 'A'),
    ('Once upon\n\n', 'a time'),
    ('x', 'yz'),
    ('He met Vincen', 't Delerm'),
  ):
    assert prompt_format.encode_pair(context, continuation) == (
      Theirs()._encode_pair(context, continuation)
    )


def test_the_command_knows_the_model():
  command = [sys.executable, '-m', 'edsft_jax.evaluation.lm_eval', '--help']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_rolling_and_empty_contexts_equal_the_harness_s(model, adapter):
  torch_backend = pytest.importorskip('torch') and pytest.importorskip(
    'lm_eval.models.huggingface'
  )
  from lm_eval.api.instance import Instance

  theirs = torch_backend.HFLM(
    str(model), device='cpu', dtype='float32', max_length=40
  )
  from edsft_jax.evaluation import lm_eval as ours

  short = ours.EdsftLM(str(model), max_length=40)
  text = 'Once upon a time there was a little girl named Lily. ' * 6

  def requests(kind, *args):
    return [Instance(kind, {}, args, 0)]

  np.testing.assert_allclose(
    short.loglikelihood_rolling(requests('loglikelihood_rolling', text)),
    theirs.loglikelihood_rolling(requests('loglikelihood_rolling', text)),
    rtol=1e-4,
  )
  for context, continuation in (('', 'Once upon'), (text, ' She was')):
    found, expected = (
      lm.loglikelihood(requests('loglikelihood', context, continuation))[0]
      for lm in (short, theirs)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    assert found[1] == expected[1]


CHOICE = """
task: choose_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}}}}}
test_split: test
training_split: train
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
num_fewshot: 1
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITE = """
task: write_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["w7"], max_gen_toks: 5, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def _run_both(config, workdir, names) -> dict:
  """Evaluates the study; returns what the harness finds with our adapter."""
  from lm_eval.tasks import TaskManager

  from edsft_jax.evaluation import lm_eval as ours

  with tiny_study.on_one_device():
    evaluation.run(config, workdir)
    adapter = ours.EdsftLM(str(tiny_study.MODEL))
  folder = config.evaluation.lm_eval.include_path
  return lm_eval.simple_evaluate(
    adapter,
    tasks=list(names),
    bootstrap_iters=0,
    task_manager=TaskManager(include_path=folder),
  )


def test_numbers_that_overflow_are_an_error(model):
  from lm_eval.api.instance import Instance

  from edsft_jax.evaluation import lm_eval as ours

  with tiny_study.overflowing_models():
    adapter = ours.EdsftLM(str(model))
  options = {'until': [], 'max_gen_toks': 3}
  for call, args in (
    (adapter.loglikelihood, ('Once upon', ' a time')),
    (adapter.generate_until, ('Once upon', options)),
  ):
    request = Instance(call.__name__, {}, args, 0)
    with pytest.raises(errors.InputError, match='not finite on 1 request:'):
      call([request])


def test_any_task_of_the_harness_runs_in_a_study(tmp_path):
  """Named in evaluation.tasks, with the harness's own numbers."""

  rng = np.random.default_rng(1)
  rows = [
    {
      'question': ' '.join(f'w{i}' for i in rng.integers(3, 60, 4)),
      'choices': [f'w{i}' for i in rng.integers(3, 60, 3)],
      'answer': int(rng.integers(3)),
    }
    for _ in range(6)
  ]
  file = _save(tmp_path, 'words', rows)
  folder = tmp_path / 'tasks'
  folder.mkdir()
  (folder / 'choice.yaml').write_text(CHOICE.format(file=file))
  (folder / 'write.yaml').write_text(WRITE.format(file=file))
  config = tiny_study.config()
  names = ('choose_words', 'write_words')
  config.evaluation.tasks = tuple(f'lm_eval:{name}' for name in names)
  config.evaluation.lm_eval.include_path = str(folder)
  workdir = tiny_study.make(tmp_path / 'run')
  theirs = _run_both(config, workdir, names)['samples']
  run = workdir.run('no_finetuning-k0-seed0')
  for name, metrics in (
    ('choose_words', ('acc', 'acc_norm')),
    ('write_words', ('exact_match',)),
  ):
    rows = store.read_jsonl(run.items(f'lm_eval:{name}'))
    samples = sorted(theirs[name], key=lambda sample: sample['doc_id'])
    assert len(rows) == 6
    for row, sample in zip(rows, samples, strict=True):
      for metric in metrics:
        assert row[metric] == sample[metric]
    result = store.read_evaluation(run.evaluation(f'lm_eval:{name}'))
    assert set(result['metrics']) == set(metrics)
  config.evaluation.tasks = ('lm_eval:chose_words',)
  with pytest.raises(errors.InputError, match="did you mean 'choose_words'"):
    evaluation.run(config, workdir)


# The harness's own task, with prompts from a file and shorter answers.
IFEVAL = """task: ifeval_short
include: {ifeval}
dataset_path: json
dataset_kwargs:
  data_files: {file}
generation_kwargs:
  until: []
  do_sample: false
  temperature: 0.0
  max_gen_toks: 20
"""


def test_ifeval_is_that_of_the_harness(tmp_path):
  """Over prompts, and over instructions, of which prompts have 1 to 3."""
  pytest.importorskip('langdetect')

  words = 'length_constraints:number_words'
  lists = [
    [('punctuation:no_comma', {})],
    [
      (
        words,
        {'relation': 'at least', 'num_words': 5},
      ),
      ('startend:quotation', {}),
    ],
    [
      (
        words,
        {'relation': 'less than', 'num_words': 40},
      ),
      ('keywords:forbidden_words', {'forbidden_words': ['zebra']}),
      ('punctuation:no_comma', {}),
    ],
  ]
  docs = [
    {
      'key': i,
      'prompt': f'w{i + 5} w{2 * i + 9}',
      'instruction_id_list': [name for name, _ in some],
      'kwargs': [arguments for _, arguments in some],
    }
    for i, some in enumerate(lists)
  ]
  folder = tmp_path / 'tasks'
  folder.mkdir()
  yaml = pathlib.Path(lm_eval.__file__).parent / 'tasks/ifeval/ifeval.yaml'
  text = IFEVAL.format(ifeval=yaml, file=_save(tmp_path, 'docs', docs))
  (folder / 'ifeval.yaml').write_text(text)
  config = tiny_study.config()
  config.evaluation.tasks = ('lm_eval:ifeval_short',)
  config.evaluation.lm_eval.include_path = str(folder)
  workdir = tiny_study.make(tmp_path / 'run')
  found = _run_both(config, workdir, ['ifeval_short'])
  theirs = found['results']['ifeval_short']
  path = workdir.run('no_finetuning-k0-seed0').evaluation(
    'lm_eval:ifeval_short'
  )
  found = store.read_evaluation(path)['metrics']
  assert set(found) == {
    f'{level}_level_{kind}_acc'
    for level in ('prompt', 'inst')
    for kind in ('strict', 'loose')
  }
  for name, metric in found.items():
    assert metric['value'] == pytest.approx(theirs[f'{name},none'])
  # Not the mean over prompts of their shares of instructions.
  rows = store.read_jsonl(path.with_name('items.jsonl'))
  assert [row['num_inst_level_strict_acc'] for row in rows] == [1, 2, 3]
