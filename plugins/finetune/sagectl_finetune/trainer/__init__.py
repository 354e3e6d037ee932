"""The fine-tuning program, run by `run_trainer.py` in the engine's interpreter. Never imported by the daemon.

The modules import torch and transformers inside functions or late, so that a stop that comes while they load
is answered at once.
"""
