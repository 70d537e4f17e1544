"""Perplexities of losses in nats, where a loss may be too large for its exponential."""

import math


def perplexity(loss_nats: float) -> float:
    """exp(loss), or infinity if that overflows.

    Example:
      >>> perplexity(0.0), perplexity(900.0)
      (1.0, inf)
    """
    try:
        return math.exp(loss_nats)
    except OverflowError:
        return math.inf


def perplexity_change(nats: float) -> float:
    """A difference of losses as a change of perplexity in percent, 100 (exp(d) - 1).

    Example:
      >>> perplexity_change(0.0), perplexity_change(900.0)
      (0.0, inf)
    """
    return 100 * (perplexity(nats) - 1) if nats > 1 else 100 * math.expm1(nats)
