"""Reads Android's list of public classes, a text of signatures (`core/api/current.txt`, format 2.0).

package android.view {
  public abstract class Gravity<T> extends java.lang.Object implements android.view.Thing {
    ctor public Gravity();
    method @Nullable public static <T> T apply(@NonNull int, java.util.List<T>) throws java.io.IOException;
    field public static final int TOP = 48; // 0x30
  }
}
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

# An annotation, with arguments or without; quoted text is stepped over so that an @ inside it is not one.
QUOTED = r'"(?:\\.|[^"\\])*"'
ANNOTATION = re.compile(rf'{QUOTED}|@(?!interface\b)([\w.]+)(?:\((?:[^()"]|{QUOTED}|\([^()]*\))*\))?\s*')
MODIFIERS = {"public", "protected", "private", "static", "final", "abstract"}
MODIFIERS |= {"synchronized", "native", "volatile", "transient", "default", "strictfp"}


@dataclass
class Parameter:
    type: str
    nullable: bool | None


@dataclass
class Member:
    kind: str
    name: str
    type: str
    modifiers: set[str]
    nullable: bool | None = None
    type_parameters: dict[str, list[str]] = field(default_factory=dict)
    parameters: list[Parameter] = field(default_factory=list)
    throws: list[str] = field(default_factory=list)
    value: str | None = None


@dataclass
class Class:
    package: str
    name: str
    kind: str
    modifiers: set[str]
    type_parameters: dict[str, list[str]]
    superclass: str | None
    interfaces: list[str]
    members: list[Member] = field(default_factory=list)

    @property
    def is_interface(self) -> bool:
        return self.kind in ("interface", "@interface")

    @property
    def internal(self) -> str:
        return f"{self.package}.".replace(".", "/") + self.name.replace(".", "$")


def read(path: Path) -> list[Class]:
    """All classes of the text; a line that does not read is named."""
    classes: list[Class] = []
    package = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.strip()
        if not text or text == "}" or text.startswith("//"):
            continue
        try:
            if text.startswith("package "):
                package = text.split()[-2]
            elif text.endswith("{"):
                classes.append(read_class(package, without_annotations(text)[0][:-1]))
            else:
                classes[-1].members.append(read_member(text))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}:{number} does not read: {text}") from error
    return classes


def read_class(package: str, text: str) -> Class:
    modifiers, words = leading_modifiers(split(text, " "))
    kind, name, *rest = words
    parameters: dict[str, list[str]] = {}
    if "<" in name:
        name, _, inside = name.partition("<")
        parameters = read_type_parameters(inside[:-1])
    clauses: dict[str, list[str]] = {"extends": [], "implements": []}
    clause = clauses["extends"]
    for word in rest:
        if word in clauses:
            clause = clauses[word]
        else:
            clause.append(word)
    superclass = clauses["extends"][0] if clauses["extends"] and kind == "class" else None
    interfaces = clauses["implements"] + (clauses["extends"] if kind == "interface" else [])
    return Class(package, name, kind, modifiers, parameters, superclass, interfaces)


def read_member(line: str) -> Member:
    kind, _, line = line.partition(" ")
    if kind in ("field", "enum_constant"):
        declared, _, value = line.partition(" = ")
        text, nullable = without_annotations(declared.rstrip(";"))
        modifiers, (type_, name) = leading_modifiers(split(text, " "))
        constant = re.match(rf"{QUOTED}|[^;]+", value)
        return Member(kind, name, type_, modifiers, nullable, value=constant[0] if constant else None)
    opening = top_level(line, "(")
    closing = matching(line, opening)
    head, nullable = without_annotations(line[:opening])
    modifiers, words = leading_modifiers(split(head, " "))
    type_parameters: dict[str, list[str]] = {}
    if words[0].startswith("<"):
        type_parameters = read_type_parameters(words.pop(0)[1:-1])
        more, words = leading_modifiers(words)
        modifiers |= more
    if kind == "ctor":
        words = ["void", "<init>"]
    parameters = []
    for parameter in split(line[opening + 1 : closing], ","):
        text, absent = without_annotations(parameter)
        parameters.append(Parameter(split(text, " ")[0], absent))
    throws = re.match(r" throws ([^;]*);", line[closing + 1 :])
    thrown = split(throws[1], ",") if throws else []
    return Member(kind, words[1], words[0], modifiers, nullable, type_parameters, parameters, thrown)


def read_type_parameters(text: str) -> dict[str, list[str]]:
    """`K, V extends A & B` as names and their bounds."""
    found = {}
    for parameter in split(text, ","):
        name, _, bounds = parameter.partition(" extends ")
        found[name] = split(bounds, "&") or ["java.lang.Object"]
    return found


def without_annotations(text: str) -> tuple[str, bool | None]:
    """The text without its annotations, and what they say of null: True it may be, False it never is."""
    nullable: bool | None = None

    def drop(match: re.Match[str]) -> str:
        nonlocal nullable
        if match[1] in ("Nullable", "NonNull"):
            nullable = match[1] == "Nullable"
        return "" if match[1] else match[0]

    return ANNOTATION.sub(drop, text).strip(), nullable


def leading_modifiers(words: list[str]) -> tuple[set[str], list[str]]:
    count = next((at for at, word in enumerate(words) if word not in MODIFIERS), len(words))
    return set(words[:count]), words[count:]


def split(text: str, separator: str) -> list[str]:
    """Parts between separators that stand in no <> or ()."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "<(") - (character in ">)")
        if character == separator and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def top_level(text: str, wanted: str) -> int:
    """Where a member's own bracket opens: not one of an annotation's arguments."""
    at = 0
    while at < len(text):
        if text[at] == "@" and (annotation := ANNOTATION.match(text, at)):
            at = annotation.end()
        elif text[at] == wanted:
            return at
        else:
            at += 1
    raise ValueError(wanted)


def matching(text: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    raise ValueError(text)
