"""Kernels of the double libraries, which take some time."""

from trtsparse.tune.dense import Dense, dense_form
from trtsparse.tune.result import Kernel


def sparse_kernel(ms=1.0):
    return Kernel("sparse", "config 2", {"config": 2}, ms, ms, ms, 0, 0)


def dense_kernel(gemm, ms=1.0):
    problem = Dense(dense_form(gemm))
    algorithm = problem.algorithms(workspace_nbytes=1 << 20)[1]
    problem.close()
    return Kernel("dense", "1", vars(algorithm), ms, ms, ms, 0, 0)
