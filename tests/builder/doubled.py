"""What the builds with the doubles of all versions share."""

import re

from tests.doubles import VERSIONS

WEAK = [v for v in VERSIONS if v.startswith(("8", "10"))]
STRONG = [v for v in VERSIONS if not v.startswith("8")]
TYPED = [v for v in VERSIONS if v.startswith(("11", "rtx"))]
TENSORRT = [v for v in VERSIONS if not v.startswith("rtx")]


def flags_set(trt):
    """Names of the builder flags that were set, without those cleared again."""
    flags = set()
    for call in trt.calls:
        if call.method in ("IBuilderConfig.set_flag", "IBuilderConfig.clear_flag"):
            name = re.search(r"(\w+)>?$", str(call.args[0]).split(":")[0].strip("<> "))[1]
            (flags.add if call.method.endswith("set_flag") else flags.discard)(name)
    return flags


def created_with(trt):
    """Names of the network flags that the network was created with."""
    (call,) = [call for call in trt.calls if call.method == "Builder.create_network"]
    number = int(call.args[0])
    return {name for name, flag in trt.NetworkDefinitionCreationFlag.__members__.items() if number >> int(flag) & 1}
