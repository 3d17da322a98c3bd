"""What the engine costs on this machine, against stock transformers: `leanthink bench`, or `python bench/engine.py`.

Imports neither typer nor rich, so that it runs wherever the engine does.
"""
