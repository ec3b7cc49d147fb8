"""The twin: forge's own `tensorrtllm` backend for a Triton without a GPU.

These files are copied beside a serving Triton (as package ``twin``) and run inside its Python backend, so they import only
each other, the standard library, numpy and tokenizers; never the rest of forge.
"""
