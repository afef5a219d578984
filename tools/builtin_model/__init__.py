"""The maker of the built-in demo model. Only this docstring lives here.

Not part of the installed package: `python -m tools.builtin_model` from the repository root makes
`walled/models/walled-demo.gguf` and its training record. Reading order: facts, phrases_en, phrases_es,
grammar, tokenizer, batches, model, train, export, evaluate, make_model.
"""
