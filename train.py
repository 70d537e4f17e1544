"""Trains a decoder: `python train.py` is `python -m nfllm.train`, for a checkout."""

import runpy

if __name__ == "__main__":
    runpy.run_module("nfllm.train", run_name="__main__", alter_sys=True)
