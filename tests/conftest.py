"""Four virtual CPU devices for every test, and where the recordings of the original code lie."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from registries import restored_registries

from nfllm.model import attention_implementation

ROOT = Path(__file__).parents[1]
_MANY_MAPPINGS = 20_000
# `configs/` is not part of the installed package: a script in the root finds it, and so do tests.
sys.path.insert(0, str(ROOT))

# Programs of tests run for milliseconds and are compiled for seconds: they are not optimised, and
# their fusions become LLVM instructions without MLIR, which saves a third of a test's time.
# Those of `test_train.py` are compiled as users' are, and all where `.ci/run` compares with what
# others computed.
_WITHOUT_MLIR = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ.setdefault("XLA_FLAGS", f"--xla_backend_optimization_level=0 {_WITHOUT_MLIR}")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects that stay: looking through them all after every few hundred new ones
# takes a twentieth of the suite's time.
gc.set_threshold(200_000, 50, 100)

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("nfllm", deadline=None)
hypothesis.settings.load_profile("nfllm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-dir",
        type=Path,
        default=Path(__file__).parent / "parity" / "cases",
        help="recordings of the original code, in the layout of tests/parity/cases",
    )


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs compiled once for all tests and workers, of several sessions where the user asks."""
    base = tmp_path_factory.getbasetemp()
    own = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    directory = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or own)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return directory


@pytest.fixture(autouse=True)
def exact(request: pytest.FixtureRequest) -> None:
    """Without MLIR, two programs may round what they have in common differently; users' do not."""
    if request.node.get_closest_marker("exact") and _WITHOUT_MLIR in os.environ["XLA_FLAGS"]:
        pytest.skip("equal bits: XLA_FLAGS=--xla_backend_optimization_level=0 pytest -m exact")


@pytest.fixture(autouse=True, scope="module")
def free_programs() -> Iterator[None]:
    """Frees compiled programs between files: a program takes several memory mappings.

    Linux allows a process 65,530 of them, and the compiler crashes beyond.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > _MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def blocks_of_five_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in blocks: of twelve positions, two whole ones and a shorter one."""
    monkeypatch.setattr(attention_implementation, "_FEWEST_QUERIES", 5)


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    with restored_registries():
        yield
