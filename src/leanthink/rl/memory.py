"""What a training run needs of a device's memory, and what a step of it does: numbers in, sentences out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from leanthink.utils.errors import LeanThinkWarning, UsageError

GIB, MIB = 2**30, 2**20
NEAR = 0.9  # of the memory: a warning is due, as the rest is needed for what nobody counts
# Numbers of a weight's own type that an optimizer keeps for each; adafactor and sgd keep next to none.
STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "adamw_apex_fused": 2, "adagrad": 1, "rmsprop": 1}
NO_STATES = ("adafactor", "sgd")
TILE_TOKENS, TILE_WORDS = 4096, 32768  # of the logits that TRL's fused head has at a time
TORCH_COPIES = 7 * 4 + 1  # bytes of a logit beside itself: seven tensors in float32 and a mask


@dataclass(frozen=True, kw_only=True)
class RunNeeds:
    """Bytes on one device, by what they are of.

    Attributes:
        weights: of the policy, adapters too, and of the reference model where there is one.
        gradients: of what is trained, twice with DDP, which sends copies of them.
        optimizer: its states.
        rollout_copy: of the weights that our engine generates with.
        slots: of the engine, or the share that vLLM takes.
        growing: of the cache of rollouts="transformers" when each response is as long as it may be.
        update: about what the forward of one micro-batch keeps for its backward pass, and the tiles of its logits; None
            where it could not be traced.
        slots_of: what `slots` are, in words.
        sleeps: whether the slots are given back before an update.
    """

    weights: int
    gradients: int
    optimizer: int
    rollout_copy: int = 0
    slots: int = 0
    growing: int = 0
    update: int | None = 0
    slots_of: str = ""
    sleeps: bool = False

    @property
    def held(self) -> int:
        """What is needed at one time for certain: during rollouts or during an update, without activations."""
        always = self.weights + self.optimizer + self.rollout_copy
        updating = self.gradients if self.sleeps else self.gradients + self.slots
        return always + max(self.slots, updating)

    @property
    def peak(self) -> int:
        """`held`, or more where a cache grows to its end, or an update keeps all that it may."""
        always = self.weights + self.optimizer + self.rollout_copy
        updating = self.gradients + (self.update or 0) + (0 if self.sleeps else self.slots)
        return always + max(self.slots, self.growing, updating)

    def times(self, processes: int) -> RunNeeds:
        """Of so many processes that share one memory."""
        numbers = {name: value * processes for name, value in vars(self).items() if type(value) is int}
        return RunNeeds(**vars(self) | numbers)

    @property
    def parts(self) -> dict[str, int]:
        """Those of `held` that there are, by their names."""
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer states": self.optimizer,
            "rollout copy": self.rollout_copy,
            f"slots ({self.slots_of})": self.slots,
        }
        return {name: count for name, count in named.items() if count}


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What the update of one step learns from, and what is generated for it.

    Attributes:
        responses: that a step learns from, on all processes.
        group: responses to each prompt.
        max_tokens: of one response.
        generated: responses of a generation batch.
        rounds: most generation batches, with what is drawn beyond their size, that fill one.
        steps: that one generation batch lasts.
    """

    responses: int
    group: int
    max_tokens: int
    generated: int
    rounds: int
    steps: float

    @property
    def told(self) -> str:
        """In a line."""
        groups = self.responses / self.group
        line = (
            f"a step: {groups:g} group{'s' * (groups != 1)} of {self.group} responses, "
            f"{self.responses * self.max_tokens} tokens at most"
        )
        if self.steps != 1:
            line += f"; {self.generated} responses are generated for {self.steps:g} steps"
        if self.rounds > 1:
            line += f"; up to {self.rounds * self.generated} are generated until a batch is full"
        return line


def optimizer_bytes(optim: str, trained_bytes: int) -> int:
    """Of the states for trained weights of so many bytes; 0 for an optimizer that is not known here."""
    return STATES.get(optim, 0) * trained_bytes


def head_bytes(*, tokens: int, hidden_size: int, words: int, number: int, trained: bool, in_torch: bool = False) -> int:
    """What the fused head takes for the backward pass of so many scored tokens: no logits but a tile.

    Args:
        tokens: scored ones, of one micro-batch.
        hidden_size: of the model.
        words: of the vocabulary.
        number: bytes of a number of the forward pass.
        trained: whether the head's own weights are, whose gradient is made in float32 first.
        in_torch: whether a tile's gradient is made of whole tensors, as on a CPU, and not in place by a kernel.
    """
    copies = TORCH_COPIES if in_torch else 0
    tile = min(tokens, TILE_TOKENS) * min(words, TILE_WORDS) * (number + copies)
    return tile + 4 * hidden_size * (tokens + words * trained)


def size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.1f} MiB"


def told(needs: RunNeeds, step: StepSize, memory: int | None, where: str, *, optim: str) -> list[str]:
    """A few lines that say what a run needs, of how much memory and where, and what a step does."""
    parts = ", ".join(f"{name} {size(count)}" for name, count in needs.parts.items())
    of = "" if memory is None else f" of {size(memory)}"
    line = f"memory: {size(needs.held)}{of} on {where}: {parts}"
    if needs.sleeps:
        line += " (given back before an update)"
    more = "what an update keeps is not known for this model"
    if needs.update is not None:
        more = f"an update keeps about {size(needs.update)} more"
    if needs.growing:
        more += f"; rollouts, whose cache grows, up to {size(needs.growing)}"
    if optim not in STATES and optim not in NO_STATES:
        more += f"; the states of optim={optim} are not counted"
    return [line, more, step.told]


def check_fits(needs: RunNeeds, memory: int, where: str, lower: str, *, certain: bool = True) -> None:
    """Refuse a run that cannot fit, and warn of one that hardly does.

    Args:
        needs: of one device, or of all processes that share the memory.
        memory: of the device in all, in bytes.
        where: the device.
        lower: the settings that would lower it, in words.
        certain: whether all of it lies on the device; else a part may be elsewhere, and a warning has to do.

    Raises:
        UsageError: what is needed for certain, activations not among it, is more than the memory.
    """
    if certain and needs.held > memory:
        parts = ", ".join(f"{name} {size(count)}" for name, count in needs.parts.items())
        raise UsageError(
            f"the run cannot fit: it needs {size(needs.held)} without activations, and {where} has {size(memory)} "
            f"({parts}): {lower}"
        )
    if needs.peak > NEAR * memory:
        warnings.warn(
            f"the run may not fit: it needs {size(needs.held)} without activations, {size(needs.peak)} at its peak if "
            f"responses are as long as they may be, and {where} has {size(memory)}: {lower}",
            LeanThinkWarning,
            stacklevel=2,
        )
