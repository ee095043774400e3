"""Selections are compiled with all optimizations."""

import jax
import pytest

NAME = 'jax_disable_most_optimizations'


@pytest.fixture(scope='module', autouse=True)
def optimized():
  """What the compiler does also decides whether all devices pick the same."""
  before = jax.config.read(NAME)
  jax.config.update(NAME, False)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setenv(NAME.upper(), '0')  # Of processes that tests start.
    yield
  jax.config.update(NAME, before)
