"""The plugin on vLLM's model runner V2: nothing of a step waits for the host, and decoding runs as full CUDA graphs."""
