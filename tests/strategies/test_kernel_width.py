"""The kernel width of a study: from which prompts, and what is said of it."""

import numpy as np
import pytest

from edsft_jax import selection, store
from edsft_jax.strategies import derived


def width(workdir, features, budget, sizes=None):
  return derived.kernel_width(workdir, features, budget, 'hash', False, sizes)


@pytest.fixture
def workdir(tmp_path) -> store.Workdir:
  return store.Workdir(tmp_path)


def pool(n, d=3):
  return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def test_the_width_lets_the_last_pick_gain_one(workdir, capsys):
  found = width(workdir, pool(300), 30)
  kernel = selection.Rbf(width=found)
  gains = selection.facility_location(pool(300), 30, kernel).gains
  assert gains[-1] == pytest.approx(1, abs=0.03)
  assert capsys.readouterr().out.split(maxsplit=1)[1] == (
    f'kernel width {found:g}, from the gains curves of the pool: the first '
    f'pick covers {gains[0] / 300:.0%} of it, pick 30 gains {gains[-1]:.2f} '
    'prompts\n'
  )
  written = store.read_json(workdir.gains_curves)
  assert (written['width'], written['suggested']) == (found, found)
  assert (written['num_prompts'], written['budget']) == (300, 30)
  assert written['curves'][written['widths'].index(found)] == gains.tolist()


def test_a_budget_near_the_pool_is_said_to_have_no_width(workdir, capsys):
  features = np.repeat(pool(20), 2, axis=0)
  width(workdir, features, 30)
  out = capsys.readouterr().out
  assert 'pick 15 gains 1.0' in out
  assert 'pick 30 gains less than 1 at any width' in out


def test_identical_prompts_have_any_width(workdir, capsys):
  assert width(workdir, np.ones((9, 2), np.float32), 8) == 1.0
  assert 'any width would do' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('n', 'budget', 'num_prompts', 'picks'),
  [
    (300, 30, 300, 30),
    (500, 50, 400, 40),
    # 400 prompts would leave 10 picks.
    (1_200, 30, 800, 20),
    (3_000, 5, 2_000, 3),
  ],
)
def test_a_sample_keeps_the_share_of_the_budget(
  workdir, n, budget, num_prompts, picks
):
  sizes = derived.SampleSizes(prompts=400, most_prompts=2_000)
  width(workdir, pool(n, 2), budget, sizes)
  written = store.read_json(workdir.gains_curves)
  assert (written['num_prompts'], written['budget']) == (num_prompts, picks)
