"""vLLM in a process of its own: options and requests come in on stdin, tokens go to the file that is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

if os.environ.get("TRITON_INTERPRET") == "1":  # model runner V2 wants a Triton that knows this device
    import triton.backends

    triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    options, prompts, params = json.load(sys.stdin)
    outputs = LLM(**options).generate(
        [{"prompt_token_ids": ids} for ids in prompts], [SamplingParams(**one) for one in params], use_tqdm=False
    )
    Path(sys.argv[1]).write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
