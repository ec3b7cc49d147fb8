"""How weights are quantized."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantConfig:
    """As strict as the pydantic model that it became in later releases: ``smoothquant_val`` is a number and never None."""

    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    group_size: int = 128
    smoothquant_val: float = 0.5
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.smoothquant_val, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(  # noqa: TRY004  (pydantic's ValidationError is a ValueError)
                "1 validation error for QuantConfig\nsmoothquant_val\n"
                f"  Input should be a valid number [type=float_type, input_value={self.smoothquant_val!r}]"
            )

    def to_dict(self) -> dict[str, object]:
        """As a checkpoint's config.json states it."""
        return {
            "quant_algo": self.quant_algo,
            "kv_cache_quant_algo": self.kv_cache_quant_algo,
            "group_size": self.group_size,
            "smoothquant_val": self.smoothquant_val,
            "clamp_val": None,
            "use_meta_recipe": False,
            "has_zero_point": self.has_zero_point,
            "pre_quant_scale": self.pre_quant_scale,
            "exclude_modules": None if self.exclude_modules is None else list(self.exclude_modules),
        }
