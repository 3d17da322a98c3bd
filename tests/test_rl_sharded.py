"""What is written of a policy that lies in shards on several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from command_line import ENVIRONMENT
from leanthink.models.loading import load

SCRIPT = Path(__file__).parent / "rl_sharded.py"


@pytest.mark.slow
def test_the_final_model_is_whole_though_checkpoints_are_shards(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    written, _ = load(tmp_path / "final", device="cpu")
    whole = torch.load(tmp_path / "whole.pt")
    assert written.state_dict().keys() == whole.keys()
    assert all(torch.equal(weight, whole[name]) for name, weight in written.state_dict().items())
