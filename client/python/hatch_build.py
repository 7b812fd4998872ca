# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Build hook: the messages are generated from the .proto at each build, also for an editable installation. A wheel that has the library of the kernels,
because a build of the tree put it there, is one for this platform."""
import pathlib
import subprocess
import sys
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateMessages(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel":
            subprocess.run([sys.executable, str(pathlib.Path(self.root) / "generate.py")], check=True)
            if (pathlib.Path(self.root) / "src/statepool/_lib/libstatepool_kernels.so").is_file():
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
