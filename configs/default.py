"""A small norm-free ReLU decoder on Python source: offline, on a CPU, in minutes.

    python train.py --config configs/default.py

Every key, with its default, unit and meaning, is in nfllm/config/keys.py. Other files in this
folder are small deltas on this one, and `--config.SECTION.KEY=VALUE` changes a single key. A config
of your own is a file such as

    from configs.default import get_config as default_config

    def get_config():
        config = default_config()
        config.model.activation = "gelu"
        return config
"""

from nfllm.config import get_config

__all__ = ["get_config"]
