"""How a model is spread over GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mapping:
    """Tensor times pipeline times context parallelism has to be the world size."""

    world_size: int = 1
    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    moe_tp_size: int = -1
    moe_ep_size: int = -1
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        if self.tp_size * self.pp_size * self.cp_size != self.world_size:
            raise ValueError(
                f"world_size must equal to tp_size * pp_size * cp_size, but got {self.world_size} != "
                f"{self.tp_size} * {self.pp_size} * {self.cp_size}"
            )

    def to_dict(self) -> dict[str, int]:
        """As a checkpoint's config.json states it."""
        experts = (self.moe_tp_size, self.moe_ep_size) if self.moe_tp_size > 0 else (self.tp_size, 1)
        return {
            "world_size": self.world_size,
            "gpus_per_node": self.gpus_per_node,
            "cp_size": self.cp_size,
            "tp_size": self.tp_size,
            "pp_size": self.pp_size,
            "moe_tp_size": experts[0],
            "moe_ep_size": experts[1],
        }
