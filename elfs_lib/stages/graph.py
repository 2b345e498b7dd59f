"""What a stage is, declared once: its inputs, the parameters that it reads, who may see labels.

A stage is a function ``(given, draft)`` under :func:`stage`. The key of its artifact, the plan of a
run, the tasks of a sweep and ``elfs status`` are derived from that declaration. What the function
gets is what the key holds: asking for a parameter that the stage does not declare, or for one (or
an argument) that its key leaves out, raises :class:`UndeclaredParameter`, so no artifact can be
stale for a forgotten name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from elfs_lib.artifacts import Artifact, Draft, canonical_json
from elfs_lib.label_lock import LabelOracle
from elfs_lib.params import Params
from elfs_lib.training.recipes import recipe_key

if TYPE_CHECKING:
    from elfs_lib.stages.run import Run

#: Where and how fast a stage runs changes its results by rounding alone.
UNKEYED = frozenset({"device", "compile", "loader"})

#: What :func:`elfs_lib.training.loop.train` takes from the parameters as it is.
TRAINING_PARAMETERS = ("flip", "crop_pad", "device", "precision", "compile", "loader", "shuffle")


class UndeclaredParameter(RuntimeError):
    """A stage read a parameter that its declaration does not hold, or a parameter or an argument
    that its key does not hold."""


_NONE = object()  # of a key's entry that is never omitted


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage of the pipeline.

    Attributes:
        name: Of the stage and of the folder of its artifacts.
        build: ``(given, draft)``: computes, and writes through the draft.
        title: What people read while it runs; ``{name}`` stands for an argument.
        reads: Names of the parameters that it may read.
        inputs: ``(run, **arguments) -> {name: Call}``: the artifacts that it reads.
        unkeyed_inputs: The same for artifacts whose content is not in the key: ``key`` takes from
            them what counts, such as the choice of a search.
        key: ``(given) -> {name: value}``: what the artifact is keyed by besides its inputs, from
            :meth:`Given.key` and :meth:`Given.key_entry`. It may look at any parameter that the
            stage declares; ``build`` may read those alone from which an entry was made.
        later: Parameters that the stage reads since results were first published, with the value
            that leaves those results valid: at that value the key omits them.
        unkeyed: Parameters that it may read though the results do not depend on them.
        labels: Label policy, or ``(**arguments) -> policy``; see :mod:`elfs_lib.label_lock`. The
            keys of stages that may open labels hold the labels' digest, or the argument ``labels``
            of a stage that is given some.
        version: To be raised when the output of ``build`` changes.
        quick: It is too fast to be planned: what needs it makes it.
        given: Of a stage that takes what somebody brings: what that is called.
    """

    name: str
    build: Callable[[Given, Draft], None]
    title: str
    reads: frozenset[str]
    inputs: Callable[..., Mapping[str, Call]]
    unkeyed_inputs: Callable[..., Mapping[str, Call]] = field(default=lambda run, **arguments: {})
    key: Callable[[Given], Mapping[str, Any]] = field(default=lambda given: given.key())
    later: Mapping[str, Any] = field(default_factory=dict)
    unkeyed: frozenset[str] = UNKEYED
    labels: str | Callable[..., str] = "never"
    version: int = 1
    quick: bool = False
    given: str | None = None

    @property
    def doc(self) -> str | None:
        """What the stage computes and writes."""
        return self.build.__doc__

    def policy(self, **arguments: Any) -> str:
        """The label policy, given the stage's arguments."""
        return self.labels(**arguments) if callable(self.labels) else self.labels


def stage(
    name: str | None = None,
    *,
    title: str,
    inputs: Collection[str] | Callable[..., Mapping[str, Call]] = (),
    reads: Collection[str] = (),
    later: Mapping[str, Any] | None = None,
    unkeyed: Collection[str] = (),
    **declared: Any,
) -> Callable[[Callable[[Given, Draft], None]], Stage]:
    """Declare the function below as a stage; arguments as the attributes of :class:`Stage`.

    Args:
        name: None: that of the function.
        inputs: Names of stages without arguments, or a function as in :class:`Stage`.
    """

    def declare(build: Callable[[Given, Draft], None]) -> Stage:
        found = inputs
        if not callable(found):
            names = tuple(found)
            found = lambda run: {name: run.call(name) for name in names}  # noqa: E731
        return Stage(
            name or build.__name__,
            build,
            title,
            reads=frozenset(reads) | frozenset(later or ()),
            inputs=found,
            later=later or {},
            unkeyed=UNKEYED | frozenset(unkeyed),
            **declared,
        )

    return declare


class _Watch:
    """What was read while an entry of the key was made; nothing else can be read once the key is
    there."""

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}
        self._keyed: set[tuple[str, str]] = set()
        self._making_entry = self._closed = False

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Inside, what is read counts as keyed."""
        outer, self._making_entry = self._making_entry, True
        try:
            yield
        finally:
            self._making_entry = outer

    def add(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Entries that the key must hold in the end."""
        for name, value in entries.items():
            if self._entries.setdefault(name, value) != value:
                raise UndeclaredParameter(
                    f"A key has two entries {name!r}: give one of them another name by key_entry."
                )
        return dict(entries)

    def read(self, stage: str, kind: str, name: str) -> None:
        """A stage reads a parameter or an argument."""
        if self._closed and (kind, name) not in self._keyed:
            raise UndeclaredParameter(
                f"Stage {stage!r} reads {kind} {name!r}, which its key leaves out."
            )
        if self._making_entry:
            self._keyed.add((kind, name))

    def close(self, stage: str, key: Mapping[str, Any]) -> None:
        """The key is there: from here on only what its entries were made from may be read."""
        for name, value in self._entries.items():
            if name not in key or key[name] != value:
                raise UndeclaredParameter(
                    f"Stage {stage!r} makes {name!r} for its key and drops it."
                )
        self._closed = True


class _Declared:
    """Parameters as a stage sees them."""

    def __init__(self, run: Run, stage: Stage, watch: _Watch) -> None:
        self._run, self._stage, self._watch = run, stage, watch

    def __getattr__(self, name: str) -> Any:
        stage = self._stage
        if name not in stage.unkeyed:
            if name not in stage.reads:
                raise UndeclaredParameter(
                    f"Stage {stage.name!r} reads parameter {name!r}: add it to the stage's reads."
                )
            self._watch.read(stage.name, "parameter", name)
        return self._run.classes if name == "classes" else getattr(self._run.params, name)


class _Arguments:
    """Arguments as a stage sees them."""

    def __init__(self, stage: Stage, args: Mapping[str, Any], watch: _Watch) -> None:
        self._stage, self._args, self._watch = stage, args, watch

    def __getattr__(self, name: str) -> Any:
        if name not in self._args:
            raise AttributeError(f"Stage {self._stage.name!r} has no argument {name!r}.")
        self._watch.read(self._stage.name, "argument", name)
        return self._args[name]


class Given:
    """All that a stage gets of a run.

    Attributes:
        params: The parameters that the stage declares; ``classes`` is the parameter's, or else the
            dataset's.
        args: The stage's arguments, as attributes.
        labels: The locked labels, which open as far as the stage's policy allows.
    """

    def __init__(self, call: Call) -> None:
        self._call, self._watch = call, _Watch()
        watched = _Declared(call.run, call.stage, self._watch)
        self.params: Params = watched  # type: ignore[assignment]
        self.args = _Arguments(call.stage, call.args, self._watch)

    @property
    def labels(self) -> LabelOracle:
        if "labels" in self._call.args:  # they are in the key in place of the run's
            raise UndeclaredParameter(f"Stage {self._call.stage.name!r} is given its labels.")
        return self._call.run.labels

    @cached_property
    def inputs(self) -> dict[str, Artifact]:
        """The artifacts that the stage reads, in its key or not, by name."""
        return {name: call.artifact for name, call in self._call.before.items()}

    def some(self, *names: str) -> dict[str, Any]:
        """Parameters by name."""
        return {name: getattr(self.params, name) for name in names}

    @property
    def training(self) -> dict[str, Any]:
        """How networks are trained on the images: flips, crops, device and precision."""
        return self.some(*TRAINING_PARAMETERS)

    def key(self, *names: str, args: Collection[str] = ()) -> dict[str, Any]:
        """Parameters as keys hold them: recipes with their revision, and none of ``later`` at its
        neutral value; and arguments. Without names, all that the stage declares, and all its
        arguments."""
        later = self._call.stage.later
        if not names and not args:
            names, args = tuple(sorted(self._call.stage.reads)), tuple(self._call.args)
        with self._watch.entry():
            values = self.some(*names)
            kept = {n: v for n, v in values.items() if n not in later or v != later[n]}
            recipes = {n: recipe_key(v) for n, v in kept.items() if n.endswith("_recipe") and v}
            given = {name: getattr(self.args, name) for name in args}
        return self._watch.add(kept | recipes) | self._watch.add(given)

    def key_entry(
        self, name: str, make: Callable[[Given], Any], *, neutral: Any = _NONE
    ) -> dict[str, Any]:
        """An entry of the key that stands for all that ``make`` reads to make it.

        Args:
            name: Of the entry.
            make: ``(given) -> value``, which serialises to JSON.
            neutral: At this value the key omits the entry.
        """
        with self._watch.entry():
            value = make(self)
        return self._watch.add({} if value == neutral else {name: value})

    def make_key(self) -> dict[str, Any]:
        """What the stage's key function gives; from here on, nothing that it leaves out is read."""
        stage = self._call.stage
        keyed = dict(stage.key(self))
        self._watch.close(stage.name, keyed)
        return keyed

    def array(self, stage: str, name: str) -> np.ndarray:
        """An array of an input, memory-mapped read-only."""
        return self.inputs[stage].array(name)

    @property
    def n(self) -> int:
        """N, the number of training images."""
        return len(self.inputs["images"].array("train"))

    @property
    def train_images(self) -> np.ndarray:
        """uint8 [N, C, H, W], mapped from disk."""
        self.inputs["images"]
        return self._call.run.train_images

    @property
    def test_images(self) -> np.ndarray:
        """uint8 [M, C, H, W], mapped from disk."""
        self.inputs["images"]
        return self._call.run.test_images

    @property
    def title(self) -> str:
        """What people read while the stage runs."""
        return self._call.title

    @property
    def encoder_facts(self) -> dict[str, object]:
        """What the encoder was trained on, for the manifest: no result depends on these words."""
        return self._call.run.encoder_facts

    @property
    def device_name(self) -> str:
        """The device in words, for the manifest."""
        from elfs_lib.compute import describe_device, resolve_device

        return describe_device(resolve_device(self.params.device))


@dataclass(frozen=True)
class Call:
    """A stage of a run with its arguments: a node of the run's graph."""

    run: Run
    stage: Stage
    args: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> tuple[Params, str, str]:
        """Equal for equal stages with equal arguments of runs with equal parameters."""
        return self.run.params, self.stage.name, canonical_json(dict(self.args))

    @property
    def title(self) -> str:
        return self.stage.title.format(**self.args)

    @cached_property
    def inputs(self) -> Mapping[str, Call]:
        """The calls whose artifacts the stage reads, by name; computes nothing."""
        return self.stage.inputs(self.run, **self.args)

    @cached_property
    def before(self) -> Mapping[str, Call]:
        """The same with those that are not in the key: all that must be there first."""
        return {**self.inputs, **self.stage.unkeyed_inputs(self.run, **self.args)}

    @property
    def upstream(self) -> Iterator[Call]:
        """What this call builds on, inputs first and each once, and the call itself."""
        done: set[object] = set()

        def walk(call: Call) -> Iterator[Call]:
            if call.id not in done:
                done.add(call.id)
                for before in call.before.values():
                    yield from walk(before)
                yield call

        return walk(self)

    @property
    def reads(self) -> set[str]:
        """The parameters that the stage and what it builds on declare."""
        return set().union(*(call.stage.reads for call in self.upstream))

    @property
    def key_params(self) -> dict[str, Any]:
        """What the artifact is keyed by besides the contents of its inputs."""
        return self._key(Given(self))

    def _key(self, given: Given) -> dict[str, Any]:
        keyed = given.make_key()
        if self.stage.policy(**self.args) != "never" and "labels" not in self.args:
            keyed["labels"] = self.run.labels.digest()  # images hold no label
        return keyed

    @property
    def artifact(self) -> Artifact:
        """The stage's artifact; see :meth:`make`."""
        return self.make()

    def make(self) -> Artifact:
        """Compute the stage's artifact if it is not there.

        Raises:
            NotBuilt: if it is not there and the store only looks.
        """
        found = self.run.found
        if self.id not in found:
            found[self.id] = self._make()
        return found[self.id]

    def _make(self) -> Artifact:
        stage, given = self.stage, Given(self)
        keyed = self._key(given)

        def build(draft: Draft) -> None:
            from elfs_lib.compute import configure_runtime  # which imports torch

            configure_runtime()
            stage.build(given, draft)

        return self.run.store.run(
            stage.name,
            build,
            version=stage.version,
            params=keyed,
            inputs={name: given.inputs[name] for name in self.inputs},
            seed=keyed.get("seed"),
            labels=stage.policy(**self.args),
        )


def given_stage(
    name: str,
    build: Callable[[Draft], None],
    title: str,
    keyed: Mapping[str, Any],
    *,
    given: str | None = None,
) -> Stage:
    """A stage that takes what somebody brings in place of computing it, whatever its arguments.

    Args:
        keyed: What identifies the content, including a hash of it.
        given: See :class:`Stage`.
    """
    return Stage(
        name,
        lambda given, draft: build(draft),
        title,
        reads=frozenset(),
        inputs=lambda run, **arguments: {},
        key=lambda given: keyed,
        given=given,
    )
