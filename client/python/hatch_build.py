# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Build hook: the messages are generated from the .proto at each build, also for an editable installation."""
import pathlib
import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateMessages(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel":
            subprocess.run([sys.executable, str(pathlib.Path(self.root) / "generate.py")], check=True)
