"""A report as one HTML page, as Markdown and as JSON: the same sections and tables, rendered three ways."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from .errors import PocketdraftError
from .files import require_folder, write_whole

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """`rows` are as they are shown; an open table is not folded away on the page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    open: bool = False

    @property
    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    @property
    def csv_link(self) -> str:
        """The table within the link itself: a page without a server has nothing else to link to."""
        return "data:text/csv;charset=utf-8," + quote(self.csv)

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") + ".csv"


@dataclass(frozen=True)
class Figure:
    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """`tiles` are (name, value, note)."""

    title: str
    text: str = ""
    tiles: tuple[tuple[str, str, str], ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Report:
    """`raw` are the results that it was made of."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    raw: Sequence[dict[str, Any]]

    def html(self) -> str:
        """Nothing in it is fetched from anywhere."""
        loader = jinja2.FileSystemLoader(TEMPLATES)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
        )
        return environment.get_template("report.html.jinja").render(
            title=self.title,
            subtitle=self.subtitle,
            sections=self.sections,
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            version=metadata.version("pocketdraft"),
        )

    def markdown(self) -> str:
        parts = [f"# {self.title}\n\n{self.subtitle}\n"]
        for section in self.sections:
            parts.append(f"## {section.title}\n")
            if section.text:
                parts.append(f"{section.text}\n")
            if section.tiles:
                parts.append(_markdown(("", "", ""), section.tiles))
            for table in section.tables:
                parts.append(f"### {table.title}\n\n{_markdown(table.columns, table.rows)}")
        return "\n".join(parts)

    def json(self) -> str:
        tables = [asdict(table) for section in self.sections for table in section.tables]
        return json.dumps({"title": self.title, "results": self.raw, "tables": tables}, indent=1) + "\n"

    def write(self, page: Path, read: Sequence[Path] = ()) -> list[Path]:
        """The page, and beside it the same as .md and .json.

        Raises PocketdraftError for a name that is no page's, or whose .json is one of the files that were `read`.
        """
        if page.suffix != ".html":
            raise PocketdraftError(f"--out is {page}, the report is a page; give {page.with_suffix('.html').name}.")
        require_folder(page)
        if page.with_suffix(".json").resolve() in [path.resolve() for path in read]:
            raise PocketdraftError(
                f"The report {page} would write over {page.with_suffix('.json')}, which it is made of; "
                "give --out another name."
            )
        texts = {page: self.html(), page.with_suffix(".md"): self.markdown(), page.with_suffix(".json"): self.json()}
        for path, text in texts.items():
            write_whole(path, text)
        return list(texts)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
