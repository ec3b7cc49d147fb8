from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

def instrument_imports(include: Sequence[str] = ..., exclude: Sequence[str] = ...) -> AbstractContextManager[None]: ...
def Setup(argv: Sequence[str], test: Callable[[bytes], object]) -> list[str]: ...  # noqa: N802 - the library's
def Fuzz() -> None: ...  # noqa: N802 - the library's
