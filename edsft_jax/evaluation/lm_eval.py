"""lm-evaluation-harness on our engine: any of its tasks, without PyTorch.

    pip install 'edsft_jax[lm-eval]'
    python -m edsft_jax.evaluation.lm_eval run --model edsft \
        --model_args pretrained=HF_DIR --tasks mmlu --num_fewshot 5

takes the harness's own flags. From Python, give its `simple_evaluate` an
`EdsftLM`.
"""

from collections.abc import Sequence
import datetime
import json
import sys
from typing import Any

from flax import nnx
import numpy as np

from edsft_jax import console, errors, inference, models
from edsft_jax import mesh as mesh_lib
from edsft_jax.models import chat_template, tokenizer

try:
  from lm_eval.api import registry
  from lm_eval.api.instance import Instance
  from lm_eval.api.model import TemplateLM
  from lm_eval.models.utils import normalize_gen_kwargs
except ImportError:
  raise errors.InputError(
    "lm-evaluation-harness is not installed: pip install 'edsft_jax[lm-eval]'"
  ) from None

# The harness's own default for the number of new tokens.
_MAX_NEW_TOKENS = 256

# (context, continuation) as text, then the ids of both.
_Pair = tuple[tuple[str, str], list[int], list[int]]


class EdsftLM(TemplateLM):
  """A model directory as the harness sees models; greedy decoding only."""

  def __init__(
    self,
    pretrained: str,
    dtype: str = 'float32',
    adapter: str = '',
    batch_tokens: int = 32768,
    max_length: int = 0,
    **unused: Any,
  ):
    """Loads a model.

    Args:
      pretrained: see `models.resolve`.
      dtype: see model.dtype.
      adapter: a PEFT adapter to apply; '' for none.
      batch_tokens: tokens per batch, padding included.
      max_length: tokens of a row at most; 0: the model's context.
      **unused: what the harness passes to every model, such as its device.

    Raises:
      InputError: the model or the adapter cannot be used.
    """
    super().__init__()
    self._path = models.resolve(pretrained)
    self._mesh = mesh_lib.make_mesh()
    self._decoder = models.load_decoder(
      self._path, dtype=dtype, mesh=self._mesh
    )
    if adapter:
      models.load_adapter(self._decoder, models.resolve(adapter))
    self._weights = nnx.split(self._decoder)[1]
    # Today, as transformers has it.
    today = datetime.date.today().isoformat()
    self._format = models.load_prompt_format(
      self._path,
      template='raw',
      separator='',
      truncate='start',
      template_arguments='{}',
      # As in the harness: a rendered chat is encoded from its text.
      control_tokens='special',
      date=today,
    )
    self._tokenizer = tokenizer.load_tokenizer(self._path)
    self._batch_tokens = int(batch_tokens)
    self._context = int(max_length) or self._decoder.config.context
    text = self._tokenizer.chat_template()
    self._template: chat_template.ChatTemplate | None = None
    if text:
      self._template = chat_template.ChatTemplate(
        text, self._tokenizer.names, {}, chat_template.parse_date(today)
      )

  @property
  def tokenizer_name(self) -> str:
    """The model's path, which the harness uses in names of its caches."""
    return str(self._path).replace('/', '__')

  @property
  def eot_token_id(self) -> int:
    """The id that ends a text."""
    if self._tokenizer.eos_id is None:
      raise errors.InputError(f'{self._path}: the tokenizer has no eos_token')
    return self._tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    """The id that goes before a text without a context: BOS, or else EOS."""
    return self._format.start_id

  @property
  def max_length(self) -> int:
    """Tokens that the model reads at most."""
    return self._context

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **unused: Any
  ) -> list[int]:
    """Ids of a text, with BOS if the tokenizer adds one."""
    if add_special_tokens is False:
      return self._tokenizer.encoding(string).ids
    return self._format.encode_text(string)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The source of the chat template, for the harness's records."""
    return self._tokenizer.chat_template() if chat_template else ''

  def apply_chat_template(
    self,
    chat_history: list[dict[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """The rendered conversation.

    Raises:
      InputError: the checkpoint has no chat template.
    """
    if self._template is None:
      raise errors.InputError(f'{self._path} has no chat template')
    return self._template.render(
      chat_history, add_generation_prompt=add_generation_prompt
    )

  def _loglikelihood_tokens(
    self, requests: list[_Pair], disable_tqdm: bool = False, **unused: Any
  ) -> list[tuple[float, bool]]:
    targets = [
      inference.Target(
        # Too long a context is cut on the left; the last token is not read.
        [*context, *continuation][-(self._context + 1) :],
        min(len(continuation), self._context),
      )
      for _, context, continuation in requests
    ]
    found = self._score(targets)
    results = [
      (-float(nll), bool(is_greedy))
      for nll, is_greedy in zip(found.nll, found.is_greedy, strict=True)
    ]
    for (texts, _, _), result in zip(requests, results, strict=True):
      self.cache_hook.add_partial('loglikelihood', texts, result)
    return results

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """The log-likelihood of whole texts, in windows of the context's length."""
    targets, owners = [], []
    for number, request in enumerate(requests):
      windows = inference.rolling_targets(
        self.tok_encode(request.args[0]), self.prefix_token_id, self._context
      )
      targets += windows
      owners += [number] * len(windows)
    sums = [0.0] * len(requests)
    for owner, nll in zip(owners, self._score(targets).nll, strict=True):
      sums[owner] -= float(nll)
    return sums

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    """Greedy continuations up to a stop string.

    Raises:
      InputError: a request asks for sampling, or for more tokens than fit.
    """
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
      options = normalize_gen_kwargs(request.args[1], _MAX_NEW_TOKENS)
      if options.get('do_sample'):
        raise errors.InputError(
          'a task asks for sampled text, but decoding is greedy: set '
          'do_sample=False in --gen_kwargs'
        )
      key = json.dumps([options['until'], options['max_gen_toks']])
      groups.setdefault(key, []).append(number)
    texts = [''] * len(requests)
    for key, numbers in groups.items():
      until, num_new = json.loads(key)
      prompts = [requests[number].args[0] for number in numbers]
      continued = self._continue(prompts, until, num_new)
      for number, text in zip(numbers, continued, strict=True):
        texts[number] = text
        self.cache_hook.add_partial(
          'generate_until', requests[number].args, text
        )
    return texts

  def _score(self, targets: list[inference.Target]) -> inference.Likelihoods:
    engine = inference.LikelihoodEngine(
      self._decoder, self._mesh, [targets], batch_tokens=self._batch_tokens
    )
    found = engine(self._weights)
    self._refuse_not_finite(np.isfinite(found.nll))
    return found

  def _continue(
    self, prompts: Sequence[str], until: Sequence[str], num_new: int
  ) -> list[str]:
    room = self._context - num_new
    if room < 1:
      raise errors.InputError(
        f'{num_new} new tokens fill the context of {self._context}: set '
        'max_gen_toks in --gen_kwargs'
      )
    tokens = [self._format.encode_text(prompt)[-room:] for prompt in prompts]
    engine = inference.GenerationEngine(
      self._decoder,
      self._mesh,
      [tokens],
      end_ids=self._format.end_ids,
      max_new_tokens=num_new,
      batch_tokens=self._batch_tokens,
    )
    stop = inference.Stop(tuple(filter(None, until)), self._format.decode)
    found = engine(self._weights, stop=stop if stop.strings else None)
    self._refuse_not_finite(found.row_results)
    return [
      stop.cut(self._format.decode_response(ids.tolist()))
      for ids in found.tokens
    ]

  def _refuse_not_finite(self, is_finite: np.ndarray) -> None:
    if not is_finite.all():
      requests = console.count(int((~is_finite).sum()), 'request')
      raise errors.InputError(
        f'the logits of {self._path} are not finite on {requests}: set another '
        'dtype in --model_args'
      )


def main() -> None:
  """Runs the harness's own command line, where the model 'edsft' is known."""
  from lm_eval.__main__ import cli_evaluate

  try:
    cli_evaluate()
  except errors.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  # Under its own name, so that the model is registered once.
  from edsft_jax.evaluation import lm_eval as module

  module.main()
else:
  registry.register_model('edsft')(EdsftLM)
