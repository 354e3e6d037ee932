"""What the kinds that run model servers share: places of models, flags, vLLM, causes of failures.

No kind itself: it registers nothing, and depends on `sagectl.plugin` alone.
"""
