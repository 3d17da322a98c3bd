"""DeepCompress on verl; `leanthink.integrations.verl.deepcompress` is the import path for its configuration."""
