"""A rank of two whose policy lies in shards, as FSDP2 has it: `rl_sharded.py FOLDER` writes the final model there.

Accelerate shards on GPUs alone, so the model is sharded here, by torch, over two processes on CPUs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from leanthink.rl.run import _save_final
from rl_runs import make_trainer


def main(folder: Path) -> None:
    """One rank."""
    trainer, _ = make_trainer(folder, per_device_train_batch_size=2)
    whole = folder / "whole.pt"
    if distributed.get_rank() == 0:
        torch.save(trainer.model.state_dict(), whole)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for module in (*trainer.model.model.layers, trainer.model):
        fully_shard(module, mesh=mesh)
    assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    trainer.is_fsdp_enabled = True
    AcceleratorState.is_fsdp2 = True
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    trainer.accelerator.state.fsdp_plugin = plugin
    _save_final(trainer, folder / "final", adapters=False)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
