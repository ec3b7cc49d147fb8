"""What forge gives to AIPerf's environment: its packages, pinned, and a plugin by which AIPerf speaks to Triton.

forge imports nothing of it: ``endpoint`` runs in AIPerf's processes, where this folder is the package ``forge_aiperf``.
"""
