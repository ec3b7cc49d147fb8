"""Whether what streams out of Triton is what the checkpoint says, and which stage is guilty when it is not.

``prompts`` asks, ``transcripts`` is what the checkpoint itself says, ``interviews`` what each served stage says, ``comparing``
and ``checks`` judge, ``report`` names the guilty. ``recital`` runs in another Python, which has torch and transformers.
"""
