"""Fixtures of the finetuning tests."""

import pathlib

import pytest
import tiny_study

from edsft_jax import store


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> store.Workdir:
  """A tiny study whose answers are known, before finetuning."""
  return tiny_study.make(tmp_path)
