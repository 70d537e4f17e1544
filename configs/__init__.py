"""Configuration files for `train.py --config`; each is a small delta on default.py."""
