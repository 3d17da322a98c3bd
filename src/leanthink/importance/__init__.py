"""Learning which thought tokens will still be needed: traces, labels, and the predictor fitted to them."""
