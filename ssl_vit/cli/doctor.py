"""See where a run's time goes: the benchmark command with suite=doctor."""

from ssl_vit.cli.pretrain import plan
from ssl_vit.config.resolve import Resolved
from ssl_vit.config.schema import RunConfig as Config

__all__ = ["USAGE", "Config", "plan", "run"]
USAGE = "suite=doctor method=mae [recipe=digits] [key=value ...]"


def run(resolved: Resolved[Config]) -> None:
    """Examine the run that the settings mean."""
    from ssl_vit.train import doctor

    doctor.run(resolved.config, resolved.name)
