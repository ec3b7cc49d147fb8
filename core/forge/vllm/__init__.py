"""vLLM behind Triton: forge's own ``vllm`` backend.

``backend`` is what Triton's Python stub loads, and ``engine`` a process of its own that holds vLLM, in its own environment:
docs/decisions/0013-vllm-in-a-process-of-its-own.md says why. The two speak in frames over a pair of sockets that nobody else
can open. Nothing here imports forge, and nothing but ``engine`` and ``sampling`` imports vllm.
"""
