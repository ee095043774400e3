"""Formats words and numbers for the page and the terminal."""

from collections.abc import Callable, Mapping, Sequence
import math

from edsft_jax.reporting import savings


def listed(items: Sequence[str]) -> str:
  """Joins items as 'a, b and c'."""
  if len(items) == 1:
    return items[0]
  return f'{", ".join(items[:-1])} and {items[-1]}'


def shortened(text: str, length: int) -> str:
  """The text, cut to this many characters."""
  return text if len(text) <= length else f'{text[: length - 3]}...'


def over_seeds(count: int, confidence: float) -> str:
  """Describes the values in a table's cells."""
  if count == 1:
    return 'one seed, so no interval'
  return f'mean and {100 * confidence:g}% interval over {count} seeds'


def duration(seconds: float) -> str:
  """Formats seconds as 12.3 s, 4 min 10 s or 2 h 05 min."""
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes:02d} min'


def signed(value: float) -> str:
  """Formats a difference as +0.012 or −0.012."""
  return f'{value:+.3f}'.replace('-', '−')


def probability(p: float) -> str:
  """Formats a p-value with its sign: '= 0.012' or '< 0.001'."""
  return '< 0.001' if p < 0.001 else f'= {p:.3f}'


def answers(value: float, budgets: Sequence[int]) -> str:
  """A number of answers, or that it is beyond the budgets that were run."""
  if value == 0:
    return f'fewer than {min(budgets):,}'
  if math.isinf(value):
    return f'more than {max(budgets):,}'
  return f'{round(value):,}'


def answers_interval(saving: savings.Saving, budgets: Sequence[int]) -> str:
  """The number of answers that a strategy needs, with its interval."""
  if not saving.known:
    return 'undetermined'
  ends = answers(saving.low, budgets), answers(saving.high, budgets)
  best = answers(saving.answers, budgets)
  if ends[0] == ends[1]:
    return best
  return f'{best} ({ends[0]} to {ends[1]})'


def saving_interval(saving: savings.Saving, budgets: Sequence[int]) -> str:
  """The share of answers saved, with its interval; negative for a loss."""
  return _saved(saving, budgets, lambda count: _percent(saving.share(count)))


def money_interval(
  saving: savings.Saving,
  budgets: Sequence[int],
  money: Callable[[float], float],
) -> str:
  """Money saved, with its interval; negative for a loss.

  Args:
    saving: what the strategy needs.
    budgets: those that were run.
    money: what is saved by a strategy that needs this many answers.
  """
  return _saved(saving, budgets, lambda count: amount(money(count)))


def _saved(
  saving: savings.Saving,
  budgets: Sequence[int],
  text: Callable[[float], str],
) -> str:
  """What is saved, with its interval, from the text for a number of answers."""
  if not saving.known:
    return 'undetermined'

  def words(count: float) -> str:
    if count == 0:
      return f'more than {text(min(budgets))}'
    if math.isinf(count):
      return f'less than {text(max(budgets))}'
    return text(count)

  best, low, high = map(words, (saving.answers, saving.high, saving.low))
  return best if low == high else f'{best} ({low} to {high})'


def _percent(value: float) -> str:
  return f'{value:.0%}'.replace('-', '−')


def amount(value: float) -> str:
  """An amount of money, in the currency of the prices."""
  if 0 < value < 0.005:
    return 'less than 0.01'
  return f'{value:,.2f}'.replace('-', '−')


def detectable(sizes: Mapping[int, float]) -> str:
  """The detectable differences: '0.031 with 3 seeds and 0.020 with 5'."""
  parts = [
    f'{size:.3f} with {seeds}'
    for seeds, size in sizes.items()
    if math.isfinite(size)
  ]
  if parts:
    parts[0] += ' seeds' if next(iter(sizes)) != 1 else ' seed'
  return listed(parts) if parts else ''
