import json
from dataclasses import MISSING, dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlin.errors import MerlinError
from merlin.runs.settings import from_dict, list_settings, override, to_dict


@dataclass(frozen=True)
class Model:
    kl_cost: float | None = None
    """Weight of the KL; none
    scales it by the observation."""
    memory_size: int = 64
    mask_empty: bool = True
    """Whether rows that were never written are masked."""
    read: Literal["softmax", "top-k"] = "softmax"
    widths: tuple[int, ...] = (32, 16)

    def __post_init__(self):
        if self.memory_size < 1:
            raise ValueError("memory_size must be at least 1")


@dataclass(frozen=True)
class Run:
    task: str
    model: Model = field(default_factory=Model)
    shape: tuple[int, float] = (7, 0.5)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3


RUN = Run("merlin/MemoryGame-v0")


@pytest.mark.parametrize(
    "assignment, path, value",
    [
        ("task=a=b", "task", "a=b"),
        ("learning_rate=2", "learning_rate", 2.0),
        ("learning_rate=3e-4", "learning_rate", 3e-4),
        ("model.kl_cost=0.02", "model.kl_cost", 0.02),
        ("model.kl_cost=none", "model.kl_cost", None),
        ("model.memory_size=1e3", "model.memory_size", 1000),
        ("model.memory_size=1_000_000", "model.memory_size", 1_000_000),
        ("model.memory_size=9007199254740993", "model.memory_size", 2**53 + 1),  # no detour through a float
        ("model.mask_empty=false", "model.mask_empty", False),
        ("model.read=top-k", "model.read", "top-k"),
        ("model.widths=(8, 4, 2)", "model.widths", (8, 4, 2)),
        ("model.widths=8", "model.widths", (8,)),
        ("model.widths=", "model.widths", ()),
        ("shape=3,1", "shape", (3, 1.0)),
        ('env_kwargs={"size": 9}', "env_kwargs", {"size": 9}),
        ("env_kwargs.size=9", "env_kwargs", {"size": 9}),
        ("env_kwargs.mode=easy", "env_kwargs", {"mode": "easy"}),
    ],
)
def test_override_reads_a_value_as_its_annotation_says(assignment, path, value):
    changed = override(RUN, [assignment])
    for name in path.split("."):
        changed = getattr(changed, name)
    assert changed == value and type(changed) is type(value)


def test_override_changes_nothing_else_and_later_assignments_win():
    changed = override(RUN, ["model.memory_size=8", "model.memory_size=9"])
    assert changed == Run(RUN.task, Model(memory_size=9))
    assert RUN.model.memory_size == 64


@pytest.mark.parametrize(
    "assignment, sentence",
    [
        ("model.kl_costs=1", "there is no setting 'model.kl_costs': did you mean 'model.kl_cost'?"),
        ("kl_cost=1", "there is no setting 'kl_cost': did you mean 'model.kl_cost'?"),
        ("model.shape=1,2", "there is no setting 'model.shape': did you mean 'shape'?"),
        ("memorysize=1", "there is no setting 'memorysize': did you mean 'model.memory_size'?"),
        ("training.learning_rate=1", "there is no setting 'training.learning_rate': did you mean 'learning_rate'?"),
        ("task.name=1", "there is no setting 'task.name': did you mean 'task'?"),
        ("model.memory_size=1.5", "model.memory_size must be a whole number, but is '1.5': take another."),
        ("model.memory_size=inf", "model.memory_size must be a whole number, but is 'inf': take another."),
        ("model.memory_size=many", "model.memory_size must be a whole number, but is 'many': take another."),
        ("learning_rate=nan", "learning_rate must be a number, but is 'nan': take another."),
        ("learning_rate=none", "learning_rate must be a number, but is 'none': take another."),
        ("model.kl_cost=x", "model.kl_cost must be a number, or none, but is 'x': take another."),
        ("model.mask_empty=maybe", "model.mask_empty must be true or false, but is 'maybe': take another."),
        ("model.read=top", "model.read must be one of softmax, top-k, but is 'top': take another."),
        ("model.widths=8,x", "model.widths must be a list, each entry a whole number, but is '8,x': take another."),
        ("shape=3", "shape must be a list of a whole number, a number, but is '3': take another."),
        ("env_kwargs=9", "env_kwargs must be a JSON object such as '{\"size\": 9}', but is '9': take another."),
        ("model=1", "model is a group of settings: set one of them, such as model.kl_cost=..."),
        ("model.memory_size=0", "model.memory_size must be at least 1"),
        ("task", "a setting must be written path=value, got 'task'"),
    ],
)
def test_override_explains_a_mistake_in_one_sentence(assignment, sentence):
    with pytest.raises(MerlinError) as error:
        override(RUN, [assignment])
    assert str(error.value) == sentence


def test_override_names_every_setting_where_none_is_near():
    with pytest.raises(MerlinError, match=r"there is no setting 'zzz': take one of task, model\.kl_cost, "):
        override(RUN, ["zzz=1"])


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Run,
        st.text(),
        st.builds(Model, st.none() | finite, st.integers(1), st.booleans(), st.sampled_from(["softmax", "top-k"])),
        st.tuples(st.integers(), finite),
        st.dictionaries(st.text(), st.integers() | finite | st.text() | st.none() | st.lists(st.integers())),
        finite,
    )
)
def test_json_round_trip_is_exact(run):
    assert from_dict(Run, json.loads(json.dumps(to_dict(run)))) == run


def test_a_field_without_a_class_in_its_annotation_takes_the_one_given():
    @dataclass(frozen=True)
    class Open:
        model: Any

    config = Open(Model(memory_size=3))
    assert from_dict(Open, to_dict(config), {"model": Model}) == config
    assert override(config, ["model.memory_size=5"]) == Open(Model(memory_size=5))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"tusk": 1}, "the configuration has the unknown setting 'tusk': did you mean 'task'?"),
        ({"zzz": 1}, "the configuration has the unknown setting 'zzz': remove it"),
        ({"task": 3}, "task must be a text, but is 3: take another."),
        ({"learning_rate": True}, "learning_rate must be a number, but is True: take another."),
        (
            {"model": {**to_dict(RUN)["model"], "memory_size": True}},
            "model.memory_size must be a whole number, but is True: take another.",
        ),
        ({"model": 3}, "model must be settings of Model, but is 3: take another."),
        (
            {"model": {**to_dict(RUN)["model"], "read": "x"}},
            "model.read must be one of softmax, top-k, but is 'x': take another.",
        ),
        ({"shape": [1]}, "shape must be a list of a whole number, a number, but is [1]: take another."),
    ],
)
def test_from_dict_explains_a_foreign_configuration(change, sentence):
    with pytest.raises(MerlinError) as error:
        from_dict(Run, {**to_dict(RUN), **change})
    assert str(error.value) == sentence


def test_what_did_not_exist_yet_takes_its_default():
    values = to_dict(RUN)
    del values["model"]["memory_size"]
    assert from_dict(Run, values) == RUN
    changed = replace(RUN, learning_rate=0.5)
    assert from_dict(Run, {key: x for key, x in to_dict(changed).items() if key != "model"}) == changed


def test_from_dict_names_what_is_missing():
    values = to_dict(RUN)
    del values["task"]
    with pytest.raises(MerlinError, match=r"^the configuration lacks the setting 'task': add it$"):
        from_dict(Run, values)


def test_settings_are_listed_with_type_value_and_the_whole_of_their_docstring():
    @dataclass(frozen=True)
    class Deeper(Model):
        depth: int = 2
        """Layers."""

    listed = list_settings(Run)
    assert [tuple(setting) for setting in listed[1:4]] == [
        ("model.kl_cost", "float | None", None, "Weight of the KL; none scales it by the observation.", Model, None),
        ("model.memory_size", "int", 64, "", Model, None),
        ("model.mask_empty", "bool", True, "Whether rows that were never written are masked.", Model, None),
    ]
    assert (listed[0].path, listed[0].value) == ("task", MISSING)
    assert {x.path: x.value for x in list_settings(Run("x", learning_rate=0.1))}["learning_rate"] == 0.1
    texts = {setting.path: setting.text for setting in list_settings(Deeper())}
    assert texts["depth"] == "Layers." and texts["mask_empty"] == listed[3].text
