"""A fixed number of thought slots inside vLLM's paged cache; docs/vllm.md says how it is switched on."""
