"""Small random models of each architecture, a tokenizer made on the spot and a random predictor, for tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from leanthink.engine.model_runner import ModelRunner
from leanthink.models.transformers_versions import withholds_options

torch.set_num_threads(1)  # these models are too small to share a step among threads

VOCABULARY = 300
CONTEXT = 4096
OPEN, CLOSE, END = 256, 257, 258

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 259,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
    "mamba_expand": 1,
}
DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "smollm3": {"num_hidden_layers": 3, "no_rope_layer_interval": 2},
    "gemma3_text": {**SLIDING, "head_dim": 16, "query_pre_attn_scalar": 24, "tie_word_embeddings": False},
    "afmoe": {**SLIDING, **EXPERTS, "head_dim": 16, "num_experts": 4, "num_shared_experts": 1, "num_dense_layers": 1},
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "cohere2": {**SLIDING, "tie_word_embeddings": False},
    "cwm": {**SLIDING, "head_dim": 16, "bos_token_id": 0},
    "dots1": {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    "exaone4": SLIDING,
    "exaone_moe": {**SLIDING, **EXPERTS, "num_experts": 4},
    "gemma4_text": {
        **SLIDING,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "tie_word_embeddings": False,
    },
    "glm4": {"head_dim": 16},
    "glm4_moe": {**EXPERTS, "head_dim": 16, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "gpt_oss": {
        **SLIDING,
        "experts_implementation": "eager",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "granite": {},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.25},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 32},
    "minimax_m2": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": {**SLIDING, "head_dim": 16},
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 64.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "olmo3": SLIDING,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "head_dim": 24},
    "seed_oss": {"head_dim": 16, "attention_dropout": 0.0, "residual_dropout": 0.0},
}
HYBRIDS: dict[str, dict[str, Any]] = {  # with linear or state-space layers
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "key_multiplier": 0.5},
    "granitemoehybrid": {
        **MAMBA,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        "attention_multiplier": 0.25,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**EXPERTS, "num_experts": 4, "num_dense_layers": 1, "layer_types": ["full_attention", "conv"]},
    "nemotron_h": {
        **EXPERTS,
        "head_dim": 16,
        "layers_block_type": ["linear_attention", "full_attention", "moe", "linear_attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 32,
    },
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {
        **DELTA,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_hidden_layers": 3,
    },
    "qwen3_5_moe_text": {**DELTA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_next": {**DELTA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
}
HYBRIDS = {name: facts for name, facts in HYBRIDS.items() if not withholds_options(name)}
ARCHITECTURES |= HYBRIDS
OTHER_MIXTURES = ("dots1", "gpt_oss", "minimax_m2", "mixtral", "olmoe")
MIXTURES = [name for name in ARCHITECTURES if name not in HYBRIDS and (name.endswith("moe") or name in OTHER_MIXTURES)]


def make_model(architecture: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random model in evaluation mode whose greedy text does not fall into a loop at once."""
    torch.manual_seed(seed)
    facts = {**SIZES, **ARCHITECTURES[architecture], **changes}
    if "layer_types" in facts:
        layers = facts["num_hidden_layers"]
        facts["layer_types"] = (facts["layer_types"] * layers)[:layers]
    config = CONFIG_MAPPING[architecture](**facts)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:  # of experts, all of a layer are one
                parameter.normal_(std=1.6 * parameter.shape[-1] ** -0.5)
            elif name.endswith("sinks"):
                parameter.normal_()
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = 259
    return model


def endless(architecture: str = "llama", **changes: Any) -> Any:
    """A model that neither ends nor leaves its thought, so that every budget is met."""
    model = make_model(architecture, **changes)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.get_output_embeddings().weight[[OPEN, CLOSE, END]] = 0
    return model


def mix_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own forward feeds prompts and rows together, as on a GPU in half precision."""
    monkeypatch.setattr(ModelRunner, "mixes_prompts", property(lambda runner: runner.lean is not None))


def stock_tokens(model: Any, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """What transformers' own greedy `generate` writes."""
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    return tuple(out[0, len(prompt) :].tolist())


def with_experts(model: Any, implementation: str) -> Any:
    """The same, whose experts, if it has any, are computed in this way of transformers."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation(implementation)
    return model


def make_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes 0 to 255, then <think>, </think>, the end and the padding: one token each."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<think>", "</think>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = chat_template
    assert fast.convert_tokens_to_ids(["<think>", "</think>", "<|end|>", "<|pad|>"]) == [OPEN, CLOSE, END, 259]
    return fast


class RandomPredictor(nn.Module):
    """An importance predictor that was fitted to nothing."""

    def __init__(
        self, hidden_size: int, target: str, horizons: tuple[int, ...] = (), offsets: tuple[int, ...] = (0,)
    ) -> None:
        super().__init__()
        self.target, self.horizons, self.offsets, self.num_sets = target, horizons, offsets, 1
        self.head = nn.Linear(len(offsets) * 2 * hidden_size, max(1, len(horizons)))

    def forward(self, hidden_states_NWF: Tensor) -> Tensor:
        """Scores [N, C]."""
        return self.head(hidden_states_NWF.flatten(1))
