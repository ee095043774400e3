"""Every option with its default, unit and meaning: edsft_jax/config.py.

  python -m edsft_jax.main --config=configs/default.py --workdir=DIR \
      --config.pool.path=prompts.jsonl --config.model.path=HF_DIR
"""

from edsft_jax.config import get_config

__all__ = ['get_config']
