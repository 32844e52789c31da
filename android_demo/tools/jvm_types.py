"""Java types as class files write them: erased, and with their arguments."""

from __future__ import annotations

from .api_text import split

PRIMITIVES = dict(boolean="Z", byte="B", char="C", short="S", int="I", long="J", float="F", double="D", void="V")

# Type variables in scope, and their bounds.
Variables = dict[str, list[str]]


def internal_name(name: str) -> str:
    """`java.util.Map.Entry` is java/util/Map$Entry, `String` java/lang/String: class names start with a capital."""
    if "." not in name:
        return f"java/lang/{name}"
    parts = name.split(".")
    outermost = next((at for at, part in enumerate(parts) if part[0].isupper()), len(parts) - 1)
    return "/".join([*parts[:outermost], "$".join(parts[outermost:])])


def descriptor(name: str, variables: Variables) -> str:
    """The erased type as the virtual machine writes it."""
    if name.endswith(("]", "...")):
        return "[" + descriptor(name.removesuffix("...").removesuffix("[]"), variables)
    plain = without_arguments(name)
    if plain in variables:
        return descriptor(variables[plain][0], {key: value for key, value in variables.items() if key != plain})
    return PRIMITIVES.get(plain) or f"L{internal_name(plain)};"


def without_arguments(name: str) -> str:
    kept, depth = [], 0
    for character in name:
        depth += character == "<"
        if not depth:
            kept.append(character)
        depth -= character == ">"
    return "".join(kept)


def signature(name: str, variables: Variables) -> str:
    """The type with its arguments, as a Signature attribute writes it."""
    if name.endswith(("]", "...")):
        return "[" + signature(name.removesuffix("...").removesuffix("[]"), variables)
    for words, mark in (("? extends ", "+"), ("? super ", "-")):
        if name.startswith(words):
            return mark + signature(name.removeprefix(words), variables)
    if name == "?":
        return "*"
    if name in variables:
        return f"T{name};"
    # Outer<A>.Inner is rare, and given up: the erased type.
    if "<" not in name or not name.endswith(">"):
        return descriptor(name, variables)
    outer, _, inside = name.partition("<")
    arguments = "".join(signature(argument, variables) for argument in split(inside[:-1], ","))
    return f"L{internal_name(outer)}<{arguments}>;"
