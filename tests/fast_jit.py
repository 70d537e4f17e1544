"""`jax.jit` for programs so tiny that only compilation takes time."""

import functools

import jax

fast_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
