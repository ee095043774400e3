"""All defaults; edsft_jax/config.py documents every option.

  python -m edsft_jax.main --config=configs/default.py --workdir=DIR \
      --config.pool.path=prompts.jsonl --config.model.path=HF_DIR
"""

from edsft_jax.config import get_config

__all__ = ['get_config']
