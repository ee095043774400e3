"""What we write, transformers reads; runs where torch is installed, too.

The goldens were made by one version of transformers: here the one that is
installed has to agree, in both directions.
"""

import numpy as np
import pytest

from edsft_jax import models
from edsft_jax.inference import shapes

pytestmark = pytest.mark.slow

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def live_model(path):
  """Strictly: no tensor may be missing, extra or misshapen."""
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info.values()), info
  return model.eval()


def live_logits(model, tokens) -> np.ndarray:
  with torch.no_grad():
    return model(torch.tensor(np.asarray(tokens, np.int64))).logits.numpy()


def test_transformers_reads_the_golden_as_we_do(golden):
  """The files in transformers 4's form were rewritten after the measuring."""
  np.testing.assert_allclose(
    live_logits(live_model(golden.path), golden.values['tokens']),
    golden.values['logits'],
    rtol=0,
    atol=golden.tolerance,
  )


@pytest.mark.parametrize('with_source', [True, False])
def test_transformers_reads_what_we_save(golden, tmp_path, with_source):
  source = golden.path if with_source else None
  models.save_decoder(golden.decoder, tmp_path, source)
  model = live_model(tmp_path)
  assert type(model).__name__ == golden.decoder.config.architecture
  np.testing.assert_allclose(
    live_logits(model, golden.values['tokens']),
    golden.values['logits'],
    rtol=0,
    atol=golden.tolerance,
  )


def test_generate_with_a_cache_writes_the_same(golden):
  """Padded on the left, which windows and positions must not depend on."""
  tokens = golden.values['tokens']
  padded, mask = shapes.pad_left(tokens.tolist(), tokens.shape[1] + 3)
  new = live_model(golden.path).generate(
    torch.tensor(padded.astype(np.int64)),
    attention_mask=torch.tensor(mask.astype(np.int64)),
    max_new_tokens=golden.values['greedy'].shape[1],
    do_sample=False,
    eos_token_id=None,
    pad_token_id=0,
  )
  np.testing.assert_array_equal(
    new[:, padded.shape[1] :].numpy(), golden.values['greedy']
  )


def test_transformers_reads_the_tokenizer_that_we_save(goldens, tmp_path):
  golden = goldens['tied_v4']
  models.save_decoder(golden.decoder, tmp_path, golden.path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert tokenizer('w7 w9 w3').input_ids == [7, 9, 3]
