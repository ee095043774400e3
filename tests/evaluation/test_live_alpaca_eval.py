"""alpaca_eval itself on our outputs, and its annotations read back.

Runs where it is installed (pip install alpaca_eval); a local server is its
judge. Its counts of tokens, which need files from the network, are replaced.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import judge_server
from judge_server import serving
import pytest

from edsft_jax.evaluation import pairs as pairs_lib
from edsft_jax.evaluation import verdicts as verdicts_lib
from edsft_jax.evaluation.endpoint import Endpoint
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.judges import EndpointJudge

pytestmark = pytest.mark.slow

alpaca_eval = pytest.importorskip('alpaca_eval')

MODEL = 'gpt-4-1106-preview'
ANNOTATOR = 'weighted_alpaca_eval_gpt4_turbo'
RUN = f"""
import sys
import tiktoken


class Words:
  def encode(self, text, **unused):
    return text.split()


tiktoken.encoding_for_model = tiktoken.get_encoding = lambda name: Words()

from alpaca_eval import main

main.evaluate(
  model_outputs=sys.argv[1],
  reference_outputs=sys.argv[2],
  annotators_config='{ANNOTATOR}',
  output_path=sys.argv[3],
  fn_metric='get_winrate',
  sort_by='win_rate',
  caching_path=None,
  precomputed_leaderboard=None,
)
"""


def _answer(asked):
  """Log-odds by the hash of the question, with what OpenAI's client needs."""

  def answer(request):
    text = json.dumps(request['messages'], sort_keys=True)
    asked.append(text)
    number = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    found = judge_server.said(6 * (number / 2**32 - 0.5), model=MODEL)
    (choice,) = found['choices']
    choice |= {'index': 0, 'finish_reason': 'length'}
    choice['message']['role'] = 'assistant'
    (token,) = choice['logprobs']['content']
    token['logprob'] = token['top_logprobs'][0]['logprob']
    for entry in (token, *token['top_logprobs']):
      entry['bytes'] = [*entry['token'].encode()]
    found['usage'] |= {'prompt_tokens': 6, 'completion_tokens': 1}
    return 200, {
      'id': 'x',
      'object': 'chat.completion',
      'created': 1,
      **found,
    }

  return answer


def _outputs(generator: str, offset: int) -> list[dict]:
  """Rows as the evaluate stage writes them."""
  return [
    {
      'instruction': f'Name {i} colours.',
      'output': 'red, blue ' * ((i * offset) % 5 + 1),
      'generator': generator,
      'dataset': None,
      'id': str(i),
      'num_prompt_tokens': 5,
      'num_generated_tokens': 8,
      'truncated': False,
      'finish': 'stop',
    }
    for i in range(12)
  ]


def test_alpaca_eval_asks_and_counts_as_we_do(tmp_path):
  paths = {}
  for offset, name in enumerate(('random-k5-seed0', 'min_margin-k5-seed0')):
    paths[name] = tmp_path / f'{name}.json'
    paths[name].write_text(json.dumps(_outputs(name, offset + 1)))
  reference, model = paths.values()
  asked = []
  with serving(_answer(asked)) as url:
    subprocess.run(
      [sys.executable, '-c', RUN, model, reference, tmp_path / 'theirs'],
      env={**os.environ, 'OPENAI_API_BASE': url, 'OPENAI_API_KEY': 'x'},
      check=True,
    )
    theirs = {*asked}
    asked.clear()
    folder = pathlib.Path(alpaca_eval.__file__).parent / 'evaluators_configs'
    prompt = JudgePrompt.read(
      str(folder / 'alpaca_eval_clf_gpt4_turbo' / 'alpaca_eval_clf.txt')
    )
    pairs = pairs_lib.join(
      pairs_lib.read_outputs(model, 'model'),
      pairs_lib.read_outputs(reference, 'reference'),
    )
    verdicts = verdicts_lib.judge_pairs(
      EndpointJudge(Endpoint(url, MODEL), prompt),
      prompt,
      pairs,
      verdicts_lib.Answers(tmp_path / 'answers.jsonl'),
      both_orders=False,
    )
  # The same questions in the same order of outputs, except for the probe.
  assert {*asked} - theirs == {asked[0]}
  assert theirs <= {*asked}
  found, name = pairs_lib.read_annotations(
    tmp_path / 'theirs' / ANNOTATOR / 'annotations.json', pairs, 'judge'
  )
  assert name == ANNOTATOR
  assert found == pytest.approx([v.preference for v in verdicts], abs=1e-9)
