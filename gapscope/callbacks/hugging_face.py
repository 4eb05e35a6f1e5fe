"""The callback for `transformers.Trainer`."""

from typing import TYPE_CHECKING, Any

from gapscope.callbacks.recorder import Recorder
from gapscope.errors import LoadError

if TYPE_CHECKING:
    TrainerCallback: Any
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise LoadError(
            "`TrainerSharpness` needs transformers, which does not import here. Expected version 5. Install it: "
            "`pip install transformers accelerate`."
        ) from error


class TrainerSharpness(TrainerCallback):  # type: ignore[misc]  # an optional package, so of unknown type
    """Measures every `every` optimizer steps and at the end; the numbers go through `trainer.log`.

        trainer.add_callback(TrainerSharpness(trainer, data))

    A callback is not told of its trainer, so it is given.  Other arguments: see `Recorder`.  The last step is measured
    before `load_best_model_at_end` brings back the weights of another.
    """

    def __init__(self, trainer: Any, data: Any, **settings: Any) -> None:
        self.trainer = trainer
        self.recorder = Recorder(data, **settings)

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:  # noqa: ARG002
        """Measure if the step is due, or the last that was planned."""
        if self.recorder.due(state.global_step) or control.should_training_stop:
            self._measure(model, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Measure the last step, unless the model is by now the best checkpoint's: that is another step."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._measure(model, state, control)

    def _measure(self, model: Any, state: Any, control: Any) -> None:
        if state.is_world_process_zero and (numbers := self.recorder.measure(model, state.global_step)):
            # logging ends with `should_log` off: the Trainer's own log of this step would be lost, on this rank alone
            asked = {name: getattr(control, name) for name in ("should_log", "should_save", "should_evaluate")}
            self.trainer.log(numbers)
            for name, value in asked.items():
                setattr(control, name, value)
