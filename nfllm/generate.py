"""python -m nfllm.generate RUN PROMPT [--tokens N] [--temperature X] [--top_k K] [--top_p P]

In Python `nfllm.generate` is the function of this name, also after `import nfllm.generate`.
"""

import argparse
import sys

from absl import logging

from nfllm.config.extensions import add_import_flag
from nfllm.console import escape_unprintable
from nfllm.measure.generation import generate
from nfllm.run import load_run


def main(arguments: list[str] | None = None) -> int:
    """Prints a prompt and the generated text; returns 2 for faulty arguments."""
    escape_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m nfllm.generate", description="Text from the model of a run."
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("prompt", metavar="PROMPT", help="the beginning of the text")
    parser.add_argument("--tokens", type=int, default=100, help="maximum number to draw (100)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="divides the logits (1); 0: greedy"
    )
    parser.add_argument("--top_k", type=int, help="draw only from the K most probable tokens")
    parser.add_argument(
        "--top_p", type=float, help="draw only from the most probable tokens of total probability P"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    add_import_flag(parser)
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax logs every step of reading
    try:
        run = load_run(options.run, step=options.step)
        text = generate(
            run,
            options.prompt,
            max_tokens=options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.prompt + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

# Importing this module sets the package's attribute `generate`, which should be the function.
sys.modules[__name__] = generate  # type: ignore[assignment]
