"""An OpenAI-compatible embedding server around sentence-transformers.

It runs in the engine's interpreter, which need not have sagectl: nothing here imports anything of ours,
and only `model` imports torch and sentence_transformers, `app` and `main` aiohttp.
"""
