"""Models and their tokenizers: loading, prompts, shapes, predictors, and the embedded reasoner."""
