"""Loss curves of torch and peft, recorded; test_live_peft.py runs them."""

import json

import numpy as np
import peft_parity
import pytest


@pytest.mark.parametrize('method', list(peft_parity.METHODS))
def test_losses_are_those_of_torch_and_peft(method):
  expected = json.loads(peft_parity.GOLDEN.read_text())[method]
  assert len(expected) == peft_parity.STEPS
  np.testing.assert_allclose(
    peft_parity.our_losses(method), expected, rtol=1e-5
  )
