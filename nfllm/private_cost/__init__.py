"""The cost of private inference of a decoder, in which neither party shows the other its data.

Linear maps are cheap there; GELU, LayerNorm and softmax are not, which is why networks without
normalization and GELU are studied (arXiv 2410.09637, 2410.13060, 2501.03489). Elements, the
primitive operations of a protocol, and FLOPs are counted exactly. Bytes of communication come from
a formula fitted to published rows, only for shapes like theirs. The time is a lower bound.

    shape = DecoderShape.from_config(config.model, vocab_size=50_000)
    cost = private_cost(shape, num_tokens=128)
    cost.flops, cost.total.comparisons, cost.communication.total_bytes
"""

from nfllm.private_cost.communication import Communication, Term, communication
from nfllm.private_cost.cost import PrivateCost, private_cost, seconds_at_least
from nfllm.private_cost.operations import Operation, count_operations
from nfllm.private_cost.primitives import Primitives
from nfllm.private_cost.shape import DecoderShape

__all__ = [
    "Communication",
    "DecoderShape",
    "Operation",
    "Primitives",
    "PrivateCost",
    "Term",
    "communication",
    "count_operations",
    "private_cost",
    "seconds_at_least",
]
