"""The callback for `lightning.Trainer` (or pytorch_lightning's)."""

from typing import TYPE_CHECKING, Any

from gapscope.callbacks.recorder import Recorder
from gapscope.errors import LoadError

if TYPE_CHECKING:
    Callback: Any
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise LoadError(
                "`LightningSharpness` needs lightning, which does not import here. Expected version 2. Install it: "
                "`pip install lightning`."
            ) from error


class LightningSharpness(Callback):  # type: ignore[misc]  # an optional package, so of unknown type
    """Measures every `every` optimizer steps and at the end; the model is the module itself, as its `forward` does.

    The numbers go to every logger of the trainer.  Arguments: see `Recorder`.
    """

    def __init__(self, data: Any, **settings: Any) -> None:
        self.recorder = Recorder(data, **settings)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Measure if the step is due."""
        if self.recorder.due(trainer.global_step):
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            numbers = self.recorder.measure(pl_module, trainer.global_step)
            for logger in trainer.loggers if numbers else ():
                logger.log_metrics(numbers, step=trainer.global_step)
