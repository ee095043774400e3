"""Any task of lm-evaluation-harness, as 'lm_eval:NAME' in evaluation.tasks.

The harness makes the prompts, finds the answers and scores them; requests run
on our engine, for all cells with one compilation.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import pathlib
import types
from typing import Any, ClassVar

import ml_collections

from edsft_jax import errors, inference, store
from edsft_jax.evaluation import benchmarks
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Item,
  Likelihood,
  Metric,
  Request,
  Response,
  Scored,
  TaskInputs,
)

PREFIX = 'lm_eval:'
# The harness's own seed for drawing worked examples, and its default for the
# number of tokens.
_SHOTS_SEED = 1234
_MAX_NEW_TOKENS = 256
_MEANS = ('mean', 'nanmean')
# ifeval's: each item has several instructions, and the mean is over these.
_MEAN_OVER_PARTS = 'agg_inst_level_acc'


class HarnessTask:
  """A task or group of the harness; `find` makes a class of each."""

  name: ClassVar[str]
  version: ClassVar[int]
  metrics: ClassVar[Mapping[str, Metric]]
  # The harness's task, without the prefix, and the folder of further tasks.
  harness_name: ClassVar[str]
  include_path: ClassVar[str]

  def __init__(self, inputs: TaskInputs):
    """Lets the harness make its prompts, and encodes them.

    Raises:
      InputError: its data cannot be loaded, or its tasks generate differently.
    """
    c = inputs.config.evaluation.lm_eval
    self._format = inputs.prompt_format
    self._context = inputs.context
    self._chat: bool = c.chat
    self.stop: tuple[str, ...] = ()
    self.max_new_tokens = 1
    self._num_truncated = 0
    tasks = _load(self.harness_name, self.include_path)
    self._docs: dict[str, tuple[Any, Sequence[Any]]] = {}
    self._settings: tuple[tuple[str, ...], int] | None = None
    self.items: Sequence[Item] = [
      item for task in tasks for item in self._items(task, c.shots, c.limit)
    ]
    self.about: Mapping[str, Any] = {
      'protocol': 'lm_eval',
      'shots': {task.task_name: task.config.num_fewshot for task in tasks},
      'template': inputs.config.prompt.template if c.chat else None,
      'extractor': "the harness's filters",
      'versions': {task.task_name: task.VERSION for task in tasks},
    }
    self.counts: Mapping[str, int] = {'prompts_truncated': self._num_truncated}

  def _items(self, task: Any, shots: int, limit: int) -> list[Item]:
    """The items of one task of the harness."""
    task.set_fewshot_seed(_SHOTS_SEED)
    if shots >= 0:
      task.set_config(key='num_fewshot', value=shots)
    task.build_all_requests(limit=limit or None, rank=0, world_size=1)
    by_doc: dict[int, list[Any]] = {}
    for instance in task.instances:
      by_doc.setdefault(instance.doc_id, []).append(instance)
    items = []
    for number, instances in by_doc.items():
      instances.sort(key=lambda instance: instance.idx)
      item_id = f'{task.task_name}/{number}'
      self._docs[item_id] = task, instances
      requests = [r for instance in instances for r in self._encode(instance)]
      self._num_truncated += any(r.truncated for r in requests)
      doc = instances[0].doc
      items.append(
        Item(
          item_id,
          task.task_name,
          str(task.doc_to_target(doc)),
          tuple(requests),
          text=str(task.doc_to_text(doc)),
        )
      )
    return items

  def _encode(self, instance: Any) -> list[Request]:
    """Our requests for one of the harness's."""
    kind = instance.request_type
    if kind == 'loglikelihood_rolling':
      (text,) = instance.args
      whole = self._format.encode_text(self._format.text(text, chat=False))
      windows = inference.rolling_targets(
        whole, self._format.start_id, self._context
      )
      return [Likelihood([*tokens], num) for tokens, num in windows]
    text = self._format.text(instance.args[0], chat=self._chat)
    if kind == 'loglikelihood':
      before, ids = self._format.encode_pair(text, instance.args[1])
      tokens = [*before, *ids]
      limit = self._context + 1
      return [Likelihood(tokens[-limit:], len(ids), len(tokens) > limit)]
    if kind != 'generate_until':
      raise errors.InputError(
        f'{self.name} makes requests of the kind {kind}: only likelihoods and '
        'greedy decoding are supported'
      )
    self._set_generation(instance.args[1])
    tokens = self._format.encode_text(text)
    limit = self._context - self.max_new_tokens
    return [Generate(tokens[-limit:], len(tokens) > limit)]

  def _set_generation(self, options: Mapping[str, Any]) -> None:
    """Takes over stop strings and length, which all items must share."""
    from lm_eval.models.utils import normalize_gen_kwargs

    found = normalize_gen_kwargs(dict(options), _MAX_NEW_TOKENS)
    if found.get('do_sample'):
      raise errors.InputError(
        f'{self.name} samples its text: only greedy decoding is supported'
      )
    settings = (tuple(filter(None, found['until'])), found['max_gen_toks'])
    if self._settings not in (None, settings):
      raise errors.InputError(
        f'{self.name} has tasks that stop or end differently: name them one by '
        'one'
      )
    self._settings = settings
    self.stop, self.max_new_tokens = settings
    if self.max_new_tokens >= self._context:
      raise errors.InputError(
        f'{self.name} generates {self.max_new_tokens} tokens, which fill the '
        f"model's context of {self._context}"
      )

  @classmethod
  def check(
    cls,
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects bad options; see Task.check."""
    c = config.evaluation.lm_eval
    errors.refuse_below('evaluation.lm_eval.limit', c.limit, 0)
    if c.chat:
      benchmarks.check_template(config, 'lm_eval')

  @classmethod
  def fingerprint(
    cls, config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """Options of evaluation.lm_eval, and the harness's version."""
    import lm_eval

    c = config.evaluation.lm_eval
    result = {
      f'evaluation.lm_eval.{name}': c[name]
      for name in ('shots', 'limit', 'chat')
    }
    if c.include_path:
      result['evaluation.lm_eval.include_path'] = benchmarks.hash_source(
        c.include_path
      )
    return {**result, 'lm_eval': lm_eval.__version__}

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """The harness's own metrics of an item, by each of its filters."""
    task, instances = self._docs[item.id]
    remaining = list(responses)
    for instance in instances:
      instance.resps = [_result(instance, item, remaining)]
      instance.filtered_resps = {}
    row: dict[str, Any] = {}
    for group in task._filters:
      group.apply(instances)
      found = task.process_results(
        instances[0].doc,
        [instance.filtered_resps[group.name] for instance in instances],
      )
      for name, value in found.items():
        row[_column(name, group.name, len(task._filters))] = value
    row = dict(_columns(row, self.metrics))
    texts = [r.text for r in responses if isinstance(r, Generated)]
    request = item.requests[0]
    num_targets = getattr(request, 'num_targets', 0)
    return {
      'prediction': str(
        texts[0]
        if texts
        else [-r.nll for r in responses if isinstance(r, Scored)]
      ),
      **row,
      'num_prompt_tokens': len(request.tokens) - num_targets,
      'num_generated_tokens': sum(
        r.num_tokens for r in responses if isinstance(r, Generated)
      ),
      'truncated': any(r.truncated for r in item.requests),
      'finish': next(
        (r.finish for r in responses if isinstance(r, Generated)), 'stop'
      ),
    }


def _result(instance: Any, item: Item, remaining: list[Response]) -> Any:
  """What the harness expects for a request; takes our responses to it."""
  if instance.request_type == 'loglikelihood_rolling':
    # An item has one rolling request, whatever the number of its windows.
    total = -sum(r.nll for r in remaining if isinstance(r, Scored))
    remaining.clear()
    return total
  response = remaining.pop(0)
  if isinstance(response, Generated):
    return response.text
  return -response.nll, response.is_greedy


def find(name: str, include_path: str) -> type[HarnessTask]:
  """The class of a task of the harness.

  Args:
    name: 'lm_eval:NAME'.
    include_path: a folder of further tasks; '' for none.

  Raises:
    InputError: the harness is not installed or does not have the task, or its
      metrics are not means over items.
  """
  harness_name = name.removeprefix(PREFIX)
  metrics: dict[str, Metric] = {}
  for task in _load(harness_name, include_path):
    better, means = task.higher_is_better(), task.aggregation()
    for group in task._filters:
      for metric, aggregation in means.items():
        kind = getattr(aggregation, '__name__', '')
        if kind not in (*_MEANS, _MEAN_OVER_PARTS):
          continue
        over = 'items' if kind in _MEANS else 'the instructions of all items'
        column = _column(metric, group.name, len(task._filters))
        metrics[column] = Metric(
          column,
          bool(better.get(metric, True)),
          f'mean over {over}, by lm-evaluation-harness ({harness_name})',
          weight='' if kind in _MEANS else f'num_{column}',
        )
  if not metrics:
    raise errors.InputError(
      f'{name} has no metric that is a mean over items: run it with '
      'python -m edsft_jax.evaluation.lm_eval'
    )
  members = {
    'name': name,
    'version': 1,
    'metrics': metrics,
    'harness_name': harness_name,
    'include_path': include_path,
  }
  return types.new_class(
    'HarnessTask', (HarnessTask,), exec_body=lambda body: body.update(members)
  )


def _columns(
  row: Mapping[str, Any], metrics: Mapping[str, Metric]
) -> Iterator[tuple[str, float]]:
  """Numbers of an item; of several parts, their mean and their number."""
  for name, metric in metrics.items():
    if metric.weight:
      yield name, sum(row[name]) / len(row[name])
      yield metric.weight, len(row[name])
    else:
      yield name, float(row[name])


def _column(metric: str, filter_name: str, num_filters: int) -> str:
  return metric if num_filters == 1 else f'{metric}_{filter_name}'


@functools.cache
def _load(name: str, include_path: str) -> tuple[Any, ...]:
  """The harness's tasks of this name, with their data."""
  try:
    from lm_eval.tasks import TaskManager
  except ImportError:
    raise errors.InputError(
      f'evaluation.tasks has {PREFIX}{name}, but lm-evaluation-harness is not '
      "installed: pip install 'edsft_jax[lm-eval]'"
    ) from None
  if include_path and not pathlib.Path(include_path).is_dir():
    raise errors.InputError(
      f'evaluation.lm_eval.include_path={include_path} is not a folder'
    )
  manager = TaskManager(include_path=include_path or None)
  known = [*manager.all_tasks]
  if name not in known:
    raise errors.unknown(
      f'evaluation.tasks has {PREFIX}{name}, which',
      f'{PREFIX}{name}',
      [f'{PREFIX}{task}' for task in known],
    )
  try:
    return tuple(manager.load([name])['tasks'].values())
  except Exception as error:  # The harness and `datasets` raise many kinds.
    reason = ' '.join(str(error).split()) or type(error).__name__
    remedy = 'check its data'
    if isinstance(error, ImportError):
      remedy = 'install this package'
    raise errors.InputError(
      f'{PREFIX}{name} cannot be loaded ({reason}): {remedy}'
    ) from None
