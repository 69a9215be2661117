"""The documents say what the program does: every command, every setting, every failpoint and link."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from lakehouse.cli import app
from lakehouse.settings import Settings

ROOT = Path(__file__).parent.parent.parent


def commands(group: Any, prefix: str = "lakehouse") -> list[str]:
    found = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):  # typer has a click of its own
            found += commands(command, f"{prefix} {name}")
        else:
            found.append(f"{prefix} {name}")
    return found


def setting_names(model: type[BaseModel], prefix: str = "LAKEHOUSE_") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name.upper()}__")
        else:
            names.append(prefix + (field.alias or name).upper())
    return names


@pytest.mark.parametrize("command", commands(typer.main.get_command(app)))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert (
        command in (ROOT / "README.md").read_text()
        or command.rsplit(maxsplit=1)[-1] in (ROOT / "CHANGELOG.md").read_text()
    )


def test_every_setting_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"`(LAKEHOUSE_[A-Z0-9_]+)`", (ROOT / "docs/settings.md").read_text()))
    assert documented - {"LAKEHOUSE_CONFIG"} == set(setting_names(Settings))


@pytest.mark.parametrize(
    "document", sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())  # type: ignore[index]
    assert phony == set(re.findall(r"^([a-z]+):.*##", makefile, re.M))


def test_the_models_and_the_migrations_make_the_same_tables(postgres_url: str, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from lakehouse.control.database import migrate
    from lakehouse.control.models import Base
    from lakehouse.demo.environment import settings_values
    from lakehouse.settings import ExplicitSettings
    from tests.support import local_variables

    engine = migrate(ExplicitSettings(**settings_values(local_variables(postgres_url, tmp_path))))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()
