"""Results of tuning, made up; and a strategy of them."""

from hypothesis import strategies as st

from trtsparse.tune.gemm import DTYPES, EPILOGUES, Gemm
from trtsparse.tune.lessons import Lessons
from trtsparse.tune.result import GemmResult, Kernel

INPUTS = [name for name, kind in DTYPES.items() if kind.outputs]
numbers = st.floats(1e-6, 1e6)
texts = st.text(max_size=12)
facts = st.dictionaries(texts, texts, max_size=3)
lessons = st.builds(Lessons, st.dictionaries(texts, texts, max_size=3), st.sets(texts, max_size=3))


def kernel(kind, ms, **fields):
    parameters = {"config": 1, "split_k": 1, "mode": ""} if kind == "sparse" else {
        "data": "ab" * 64, "fast_accumulation": False, "workspace_nbytes": 4
    }  # fmt: skip
    given = {"name": "config 1" if kind == "sparse" else "0", "parameters": parameters, **fields}
    return Kernel(kind=kind, ms=ms, low=ms * 0.98, high=ms * 1.03, error=1e-3, bound=4e-3, **given)


def result(gemm, dense_ms=2.0, sparse_ms=1.0, **fields):
    """Of a product that takes so long."""
    gains = (dense_ms / sparse_ms,) * 3 if dense_ms and sparse_ms else ()
    return GemmResult(
        gemm,
        kernel("dense", dense_ms) if dense_ms else None,
        kernel("sparse", sparse_ms) if sparse_ms else None,
        gains,
        defaults={"dense": 2.2, "sparse": 3.0},
        tried=9,
        **fields,
    )


@st.composite
def gemms(draw, most=64):
    dtype = draw(st.sampled_from(INPUTS))
    dims = [draw(st.integers(1, most)) for _ in "mnk"]
    epilogues = [name for name in EPILOGUES if dtype != "int8" or "add" not in name]
    return Gemm(*dims, dtype, draw(st.sampled_from(DTYPES[dtype].outputs)), draw(st.sampled_from(epilogues)))


kernels = st.builds(
    Kernel, st.sampled_from(["dense", "sparse"]), texts, st.dictionaries(texts, st.integers() | texts, max_size=3),
    numbers, numbers, numbers, numbers, numbers,
)  # fmt: skip
results = st.builds(
    GemmResult,
    gemms(),
    st.none() | kernels,
    st.none() | kernels,
    st.lists(numbers, max_size=3).map(tuple),
    defaults=st.dictionaries(st.sampled_from(["dense", "sparse"]), numbers),
    tried=st.integers(0, 99),
    skipped=st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
    refused=st.dictionaries(texts, st.integers(1, 9), max_size=2),
    restarts=st.integers(0, 9),
    facts=st.dictionaries(texts, texts | st.integers(), max_size=2),
)
