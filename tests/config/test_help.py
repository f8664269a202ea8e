"""Help pages say everything the dataclasses say; the table says where each value came from."""

import dataclasses
import inspect
import sys
from typing import Annotated, Literal

import pytest

from ssl_vit.config import (
    evaluation_schema,
    finetune_schema,
    help,
    pretrain_schema,
    schema,
    tokenizer_schema,
)
from ssl_vit.config.checks import Bounded, PositiveInt, interval
from ssl_vit.config.evaluation_schema import KNNConfig, LinearProbeConfig
from ssl_vit.config.finetune_schema import FinetuneRun, PredictConfig
from ssl_vit.config.help import COMMON, field_doc, help_page, help_text, overview, resolved_table
from ssl_vit.config.pretrain_schema import METHODS, MAERun
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import DataConfig, RunConfig
from ssl_vit.config.tokenizer_schema import TokenizerRun
from ssl_vit.config.values import settings_of

PAGES = (schema, pretrain_schema, tokenizer_schema, finetune_schema, evaluation_schema)
CONFIGS = {
    item for page in PAGES for item in vars(page).values() if inspect.isclass(item) and dataclasses.is_dataclass(item)
}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@dataclasses.dataclass(kw_only=True)
class Inner:
    """The inner section."""

    rate: float = 0.5
    """Fraction of
    something."""
    bare: int = 1


@dataclasses.dataclass(kw_only=True)
class Base(Bounded):
    count: PositiveInt | None = None
    """How many."""
    inner: Inner = dataclasses.field(default_factory=Inner)


@dataclasses.dataclass(kw_only=True)
class Derived(Base):
    """A small command."""

    count: PositiveInt | None = 3
    kind: Literal["hard", "soft"] = "hard"
    """Which."""
    pair: Annotated[tuple[float, float], interval(0, 1)] = (0.1, 1.0)
    """Two of them."""


def test_a_page_lists_inherited_overridden_and_nested_settings():
    lines = [
        "usage",
        "",
        "A small command.",
        "  count=3".ljust(38) + "(a positive integer or null) How many.",
        "  kind=hard".ljust(38) + "(hard | soft) Which.",
        "  pair=[0.1, 1.0]".ljust(38) + "([low, high] with 0 <= low <= high <= 1) Two of them.",
        "",
        "inner: The inner section.",
        "  inner.rate=0.5".ljust(38) + "(a number) Fraction of something.",
        "  inner.bare=1".ljust(38) + "(an integer)",
    ]
    assert help_text(Derived, "usage") == "\n".join(lines)


def test_a_class_without_docstring_has_no_made_up_summary():
    assert help_text(Base, "usage").splitlines()[:4] == [
        "usage",
        "",
        "",
        "  count=null".ljust(38) + "(a positive integer or null) How many.",
    ]


@pytest.mark.parametrize(
    "config_class",
    [*(row.config for row in METHODS.values()), LinearProbeConfig, KNNConfig, FinetuneRun, PredictConfig],
)
def test_a_page_has_every_setting_with_its_default_and_its_docstring(config_class):
    page = " ".join(help_text(config_class, "usage").split())
    for key, setting in settings_of(config_class()).items():
        assert f" {key}={help.shown(setting.default)} " in page
        assert field_doc(setting.owner, key.rpartition(".")[2]) in page


@pytest.mark.parametrize("columns", [80, 120])
def test_a_page_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(len(line) for line in help_text(MAERun, "usage").splitlines()) <= columns


def test_help_of_a_method_shows_its_defaults():
    page = help_page(RunConfig, "usage", ["method=mae", "--help"])
    assert "  optim.betas=[0.9, 0.95] " in page
    assert "  encoder.pos_embed=sincos " in page
    assert "  method.mask_ratio=0.75 " in page


def test_help_of_an_unknown_method_names_the_legal_ones():
    with pytest.raises(ConfigError, match=r"^method=mea is not a method: .* \(did you mean mae\?\)$"):
        help_page(RunConfig, "usage", ["method=mea"])


def test_help_of_a_tokenizer_is_that_of_the_one_named_by_itself_or_by_its_recipe():
    for args in (["tokenizer=kmeans", "recipe=digits-kmeans"], ["recipe=digits-kmeans"]):
        assert "  tokenizer.passes=20 " in help_page(TokenizerRun, "usage", args)
    assert "  tokenizer.kl=0.0001 " in help_page(TokenizerRun, "usage")


def test_help_alone_lists_methods_recipes_and_common_settings(monkeypatch, tmp_path):
    path = tmp_path / "steel.yaml"
    path.write_text("# Steel plates, one hour on one GPU\nseed: 1\n")
    monkeypatch.setattr(help, "recipes", lambda method: {"steel": path})
    page = help_page(RunConfig, "usage", ["--help"])
    assert page == overview("usage")
    assert "    recipe=steel".ljust(38) + "Steel plates, one hour on one GPU" in page.splitlines()
    for method in METHODS:
        assert f"  method={method} " in page
    for key in COMMON:
        assert f"  {key}= " in page


def test_common_settings_exist():
    assert set(COMMON) <= set(settings_of(RunConfig()))


TABLE = """\
  count       default       3
* inner.rate  command line  0.7
* inner.bare  run           2
  kind        default       hard
  pair        default       [0.1, 1.0]"""


def test_the_table_marks_what_changed_and_says_who_changed_it():
    resolved = resolve(Derived, ["inner.rate=0.7"], {"inner": {"bare": 2}}, "run")
    assert resolved_table(resolved) == TABLE


def test_the_table_is_bold_only_on_a_terminal(monkeypatch):
    resolved = resolve(Derived, ["inner.rate=0.7"])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = resolved_table(resolved).splitlines()
    assert [line.startswith("\x1b[1m") for line in lines] == [False, True, False, False, False]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in resolved_table(resolved)


@pytest.mark.parametrize("config_class", sorted(CONFIGS, key=lambda item: item.__name__))
def test_every_field_and_every_config_is_documented(config_class):
    own_docstring = not config_class.__doc__.startswith(f"{config_class.__name__}(")
    assert own_docstring
    base = config_class()
    sections = {field.name for field in dataclasses.fields(base) if dataclasses.is_dataclass(getattr(base, field.name))}
    bare = {field.name for field in dataclasses.fields(base) if not field_doc(config_class, field.name)}
    # A section is documented by its own class; `method` is one in every method's RunConfig, `tokenizer` likewise.
    assert bare - sections - {"method"} == set()


def test_docs_come_from_the_class_that_has_the_field():
    assert field_doc(DataConfig, "labels").startswith("Evaluate with the labels that there are")
    assert field_doc(Derived, "count") == "How many."
    assert field_doc(Derived, "no_such_field") == ""
