"""What the twin says when it cannot go on."""


class CheckpointFault(Exception):  # noqa: N818 (forge's own errors live on a floor that the twin cannot import)
    """The engine folder holds no model that the twin can run; the model does not load."""


class RequestFault(Exception):  # noqa: N818
    """One request asks for what cannot be answered; only that request ends, with Triton's INVALID_ARG."""


class KernelFault(Exception):  # noqa: N818
    """Why this machine has no machine code for the decoder; numpy does the work then."""
