"""A calculation: what bounds a training step on a v5p-256 pod, for pmap and fsdp at three sizes.

    python benchmarks/cost_model.py [--tokens 2097152]

Nothing here is measured. A v5p-256 has 256 TensorCores, which are 128 chips. Per chip, as Google
publishes for TPU v5p: 459 TFLOP/s in bfloat16, 95 GB of memory at 2,765 GB/s, and 4,800 Gbit/s of
links between chips: 600 GB/s if a collective uses all of them at once, which is the best case.

State, parameters and two Adam moments in float32: 12 bytes per parameter, all on every chip with
pmap, 1/128 of them with fsdp. Gradients add 4 bytes per parameter while a step runs.

Network, bytes that a chip sends in a step, P parameters on N chips, A micro-batches:
  pmap  one all-reduce of the float32 gradients after the last micro-batch, as a ring:
        2 (N - 1) / N x 4 P
  fsdp  each micro-batch gathers the float32 parameters for the forward and again for the backward
        pass, and reduce-scatters the float32 gradients: A x 3 (N - 1) / N x 4 P, at most: a
        compiler may gather once for all micro-batches, as `scaling.py` shows on a CPU, which takes
        4 P bytes of memory more
Compute: 6 FLOPs per parameter and token, and 6 L D T per token for causal attention, at half of the
published peak, about what good programs reach.
Memory: a chip reads or writes its share of the state six times (three arrays in, three out), and
with A micro-batches all parameters 2 A times and all gradients 2 A times; activations are left out.
A step takes at least the longest of the three, if they overlap.
"""

import argparse
from typing import NamedTuple

CHIPS = 128
FLOPS = 459e12
USABLE = 0.5
MEMORY_BYTES = 95e9
MEMORY_BYTES_PER_SECOND = 2765e9
NETWORK_BYTES_PER_SECOND = 4800e9 / 8


class Size(NamedTuple):
    """Layers, width, context and vocabulary of a GPT-2 shaped model with a tied head."""

    name: str
    num_layers: int
    embed_dim: int
    context_length: int = 1024
    vocab_size: int = 50257

    @property
    def parameters(self) -> int:
        """Number of parameters, without biases and normalizations."""
        embeddings = (self.vocab_size + self.context_length) * self.embed_dim
        return embeddings + 12 * self.num_layers * self.embed_dim**2

    def flops(self, tokens: int) -> float:
        """FLOPs of forward and backward pass over `tokens` tokens, as in the module's docstring."""
        attention = self.num_layers * self.embed_dim * self.context_length
        positions = self.context_length * self.embed_dim  # these need no matrix product
        return 6 * (self.parameters - positions + attention) * tokens


SIZES = [Size("124M", 12, 768), Size("1.3B", 24, 2048), Size("13B", 40, 5120)]


def network_bytes(size: Size, strategy: str, micro_batches: int, chips: int = CHIPS) -> float:
    passes = 2 if strategy == "pmap" else 3 * micro_batches
    return passes * (chips - 1) / chips * 4 * size.parameters


def memory_bytes(size: Size, strategy: str, micro_batches: int) -> float:
    share = 1 if strategy == "pmap" else 1 / CHIPS
    return (6 * share + 4 * micro_batches) * 4 * size.parameters


def state_bytes(size: Size, strategy: str) -> float:
    """Bytes per chip of parameters, Adam moments and gradients."""
    return 16 * size.parameters / (1 if strategy == "pmap" else CHIPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1 << 21, help="per optimizer step")
    parser.add_argument("--micro_batches", type=int, default=1, help="per optimizer step")
    options = parser.parse_args()
    tokens, parts = options.tokens, options.micro_batches
    print(
        f"{CHIPS} chips, {tokens:,} tokens a step in {parts} micro-batch(es), milliseconds\n"
        f"{'':12} {'state/chip':>11} {'sent/chip':>10} {'network':>8} {'compute':>8} {'memory':>7}"
        f" {'bound by':>9} {'network = compute at':>21}"
    )
    for size in SIZES:
        for strategy in ("pmap", "fsdp"):
            sent = network_bytes(size, strategy, parts)
            milliseconds = {
                "network": 1e3 * sent / NETWORK_BYTES_PER_SECOND,
                "compute": 1e3 * size.flops(tokens) / (CHIPS * FLOPS * USABLE),
                "memory": 1e3 * memory_bytes(size, strategy, parts) / MEMORY_BYTES_PER_SECOND,
            }
            held = state_bytes(size, strategy)
            bound = max(milliseconds, key=lambda name: milliseconds[name])
            even = tokens * milliseconds["network"] / milliseconds["compute"]
            print(
                f"{size.name:>6} {strategy:5} {held / 1e9:8.2f} GB {sent / 1e9:7.2f} GB"
                f" {milliseconds['network']:8.1f} {milliseconds['compute']:8.1f}"
                f" {milliseconds['memory']:7.1f} {bound if held < MEMORY_BYTES else 'no room':>9}"
                f" {even:14,.0f} tokens"
            )


if __name__ == "__main__":
    main()
