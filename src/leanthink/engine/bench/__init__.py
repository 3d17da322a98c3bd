"""What `leanthink bench` measures: what the engine costs on this machine, against transformers."""
