"""Many steps in flight on a mesh of CPU devices, which used to deadlock."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp

from edsft_jax.mesh import InFlight


def test_weights_split_both_ways_train_twice():
  script = pathlib.Path(__file__).with_name('train_far_ahead.py')
  result = subprocess.run(
    [sys.executable, script],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  assert result.stdout.split('\n')[:-1] == ['ended 0', 'ended 1']


def test_no_more_than_a_few_steps_are_in_flight():
  in_flight = InFlight()
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: y @ y, x))
  result, results = jnp.eye(200), []
  for step in range(3 * InFlight.MAX_STEPS):
    result = slow(result)
    results.append(result)
    in_flight.add(result)
    if step >= InFlight.MAX_STEPS:
      assert results[step - InFlight.MAX_STEPS].is_ready()
