"""A whole study whose answers are bought: parts, rejections, corrections."""

import json

import pytest
import synthetic_study
import tiny_study

from edsft_jax import pipeline, store, study
from edsft_jax.evaluation import stage as evaluation_stage
from edsft_jax.reporting import results

OPTIONS = {
  'study.budgets': (2, 4),
  'evaluation.limit': 2,
  'evaluation.max_new_tokens': 2,
  'finetuning.epochs': 1,
}
# Random needs no scores.
STAGES = [name for name in pipeline.STAGES if name != 'score']


@pytest.fixture
def options(tmp_path):
  """A pool without answers, and a held-out file."""
  files = {
    'pool': [{'prompt': f'w{i + 3} w4 w5'} for i in range(20)],
    'heldout': [
      {'prompt': f'w{i + 40} w4 w6', 'response': 'w7'} for i in range(3)
    ],
  }
  for name, rows in files.items():
    store.write_jsonl(tmp_path / f'{name}.jsonl', rows)
  return OPTIONS | {
    'pool.path': str(tmp_path / 'pool.jsonl'),
    'pool.heldout_path': str(tmp_path / 'heldout.jsonl'),
  }


def deliver(workdir, name, answers, rejected=()):
  """Answers some prompts of the todo for Label Studio, in its export form."""
  path = workdir.todo.with_name('todo.label_studio.json')
  tasks = json.loads(path.read_text())
  for task in tasks:
    prompt_id = task['data']['prompt_id']
    results = []
    if prompt_id in answers:
      value = {'text': [answers[prompt_id]]}
      results = [{'from_name': 'response', 'value': value}]
    if prompt_id in rejected:
      results = [{'from_name': 'verdict', 'value': {'choices': ['rejected']}}]
    task['annotations'] = [{'result': results, 'completed_by': 3}]
  delivered = workdir.root.parent / name
  store.write_json(delivered, tasks)
  return str(delivered)


@pytest.mark.slow
def test_a_study_in_parts(tmp_path, options, capsys):
  workdir = store.Workdir(tmp_path / 'w')

  def run(*without, **more):
    config = tiny_study.config()
    config.update_from_flattened_dict(options)
    config.annotation.update(more)
    with tiny_study.on_one_device():
      stages = [name for name in STAGES if name not in without]
      pipeline.run(config, workdir, stages)
    return capsys.readouterr().out

  said = run()
  assert '4 of 4 answers are missing' in said
  assert 'waiting for the answers: finetune, evaluate, report' in said
  assert not workdir.runs.exists()
  order = study.selected_ids(workdir, 'random', 0)

  # One of the picks is rejected: the smaller cell has its answers.
  answers = {i: f'w{8 + k} w9' for k, i in enumerate(order)}
  path = deliver(workdir, 'part.json', answers, rejected=[order[2]])
  said = run(answers_path=path)
  assert '3 new answers, 1 rejected' in said
  assert study.rejected_ids(workdir) == {order[2]}
  rows = store.read_jsonl(workdir.selection('random', 0))
  assert [row['id'] for row in rows[:4]] == order
  statuses = ['chosen', 'chosen', 'rejected', 'chosen', 'chosen']
  assert [row['status'] for row in rows] == statuses
  new = rows[4]['id']
  assert [r['prompt_id'] for r in store.read_jsonl(workdir.todo)] == [new]
  assert '1 cell of 2 wait for answers' in said
  assert 'random-k4-seed0 (lacks 1 of 4 prompts' in said
  assert workdir.run('random-k2-seed0').evaluation('heldout').exists()
  assert not workdir.run('random-k4-seed0').root.exists()
  assert 'Not evaluated yet: random at 4 answers: seed 0' in said
  assert '1 prompt rejected by annotators' in said
  assert 'Annotators rejected 1 prompt;' in workdir.report.read_text()

  # The rest, in another format.
  path = tmp_path / 'rest.csv'
  path.write_text(f'prompt_id,response\n{new},w30\n')
  said = run('evaluate', 'report', answers_path=str(path))
  assert '1 new answer' in said
  adapters = {
    p: p.read_bytes() for p in workdir.runs.glob('*/model/*.safetensors')
  }
  assert len(adapters) == 2

  # A correction of an answer that only the larger cell has.
  path = tmp_path / 'correction.jsonl'
  store.write_jsonl(path, [{'prompt_id': new, 'response': 'w50 w51'}])
  said = run('evaluate', 'report', answers_path=str(path), amend=True)
  assert '1 cell made from old answers' in said
  assert 'random-k4-seed0: corrected answers, starts again' in said
  changed = {
    p.parts[-3] for p, data in adapters.items() if p.read_bytes() != data
  }
  assert changed == {'random-k4-seed0'}
  assert study.outdated(workdir) == []


def test_models_of_old_answers_are_not_evaluated(tmp_path, capsys):
  """If finetune is left out after a correction."""
  workdir = tiny_study.make(tmp_path)
  config = tiny_study.config()
  ids = study.selected_ids(workdir, 'random', 0)
  pool = store.read_prompts(workdir.pool)
  prompts = dict(zip(pool.ids, pool.prompts, strict=True))
  answers = store.read_responses(workdir.responses)
  for budget in config.study.budgets:
    digest = study.hash_examples(ids[:budget], prompts, answers)
    run = workdir.run(f'random-k{budget}-seed0')
    run.model.mkdir(parents=True)
    store.write_json(
      run.cell,
      {
        'strategy': 'random',
        'budget': budget,
        'seed': 0,
        'fingerprint': {'prompts and answers': digest},
      },
    )
    evaluated = synthetic_study.evaluation('random', budget, 0, 0.5)
    synthetic_study.write_evaluation(workdir, evaluated)
  small, large = study.cells(config)
  answers[ids[7]] = 'corrected'
  store.write_parquet(workdir.responses, store.response_table(answers))
  assert study.outdated(workdir) == []  # Not by a delivery.
  store.write_jsonl(workdir.amended, [{'id': ids[7]}])
  assert study.outdated(workdir) == [large]
  found = evaluation_stage._cells(config, workdir)
  assert found == [study.no_finetuning_cell(), small]
  assert '1 of 2 cells have no model yet' in capsys.readouterr().out
  read = results.read_results(config, workdir)
  assert list(read.evaluations) == [small]
  assert read.absent == [large, study.no_finetuning_cell()]
