"""pool.append: new rows join a pool that is in use; nothing else moves."""

import json
import pathlib

import pytest

from configs import default
from edsft_jax import errors, pool, store


class Pool:
  """A workdir with a pool that rows may be appended to."""

  def __init__(self, folder: pathlib.Path):
    self._file = folder / 'pool.jsonl'
    self.workdir = store.Workdir(folder / 'work')

  def run(self, rows, append=True, **options):
    self._file.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    config = default.get_config()
    options = {'heldout_fraction': 0.25, **options}
    config.pool.update(path=str(self._file), append=append, **options)
    pool.run(config, self.workdir)
    return self.prompts

  @property
  def prompts(self):
    return store.read_prompts(self.workdir.pool)

  @property
  def heldout(self):
    return store.read_prompts(self.workdir.heldout)

  @property
  def counts(self):
    return store.Manifest(self.workdir).counts('pool')

  def contents(self):
    files = [p for p in self.workdir.root.rglob('*') if p.is_file()]
    return {path: path.read_bytes() for path in files}


@pytest.fixture
def study(tmp_path):
  return Pool(tmp_path)


def _rows(start, stop):
  return [
    {
      'id': f'i{k}',
      'prompt': f'Question number {k}?',
      'response': f'Answer {k}.',
      'task': f't{k % 2}',
      'source': f's{k}',
    }
    for k in range(start, stop)
  ]


def test_new_rows_follow_wherever_they_are_in_the_file(study):
  before = study.run(_rows(0, 12))
  held = study.heldout
  new = _rows(12, 17)
  after = study.run([new[0], *_rows(0, 5), *new[1:], *_rows(5, 12)])
  assert after.ids == [*before.ids, 'i12', 'i13', 'i14', 'i15', 'i16']
  assert after.prompts[len(before) :] == [row['prompt'] for row in new]
  assert after.tasks[: len(before)] == before.tasks
  assert study.heldout == held
  table = store.read_parquet(study.workdir.pool)
  assert table['source'].to_pylist() == [f's{i[1:]}' for i in after.ids]
  answers = store.read_responses(study.workdir.pool_responses)
  assert answers == {i: f'Answer {i[1:]}.' for i in after.ids}


def test_counts_and_rounds(study):
  first = study.run(_rows(0, 12))
  hash_0 = store.hash_file(study.workdir.pool)
  study.run(_rows(0, 17))
  hash_1 = store.hash_file(study.workdir.pool)
  study.run(_rows(0, 18))
  counts = study.counts
  assert counts['rounds'] == [
    {'prompts': len(first), 'hash': hash_0},
    {'prompts': len(first) + 5, 'hash': hash_1},
  ]
  assert counts['rows'] == 18
  assert counts['prompts'] == len(first) + 6
  assert counts['heldout'] == len(study.heldout) == 3


def test_the_same_file_again_changes_nothing(study, capsys):
  study.run(_rows(0, 12))
  study.run(_rows(0, 17))
  before = study.contents()
  study.run(_rows(0, 17))
  assert study.contents() == before
  assert '5 prompts appended to 9' in capsys.readouterr().out


def test_without_the_option_another_file_is_refused(study):
  study.run(_rows(0, 12), append=False)
  before = study.contents()
  with pytest.raises(
    errors.InputError, match=r'file of pool\.path.*pool\.append=True'
  ):
    study.run(_rows(0, 17), append=False)
  assert study.contents() == before


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'prompt': 'Another one?'}, 'another prompt for '),
    ({'task': 't9'}, 'another task for '),
    ({'response': 'Changed.'}, 'another response for '),
    ({'response': None}, 'another response for '),
    ({'id': 'renamed'}, 'lacks 1 prompt of '),
  ],
)
@pytest.mark.parametrize('which', ['pool', 'held-out set'])
def test_a_changed_old_row_is_refused(study, change, says, which):
  prompts = study.run(_rows(0, 12))
  ids = prompts.ids if which == 'pool' else study.heldout.ids
  before = study.contents()
  rows = _rows(0, 17)
  rows[int(ids[1][1:])].update(change)
  with pytest.raises(errors.InputError, match=f'{says}.*{ids[1]}.*') as e:
    study.run(rows)
  assert f'of the {which}' in str(e.value)
  assert study.contents() == before


def test_a_missing_row_is_refused(study):
  study.run(_rows(0, 12))
  with pytest.raises(errors.InputError, match='lacks'):
    study.run(_rows(1, 17))


def test_other_options_are_refused(study):
  study.run(_rows(0, 12))
  before = study.contents()
  with pytest.raises(errors.InputError, match=r'pool\.task_column'):
    study.run(_rows(0, 17), task_column='source')
  assert study.contents() == before


def test_tasks_of_new_rows_alone_are_refused(study):
  rows = [{**row, 'task': None} for row in _rows(0, 12)]
  study.run(rows)
  with pytest.raises(errors.InputError, match='task_column=none'):
    study.run([*rows, *_rows(12, 17)])


def test_new_rows_that_reveal_a_held_out_prompt_are_quarantined(study):
  before = study.run(_rows(0, 12))
  held = study.heldout
  question, answer = held.prompts[0], held.responses[0]
  new = [
    {'id': 'shouted', 'prompt': question.upper()},
    {
      'id': 'said',
      'messages': [
        {'role': 'user', 'content': 'Hello'},
        {'role': 'assistant', 'content': 'Hello.'},
        {'role': 'user', 'content': question},
        {'role': 'assistant', 'content': answer},
        {'role': 'user', 'content': 'And then?'},
      ],
    },
    {'id': 'fine', 'prompt': 'Something else?'},
  ]
  after = study.run([*_rows(0, 12), *new])
  assert after.ids == [*before.ids, 'fine']
  assert study.heldout == held
  quarantined = store.read_jsonl(study.workdir.quarantine)
  assert {row['id'] for row in quarantined} == {'shouted', 'said'}
  assert study.counts['quarantined'] == 2


def test_a_held_out_file_stays_as_it_is(study, tmp_path):
  path = tmp_path / 'heldout.jsonl'
  path.write_text(json.dumps(_rows(50, 51)[0]))
  options = {'heldout_path': str(path), 'heldout_fraction': 0.0}
  study.run(_rows(0, 12), **options)
  after = study.run([*_rows(0, 14), *_rows(50, 51)], **options)
  assert after.ids == [f'i{k}' for k in range(14)]
  assert study.heldout.ids == ['i50']


@pytest.mark.parametrize('written', range(4))
def test_an_interrupted_run_can_be_repeated(study, monkeypatch, written):
  first = study.run(_rows(0, 12))
  old_hash = store.hash_file(study.workdir.pool)
  held = study.heldout
  names = ('write_parquet', 'write_jsonl')
  with monkeypatch.context() as patch:
    left = [written]

    def stop_after(write):
      def wrapped(*args):
        if not left[0]:
          raise KeyboardInterrupt
        left[0] -= 1
        return write(*args)

      return wrapped

    for name in names:
      patch.setattr(store, name, stop_after(getattr(store, name)))
    with pytest.raises(KeyboardInterrupt):
      study.run(_rows(0, 17))
  after = study.run(_rows(0, 17))
  assert after.ids == [*first.ids, *(f'i{k}' for k in range(12, 17))]
  assert study.heldout == held
  rounds = [{'prompts': len(first), 'hash': old_hash}]
  assert study.counts['rounds'] == rounds


def test_killed_just_before_the_record_is_updated(study, monkeypatch):
  first = study.run(_rows(0, 12))
  old_hash = store.hash_file(study.workdir.pool)
  update = store.Manifest.update

  def killed(self, stage, fingerprint, *args):
    if args[1:]:
      raise KeyboardInterrupt
    update(self, stage, fingerprint, *args)

  with monkeypatch.context() as patch:
    patch.setattr(store.Manifest, 'update', killed)
    with pytest.raises(KeyboardInterrupt):
      study.run(_rows(0, 17))
  assert len(study.prompts) == len(first) + 5
  study.run(_rows(0, 17))
  assert study.counts['rounds'] == [{'prompts': len(first), 'hash': old_hash}]


def test_a_pool_that_is_partly_scored_is_finished_first(study):
  study.run(_rows(0, 12))
  store.Manifest(study.workdir).begin('score', {'pool': 'x'})
  before = study.contents()
  with pytest.raises(errors.InputError, match='not scored completely'):
    study.run(_rows(0, 17))
  assert study.contents() == before


def test_an_old_row_again_with_an_answer_is_named(study):
  rows = [{**row, 'response': None} for row in _rows(0, 12)]
  study.run(rows)
  before = study.contents()
  again = {'id': 'again', 'prompt': rows[2]['prompt'], 'response': 'Yes.'}
  with pytest.raises(errors.InputError, match=r"'i2' again as 'again'"):
    study.run([*rows, again])
  assert study.contents() == before


def test_strict_refuses_new_rows_that_reveal_a_held_out_prompt(study):
  study.run(_rows(0, 12), strict=True)
  before = study.contents()
  new = {'id': 'shouted', 'prompt': study.heldout.prompts[0].upper()}
  with pytest.raises(errors.InputError, match=r"'shouted'.*held-out"):
    study.run([*_rows(0, 12), new], strict=True)
  assert study.contents() == before
