"""What belongs to single papers: claims and verdicts, published numbers, names and tables.

The main paper is Jha & Reagen, "ReLU's Revival: On the Entropic Overload in Normalization-Free
LLMs" (arXiv 2410.09637), with the grid `configs/paper.py`; `aero.py` has two later ones.
`nfllm.experiment` runs any grid and does not depend on this package.
"""
