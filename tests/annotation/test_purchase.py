"""What is said before anything is bought."""

from annotation_study import Study, read_csv
import pytest

from edsft_jax import errors, store


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path / 'work')


def lines(capsys):
  return [line[10:] for line in capsys.readouterr().out.splitlines()]


def test_the_union_by_strategy_and_seed(study, capsys):
  study.know({'p3': 'known'})
  study.run((2, 3))
  said = lines(capsys)
  start = said.index('3 answers to buy, to compare 3 orders of 3 prompts:')
  assert [line.split() for line in said[start + 1 : start + 5]] == [
    ['strategy', 'seeds', 'prompts', 'to', 'answer', 'together'],
    ['random', '0', '3', '2', '2'],
    ['random', '1', '3', '2', '3'],
    # Its seeds share their picks.
    ['min_margin', '0,', '1', '3', '3', '3'],
  ]
  assert 'for one strategy alone, set annotation.buy' in said[start + 5]
  # All of it before the todo.
  assert 'answers are missing' in said[-2]


def test_a_study_of_one_order_has_no_union(study, capsys):
  study.run((2,), options={'buy': 'min_margin'})
  said = lines(capsys)
  assert 'asks for the 2 picks of min_margin alone' in said[0]
  assert not any('orders of' in line for line in said)


@pytest.mark.parametrize('buy', ['random', 'min_margin'])
def test_exactly_the_budget_of_one_strategy(study, buy):
  study.run((2, 5), options={'buy': buy})
  # The first seed.
  assert (
    study.ids()
    == {
      'random': ['p3', 'p0', 'p1', 'p7', 'p8'],
      'min_margin': ['p2', 'p1', 'p0', 'p3', 'p4'],
    }[buy]
  )
  assert study.counts['missing'] == 5
  # Later, the rest of the study.
  study.run((2, 5))
  assert sorted(study.ids()) == [f'p{k}' for k in (0, 1, 2, 3, 4, 5, 7, 8)]


def test_what_is_known_of_other_strategies_is_kept(study):
  study.know({'p2': 'known', 'p9': 'known'})
  study.run(options={'buy': 'random'})
  assert study.ids() == ['p3', 'p0']
  assert study.responses == {'p2': 'known'}


@pytest.mark.parametrize(
  ('options', 'cost'),
  [
    ({'price_per_answer': 0.5}, '2.00'),
    ({'price_per_word': 0.1}, '1.60'),
    ({'price_per_answer': 1000.0, 'price_per_word': 1.0}, '4,016.00'),
  ],
)
def test_the_cost(study, capsys, options, cost):
  study.run(options=options)
  words = sum(int(row['words']) for row in read_csv(study.path()))
  assert words == 16
  expected = f'cost: {cost} for 4 answers to prompts of 16 words'
  said = lines(capsys)
  assert said.index(expected) < len(said) - 2


def test_no_cost_without_a_price(study, capsys):
  study.run()
  assert not any(line.startswith('cost') for line in lines(capsys))


def test_a_missing_held_out_set_is_told_before_the_purchase(study, capsys):
  study.run()
  assert 'set pool.heldout_path' in capsys.readouterr().out
  prompts = store.Prompts(['h'], ['Held out?'], None, [''])
  store.write_parquet(study.workdir.heldout, store.prompt_table(prompts))
  study.run()
  assert 'set pool.heldout_path' in capsys.readouterr().out
  prompts = store.Prompts(['h'], ['Held out?'], None, ['yes'])
  store.write_parquet(study.workdir.heldout, store.prompt_table(prompts))
  study.run()
  assert 'heldout' not in capsys.readouterr().out


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'buy': 'randon'}, "annotation.buy='randon'.*did you mean 'random'"),
    ({'buy': 'k_center'}, 'one of selection.strategies'),
    (
      {'price_per_answer': -1.0},
      'price_per_answer is -1.0: must be at least 0',
    ),
    ({'price_per_word': float('inf')}, 'price_per_word is inf: must be finite'),
  ],
)
def test_bad_options(study, options, message):
  with pytest.raises(errors.InputError, match=message):
    study.run(options=options)
  assert not study.workdir.todo.exists()
