"""What belongs to one paper: its claims and verdicts, its published numbers, its names and tables.

The paper is Jha & Reagen, "ReLU's Revival: On the Entropic Overload in Normalization-Free LLMs"
(arXiv 2410.09637). `configs/paper.py` is its grid; `nfllm.experiment` runs any grid and knows
nothing of this package.
"""
