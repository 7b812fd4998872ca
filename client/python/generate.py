# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Generates the messages of proto/statepool/v1 into src/statepool/v1. The build runs it; so may you, after a change of the .proto.

Needs the grpcio-tools that pyproject.toml pins. The .proto is that of the repository or, in a source distribution, the copy inside.
"""
import importlib.resources
import pathlib
import sys

PROTO = "statepool/v1/statepool.proto"


def main() -> int:
    from grpc_tools import protoc

    here = pathlib.Path(__file__).resolve().parent
    root = next((r for r in (here.parent.parent / "proto", here / "proto") if (r / PROTO).is_file()), None)
    if root is None:
        print(f"{PROTO} is neither in ../../proto nor in proto: build inside a clone or a source distribution", file=sys.stderr)
        return 1
    out = here / "src"
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    return int(protoc.main(["protoc", f"-I{root}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}", PROTO]))


if __name__ == "__main__":
    sys.exit(main())
