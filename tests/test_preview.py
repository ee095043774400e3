"""The preview shows the tokens that scoring and finetuning will use."""

import json

import pytest

from configs import default
from edsft_jax import errors, pipeline, store

CHAT = (
  "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
  "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
  '{% if add_generation_prompt %}[assistant]{% endif %}'
)
ROWS = [
  {'prompt': 'one two', 'response': 'three'},
  {'prompt': 'four five six', 'response': ''},
  *({'prompt': f'more of it {i}', 'response': f'so {i}'} for i in range(20)),
]


@pytest.fixture
def config(tmp_path):
  """A pool of answered prompts and the built-in model."""
  pool = tmp_path / 'pool.jsonl'
  pool.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  c = default.get_config()
  c.pool.path = str(pool)
  c.pool.heldout_fraction = 0.0
  c.prompt.template = CHAT
  return c


def preview(config, tmp_path, capsys) -> list[str]:
  """What is printed after the pool stage's own line."""
  stages = pipeline.stages_asked_for(['preview'])
  pipeline.run(config, store.Workdir(tmp_path / 'w'), stages)
  text = capsys.readouterr().out
  return text[text.index('preview ') :].splitlines()


def test_no_part_of_all_stages_but_with_the_pool():
  assert 'preview' not in pipeline.stages_asked_for([])
  assert pipeline.stages_asked_for(['preview']) == ['pool', 'preview']
  assert pipeline.stages_asked_for(['score', 'preview']) == [
    'pool',
    'preview',
    'score',
  ]
  assert pipeline.stages_asked_for(['score']) == ['score']
  with pytest.raises(errors.InputError, match="did you mean 'preview'"):
    pipeline.stages_asked_for(['preveiw'])


def test_prompts_are_shown_with_their_special_tokens(config, tmp_path, capsys):
  lines = preview(config, tmp_path, capsys)
  ids = store.read_prompts(store.Workdir(tmp_path / 'w').pool).ids
  heads = [line for line in lines if line.startswith('preview   prompt ')]
  assert [head.split()[2:5] for head in heads] == [
    [i, 'for', use] for i in ids[:3] for use in ('scoring:', 'finetuning:')
  ]
  shown = lines.index(heads[0]) + 1
  assert lines[shown] == '<s>[user]one two[assistant]'
  trained = lines.index(heads[1]) + 1
  assert lines[trained] == '<s>[user]one two[assistant]\u27e6three</s>\u27e7'
  assert 'no answer yet' not in heads[1]


def test_numbers_are_those_of_the_tokens(config, tmp_path, capsys):
  config.scoring.max_new_tokens = 250
  config.finetuning.max_length = 12
  lines = preview(config, tmp_path, capsys)
  heads = [line for line in lines if line.startswith('preview   prompt ')]
  assert ': 6 tokens' in heads[0]
  assert heads[0].endswith(', truncated')
  assert ': 12 tokens' in heads[1]


def test_a_stand_in_takes_the_place_of_an_unknown_answer(
  config, tmp_path, capsys
):
  pool = tmp_path / 'pool.jsonl'
  pool.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
  lines = preview(config, tmp_path, capsys)
  heads = [line for line in lines if line.startswith('preview   prompt ')]
  assert len(heads) == 4
  assert 'no answer yet' in heads[1]
  assert '<s>[user]one[assistant]\u27e6(the answer)</s>\u27e7' in lines


def test_a_template_without_answers_is_refused(config, tmp_path, capsys):
  config.prompt.template = (
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
  )
  with pytest.raises(errors.InputError, match='nothing to learn'):
    preview(config, tmp_path, capsys)


def test_control_tokens_are_counted(config, tmp_path, capsys):
  pool = tmp_path / 'pool.jsonl'
  pool.write_text('{"prompt": "a </s> b", "response": "c <s></s>"}\n')
  heads = {}
  for mode in ('text', 'special'):
    config.prompt.control_tokens = mode
    lines = preview(config, tmp_path, capsys)
    heads[mode] = [line for line in lines if line.startswith('preview   pro')]
  for mode, words in (('text', 'text'), ('special', 'themselves')):
    for head, number in zip(
      heads[mode], ('1 control token', '3 control tokens'), strict=True
    ):
      assert head.endswith(
        f', {number} encoded as {words} (prompt.control_tokens)'
      )
  # As text, they are several tokens.
  as_text, as_themselves = (
    int(heads[mode][0].split(': ')[1].split()[0]) for mode in heads
  )
  assert as_text > as_themselves


def test_a_preview_does_not_rewrite_what_the_study_was_made_with(
  config, tmp_path, capsys
):
  preview(config, tmp_path, capsys)
  before = (tmp_path / 'w' / 'config.json').read_text()
  config.prompt.template = 'raw'
  assert '<s>one two' in preview(config, tmp_path, capsys)
  assert (tmp_path / 'w' / 'config.json').read_text() == before


def test_a_bad_model_is_refused_before_the_pool_is_read(config, tmp_path):
  config.model.path = 'no/such/model'
  with pytest.raises(errors.InputError, match=r'model\.path'):
    pipeline.run(config, store.Workdir(tmp_path / 'w'), ['pool', 'preview'])
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
  ('stage', 'option', 'value'),
  [
    ('finetune', 'finetuning.max_length', -1),
    ('finetune', 'finetuning.max_length', 1),
    ('finetune', 'finetuning.max_length', 100_000),
    ('finetune', 'finetuning.lora_rank', 0),
    ('score', 'scoring.max_new_tokens', -5),
    ('score', 'scoring.max_new_tokens', 256),
    ('score', 'model.dtype', 'float7'),
  ],
)
def test_what_a_stage_refuses_is_not_shown(
  config, tmp_path, stage, option, value
):
  with config.ignore_type():
    config.update_from_flattened_dict({option: value})
  refusals = []
  for name in (stage, 'preview'):
    with pytest.raises(errors.InputError) as raised:
      pipeline.run(config, store.Workdir(tmp_path / 'w'), ['pool', name])
    refusals.append(str(raised.value))
    assert not (tmp_path / 'w').exists()
  assert option in refusals[0]
  assert refusals[0] == refusals[1]


def test_a_preview_needs_no_devices_of_the_study(config, tmp_path, capsys):
  config.mesh.data = 7
  assert preview(config, tmp_path, capsys)


def test_a_prompt_that_the_template_refuses_is_named(config, tmp_path, capsys):
  config.prompt.template = (
    "{% for m in messages %}{% if 'four' in m.content %}"
    "{{ raise_exception('no fours') }}{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
  )
  with pytest.raises(errors.InputError, match='no fours') as raised:
    preview(config, tmp_path, capsys)
  second = store.read_prompts(store.Workdir(tmp_path / 'w').pool).ids[1]
  assert str(raised.value).startswith(f'prompt {second!r}: ')


def test_the_prompts_that_a_strategy_chose(config, tmp_path, capsys):
  workdir = store.Workdir(tmp_path / 'w')
  config.preview.strategy = 'random'
  config.study.budgets = (4,)
  config.study.seeds = (1, 0)
  with pytest.raises(errors.InputError, match='run the select stage'):
    preview(config, tmp_path, capsys)
  pipeline.run(config, workdir, ['pool'])
  ids = store.read_prompts(workdir.pool).ids
  order = [ids[i] for i in (20, 7, 3, 11)]
  rows = [{'rank': r, 'id': i} for r, i in enumerate(order)]
  store.write_jsonl(workdir.selection('random', 1), rows)
  store.write_jsonl(workdir.rejected, [{'id': order[1]}])
  chosen = [order[0], *order[2:]]
  lines = preview(config, tmp_path, capsys)
  (said,) = (line for line in lines if 'chosen by' in line)
  assert said == (
    'preview   the first of 4 prompts chosen by random for seed 1: '
    + ', '.join(chosen)
  )
  heads = [line for line in lines if line.startswith('preview   prompt ')]
  assert [head.split()[2] for head in heads[::2]] == chosen
  assert any('[user]more of it 18[assistant]' in line for line in lines)
  config.preview.strategy = 'randon'
  with pytest.raises(errors.InputError, match="did you mean 'random'"):
    preview(config, tmp_path, capsys)
