"""Whether what streams out of Triton is what the checkpoint says, and which stage is at fault when it is not.

``transcripts`` is what the checkpoint itself says, ``interview`` what each served stage says, ``judge`` and ``streaming``
compare, ``report`` names the stage at fault. ``transformers_script`` runs in another Python, which has torch and transformers.
"""
