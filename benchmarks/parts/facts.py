"""The device, and its measured peak speed: matrix products and a copy."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parts.rows import Row, Rows

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "transformers")


class Product(NamedTuple):
    """Sizes of a product [rows, inner] x [inner, columns]."""

    rows: int
    inner: int
    columns: int


# Matrix products of GPT-2 124M with 65,536 tokens per step: those of a layer, and the head.
GPT2_PRODUCTS = {
    "query, key, value": Product(65536, 768, 2304),
    "attention output": Product(65536, 768, 768),
    "MLP in": Product(65536, 768, 3072),
    "MLP out": Product(65536, 3072, 768),
    "head": Product(65536, 768, 50304),
}


def run(rows: Rows, rehearse: bool) -> None:
    rows.add("machine", _machine)
    size = 128 if rehearse else 8192
    for name, dtype, precision in (
        ("bfloat16", "bfloat16", "default"),
        ("tf32", "float32", "tensorfloat32"),
        ("float32", "float32", "highest"),
    ):
        product = Product(size, size, size)
        rows.add(f"product {name}", lambda p=product, d=dtype, q=precision: _product(p, d, q))
    rows.add("copy", lambda: _copy(2**20 if rehearse else 2**31))
    for name, product in GPT2_PRODUCTS.items():
        if rehearse:
            product = Product(*(n // 256 + 1 for n in product))
        rows.add(f"GPT-2 {name}", lambda p=product: _product(p, "bfloat16", "default"))


def median_seconds(job: Callable[[], object], repeats: int = 12) -> float:
    """Median seconds of a call, after two untimed calls."""
    seconds = []
    for number in range(repeats + 2):
        begin = time.perf_counter()
        jax.block_until_ready(job())
        if number >= 2:
            seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def _product(product: Product, dtype: str, precision: str) -> Row:
    left, right = jax.random.split(jax.random.key(0))
    a = jax.random.normal(left, (product.rows, product.inner)).astype(dtype)
    b = jax.random.normal(right, (product.inner, product.columns)).astype(dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    seconds = median_seconds(lambda: multiply(a, b))
    operations = 2.0 * product.rows * product.inner * product.columns
    return {"shape": list(product), "ms": 1e3 * seconds, "tflops": operations / seconds / 1e12}


def _copy(num_bytes: int) -> Row:
    x = jax.random.normal(jax.random.key(2), (num_bytes // 4,))
    copy = jax.jit(lambda x: x + 1.0)
    seconds = median_seconds(lambda: copy(x))
    return {"bytes": num_bytes, "gbytes_per_second": 2e-9 * num_bytes / seconds}


def _machine() -> Row:
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "devices": jax.device_count(),
        "kind": device.device_kind,
        "platform": getattr(device.client, "platform_version", "").strip().splitlines()[-1:],
        "memory_gb": stats.get("bytes_limit", 0) / 1e9,
        "driver": _driver(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": versions,
    }


def _driver() -> str | None:
    """Card, memory and driver as nvidia-smi reports them; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or None
