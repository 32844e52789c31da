"""Writes class files to compile against: declarations without code, which neither compiler nor dexer looks for."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from .api_text import Class, Member
from .jvm_types import Variables, descriptor, signature

JAVA_8 = 52
ACCESS = {"public": 0x1, "private": 0x2, "protected": 0x4, "static": 0x8, "final": 0x10, "abstract": 0x400}
SUPER, VARARGS, INTERFACE, ANNOTATION, ENUM = 0x20, 0x80, 0x200, 0x2000, 0x4000
# What Kotlin knows as "may be null" and "never null".
NULLABILITY = {True: "Landroid/annotation/Nullable;", False: "Landroid/annotation/NonNull;"}
NOT_NUMBERS = {"(0.0f/0.0f)": "nan", "(1.0f/0.0f)": "inf", "(-1.0f/0.0f)": "-inf"}
NOT_NUMBERS |= {key.replace("f", ""): value for key, value in NOT_NUMBERS.items()}


def write_jar(classes: list[Class], jar: Path) -> None:
    by_name = {entry.internal: entry for entry in classes}
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in classes:
            out.writestr(zipfile.ZipInfo(f"{entry.internal}.class"), class_file(entry, by_name))


class Constants:
    """The constant pool: each entry once, numbered from 1; long and double take two numbers."""

    def __init__(self) -> None:
        self.entries: dict[bytes, int] = {}
        self.next = 1

    def add(self, entry: bytes) -> int:
        if entry not in self.entries:
            self.entries[entry] = self.next
            self.next += 2 if entry[0] in (5, 6) else 1
        return self.entries[entry]

    def utf8(self, text: str) -> int:
        encoded = text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")
        return self.add(struct.pack(">BH", 1, len(encoded)) + encoded)

    def class_(self, internal: str) -> int:
        return self.add(struct.pack(">BH", 7, self.utf8(internal)))

    def value(self, type_: str, text: str) -> int | None:
        """The constant of a static final field, or None where its type has none."""
        if type_ in ("float", "double"):
            real = float(NOT_NUMBERS.get(text, text.rstrip("f")))
            return self.add(struct.pack(">Bf" if type_ == "float" else ">Bd", 4 if type_ == "float" else 6, real))
        if type_ == "long":
            return self.add(struct.pack(">Bq", 5, int(text.rstrip("L"))))
        if type_ in ("int", "short", "byte", "char", "boolean"):
            number = {"true": 1, "false": 0}.get(text)
            return self.add(struct.pack(">Bi", 3, int(text) if number is None else number))
        if type_ == "String" and text.startswith('"'):
            return self.add(struct.pack(">BH", 8, self.utf8(text[1:-1].encode().decode("unicode_escape"))))
        return None


def class_file(entry: Class, classes: dict[str, Class]) -> bytes:
    constants = Constants()
    variables: Variables = {}
    for name in outer_names(entry.internal):
        variables |= classes[name].type_parameters if name in classes else {}
    superclass = entry.superclass or ("java.lang.Enum" if entry.kind == "enum" else "java.lang.Object")
    interfaces = entry.interfaces + (["java.lang.annotation.Annotation"] if entry.kind == "@interface" else [])
    this = constants.class_(entry.internal)
    parents = [constants.class_(descriptor(parent, variables)[1:-1]) for parent in [superclass, *interfaces]]
    generic = formal(entry.type_parameters, variables, classes)
    generic += f"Ljava/lang/Enum<L{entry.internal};>;" if entry.kind == "enum" else signature(superclass, variables)
    generic += "".join(signature(interface, variables) for interface in interfaces)
    fields = [member for member in entry.members if member.kind in ("field", "enum_constant")]
    methods = [member for member in entry.members if member.kind in ("ctor", "method")]
    body = struct.pack(f">HHHH{len(interfaces)}H", flags(entry), this, parents[0], len(interfaces), *parents[1:])
    body += struct.pack(">H", len(fields)) + b"".join(field(constants, entry, item, variables) for item in fields)
    body += struct.pack(">H", len(methods))
    body += b"".join(method(constants, entry, item, variables, classes) for item in methods)
    body += attributes(
        attribute(constants, "Signature", struct.pack(">H", constants.utf8(generic))),
        inner_classes(constants, entry, classes),
    )
    head = struct.pack(">IHHH", 0xCAFEBABE, 0, JAVA_8, constants.next)
    return head + b"".join(constants.entries) + body


def outer_names(internal: str) -> list[str]:
    """A, A$B and A$B$C of A$B$C."""
    parts = internal.split("$")
    return ["$".join(parts[: count + 1]) for count in range(len(parts))]


def flags(entry: Class) -> int:
    kinds = {"class": SUPER, "enum": SUPER | ENUM, "interface": INTERFACE, "@interface": INTERFACE | ANNOTATION}
    modifiers = entry.modifiers - {"static", "protected"} | {"public"}
    return access(modifiers | ({"abstract"} if entry.is_interface else set())) | kinds[entry.kind]


def access(modifiers: set[str]) -> int:
    return sum(ACCESS.get(modifier, 0) for modifier in modifiers)


def formal(parameters: Variables, variables: Variables, classes: dict[str, Class]) -> str:
    """`<T:Ljava/lang/Object;>`: an interface as the first bound has its colon twice."""
    text = ""
    for name, bounds in parameters.items():
        first = classes.get(descriptor(bounds[0], variables)[1:-1])
        text += name + (":" if first and first.is_interface else "")
        text += "".join(":" + signature(bound, variables) for bound in bounds)
    return f"<{text}>" if text else ""


def field(constants: Constants, owner: Class, member: Member, variables: Variables) -> bytes:
    constant = member.kind == "enum_constant"
    modifiers = member.modifiers | ({"public", "static", "final"} if constant or owner.is_interface else set())
    value = constants.value(member.type, member.value) if member.value else None
    head = (constants.utf8(member.name), constants.utf8(descriptor(member.type, variables)))
    return struct.pack(">HHH", access(modifiers) | (ENUM if constant else 0), *head) + attributes(
        attribute(constants, "ConstantValue", struct.pack(">H", value)) if value else b"",
        attribute(constants, "Signature", struct.pack(">H", constants.utf8(signature(member.type, variables)))),
        nullability(constants, "RuntimeInvisibleAnnotations", [member.nullable]),
    )


def method(constants: Constants, owner: Class, member: Member, outer: Variables, classes: dict[str, Class]) -> bytes:
    variables = outer | member.type_parameters
    modifiers = set(member.modifiers)
    if owner.is_interface:
        modifiers |= {"public"} if modifiers & {"default", "static"} else {"public", "abstract"}
    varargs = any(parameter.type.endswith("...") for parameter in member.parameters)
    types = [parameter.type for parameter in member.parameters]
    erased = "".join(descriptor(name, variables) for name in types)
    # The hidden first parameter of an inner class's constructor.
    parent = classes.get(owner.internal.rpartition("$")[0])
    if member.kind == "ctor" and parent and owner.kind == "class" and "static" not in owner.modifiers:
        erased = f"L{parent.internal};{erased}"
    erased = f"({erased}){descriptor(member.type, variables)}"
    generic = formal(member.type_parameters, variables, classes)
    generic += f"({''.join(signature(name, variables) for name in types)}){signature(member.type, variables)}"
    thrown = [constants.class_(descriptor(name, variables)[1:-1]) for name in member.throws]
    head = (constants.utf8(member.name), constants.utf8(erased))
    return struct.pack(">HHH", access(modifiers) | (VARARGS if varargs else 0), *head) + attributes(
        attribute(constants, "Signature", struct.pack(">H", constants.utf8(generic))),
        attribute(constants, "Exceptions", struct.pack(f">H{len(thrown)}H", len(thrown), *thrown)) if thrown else b"",
        nullability(constants, "RuntimeInvisibleAnnotations", [member.nullable]),
        nullability(
            constants,
            "RuntimeInvisibleParameterAnnotations",
            [parameter.nullable for parameter in member.parameters],
        ),
    )


def inner_classes(constants: Constants, entry: Class, classes: dict[str, Class]) -> bytes:
    """The class's own place, if it is inside another, and the classes right inside it."""
    nested = [classes[name] for name in outer_names(entry.internal)[1:] if name in classes]
    inside = f"{entry.internal}$"
    nested += [item for name, item in classes.items() if name.startswith(inside) and "$" not in name[len(inside) :]]
    rows = b""
    for item in nested:
        outer, _, name = item.internal.rpartition("$")
        modifiers = item.modifiers | ({"static", "abstract"} if item.is_interface else set())
        modifiers |= {"static"} if item.kind == "enum" else set()
        row = (constants.class_(item.internal), constants.class_(outer), constants.utf8(name))
        rows += struct.pack(">HHHH", *row, access(modifiers) | flags(item) & ~SUPER & ~ACCESS["public"])
    return attribute(constants, "InnerClasses", struct.pack(">H", len(nested)) + rows) if nested else b""


def nullability(constants: Constants, name: str, nullable: list[bool | None]) -> bytes:
    """@Nullable and @NonNull: of the member itself, or of each of its parameters."""
    if all(mark is None for mark in nullable):
        return b""
    lists = [
        struct.pack(">HHH", 1, constants.utf8(NULLABILITY[mark]), 0) if mark is not None else struct.pack(">H", 0)
        for mark in nullable
    ]
    count = struct.pack(">B", len(lists)) if name == "RuntimeInvisibleParameterAnnotations" else b""
    return attribute(constants, name, count + b"".join(lists))


def attribute(constants: Constants, name: str, content: bytes) -> bytes:
    return struct.pack(">HI", constants.utf8(name), len(content)) + content


def attributes(*present: bytes) -> bytes:
    present = tuple(filter(None, present))
    return struct.pack(">H", len(present)) + b"".join(present)
