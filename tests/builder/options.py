"""Options for builds with the real TensorRT-RTX."""

from trtsparse.builder.config import BuildConfig, Profile

BATCH = Profile.parse("x:1x8x6x6:4x8x6x6:8x8x6x6")


def config(**options):
    return BuildConfig(flavour="tensorrt_rtx", **options)
